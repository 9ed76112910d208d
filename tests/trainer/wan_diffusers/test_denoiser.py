"""diffusers' transformer as a Denoiser: what ComfyUI's gives on the same weights, and afterwards as it was."""

from dataclasses import replace

import pytest
import torch

from wantune.tests.support import on_diffusers, wan_models
from wantune.tests.support.adapted import AdaptedModel, batch_of, gradients_of
from wantune.tests.support.on_diffusers import CPU, LORA, Adapted, Snapshot, relative
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.plan import BRANCH, EVERYTHING, Plan
from wantune.trainer.model import text_padding
from wantune.trainer.wan_diffusers.names import SUPPORTED

pytestmark = pytest.mark.usefixtures("comfy")

TOLERANCE = 1e-5
"""Relative, in fp32; measured 1e-7 for velocities, 1.3e-6 for the worst gradient of a matrix."""

CASES = {"clip": ((3, 4, 6), (0.5,)), "two clips": ((2, 6, 4), (0.05, 0.99)), "picture": ((1, 8, 6), (0.7,))}
"""Latent frames, rows and columns, and noise levels."""


def noisy(batch):
    t_B1111 = batch.t_B[:, None, None, None, None]
    return (1 - t_B1111) * batch.latent_BCFHW + t_B1111 * batch.noise_BCFHW


@pytest.fixture(scope="module")
def t2v(tmp_path_factory):
    return on_diffusers.denoiser("Wan2.1 T2V", tmp_path_factory.mktemp("t2v"))


@pytest.mark.parametrize("name", SUPPORTED)
def test_velocity_and_gradients_are_those_of_comfyui(name, tmp_path):
    theirs = AdaptedModel(wan_models.load(name, load_as=torch.float32))
    denoiser = on_diffusers.denoiser(name, tmp_path)
    ours = Adapted(denoiser, theirs.adapter.state_dict())
    assert denoiser.family is theirs.denoiser.family
    for size_FHW, t in CASES.values():
        batch = batch_of(name, size_FHW, t, CPU)
        x_BCFHW = noisy(batch)
        with theirs.attached():
            expected = theirs.denoiser.velocity(x_BCFHW, batch.t_B, theirs.conditions(batch))
            expected_gradients = theirs.gradients(expected.square().flatten(1).mean(1))
            with torch.no_grad(), theirs.adapter.switched_off():
                expected_without = theirs.denoiser.velocity(x_BCFHW, batch.t_B, theirs.conditions(batch))
        with ours.attached():
            velocity = ours.velocity(x_BCFHW, batch)
            assert velocity.dtype == torch.float32 and relative(velocity, expected) <= TOLERANCE
            gradients = ours.gradients(velocity.square().mean())
            with torch.no_grad(), ours.adapter.switched_off():
                without = ours.velocity(x_BCFHW, batch)
        assert relative(without, expected_without) <= TOLERANCE and relative(without, expected) > 0.2
        assert gradients.keys() == expected_gradients.keys() and len(gradients) == 40
        for key, gradient in gradients.items():
            assert relative(gradient, expected_gradients[key]) <= TOLERANCE, key


@pytest.mark.parametrize("name", ["Wan2.1 T2V", "Wan2.1 I2V", "Wan2.2 5B"])
def test_velocity_is_that_of_diffusers_own_blocks(name, tmp_path):
    denoiser = on_diffusers.denoiser(name, tmp_path)
    transformer, ours = denoiser._transformer, Adapted(denoiser)
    size_FHW, t = CASES["two clips"]
    batch = batch_of(name, size_FHW, t, CPU)
    prepared = denoiser.prepared({"text": batch.text_BLD, **batch.further}, size_FHW)
    with ours.attached(), torch.no_grad():
        velocity = denoiser.velocity(noisy(batch), batch.t_B, prepared)
    timestep = 1000 * batch.t_B
    if "known" in prepared:
        of_frames = timestep[:, None] * (1 - prepared["known"])
        timestep = of_frames.repeat_interleave(size_FHW[1] * size_FHW[2] // 4, dim=1)
    beside = [prepared["beside"]] if "beside" in prepared else []
    with torch.no_grad():
        expected = transformer(torch.cat([noisy(batch), *beside], dim=1), timestep,
                               text_padding.pad(batch.text_BLD, 512), prepared.get("clip_fea"), return_dict=False)[0]
    assert relative(velocity, expected) <= TOLERANCE


@pytest.mark.parametrize("name", SUPPORTED)
def test_adapters_begin_alike_and_sizes_are_those_of_comfyui(name, tmp_path):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    theirs, ours = ComfyDenoiser(wan_models.load(name, load_as=torch.float32)), on_diffusers.denoiser(name, tmp_path)
    assert ours.linear_sizes() == theirs.linear_sizes()
    sizes, expected = ours.size, theirs.size
    positions = sum(buffer.nbytes for buffer in ours._transformer.buffers())  # which ComfyUI computes in each step
    assert abs((sizes.weights - positions) / expected.weights - 1) < 1e-3 and sizes.stored == expected.stored
    assert replace(sizes, weights=0, stored=0) == replace(expected, weights=0, stored=0)
    here, there = Adapted(ours).adapter.state_dict(), Adapted(theirs).adapter.state_dict()
    assert list(here) == list(there) and all(torch.equal(here[key], there[key]) for key in there)


@pytest.mark.parametrize("changes", [{"kind": "lokr"}, {"kind": "loha"}, {"kind": "rslora", "dropout": 0.3}],
                         ids=lambda changes: changes["kind"])
def test_other_adapters_have_the_gradients_they_have_in_comfyui(t2v, changes):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    batch, found = batch_of("Wan2.1 T2V", (2, 4, 4), (0.4,), CPU), []
    for denoiser in (t2v, ComfyDenoiser(wan_models.load("Wan2.1 T2V", load_as=torch.float32))):
        adapted = Adapted(denoiser, config=replace(LORA, **changes))
        generator = torch.Generator().manual_seed(2)
        adapted.adapter.load_state_dict({key: 0.1 * torch.randn(value.shape, generator=generator)
                                         for key, value in adapted.adapter.state_dict().items()})
        with adapted.attached(), adapted.adapter.dropout_from(7):
            found.append(gradients_of(adapted.adapter, adapted.velocity(noisy(batch), batch).square().mean()))
    for here, there in zip(*found, strict=True):
        assert relative(here, there) <= TOLERANCE


def test_no_plan_changes_the_gradients(t2v):
    adapted = Adapted(t2v)
    adapted.adapter.load_state_dict({key: torch.full_like(value, 0.01)
                                     for key, value in adapted.adapter.state_dict().items()})
    batch = batch_of("Wan2.1 T2V", (2, 4, 4), (0.4,), CPU)
    plans = [Plan(whole_blocks=EVERYTHING), Plan(), Plan(whole_blocks=1, segments=BRANCH, keeps_attention=True),
             Plan(inputs_in_ram=True)]
    found = []
    with adapted.attached(plans[0]):
        for plan in plans:
            t2v.change_plan(plan)
            found.append(adapted.gradients(adapted.velocity(noisy(batch), batch).square().mean()))
    for gradients in found[1:]:
        assert all(relative(gradients[key], truth) < 1e-6 for key, truth in found[0].items())


def test_the_transformer_is_as_it_was_also_after_an_exception(t2v, monkeypatch):
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

    transformer, adapted = t2v._transformer, Adapted(t2v)
    transformer.requires_grad_(False).blocks[1].requires_grad_(True)
    snapshot = Snapshot(transformer)
    batch = batch_of("Wan2.1 T2V", (1, 4, 4), (0.4,), CPU)
    with pytest.raises(KeyboardInterrupt):
        with adapted.attached():
            assert not any(parameter.requires_grad for parameter in transformer.parameters())
            adapted.velocity(noisy(batch), batch).square().mean().backward()
            raise KeyboardInterrupt
    snapshot.assert_untouched()
    monkeypatch.setattr(WanTransformerBlock, "forward", lambda self, x, context, temb, rotary: x + 1)
    with pytest.raises(UserError, match=r"diffusers 0\.\S+ computes a block of Wan otherwise .* install diffusers"):
        with adapted.attached():
            pass
    snapshot.assert_untouched()
    transformer.requires_grad_(True)


def test_in_bf16_norms_and_noise_levels_stay_exact(tmp_path, t2v):
    low = on_diffusers.denoiser("Wan2.1 T2V", tmp_path, torch.bfloat16)
    assert low.compute_dtype == torch.bfloat16
    kinds = {name: value.dtype for name, value in low._transformer.named_parameters()}
    assert kinds["blocks.0.norm2.weight"] == kinds["scale_shift_table"] == torch.float32
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert low._transformer.rope.freqs_cos.dtype == torch.float32
    batch = batch_of("Wan2.1 T2V", (2, 4, 4), (0.4,), CPU)
    state = {key: 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
             for key, value in Adapted(t2v).adapter.state_dict().items()}
    found = []
    for denoiser in (low, t2v):
        adapted = Adapted(denoiser, state)
        with adapted.attached():
            velocity = adapted.velocity(noisy(batch), batch)
            found.append((velocity.detach(), adapted.gradients(velocity.square().mean())))
    (velocity, gradients), (exact, exact_gradients) = found
    assert relative(velocity, exact) < 2e-2
    assert all(relative(gradients[key], exact_gradients[key]) < 0.1 for key in exact_gradients)


def test_its_id_is_that_of_its_weights(tmp_path, t2v):
    again = on_diffusers.denoiser("Wan2.1 T2V", tmp_path)
    assert again.id == t2v.id and len(again.id) == 64
    with torch.no_grad():
        again._transformer.blocks[1].ffn.net[2].bias += 1e-3
    assert on_diffusers.of(again._transformer).id != t2v.id
    assert on_diffusers.DiffusersDenoiser(again._transformer, again.family, CPU, id="known").id == "known"


def test_a_transformer_with_adapters_is_refused(tmp_path):
    import peft

    transformer = on_diffusers.denoiser("Wan2.1 T2V", tmp_path)._transformer
    transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(UserError, match="no Linear blocks.0.cross_attn.q; it carries adapters, so unload them"):
        on_diffusers.of(transformer)


def test_image_to_video_without_clip_vision_is_refused(tmp_path):
    denoiser = on_diffusers.denoiser("Wan2.1 I2V", tmp_path)
    given = wan_models.conditions("Wan2.1 I2V", (1, 4, 4))
    del given["clip_vision"]
    with pytest.raises(UserError, match="Wan2.1 I2V sees its first frame through CLIP vision too, and there is none"):
        denoiser.prepared(given, (1, 4, 4))
