"""What WanTune is compared with inside ComfyUI: a bare loop with the same adapters, and core's own TrainLoraNode.

Shape legend: B batch, C latent channels, F latent frames, H height, W width, L text tokens, D width of the text
encoder, K text rows after trainer/model/text_padding.py has folded the padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.sd
import peft
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..trainer.encoded import cache
from ..trainer.encoded.batches import read_batch
from ..trainer.model import text_padding
from ..trainer.model.wan21 import WAN21_T2V

BARE_T = 0.5
"""Noise level of `Given`, in 0..1."""


class Given:
    """One batch that is trained on again and again: noisy latents, their noise levels, texts, and the velocity.

    Args:
        samples: of one bucket.
        folded: few text rows and their attention bias, as we train on; otherwise 512 padded rows, as others do.
    """

    def __init__(
        self, samples: Sequence[cache.CachedSample], device: torch.device, dtype: torch.dtype, folded: bool
    ) -> None:
        batch = read_batch([sample.visit(0) for sample in samples], WAN21_T2V.conditions)
        latent_BCFHW, text_BLD = batch.latent_BCFHW, batch.conditions["text"]
        noise_BCFHW = torch.randn(latent_BCFHW.shape, generator=torch.Generator().manual_seed(1))
        self.x_BCFHW = ((1 - BARE_T) * latent_BCFHW + BARE_T * noise_BCFHW).to(device, dtype)
        self.velocity_BCFHW = (noise_BCFHW - latent_BCFHW).to(device)
        self.t_B = torch.full((len(samples),), 1000 * BARE_T, device=device)
        self.bias_B11K = None
        if folded:
            num_tokens = WAN21_T2V.num_tokens(samples[0].bucket)
            text_BLD, bias_BK = text_padding.fold(text_BLD, dtype, WAN21_T2V.text_length, other_than=num_tokens)
            self.bias_B11K = bias_BK[:, None, None].to(device)
        else:
            text_BLD = text_padding.pad(text_BLD, WAN21_T2V.text_length)
        self.text_BLD = text_BLD.to(device, dtype)


class Bare:
    """A forward and a backward and nothing else: PEFT put on ComfyUI's network itself, as a script would.

    The network is loaded outside inference mode, so that autograd takes its weights as they are.

    Args:
        path: of the transformer.
        folded: give it our few text rows and their attention bias, instead of 512 padded rows.
    """

    def __init__(
        self, path: Path, sample: cache.CachedSample, rank: int, checkpointing: bool, folded: bool
    ) -> None:
        model = comfy.sd.load_diffusion_model(str(path))
        self.network = model.model.diffusion_model.requires_grad_(False).to(model.load_device)
        names = [f"blocks.{i}.{name}" for i in range(len(self.network.blocks)) for name in WAN21_T2V.trained]
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, bias="none"), self.network
        )
        if checkpointing:
            for block in self.network.blocks:
                block.forward = _checkpointed(block.forward)
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._given = Given([sample], model.load_device, model.model.get_dtype(), folded)

    def step(self) -> None:
        """One forward and backward; the gradients are thrown away."""
        with _in_training():
            self.loss().backward()
        for parameter in self.parameters:
            parameter.grad = None

    def loss(self) -> torch.Tensor:
        """The mean squared error of the velocity that the network with its adapters predicts."""
        options = {"optimized_attention_override": self._attention}
        given = self._given
        velocity = self.network(given.x_BCFHW, given.t_B, context=given.text_BLD, transformer_options=options)
        return functional.mse_loss(velocity.float(), given.velocity_BCFHW)

    def _attention(self, _function, q, k, v, heads, mask=None, **kwargs) -> torch.Tensor:
        if self._given.bias_B11K is not None and k.shape[1] == self._given.text_BLD.shape[1]:
            mask = self._given.bias_B11K
        return attention_pytorch(q, k, v, heads, mask=mask, **kwargs)


def _checkpointed(function):
    def forward(*args, **kwargs):
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward


@contextmanager
def _in_training() -> Iterator[None]:
    """Keeps newer versions of ComfyUI from using kernels that have no backward."""
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = False


def train_with_core(
    model, dataset: cache.CachedDataset, steps: int, rank: int, checkpointing: bool, batch_size: int = 1,
    dtype: str = "fp32", learning_rate: float = 1e-4, seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Run TrainLoraNode on the data as its graph would give it; returns its LoRA.

    Its inputs differ between versions of ComfyUI; what is not set here stays at the node's default.

    Args:
        dtype: "fp32" or "bf16", of its products.
    """
    from comfy_extras.nodes_train import TrainLoraNode

    batches = [read_batch([sample.visit(0)], WAN21_T2V.conditions) for sample in dataset.samples]
    chosen = {
        "model": model,
        "batch_size": batch_size,
        "steps": steps,
        "learning_rate": learning_rate,
        "rank": rank,
        "seed": seed,
        "training_dtype": dtype,
        "lora_dtype": "fp32",
        "gradient_checkpointing": checkpointing,
    }
    inputs = {}
    for socket in TrainLoraNode.define_schema().inputs:
        inputs[socket.id] = [chosen.get(socket.id, getattr(socket, "default", None))]
    # as VAE Encode gives them: the node normalises them
    inputs["latents"] = [{"samples": model.model.process_latent_out(batch.latent_BCFHW)} for batch in batches]
    texts = [text_padding.pad(batch.conditions["text"], WAN21_T2V.text_length) for batch in batches]
    inputs["positive"] = [[[text_BLD, {}]] for text_BLD in texts]
    with torch.inference_mode():  # as ComfyUI runs its nodes
        result = TrainLoraNode.execute(**inputs).result
    return next(value for value in result if isinstance(value, dict) and "loss" not in value)
