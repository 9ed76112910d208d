"""The noise levels that are drawn: every distribution against one that is computed in another way."""

import functools
import math

import pytest
import torch

from wantune.trainer.base.errors import UserError
from wantune.trainer.settings.training import ObjectiveConfig
from wantune.trainer.training import objective

DRAWS = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(config: ObjectiveConfig, count: int = DRAWS, seed: int = 0, num_tokens: int = 0) -> torch.Tensor:
    return objective.sample_timesteps(config, count, generator(seed), num_tokens).double()


@functools.cache
def many(config: ObjectiveConfig) -> torch.Tensor:
    return draws(config, 400_000, seed=7, num_tokens=1024)


def uniform(count: int = DRAWS, seed: int = 99) -> torch.Tensor:
    return torch.rand(count, generator=generator(seed), dtype=torch.float64)


def normal(count: int = DRAWS, seed: int = 99) -> torch.Tensor:
    return torch.randn(count, generator=generator(seed), dtype=torch.float64)


def assert_same(first: torch.Tensor, second: torch.Tensor) -> None:
    """Kolmogorov and Smirnov: samples of one distribution lie further apart than this once in 1400 times."""
    both = torch.cat([first, second]).sort().values
    shares = [torch.searchsorted(sample.sort().values, both, right=True) / len(sample) for sample in (first, second)]
    distance = (shares[0] - shares[1]).abs().max().item()
    assert distance < 2 * math.sqrt(1 / len(first) + 1 / len(second)), distance


def assert_follows(sample: torch.Tensor, share_below) -> None:
    """The same, against the share of the draws that lies below t."""
    ordered = sample.sort().values
    distance = (share_below(ordered) - torch.arange(len(ordered)) / len(ordered)).abs().max().item()
    assert distance < 2 / math.sqrt(len(ordered)), distance


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.4), (-2.0, 2.5), (0.0, 0.01), (8.0, 1.0)])
def test_logit_normal_is_the_sigmoid_of_normal_numbers(mean, std):
    config = ObjectiveConfig(logit_mean=mean, logit_std=std)
    assert_same(draws(config), torch.sigmoid(mean + std * normal()))


def test_uniform_is_uniform():
    assert_follows(draws(ObjectiveConfig(timesteps="uniform")), lambda t: t)


@pytest.mark.parametrize("scale", [-1.0, -0.3, 0.0, 0.81, 1.29, 1.75])
def test_mode_is_the_formula_of_the_paper(scale):
    """arXiv:2403.03206, equation 20."""
    u = uniform()
    assert_same(draws(ObjectiveConfig(timesteps="mode", mode_scale=scale)),
                1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u))


def beta_draws(a: float, b: float) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return torch.distributions.Beta(*torch.tensor([a, b], dtype=torch.float64)).sample((DRAWS,))


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 5.0), (0.5, 0.5), (0.6, 3.0), (3.0, 0.6), (20.0, 20.0),
                                      (20.0, 1.0)])
def test_beta_is_that_of_torch(a, b):
    assert_same(draws(ObjectiveConfig(timesteps="beta", beta_a=a, beta_b=b)), beta_draws(a, b))


@pytest.mark.parametrize(("a", "b"), [(0.05, 1.0), (0.1, 0.1), (0.2, 3.0), (20.0, 0.05)])
def test_beta_is_that_of_torch_where_its_density_is_steepest(a, b):
    """To a millionth: most draws lie closer to 0 or 1 than that."""
    ours = draws(ObjectiveConfig(timesteps="beta", beta_a=a, beta_b=b))
    assert_same((ours * 1e6).round(), (beta_draws(a, b) * 1e6).round())


@pytest.mark.parametrize("sharp", [600.0, 1e5])
def test_a_very_narrow_beta_has_its_mean_and_width(sharp):
    t = draws(ObjectiveConfig(timesteps="beta", beta_a=sharp, beta_b=3 * sharp))
    assert t.mean().item() == pytest.approx(0.25, rel=0.01)
    assert t.std().item() == pytest.approx(math.sqrt(0.25 * 0.75 / (4 * sharp + 1)), rel=0.05)


@pytest.mark.parametrize("a", [0.05, 0.3, 1.0, 2.0, 600.0])
def test_beta_is_exact_where_its_inverse_is_a_power(a):
    """Beta(a, 1) has the distribution function t^a, and Beta(1, a) its mirror image."""
    u = uniform()
    rising = objective.quantile(ObjectiveConfig(timesteps="beta", beta_a=a, beta_b=1.0), u)
    falling = objective.quantile(ObjectiveConfig(timesteps="beta", beta_a=1.0, beta_b=a), u)
    torch.testing.assert_close(rising, u ** (1 / a), rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(falling, -torch.expm1(torch.log1p(-u) / a), rtol=1e-12, atol=1e-300)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("b", [0.05, 1.0, 3.0, 20.0, 600.0])
@pytest.mark.parametrize("a", [0.05, 1.0, 2.0, 20.0, 600.0])
def test_beta_rises_from_0_to_1_over_every_number_that_can_be_drawn(a, b):
    """torch.rand gives multiples of 2^-53."""
    near = torch.arange(200, dtype=torch.float64) * 2.0**-53
    u = torch.cat([near, uniform(1000), 1 - near]).sort().values
    t = objective.quantile(ObjectiveConfig(timesteps="beta", beta_a=a, beta_b=b), u)
    assert t.dtype == torch.float64 and (t[0], t[-1]) == (0, 1) and (t.diff() >= -1e-12).all()


SHAPES = [{"timesteps": "logit_normal", "logit_mean": 0.4}, {"timesteps": "uniform"}, {"timesteps": "mode"},
          {"timesteps": "beta", "beta_a": 0.7, "beta_b": 2.0}]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["timesteps"])
@pytest.mark.parametrize("shift", [0.3, 3.0, 12.0])
def test_shift_moves_each_draw_as_the_sampler_s_does(shape, shift):
    plain, shifted = draws(ObjectiveConfig(**shape)), draws(ObjectiveConfig(**shape, shift=shift))
    torch.testing.assert_close(shifted, shift * plain / (1 + (shift - 1) * plain), rtol=1e-5, atol=1e-7)


def test_the_resolution_s_shift_has_the_published_values_and_grows_with_the_tokens():
    """exp(0.5) at 256 tokens, exp(1.15) at 4096; black-forest-labs/flux shifts t to e^mu / (e^mu + 1 / t - 1)."""
    config = ObjectiveConfig(resolution_shift=True)
    plain = draws(ObjectiveConfig())
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        expected = math.exp(mu) / (math.exp(mu) + 1 / plain - 1)
        torch.testing.assert_close(draws(config, num_tokens=tokens), expected, rtol=1e-5, atol=1e-7)
    medians = [draws(config, num_tokens=tokens).median().item() for tokens in range(0, 4097, 256)]
    assert medians == sorted(set(medians)) and medians[0] > 0.5
    assert draws(config, num_tokens=75_600).median().item() == medians[-1], "a clip's tokens do not take it further"


def test_the_resolution_s_shift_multiplies_the_shift_and_needs_no_tokens_when_off():
    both = draws(ObjectiveConfig(resolution_shift=True, shift=2.0), num_tokens=4096)
    torch.testing.assert_close(both, draws(ObjectiveConfig(shift=2 * math.exp(1.15))), rtol=1e-5, atol=1e-7)
    assert torch.equal(draws(ObjectiveConfig(), num_tokens=4096), draws(ObjectiveConfig(), num_tokens=0))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["timesteps"])
@pytest.mark.parametrize("extra", [{}, {"shift": 3.0}, {"resolution_shift": True}], ids=["plain", "shift", "tokens"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.3), (0.25, 0.9), (0.8, 1.0), (0.4, 0.45)])
def test_a_noise_window_holds_what_is_left_when_all_other_draws_are_rejected(shape, extra, low, high):
    whole = many(ObjectiveConfig(**shape, **extra))
    kept = whole[(whole >= low) & (whole <= high)]
    assert len(kept) > 1000
    windowed = draws(ObjectiveConfig(**shape, **extra, min_t=low, max_t=high), 20_000, num_tokens=1024)
    assert windowed.min() >= low - 1e-7 and windowed.max() <= high + 1e-7
    assert_same(windowed, kept)


@pytest.mark.parametrize(("low", "high"), [
    (0.0, 0.006), (0.004, 0.01), (0.99, 1.0), (0.99, 0.992), (0.5, 0.5001),
    (0.999, 1.0)])
def test_a_window_in_the_far_tail_and_a_narrow_one_follow_the_normal_distribution(low, high):
    def share_below(t):
        bounds = torch.tensor([low, high], dtype=torch.float64)
        mirror = -1 if low > 0.5 else 1  # the upper tail, where 1 - 1e-7 is a coarse number, by the lower one
        first, t, last = (torch.special.ndtr(mirror * torch.logit(value)) for value in (bounds[0], t, bounds[1]))
        return (t - first) / (last - first)

    t = draws(ObjectiveConfig(min_t=low, max_t=high))
    assert t.min() >= low - 1e-7 and t.max() <= high + 1e-7
    assert_follows(t.clamp(low, high), share_below)


EMPTY = [{"min_t": 0.999}, {"max_t": 0.001}, {"logit_std": 0.01, "min_t": 0.6}, {"logit_std": 0.01, "max_t": 0.4},
         {"logit_mean": 3, "logit_std": 0.5, "max_t": 0.1}, {"resolution_shift": True, "max_t": 0.5},
         {"timesteps": "beta", "beta_a": 20, "max_t": 0.1}]


@pytest.mark.parametrize("window", EMPTY, ids=str)
def test_no_draw_is_outside_a_window_that_the_distribution_hardly_reaches(window):
    config = ObjectiveConfig(**window)
    try:
        t = draws(config, 1000, num_tokens=32760)
    except UserError:
        return  # as good: it says that nothing is there
    assert t.min() >= config.min_t - 1e-6 and t.max() <= config.max_t + 1e-6


@pytest.mark.parametrize("shape", [*SHAPES, {"timesteps": "mode", "shift": 3.0, "min_t": 0.2, "max_t": 0.7}], ids=str)
@pytest.mark.parametrize("batch_size", [1, 4, 13])
def test_stratified_draws_have_one_in_each_of_as_many_equally_likely_parts(shape, batch_size):
    config = ObjectiveConfig(**shape, stratified=True)
    single = many(ObjectiveConfig(**shape)).sort().values
    random, batches = generator(1), []
    for _ in range(300):
        batches.append(objective.sample_timesteps(config, batch_size, random).double())
        share = torch.searchsorted(single, batches[-1]) / len(single)
        # a draw beside a boundary may fall to either side of it, as the shares are those of a sample
        nearest = ((share.sort().values - (torch.arange(batch_size) + 0.5) / batch_size).abs() * batch_size).max()
        assert nearest <= 0.5 + 0.005 * batch_size
    t = torch.stack(batches)
    assert_same(t.flatten(), single[::10])
    assert_same(t[:, 0], single[::10])  # each sample of a batch sees the whole distribution
    assert not torch.equal(t.argsort(1)[0], t.argsort(1)[1]) or batch_size == 1


@pytest.mark.parametrize("extra", [{}, {"stratified": True}, {"min_t": 0.2, "max_t": 0.4}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["timesteps"])
def test_the_draws_are_a_function_of_the_generator_and_fp32(shape, extra):
    config = ObjectiveConfig(**shape, **extra)
    torch.manual_seed(1)
    first, state = objective.sample_timesteps(config, 8, generator(5)), torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(objective.sample_timesteps(config, 8, generator(5)), first)
    assert not torch.equal(objective.sample_timesteps(config, 8, generator(6)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.dtype == torch.float32 and first.shape == (8,) and (0 < first).all() and (first < 1).all()


@pytest.mark.parametrize("settings", [
    {"timesteps": "sigmoid"}, {"weighting": ""}, {"loss": "l1"}, {"logit_std": 0.0}, {"logit_mean": math.nan},
    {"mode_scale": 1.76}, {"mode_scale": -1.01}, {"mode_scale": math.nan}, {"beta_a": 0.0}, {"beta_b": -1.0},
    {"shift": 0.0}, {"shift": math.inf}, {"min_t": -0.1}, {"max_t": 1.1}, {"min_t": 0.5, "max_t": 0.5},
    {"min_t": math.nan}, {"huber_delta": 0.0}, {"noise_offset": -0.1},
], ids=str)
def test_a_setting_that_means_nothing_is_a_sentence_that_names_it(settings):
    with pytest.raises(UserError, match="choose") as error:
        ObjectiveConfig(**settings)
    name = next(iter(settings))
    assert ("noise window" if name in ("min_t", "max_t") else name) in str(error.value)
