"""A model of one Linear over the channels and samples for it: tests of the loop train it in milliseconds."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import torch

from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded.cache import CachedDataset, CachedSample
from wantune.trainer.encoded.store import Store
from wantune.trainer.memory.choice import Space
from wantune.trainer.memory.sizes import ModelSize
from wantune.trainer.model.wan21 import WAN21_T2V

from .adapted import FixedLinear

NAME = "blocks.0.self_attn.q"


class Roomy:
    """What a denoiser in a GiB of memory answers to the memory plan; it writes down what it is told."""

    def space(self):
        return Space(free=1 << 30, ram=0, offloads=False)

    def make_room(self, memory):
        self.made_room = memory

    def keep_free(self, memory):
        self.kept_free = memory

    def change_plan(self, plan):
        self.plan = plan

    def reload(self):
        self.reloaded = 1 + getattr(self, "reloaded", 0)


class SmallModel(Roomy):
    """All that trainer/model/backend.py asks of a model.

    Args:
        not_finite: the predictions in training, counted from 1, that are nan.
    """

    id, family = "small", WAN21_T2V
    device, compute_dtype = torch.device("cpu"), torch.float32

    def __init__(self, not_finite: tuple[int, ...] = ()) -> None:
        self._not_finite = not_finite
        self.trained = 0
        """Predictions in training."""

    def linear_sizes(self):
        return {NAME: (16, 16)}

    def linears(self):
        return {NAME: FixedLinear(torch.eye(16))}

    @contextmanager
    def attached(self, adapter, linears, plan, memory):
        self.adapter, self._forward = adapter, adapter.forward_of(NAME, torch.float32)
        yield ()

    @contextmanager
    def training(self):
        with torch.enable_grad():
            yield

    def prepared(self, conditions, size_FHW):
        return conditions

    def velocity(self, x_BCFHW, t_B, conditions):
        velocity = self._forward(x_BCFHW.movedim(1, -1)).movedim(-1, 1) + t_B.view(-1, 1, 1, 1, 1)
        if torch.is_grad_enabled():
            self.trained += 1
            if self.trained in self._not_finite:
                return velocity * torch.nan
        return velocity

    @property
    def size(self):
        return ModelSize(dim=16, ffn_dim=16, heads=1, blocks=1, weights=1024, block_values=256, value=4, are_cast=False,
                         stored=1024)


def dataset(folder: Path, count: int = 5, held_out: int = 0) -> CachedDataset:
    """So many latents of two sizes to train on, every second with a mask, and some that are held out."""
    store, random = Store(folder), torch.Generator().manual_seed(0)
    text, prior, mask = store.path("texts", "text"), store.path("texts", "prior"), store.path("masks", "mask")
    store.write(text, torch.zeros(1, WAN21_T2V.text_width))
    store.write(prior, torch.ones(2, WAN21_T2V.text_width))
    store.write(mask, torch.tensor([[0.0, 1.0], [0.5, 1.0]]))
    samples = []
    for number in range(count + held_out):
        path, frames = store.path("latents", str(number)), 1 + number % 2
        store.write(path, torch.randn(16, frames, 2, 2, generator=random))
        samples.append(CachedSample(f"{number}.png", Bucket(4 * frames - 3, 16, 16), 1, (path,), ({"text": text},),
                                    prior_captions=({"text": prior},), mask_path=mask if number % 2 else None))
    return CachedDataset(WAN21_T2V, tuple(samples[:count]), tuple(samples[count:]), "digest", "zwx",
                         ("",) * len(samples))
