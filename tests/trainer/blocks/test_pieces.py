"""The small functions of a block against the same in autograd, and their gradients in float64."""

import weakref

import pytest
import torch
from torch.nn import functional

from wantune.trainer.blocks import flash, pieces
from wantune.trainer.blocks.pieces import Modulation, Rotation, Rotations

EPS = 1e-6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(ours: torch.Tensor, truth: torch.Tensor, bound: float = 1e-12) -> None:
    assert float((ours - truth).norm() / truth.norm()) < bound


@pytest.mark.parametrize("batch", [1, 3])
def test_the_modulated_norm(batch):
    by = Modulation(*(random(batch, 1, 12, seed=seed) for seed in (1, 2, 3)))
    x, onto = random(batch, 5, 12).requires_grad_(), random(batch, 5, 12, seed=5)
    truth = functional.layer_norm(x, (12,), eps=EPS) * by.scale + by.shift
    grad = random(batch, 5, 12, seed=4)
    truth.backward(grad)
    ours, norm = pieces.modulated_norm(x.detach(), by, EPS)
    same(ours.view_as(truth), truth.detach())
    same(pieces.modulated_norm_gradient(grad.flatten(0, 1), by, norm, onto), x.grad + onto)


def test_the_affine_norm():
    x, grad = random(5, 12).requires_grad_(), random(5, 12, seed=3)
    weight, bias = random(12, seed=1), random(12, seed=2)
    truth = functional.layer_norm(x, (12,), weight, bias, EPS)
    truth.backward(grad)
    ours, norm = pieces.layer_norm(x.detach(), weight, bias, EPS)
    same(ours, truth.detach())
    onto = random(1, 5, 12, seed=5)
    same(pieces.layer_norm_gradient(grad, norm, onto), x.grad + onto)


def test_the_rms_norm():
    x, grad = random(5, 12).float().requires_grad_(), random(5, 12, seed=3).float()
    weight = random(12, seed=1).float()
    truth = functional.rms_norm(x, (12,), weight, EPS)
    truth.backward(grad)
    ours, norm = pieces.rms_norm(x.detach(), weight, EPS)
    same(ours, truth.detach(), 1e-6)
    same(pieces.rms_norm_gradient(grad, norm), x.grad, 1e-6)


def test_gelu():
    x, grad = random(5, 12).requires_grad_(), random(5, 12, seed=3)
    truth = functional.gelu(x, approximate="tanh")
    truth.backward(grad)
    same(pieces.gelu(x.detach()), truth.detach())
    same(pieces.gelu_gradient(grad.clone(), x.detach()), x.grad)


def rotation_matrices() -> torch.Tensor:
    """For 5 tokens, and heads of 6."""
    angles = random(1, 5, 1, 3).float()
    return torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).unflatten(-1, (2, 2))


def rotated(x_BLHd: torch.Tensor) -> torch.Tensor:
    return (rotation_matrices() @ x_BLHd.unflatten(-1, (3, 2))[..., None])[..., 0].flatten(-2)


def test_the_rotation_is_that_by_matrices_and_its_gradient_turns_back():
    x, grad = random(10, 24).float().requires_grad_(), random(2, 5, 4, 6, seed=1).float()
    truth = rotated(x.view(2, 5, 4, 6))
    truth.backward(grad)
    matrices = rotation_matrices()
    rotation = Rotation(matrices)
    rows = torch.stack((x.detach(), x.detach()))  # q and k
    turned = rotation.turn(rows.clone())
    same(turned, torch.stack((truth, truth)).detach(), 1e-6)
    same(rotation.turn(torch.stack((grad, grad)).view(rows.shape), is_back=True)[1].view(x.shape), x.grad, 1e-6)
    same(rotation.turn(turned.view(rows.shape), is_back=True).view(rows.shape), rows, 1e-6)
    rotations = Rotations()
    assert rotations(matrices) is rotations(matrices) is not rotations(other := matrices.clone())
    made = weakref.ref(rotations(other))
    del matrices  # which it was made of before
    assert made() is rotations(other)
    del other
    assert made() is None, "it is let go of with what it was made of"


@pytest.mark.parametrize("is_by_head", [False, True])
def test_the_norms_with_rotation(is_by_head):
    rows = [random(10, 24, seed=seed).float().requires_grad_() for seed in (0, 1)]
    weights = random(2, 24, seed=2).float()
    grads = random(3, 2, 5, 4, 6, seed=3).float()
    if is_by_head:  # as some kernels of attention give them: one head after the other
        grads = grads.transpose(2, 3).contiguous().transpose(2, 3)
    truths = [rotated(functional.rms_norm(x, (24,), weight, EPS).view(2, 5, 4, 6))
              for x, weight in zip(rows, weights, strict=True)]
    torch.autograd.backward(truths, list(grads[:2]))
    rotation, weights = Rotation(rotation_matrices()), weights[:, None]
    together = torch.stack(rows).detach()
    ours, norm = pieces.turned_norms(together, weights, rotation, EPS)
    gradients = pieces.turned_norms_gradient(*grads, weights, rotation, norm)
    for each, truth, gradient, x in zip(ours, truths, gradients[:2], rows, strict=True):
        same(each, truth.detach(), 1e-6)
        same(gradient, x.grad, 1e-6)
    assert torch.equal(gradients[2].view(2, 5, 4, 6), grads[2])
    half, _ = pieces.turned_norms(together.bfloat16(), weights, rotation, EPS)
    assert half.dtype == torch.bfloat16
    norm = norm._replace(x_ND=together.bfloat16())
    halves = pieces.turned_norms_gradient(*grads.bfloat16(), weights, rotation, norm)
    assert halves.dtype == torch.bfloat16
    same(halves, gradients, 2e-2)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("keys", [7, 5])
def test_flash_attention_called_by_name_is_pytorchs(keys, biased):
    q, k, v = (random(2, length, 3, 8, seed=seed).float().requires_grad_()
               for seed, length in enumerate((7, keys, keys)))
    grad = random(2, 7, 3, 8, seed=9).float()
    bias = random(2, 1, 1, keys, seed=10).float() if biased else None
    truth = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), bias).transpose(1, 2)
    truth.backward(grad)
    kernel = flash.FusedAttention.of(*(x.detach() for x in (q, k, v)), bias)
    result = kernel.result()
    assert torch.equal(result[0].transpose(1, 2), truth.detach())
    for ours, x in zip(kernel.gradients(result, grad), (q, k, v), strict=True):
        assert torch.equal(ours, x.grad)


def test_flash_attention_is_not_called_where_pytorch_takes_another_kernel():
    q = random(1, 4, 2, 8).float()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert flash.FusedAttention.of(q, q, q) is None
