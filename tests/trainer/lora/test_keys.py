"""Key names of LoRA files: every writer's form becomes ours, and what does not fit is refused."""

import json

import pytest
import torch

from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import file as lora_file
from wantune.trainer.lora import keys as lora_keys

TRAINED = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k",
           "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2")
DIFFUSERS = {"self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
             "self_attn.o": "attn1.to_out.0", "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
             "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj",
             "ffn.2": "ffn.net.2"}
WIDTH, FFN, BLOCKS, RANK = 128, 256, 12, 4


def size_of(module: str) -> tuple[int, int]:
    return {"ffn.0": (FFN, WIDTH), "ffn.2": (WIDTH, FFN)}.get(module, (WIDTH, WIDTH))


SIZES = {f"blocks.{i}.{module}": size_of(module) for i in range(BLOCKS) for module in TRAINED}
MATRICES = {
    name: (torch.randn(RANK, size[1]), torch.randn(size[0], RANK)) for name, size in SIZES.items()
}


def in_diffusers(name: str) -> str:
    blocks, number, module = name.split(".", 2)
    return f"{blocks}.{number}.{DIFFUSERS[module]}"


def written_by(writer: str) -> dict[str, torch.Tensor]:
    """The LoRA of MATRICES under the keys of a writer seen in the wild."""
    state = {}
    for name, (a, b) in MATRICES.items():
        under = name.replace(".", "_")
        prefix, down, up, alpha = {
            "ours": (f"diffusion_model.{name}.", "lora_A.weight", "lora_B.weight", "alpha"),
            "diffusion-pipe": (f"diffusion_model.{name}.", "lora_A.weight", "lora_B.weight", None),
            "kijai": (f"diffusion_model.{name}.", "lora_down.weight", "lora_up.weight", "alpha"),
            "default": (f"diffusion_model.{name}.", "lora_A.default.weight", "lora_B.default.weight", None),
            "musubi": (f"lora_unet_{under}.", "lora_down.weight", "lora_up.weight", "alpha"),
            "videox-fun": (f"lora_unet__{under}.", "lora_down.weight", "lora_up.weight", "alpha"),
            "diffsynth": (f"{name}.", "lora_A.default.weight", "lora_B.default.weight", None),
            "bare": (f"{name}.", "lora_A.weight", "lora_B.weight", None),
            "diffusers": (f"transformer.{in_diffusers(name)}.", "lora_A.weight", "lora_B.weight", None),
            "diffusers-bare": (f"{in_diffusers(name)}.", "lora_A.weight", "lora_B.weight", None),
            "peft": (f"base_model.model.{name}.", "lora_A.weight", "lora_B.weight", None),
            "peft-diffusers": (f"base_model.model.{in_diffusers(name)}.", "lora_A.default.weight",
                               "lora_B.default.weight", None),
            "peft-comfy": (f"base_model.model.diffusion_model.{name}.", "lora_A.weight", "lora_B.weight", None),
            "lycoris": (f"lycoris_{under}.", "lora_down.weight", "lora_up.weight", "alpha"),
            "lycoris-diffusers": (f"lycoris_{in_diffusers(name).replace('.', '_')}.", "lora_down.weight",
                                  "lora_up.weight", "alpha"),
            "model-prefix": (f"model.diffusion_model.{name}.", "lora_A.weight", "lora_B.weight", None),
            "old-diffusers": (f"transformer.{in_diffusers(name)}.", "lora.down.weight", "lora.up.weight", None),
        }[writer]
        state[prefix + down], state[prefix + up] = a, b
        if alpha:
            state[prefix + alpha] = torch.tensor(2.0)
    return state


WRITERS = ["ours", "diffusion-pipe", "kijai", "default", "musubi", "videox-fun", "diffsynth", "bare", "diffusers",
           "diffusers-bare", "peft", "peft-diffusers", "peft-comfy", "lycoris", "lycoris-diffusers", "model-prefix",
           "old-diffusers"]


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writers_keys_become_ours(writer):
    state = lora_keys.normalize(written_by(writer))
    for name, (a, b) in MATRICES.items():
        assert torch.equal(state[f"diffusion_model.{name}.lora_A.weight"], a)
        assert torch.equal(state[f"diffusion_model.{name}.lora_B.weight"], b)
    fit = lora_keys.check_fit(state, SIZES)
    assert str(fit) == "120 of 120 modules matched" and not fit.unknown


def test_the_keys_we_write_are_exactly_these():
    adapter = {"blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 8),
               "blocks.0.self_attn.q.lora_B.weight": torch.zeros(8, 4)}
    state = lora_file.from_adapter(adapter, alpha=16)
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, 8),
        "diffusion_model.blocks.0.self_attn.q.lora_B.weight": (8, 4),
        "diffusion_model.blocks.0.self_attn.q.alpha": (),
    }
    assert state["diffusion_model.blocks.0.self_attn.q.alpha"] == 16.0


def test_what_we_write_stays_as_it_is():
    state = written_by("ours")
    assert list(lora_keys.normalize(state)) == list(state)


@pytest.mark.parametrize(("key", "expected"), [
    ("lora_unet_blocks_3_cross_attn_k_img.alpha", "diffusion_model.blocks.3.cross_attn.k_img.alpha"),
    ("transformer.blocks.3.attn2.add_k_proj.lora_A.weight", "diffusion_model.blocks.3.cross_attn.k_img.lora_A.weight"),
    ("lycoris_blocks_11_ffn_0.lokr_w1", "diffusion_model.blocks.11.ffn.0.lokr_w1"),
    ("diffusion_model.blocks.0.ffn.2.hada_w1_a", "diffusion_model.blocks.0.ffn.2.hada_w1_a"),
    ("diffusion_model.blocks.0.self_attn.q.diff_b", "diffusion_model.blocks.0.self_attn.q.diff_b"),
    ("transformer.condition_embedder.text_embedder.linear_1.lora_A.weight",
     "diffusion_model.text_embedding.0.lora_A.weight"),
    ("something.else", "something.else"),
])
def test_rarer_keys(key, expected):
    assert list(lora_keys.normalize({key: torch.zeros(1)})) == [expected]


def wan_lora(width: int, blocks: int) -> dict[str, torch.Tensor]:
    return {f"diffusion_model.blocks.{i}.self_attn.q.lora_{k}.weight": torch.zeros(s)
            for i in range(blocks) for k, s in (("A", (4, width)), ("B", (width, 4)))}


def wan_sizes(width: int, blocks: int) -> dict[str, tuple[int, int]]:
    return {f"blocks.{i}.self_attn.q": (width, width) for i in range(blocks)}


def test_a_lora_for_another_size_is_refused_and_both_are_named():
    with pytest.raises(UserError, match="made for Wan2.1 1.3B of width 1536 with 30 blocks, the model is Wan 14B "
                                        "of width 5120 with 40 blocks"):
        lora_keys.check_fit(wan_lora(1536, 30), wan_sizes(5120, 40))


def test_a_lora_of_another_model_is_refused_and_named():
    flux = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 3072),
            "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(3072, 4)}
    with pytest.raises(UserError, match="other than Wan .*single_transformer_blocks.*the model is Wan2.1 1.3B"):
        lora_keys.check_fit(lora_keys.normalize(flux), wan_sizes(1536, 30))


def test_modules_the_model_lacks_are_counted():
    state = {**written_by("ours"), **{f"diffusion_model.blocks.0.cross_attn.k_img.lora_{k}.weight": torch.zeros(4, 4)
                                      for k in "AB"}}
    fit = lora_keys.check_fit(state, SIZES)
    assert str(fit) == "120 of 121 modules matched" and fit.unknown == ("blocks.0.cross_attn.k_img",)


def test_an_incomplete_lora_is_refused():
    state = written_by("ours")
    del state["diffusion_model.blocks.5.ffn.0.lora_B.weight"]
    with pytest.raises(UserError, match=r"blocks.5.ffn.0 has lora_A.weight without"):
        lora_keys.check_complete(state)
    with pytest.raises(UserError, match="empty"):
        lora_keys.check_complete({})


def test_files_round_trip_with_metadata(tmp_path):
    lora_file.save(tmp_path / "sub" / "a.safetensors", written_by("ours"), {"wantune.step": "7"})
    loaded = lora_file.load(tmp_path / "sub" / "a.safetensors")
    assert loaded.metadata["wantune.step"] == "7" and len(loaded) == 360
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_alpha_that_diffusers_keeps_in_metadata_is_not_lost(tmp_path):
    settings = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})
    lora_file.save(tmp_path / "d.safetensors", written_by("diffusers"), {"lora_adapter_metadata": settings})
    assert lora_file.load(tmp_path / "d.safetensors")["diffusion_model.blocks.0.ffn.0.alpha"] == 2.0


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 9])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="bad.safetensors cannot be read"):
        lora_file.load(tmp_path / "bad.safetensors")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written .* a file is where a folder must be"):
        lora_file.save(tmp_path / "file" / "a.safetensors", written_by("ours"), {})
