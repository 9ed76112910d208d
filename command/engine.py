"""diffusers' models behind the trainer's protocols: the one file of the command line that calls trainer/wan_diffusers/.

An encoder is loaded when it first has something to encode, and leaves before the next one comes: where all is in the
cache, neither VAE nor text encoder is read.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..trainer.base.files import Stamp
from ..trainer.base.remembered import Remembered
from ..trainer.job.models import find
from ..trainer.job.settings import Models
from ..trainer.model.backend import ConditionEncoder, Denoiser
from ..trainer.model.conditions import CLIP_VISION, TEXT
from ..trainer.model.family import ModelFamily
from ..trainer.wan_diffusers import images
from ..trainer.wan_diffusers.codec import load_codec
from ..trainer.wan_diffusers.images import load_clip_vision
from ..trainer.wan_diffusers.text import load_text_encoder

ROLES = ("model", "model_low", "vae", "clip", "clip_vision")
"""The models of a run, by their keys in the section `models`."""

_IDS = "1"
"""Version of what is remembered of encoders: raise it when one of them gives another id for the same file."""

_SUFFIXES = (".safetensors", ".json", ".model")
"""Of files in a diffusers folder that a model depends on."""


class Lazy:
    """An encoder that is loaded when it is needed; its `id` is remembered with the stamp of its file.

    Args:
        title: for people, such as "the VAE".
        load: reads it.
    """

    def __init__(self, engine: Engine, title: str, path: Path, variant: str, load: Callable[[], object]) -> None:
        self._engine, self._title, self._path, self._load = engine, title, path, load
        self._name = f"{title} {path} {variant} {engine.device.type}"
        self._loaded = None

    @property
    def id(self) -> str:
        """Of the encoder, as the protocols have it."""
        stamp = _stamp(self._path)
        known = self._engine.ids.get(self._name, stamp)
        if known is not None:
            return known["id"]
        found = self.loaded().id
        self._engine.ids.put(self._name, stamp, {"id": found})
        self._engine.ids.save()
        return found

    def encode(self, source: str | np.ndarray | Sequence[int]) -> torch.Tensor:
        """As the encoder's."""
        return self.loaded().encode(source)

    def encode_raw(self, image_FHW3: torch.Tensor) -> torch.Tensor:
        """Of a VAE, as DiffusersCodec's."""
        return self.loaded().encode_raw(image_FHW3)

    def decode(self, latent_CFHW: torch.Tensor, name: str) -> np.ndarray:
        """Of a VAE, as DiffusersCodec's."""
        return self.loaded().decode(latent_CFHW, name)

    def loaded(self):
        """The encoder; others leave the device for it."""
        if self._loaded is None:
            self._engine.release()
            self._engine.say(f"Loading {self._title} {self._path.name}")
            self._loaded = self._load()
        return self._loaded

    def release(self) -> None:
        """Forget the weights, until they are needed again."""
        self._loaded = None


@dataclass(slots=True)
class Encoders:
    """What `encoded.fill.fill` takes."""

    codec: Lazy
    conditions: dict[str, ConditionEncoder]


class Engine:
    """The models of a run's settings, on this process's device.

    Args:
        memory: the folder of what is remembered of files.
        say: shows a sentence.
        device: that of the process; None for the first that there is.
    """

    def __init__(
        self, models: Models, memory: Path, say: Callable[[str], None], device: torch.device | None = None
    ) -> None:
        _hide_what_does_not_load()
        for library in ("diffusers", "transformers"):
            logging.getLogger(library).setLevel(logging.ERROR)  # they warn of what is meant to be so
        self._models = models
        self.say = say
        self.device = device or _device()
        self.ids = Remembered(memory / "encoders.sqlite", _IDS)
        self._lazy: dict[str, Lazy] = {}

    def encoders(self, family: ModelFamily, condition: str) -> Encoders:
        """The encoders of a dataset.

        Raises:
            UserError: a model is not named or not found, or only ComfyUI encodes the condition.
        """
        codec = self.codec(family)
        kinds = {kind.name for kind in family.kinds(condition)}
        vision = None
        if CLIP_VISION.name in kinds and self._models.clip_vision:
            vision = self._of("the CLIP vision", "clip_vision", condition,
                              partial(load_clip_vision, condition=condition, device=self.device))
        given = images.frame_encoders(family, condition, codec, vision)
        text = self.text()
        # the largest last: captions come first, so that it need not be loaded twice where no id is known yet
        for encoder in (codec, *given.values(), text):
            encoder.id  # noqa: B018
        return Encoders(codec, {TEXT.name: text, **given})

    def codec(self, family: ModelFamily) -> Lazy:
        """The VAE; UserError as `encoders`."""
        return self._of("the VAE", "vae", family.name, partial(load_codec, family=family, device=self.device))

    def text(self) -> Lazy:
        """The text encoder; UserError as `encoders`."""
        return self._of("the text encoder", "clip", "", partial(load_text_encoder, device=self.device))

    def denoiser(self, role: str = "model", id: str = "", is_shared_out: bool = False) -> Denoiser:
        """The model in training.

        Args:
            role: its key in the section `models`.
            id: of the base model where another program has named it; "" for its own.
            is_shared_out: whether each of several processes keeps a part of the weights.

        Raises:
            UserError: it is not named, not found, or none that is trained here.
        """
        from ..trainer.wan_diffusers.denoiser import DiffusersDenoiser
        from ..trainer.wan_diffusers.loading import family_of_transformer, load_transformer
        from ..trainer.wan_diffusers.sharded import ShardedDenoiser

        self.release()
        path = self.path(role)
        self.say(f"Loading {path.name}")
        place = torch.device("cpu") if is_shared_out else self.device
        transformer = load_transformer(path, getattr(torch, self._models.dtype), place, self._models.quantization)
        kind = ShardedDenoiser if is_shared_out else DiffusersDenoiser
        return kind(transformer, family_of_transformer(transformer), self.device, id)

    def path(self, name: str) -> Path:
        """The file or folder of a model, by the key of the section `models`.

        Raises:
            UserError: it is not named, or nowhere.
        """
        return find(self._models, Path.cwd(), [name])[name]

    def release(self) -> None:
        """Have no encoder loaded."""
        for lazy in self._lazy.values():
            lazy.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _of(self, title: str, name: str, variant: str, load: Callable[..., object]) -> Lazy:
        """One object for each model, so that it is loaded once."""
        path = self.path(name)
        key = f"{path} {variant}"
        if key not in self._lazy:
            self._lazy[key] = Lazy(self, title, path, variant, partial(load, path))
        return self._lazy[key]


def _stamp(path: Path) -> Stamp:
    """Of a file, or of all files of a folder together."""
    if path.is_file():
        return Stamp.of(path)
    stamps = [Stamp.of(each) for each in sorted(path.rglob("*")) if each.suffix in _SUFFIXES]
    return Stamp(sum(stamp.size for stamp in stamps), max((stamp.modified for stamp in stamps), default=0),
                 max((stamp.changed for stamp in stamps), default=0))


def _hide_what_does_not_load() -> None:
    """transformers and diffusers import these where they are installed, and fail where they were built for another
    torch; nothing here needs them."""
    for library in ("torchvision", "torchaudio"):
        try:
            importlib.import_module(library)
        except (ImportError, OSError, RuntimeError):
            for name in [name for name in sys.modules if name.split(".")[0] == library]:
                del sys.modules[name]
            sys.modules[library] = None  # to importlib there is none


def is_on_cpu() -> bool:
    """Whether there is nothing else to compute on."""
    return _device().type == "cpu"


def _device() -> torch.device:
    """That of this process: of several on a machine each has its own, as their launcher counts them."""
    found = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    if found is None or found.type == "cpu":
        return torch.device("cpu")
    return torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")))


def conditions_of(
    pixels_FHW3: np.ndarray, family: ModelFamily, encoders: Mapping[str, ConditionEncoder]
) -> dict[str, torch.Tensor]:
    """What a model is given of a clip beside the text, see wan_diffusers/images.py."""
    return images.conditions_of(pixels_FHW3, family, encoders)
