"""Training with the small functions of its blocks compiled, against training without."""

import logging
import threading

import pytest
import torch

from wantune.tests.support import tools
from wantune.tests.support.adapted import AdaptedModel, compute_in_fp32, random_batch
from wantune.trainer.memory.plan import Plan


@pytest.mark.long
def test_twenty_steps_end_as_they_do_without(comfy, tmp_path, caplog):
    """In a thread of its own, as on a GPU, where autograd takes gradients in one."""
    from torch._dynamo.utils import counters

    dit_file = tools.random_dit(tmp_path, layers=3)
    ends = {}

    def train(compile: str) -> None:
        model = tools.load_dit(dit_file)
        compute_in_fp32(model)
        adapted = AdaptedModel(model, compile=compile)
        device = adapted.denoiser.device
        batches = [random_batch((3, 4, 6), (0.4,), device), random_batch((1, 6, 4), (0.2, 0.8), device)]
        ends[compile] = adapted.trained(Plan(), batches)

    torch._dynamo.reset()
    counters.clear()
    for compile in ("off", "on"):
        with caplog.at_level(logging.WARNING, "wantune"):
            thread = threading.Thread(target=train, args=(compile,))
            thread.start()
            thread.join()
        assert (counters["stats"]["unique_graphs"] > 0) == (compile == "on")
    assert "not compiled" not in caplog.text
    (losses, adapter), (others, other) = ends["off"], ends["on"]
    loss = max(abs(a / b - 1) for a, b in zip(others, losses, strict=True))
    difference = float((other - adapter).norm() / adapter.norm())
    print(f"compiled: losses off by at most {loss:.1e}, the adapter by {difference:.1e}")
    # Adam divides by the gradient's own size, so it blows up the rounding of those that are next to nothing
    assert loss <= 1e-6 and difference <= 1e-4
