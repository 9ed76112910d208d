"""The benches still run: a toy model through each of their parts, without a look at the figures' size."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("comfy")

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """bench/step.py and bench/memory.py as Python sees them when they are started."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.syspath_prepend(BENCH)
    import memory
    import step

    return step, memory


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_compared_with_a_bare_loop_and_with_core(scripts, tmp_path, checkpointing):
    from wantune.bench import plans
    from wantune.bench.cases import Case

    step, _ = scripts
    dit, size_FHW, turns = step.TOY["toy"]
    case = Case(tmp_path, dit, size_FHW)
    plan = plans.ON if checkpointing else plans.OFF
    figures = step.against_bare(case, plan, turns) | step.against_core(case, plan, 1, 3)
    assert len(figures) == 10 and all(value > 0 for value in figures.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_compared_with_trainers_outside_comfyui(scripts, tmp_path, checkpointing):
    from wantune.bench import plans
    from wantune.bench.cases import Case

    step, _ = scripts
    dit, size_FHW, turns = step.TOY["toy"]
    musubi = os.environ.get("MUSUBI_PATH")
    plan = plans.ON if checkpointing else plans.OFF
    figures = step.against_rivals(Case(tmp_path, dit, size_FHW), plan, turns, musubi)
    assert len(figures) == (6 if musubi else 3) and all(value > 0 for value in figures.values())
    assert figures["ours / diffusers, products"] < 1


def test_what_preserving_costs_is_measured_and_counted(scripts, tmp_path):
    """Two forwards and a backward beside a forward and a backward, every step or every fourth."""
    from wantune.bench import plans, preserve

    dit, size_FHW, turns = preserve.TOY["toy"]
    figures = preserve.measured(tmp_path, dit, size_FHW, plans.OFF, turns)
    assert len(figures) == 1 + 2 * len(preserve.EVERY) and all(value > 0 for value in figures.values())
    extra = [figures[f"every {every}, with / without, products"] - 1 for every in preserve.EVERY]
    assert 1 < extra[0] < 2, "where there is no backward, as of the text, it is twice a forward"
    assert [extra[0] / every for every in preserve.EVERY] == pytest.approx(extra, abs=0.01)


def test_the_bare_loop_computes_our_loss(scripts, tmp_path):
    """Same weights, same batch: padded and folded text agree, and so does our own objective."""
    import torch

    from wantune.bench import plans
    from wantune.bench.cases import Case, running
    from wantune.bench.peers import BARE_T, Bare
    from wantune.tests.support import tools
    from wantune.trainer.encoded.batches import read_batch
    from wantune.trainer.training import objective

    step, _ = scripts
    dit, size_FHW, _ = step.TOY["toy"]
    case = Case(tmp_path, dit, size_FHW)
    clip = case.dataset.samples[0]
    losses = [Bare(case.path, clip, 4, False, folded).loss().item() for folded in (False, True)]
    batch = read_batch([clip.visit(0)], case.dataset.family.conditions)
    latent_BCFHW, conditions = batch.latent_BCFHW, batch.conditions
    noise_BCFHW = torch.randn(latent_BCFHW.shape, generator=torch.Generator().manual_seed(1))
    with running(case, tools.load_dit(case.path), plans.OFF, 1) as run, run.denoiser.training():
        t_B = torch.tensor([BARE_T])
        conditions = run.denoiser.prepared(conditions, latent_BCFHW.shape[2:])
        ours = objective.denoising_loss(run.denoiser, latent_BCFHW, conditions, t_B, noise_BCFHW)
    assert losses == pytest.approx([ours.item()] * 2, rel=1e-5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads its memory from /proc")
@pytest.mark.parametrize("training", ["ours, gradient checkpointing", "core"])
def test_memory_is_measured(scripts, training):
    _, memory = scripts
    figures = memory.measure_one(*memory.TOY_MODELS["fp32"], training)
    assert figures["model weights, MiB"] > 1
    assert ("second copy" in figures) is training.startswith("ours")


def test_the_estimate_is_held_against_the_truth(scripts):
    from wantune.bench import calibration

    (figures,) = calibration.measure(toy=True).values()
    assert set(figures["constants"]) == {"kept a block", "used in backward"}


def test_the_loop_is_measured(scripts, tmp_path, comfy):
    import loop

    figures = loop.overhead(tmp_path, loop.TOY_STEPS)
    assert figures["steps"] == 4 and figures["whole / training itself"] > 1


def test_batches_are_counted(monkeypatch, comfy):
    monkeypatch.syspath_prepend(BENCH)
    import packing

    rows = packing.batches(packing.TOY_COUNTS, packing.TOY_DRAWS)
    assert len(rows) == 2 * len(packing.REPEATS) * 3
    few, many = ({row["batch_size"]: row for row in rows
                  if (row["num_repeats"], row["shapes"]) == (repeats, "of any kind")} for repeats in packing.REPEATS)
    for size, row in many.items():
        assert few[size]["full batches"] < row["full batches"] <= 1, "repeats fill batches"
        assert few[size]["samples a step"] < row["samples a step"] <= size
        assert few[size]["steps saved by packing"] > row["steps saved by packing"] >= 0
    assert many[2]["full batches"] == 1 > many[8]["full batches"], "ten repeats are five batches of two"
