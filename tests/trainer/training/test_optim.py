"""The optimizers learn, go on bit for bit from what was saved, and follow the schedules; averages change nothing."""

import importlib.util
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.trainer.base.errors import UserError
from wantune.trainer.runs.state import put_together, take_apart
from wantune.trainer.settings.training import OPTIMIZERS, SCHEDULES, OptimizerConfig
from wantune.trainer.training.optim import Averages, build_optimizer, rate_of_step

RATES = {"adamw": 0.02, "adamw8bit": 0.02, "prodigy": 1.0, "adafactor": 0.02, "lion": 0.005, "came": 0.005,
         "schedule_free": 0.05}


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    """Each optimizer whose package is there."""
    if request.param == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    return request.param


class Regression:
    """Two matrices, as in a LoRA, one of which starts at zero, and a vector that not every batch touches."""

    def __init__(self, config: OptimizerConfig, rate: float | None = None) -> None:
        random = torch.Generator().manual_seed(0)
        self.down = torch.nn.Parameter(torch.randn(4, 8, generator=random) / 3)
        self.up = torch.nn.Parameter(torch.zeros(6, 4))
        self.offset = torch.nn.Parameter(torch.zeros(6))
        self.target = torch.randn(6, 8, generator=random) / 2
        self.config, self.parameters, self.done = config, [self.down, self.up, self.offset], 0
        self.rate = rate or RATES[config.name]
        self.optimizer = build_optimizer(config, self.rate, self.parameters)
        self.averages = Averages(config, self.optimizer, self.parameters)

    def loss(self, x: torch.Tensor, has_offset: bool = True) -> torch.Tensor:
        y = x @ self.down.T @ self.up.T
        return (y + self.offset - x @ self.target.T - 0.1 if has_offset else y - x @ self.target.T).square().mean()

    def held_out(self) -> float:
        with torch.no_grad():
            return self.loss(torch.randn(256, 8, generator=torch.Generator().manual_seed(1))).item()

    def train(self, steps: int) -> list[float]:
        """A step is a function of its number, as in training."""
        losses = []
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * rate_of_step(self.config, 100, self.done)
            x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1000 + self.done))
            loss = self.loss(x, has_offset=self.done % 3 > 0)
            loss.backward()
            self.optimizer.step()
            self.averages.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            self.done += 1
        return losses

    def state(self) -> dict:
        return {"done": self.done, "parameters": [parameter.detach() for parameter in self.parameters],
                "optimizer": self.optimizer.state_dict(), "averages": self.averages.state_dict()}

    def load(self, state: dict) -> None:
        self.done = state["done"]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.load_state_dict(state["averages"])


def on_disk(state: dict, folder) -> dict:
    """What becomes of it in files."""
    data, tensors = take_apart(state)
    (folder / "state.json").write_text(json.dumps(data, allow_nan=False))
    save_file(tensors, folder / "state.safetensors")
    return put_together(json.loads((folder / "state.json").read_text()), load_file(folder / "state.safetensors"))


def assert_equal(first, second) -> None:
    """Nested values, and their types, bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key, value in first.items():
            assert_equal(value, second[key])
    elif isinstance(first, (list, tuple)):
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert first == second


def test_every_optimizer_learns(name):
    task = Regression(OptimizerConfig(name=name))
    before = task.held_out()
    task.train(100)
    with task.averages.in_place():
        assert task.held_out() < 0.5 * before


def test_what_is_not_installed_is_a_sentence_that_says_how(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    for name in OPTIMIZERS[1:]:
        package = "bitsandbytes" if name == "adamw8bit" else "pytorch-optimizer"
        with pytest.raises(UserError, match=f"{name} needs the package.*pip install {package}`, or choose adamw"):
            build_optimizer(OptimizerConfig(name=name), 1e-4, parameters)
    assert isinstance(build_optimizer(OptimizerConfig(), 1e-4, parameters), torch.optim.AdamW)


def test_the_settings_reach_the_optimizer(name):
    config = OptimizerConfig(name=name, beta1=0.7, beta2=0.8, eps=1e-3, weight_decay=0.25)
    group = build_optimizer(config, 0.125, [torch.nn.Parameter(torch.zeros(2))]).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.125, 0.25)
    assert group["betas"][:2] == ((None, 0.8) if name == "adafactor" else (0.7, 0.8))
    assert group.get("eps", 1e-3) == 1e-3


WITHOUT = {"adafactor": {"beta1", "eps"}, "lion": {"eps"}, "came": {"eps"}}
"""Settings that an optimizer does not use, as the nodes and their help say."""


def test_what_an_optimizer_does_without_changes_nothing_and_all_else_does(name):
    def trained(**changes) -> list[torch.Tensor]:
        task = Regression(OptimizerConfig(**{"name": name, "weight_decay": 0.1, **changes}))
        task.train(5)
        return task.state()["parameters"]

    plain = trained()
    for setting, value in {"beta1": 0.5, "beta2": 0.3, "eps": 0.1, "weight_decay": 0.5}.items():
        is_same = all(map(torch.equal, plain, trained(**{setting: value})))
        assert is_same == (setting in WITHOUT.get(name, ())), setting


def test_adamw_is_the_formula_of_its_paper():
    """arXiv:1711.05101, algorithm 2."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = build_optimizer(OptimizerConfig(beta1=0.8, beta2=0.9, eps=1e-4, weight_decay=0.1), 0.05, [parameter])
    expected, first, second = parameter.detach().clone(), torch.zeros(2), torch.zeros(2)
    for step in range(1, 6):
        gradient = expected**3
        parameter.grad = parameter.detach() ** 3
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        direction = first / (1 - 0.8**step) / ((second / (1 - 0.9**step)).sqrt() + 1e-4)
        expected = expected - 0.05 * (direction + 0.1 * expected)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ema_decay", [0.0, 0.95], ids=["no average", "average"])
@pytest.mark.parametrize("saved_at", [1, 7])
def test_what_is_saved_goes_on_bit_for_bit(name, ema_decay, saved_at, tmp_path):
    config = OptimizerConfig(name=name, ema_decay=ema_decay, schedule="cosine", warmup_steps=4)
    undisturbed, saved = Regression(config), Regression(config)
    undisturbed.train(saved_at)
    saved.train(saved_at)
    with saved.averages.in_place():
        pass  # as a checkpoint does
    state = on_disk(saved.state(), tmp_path)
    assert_equal(state, saved.state())
    resumed = Regression(config)
    resumed.load(state)
    saved.train(3)  # what goes on must not change what was handed out
    assert resumed.train(30) == undisturbed.train(30)
    assert_equal(resumed.state(), undisturbed.state())
    with resumed.averages.in_place(), undisturbed.averages.in_place():
        assert_equal(resumed.held_out(), undisturbed.held_out())


def of_diffusers(config: OptimizerConfig, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The published schedule, one step longer at both ends, on an optimizer whose rate is 1."""
    from diffusers import optimization

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    rise, end = {"num_warmup_steps": config.warmup_steps + 1}, {"num_training_steps": total + 1}
    return {
        "constant": lambda: optimization.get_constant_schedule_with_warmup(optimizer, **rise),
        "linear": lambda: optimization.get_linear_schedule_with_warmup(optimizer, **rise, **end),
        "cosine": lambda: optimization.get_cosine_schedule_with_warmup(optimizer, **rise, **end),
        "cosine_with_restarts": lambda: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, **rise, **end, num_cycles=config.cycles),
        "polynomial": lambda: optimization.get_polynomial_decay_schedule_with_warmup(
            optimizer, **rise, **end, power=config.power),
    }[config.schedule]()


@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_is_that_of_diffusers_stepped_one_by_one_from_its_second_step(schedule, warmup_steps):
    """Its first step of a rise and the one after the last of a fall have the rate 0."""
    total, config = 40, OptimizerConfig(schedule=schedule, warmup_steps=warmup_steps, cycles=3, power=2.5)
    scheduler, rates = of_diffusers(config, total), []
    for _ in range(total):
        scheduler.optimizer.step()
        scheduler.step()
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
    assert [rate_of_step(config, total, step) for step in range(total)] == rates


@pytest.mark.parametrize("shape", [
    {"schedule": "constant"}, {"schedule": "linear"}, {"schedule": "cosine"},
    *({"schedule": "cosine_with_restarts", "cycles": cycles} for cycles in (1, 2, 3)),
    *({"schedule": "polynomial", "power": power} for power in (0, 0.5, 1, 2))], ids=lambda shape: "-".join(
        map(str, shape.values())))
def test_every_rate_has_the_bits_of_diffusers_also_after_the_end(shape):
    for warmup_steps in range(21):
        config = OptimizerConfig(**shape, warmup_steps=warmup_steps)
        for total in range(1, 51):
            (expected,) = of_diffusers(config, total).lr_lambdas
            for step in range(total + 25):
                if not (config.schedule == "polynomial" and step == total == warmup_steps):  # diffusers divides by 0
                    assert rate_of_step(config, total, step) == expected(step + 1), (warmup_steps, total, step)


@pytest.mark.parametrize("warmup_steps", [0, 10])
@pytest.mark.parametrize(("schedule", "fall"), [
    ("constant", lambda p: 1.0), ("linear", lambda p: 1 - p), ("cosine", lambda p: (1 + math.cos(math.pi * p)) / 2),
    ("cosine_with_restarts", lambda p: (1 + math.cos(math.pi * (2 * p % 1))) / 2),
    ("polynomial", lambda p: (1 - p) ** 3)])
def test_the_rate_rises_in_the_warm_up_and_falls_from_1_in_what_is_left(schedule, fall, warmup_steps):
    total = 50
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup_steps, cycles=2, power=3)
    rise = [(step + 1) / (warmup_steps + 1) for step in range(warmup_steps)]
    rest = [fall(step / (total - warmup_steps)) for step in range(total - warmup_steps)]
    assert [rate_of_step(config, total, step) for step in range(total)] == pytest.approx([*rise, *rest], abs=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 10_000])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 11])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_of_a_short_run_learns(schedule, total, warmup_steps):
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup_steps, cycles=100, power=0.5)
    rates = [rate_of_step(config, total, step) for step in range(total)]
    assert all(isinstance(rate, (int, float)) and 0 < rate <= 1 for rate in rates)


def test_the_rate_is_a_function_of_the_step_alone():
    config = OptimizerConfig(schedule="cosine")
    forwards = [rate_of_step(config, 30, step) for step in range(30)]
    assert [rate_of_step(config, 30, step) for step in reversed(range(30))] == forwards[::-1]


@pytest.mark.parametrize("config", [OptimizerConfig(ema_decay=0.9), OptimizerConfig(name="schedule_free"),
                                    OptimizerConfig(name="schedule_free", ema_decay=0.9), OptimizerConfig()], ids=str)
def test_the_average_stands_in_their_place_and_the_trained_values_come_back_bit_for_bit(config):
    task, other = Regression(config), Regression(config)
    for _ in range(5):
        task.train(4)
        other.train(4)
        own = [parameter.detach().clone() for parameter in task.parameters]
        with pytest.raises(KeyboardInterrupt), task.averages.in_place():
            is_own = all(torch.equal(now, value) for now, value in zip(task.parameters, own, strict=True))
            assert is_own == (config == OptimizerConfig())
            raise KeyboardInterrupt  # Cancel, while it is measured
        assert_equal([parameter.detach() for parameter in task.parameters], own)
    assert_equal(task.state(), other.state())


def test_in_place_is_the_shadow_or_schedule_free_s_own_average():
    task = Regression(OptimizerConfig(ema_decay=0.9))
    task.train(9)
    with task.averages.in_place():
        assert_equal([each.detach() for each in task.parameters], task.averages.state_dict()["shadow"])
    free = Regression(OptimizerConfig(name="schedule_free", beta1=0.8))
    free.train(9)
    for parameter in free.parameters:
        z = free.optimizer.state[parameter]["z"]
        x = (parameter.detach() - 0.2 * z) / 0.8  # arXiv:2405.15682: y = (1 - beta) z + beta x
        with free.averages.in_place():
            torch.testing.assert_close(parameter.detach(), x, rtol=1e-5, atol=1e-6)


def test_the_moving_average_is_its_formula():
    """diffusers' EMAModel: the decay of its n-th step, from 0, is n ? (1 + n) / (10 + n) : 0, at most ema_decay."""
    task = Regression(OptimizerConfig(ema_decay=0.5))
    expected = [parameter.detach().double() for parameter in task.parameters]
    for n in range(25):
        task.train(1)
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = [decay * old + (1 - decay) * now.detach().double()
                    for old, now in zip(expected, task.parameters, strict=True)]
        for shadow, value in zip(task.averages.state_dict()["shadow"], expected, strict=True):
            torch.testing.assert_close(shadow.double(), value, rtol=1e-5, atol=1e-6)


def test_without_a_moving_average_there_is_nothing_to_keep():
    task = Regression(OptimizerConfig())
    task.train(2)
    assert task.averages.state_dict() == {}
    task.averages.load_state_dict({})


def test_schedule_free_without_momentum_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="beta1"):
        build_optimizer(OptimizerConfig(name="schedule_free", beta1=0.0), 1e-3, [torch.nn.Parameter(torch.zeros(2))])
