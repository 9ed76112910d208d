"""How well the base follows its prompts, frame by frame: videos in batches, named by the judge."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from . import captions, glyphs, scenes
from .dit import CHANNELS, Transformer
from .judge import Judge
from .latents import Vae
from .text import TextEncoder

TRIGGER_WORD = "GF Carty Chan"
STEPS, SHIFT, GUIDANCE = 16, 8.0, 4.0
BATCH = 12
LATENT_FRAMES = 1 + (scenes.FRAMES - 1) // 4
GROUPS = ("digits", "digits beside unknown words", "letters", "unknown words", "stills of digits")


@dataclass(frozen=True, slots=True)
class Case:
    prompt: str
    name: str
    """Of the class to be shown; empty for unknown words, which name none."""
    color: str
    direction: str


def sigmas(steps: int = STEPS) -> list[float]:
    """The noise levels of ComfyUI's simple schedule, with the 0 that ends it."""
    times = [1 - int(step * 1000 / steps) / 1000 for step in range(steps)] + [0.0]
    return [SHIFT * time / (1 + (SHIFT - 1) * time) for time in times]


@torch.no_grad()
def sample(
    model: Transformer, text: TextEncoder, prompts: list[str], frames: int, seed: int, steps: int = STEPS
) -> torch.Tensor:
    """Latents of KSampler's Euler method with its simple schedule and guidance against the empty prompt."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(len(prompts), CHANNELS, frames, 8, 8, generator=generator)
    text_BLD, length_B = text([*prompts, *[""] * len(prompts)])
    levels = sigmas(steps)
    for sigma, following in zip(levels, levels[1:], strict=False):
        sigma_B = torch.full((2 * len(prompts),), sigma)
        with_text, without = model(latent.repeat(2, 1, 1, 1, 1), sigma_B, text_BLD, length_B).chunk(2)
        latent = latent + (following - sigma) * (without + GUIDANCE * (with_text - without))
    return latent


def cases(group: str, count: int, seed: int) -> Iterator[Case]:
    """`count` prompts of a group: its classes in turn, colours and directions at random."""
    rng = np.random.default_rng([seed, GROUPS.index(group)])
    names = glyphs.BASE_LETTERS if group == "letters" else glyphs.BASE_DIGITS
    for number in range(count):
        color = str(rng.choice(list(scenes.COLORS)))
        direction = "" if group.startswith("stills") else str(rng.choice(list(scenes.DIRECTIONS)))
        name = names[number % len(names)]
        called = captions.full_name(name)
        if group == "digits beside unknown words":
            called = f"{captions.invented_words(rng)} {called}"
        if group == "unknown words":
            name, called = "", f"{TRIGGER_WORD} digit" if number % 2 else f"{captions.invented_words(rng)} digit"
        yield Case(captions.prompt(called, color, direction), name, color, direction)


def evaluate(
    model: Transformer, text: TextEncoder, vae: Vae, judge: Judge, count: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Shares of what is right for each group, from `count` videos each.

    frames: frames that show the asked class; all frames: videos of which every frame does; steady: videos whose
    frames all show the same; nine: frames that show the held-out digit.
    """
    results = {}
    for group in GROUPS:
        asked = list(cases(group, count, seed))
        frames = 1 if group.startswith("stills") else LATENT_FRAMES
        verdicts = []
        for start in range(0, count, BATCH):
            batch = asked[start : start + BATCH]
            latent = sample(model, text, [case.prompt for case in batch], frames, seed + start)
            verdicts += [judge(video) for video in vae.decode(latent)]
        right = [[name == case.name for name in verdict.names] for case, verdict in zip(asked, verdicts, strict=True)]
        shares = {
            "frames": right,
            "all frames": [all(row) for row in right],
            "color": [verdict.color == case.color for case, verdict in zip(asked, verdicts, strict=True)],
            "direction": [verdict.direction == case.direction for case, verdict in zip(asked, verdicts, strict=True)],
            "steady": [len(set(verdict.names)) == 1 for verdict in verdicts],
            "nine": [[name == "nine" for name in verdict.names] for verdict in verdicts],
        }
        if group == "unknown words":
            del shares["frames"], shares["all frames"]
        results[group] = {name: round(float(np.mean(share)), 4) for name, share in shares.items()}
    return results
