"""What all blocks of a step share, or what is made once of two norms' weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn


@pytest.fixture
def blocks(comfy):
    return [SimpleNamespace(modulation=nn.Parameter(torch.randn(1, 6, 8), requires_grad=False)) for _ in range(3)]


def test_each_block_gets_its_own_modulation_and_all_are_computed_at_once(blocks, monkeypatch):
    import comfy.model_management

    from wantune.nodes.backend.modulations import Modulations

    cast, casts = comfy.model_management.cast_to, []
    monkeypatch.setattr(
        comfy.model_management, "cast_to", lambda *args, **options: casts.append(1) or cast(*args, **options))
    modulations = Modulations(blocks)
    for step in range(2):
        e = torch.randn(2, 1, 6, 8)
        for number, block in enumerate(blocks):
            rows = (block.modulation + e[:, 0]).unsqueeze(2).unbind(1)
            attention, feed_forward = modulations(number, e, torch.float32)
            for found, (shift, scale, gate) in ((attention, rows[:3]), (feed_forward, rows[3:])):
                assert torch.equal(found.shift, shift) and torch.equal(found.gate, gate)
                assert torch.equal(found.scale, scale + 1)
        assert len(casts) == 3 * (step + 1)
        blocks[1].modulation.add_(1)  # as ComfyUI patches it between steps


def test_weights_of_two_norms_are_joined_anew_when_one_of_them_moves(comfy):
    from wantune.nodes.backend.frozen_norm import BothNorms, FrozenNorm

    x = torch.randn(3, 8, dtype=torch.bfloat16)
    norms = [nn.RMSNorm(8, dtype=torch.bfloat16, elementwise_affine=True) for _ in range(2)]
    for norm in norms:
        norm.requires_grad_(False).weight.uniform_()
    both = BothNorms(*map(FrozenNorm, norms))
    joined = both(x)
    assert joined.dtype == torch.float32 and torch.equal(joined[:, 0], torch.stack([n.weight for n in norms]).float())
    assert both(x) is joined
    norms[1].weight = nn.Parameter(torch.rand(8, dtype=torch.bfloat16), requires_grad=False)
    assert torch.equal(both(x)[1, 0], norms[1].weight.float())
