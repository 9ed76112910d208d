"""Switches of the process, for the time of a step."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from wantune.tests.support import small_model
from wantune.tests.support.small_model import SmallModel
from wantune.trainer.base import switches
from wantune.trainer.base.errors import UserError
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig
from wantune.trainer.training.run import Run


def state() -> tuple[bool, bool, bool]:
    return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory)


@pytest.fixture(params=[(False, False, True), (True, True, True), (True, False, False)], ids=str)
def before(request):
    kept = state()

    def set_to(is_on, warn_only, fills):
        torch.use_deterministic_algorithms(is_on, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fills

    set_to(*request.param)
    yield request.param
    set_to(*kept)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_deterministic_is_put_back(before, error):
    with contextlib.suppress(ValueError, KeyboardInterrupt), switches.deterministic(True):
        # where warnings are all that is asked for, the backward of attention on CUDA stays as it is
        assert state() == (True, False, False)
        if error:
            raise error
    assert state() == before
    with switches.deterministic(False):
        assert state() == before


def test_a_kernel_that_is_not_deterministic_is_told_with_what_to_do(before):
    with pytest.raises(UserError, match="switch deterministic off. .put_.* does not have a deterministic"):
        with switches.deterministic(True):
            raise RuntimeError("put_ with accumulate=False does not have a deterministic implementation, but you set")
    with pytest.raises(RuntimeError, match="something else"), switches.deterministic(True):
        raise RuntimeError("something else")
    assert state() == before


@pytest.mark.parametrize("variable", [None, ":4096:8", ":16:8", ":8:8"])
def test_on_cuda_the_process_must_have_been_started_for_it(monkeypatch, variable):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if variable:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", variable)
    is_refused = variable in (None, ":8:8")
    with pytest.raises(UserError, match="start it with --deterministic") if is_refused else contextlib.nullcontext():
        switches.check_deterministic(torch.device("cuda"))
    switches.check_deterministic(torch.device("cpu"))
    monkeypatch.setattr(torch.version, "cuda", None)  # as with ROCm
    switches.check_deterministic(torch.device("cuda"))


@pytest.mark.parametrize("is_on", [False, True])
def test_forward_and_backward_of_a_step_are_deterministic_and_nothing_else_is(tmp_path, is_on):
    seen = {"forward": set(), "backward": set(), "between": set()}

    class Model(SmallModel):
        def velocity(self, *args):
            velocity = super().velocity(*args)
            seen["forward"].add(state()[:2])
            velocity.register_hook(lambda _grad: seen["backward"].add(state()[:2]))
            return velocity

    config = TrainConfig(epochs=1, deterministic=is_on, lora=LoraConfig(rank=2),
                         validation=ValidationConfig(every_minutes=0, evaluate_epochs=0))
    run = Run(Model(), small_model.dataset(tmp_path / "cache"), "run", config, tmp_path / "runs")
    for _ in run.events():
        seen["between"].add(state()[:2])
    assert seen == {"forward": {(is_on, False)}, "backward": {(is_on, False)}, "between": {(False, False)}}


def test_it_makes_no_other_run(tmp_path):
    plain = TrainConfig()
    assert TrainConfig(deterministic=True).identity() == plain.identity()


@pytest.mark.parametrize("was", [False, True])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_sums_in_fp16_are_off_and_put_back(was, error):
    matmul = torch.backends.cuda.matmul
    kept = matmul.allow_fp16_accumulation
    matmul.allow_fp16_accumulation = was
    try:
        with contextlib.suppress(ValueError, KeyboardInterrupt), switches.full_sums():
            assert matmul.allow_fp16_accumulation is False
            if error:
                raise error
        assert matmul.allow_fp16_accumulation is was
    finally:
        matmul.allow_fp16_accumulation = kept


def test_a_torch_without_that_switch_is_left_alone(monkeypatch):
    matmul = SimpleNamespace()
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    with switches.full_sums():
        assert not vars(matmul)
    assert not vars(matmul)
