"""The judge reads what the VAE gives back of every class, and what a video does."""

import numpy as np
import pytest

from wantune.tests.support.tools import WORLD
from wantune.tests.world import glyphs, scenes
from wantune.tests.world.judge import OTHER, Judge
from wantune.tests.world.latents import Vae

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def judge():
    return Judge()


def test_every_frame_of_a_clip_is_read_after_the_vae(judge):
    shapes = glyphs.glyphs()
    colors, directions = list(scenes.COLORS), list(scenes.DIRECTIONS)
    vae = Vae(WORLD / "vae.safetensors")
    right = []
    for number, name in enumerate(glyphs.DIGITS):
        color, direction = colors[number % 6], directions[number % 4]
        scene = scenes.Scene("digit", name, color, direction, shapes[name][number], scenes.way(direction))
        verdict = judge(vae.decode(vae.encode(scenes.draw(scene)[None]))[0])
        assert (verdict.color, verdict.direction) == (color, direction)
        right += [shown == name for shown in verdict.names]
    assert np.mean(right) > 0.98


def test_what_stands_still_has_no_direction(judge):
    scene = scenes.Scene("digit", "two", "white", "", glyphs.glyphs()["two"][0], ((16, 16),) * 9)
    assert judge(scenes.draw(scene)).direction == ""


def test_a_blob_and_an_empty_canvas_are_no_digits(judge):
    empty = np.full((2, 64, 64, 3), scenes.BACKGROUND, dtype=np.uint8)
    blob = empty.copy()
    blob[:, 20:44, 20:44] = 200
    assert {*judge(empty).names, *judge(blob).names} == {OTHER}
