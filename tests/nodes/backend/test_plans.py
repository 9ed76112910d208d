"""Every plan keeps the result: twenty steps of training under each end in the same losses and the same adapter."""

import pytest
import torch

from wantune.tests.support import tools
from wantune.tests.support.adapted import AdaptedModel, compute_in_fp32, random_batch
from wantune.trainer.memory.plan import BRANCH, EVERYTHING, Plan

STEPS = 20

PLANS = {
    "block": Plan(),
    "branch": Plan(segments=BRANCH),
    "one whole": Plan(whole_blocks=1),
    "block, attention kept": Plan(keeps_attention=True),
    "branch, attention kept, one whole": Plan(whole_blocks=1, segments=BRANCH, keeps_attention=True),
    "block, inputs in RAM": Plan(inputs_in_ram=True),
}


@pytest.fixture(scope="module")
def dit_file(tmp_path_factory):
    return tools.random_dit(tmp_path_factory.mktemp("plans"), layers=3)


def trained(dit_file, plan: Plan) -> tuple[list[float], torch.Tensor]:
    """Losses and adapter after twenty steps, a clip of three frames and two pictures in turn."""
    model = tools.load_dit(dit_file)
    compute_in_fp32(model)
    adapted = AdaptedModel(model)
    device = adapted.denoiser.device
    return adapted.trained(
        plan, [random_batch((3, 4, 6), (0.4,), device), random_batch((1, 6, 4), (0.2, 0.8), device)], STEPS)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def plain(comfy, dit_file):
    losses, adapter = trained(dit_file, Plan(whole_blocks=EVERYTHING))
    assert losses[-2] < losses[0], "it learns"
    return losses, adapter


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_plan_keeps_the_result_bit_for_bit(plain, dit_file, plan):
    losses, adapter = trained(dit_file, plan)
    assert losses == plain[0]
    assert torch.equal(adapter, plain[1])


@pytest.mark.parametrize("plan", [Plan(whole_blocks=EVERYTHING), Plan()], ids=["whole", "checkpointed"])
def test_comfyuis_own_forward_gives_the_same_but_for_rounding(plain, dit_file, plan, monkeypatch):
    from wantune.nodes.backend import computed

    used = []
    monkeypatch.setattr(computed, "is_known", lambda _block: bool(used.append(1)))
    losses, adapter = trained(dit_file, plan)
    assert used, "this is the way in which blocks that are not known are computed"
    assert losses == pytest.approx(plain[0], rel=1e-5)
    # Adam divides by the gradient's own size, so it blows up the rounding of those that are next to nothing
    assert difference(adapter, plain[1]) < 1e-4


def test_a_block_that_computes_otherwise_is_trained_through_its_own_forward(dit_file, comfy, monkeypatch, caplog):
    from wantune.trainer.blocks import pieces

    right = trained(dit_file, Plan())[0]
    monkeypatch.setattr(pieces, "gelu", torch.relu)  # as if a new ComfyUI had another block
    losses, _ = trained(dit_file, Plan())
    assert "computed otherwise than WanTune does it" in caplog.text
    assert losses == pytest.approx(right, rel=1e-5)


def test_a_change_of_plan_keeps_to_comfyuis_own_forward_where_ours_differs(dit_file, comfy, monkeypatch):
    from wantune.trainer.blocks import pieces

    monkeypatch.setattr(pieces, "gelu", torch.relu)
    adapted = AdaptedModel(tools.load_dit(dit_file))
    with adapted.attached(Plan(whole_blocks=EVERYTHING)):
        stand_ins = adapted.denoiser._stand_ins
        assert not any(block.is_ours for block in stand_ins._computed)
        adapted.denoiser.change_plan(Plan())
        assert stand_ins._computed and not any(block.is_ours for block in stand_ins._computed)
