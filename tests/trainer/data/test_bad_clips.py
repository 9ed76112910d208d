"""Clips that cannot be used: each is left out with a sentence that names it and the remedy, the rest is used."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from wantune.tests.support import clips
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import report
from wantune.trainer.data import scan as scanning
from wantune.trainer.settings.data import DatasetConfig


def scan(folder, **settings):
    settings = {"resolution": 64, "trigger_word": "zwx", "frame_buckets": (1, 17, 33), **settings}
    return scanning.scan(DatasetConfig(folder=str(folder), **settings))


@pytest.fixture
def folder(tmp_path):
    """One good clip and one good picture; each test adds something bad beside them."""
    clips.at_rate(tmp_path / "good.mp4", 24, 60)
    Image.fromarray(clips.numbered(1)).save(tmp_path / "picture.png")
    return tmp_path


def reason_of(manifest, name: str) -> str:
    assert [clip.path.name for clip in manifest.samples] == ["good.mp4", "picture.png"], "the rest is used"
    (rejection,) = manifest.rejected
    assert rejection.path.name == name and name in rejection.reason and name in report.text(manifest)
    return rejection.reason


def test_a_zero_byte_clip(folder):
    (folder / "bad.mp4").write_bytes(b"")
    assert "is empty (0 bytes); export" in reason_of(scan(folder), "bad.mp4")


def test_something_else_called_mp4(folder):
    (folder / "bad.mp4").write_bytes(b"something" * 50)
    assert "is damaged or no clip" in reason_of(scan(folder), "bad.mp4")


def test_a_playlist_called_mp4_makes_nothing_else_be_read(folder):
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.5,\ngood.mp4\n#EXT-X-ENDLIST\n"
    (folder / "bad.mp4").write_text(text, encoding="utf-8")
    assert "is damaged or no clip" in reason_of(scan(folder), "bad.mp4")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_mp4_with_its_index_at_the_end(folder, keep):
    data = (folder / "good.mp4").read_bytes()
    (folder / "bad.mp4").write_bytes(data[: int(len(data) * keep)])
    assert "export or download it again" in reason_of(scan(folder), "bad.mp4")


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.99])
def test_a_truncated_mp4_with_its_index_in_front(folder, keep):
    with av.open(str(folder / "good.mp4")) as source:
        with av.open(str(folder / "bad.mp4"), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    data = (folder / "bad.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    (folder / "bad.mp4").write_bytes(data[: int(len(data) * keep)])
    assert "export or download it again" in reason_of(scan(folder), "bad.mp4")


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_a_truncated_matroska_file(folder, suffix, codec):
    path = clips.at_rate(folder / f"bad.{suffix}", 24, 120, codec=codec)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "s are missing at its end); export" in reason_of(scan(folder), path.name)


def test_sound_without_video(folder):
    with av.open(str(folder / "bad.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "holds no video (sound alone?); replace it" in reason_of(scan(folder), "bad.mp4")


def test_a_single_frame(folder):
    clips.at_rate(folder / "bad.mp4", 24, 1)
    assert "holds a single frame; save it as a picture" in reason_of(scan(folder), "bad.mp4")


@pytest.mark.parametrize(("count", "frames", "remedy"), [
    (20, 14, "add 13 to frame_buckets, or use a longer clip"), (4, 3, "; use a longer clip"),
])
def test_a_clip_shorter_than_the_smallest_bucket(folder, count, frames, remedy):
    clips.at_rate(folder / "bad.mp4", 24, count)
    reason = reason_of(scan(folder), "bad.mp4")
    assert f"bad.mp4 has {frames} frames at 16 fps, the shortest clip bucket takes 17" in reason
    assert remedy in reason and "not used as stills" in reason


def test_the_remedy_for_a_short_clip_helps(folder):
    clips.at_rate(folder / "bad.mp4", 24, 20)
    assert len(scan(folder, frame_buckets=(1, 13, 33)).samples) == 3


def test_clips_with_picture_buckets_alone(folder):
    manifest = scan(folder, frame_buckets=(1,))
    assert [clip.path.name for clip in manifest.samples] == ["picture.png"]
    (rejection,) = manifest.rejected
    assert "good.mp4 is a clip (40 frames at 16 fps) and frame_buckets has pictures alone; add 41" in rejection.reason


def test_timestamps_that_are_all_the_same(folder):
    path = clips.at_rate(folder / "bad.mp4", 24, 60, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    place = data.index(b"stts")  # version and flags, entries, then (count, ticks) of each entry
    entries = int.from_bytes(data[place + 8:place + 12], "big")
    for entry in range(entries):
        data[place + 16 + 8 * entry:place + 20 + 8 * entry] = bytes(4)
    path.write_bytes(data)
    assert "has broken timestamps (two frames are 0 s apart)" in reason_of(scan(folder), "bad.mp4")


def test_timestamps_with_a_gap_of_hours(folder):
    stamps = [*range(30), *range(30 + 10**6, 60 + 10**6)]
    clips.write(folder / "bad.mkv", stamps, Fraction(1, 24))
    assert "has broken timestamps (two frames are 4" in reason_of(scan(folder), "bad.mkv")


def test_timestamps_that_run_backwards(folder):
    """A Matroska file of two clusters that count from zero twice."""
    path = clips.at_rate(folder / "bad.mkv", 24, 240, options={"bf": "0", "g": "24"})
    data = bytearray(path.read_bytes())
    clusters = [i for i in range(len(data)) if data[i:i + 4] == b"\x1f\x43\xb6\x75"]
    assert len(clusters) >= 2
    for cluster in clusters[1:]:
        place = data.index(b"\xe7", cluster)  # the cluster's own time
        size = data[place + 1] & 0x7F
        data[place + 2:place + 2 + size] = bytes(size)
    path.write_bytes(data)
    assert "has broken timestamps (they run backwards" in reason_of(scan(folder), "bad.mkv")


def test_a_clip_called_png_and_a_picture_called_mp4(folder):
    (folder / "bad.png").write_bytes((folder / "good.mp4").read_bytes())
    assert "is a clip with a picture's name; rename it to end in .mp4" in reason_of(scan(folder), "bad.png")
    (folder / "bad.png").unlink()
    (folder / "bad.mp4").write_bytes((folder / "picture.png").read_bytes())
    assert "is a picture with a clip's name; rename it to end in .png" in reason_of(scan(folder), "bad.mp4")


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_the_new_name_of_a_clip_called_jpg_is_right(folder, suffix):
    clips.at_rate(folder / f"a.{suffix}", 24, 60)
    (folder / f"a.{suffix}").rename(folder / "bad.jpg")
    assert f"rename it to end in .{suffix}" in reason_of(scan(folder), "bad.jpg")


def test_a_clip_smaller_than_its_bucket(folder):
    clips.at_rate(folder / "bad.mp4", 24, 60, picture=lambda number: np.zeros((32, 32, 3), np.uint8))
    reason = reason_of(scan(folder), "bad.mp4")
    assert "is 32x32, smaller than its bucket 64x64x33; use a larger clip" in reason
    assert len(scan(folder, upscale=True).samples) == 3


def test_an_animation_too_short(folder):
    frames = [Image.fromarray(clips.numbered(number)) for number in range(4)]
    frames[0].save(folder / "bad.gif", save_all=True, append_images=frames[1:], duration=100)
    assert "bad.gif has 7 frames at 16 fps" in reason_of(scan(folder), "bad.gif")


def test_a_clip_alone_that_cannot_be_used_says_why(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="can be used: a.mp4 is empty"):
        scan(tmp_path)
