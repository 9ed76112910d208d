"""Flow matching against formulas written out here, and against the published shares of noise levels."""

from contextlib import nullcontext

import pytest
import torch

from wantune.trainer.settings.training import WEIGHTINGS, ObjectiveConfig
from wantune.trainer.training import objective
from wantune.trainer.training.objective import PLAIN


class LinearDenoiser:
    """velocity = a x + b t: everything about the loss can be written out."""

    device = torch.device("cpu")
    compute_dtype = torch.float32

    def velocity(self, x_BCFHW, t_B, conditions):
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
    loss_B = objective.denoising_loss(LinearDenoiser(), latent, {"text": torch.zeros(3, 512, 8)}, t, noise)
    for i in range(3):
        x = (1 - t[i]) * latent[i] + t[i] * noise[i]
        expected = torch.mean((0.5 * x + t[i] - (noise[i] - latent[i])) ** 2)
        torch.testing.assert_close(loss_B[i], expected)


def test_a_perfect_prediction_has_no_loss():
    class Perfect(LinearDenoiser):
        def velocity(self, x_BCFHW, t_B, conditions):
            return noise - latent

    latent, noise = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 16, 1, 4, 4)
    assert objective.denoising_loss(Perfect(), latent, {"text": torch.zeros(1, 1, 1)}, torch.tensor([0.4]), noise) == 0


@pytest.mark.parametrize(("low", "high", "share"), [(0, 0.25, 0.136), (0.25, 0.5, 0.364), (0.5, 0.75, 0.364),
                                                    (0.75, 0.9, 0.122), (0.9, 1.0, 0.014)])
def test_noise_levels_are_logit_normal_without_shift(low, high, share):
    t_B = objective.sample_timesteps(PLAIN, 400_000, generator())
    assert ((t_B >= low) & (t_B < high)).float().mean().item() == pytest.approx(share, abs=0.003)


def test_noise_and_levels_depend_on_our_generator_alone():
    latent = torch.zeros(1, 16, 1, 4, 4)
    torch.manual_seed(1)
    first = objective.sample_noise(latent, generator(5)), objective.sample_timesteps(PLAIN, 4, generator(5))
    torch.manual_seed(2)
    second = objective.sample_noise(latent, generator(5)), objective.sample_timesteps(PLAIN, 4, generator(5))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], objective.sample_noise(latent, generator(6)))


def test_noise_offset_adds_one_number_to_each_channel_of_each_sample():
    latent = torch.zeros(3, 16, 2, 6, 4)
    plain = objective.sample_noise(latent, generator(5))
    difference = objective.sample_noise(latent, generator(5), 0.3) - plain
    assert torch.allclose(difference, difference[:, :, :1, :1, :1].expand_as(difference), atol=1e-6)
    assert difference[:, :, 0, 0, 0].round(decimals=4).unique().numel() == 3 * 16


@pytest.mark.parametrize("offset", [0.05, 0.3, 1.0])
def test_a_channel_s_mean_has_the_variance_that_the_noise_offset_asks_for(offset):
    means = objective.sample_noise(torch.zeros(4000, 16, 1, 8, 8), generator(), offset).mean((2, 3, 4))
    assert means.var().item() == pytest.approx(offset**2 + 1 / 64, rel=0.03)
    assert means.mean().item() == pytest.approx(0, abs=4 * means.std().item() / 64000**0.5)


def test_no_noise_offset_draws_nothing_more():
    latent = torch.zeros(2, 16, 1, 4, 4)
    first, second, alone = generator(5), generator(5), generator(5)
    assert torch.equal(objective.sample_noise(latent, first, 0.0), objective.sample_noise(latent, second))
    assert torch.equal(objective.sample_noise(latent, alone), torch.randn(latent.shape, generator=generator(5)))
    assert torch.equal(first.get_state(), alone.get_state())


def test_a_generator_is_a_function_of_its_key_alone():
    def numbers(*key):
        return tuple(torch.rand(4, generator=objective.generator(*key)).tolist())

    torch.manual_seed(1)
    keys = [(0, 5), (5, 0), (0, 50), (5,), (1, 23), (12, 3), ("a",), ("a", 5), ([0, 5],), (0, 5, 0), (None,)]
    first, state = [numbers(*key) for key in keys], torch.random.get_rng_state()
    torch.manual_seed(2)
    assert [numbers(*key) for key in reversed(keys)] == first[::-1]
    assert len(set(first)) == len(keys)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert objective.generator(0).device.type == "cpu"


LEVELS = torch.linspace(0.01, 1, 100)


@pytest.mark.parametrize("name", ["cosmap", "sigma_sqrt", "none"])
def test_weights_are_those_of_diffusers(name):
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    torch.testing.assert_close(objective.weight(ObjectiveConfig(weighting=name), LEVELS),
                               compute_loss_weighting_for_sd3(weighting_scheme=name, sigmas=LEVELS))


def test_bell_has_mean_1_and_its_height_in_the_middle():
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    bell = objective.weight(ObjectiveConfig(weighting="bell"), t)
    assert bell.mean().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(bell, bell.flip(0))
    assert (bell[:50_000].diff() > 0).all()


def test_bell_is_that_of_diffsynth():
    """diffsynth/schedulers/flow_match.py, set_timesteps(1000, training=True)."""
    x = torch.linspace(1000, 0, 1001)[:-1].double()
    bell = torch.exp(-2 * ((x - 500) / 1000) ** 2)
    bell = (bell - bell.min()) * (1000 / (bell - bell.min()).sum())
    torch.testing.assert_close(objective.weight(ObjectiveConfig(weighting="bell"), x / 1000), bell, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weight_is_finite_and_not_negative_at_every_noise_level(name):
    weights = objective.weight(ObjectiveConfig(weighting=name), torch.tensor([0, 1e-9, 1e-4, 0.01, 0.5, 1 - 1e-7, 1]))
    assert torch.isfinite(weights).all() and (weights >= 0).all() and weights[4] > 0
    assert weights.dtype == torch.float32


def loss_of(error: torch.Tensor, config: ObjectiveConfig, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Of a prediction that is wrong by `error`."""
    class Wrong(LinearDenoiser):
        def velocity(self, x_BCFHW, t_B, conditions):
            return noise - latent + error

    latent, noise = torch.randn(error.shape, generator=generator(1)), torch.randn(error.shape, generator=generator(2))
    t_B = torch.full((len(error),), 0.4)
    return objective.denoising_loss(Wrong(), latent, {"text": torch.zeros(len(error), 1, 1)}, t_B, noise, mask, config)


def errors(scale: float) -> torch.Tensor:
    return scale * torch.randn(3, 16, 2, 4, 4, generator=generator(3))


@pytest.mark.parametrize("delta", [0.01, 0.5, 3.0])
def test_huber_is_twice_that_of_torch(delta):
    error, config = errors(1.0), ObjectiveConfig(loss="huber", huber_delta=delta)
    loss = torch.nn.HuberLoss(reduction="none", delta=delta)(error, torch.zeros_like(error))
    torch.testing.assert_close(loss_of(error, config), 2 * loss.flatten(1).mean(1), rtol=1e-4, atol=1e-7)


def test_huber_is_mse_for_small_errors_and_linear_for_large_ones():
    config = ObjectiveConfig(loss="huber", huber_delta=0.5)
    small = errors(0.1)
    assert small.abs().max() < 0.5
    torch.testing.assert_close(loss_of(small, config), loss_of(small, PLAIN))
    sign = errors(1.0).sign()
    losses = [loss_of(size * sign, config) for size in (2.0, 3.0, 4.0)]
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[1] - losses[0], torch.full((3,), 2 * 0.5), rtol=1e-4, atol=1e-5)


def test_no_error_pulls_harder_than_huber_s_delta():
    error, delta = errors(10.0).requires_grad_(), 0.5
    loss_of(error, ObjectiveConfig(loss="huber", huber_delta=delta)).sum().backward()
    pull = error.grad.abs() * error[0].numel()
    assert pull.max() <= 2 * delta * 1.0001 and (pull > 2 * delta * 0.999).float().mean() > 0.9


@pytest.mark.parametrize("config", [PLAIN, ObjectiveConfig(loss="huber", huber_delta=0.2)], ids=["mse", "huber"])
def test_a_mask_leaves_the_weighted_mean_of_what_it_shows(config):
    error, mask = errors(1.0), torch.rand(3, 1, 1, 4, 4, generator=generator(4))
    size = error.abs()
    each = size**2 if config is PLAIN else torch.where(size < 0.2, size**2, 2 * 0.2 * size - 0.2**2)
    expected = [(each[i] * mask[i]).sum() / (mask[i].sum() * 16 * 2) for i in range(3)]
    torch.testing.assert_close(loss_of(error, config, mask), torch.stack(expected), rtol=1e-4, atol=1e-6)
    hidden = mask.clone()
    hidden[..., :2] = 0
    error[..., :2] = 1e3
    seen = loss_of(error, config, hidden)
    torch.testing.assert_close(seen, loss_of(error[..., 2:], config, hidden[..., 2:]), rtol=1e-4, atol=1e-6)


KNOWN_BF = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 1, 0]])
"""One latent frame is given, none, and two."""


class Told(LinearDenoiser):
    """Predicts a tensor of its own, and keeps what it is shown."""

    def __init__(self) -> None:
        self.velocity_BCFHW = torch.randn(3, 8, 3, 4, 6, generator=generator(5)).requires_grad_()

    def velocity(self, x_BCFHW, t_B, conditions):
        self.x_BCFHW = x_BCFHW
        return self.velocity_BCFHW


def known_loss(config=PLAIN, mask=None, known=KNOWN_BF):
    """(denoiser, latent, noise, loss_B) of three samples some of whose frames are given."""
    latent, noise = (torch.randn(3, 8, 3, 4, 6, generator=generator(seed)) for seed in (1, 2))
    denoiser, conditions = Told(), {} if known is None else {"known": known}
    loss_B = objective.denoising_loss(
        denoiser, latent, conditions, torch.tensor([0.1, 0.5, 0.9]), noise, mask, config)
    return denoiser, latent, noise, loss_B


def test_frames_that_are_given_are_clean_and_the_others_noisy():
    denoiser, latent, noise, _ = known_loss()
    plain = objective.interpolate(latent, noise, torch.tensor([0.1, 0.5, 0.9]))
    for sample, frame in torch.cartesian_prod(torch.arange(3), torch.arange(3)):
        expected = latent if KNOWN_BF[sample, frame] else plain
        assert torch.equal(denoiser.x_BCFHW[sample, :, frame], expected[sample, :, frame])


@pytest.mark.parametrize("config", [PLAIN, ObjectiveConfig(loss="huber", huber_delta=0.2)], ids=["mse", "huber"])
@pytest.mark.parametrize("is_masked", [False, True], ids=["whole", "masked"])
def test_frames_that_are_given_give_no_gradient(config, is_masked):
    mask = torch.rand(3, 1, 1, 4, 6, generator=generator(4)) if is_masked else None
    denoiser, *_, loss_B = known_loss(config, mask)
    loss_B.sum().backward()
    pull_BF = denoiser.velocity_BCFHW.grad.abs().amax((1, 3, 4))
    assert torch.equal(pull_BF == 0, KNOWN_BF == 1)


def test_without_the_first_frame_the_loss_is_that_of_diffsynth():
    """modelscope/DiffSynth-Studio, diffsynth/diffusion/loss.py: first_frame_latents put in, and their frame cut off."""
    denoiser, latent, noise, loss_B = known_loss()
    target = noise - latent
    velocity = denoiser.velocity_BCFHW
    first = torch.nn.functional.mse_loss(velocity[:1, :, 1:], target[:1, :, 1:])
    torch.testing.assert_close(loss_B[0], first)
    torch.testing.assert_close(loss_B[1], torch.nn.functional.mse_loss(velocity[1], target[1]))
    torch.testing.assert_close(loss_B[2], torch.nn.functional.mse_loss(velocity[2, :, 2:], target[2, :, 2:]))


@pytest.mark.parametrize("config", [PLAIN, ObjectiveConfig(loss="huber", huber_delta=0.2)], ids=["mse", "huber"])
def test_frames_that_are_given_do_not_change_the_scale_of_a_masked_loss(config):
    mask = torch.rand(3, 1, 1, 4, 6, generator=generator(4))
    denoiser, latent, noise, loss_B = known_loss(config, mask)
    size = (denoiser.velocity_BCFHW - (noise - latent)).detach().abs()
    each = size**2 if config is PLAIN else torch.where(size < 0.2, size**2, 2 * 0.2 * size - 0.2**2)
    for sample, first in enumerate((1, 0, 2)):
        seen = each[sample, :, first:] * mask[sample]
        expected = seen.sum() / (mask[sample].sum() * seen.shape[0] * seen.shape[1])
        torch.testing.assert_close(loss_B[sample].detach(), expected)


def test_where_no_frame_is_given_the_loss_is_what_it_was():
    *_, loss_B = known_loss(known=torch.zeros(3, 3))
    *_, plain_B = known_loss(known=None)
    torch.testing.assert_close(loss_B, plain_B)
