"""What depends on size, with the shapes of the real models and no memory for them: keys, plan, words, refusals."""

import pytest
import torch

from wantune.tests.support import wan_models
from wantune.trainer.adapter.adapter_size import adapter_size
from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import made_for
from wantune.trainer.lora.file import from_adapter
from wantune.trainer.memory.choice import Needs, Space, choose
from wantune.trainer.memory.sizes import Work
from wantune.trainer.settings.memory import MemoryConfig
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig

pytestmark = pytest.mark.usefixtures("comfy")

GIB = 2**30

FULL = {
    "1.3B": ("Wan2.1 T2V", "1.3B"), "14B": ("Wan2.1 T2V", "14B"), "I2V": ("Wan2.1 I2V", "14B"),
    "FLF2V": ("Wan2.1 FLF2V", "14B"), "I2V A14B": ("Wan2.2 I2V", "14B"), "5B": ("Wan2.2 5B", "5B"),
    "Fun-InP 1.3B": ("Wan2.1 I2V", "1.3B"), "Fun-Control A14B": ("Wan2.2 Fun-Control", "14B"),
    "VACE": ("Wan2.1 VACE", "14B"),
}


def numbers(size: str, rank: int = 32) -> int:
    """Of an adapter: each of eight square Linears has 2 dim to a rank, the feed-forward's two dim + ffn_dim."""
    dim, ffn_dim, blocks = wan_models.FULL[size].values()
    return blocks * rank * (8 * 2 * dim + 2 * (dim + ffn_dim))


@pytest.fixture(scope="module", params=FULL)
def full(request, comfy):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    name, size = FULL[request.param]
    model = wan_models.on_meta(name, size)
    return request.param, name, size, model, ComfyDenoiser(model)


def lora_of(size: str, name: str = "Wan2.1 T2V", rank: int = 1) -> dict[str, torch.Tensor]:
    """A file as it is saved, for all that is trained of a model of this size."""
    sizes = wan_models.FULL[size]
    wide = {"ffn.0": (sizes["ffn_dim"], sizes["dim"]), "ffn.2": (sizes["dim"], sizes["ffn_dim"])}
    state = {}
    for block in range(sizes["layers"]):
        for linear in wan_models.family(name).trained:
            rows, columns = wide.get(linear, (sizes["dim"], sizes["dim"]))
            state[f"blocks.{block}.{linear}.lora_A.weight"] = torch.ones(rank, columns)
            state[f"blocks.{block}.{linear}.lora_B.weight"] = torch.ones(rows, rank)
    return from_adapter(state, rank)


def test_the_adapter_and_its_keys_are_those_of_the_size(full):
    from wantune.nodes.backend import applying

    _, name, size, model, denoiser = full
    assert denoiser.family is wan_models.family(name)
    linears = {each: (linear.out_features, linear.in_features) for each, linear in denoiser.linears().items()}
    assert adapter_size(LoraConfig(rank=32), linears).numbers == numbers(size)
    lora = lora_of(size)
    assert {key.removeprefix("diffusion_model.").rsplit(".lora_A", 1)[0] for key in lora if "lora_A" in key} == set(
        linears)
    reading = applying.read(model, lora)
    assert len(reading.fit.matched) == len(linears) == 10 * wan_models.FULL[size]["layers"] and not reading.notes


def test_a_lora_of_another_size_is_refused(full):
    from wantune.nodes.backend import applying

    _, _, size, model, _ = full
    for other, told in (("1.3B", "Wan2.1 1.3B of width 1536"), ("5B", "Wan2.2 5B of width 3072"),
                        ("14B", "Wan 14B of width 5120")):
        if other != size:
            with pytest.raises(UserError, match=f"^This LoRA does not fit: it was made for {told} .* the model is "):
                applying.read(model, lora_of(other))


def test_what_others_train_of_the_image_is_applied_where_there_is_one(full):
    """diffusion-pipe trains every Linear of a block; we leave those out, and read them."""
    from wantune.nodes.backend import applying

    _, name, size, model, denoiser = full
    dim = wan_models.FULL[size]["dim"]
    lora = lora_of(size) | {f"diffusion_model.blocks.0.cross_attn.k_img.lora_{matrix}.weight": torch.ones(shape)
                            for matrix, shape in (("A", (1, dim)), ("B", (dim, 1)))}
    reading = applying.read(model, lora)
    has_image = name in ("Wan2.1 I2V", "Wan2.1 FLF2V")
    assert ("blocks.0.cross_attn.k_img" in reading.fit.matched) == has_image
    assert any("k_img" in note for note in reading.notes) != has_image
    assert not any("_img" in linear for linear in denoiser.linears())


WORDS = {
    "1.3B": ("wan2.1_t2v_1.3B_bf16.safetensors", "Wan2.1 1.3B of width 1536 with 30 blocks"),
    "14B": ("wan2.1_t2v_14B_fp16.safetensors", "Wan2.1 14B of width 5120 with 40 blocks"),
    "I2V": ("wan2.1_i2v_480p_14B_fp16.safetensors", "Wan2.1 I2V 14B of width 5120 with 40 blocks"),
    "FLF2V": ("anything.safetensors", "Wan2.1 FLF2V 14B of width 5120 with 40 blocks"),
    "I2V A14B": ("wan2.2_i2v_low_noise_14B_fp16.safetensors", "Wan2.2 I2V A14B of width 5120 with 40 blocks; by its "
                 "file's name the low-noise expert of Wan2.2 A14B"),
    "5B": ("wan2.2_ti2v_5B_fp16.safetensors", "Wan2.2 5B of width 3072 with 30 blocks"),
    "Fun-InP 1.3B": ("", "Wan2.1 I2V 1.3B of width 1536 with 30 blocks"),
    "Fun-Control A14B": ("", "Wan2.2 Fun-Control A14B of width 5120 with 40 blocks"),
    "VACE": ("wan2.1_vace_14B_fp16.safetensors", "Wan2.1 VACE 14B of width 5120 with 40 blocks"),
}


def test_the_base_model_is_told_in_words(full):
    kind, name, _, _, denoiser = full
    file, words = WORDS[kind]
    assert made_for.base_model(name, denoiser.linear_sizes(), file) == words


def test_a_14b_whose_file_says_nothing_may_be_an_expert_of_wan22(comfy):
    sizes = {"blocks.0.self_attn.q": (5120, 5120), "blocks.39.self_attn.q": (5120, 5120)}
    same = "Wan 14B of width 5120 with 40 blocks (Wan2.1, or an expert of Wan2.2 A14B: their shapes are the same)"
    assert made_for.base_model("Wan2.1 T2V", sizes) == same
    assert made_for.base_model("Wan2.1 T2V", sizes, "wan2.2_t2v_high_noise_14B.safetensors") == (
        f"{same}; by its file's name the high-noise expert of Wan2.2 A14B")


def needs(model, linears, **work) -> Needs:
    given = dict(side=512, frames=33, stride=4, tokens=9 * 32 * 32, batch_size=1, text_rows=128) | work
    return Needs(model=model, linears={name: (linear.out_features, linear.in_features)
                                       for name, linear in linears.items()},
                 lora=LoraConfig(rank=32), optimizer=OptimizerConfig(), pins=MemoryConfig(), work=Work(**given))


def test_the_memory_plan_knows_the_size(full):
    _, name, size, _, denoiser = full
    model = denoiser.size
    assert (model.dim, model.ffn_dim, model.blocks) == tuple(wan_models.FULL[size].values())
    held = sum(value.numel() for value in wan_models.state_dict(
        name, device="meta", dtype=torch.bfloat16, **wan_models.FULL[size]).values())
    assert model.weights == pytest.approx(2 * held, rel=0.01)  # the patch embedding is in fp32
    assert model.image_rows == {"Wan2.1 I2V": 257, "Wan2.1 FLF2V": 514}.get(name, 0)
    assert model.blocks_beside == (8 if name == "Wan2.1 VACE" else 0)
    wanted = needs(model, denoiser.linears())
    choice = choose(wanted, Space(free=80 * GIB, ram=64 * GIB, offloads=True))
    assert choice.parts.offloaded == 0 and choice.parts.total <= 80 * GIB
    assert choice.parts.adapter == 4 * numbers(size) and choice.parts.optimizer == 8 * numbers(size)
    small = choose(wanted, Space(free=12 * GIB, ram=64 * GIB, offloads=True))
    assert (small.parts.offloaded > 0) == (model.weights > 12 * GIB)
    with pytest.raises(UserError, match="GiB"):
        choose(wanted, Space(free=GIB, ram=0, offloads=False))


def test_an_image_takes_more_than_text_alone(comfy):
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.trainer.memory.footprint import parts
    from wantune.trainer.memory.plan import EVERYTHING, Plan

    found = {}
    for name in ("Wan2.1 T2V", "Wan2.2 I2V", "Wan2.1 I2V", "Wan2.1 FLF2V"):
        denoiser = ComfyDenoiser(wan_models.on_meta(name, "14B"))
        wanted = needs(denoiser.size, denoiser.linears())
        adapter = adapter_size(wanted.lora, wanted.linears)
        found[name] = [parts(wanted.model, adapter, wanted.optimizer, wanted.work, plan).activations
                       for plan in (Plan(), Plan(whole_blocks=EVERYTHING))]
    for few, more in zip(list(found)[:-1], list(found)[1:], strict=True):
        assert all(a < b for a, b in zip(found[few], found[more], strict=True)), (few, more)
