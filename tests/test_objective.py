"""Flow matching against formulas written out here, and against the published shares of noise levels."""

from contextlib import nullcontext

import pytest
import torch

from wantune.trainer import objective


class LinearDenoiser:
    """velocity = a x + b t: everything about the loss can be written out."""

    device = torch.device("cpu")
    compute_dtype = torch.float32

    def velocity(self, x_BCFHW, t_B, text_BLD):
        return 0.5 * x_BCFHW + t_B.view(-1, 1, 1, 1, 1)

    def training(self):
        return nullcontext()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_x_t_runs_from_the_latent_to_the_noise():
    latent, noise = torch.randn(2, 16, 1, 4, 4), torch.randn(2, 16, 1, 4, 4)
    assert torch.equal(objective.interpolate(latent, noise, torch.zeros(2)), latent)
    assert torch.equal(objective.interpolate(latent, noise, torch.ones(2)), noise)


def test_the_target_is_the_derivative_of_x_t():
    latent, noise = torch.randn(1, 16, 1, 4, 4).double(), torch.randn(1, 16, 1, 4, 4).double()
    t = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    _, slope = torch.autograd.functional.jvp(lambda t: objective.interpolate(latent, noise, t), t, torch.ones(1))
    torch.testing.assert_close(slope, noise - latent, check_dtype=False)


def test_the_loss_is_the_plain_mean_of_squares_of_each_sample():
    latent, noise = torch.randn(3, 16, 2, 4, 6), torch.randn(3, 16, 2, 4, 6)
    t = torch.tensor([0.1, 0.5, 0.9])
    loss_B = objective.denoising_loss(LinearDenoiser(), latent, torch.zeros(3, 512, 8), t, noise)
    for i in range(3):
        x = (1 - t[i]) * latent[i] + t[i] * noise[i]
        expected = torch.mean((0.5 * x + t[i] - (noise[i] - latent[i])) ** 2)
        torch.testing.assert_close(loss_B[i], expected)


def test_a_perfect_prediction_has_no_loss():
    class Perfect(LinearDenoiser):
        def velocity(self, x_BCFHW, t_B, text_BLD):
            return noise - latent

    latent, noise = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 16, 1, 4, 4)
    assert objective.denoising_loss(Perfect(), latent, torch.zeros(1, 1, 1), torch.tensor([0.4]), noise) == 0


@pytest.mark.parametrize(("low", "high", "share"), [(0, 0.25, 0.136), (0.25, 0.5, 0.364), (0.5, 0.75, 0.364),
                                                    (0.75, 0.9, 0.122), (0.9, 1.0, 0.014)])
def test_noise_levels_are_logit_normal_without_shift(low, high, share):
    t_B = objective.sample_timesteps(400_000, generator())
    assert ((t_B >= low) & (t_B < high)).float().mean().item() == pytest.approx(share, abs=0.003)


def test_noise_and_levels_depend_on_our_generator_alone():
    latent = torch.zeros(1, 16, 1, 4, 4)
    torch.manual_seed(1)
    first = objective.sample_noise(latent, generator(5)), objective.sample_timesteps(4, generator(5))
    torch.manual_seed(2)
    second = objective.sample_noise(latent, generator(5)), objective.sample_timesteps(4, generator(5))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], objective.sample_noise(latent, generator(6)))
