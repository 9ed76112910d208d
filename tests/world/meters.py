"""The two meters of a run, measured on a checkpoint: how much it has learned, and how far it has drifted.

They are those that training shows, but computed without its code, on the transformer of this folder, which a test
holds against ComfyUI's: so a fault in training cannot hide in its own measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import concept
from .dit import Transformer

LEARNED_AT = (1.0,)
DRIFTED_AT = (0.2, 0.5, 0.8)
"""Noise levels."""


class Meters:
    """Held-out stills of one world, encoded.

    Args:
        folder: with pictures and captions that are not trained on, which have the trigger word.
        base: the weights without a LoRA.
    """

    def __init__(self, examiner: concept.Examiner, folder: Path, base: Mapping[str, torch.Tensor]) -> None:
        pictures = sorted(folder.glob("*.png"))
        pixels_BFHW3 = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in pictures])[:, None]
        self._latent_BCFHW = examiner.vae.encode(pixels_BFHW3)
        generator = torch.Generator().manual_seed(0)
        self._noise_BCFHW = torch.randn(self._latent_BCFHW.shape, generator=generator)
        captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in pictures]
        without = [caption.replace(concept.TRIGGER_WORD, "").strip() for caption in captions]
        self._encode, self._captions, self._priors = examiner.text, captions, (without, [""] * len(captions))
        self._base = concept.transformer(base)

    def __call__(self, weights: Mapping[str, torch.Tensor]) -> tuple[float, float]:
        """learned: the share by which the loss with the trigger word is below the base's, from pure noise.
        drift: how far the velocity without the trigger word is from the base's, relative to it (root of the sums of
        squares), for captions without it and for none.
        """
        tuned = concept.transformer(weights)
        before, after = (sum(self._loss(model, level) for level in LEARNED_AT) for model in (self._base, tuned))
        moved = size = 0.0
        for captions in self._priors:
            for level in DRIFTED_AT:
                base = self._velocity(self._base, captions, level)
                moved += float((self._velocity(tuned, captions, level) - base).square().sum())
                size += float(base.square().sum())
        return 1 - after / before, (moved / size) ** 0.5

    def _loss(self, model: Transformer, level: float) -> float:
        target_BCFHW = self._noise_BCFHW - self._latent_BCFHW
        return float((self._velocity(model, self._captions, level) - target_BCFHW).square().mean())

    @torch.no_grad()
    def _velocity(self, model: Transformer, captions: list[str], level: float) -> torch.Tensor:
        text_BLD, length_B = self._encode(captions)
        x_BCFHW = (1 - level) * self._latent_BCFHW + level * self._noise_BCFHW
        return model(x_BCFHW, torch.full((len(captions),), level), text_BLD, length_B)
