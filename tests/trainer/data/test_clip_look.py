"""Clips as a player shows them: shape of pixels, HDR, transparency, fields, covers; and damage that is concealed."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from wantune.tests.support import clips, colours
from wantune.tests.support.folders import notes_on, sample_of, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import thumbnails, video
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded import cache
from wantune.trainer.encoded.store import Store

BT2020 = 0.2627, 0.0593
"""Weights of red and blue in luma."""
PQ = {"colorspace": 9, "color_trc": 16, "color_primaries": 9}
HLG = {**PQ, "color_trc": 18}
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""From BT.709's light (ITU-R BT.2087)."""


def first(path, background="white") -> np.ndarray:
    """The first frame as it is trained on, in full size."""
    source = video.probe(path, path.name)
    image = next(video.frames(path, path.name, source, 0, 1, 16, background))
    assert image.size == (source.width, source.height)
    return np.asarray(image).astype(int)


def disc(width, height, across, down) -> np.ndarray:
    """White on black, an ellipse of these diameters."""
    y, x = np.ogrid[:height, :width]
    inside = ((x - width / 2 + 0.5) / across * 2) ** 2 + ((y - height / 2 + 0.5) / down * 2) ** 2 < 1
    return np.repeat(np.where(inside, 235, 16).astype(np.uint8)[..., None], 3, 2)


def extent(pixels) -> tuple[int, int]:
    """(across, down) of what is bright."""
    bright = pixels.mean(2) > 128
    return int(bright.any(0).sum()), int(bright.any(1).sum())


def pq(light_nit) -> np.ndarray:
    """Signal of so many cd/m2 (SMPTE ST 2084)."""
    power = (np.asarray(light_nit) / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light_nit) -> np.ndarray:
    """Signal of so many cd/m2 on a display of 1000 (ITU-R BT.2100, inverse OOTF and OETF)."""
    light = np.asarray(light_nit) / 1000
    scene = light ** (1 / 1.2)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene),
                    0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073)


def srgb(light) -> np.ndarray:
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize(("width", "height", "aspect", "shown"), [
    (180, 144, Fraction(64, 45), (256, 144)), (176, 120, Fraction(10, 11), (176, 132)),
    (160, 120, Fraction(161, 160), (160, 120))])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_that_are_not_square_are_made_square(tmp_path, width, height, aspect, shown, suffix):
    drawn = disc(width, height, 72 / float(aspect) if aspect > 1 else 72, 72 if aspect > 1 else 72 * float(aspect))
    path = colours.film(tmp_path / f"clip.{suffix}", [colours.plain(drawn)] * 8, aspect=aspect)
    seen = first(path)
    assert seen.shape[1::-1] == shown
    across, down = extent(seen)
    assert abs(across - 72) <= 2 and abs(down - 72) <= 2


def test_the_shape_of_pixels_is_read_from_the_container_alone_and_turns_with_the_clip(tmp_path):
    path = colours.film(tmp_path / "clip.mp4", [colours.plain(disc(180, 144, 54, 72))] * 8, "mpeg4",
                        aspect=Fraction(1, 1))
    data = path.read_bytes()
    place = data.index(b"pasp")
    path.write_bytes(data[:place + 4] + struct.pack(">2I", 4, 3) + data[place + 12:])
    assert extent(first(path)) == pytest.approx((72, 72), abs=2)
    turned = clips.rotated(path, tmp_path / "turned.mp4", (0, 1, -1, 0))
    seen = first(turned)
    assert seen.shape[:2] == (240, 144) and extent(seen) == pytest.approx((72, 72), abs=2)


@pytest.mark.parametrize(("tags", "signal_of"), [(PQ, pq), (HLG, hlg)], ids=["pq", "hlg"])
def test_hdr_becomes_what_an_ordinary_screen_shows(tmp_path, tags, signal_of):
    """Bars of 75 % (gamma 2.4) of 203 cd/m2, and greys; expected from the light alone."""
    light = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1]]) * 0.5014
    light = np.concatenate((light, [[0, 0, 0], [0.02, 0.02, 0.02], [0.2, 0.2, 0.2], [0.5, 0.3, 0.2]]))
    bars = colours.deep(signal_of(203 * light @ TO_2020.T), BT2020)
    path = colours.film(tmp_path / "clip.mp4", [bars] * 8, "libx265", options={"x265-params": "lossless=1"}, tags=tags)
    seen = first(path)[32, 16::32]
    assert np.abs(seen - srgb(light)).max() <= 6, seen.tolist()
    assert np.abs(seen[[0, 8, 9]] - srgb(light[[0, 8, 9]])).max() <= 2


def test_what_is_brighter_than_white_in_hdr_is_compressed_and_white_stays_white(tmp_path):
    light = np.array([100, 203, 400, 700, 1000, 4000])[:, None].repeat(3, 1)
    path = colours.film(tmp_path / "clip.mp4", [colours.deep(pq(light), BT2020)] * 8, "libx265",
                        options={"x265-params": "lossless=1"}, tags=PQ)
    seen = first(path)[32, 16::32, 1]
    assert seen[1] >= 245 and seen[-1] == 255 and (np.diff(seen) >= 0).all() and seen[1] < seen[2] < seen[3]


@pytest.mark.parametrize("tags", [{"colorspace": 9, "color_trc": 14, "color_primaries": 9}, {"colorspace": 9}])
def test_bt2020_without_hdr_loses_only_its_primaries(tmp_path, tags):
    light = np.array([[0.5, 0.5, 0.5], [0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.2]])
    wide = srgb(light @ TO_2020.T) / 255
    path = colours.film(tmp_path / "clip.mp4", [colours.deep(wide, BT2020)] * 8, "libx265",
                        options={"x265-params": "lossless=1"}, tags=tags)
    assert np.abs(first(path)[32, 16::32] - srgb(light)).max() <= 3


@pytest.mark.parametrize(("tags", "yuv"), [
    ({}, (81, 90, 240)), ({"colorspace": 5}, (81, 90, 240)), ({"colorspace": 6, "color_range": 1}, (81, 90, 240)),
    ({"colorspace": 1, "color_range": 1}, (63, 102, 240)), ({"color_range": 2}, (76, 85, 255)),
    ({"colorspace": 1, "color_range": 2}, (54, 99, 255))])
def test_ordinary_matrices_and_ranges_are_read_as_tagged_and_leave_no_mark(tmp_path, tags, yuv):
    frame = av.VideoFrame(64, 64, "yuv420p")
    for plane, value in zip(frame.planes, yuv, strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    path = colours.film(tmp_path / "red.mp4", [frame] * 8, tags=tags)
    assert np.abs(first(path)[32, 32] - (255, 0, 0)).max() <= 3
    assert video.probe(path, path.name).reading == ""


def test_colours_in_a_form_that_is_not_read_are_left_out(tmp_path):
    path = colours.film(tmp_path / "clip.mp4", [colours.deep(np.full((4, 3), 0.5), BT2020)] * 8, "libx265",
                        tags={**PQ, "colorspace": 10})
    with pytest.raises(UserError, match="BT.2020 with constant luminance.*; export it with the colours of BT.709"):
        video.probe(path, path.name)


def hidden(form: str) -> av.VideoFrame:
    """Lime all over; the upper half is opaque."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 1] = 255
    pixels[:32, :, 3] = 255
    return av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=form)


@pytest.mark.parametrize(("name", "codec", "form", "metadata"), [
    ("a.mov", "prores_ks", "yuva444p10le", {}), ("a.mov", "qtrle", "argb", {}), ("a.mov", "png", "rgba", {}),
    ("a.webm", "libvpx-vp9", "yuva420p", {"alpha_mode": "1"}), ("a.webm", "libvpx", "yuva420p", {"alpha_mode": "1"}),
    ("a.mkv", "ffv1", "yuva420p", {})])
def test_the_colour_under_transparency_is_never_seen(tmp_path, name, codec, form, metadata):
    options = {"auto-alt-ref": "0", "b": "2M"} if metadata else {"profile": "4444"} if codec == "prores_ks" else {}
    path = colours.film(tmp_path / name, [hidden(form)] * 20, codec, options=options, **metadata)
    path.with_suffix(".txt").write_text("zwx", encoding="utf-8")
    (sample,) = scan(tmp_path, frame_buckets=(1, 17), alpha_color="#0000ff").samples
    assert sample.background == "#0000ff"
    pixels = video.read(path, path.name, sample.source, Bucket(17, 64, 64), 0, 16, sample.background)
    assert np.abs(pixels[:, 50, 32].astype(int) - (0, 0, 255)).max() <= 8
    assert np.abs(pixels[:, 10, 32].astype(int) - (0, 255, 0)).max() <= 12
    thumbnail = thumbnails.make(sample, 0, is_moving=False)
    assert np.asarray(Image.open(io.BytesIO(thumbnail)).convert("RGB"))[50, 32, 2] > 200


def test_a_cover_picture_before_the_film_is_not_the_film(tmp_path):
    for suffix in ("mkv", "mov"):
        path = tmp_path / f"clip.{suffix}"
        with av.open(str(path), "w") as container:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
            film = container.add_stream("libx264", rate=16)
            film.width, film.height, film.pix_fmt = clips.SIDE, clips.SIDE, "yuv420p"
            container.mux(cover.encode(colours.plain(np.full((64, 64, 3), 200, np.uint8), "yuvj420p")))
            container.mux(cover.encode())
            for number in range(20):
                frame = colours.plain(clips.numbered(number))
                frame.pts = number
                container.mux(film.encode(frame))
            container.mux(film.encode())
        source = video.probe(path, path.name)
        assert (source.width, source.num_frames) == (clips.SIDE, 20)
        pixels = video.read(path, path.name, source, Bucket(17, 64, 64), 0, 16)
        assert [clips.number_of(frame) for frame in pixels] == [*range(17)]


def woven(number: int) -> av.VideoFrame:
    """A bar that moves from field to field; the lower comes first, as libx264 then says."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    for field in range(2):
        left = 4 + 4 * number + 2 * (1 - field)
        pixels[field::2, left:left + 24] = 235
    return colours.plain(pixels)


def test_interlaced_clips_are_deinterlaced_wherever_the_window_begins(tmp_path):
    path = colours.film(tmp_path / "clip.mp4", [woven(number) for number in range(24)],
                        options={"x264-params": "tff=1:keyint=6:scenecut=0", "crf": "8"})
    path.with_suffix(".txt").write_text("zwx", encoding="utf-8")
    source = video.probe(path, path.name)
    every = [np.asarray(frame) for frame in video.frames(path, path.name, source, 0, 24, 16)]
    for number, frame in enumerate(every[1:-1], 1):
        bright = frame[..., 1].astype(int) > 128
        left, right = bright.argmax(1)[8:-8], 128 - bright[:, ::-1].argmax(1)[8:-8]
        assert np.abs(left - (4 + 4 * number)).max() <= 1 and np.abs(right - (28 + 4 * number)).max() <= 1, number
    for start in (5, 6, 7, 12):
        window = video.frames(path, path.name, source, start, 6, 16)
        assert all(np.array_equal(np.asarray(a), b) for a, b in zip(window, every[start:start + 6], strict=True))
    assert any("interlaced, and is deinterlaced" in note for note in notes_on(scan(tmp_path, frame_buckets=(1, 17)),
                                                                             "clip.mp4"))


def test_a_slide_show_is_noted(tmp_path):
    path = clips.at_rate(tmp_path / "slides.mp4", 1, 6)
    path.with_suffix(".txt").write_text("zwx", encoding="utf-8")
    manifest = scan(tmp_path, frame_buckets=(1, 33))
    assert any("a slide show of 1 fps" in note for note in notes_on(manifest, "slides.mp4"))


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    return clips.at_rate(tmp_path_factory.mktemp("damage") / "clip.mp4", 24, 96)


def test_damage_that_the_decoder_conceals_is_found_and_its_second_is_told(tmp_path, long_clip):
    """Bits are flipped in every frame; where the decoder calls any frame corrupt, reading it must fail."""
    whole, found = long_clip.read_bytes(), 0
    with av.open(str(long_clip)) as container:
        packets = [(packet.pos, packet.size, packet.pts) for packet in container.demux(video=0) if packet.size]
        tick = container.streams.video[0].time_base
    for position, size, stamp in packets[30:60:3]:
        data = bytearray(whole)
        for place in range(size // 2, min(size // 2 + 60, size), 12):
            data[position + place] ^= 0x55
        path = tmp_path / "clip.mp4"
        path.write_bytes(data)
        source = video.probe(path, path.name)
        try:
            with av.open(str(path)) as container:
                is_told = any(frame.is_corrupt for frame in container.decode(video=0))
        except av.FFmpegError:
            is_told = True
        if not is_told:
            continue
        found += 1
        with pytest.raises(UserError, match=r"clip.mp4 is damaged at \d\.\d\d s; export or download") as raised:
            video.read(path, path.name, source, Bucket(49, 64, 64), 0, 16)
            video.read(path, path.name, source, Bucket(13, 64, 64), 49, 16)
        seconds = float(str(raised.value).split(" at ")[1].split(" s;")[0])
        assert abs(seconds - float(stamp * tick)) < 0.5
        assert video.read(path, path.name, source, Bucket(13, 64, 64), 0, 16).shape, "what lies before it is whole"
    assert found >= 2


def keys(root) -> dict[str, list[str]]:
    """Names of the latents' files."""
    manifest = scan(root, frame_buckets=(1, 17))
    ids = {kind.name: "text" for kind in manifest.family.conditions}
    located = cache.locate(manifest.samples, Store(root / "cache"), "vae", ids)
    return {sample.name: [path.stem for path in each.latent_paths]
            for sample, each in zip(manifest.samples, located, strict=True)}


def test_names_of_cache_files_change_only_for_clips_that_are_now_read_otherwise(tmp_path, monkeypatch):
    clips.at_rate(tmp_path / "plain.mp4", 16, 20)
    colours.film(tmp_path / "wide.mp4", [colours.plain(disc(180, 144, 54, 72))] * 20, aspect=Fraction(4, 3))
    colours.film(tmp_path / "fields.mp4", [woven(number) for number in range(20)], options={"x264-params": "tff=1"})
    for name in ("plain", "wide", "fields"):
        (tmp_path / f"{name}.txt").write_text(f"zwx {name}", encoding="utf-8")
    now = keys(tmp_path)
    digests = {sample.name: sample.digest for sample in scan(tmp_path, frame_buckets=(1, 17)).samples}
    for name in now:
        bucket = str(sample_of(scan(tmp_path, frame_buckets=(1, 17)), name).bucket)
        before = cache.content_hash(cache.VERSION, digests[name], bucket, "vae", "", 0)
        assert (now[name] == [before]) == (name == "plain.mp4"), name
