"""Attention to an image beside the text, and its gradients, against autograd through both."""

import pytest
import torch
from torch.nn import functional

from wantune.trainer.blocks.image_attention import WithImage
from wantune.trainer.blocks.kept import NOTHING


def attention(q_BLHd, k_BKHd, v_BKHd):
    heads_first = (x.transpose(1, 2) for x in (q_BLHd, k_BKHd, v_BKHd))
    return functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)


class Recorded:
    """An attention as wan_branches.py asks for it, with autograd inside; counts its calls."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def forward(self, q, k, v, saves, kept=NOTHING):
        self.forwards += 1
        inputs = tuple(x.detach().requires_grad_() for x in (q, k, v))
        with torch.enable_grad():
            out = attention(*inputs)
        return out.detach(), (inputs, out) if saves else None

    def backward(self, saved, grad):
        self.backwards += 1
        inputs, out = saved
        return torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("samples", [1, 3])
def test_result_and_gradients_are_those_of_the_sum_of_both(samples):
    generator = torch.Generator().manual_seed(0)
    q, k, v, k_image, v_image, grad = (torch.randn(samples, tokens, 2, 16, generator=generator, dtype=torch.float64)
                                       for tokens in (20, 7, 7, 5, 5, 20))
    asked = []

    def keys():
        asked.append(1)
        return k_image, v_image

    inner = Recorded()
    ours = WithImage(inner, keys)
    out, saved = ours.forward(q, k, v, True)
    found = ours.backward(saved, grad)
    assert (len(asked), inner.forwards, inner.backwards) == (1, 2, 2)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = attention(*inputs) + attention(inputs[0], k_image, v_image)
    torch.testing.assert_close(out, expected.detach())
    for gradient, truth in zip(found, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(gradient, truth)
    unsaved, nothing = ours.forward(q, k, v, False)
    assert nothing is None and torch.equal(unsaved, out)
