"""Sharing ComfyUI's model: trained on as it lies in memory, and afterwards exactly as it was."""

import pytest
import torch

from wantune.tests.support import tools
from wantune.tests.support.adapted import plan_of
from wantune.trainer.adapter.adapters import Adapter
from wantune.trainer.base.errors import UserError
from wantune.trainer.settings.training import LoraConfig

pytestmark = pytest.mark.usefixtures("comfy")

DTYPES = {"fp32": {}, "bf16": {"dtype": torch.bfloat16}, "fp8": {"dtype": torch.float8_e4m3fn}}


@pytest.fixture(scope="module", params=[*DTYPES, "fp8_scaled"])
def model(request, tmp_path_factory):
    path = tools.random_dit(tmp_path_factory.mktemp("dit"))
    if request.param == "fp8_scaled":
        return tools.load_dit(tools.scale_to_fp8(path))
    return tools.load_dit(path, **DTYPES[request.param])


class Held:
    """A denoiser with an adapter in it, and one batch."""

    def __init__(self, model, checkpointing: bool = True) -> None:
        from wantune.nodes.backend.denoiser import ComfyDenoiser

        self.denoiser = ComfyDenoiser(model)
        self.linears = self.denoiser.linears()
        self.adapter = Adapter(LoraConfig(rank=4, alpha=4), self.linears, self.denoiser.device, seed=0)
        self.checkpointing = checkpointing
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(2, 16, 1, 8, 6, generator=generator)
        self.text = torch.randn(2, 512, 4096, generator=generator)

    def attached(self):
        return self.denoiser.attached(self.adapter, self.linears, plan_of(self.checkpointing), memory=0)

    def step(self) -> torch.Tensor:
        with self.denoiser.training():
            loss = self.velocity().square().mean()
            loss.backward()
            self.adapter.collect_gradients()
        return loss.detach()

    def velocity(self) -> torch.Tensor:
        conditions = self.denoiser.prepared({"text": self.text}, self.x.shape[2:])
        return self.denoiser.velocity(self.x, torch.tensor([0.2, 0.7]), conditions)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_after_training_the_model_is_as_before(model, checkpointing):
    snapshot = tools.Snapshot(model)
    held = Held(model, checkpointing)
    optimizer = torch.optim.AdamW(held.adapter.parameters, lr=1e-2)
    losses = []
    with held.attached():
        for _ in range(3):
            losses.append(held.step())
            optimizer.step()
            optimizer.zero_grad()
    assert losses[2] != losses[0], "the adapter was in the model"
    snapshot.assert_untouched()


class Failure(BaseException):
    """As ComfyUI's interrupt is in newer versions."""


@pytest.mark.parametrize("kind", [RuntimeError, Failure])
@pytest.mark.parametrize("call", [0, 5, 30], ids=["loading", "forward", "recompute in backward"])
def test_after_an_exception_the_model_is_as_before(model, kind, call, monkeypatch):
    import comfy.model_management

    from wantune.nodes.backend.frozen import FrozenLinear

    snapshot = tools.Snapshot(model)
    held = Held(model)
    original, count = FrozenLinear.output, 0

    def trip(self, x, **options):
        nonlocal count
        count += 1
        if count == call:
            raise kind("in the middle")
        return original(self, x, **options)

    def refuse(*_args, **_kwargs):
        raise kind("no memory")

    if call == 0:
        monkeypatch.setattr(comfy.model_management, "load_models_gpu", refuse)
    with pytest.raises(kind), held.attached():
        monkeypatch.setattr(FrozenLinear, "output", trip)
        held.step()
    assert count == call
    monkeypatch.undo()
    snapshot.assert_untouched()


def test_another_sample_in_between_neither_sees_the_adapter_nor_removes_it_for_good(model):
    snapshot = tools.Snapshot(model)
    held = Held(model)
    for parameter in held.adapter.parameters:
        torch.nn.init.normal_(parameter.data, std=0.1)
    with held.attached():
        before = held.step()
    assert torch.equal(tools.sample(model), snapshot.video)
    with held.attached():
        assert torch.equal(held.step(), before)
    snapshot.assert_untouched()


def test_the_untrained_adapter_changes_nothing(model):
    held = Held(model)
    with held.attached(), torch.no_grad():
        with_adapter = held.velocity()
    with torch.inference_mode():
        import comfy.model_management

        comfy.model_management.load_models_gpu([model])
        network = model.model.diffusion_model
        base = network(held.x, torch.tensor([200.0, 700.0]), context=held.text, transformer_options={}).float()
    torch.testing.assert_close(with_adapter, base, rtol=1e-4, atol=1e-4)


def test_requires_grad_flags_come_back(tmp_path):
    with torch.inference_mode():
        model = tools.load_dit(tools.random_dit(tmp_path))
        parameters = list(model.model.diffusion_model.parameters())
        for parameter in parameters[::3]:
            parameter.requires_grad_(True)
        flags = [parameter.requires_grad for parameter in parameters]
    held = Held(model)
    with held.attached():
        held.step()
        assert not any(parameter.requires_grad for parameter in parameters)
    assert [parameter.requires_grad for parameter in parameters] == flags


def test_a_forward_that_another_pack_has_put_in_stays_and_is_used(tmp_path):
    model = tools.load_dit(tools.random_dit(tmp_path))
    layer = model.model.diffusion_model.blocks[0].self_attn.v
    seen = []

    def theirs(x):
        seen.append(x.shape)
        return type(layer).forward(layer, x)

    layer.__dict__["forward"] = theirs
    held = Held(model)
    with held.attached():
        held.step()
    assert seen and layer.__dict__["forward"] is theirs


def test_patches_of_a_lora_already_applied_are_trained_on_top_of(tmp_path):
    model = tools.load_dit(tools.random_dit(tmp_path))
    key = "diffusion_model.blocks.0.self_attn.q.weight"
    patched = model.clone()
    change = torch.randn(128, 128, generator=torch.Generator().manual_seed(3)) * 0.1
    patched.add_patches({key: ("diff", (change,))}, 1.0)
    plain = Held(model)
    with plain.attached():
        without = plain.step()
    held = Held(patched)
    with held.attached():
        with_patch = held.step()
    assert held.denoiser.id != plain.denoiser.id
    assert not torch.equal(without, with_patch)
    with plain.attached():
        assert torch.equal(plain.step(), without)


def test_a_model_that_is_not_wan_is_named(tmp_path):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    class Network(torch.nn.Module):
        pass

    class Flux:
        diffusion_model = Network()

    class Patcher:
        model = Flux()

    with pytest.raises(UserError, match="The model is a Flux, not Wan; load a text-to-video or image-to-video"):
        ComfyDenoiser(Patcher())


@pytest.mark.parametrize("version", ["0.7.0", "0.9.2", "0.12.3"])
def test_versions_whose_rope_has_no_backward_are_refused(version):
    from wantune.nodes.backend.family import _check_version

    with pytest.raises(UserError, match=f"ComfyUI {version} .* update ComfyUI to 0.13.0"):
        _check_version(version)
    _check_version("0.6.9")
    _check_version("0.13.0")
    _check_version("1.0")


def test_the_fingerprint_follows_the_weights(tmp_path):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    first = ComfyDenoiser(tools.load_dit(tools.random_dit(tmp_path))).id
    again = ComfyDenoiser(tools.load_dit(tools.random_dit(tmp_path))).id
    other = ComfyDenoiser(tools.load_dit(tools.random_dit(tmp_path, seed=1))).id
    assert first == again != other
