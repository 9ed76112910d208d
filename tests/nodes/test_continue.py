"""Training goes on from a LoRA file: the same function at the start, whoever wrote it, or a sentence why not."""

import json
import math

import pytest
import torch

from wantune.tests.support import tools
from wantune.tests.support.adapted import plan_of
from wantune.trainer.adapter.adapters import Adapter
from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import file as lora_file
from wantune.trainer.lora import keys as lora_keys
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.settings.training import LoraConfig

pytestmark = pytest.mark.usefixtures("comfy")

FILE_RANK, FILE_ALPHA = 6, 9.0
DIFFUSERS = {"self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
             "self_attn.o": "attn1.to_out.0", "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
             "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj",
             "ffn.2": "ffn.net.2"}


class World:
    """A model, and a LoRA of its ten Linears in each of two blocks."""

    def __init__(self, model) -> None:
        from wantune.nodes.backend.denoiser import ComfyDenoiser

        self.model = model
        self.denoiser = ComfyDenoiser(model)
        self.linears = self.denoiser.linears()
        self.sizes = self.denoiser.linear_sizes()
        generator = torch.Generator().manual_seed(1)
        self.state = {}
        for name in self.linears:
            rows, columns = self.sizes[name]
            self.state[f"{name}.lora_A.weight"] = torch.randn(FILE_RANK, columns, generator=generator) * 0.05
            self.state[f"{name}.lora_B.weight"] = torch.randn(rows, FILE_RANK, generator=generator) * 0.05
        self.x = torch.randn(1, 16, 1, 8, 6, generator=generator)
        self.text = torch.randn(1, 512, 4096, generator=generator)

    def ours(self) -> dict[str, torch.Tensor]:
        return lora_file.from_adapter(self.state, FILE_ALPHA)

    def written_by(self, writer: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Tensors and metadata of the same LoRA."""
        if writer == "ours":
            return self.ours(), {}
        tensors = {}
        for key, value in self.state.items():
            module, half = key.removesuffix(".weight").rsplit(".lora_", 1)
            blocks, number, leaf = module.split(".", 2)
            if writer == "kohya":
                under = f"lora_unet_{module.replace('.', '_')}"
                tensors[f"{under}.lora_{'down' if half == 'A' else 'up'}.weight"] = value
                tensors[f"{under}.alpha"] = torch.tensor(FILE_ALPHA)
            else:
                tensors[f"transformer.{blocks}.{number}.{DIFFUSERS[leaf]}.lora_{half}.weight"] = value
        settings = {"transformer.r": FILE_RANK, "transformer.lora_alpha": FILE_ALPHA}
        return tensors, {"lora_adapter_metadata": json.dumps(settings)} if writer == "diffusers" else {}

    def start(self, state, config: LoraConfig) -> Adapter:
        """What a run that continues this state begins with."""
        with torch.inference_mode():  # ComfyUI calls nodes in it
            continued, tensors = lora_file.continued(state, config, self.sizes)
        adapter = Adapter(continued, self.linears, self.denoiser.device, seed=0)
        adapter.start_from(tensors)
        return adapter

    def live(self, adapter: Adapter) -> torch.Tensor:
        with torch.no_grad(), self.denoiser.attached(adapter, self.linears, plan_of(True), 0):
            return self.denoiser.velocity(
                self.x, torch.tensor([0.4]), self.denoiser.prepared({"text": self.text}, self.x.shape[2:]))

    def applied(self, state) -> torch.Tensor:
        """Of ComfyUI's model with the LoRA on it."""
        import comfy.model_management

        from wantune.nodes.backend.applied import apply

        applied, _ = apply(self.model, state, 1.0)
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([applied])
            network = applied.model.diffusion_model
            return network(self.x, torch.tensor([400.0]), context=self.text, transformer_options={}).float().clone()


@pytest.fixture(scope="module")
def world(comfy, tmp_path_factory):
    return World(tools.load_dit(tools.random_dit(tmp_path_factory.mktemp("continue"))))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", ["lora", "rslora"])
@pytest.mark.parametrize("writer", ["ours", "diffusers", "kohya"])
def test_a_run_begins_with_the_function_of_the_file(world, tmp_path, writer, kind):
    tensors, metadata = world.written_by(writer)
    lora_file.save(tmp_path / "a.safetensors", tensors, metadata)
    state = lora_file.load(tmp_path / "a.safetensors")
    adapter = world.start(state, LoraConfig(rank=32, alpha=1, kind=kind))
    assert adapter.config.rank == FILE_RANK
    assert adapter.config.file_alpha == pytest.approx(FILE_ALPHA)
    assert all(torch.equal(value, world.state[key]) for key, value in adapter.state_dict().items())
    assert error(world.live(adapter), world.applied(state)) < 1e-5
    base = Adapter(LoraConfig(), world.linears, world.denoiser.device, seed=0)
    assert error(world.live(base), world.applied(state)) > 0.05, "the LoRA does something"


def test_it_can_be_written_and_continued_again(world):
    first = world.start(world.ours(), LoraConfig(kind="rslora"))
    again = world.start(lora_file.from_adapter(first.state_dict(), first.config.file_alpha), LoraConfig())
    assert torch.equal(world.live(again), world.live(first)) or error(world.live(again), world.live(first)) < 1e-6


def test_without_an_alpha_the_scale_is_one_as_in_every_reader(world):
    state = {key: value for key, value in world.ours().items() if not key.endswith("alpha")}
    adapter = world.start(state, LoraConfig(rank=1, alpha=3))
    assert (adapter.config.rank, adapter.config.alpha) == (FILE_RANK, FILE_RANK)
    assert error(world.live(adapter), world.applied(state)) < 1e-5


def test_modules_the_file_lacks_start_fresh(world):
    state = {key: value for key, value in world.ours().items() if "blocks.1." in key}
    adapter = world.start(state, LoraConfig())
    assert adapter.num_modules == 20
    assert error(world.live(adapter), world.applied(state)) < 1e-5
    fresh = adapter.state_dict()
    assert fresh["blocks.0.ffn.0.lora_A.weight"].any() and not fresh["blocks.0.ffn.0.lora_B.weight"].any()


def test_mixed_ranks_and_scales_are_filled_up_and_the_function_stays(world):
    state = world.ours()
    for module, rank, alpha in (("blocks.0.ffn.0", 2, 5.0), ("blocks.1.self_attn.q", 3, 0.5)):
        key = f"diffusion_model.{module}"
        state[f"{key}.lora_A.weight"] = state[f"{key}.lora_A.weight"][:rank]
        state[f"{key}.lora_B.weight"] = state[f"{key}.lora_B.weight"][:, :rank]
        state[f"{key}.alpha"] = torch.tensor(alpha)
    adapter = world.start(state, LoraConfig())
    assert (adapter.config.rank, adapter.config.alpha) == (FILE_RANK, FILE_ALPHA)
    assert error(world.live(adapter), world.applied(state)) < 1e-5
    filled = adapter.state_dict()
    assert filled["blocks.0.ffn.0.lora_A.weight"][2:].any(), "or the new rows could never learn"
    assert not filled["blocks.0.ffn.0.lora_B.weight"][:, 2:].any()


def test_the_start_is_part_of_the_settings(world):
    state = world.ours()
    first, _ = lora_file.continued(state, LoraConfig(), world.sizes)
    assert first == lora_file.continued(state, LoraConfig(), world.sizes)[0]
    key = "diffusion_model.blocks.0.ffn.0.lora_B.weight"
    changed, _ = lora_file.continued({**state, key: state[key] + 1}, LoraConfig(), world.sizes)
    assert len(first.start) == 64 and changed.start != first.start


def wider(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.repeat(1, 2) if "lora_A" in key else value.repeat(2, 1) if "lora_B" in key else value
            for key, value in state.items()}


MODULE = "diffusion_model.blocks.0.ffn.0"


@pytest.mark.parametrize(("change", "settings", "sentence"), [
    (wider, {}, "made for a Wan model of width 256 with 2 blocks, the model is a Wan model of width 128"),
    (lambda state: {"transformer.single.0.attn.to_q.lora_A.weight": torch.zeros(4, 8),
                    "transformer.single.0.attn.to_q.lora_B.weight": torch.zeros(8, 4)}, {}, "something other than Wan"),
    (lambda state: {**state, **{key.replace("blocks.1", "blocks.7"): value for key, value in state.items()}}, {},
     "10 modules that the model does not have, such as blocks.7.self_attn.q"),
    (lambda state: {**state, f"{MODULE}.dora_scale": torch.ones(256, 1)}, {}, r"holds DoRA \(blocks.0.ffn.0.dora_sc"),
    (lambda state: {**state, f"{MODULE}.diff_b": torch.ones(256)}, {}, "holds changes of whole weights"),
    (lambda state: {f"{MODULE}.lokr_w1": torch.ones(8, 8), f"{MODULE}.lokr_w2": torch.ones(32, 16)}, {},
     "holds LoKr .* only a plain LoRA can be continued; apply it with Apply LoRA"),
    (lambda state: {key: value for key, value in state.items() if key != f"{MODULE}.lora_B.weight"}, {},
     "blocks.0.ffn.0 has lora_A.weight without the other matrix"),
    (lambda state: {**state, f"{MODULE}.alpha": torch.tensor(0.0)} | {
        key: torch.tensor(0.0) for key in state if key.endswith("alpha")}, {}, "has the alpha 0, with which nothing"),
    (lambda state: {}, {}, "The LoRA is empty"),
    (lambda state: state, {"kind": "lokr"}, "kind is lokr, but only a plain LoRA can be continued; choose lora or rs"),
    (lambda state: state, {"targets": "attention"}, "4 modules that are not trained in this run, such as blocks.0.ffn."
     "0; set targets and the blocks so"),
    (lambda state: {**state, "diffusion_model.head.head.lora_A.weight": torch.ones(6, 128),
                    "diffusion_model.head.head.lora_B.weight": torch.ones(64, 6)}, {},
     "1 modules that are not trained in this run, such as head.head; it cannot be continued here"),
])
def test_what_cannot_be_continued_is_named(world, change, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        world.start(lora_keys.normalize(change(world.ours())), LoraConfig(**settings))


def test_files_of_other_kinds_are_recognised_by_their_sizes():
    """LoKr and LoHa for another width are refused as LoRA is, and half of one is named."""
    key = "diffusion_model.blocks.0.self_attn.q"
    sizes = {"blocks.0.self_attn.q": (1536, 1536)}
    for factors in ({"lokr_w1": (16, 16), "lokr_w2": (320, 320)},
                    {"lokr_w1": (16, 16), "lokr_w2_a": (320, 4), "lokr_w2_b": (4, 320)},
                    {"hada_w1_a": (5120, 4), "hada_w1_b": (4, 5120), "hada_w2_a": (5120, 4), "hada_w2_b": (4, 5120)}):
        state = {f"{key}.{name}": torch.zeros(shape) for name, shape in factors.items()}
        with pytest.raises(UserError, match="made for Wan 14B of width 5120 .*, the model is Wan2.1 1.3B"):
            lora_keys.check_fit(state, sizes)
        assert lora_keys.check_complete(state) == 1
        del state[f"{key}.{list(factors)[-1]}"]
        with pytest.raises(UserError, match="without the other matrix"):
            lora_keys.check_complete(state)


def test_the_metadata_says_what_other_tools_divide_by():
    from wantune.trainer.settings.training import TrainConfig

    class Data:
        family, samples, captions, trigger_word, digest = WAN21_T2V, (), (), "", ""

    def of(**settings) -> dict[str, str]:
        return lora_file.metadata(TrainConfig(lora=LoraConfig(rank=16, alpha=8, **settings)), Data(), "a", "b", "c", 1)

    assert of()["ss_network_alpha"] == "8" and of()["ss_network_module"] == "networks.lora_wan"
    assert float(of(kind="rslora")["ss_network_alpha"]) == 8 * math.sqrt(16)
    lokr = of(kind="lokr")
    assert lokr["ss_network_module"] == "lycoris.kohya" and json.loads(lokr["ss_network_args"])["algo"] == "lokr"
