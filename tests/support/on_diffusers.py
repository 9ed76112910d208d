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

    def __init__(self, denoiser: DiffusersDenoiser, state: Mapping[str, torch.Tensor] | None = None) -> None:
        self.denoiser, self.linears = denoiser, denoiser.linears()
        self.adapter = Adapter(LoraConfig(rank=RANK, alpha=ALPHA), self.linears, CPU, seed=0)
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


def state_of(transformer) -> dict[str, torch.Tensor]:
    """Copies of its parameters and buffers, to compare with later."""
    found = dict(transformer.named_parameters()) | dict(transformer.named_buffers())
    return {name: value.detach().clone() for name, value in found.items()}


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Difference of two tensors of one shape, relative to the second."""
    assert value.shape == reference.shape and reference.norm() > 0
    return float((value.double() - reference.double()).norm() / reference.double().norm())
