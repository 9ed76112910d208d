"""How many kernels torch's compiler makes of the small functions of a block: its scheduler is asked, nothing compiled.

It plans as for a card, which needs Triton to be there but no card.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch._inductor import config, scheduler

from wantune.tests.fake_cuda.compiled import KERNELS
from wantune.trainer.blocks import pieces

TOKENS, HEADS, HEAD_WIDTH = 1024, 12, 128
WIDTH = HEADS * HEAD_WIDTH
EPS = 1e-6


class _Planned(Exception):
    pass


def random(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def arguments() -> dict[str, tuple]:
    """Of each function, those of 1.3B with one picture."""
    angles = torch.rand(1, TOKENS, 1, HEAD_WIDTH // 2)
    matrices = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).unflatten(-1, (2, 2))
    rotation, weights = pieces.Rotation(matrices), random(2, 1, WIDTH, dtype=torch.float32)
    by = pieces.Modulation(*(random(1, 1, WIDTH) for _ in range(3)))
    x_BLD, qk_2ND = random(1, TOKENS, WIDTH), random(2, TOKENS, WIDTH)
    _, norm = pieces.modulated_norm(x_BLD, by, EPS)
    _, norm_qk = pieces.turned_norms(qk_2ND, weights, rotation, EPS)
    grads = [random(1, TOKENS, HEADS, HEAD_WIDTH) for _ in range(3)]
    return {
        "turned_norms": (qk_2ND, weights, rotation, EPS),
        "turned_norms_gradient": (*grads, weights, rotation, norm_qk),
        "modulated_norm_gradient": (random(TOKENS, WIDTH), by, norm, x_BLD),
        "layer_norm_gradient": (random(TOKENS, WIDTH), norm, x_BLD),
    }


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("name", KERNELS)
def test_each_is_as_many_kernels_as_are_counted(name, monkeypatch):
    planned = []

    def stop(plan) -> None:
        planned.append([node for node in plan.nodes if not isinstance(node, scheduler.NopKernelSchedulerNode)])
        raise _Planned

    monkeypatch.setattr(scheduler.Scheduler, "codegen", stop)
    torch._dynamo.reset()
    with config.patch(cpu_backend="triton"), torch.no_grad(), pytest.raises(Exception, match="_Planned"):
        torch.compile(getattr(pieces, name))(*arguments()[name])
    (nodes,) = planned
    assert len(nodes) == KERNELS[name], nodes
