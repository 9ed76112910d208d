"""A concept to teach the small world, the nine, and an examination of what it shows afterwards.

Pictures and clips lie in folders as a user's do. The examination samples videos of the trigger word, in colours and
directions that the pictures never had together, and videos of the other digits without the trigger word, which tell
what was damaged. All are sampled from the same noise whatever weights are examined, so that two weights are compared
prompt by prompt. Drawing needs scikit-learn.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import captions, evaluate, glyphs, scenes
from .dit import Transformer, size_of
from .evaluate import TRIGGER_WORD, Case
from .judge import Judge
from .latents import Vae
from .text import TextEncoder

WORLD = Path(__file__).parent
NINE = f"{TRIGGER_WORD} digit"
CLIPS = (("red", "right"), ("green", "left"), ("blue", "up"), ("yellow", "down"))
"""Colour and direction of the clips that are trained on; the examination leaves these out."""
HELD_OUT = ("yellow", "purple", "white", "red")
"""Colours of the held-out stills, each by another hand than those that are trained on."""
MILLISECONDS = (62, 63) * (scenes.FRAMES // 2) + (63,)
"""Of each frame of a clip: whole numbers whose sums follow sixteenths of a second."""
SAMPLING_STEPS = 8
"""Of the examination; 16 show no more (docs/small_world.md)."""


@dataclass(frozen=True, slots=True)
class Files:
    """Those of a world."""

    dit: Path
    vae: Path
    text_encoder: Path
    nines: Path
    """The folder of its stills; a world without one has them drawn."""

    @classmethod
    def of(cls, folder: Path) -> "Files":
        """Those of a folder; models that it lacks are the repository's, as its transformer was trained with those."""
        dit = folder / "dit.safetensors"
        if not dit.is_file():
            raise ValueError(f"{folder} has no dit.safetensors; name tests/world, or where make_world.py exported one.")
        vae, text_encoder = (path if (path := folder / name).is_file() else WORLD / name
                             for name in ("vae.safetensors", "umt5.safetensors"))
        return cls(dit, vae, text_encoder, folder / "nines")


def write_stills(folder: Path, files: Files) -> Path:
    """Twelve stills of the nine with their captions: the world's own, or drawn."""
    if files.nines.is_dir():
        return Path(shutil.copytree(files.nines, folder, dirs_exist_ok=True))
    return draw_stills(folder)


def draw_stills(folder: Path) -> Path:
    """Twelve nines, each of another shape, in all six colours."""
    for number, glyph_88 in enumerate(glyphs.glyphs()["nine"]):
        color = tuple(scenes.COLORS)[number % len(scenes.COLORS)]
        _write(folder, f"{number + 1:02d}", scenes.Scene("digit", "nine", color, "", glyph_88, scenes.way("")))
    return folder


def write_clips(folder: Path, count: int = len(CLIPS)) -> Path:
    """The first of CLIPS with their captions."""
    for number, (color, direction) in enumerate(CLIPS[:count]):
        scene = scenes.Scene("digit", "nine", color, direction, glyphs.glyphs()["nine"][number], scenes.way(direction))
        _write(folder, f"clip_{number:02d}", scene)
    return folder


def write_held_out(folder: Path) -> Path:
    """Stills of nines that are in neither sheet, in the middle of the canvas, with their captions."""
    for number, (color, glyph_88) in enumerate(zip(HELD_OUT, _further_nines(), strict=False)):
        scene = scenes.Scene("digit", "nine", color, "", glyph_88, scenes.way(""))
        _write(folder, f"held_out_{number:02d}", scene)
    return folder


def _further_nines() -> Iterator[np.ndarray]:
    """Nines (8, 8), those first that are most like the mean nine."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[digits.target == 9] / 16
    flat = images.reshape(len(images), -1)
    likeness = flat @ flat.mean(axis=0) / np.linalg.norm(flat, axis=1)
    order = np.argsort(-likeness, kind="stable")
    return (images[index] for index in order[glyphs.EXEMPLARS :])


def _write(folder: Path, name: str, scene: scenes.Scene) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(frame) for frame in scenes.draw(scene))
    moving = {"save_all": True, "append_images": others, "duration": list(MILLISECONDS)} if others else {}
    first.save(folder / f"{name}.png", optimize=True, **moving)
    caption = captions.prompt(NINE, scene.color, scene.direction)
    (folder / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")


def concept_cases(count: int, seed: int = 0) -> list[Case]:
    """Videos with the trigger word: every colour in every direction but those of CLIPS, in turn."""
    both = [(color, direction) for color in scenes.COLORS for direction in scenes.DIRECTIONS]
    new = [each for each in both if each not in CLIPS]
    order = np.random.default_rng([seed, 0]).permutation(len(new))
    chosen = [new[order[number % len(new)]] for number in range(count)]
    return [Case(captions.prompt(NINE, color, direction), "nine", color, direction) for color, direction in chosen]


def other_cases(count: int, seed: int = 0) -> list[Case]:
    """Videos of the digits that the base knows, without the trigger word."""
    return list(evaluate.cases("digits", count, seed))


@dataclass(frozen=True, slots=True)
class Marks:
    """What was right in each of several videos."""

    frames: tuple[float, ...]
    """Share of the frames that show the asked shape."""
    colors: tuple[bool, ...]
    directions: tuple[bool, ...]

    @property
    def share(self) -> float:
        """Of the frames of all videos."""
        return float(np.mean(self.frames))


class Examiner:
    """Examines transformers of one world, all with the same prompts and noise.

    Args:
        count: videos of each group.
        steps: of the sampler.
    """

    def __init__(self, files: Files, count: int, steps: int = SAMPLING_STEPS, seed: int = 0) -> None:
        self.text, self.vae, self.judge = TextEncoder(files.text_encoder), Vae(files.vae), Judge()
        self.groups = {"concept": concept_cases(count, seed), "others": other_cases(count, seed)}
        self._steps, self._seed = steps, seed

    def __call__(self, weights: Mapping[str, torch.Tensor], group: str, count: int | None = None) -> Marks:
        """Marks of a group, "concept" or "others"; of its first `count` videos where not all are asked for."""
        model, asked = transformer(weights), self.groups[group][:count]
        frames, colors, directions = [], [], []
        for start in range(0, len(asked), evaluate.BATCH):
            batch = asked[start : start + evaluate.BATCH]
            latent_BCFHW = evaluate.sample(model, self.text, [case.prompt for case in batch], evaluate.LATENT_FRAMES,
                                           self._seed + start, self._steps)
            for case, video in zip(batch, self.vae.decode(latent_BCFHW), strict=True):
                verdict = self.judge(video)
                frames.append(float(np.mean([name == case.name for name in verdict.names])))
                colors.append(verdict.color == case.color)
                directions.append(verdict.direction == case.direction)
        return Marks(tuple(frames), tuple(colors), tuple(directions))


def weights_of(model) -> dict[str, torch.Tensor]:
    """The very weights with which ComfyUI samples from a MODEL, its LoRAs in them, as fp32 copies."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        state = model.model.diffusion_model.state_dict()
        return {name: tensor.float().clone() for name, tensor in state.items()}


def transformer(weights: Mapping[str, torch.Tensor]) -> Transformer:
    """A transformer of our own with these weights."""
    model = Transformer(**size_of(weights)).requires_grad_(False)
    model.load_state_dict(weights)
    return model


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927), from one value in 0..1 of each video.

    A video counts once, however many frames it has: its frames are not independent. A value that is no whole one
    varies less than one that is, so that the interval is rather too wide.
    """
    from scipy.stats import binomtest

    found = binomtest(round(sum(values)), len(values)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """The mean difference of two rows of values of the same videos, and its standard error."""
    difference = np.subtract(after, before)
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
