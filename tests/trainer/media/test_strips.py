"""A strip shows the first and the last frame and others evenly between, small enough."""

import numpy as np
import pytest

from wantune.trainer.media.strips import strip


@pytest.mark.parametrize(("frames", "shown"), [(1, [0]), (5, [0, 1, 2, 3, 4]), (17, [0, 3, 6, 10, 13, 16])])
def test_frames_are_chosen_evenly(frames, shown):
    clip = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 4, 6, 3))
    picture = strip(clip)
    assert picture.shape == (4, 6 * len(shown), 3) and picture[0, ::6, 0].tolist() == shown


def test_wide_frames_are_scaled_down_and_narrow_ones_stay():
    clip = np.full((2, 100, 200, 3), 7, np.uint8)
    assert strip(clip, 50).shape == (25, 2 * 50, 3)
    assert np.array_equal(strip(clip, 300), strip(clip))
