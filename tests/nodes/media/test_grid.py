"""The grid of Compare Checkpoints: rows of equal length, sizes a player shows, each clip under its label."""

import numpy as np
import pytest

from wantune.nodes.media import grid


def clip(number: int, frames: int = 3, size: tuple = (256, 256)) -> np.ndarray:
    """One flat colour, brighter with each frame."""
    return np.stack([np.full((*size, 3), number + 10 * index, np.uint8) for index in range(frames)])


@pytest.mark.parametrize(("length", "expected"), [
    (1, [1]), (6, [6]), (7, [4, 3]), (12, [6, 6]), (13, [5, 5, 3]), (60, [6] * 10),
])
def test_long_rows_are_broken_into_equal_ones(length, expected):
    lines = grid.wrapped(list(range(length)))
    assert [len(line) for line in lines] == expected and sum(lines, []) == list(range(length))


@pytest.mark.parametrize(("rows", "columns", "height", "width"), [
    (1, 1, 64, 64), (1, 6, 480, 832), (10, 6, 480, 832), (3, 2, 832, 480), (1, 2, 17, 33), (10, 6, 4096, 16),
])
def test_a_grid_fits_a_player_and_is_of_even_size(rows, columns, height, width):
    tall, wide = grid.panel_size(rows, columns, height, width)
    assert tall % 2 == wide % 2 == 0 and tall * rows <= grid.MAX_HEIGHT and wide * columns <= grid.MAX_WIDTH
    assert tall >= 2 and wide >= 2


def test_shorter_rows_end_in_black_and_headings_stand_over_their_rows():
    panels = [grid.Panel(f"cell {number}", clip(50 * number)) for number in (1, 2, 3)]
    groups = [grid.Group("one", [panels[:2]]), grid.Group("two", [panels[2:]])]
    found = list(grid.frames(groups))
    assert len(found) == 3 and found[0].shape[0] % 2 == 0 and found[0].shape[1] == 512
    plain = next(grid.frames([grid.Group("", [panels[:2]]), grid.Group("", [panels[2:]])]))
    assert found[0].shape[0] > plain.shape[0]
    for index, frame in enumerate(found):
        assert (frame[-10, :256] == 150 + 10 * index).all() and not frame[-10, 256:].any()


def test_the_strip_has_a_row_for_each_clip_once():
    base, tuned = grid.Panel("base", clip(9, frames=9)), grid.Panel("step 1", clip(99, frames=9))
    picture = grid.strip([grid.Group("", [[base, tuned], [base]])])
    rows = [int(value) for value in picture[:, 5, 0]]
    assert rows.count(9) >= 256 and rows.count(99) >= 256 and rows.count(9) < 2 * 256
    assert picture.shape[1] == 6 * 256
    shown = [int(picture[-5, 256 * number + 5, 0]) for number in range(6)]
    assert shown[0] == 99 and shown[-1] == 99 + 80 and shown == sorted(shown)


def test_clips_keep_their_proportions_in_a_panel():
    small = grid.scaled(np.full((2, 100, 200, 3), 255, np.uint8), (100, 100))
    assert small.shape == (2, 100, 100, 3) and not small[:, :25].any() and (small[:, 26:74] == 255).all()
