"""What learning.py trains and how: one world's models, its pictures through scan and cache, and runs of a variant."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch

from ..nodes.backend.applied import apply
from ..nodes.backend.denoiser import ComfyDenoiser
from ..nodes.backend.encoders import CaptionEncoder, WanCodec
from ..tests.support import tools
from ..tests.world import concept
from ..trainer.base.switches import own_switches
from ..trainer.data import manifest, scan
from ..trainer.encoded.cache import CachedDataset
from ..trainer.encoded.fill import fill
from ..trainer.encoded.store import Store
from ..trainer.runs import checkpoints
from ..trainer.runs.folder import LOG
from ..trainer.settings.data import DatasetConfig
from ..trainer.settings.training import TrainConfig
from ..trainer.training.run import Run
from . import peers
from .variants import CORE, Unavailable, Variant

REPEATS = 10
"""Of each picture in an epoch, as Load Dataset has it by default."""
RESOLUTION = 64


@dataclass(frozen=True, slots=True)
class Taught:
    """What a variant has learned after some steps."""

    step: int
    seconds: float
    """Inside the steps, without evaluations and checkpoints; of core's node the whole call."""
    lora: dict[str, torch.Tensor]


class Lessons:
    """Trains on one world; runs, their checkpoints and the cache stay in `work`.

    Args:
        files: of the world.
    """

    def __init__(self, files: concept.Files, work: Path) -> None:
        self._files, self._work = files, work
        self.model = tools.load_dit(files.dit)
        self.base = concept.weights_of(self.model)

    def tuned(self, lora: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The transformer's weights with a LoRA, as ComfyUI puts them together."""
        return concept.weights_of(apply(self.model, lora, 1.0)[0])

    def taught(self, variant: Variant, seed: int, wanted: set[int]) -> Iterator[Taught]:
        """What is learned after each of the wanted steps; a run that was interrupted goes on.

        Raises:
            Unavailable: this version does not have what the variant asks for.
        """
        if variant.trainer == CORE:
            yield from self._taught_by_core(variant, seed, wanted)
            return
        folder = self._trained(variant.name, variant.config(seed), self.dataset(variant))
        seconds = _seconds(folder)
        for step in sorted(wanted):
            yield Taught(step, sum(seconds[:step]), dict(checkpoints.load(folder, step)))

    def _trained(self, name: str, config: TrainConfig, dataset: CachedDataset) -> Path:
        """The folder of a finished run."""
        with torch.inference_mode(False), own_switches(), Run(
                ComfyDenoiser(self.model), dataset, name, config, self._work / "runs") as run:
            if not run.is_finished:
                with closing(run.events()) as events:
                    for _event in events:
                        pass
            return run.folder.path

    def _taught_by_core(self, variant: Variant, seed: int, wanted: set[int]) -> Iterator[Taught]:
        """Core's node gives only the end of a run, so each step that is wanted is one of its own."""
        config = variant.config(seed)
        for step in sorted(wanted):
            start = time.perf_counter()
            lora = peers.train_with_core(
                self.model, self.dataset(variant), step, config.lora.rank, False, config.batch_size,
                learning_rate=config.learning_rate, seed=seed)
            yield Taught(step, time.perf_counter() - start, lora)

    def dataset(self, variant: Variant) -> CachedDataset:
        """The twelve stills, and clips, encoded; nothing is held out.

        Raises:
            Unavailable: this version's datasets have no such setting.
        """
        missing = variant.data.keys() - {each.name for each in fields(DatasetConfig)}
        if missing:
            raise Unavailable(f"there is no setting {', '.join(sorted(missing))}")
        clips = variant.num_clips
        data = concept.write_clips(concept.write_stills(self._work / f"data-{clips}", self._files), clips)
        config = DatasetConfig(folder=str(data), resolution=RESOLUTION, frame_buckets=(1, 9) if clips else (1,),
                               num_repeats=REPEATS, trigger_word=concept.TRIGGER_WORD, **variant.data)
        return tools.drained(fill(_accepted(config), Store(self._work / "cache"), *self._encoders()))[1]

    @cache  # noqa: B019  there is one for the life of the script
    def _encoders(self) -> tuple:
        return WanCodec(tools.load_vae(self._files.vae)), {
            "text": CaptionEncoder(tools.load_clip(self._files.text_encoder))}


def _accepted(config: DatasetConfig) -> manifest.Manifest:
    found = scan.scan(config)
    if found.rejected:
        raise ValueError(f"{found.rejected[0].reason} The world's pictures are of another size.")
    return found


def _seconds(run: Path) -> list[float]:
    """Of each step of a run, from its log."""
    lines = map(json.loads, (run / LOG).read_text(encoding="utf-8").splitlines())
    return [line["seconds"] for line in lines if line["event"] == "StepDone"]
