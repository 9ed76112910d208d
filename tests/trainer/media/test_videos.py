"""An mp4 is what players and the page expect, and appears only when it is complete."""

from fractions import Fraction

import pytest

from wantune.tests.support.videos import moving_clip, read_back
from wantune.trainer.media.side_by_side import side_by_side
from wantune.trainer.media.videos import write_mp4

LABELS = ("base", "with LoRA")


@pytest.mark.parametrize("fps", [16, 23.976, 24000 / 1001, 1.0])
def test_file_is_a_streamable_h264_mp4_of_the_given_rate(tmp_path, fps):
    clip = moving_clip(3, 64, 64)
    path = tmp_path / "a.mp4"
    write_mp4(path, side_by_side(clip, clip, LABELS), fps)
    _, stream = read_back(path)
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert abs(stream.average_rate - Fraction(fps)) < Fraction(1, 1000)
    assert stream.width % 2 == 0 and stream.height % 2 == 0
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf")])
def test_wrong_rate_is_refused(tmp_path, fps):
    with pytest.raises(ValueError, match="fps is"):
        write_mp4(tmp_path / "a.mp4", iter(()), fps)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    clip = moving_clip(2, 64, 64)
    write_mp4(path, side_by_side(clip, clip, LABELS), 16)
    before = path.read_bytes()

    def interrupted():
        # The encoder holds some 50 frames back before it writes the first.
        for _ in range(100):
            yield from side_by_side(clip, clip, LABELS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(path, interrupted(), 16)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
