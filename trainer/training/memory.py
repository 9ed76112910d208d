"""The memory plan of a run: what is needed and what is there, decided before anything is moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError

from ..adapter.adapter_size import adapter_size
from ..data.buckets import Bucket
from ..encoded.cache import CachedDataset
from ..encoded.store import num_rows
from ..memory.choice import Choice, Needs, choose
from ..memory.footprint import lasting
from ..memory.plan import EVERYTHING, Plan, below
from ..memory.sizes import Work
from ..model import text_padding
from ..model.backend import Denoiser
from ..settings.training import TrainConfig

MORE = 0.25
"""Of what steps use for a while; so much more is left free where there is no smaller plan."""


class Shown(Protocol):
    """What of previews counts for memory."""

    tokens: int
    """Of one video that is sampled beside the weights; 0 where training steps aside for it."""
    decoding: int
    """Bytes that are taken for it while the weights may be gone: by the VAE with its own weights, or by a sampler for
    which training steps aside."""


class MemoryPlan:
    """What a run keeps of its forward passes, and what is left free for what.

    Args:
        previews: None where there are none.
        beside: bytes on the device that something else will take.

    Raises:
        UserError: it does not fit; the sentence names the smallest change with which it does.
    """

    def __init__(
        self, denoiser: Denoiser, dataset: CachedDataset, config: TrainConfig, previews: Shown | None = None,
        beside: int = 0,
    ) -> None:
        self._denoiser = denoiser
        self._needs = needs(denoiser, dataset, config, previews)
        space = denoiser.space()
        space = replace(space, free=space.free - beside)
        self._has_ram, self._offloads = space.ram > 0, space.offloads
        self.choice: Choice = choose(self._needs, space)
        self._passing = self.choice.parts.passing

    @property
    def plan(self) -> Plan:
        """The plan that was chosen."""
        return self.choice.plan

    def told(self) -> str:
        """What it takes and what there is, in a sentence."""
        return self.choice.told()

    def make_room(self) -> None:
        """Have free what will be there beside the weights, before any of it is."""
        self._denoiser.make_room(self.choice.parts.lasting + self._passing)

    @property
    def to_come(self) -> int:
        """Bytes to leave free when the adapter is there, but neither the optimizer's memory nor activations are, nor
        copies of weights."""
        return self.choice.parts.optimizer + self.choice.parts.copies + self._passing

    def keep_free(self) -> None:
        """From the first step on all that lasts is there; leave free what steps and previews use for a while."""
        self._denoiser.keep_free(self._passing)

    @property
    def smaller(self) -> Plan | None:
        """The plan to go on with after there was too little memory for the present one."""
        return below(self.plan, self._needs.pins, self._needs.model.blocks, self._has_ram)

    def step_down(self) -> str | None:
        """Follow the next smaller plan, or leave more weights in RAM; words about that, None where neither can be."""
        smaller = self.smaller
        if smaller is None and not self._offloads:
            return None
        if smaller is None:
            self._passing += int(MORE * self._passing)
        else:
            self.choice = replace(self.choice, plan=smaller)
        # copies of weights are made anew
        self._denoiser.keep_free(self._passing + self.choice.parts.copies)
        self._denoiser.change_plan(self.plan)
        if smaller is None:
            return "more of the weights stay in RAM"
        return smaller.told(self._needs.model.blocks)


def lasting_bytes(denoiser: Denoiser, config: TrainConfig) -> int:
    """Bytes of a run's adapter and of what its optimizer remembers."""
    size, optimizer = adapter_size(config.lora, _sizes(denoiser)), config.optimizer
    return sum(lasting(size, optimizer))


def needs(denoiser: Denoiser, dataset: CachedDataset, config: TrainConfig, previews: Shown | None = None) -> Needs:
    """All that the memory of a run depends on."""
    pins = config.memory
    if not config.gradient_checkpointing:
        pins = replace(pins, whole_blocks=EVERYTHING)
    return Needs(model=denoiser.size, linears=_sizes(denoiser), lora=config.lora, optimizer=config.optimizer, pins=pins,
                 work=_work(denoiser, dataset, config, previews))


def _sizes(denoiser: Denoiser) -> dict[str, tuple[int, int]]:
    return {name: (linear.out_features, linear.in_features) for name, linear in denoiser.linears().items()}


def _work(denoiser: Denoiser, dataset: CachedDataset, config: TrainConfig, previews: Shown | None) -> Work:
    family = dataset.family

    def tokens_of(bucket: Bucket) -> int:
        return family.num_tokens(bucket) + family.tokens_before(bucket, dataset.kinds)

    largest = max((sample.bucket for sample in dataset.samples), key=tokens_of)
    shown = [tokens_of(sample.bucket) for sample in dataset.held_out]
    tokens = tokens_of(largest)

    def rows(texts: Iterable[Mapping[str, Path]]) -> int:
        return text_padding.most_rows(_longest(texts, family.text_width), family.text_length,
                                      tokens, text_padding.are_numbers_few(denoiser.device))

    priors = [prior for sample in dataset.samples for prior in sample.prior_captions if config.objective.preserve]
    prior_rows = rows(priors) if priors else 0
    return Work(
        side=round((largest.width * largest.height) ** 0.5), frames=largest.frames, stride=family.stride_FHW[0],
        tokens=tokens, batch_size=config.batch_size,
        text_rows=max(rows(caption for sample in dataset.samples for caption in sample.captions), prior_rows),
        prior_rows=prior_rows,
        shown_tokens=max([*shown, previews.tokens if previews else 0]),
        decoding=previews.decoding if previews else 0)


def _longest(captions: Iterable[Mapping[str, Path]], width: int) -> int:
    """Tokens of the longest text; one that has gone is missed when it is read.

    Only the largest files are looked into: as many as could be longer in 16 bits than what was found in 32.
    """
    sizes: dict[Path, int] = {}
    for path in {caption["text"] for caption in captions if "text" in caption}:
        with suppress(OSError):
            sizes[path] = path.stat().st_size
    longest = 0
    for path in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if sizes[path] // (2 * width) <= longest:
            break
        with suppress(OSError, SafetensorError):
            longest = max(longest, num_rows(path))
    return longest
