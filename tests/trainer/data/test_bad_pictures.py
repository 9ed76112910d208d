"""Pictures that are broken, odd or not what they are called: used where they can be, else left out with a remedy."""

import io
import random
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, features

from wantune.tests.support import clips, tools
from wantune.tests.support.folders import draw, names, noise, notes_on, reasons, sample_of, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import pictures
from wantune.trainer.encoded import fill as filling
from wantune.trainer.encoded.store import Store

FORMATS = ["jpg", "png", "webp", "bmp", "tiff", "gif", "avif"]
if not features.check("avif"):
    FORMATS.remove("avif")


def encoded(suffix: str, size: tuple[int, int] = (96, 64), **options) -> bytes:
    file = io.BytesIO()
    image_format = {"jpg": "jpeg"}.get(suffix, suffix)
    noise(1, size).save(file, image_format, **options)
    return file.getvalue()


@pytest.fixture
def root(tmp_path):
    """One good picture; each test adds something beside it."""
    draw(tmp_path / "good.png", 0, "zwx good", size=(128, 96))
    return tmp_path


def reason_of(root, name: str, **settings) -> str:
    manifest = scan(root, **settings)
    assert names(manifest) == ["good.png"], "the good picture is still used"
    (reason,) = reasons(manifest).values()
    assert name in reason and ";" in reason, "what is wrong, and what to do"
    return reason


def pixels_of(root, name: str, **settings) -> np.ndarray:
    """A picture that is used, as it is trained on: (height, width, 3)."""
    clip = sample_of(scan(root, **settings), name)
    image = pictures.open_picture(clip.path.read_bytes(), name, clip.background or "white")
    assert image.size == (clip.width, clip.height), "the size that was promised"
    return pictures.fit(image, clip.bucket.width, clip.bucket.height)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file(root, suffix):
    (root / f"bad.{suffix}").write_bytes(b"")
    assert f"bad.{suffix} is empty (0 bytes); export or download it again" in reason_of(root, f"bad.{suffix}")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("keep", [4, 20, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_was_cut_off(root, suffix, keep):
    data = encoded(suffix)
    (root / f"bad.{suffix}").write_bytes(data[:keep if keep > 1 else int(len(data) * keep)])
    reason = reason_of(root, f"bad.{suffix}")
    assert "is damaged" in reason or "is not a picture Pillow can read" in reason


@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_that_was_cut_off(root, suffix, keep):
    options = {"save_all": True, "append_images": [noise(number) for number in range(2, 22)], "duration": 100}
    data = encoded(suffix, **options)
    (root / f"bad.{suffix}").write_bytes(data[:int(len(data) * keep)])
    reason = reason_of(root, f"bad.{suffix}", frame_buckets=(1, 17, 33))
    assert "is damaged" in reason or "is not a picture Pillow can read" in reason


@pytest.mark.parametrize("called", ["png", "webp", "gif", "tiff"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_with_another_picture_s_ending_is_used(root, suffix, called):
    (root / f"other.{called}").write_bytes(encoded(suffix))
    right, got = np.asarray(noise(1)).mean(), pixels_of(root, f"other.{called}").mean()
    assert got == pytest.approx(right, abs=3)


def test_a_clip_called_jpg_and_a_heic_photograph_called_jpg(root):
    clips.at_rate(root / "clip.mp4", 16, 20)
    (root / "clip.mp4").rename(root / "bad.jpg")
    assert "is a clip with a picture's name; rename it to end in .mp4" in reason_of(root, "bad.jpg")
    for brand in (b"heic", b"heix", b"mif1"):
        (root / "bad.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(200))
        assert "is a HEIC photograph, which is not read; export it as jpg" in reason_of(root, "bad.jpg")


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (200, 5)])
@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg"])
def test_a_tiny_picture_is_too_small_unless_it_may_be_enlarged(root, suffix, size):
    (root / f"tiny.{suffix}").write_bytes(encoded(suffix, size))
    reason = reason_of(root, f"tiny.{suffix}")
    assert f"is {size[0]}x{size[1]}, smaller than its bucket" in reason and "switch upscale on" in reason
    assert pixels_of(root, f"tiny.{suffix}", upscale=True).shape[2] == 3


@pytest.mark.parametrize("size", [(20_000, 20), (20, 20_000)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_like_a_ribbon_is_too_small_and_its_crop_is_noted_when_it_is_enlarged(root, suffix, size):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, {"jpg": "jpeg"}.get(suffix, suffix))
    (root / f"long.{suffix}").write_bytes(file.getvalue())
    reason = reason_of(root, f"long.{suffix}")
    assert f"is {size[0]}x{size[1]}, smaller than its bucket" in reason and "switch upscale on" in reason
    pixels = pixels_of(root, f"long.{suffix}", upscale=True)
    assert max(pixels.shape[:2]) == 4 * min(pixels.shape[:2]) and pixels[..., 0].min() > 250
    assert any("more than half of it is cropped away" in note
               for note in notes_on(scan(root, upscale=True), f"long.{suffix}"))


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {}), ("tiff", {}), ("tiff", {"compression": "tiff_lzw"})])
def test_cmyk_becomes_the_color_it_shows(root, suffix, options):
    Image.new("CMYK", (96, 64), (0, 255, 255, 0)).save(root / f"c.{suffix}", **options)
    assert np.abs(pixels_of(root, f"c.{suffix}").astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_keeps_its_brightness(root, suffix):
    ramp = np.linspace(0, 65535, 96).astype(np.uint16)
    Image.fromarray(np.repeat(ramp[None], 64, 0)).save(root / f"grey.{suffix}")
    got = pixels_of(root, f"grey.{suffix}").mean((0, 2))
    expected = np.linspace(0, 255, len(got))
    assert np.abs(got - expected).max() < 4 and got[0] < got[len(got) // 2] < got[-1]


def test_floats_of_0_to_1_are_not_black(root):
    Image.fromarray(np.full((64, 96), 0.5, np.float32)).save(root / "float.tiff")
    assert 100 < pixels_of(root, "float.tiff").mean() < 200


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_with_a_transparent_color_lies_on_the_chosen_one(root, suffix):
    image = Image.new("P", (96, 64), 0)
    image.putpalette([0, 0, 255, 0, 255, 0] + [0] * 762)
    image.paste(1, (48, 0, 96, 64))
    image.save(root / f"p.{suffix}", transparency=0)
    left, right = np.split(pixels_of(root, f"p.{suffix}", alpha_color="red").astype(int), 2, axis=1)
    assert np.abs(left[:, :-4] - (255, 0, 0)).max() <= 2 and np.abs(right[:, 4:] - (0, 255, 0)).max() <= 2


@pytest.mark.parametrize("suffix", ["webp", pytest.param("avif", marks=pytest.mark.skipif(
    "avif" not in FORMATS, reason="this Pillow reads no avif"))])
def test_an_animated_webp_or_avif_is_a_clip(root, suffix):
    frames = [Image.fromarray(clips.numbered(number)) for number in range(20)]
    frames[0].save(root / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=100, quality=95)
    manifest = scan(root, frame_buckets=(1, 17))
    clip = sample_of(manifest, f"a.{suffix}")
    assert clip.bucket.frames == 17 and clip.source.num_frames == 20 and clip.source.fps == 10
    assert filling._pixels(clip, 0).shape == (17, 64, 64, 3)
    assert [clips.number_of(frame) for frame in filling._pixels(clip, 0)] == [k * 10 // 16 for k in range(17)]
    assert f"a.{suffix} is a clip" in reasons(scan(root))[f"a.{suffix}"]


def test_of_a_tiff_of_many_pages_the_first_is_used_and_a_note_says_so(root):
    pages = [Image.new("RGB", (96, 64), color) for color in ("red", "green", "blue")]
    pages[0].save(root / "scan.tiff", save_all=True, append_images=pages[1:])
    assert (pixels_of(root, "scan.tiff") == (255, 0, 0)).all()
    assert "scan.tiff: holds 3 pages; the first is used." in scan(root).notes


def test_a_jpg_with_a_preview_is_a_picture(root):
    Image.new("RGB", (96, 64), "red").save(root / "phone.jpg", "MPO", save_all=True,
                                           append_images=[Image.new("RGB", (48, 32), "blue")])
    assert Image.open(root / "phone.jpg").n_frames == 2
    assert np.abs(pixels_of(root, "phone.jpg").astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(("suffix", "orientation"), [
    *((suffix, orientation) for suffix in ("jpg", "png", "webp") for orientation in range(9)),
    ("png", 9), ("webp", 90), ("jpg", 9),
])
def test_the_size_is_that_of_the_picture_as_it_is_shown(root, suffix, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    noise(1, (120, 64)).save(root / f"turned.{suffix}", exif=exif)
    height, width, _ = pixels_of(root, f"turned.{suffix}").shape
    assert (height > width) == (5 <= orientation <= 8)


@pytest.mark.parametrize("suffix", ["bmp", "gif"])
def test_a_header_that_promises_too_many_pixels(root, suffix):
    data = bytearray(encoded(suffix))
    side = 60_000
    if suffix == "bmp":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        data[6:10] = struct.pack("<HH", side, side)
    (root / f"bomb.{suffix}").write_bytes(data)
    assert "has too many pixels to be opened safely; scale it down" in reason_of(root, f"bomb.{suffix}")


def test_the_limit_of_pixels_holds_where_pillow_s_own_was_switched_off(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("1", (10_000, 9_000)).save(root / "huge.png")
    assert "has too many pixels" in reason_of(root, "huge.png")


class Codec:
    """Stands for the VAE."""

    id = "vae"

    def encode(self, pixels_FHW3):
        frames, height, width, _ = pixels_FHW3.shape
        return torch.zeros(16, (frames - 1) // 4 + 1, height // 8, width // 8)


class Text:
    """Stands for UMT5."""

    id = "umt5"

    def encode(self, caption):
        return torch.ones(1, 8)


def disturbed(data: bytes, draw: random.Random) -> bytes:
    """A copy with some bytes changed, cut off, repeated or taken out."""
    changed = bytearray(data)
    kind = draw.choice(["flip", "flip", "flip head", "cut", "take out", "repeat"])
    start = draw.randrange(len(data))
    if kind.startswith("flip"):
        for _ in range(draw.choice([1, 3, 20])):
            changed[draw.randrange(min(len(data), 80) if kind == "flip head" else len(data))] = draw.randrange(256)
    elif kind == "cut":
        del changed[start:]
    elif kind == "take out":
        del changed[start:start + draw.randrange(1, 50)]
    else:
        changed[start:start] = data[start:start + draw.randrange(1, 50)]
    return bytes(changed)


@pytest.mark.parametrize("suffix", [*FORMATS, "animated.gif", "animated.webp", "animated.png"])
def test_whatever_happens_to_bytes_a_file_is_used_or_left_out_with_a_sentence(root, suffix):
    draw = random.Random(suffix)
    options = {"save_all": True, "append_images": [noise(2, (32, 24)), noise(3, (32, 24))], "duration": 400}
    whole = encoded(suffix.split(".")[-1], (32, 24), **(options if suffix.startswith("animated") else {}))
    for number in range(60):
        (root / f"{number:02}.{suffix}").write_bytes(disturbed(whole, draw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, over what it reads all the same
        manifest = scan(root, resolution=32, upscale=True, frame_buckets=(1, 5))
        left_out = reasons(manifest)
        used = {clip.name: clip for clip in manifest.samples}
        assert len(used) + len(left_out) == 61 and not used.keys() & left_out.keys()
        assert len(left_out) > 5, "the test does damage"
        cached = tools.drained(filling.fill(manifest, Store(root / "cache"), Codec(), {"text": Text()}))[1]
    assert {clip.name for clip in cached.samples} | {each.name for each in cached.left_out} == set(used)
    assert all(each.name in each.reason for each in cached.left_out)
    assert all("; " in reason for reason in (*left_out.values(), *(each.reason for each in cached.left_out)))


def test_random_bytes_with_the_marks_of_pictures_raise_nothing_but_sentences():
    draw = random.Random(0)
    for data in (encoded(suffix, (16, 16)) for suffix in FORMATS):
        for length in (8, 12, 30, 60):
            junk = data[:length] + draw.randbytes(200)
            for read in (pictures.probe, pictures.open_picture, pictures.open_alpha):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        read(junk, "x")
                    except UserError as error:
                        assert str(error).startswith("x ")
