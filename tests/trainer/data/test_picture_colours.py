"""Pictures as the eye saw them: ICC profiles, PNG's own colour chunks; and PNGs with much text."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from wantune.tests.support import colours
from wantune.tests.support.folders import draw, names, notes_on, reasons, sample_of, scan
from wantune.trainer.base import remembered
from wantune.trainer.data import colour, facts, pictures, thumbnails, video
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded import cache

SHOWN = [(200, 100, 80), (90, 160, 90), (60, 80, 190), (128, 128, 128), (240, 240, 240)]
"""In sRGB; each a column of 24 pixels."""

P3_OF_SRGB = np.array([[0.822462, 0.177538, 0], [0.033194, 0.966806, 0], [0.017083, 0.072397, 0.910520]])
ADOBE_OF_SRGB = np.array([[0.715146, 0.284854, 0], [0, 1, 0], [0, 0.041184, 0.958816]])
"""Linear light, published: CSS Color 4 and Adobe RGB (1998)."""


def linear(values) -> np.ndarray:
    signal = np.asarray(values) / 255
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def srgb(light) -> np.ndarray:
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def columns(values, mode: str = "RGB") -> Image.Image:
    row = np.repeat(np.rint(np.asarray(values)).astype(np.uint8), 24, 0)
    pixels = np.repeat(row[None], 96, 0)
    return Image.frombytes(mode, (len(row), 96), pixels.tobytes())


def shown(root, name: str) -> np.ndarray:
    """Each column as it is trained on, and as its thumbnail shows it."""
    sample = sample_of(scan(root, alpha_color="#0000ff"), name)
    image = pictures.open_picture(sample.path.read_bytes(), name, sample.background or "white")
    thumbnail = Image.open(io.BytesIO(thumbnails.make(sample, 0, is_moving=False))).convert("RGB")
    small = np.asarray(thumbnail.resize(image.size))
    seen = np.asarray(image).astype(int)[48, 12::24]
    assert np.abs(small[48, 12::24] - seen).max() <= 24
    return seen


P3 = {"p3": (colours.rgb_profile(colours.DISPLAY_P3, None), srgb(linear(SHOWN) @ P3_OF_SRGB.T)),
      "adobe": (colours.rgb_profile(colours.ADOBE_RGB, 563 / 256),
                255 * (linear(SHOWN) @ ADOBE_OF_SRGB.T) ** (256 / 563))}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", *(["avif"] if features.check("avif") else [])])
@pytest.mark.parametrize("space", P3)
def test_wide_rgb_is_converted(tmp_path, space, suffix):
    profile, values = P3[space]
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}, "avif": {"quality": 100}}
    columns(values).save(tmp_path / f"a.{suffix}", icc_profile=profile, **options.get(suffix, {}))
    assert np.abs(shown(tmp_path, f"a.{suffix}") - SHOWN).max() <= (5 if suffix == "avif" else 3)


def test_transparency_is_kept_and_palettes_are_converted_too(tmp_path):
    profile, values = P3["p3"]
    layered = columns(values)
    layered.putalpha(columns([255, 255, 0, 255, 255], "L"))
    layered.save(tmp_path / "rgba.png", icc_profile=profile)
    expected = np.array(SHOWN)
    expected[2] = 0, 0, 255
    assert np.abs(shown(tmp_path, "rgba.png") - expected).max() <= 2
    columns(values).quantize(16).save(tmp_path / "palette.png", icc_profile=profile)
    assert np.abs(shown(tmp_path, "palette.png") - SHOWN).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_each_frame_of_an_animation_is_converted(tmp_path, suffix):
    profile, values = P3["p3"]
    moving = [columns(values), columns(255 - values)] * 10
    options = {"lossless": True} if suffix == "webp" else {}
    moving[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=moving[1:], duration=62, icc_profile=profile,
                   **options)
    sample = sample_of(scan(tmp_path, frame_buckets=(1, 17)), f"a.{suffix}")
    pixels = video.read(sample.path, sample.name, sample.source, Bucket(17, 96, 120), 0, 16)
    assert sample.reading == "colour" and np.abs(pixels[0, 48, 12::24] - np.array(SHOWN)).max() <= 3
    assert np.abs(pixels[2] - pixels[0].astype(int)).max() <= 3


def test_what_is_remembered_of_a_file_is_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "SETTLED", -1.0)
    root = tmp_path / "pictures"
    root.mkdir()
    columns(P3["p3"][1]).save(root / "a.png", icc_profile=P3["p3"][0])
    columns(SHOWN).save(root / "b.png", icc_profile=P3["p3"][0][:300])
    colours.film(root / "c.mov", [colours.plain(np.full((96, 96, 3), n, np.uint8), "yuva444p10le") for n in range(9)],
                 "prores_ks", rate=2, options={"profile": "4444"})
    settings = {"frame_buckets": (1, 33), "upscale": True}
    found = scan(root, tmp_path / "memory", **settings)
    assert len(found.samples) == 3 and len(found.notes) >= 2
    monkeypatch.setattr(facts, "_read", None)
    assert scan(root, tmp_path / "memory", **settings) == found


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_of_another_gamma_is_converted(tmp_path, mode):
    greys = np.array([20, 60, 120, 200, 250])
    values = 255 * linear(greys) ** (1 / 1.8)
    image = columns(values, "L")
    if mode == "LA":
        image.putalpha(255)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(tmp_path / "grey.png", icc_profile=colours.gray_profile(1.8))
    assert np.abs(shown(tmp_path, "grey.png") - greys[:, None]).max() <= 2


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_follows_its_profile(tmp_path, suffix):
    """A press whose cyan ink is green, say: no formula knows that, its table does."""
    def lab_of(inks):
        return (0, 0, 0) if inks[3] else (60, -60, 40) if inks == (1, 0, 0, 0) else (100 - 25 * sum(inks), 0, 0)

    profile = colours.cmyk_profile(lab_of)
    image = columns([(255, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 0)], "CMYK")
    image.save(tmp_path / f"a.{suffix}", icc_profile=profile)
    seen = shown(tmp_path, f"a.{suffix}")
    assert seen[0, 1] > seen[0, 0] + 60 and seen[0, 1] > seen[0, 2] + 60, "Pillow's own cyan is (0, 255, 255)"
    assert seen[1].min() >= 250 and seen[2].max() <= 5


@pytest.mark.parametrize("profile", [
    b"", b"no profile at all" * 20, P3["p3"][0][:200], colours.gray_profile(1.8), P3["p3"][0] + bytes(17 * 2**20)],
    ids=["empty", "noise", "cut", "of another mode", "huge"])
def test_a_profile_that_cannot_be_followed_is_ignored_and_noted(tmp_path, profile):
    draw(tmp_path / "other.png", 1, "zwx other", (128, 96))
    (tmp_path / "a.png").write_bytes(with_chunks(columns(SHOWN), (b"iCCP", b"name\0\0" + zlib.compress(profile))))
    assert np.array_equal(shown(tmp_path, "a.png"), SHOWN)
    (note,) = [note for note in notes_on(scan(tmp_path), "a.png") if "profile" in note]
    assert "its colour profile is ignored, since it" in note


@pytest.mark.parametrize("profile", [
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), colours.rgb_profile(colours.SRGB, None)])
def test_srgb_profiles_change_no_pixel_and_no_name_in_the_cache(tmp_path, profile):
    draw(tmp_path / "a.png", 0, "zwx", (128, 96))
    plain = Image.open(tmp_path / "a.png")
    plain.save(tmp_path / "a.png", icc_profile=profile)
    sample = sample_of(scan(tmp_path), "a.png")
    assert sample.reading == "" and sample.treatment == []
    assert np.array_equal(pictures.open_picture((tmp_path / "a.png").read_bytes(), "a.png"), plain)
    assert cache._window(sample, 0, "vae") == [sample.digest, str(sample.bucket), "vae", ""]


def test_a_converted_picture_has_another_name_in_the_cache_than_before(tmp_path):
    columns(P3["p3"][1]).save(tmp_path / "a.png", icc_profile=P3["p3"][0])
    sample = sample_of(scan(tmp_path), "a.png")
    assert cache._window(sample, 0, "vae")[4:] == ["colour"] and sample.content[-1] == "colour"


def with_chunks(image: Image.Image, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with further chunks after its header."""
    out = io.BytesIO()
    image.save(out, "PNG")
    written = b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                       for kind, body in chunks)
    return out.getvalue()[:33] + written + out.getvalue()[33:]


def test_a_png_that_says_its_gamma_and_primaries_is_converted(tmp_path):
    linear_light = with_chunks(columns(255 * linear(SHOWN)), (b"gAMA", struct.pack(">I", 100_000)))
    (tmp_path / "linear.png").write_bytes(linear_light)
    assert np.abs(shown(tmp_path, "linear.png") - SHOWN).max() <= 4
    usual = with_chunks(columns(SHOWN), (b"gAMA", struct.pack(">I", 45_455)), (
        b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)))
    (tmp_path / "usual.png").write_bytes(usual)
    assert np.array_equal(shown(tmp_path, "usual.png"), SHOWN)
    assert sample_of(scan(tmp_path), "usual.png").reading == ""


@pytest.mark.parametrize(("numbers", "values"), [
    ((12, 13, 0, 1), P3["p3"][1]), ((1, 13, 0, 1), SHOWN), ((77, 99, 0, 1), SHOWN)], ids=["p3", "srgb", "nonsense"])
def test_a_png_that_names_its_colours_by_number_is_converted(tmp_path, numbers, values):
    (tmp_path / "a.png").write_bytes(with_chunks(columns(values), (b"cICP", bytes(numbers))))
    assert np.abs(shown(tmp_path, "a.png") - SHOWN).max() <= 2


@pytest.mark.skipif(not features.check("avif"), reason="Pillow before 11.3")
def test_an_avif_that_names_its_colours_by_number_is_converted(tmp_path):
    columns(P3["p3"][1]).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
    data = bytearray((tmp_path / "a.avif").read_bytes())
    place = data.index(b"colrnclx") + 8
    data[place:place + 4] = struct.pack(">2H", 12, 13)
    (tmp_path / "a.avif").write_bytes(data)
    assert np.abs(shown(tmp_path, "a.avif") - SHOWN).max() <= 4


def test_matrices_are_the_published_ones():
    to_bt709 = np.array(colour.Encoding.of(9, 1).to_bt709)
    assert np.abs(to_bt709 - [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
                  ).max() < 2e-4  # ITU-R BT.2087
    assert np.abs(np.linalg.inv(colour.Encoding.of(12, 13).to_bt709) - P3_OF_SRGB).max() < 2e-4
    assert np.abs(np.array(colour.Encoding.of(11, 13).to_bt709).sum(1) - 1).max() < 1e-6, "white stays white"


def test_masks_are_numbers_and_not_colours(tmp_path):
    draw(tmp_path / "a.png", 0, "zwx", (128, 128))
    (tmp_path / "masks").mkdir()
    Image.new("L", (128, 128), 128).save(tmp_path / "masks" / "a.png", icc_profile=colours.gray_profile(1.0))
    from wantune.trainer.data import masks

    sample = sample_of(scan(tmp_path, masks="folder"), "a.png")
    assert masks.read(sample.mask, (8, 8)).unique().tolist() == pytest.approx([128 / 255])


def texts(number: int) -> list[tuple[bytes, bytes]]:
    """Chunks that Pillow refuses: each holds more than 1 MiB when it is inflated, or all hold more than 64."""
    random = np.random.default_rng(number).integers(32, 127, 3 * 2**20, np.uint8).tobytes()
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0"
    return [[(b"zTXt", b"Comment\0\0" + zlib.compress(random))], [(b"iTXt", xmp + zlib.compress(random))],
            [(b"iTXt", b"Description\0\1\0\0\0" + zlib.compress(random))],
            [(b"zTXt", b"c%d\0\0" % n + zlib.compress(bytes(32) + b"a" * 900_000)) for n in range(80)],
            [(b"tEXt", b"prompt\0" + random)]][number]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("number", range(5))
def test_a_whole_png_with_much_text_is_used(tmp_path, number, mode):
    image = columns(SHOWN).quantize(16) if mode == "P" else columns(SHOWN).convert(mode)
    (tmp_path / "a.png").write_bytes(with_chunks(image, *texts(number)))
    manifest = scan(tmp_path)
    assert names(manifest) == ["a.png"], reasons(manifest)
    assert np.abs(shown(tmp_path, "a.png") - SHOWN).max() <= 1


def test_a_large_profile_and_an_orientation_in_large_xmp_still_count(tmp_path):
    profile, values = P3["p3"]
    random = np.random.default_rng(0).integers(32, 127, 2 * 2**20, np.uint8).tobytes()
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>' + random)
    large = profile + random  # the header's size leaves the rest out
    name = b"p\0\0" + zlib.compress(large)
    image = columns(values).transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "a.png").write_bytes(with_chunks(image, (b"iCCP", name), (b"iTXt", xmp)))
    assert np.abs(shown(tmp_path, "a.png") - SHOWN).max() <= 3


@pytest.mark.parametrize("place", [0.5, 0.9])
def test_much_text_does_not_hide_damage(tmp_path, place):
    draw(tmp_path / "good.png", 1, "zwx", (128, 96))
    data = bytearray(with_chunks(Image.open(tmp_path / "good.png"), *texts(0)))
    data[int(len(data) * place)] ^= 1
    (tmp_path / "bad.png").write_bytes(data)
    assert "bad.png is damaged (wrong checksum in" in reasons(scan(tmp_path))["bad.png"]
