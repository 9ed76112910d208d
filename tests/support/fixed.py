"""A model, a dataset and settings whose every number is the same bits on every machine, for runs that are compared.

What is random elsewhere comes from whole numbers of numpy's generator here, divided by a power of two: torch's normal
numbers may differ in the last bit between processors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded import cache, store
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.settings.training import (
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)

from . import tools

STEPS = 20

_NORMS = ("norm_q.weight", "norm_k.weight", "norm3.weight")


def tensor(shape: tuple[int, ...], key: object, scale: float = 1.0) -> torch.Tensor:
    """fp32 of this shape, multiples of scale / 64 between -2 and 2 times scale; a function of the key."""
    seed = int(hashlib.sha256(str(key).encode()).hexdigest()[:8], 16)
    values = np.random.default_rng(seed).integers(-128, 129, size=shape)
    return torch.from_numpy(values.astype(np.float32) / 64 * scale)


def dit(folder: Path) -> Path:
    """A transformer of two blocks of width 128."""
    state = {}
    for key, value in load_file(tools.random_dit(folder)).items():
        width = value[0].numel() if value.ndim > 1 else 0
        scale = 2.0 ** -round(np.log2(max(1, width)) / 2) if width else 2.0**-5
        mean = 1.0 if key.endswith(_NORMS) else 0.0
        state[key] = (mean + tensor(value.shape, key, scale)).to(value.dtype)
    path = folder / "dit.safetensors"
    save_file(state, path)
    return path


def dataset(folder: Path) -> cache.CachedDataset:
    """Six samples of two shapes with captions of different lengths, three of them masked; captions are dropped."""
    samples = []
    for number in range(6):
        size_FHW = (1, 8, 8) if number % 2 else (2, 8, 4)
        latent, text, mask, empty = (folder / f"{kind}_{number}.safetensors"
                                     for kind in ("latent", "text", "mask", "empty"))
        store.write_tensor(latent, tensor((16, *size_FHW), f"latent {number}"))
        store.write_tensor(text, tensor((5 + number, 4096), f"text {number}"))
        store.write_tensor(empty, tensor((2, 4096), "empty"))
        store.write_tensor(mask, tensor(size_FHW[1:], f"mask {number}").abs().clamp(0, 1))
        samples.append(cache.CachedSample(
            name=f"{number}.png", repeats=2, latent_paths=(latent,), captions=({"text": text},),
            bucket=Bucket(frames=4 * (size_FHW[0] - 1) + 1, height=8 * size_FHW[1], width=8 * size_FHW[2]),
            mask_path=mask if number < 3 else None, empty_caption={"text": empty}, caption_dropout=0.3))
    return cache.CachedDataset(family=WAN21_T2V, samples=tuple(samples), held_out=(), digest="exact",
                               trigger_word="zwx", captions=("a caption",) * 6)


def plain() -> TrainConfig:
    """The node's defaults, but for the length, the batch and the rank."""
    return TrainConfig(epochs=99, max_steps=STEPS, batch_size=2, learning_rate=1e-3, lora=LoraConfig(rank=4, alpha=4),
                       validation=ValidationConfig(every_minutes=0))


def everything() -> TrainConfig:
    """Another adapter, and every setting that changes a step."""
    return TrainConfig(
        epochs=99, max_steps=STEPS, batch_size=2, learning_rate=2e-3, seed=5, gradient_checkpointing=False,
        lora=LoraConfig(rank=4, alpha=8, kind="lokr", dropout=0.1, lokr_factor=4),
        objective=ObjectiveConfig(shift=3, resolution_shift=True, min_t=0.1, max_t=0.95, stratified=True,
                                  weighting="cosmap", loss="huber", huber_delta=0.5, noise_offset=0.1),
        optimizer=OptimizerConfig(schedule="cosine", warmup_steps=3, accumulation=2, ema_decay=0.9, weight_decay=0.1,
                                  max_grad_norm=0.5),
        validation=ValidationConfig(every_minutes=0))


class Codec:
    """Stands for the VAE: a latent that is a function of the pixels' bytes."""

    id = "codec of before"

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        frames, height, width, _ = pixels_FHW3.shape
        return tensor((16, (frames - 1) // 4 + 1, height // 8, width // 8),
                      hashlib.sha256(pixels_FHW3.tobytes()).hexdigest())


class Text:
    """Stands for UMT5: four rows that are a function of the caption."""

    id = "text encoder of before"

    def encode(self, caption: str) -> torch.Tensor:
        return tensor((4 if caption else 1, 4096), caption)
