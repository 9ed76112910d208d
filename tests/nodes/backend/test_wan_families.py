"""Each family through the denoiser: trained by ours and by ComfyUI's blocks, and afterwards as it was.

Shape legend: B batch, F latent frames.
"""

import pytest
import torch

from wantune.tests.support import tools, wan_models
from wantune.tests.support.adapted import AdaptedModel, batch_of, compute_in_fp32, plan_of
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.plan import BRANCH, EVERYTHING, Plan

pytestmark = pytest.mark.usefixtures("comfy")

CLIP, PICTURE = (3, 4, 6), (1, 6, 4)
"""Latent frames, rows and columns."""

families = pytest.mark.parametrize("name", wan_models.NAMES)


def adapted_of(name: str, **sizes) -> AdaptedModel:
    model = wan_models.load(name, load_as=torch.float32, **sizes)
    compute_in_fp32(model)
    return AdaptedModel(model)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@families
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointed", "whole"])
def test_after_training_the_model_is_as_before(name, checkpointing):
    model = wan_models.load(name)
    snapshot = tools.Snapshot(model)
    adapted = AdaptedModel(model)
    batches = [batch_of(name, size, t, adapted.denoiser.device) for size, t in ((CLIP, (0.4,)), (PICTURE, (0.2, 0.8)))]
    losses, _ = adapted.trained(plan_of(checkpointing), batches, steps=3)
    assert losses[2] != losses[0], "the adapter was in the model"
    snapshot.assert_untouched()


@families
def test_every_plan_keeps_the_result_bit_for_bit(name):
    results = []
    for plan in (Plan(whole_blocks=EVERYTHING), Plan(), Plan(segments=BRANCH),
                 Plan(whole_blocks=1, segments=BRANCH, keeps_attention=True)):
        adapted = adapted_of(name)
        device = adapted.denoiser.device
        results.append(adapted.trained(
            plan, [batch_of(name, CLIP, (0.4,), device), batch_of(name, PICTURE, (0.2, 0.8), device)], steps=4))
    for losses, adapter in results[1:]:
        assert losses == results[0][0]
        assert torch.equal(adapter, results[0][1])


@families
@pytest.mark.parametrize(("size_FHW", "t"), [(CLIP, (0.5,)), (CLIP, (0.1, 0.9)), (PICTURE, (0.1, 0.5, 0.9))],
                         ids=["clip", "two clips", "three pictures"])
def test_gradients_are_those_of_autograd_through_comfyuis_own_blocks(name, size_FHW, t, monkeypatch):
    from wantune.nodes.backend import computed

    model = wan_models.load(name, load_as=torch.float32)
    compute_in_fp32(model)
    ours = AdaptedModel(model)
    batch = batch_of(name, size_FHW, t, ours.denoiser.device)

    def gradients(adapted: AdaptedModel):
        with adapted.attached():
            losses = adapted.loss_B(batch)
            assert adapted.denoiser._stand_ins._computed[0].is_ours
            return losses.detach(), adapted.gradients(losses)

    losses, found = gradients(ours)
    asked = []
    monkeypatch.setattr(computed, "is_known", lambda _block: bool(asked.append(1)))
    losses_there, expected = gradients(AdaptedModel(model))
    assert asked, "the second time through ComfyUI's own forward"
    torch.testing.assert_close(losses, losses_there, rtol=1e-6, atol=0)
    assert len(found) == 2 * 10 * 2 and found.keys() == expected.keys()
    assert difference(*(torch.cat([each.flatten() for each in every.values()]) for every in (found, expected))) <= 1e-6
    for key, gradient in found.items():  # in a single one of the matrices both round, to a few millionths
        assert difference(gradient, expected[key]) <= 5e-6, key


@families
def test_all_blocks_of_all_families_are_computed_by_ours(name, caplog):
    adapted = adapted_of(name)
    with adapted.attached():
        blocks = adapted.denoiser._stand_ins._computed
        assert len(blocks) == 2 and all(block.is_ours and block._ours is not None for block in blocks)
    assert "ComfyUI's own forward" not in caplog.text


@pytest.mark.parametrize("name", ["Wan2.1 I2V", "Wan2.1 FLF2V", "Wan2.2 I2V", *wan_models.CONTROLLED])
def test_the_picture_changes_what_is_predicted(name):
    adapted = adapted_of(name)
    batch = batch_of(name, CLIP, (0.5,), adapted.denoiser.device)
    plain = {kind: torch.zeros_like(value) for kind, value in batch.further.items()}
    with adapted.attached(), torch.no_grad():
        found = [adapted.denoiser.velocity(
            batch.latent_BCFHW, batch.t_B,
            adapted.denoiser.prepared({"text": batch.text_BLD, **batch.further, **changed}, CLIP))
            for changed in ({}, *({kind: value} for kind, value in plain.items()))]
    for other in found[1:]:
        assert (other - found[0]).norm() / found[0].norm() > 1e-2


@pytest.mark.parametrize("name", ["Wan2.1 I2V", "Wan2.1 FLF2V"])
def test_an_image_model_of_wan21_without_clip_vision_is_refused(name):
    adapted = adapted_of(name)
    batch = batch_of(name, CLIP, (0.5,), adapted.denoiser.device)
    given = {"text": batch.text_BLD, "image": batch.further["image"]}
    with pytest.raises(UserError, match=f"{name} sees its first frame through CLIP vision too"):
        adapted.denoiser.prepared(given, CLIP)


def test_a_dropped_control_clip_is_what_a_vace_gets_that_got_none():
    adapted = adapted_of("Wan2.1 VACE")
    batch = batch_of("Wan2.1 VACE", CLIP, (0.5,), adapted.denoiser.device)
    (kind,) = (kind for kind in adapted.denoiser.family.conditions if kind.name == "vace")
    dropped = {"text": batch.text_BLD, "vace": kind.without(batch.further["vace"])}
    noise = torch.zeros_like(batch.latent_BCFHW).cpu()
    model = adapted.denoiser._patcher.model
    found = model.extra_conds(noise=noise, device=noise.device)
    assert torch.equal(adapted.denoiser.prepared(dropped, CLIP)["vace_context"], found["vace_context"].cond)
    assert found["vace_strength"].cond == [1.0]


def test_conditions_of_other_families_have_no_effect():
    adapted = adapted_of("Wan2.2 I2V")
    batch = batch_of("Wan2.1 I2V", CLIP, (0.5,), adapted.denoiser.device)
    given = {"text": batch.text_BLD, "image": batch.further["image"]}
    more = adapted.denoiser.prepared(given | {"clip_vision": batch.further["clip_vision"],
                                              "known": torch.ones(1, 3)}, CLIP)
    assert more.keys() == adapted.denoiser.prepared(given, CLIP).keys() == {"text", "text_bias", "c_concat"}


def test_a_known_frame_has_a_noise_level_of_its_own():
    """5B: another noise level changes all frames but what the known one is told; a still is text-to-video."""
    adapted = adapted_of("Wan2.2 5B")
    batch = batch_of("Wan2.2 5B", CLIP, (0.5, 0.7), adapted.denoiser.device)
    seen = []
    network = adapted.denoiser._network

    def watch(_module, arguments, options):
        seen.append(arguments[1])

    def prepared(known_BF):
        return adapted.denoiser.prepared({"text": batch.text_BLD, "known": known_BF}, CLIP)

    handle = None
    with adapted.attached(), torch.no_grad():
        handle = network.register_forward_pre_hook(watch, with_kwargs=True)
        first_BF = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
        adapted.denoiser.velocity(batch.latent_BCFHW, batch.t_B, prepared(first_BF))
        conditions = prepared(torch.zeros(2, 3))
        adapted.denoiser.velocity(batch.latent_BCFHW, batch.t_B, conditions)
        handle.remove()
    assert torch.equal(seen[0].cpu(), 1000 * batch.t_B.cpu()[:, None] * (1 - first_BF))
    assert torch.equal(seen[1], 1000 * batch.t_B) and "known" not in conditions
