"""Clips: exactly the frames that their timestamps ask for, turned and scaled, whatever the file is like."""

import bisect
import struct
import sys
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from wantune.tests.support import clips
from wantune.trainer.data import animations, pictures, video
from wantune.trainer.data.buckets import Bucket

BUCKET = Bucket(33, 64, 64)
NTSC = Fraction(30000, 1001)


def numbers(path, start=0, count=33, source=None) -> list[int]:
    """What the frames of a window show."""
    source = source or video.probe(path, path.name)
    return [clips.number_of(frame) for frame in video.read(path, path.name, source, Bucket(count, 64, 64), start, 16)]


def expected(stamps, tick, start, count, rounding=Fraction(0)) -> list[int]:
    """The last frame whose time has come, by the true times."""
    times = [(stamp - stamps[0]) * tick for stamp in stamps]
    wanted = [Fraction(k, 16) + rounding for k in range(start, start + count)]
    return [bisect.bisect_right(times, time) - 1 for time in wanted]


@pytest.mark.parametrize("fps", [24, 25, NTSC, 30, 60, 16, 10])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_every_rate_yields_exactly_the_frames_its_timestamps_ask_for(tmp_path, fps, suffix):
    count = int(fps * 5)
    path = clips.at_rate(tmp_path / f"clip.{suffix}", fps, count)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert any(frame.pict_type == 3 for frame in frames), "the clip has B-frames"
    # The file rounds 1/fps to its own ticks: times are those that stand in it.
    stamps, tick = [frame.pts for frame in frames], frames[0].time_base
    source = video.probe(path, path.name)
    assert (source.width, source.height, source.num_frames) == (128, 128, count)
    assert source.fps == pytest.approx(float(fps), rel=2e-3)
    assert source.frames_at(16) in ({80} if fps != NTSC else {80, 79})
    for start in (0, 7, 40):
        assert numbers(path, start, source=source) == expected(stamps, tick, start, 33, source.rounding / 2)
    if suffix == "mp4":
        assert numbers(path, 7) == expected(range(count), 1 / Fraction(fps), 7, 33)


@pytest.mark.parametrize(("suffix", "codec"), [("webm", "libvpx-vp9"), ("avi", "libx264"), ("avi", "mpeg4")])
def test_other_formats_are_read_as_exactly(tmp_path, suffix, codec):
    options = {"bf": "2"} if codec == "mpeg4" else None
    path = clips.at_rate(tmp_path / f"clip.{suffix}", 30, 90, codec=codec, options=options)
    for start in (0, 13):
        assert numbers(path, start) == expected(range(90), Fraction(1, 30), start, 33, Fraction(1, 2000))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_rate_is_read_by_its_times(tmp_path, suffix):
    random = np.random.default_rng(0)
    stamps = [0, *np.cumsum(random.integers(5, 200, 60)).tolist()]
    path = clips.write(tmp_path / f"clip.{suffix}", stamps, Fraction(1, 1000))
    for start in (0, 20, 50):
        assert numbers(path, start) == expected(stamps, Fraction(1, 1000), start, 33, Fraction(1, 2000))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_late_first_frame_is_time_zero(tmp_path, suffix):
    stamps = [90 + k for k in range(90)]
    path = clips.write(tmp_path / f"clip.{suffix}", stamps, Fraction(1, 30))
    assert numbers(path) == expected(stamps, Fraction(1, 30), 0, 33, Fraction(1, 2000))
    assert numbers(path, 10) == expected(stamps, Fraction(1, 30), 10, 33, Fraction(1, 2000))
    assert video.probe(path, path.name).frames_at(16) == 48


def test_what_an_edit_list_cuts_off_is_not_seen(tmp_path):
    """Ten frames before the edit: the decoder needs them, a player never shows them."""
    path = clips.at_rate(tmp_path / "clip.mp4", 30, 90)
    with av.open(str(path)) as container:
        ticks = 1 / (30 * container.streams.video[0].time_base)
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 4 + 8  # version, flags and number of entries; then duration and media time
    duration, media_time = struct.unpack(">2I", data[place:place + 8])
    data[place:place + 8] = struct.pack(">2I", duration - 10 * 1000 // 30, media_time + 10 * int(ticks))
    path.write_bytes(data)
    source = video.probe(path, path.name)
    assert (source.num_frames, source.frames_at(16)) == (80, 43)
    for start in (0, 10):
        assert numbers(path, start) == [10 + n for n in expected(range(80), Fraction(1, 30), start, 33)]


def test_open_groups_of_pictures_are_sought_to_the_same_frames(tmp_path):
    options = {**clips.H264, "x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
    path = clips.at_rate(tmp_path / "clip.mp4", 30, 240, options=options)
    for start in range(0, 95, 5):
        assert numbers(path, start) == expected(range(240), Fraction(1, 30), start, 33), start


@pytest.mark.parametrize("count", [32, 33])
def test_one_frame_short_of_a_bucket_is_not_lost(tmp_path, count):
    path = clips.at_rate(tmp_path / "clip.mp4", 16, count)
    assert video.probe(path, path.name).frames_at(16) == count
    assert numbers(path) == [*range(count), 31][:33]


@pytest.mark.parametrize(("matrix", "turn"), [
    ((1, 0, 0, 1), None), ((0, 1, -1, 0), Image.Transpose.ROTATE_270), ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
    ((0, -1, 1, 0), Image.Transpose.ROTATE_90), ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
    ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM), ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
], ids=["none", "90", "180", "270", "mirrored", "upside-down", "transposed"])
def test_the_rotation_flag_turns_the_clip(tmp_path, matrix, turn):
    def corner(_number):
        picture = np.full((64, 128, 3), 16, np.uint8)
        picture[:32, :32] = 240
        picture[:32, 96:] = 128
        return picture

    plain = clips.at_rate(tmp_path / "plain.mp4", 16, 8, picture=corner)
    path = clips.rotated(plain, tmp_path / "turned.mp4", matrix)
    shown = Image.fromarray(corner(0))
    shown = shown.transpose(turn) if turn is not None else shown
    source = video.probe(path, path.name)
    assert (source.width, source.height) == shown.size
    frame = next(video.frames(path, path.name, source, 0, 1, 16))
    assert np.abs(np.asarray(frame).astype(int) - np.asarray(shown)).mean() < 3


def test_colours_follow_the_matrix_the_file_names(tmp_path):
    """Pure red in BT.709; taken for BT.601 it would be 22 steps darker."""
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = stream.codec_context.color_range = 1
        for number in range(8):
            frame = av.VideoFrame(64, 64, "yuv420p")
            for plane, value in zip(frame.planes, (63, 102, 240), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    pixels = video.read(path, path.name, video.probe(path, path.name), Bucket(5, 64, 64), 0, 16)
    assert np.abs(pixels[0, 32, 32].astype(int) - (255, 0, 0)).max() <= 3


def test_a_long_video_is_sought_in_bounded_memory(tmp_path, monkeypatch):
    """Twenty minutes; a window near the end costs a few keyframe distances and the memory of a few frames."""
    resource = pytest.importorskip("resource")
    count = 20 * 60 * 10

    def still(_number):
        return np.full((360, 640, 3), 99, np.uint8)

    path = clips.at_rate(tmp_path / "long.mp4", 10, count, picture=still, codec="mpeg4", options={"g": "25"})
    source = video.probe(path, path.name)
    assert source.frames_at(16) == 20 * 60 * 16
    decoded = []
    original = video.decoded

    def counting(*arguments):
        for stamp, frame in original(*arguments):
            decoded.append(stamp)
            yield stamp, frame

    monkeypatch.setattr(video, "decoded", counting)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    pixels = video.read(path, path.name, source, Bucket(33, 64, 128), source.frames_at(16) - 40, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (1 if sys.platform == "darwin" else 1024)
    print(f"decoded {len(decoded)} of {count} frames, peak {peak / 2**20:.1f} MiB traced, RSS +{grown:.0f} MiB")
    assert pixels.shape == (33, 64, 128, 3)
    assert len(decoded) <= 21 + 25 + 2
    assert peak < 8 * 2**20 and grown < 60 * (1 if sys.platform != "darwin" else 2**20)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_a_clip_with_its_own_durations(tmp_path, suffix):
    durations = [40, 100, 250, 60] * 10
    frames = [Image.fromarray(clips.numbered(number)) for number in range(40)]
    path = tmp_path / f"moving.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    source = animations.probe(path, path.name)
    assert (source.width, source.height, source.num_frames) == (128, 128, 40)
    assert source.seconds == Fraction(sum(durations), 1000)
    stamps = [sum(durations[:number]) for number in range(40)]
    for start in (0, 25):
        assert numbers(path, start, source=source) == expected(stamps, Fraction(1, 1000), start, 33, Fraction(1, 2000))


def test_real_clips_are_read(tmp_path):
    found = {path.name: video.probe(path, path.name) for path in clips.real()}
    told = {name: (s.width, s.height, s.num_frames, s.fps, s.frames_at(16)) for name, s in found.items()}
    assert told["bikes.mp4"] == (640, 272, 250, 25.0, 160)
    assert told["bigbuckbunny.mp4"] == (1280, 720, 132, 25.0, 85)
    assert told["carphone_pristine.mp4"] == (193, 144, 120, 29.97, 65)


def test_real_frames_are_those_of_a_plain_decoder_scaled_as_pictures_are():
    (path,) = (path for path in clips.real() if path.name == "bikes.mp4")
    with av.open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for start in (0, 100):
        pixels = video.read(path, path.name, video.probe(path, path.name), Bucket(33, 48, 112), start, 16)
        for k, index in enumerate(expected(range(250), Fraction(1, 25), start, 33)):
            assert np.array_equal(pixels[k], pictures.fit(Image.fromarray(every[index]), 112, 48))
