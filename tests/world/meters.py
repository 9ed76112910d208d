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

LEARNED_AT = (0.9, 1.0)
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
        """learned: the share of the way from the base to the pictures that the velocity with the trigger word has gone.
        drift: how far the velocity without the trigger word is from the base's, relative to it (root of the sums of
        squares), for captions without it and for none.
        """
        tuned = concept.transformer(weights)
        learned = sum(self._learned(tuned, level) for level in LEARNED_AT) / len(LEARNED_AT)
        moved = size = 0.0
        for captions in self._priors:
            for level in DRIFTED_AT:
                base = self._velocity(self._base, captions, level)
                moved += float((self._velocity(tuned, captions, level) - base).square().sum())
                size += float(base.square().sum())
        return learned, (moved / size) ** 0.5

    def _learned(self, tuned: Transformer, level: float) -> float:
        base = self._velocity(self._base, self._captions, level)
        way = (self._noise_BCFHW - self._latent_BCFHW - base).flatten()
        gone = (self._velocity(tuned, self._captions, level) - base).flatten()
        return float(gone @ way / (way @ way))

    @torch.no_grad()
    def _velocity(self, model: Transformer, captions: list[str], level: float) -> torch.Tensor:
        text_BLD, length_B = self._encode(captions)
        x_BCFHW = (1 - level) * self._latent_BCFHW + level * self._noise_BCFHW
        return model(x_BCFHW, torch.full((len(captions),), level), text_BLD, length_B)
