"""Tiny models of wan_models.py as diffusers' transformer, with what is asked of a denoiser in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from wantune.trainer.adapter.adapters import Adapter
from wantune.trainer.memory.plan import Plan
from wantune.trainer.runs.events import StepDone
from wantune.trainer.settings.training import LoraConfig, TrainConfig
from wantune.trainer.training.run import Run
from wantune.trainer.wan_diffusers.denoiser import DiffusersDenoiser
from wantune.trainer.wan_diffusers.loading import family_of_transformer, load_transformer

from . import wan_models
from .adapted import ALPHA, RANK, Batch, gradients_of

CPU = torch.device("cpu")
LORA = LoraConfig(rank=RANK, alpha=ALPHA)


def denoiser(name: str, folder: Path, dtype: torch.dtype = torch.float32, quantization: str = "none", **sizes):
    """That of a family, from a file of random weights as `wan_models.load` has them."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        wan_models.write(name, path, **sizes)
    return of(load_transformer(path, dtype, CPU, quantization))


def of(transformer) -> DiffusersDenoiser:
    """The denoiser of a transformer."""
    return DiffusersDenoiser(transformer, family_of_transformer(transformer), CPU)


class Adapted:
    """A denoiser with an adapter.

    Args:
        state: of the adapter; None where it stays as it begins.
    """

    def __init__(
        self, denoiser: DiffusersDenoiser, state: Mapping[str, torch.Tensor] | None = None, config: LoraConfig = LORA
    ) -> None:
        self.denoiser, self.linears = denoiser, denoiser.linears()
        self.adapter = Adapter(config, self.linears, CPU, seed=0)
        if state is not None:
            self.adapter.load_state_dict(state)

    @contextmanager
    def attached(self, plan: Plan | None = None) -> Iterator[None]:
        """As during a training step."""
        with self.denoiser.attached(self.adapter, self.linears, plan or Plan(), 0), self.denoiser.training():
            yield

    def velocity(self, x_BCFHW: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Of a noisy latent by a batch's conditions; only while attached."""
        conditions = self.denoiser.prepared({"text": batch.text_BLD, **batch.further}, x_BCFHW.shape[2:])
        return self.denoiser.velocity(x_BCFHW, batch.t_B, conditions)

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """By the keys of the adapter's state dict."""
        return dict(zip(self.adapter.state_dict(), gradients_of(self.adapter, loss), strict=True))


def trained(denoiser, dataset, config: TrainConfig, folder: Path) -> tuple[Run, list[float]]:
    """A run on either backend, with its losses."""
    losses = []
    with torch.inference_mode(False):
        run = Run(denoiser, dataset, "run", config, folder)
        with closing(run.events()) as events:
            losses = [event.loss for event in events if isinstance(event, StepDone)]
    return run, losses


class Snapshot:
    """What must be the same after training: parameters and buffers, flags, forwards, hooks."""

    def __init__(self, transformer) -> None:
        self.transformer = transformer
        self.tensors = {name: value.detach().clone() for name, value in self._now().items()}
        self.flags = {name: value.requires_grad for name, value in transformer.named_parameters()}
        self.is_training = [module.training for module in transformer.modules()]

    def _now(self) -> dict[str, torch.Tensor]:
        found = [*self.transformer.named_parameters(), *self.transformer.named_buffers()]
        return {key: part for name, value in found for key, part in _parts(name, value)}

    def assert_untouched(self) -> None:
        """Fails on the first difference."""
        now = self._now()
        assert list(now) == list(self.tensors)
        for name, value in self.tensors.items():
            assert torch.equal(now[name], value), name
        assert {name: value.requires_grad for name, value in self.transformer.named_parameters()} == self.flags
        assert [module.training for module in self.transformer.modules()] == self.is_training
        for name, module in self.transformer.named_modules():
            assert "forward" not in module.__dict__, name
            assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks, name


def _parts(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor, or what a quantised one consists of, as bytes."""
    if hasattr(value, "__tensor_flatten__"):
        for each in value.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{each}", getattr(value, each))
    else:
        yield f"{name} {value.dtype} {tuple(value.shape)}", value.detach().contiguous().view(-1).view(torch.uint8)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Difference of two tensors of one shape, relative to the second."""
    assert value.shape == reference.shape and reference.norm() > 0
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).norm() / reference.norm())
