"""For tests of gradients: a model with an adapter that is not zero, set up as trainer/training/run.py does it.

Shape legend: B batch, C latent channels, F latent frames, H height, W width, L text tokens, D width of the text
encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

RANK, ALPHA = 4, 6.0
TEXT_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Batch:
    """What one loss is computed from."""

    latent_BCFHW: torch.Tensor
    text_BLD: torch.Tensor
    t_B: torch.Tensor
    noise_BCFHW: torch.Tensor
    further: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Conditions besides the text, as they come from a cache."""

    def double(self) -> Batch:
        """The same in float64: the model still computes in fp32, but what follows it does not round."""
        return Batch(self.latent_BCFHW.double(), self.text_BLD, self.t_B.double(), self.noise_BCFHW.double(),
                     self.further)


def random_batch(
    size_FHW: tuple[int, int, int], t: Sequence[float], device: torch.device, text_tokens: int = 20
) -> Batch:
    """One sample for each noise level.

    Args:
        size_FHW: latent frames, rows and columns.
        text_tokens: of the first caption, each further one has a token more; zeros follow up to 512.
    """
    generator = torch.Generator().manual_seed(3)
    latent_BCFHW, noise_BCFHW = torch.randn(2, len(t), 16, *size_FHW, generator=generator).to(device)
    text_BLD = torch.randn(len(t), TEXT_LENGTH, 4096, generator=generator)
    for index, row_LD in enumerate(text_BLD):
        row_LD[text_tokens + index :] = 0
    return Batch(latent_BCFHW, text_BLD.to(device), torch.tensor(t, device=device), noise_BCFHW)


def batch_of(name: str, size_FHW: tuple[int, int, int], t: Sequence[float], device: torch.device) -> Batch:
    """The same for a family of wan_models.py, with all its conditions."""
    from . import wan_models

    given = wan_models.conditions(name, size_FHW, len(t))
    generator = torch.Generator().manual_seed(3)
    channels = wan_models.family(name).latent_channels
    latent_BCFHW, noise_BCFHW = torch.randn(2, len(t), channels, *size_FHW, generator=generator).to(device)
    return Batch(latent_BCFHW, given.pop("text").to(device), torch.tensor(t, device=device), noise_BCFHW, given)


def plan_of(gradient_checkpointing: bool):
    """Each block computed again in backward, or none."""
    from wantune.trainer.memory.plan import EVERYTHING, Plan

    return Plan() if gradient_checkpointing else Plan(whole_blocks=EVERYTHING)


def compute_in_fp32(model) -> None:
    """As on a CPU, where ComfyUI casts every lower precision to fp32: lets the same bounds hold on a GPU."""
    if model.load_device.type != "cpu":
        model.set_model_compute_dtype(torch.float32)


class AdaptedModel:
    """A MODEL with an adapter of random A and B; with B = 0, where training starts, A has no gradient.

    Args:
        compile, products: as `ComfyDenoiser` has them.
    """

    def __init__(self, model, *, compile: str = "auto", products: str = "exact") -> None:
        from wantune.nodes.backend.denoiser import ComfyDenoiser
        from wantune.trainer.adapter.adapters import Adapter
        from wantune.trainer.settings.training import LoraConfig

        with torch.inference_mode():  # ComfyUI calls nodes in it
            self.denoiser = ComfyDenoiser(model)
            self.denoiser.compile, self.denoiser.products = compile, products
            with torch.inference_mode(False):
                self.linears = self.denoiser.linears()
                config = LoraConfig(rank=RANK, alpha=ALPHA)
                self.adapter = Adapter(config, self.linears, self.denoiser.device, seed=0)
                self.adapter.load_state_dict(self._random_state())

    def _random_state(self) -> dict[str, torch.Tensor]:
        # alpha / rank * B(A(x)) comes to about a third of the size of x
        generator = torch.Generator().manual_seed(1)
        state = self.adapter.state_dict()
        return {
            key: torch.randn(value.shape, generator=generator) * 0.5 * value.shape[1] ** -0.5
            for key, value in state.items()
        }

    @contextmanager
    def attached(self, plan=False) -> Iterator[tuple[str, ...]]:
        """Holds the adapter in the model and autograd on, as during a training step; gives the denoiser's sentences.

        Args:
            plan: or whether each block is computed again in backward.
        """
        plan = plan_of(plan) if isinstance(plan, bool) else plan
        with torch.inference_mode(), torch.inference_mode(False):
            with self.denoiser.attached(self.adapter, self.linears, plan, memory=0) as notes:
                with self.denoiser.training():
                    yield notes

    def loss_B(self, batch: Batch) -> torch.Tensor:
        """The trainer's loss of each sample, (B,); only while attached."""
        from wantune.trainer.training import objective

        return objective.denoising_loss(
            self.denoiser, batch.latent_BCFHW, self.conditions(batch), batch.t_B, batch.noise_BCFHW
        )

    def conditions(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The batch's conditions as the denoiser takes them."""
        return self.denoiser.prepared({"text": batch.text_BLD, **batch.further}, batch.latent_BCFHW.shape[2:])

    def trained(self, plan, batches: Sequence[Batch], steps: int = 20) -> tuple[list[float], torch.Tensor]:
        """Losses of training on the batches in turn, and the adapter after it, as one vector."""
        optimizer = torch.optim.AdamW(self.adapter.parameters, lr=1e-3)
        losses = []
        with self.attached(plan):
            for step in range(steps):
                loss = self.loss_B(batches[step % len(batches)]).mean()
                loss.backward()
                self.adapter.collect_gradients()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        return losses, torch.cat([value.flatten() for value in self.adapter.state_dict().values()])

    def gradients(self, loss_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """Gradients of the mean loss, by the keys of the adapter's state dict."""
        return dict(zip(self.adapter.state_dict(), gradients_of(self.adapter, loss_B.mean()), strict=True))


class FixedLinear:
    """W x of a plain tensor, as a Linear of a model that an adapter can be put beside."""

    is_plain, is_skipped = True, False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.out_features, self.in_features = weight.shape

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(
            x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def output(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return self(x) if out is None else out.copy_(self(x))

    def input_gradient(self, grad_output: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        grad_input = grad_output @ self.weight.to(grad_output.dtype)
        return grad_input if onto is None else onto.add_(grad_input)


def gradients_of(adapter, loss: torch.Tensor) -> list[torch.Tensor]:
    """Of the adapter's parameters, as the optimizer would find them; none is left in the parameters."""
    loss.backward()
    adapter.collect_gradients()
    gradients = [parameter.grad for parameter in adapter.parameters]
    adapter.discard_gradients()
    return gradients
