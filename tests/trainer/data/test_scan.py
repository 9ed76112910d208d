"""Scanning a folder: what is kept, what is left out, and the sentence that says so."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import pictures, report
from wantune.trainer.data import scan as scanning
from wantune.trainer.settings.data import DatasetConfig


def scan(folder, **settings):
    return scanning.scan(DatasetConfig(folder=str(folder), **{"resolution": 64, "trigger_word": "zwx", **settings}))


def read_64(path: Path) -> np.ndarray:
    """The picture as it is trained on at 64 x 64: (1, 64, 64, 3)."""
    return pictures.fit(pictures.open_picture(path.read_bytes(), path.name), 64, 64)[None]


@pytest.fixture
def folder(tmp_path):
    """One good picture; each test adds something bad beside it."""
    Image.effect_noise((128, 96), 50).convert("RGB").save(tmp_path / "good.png")
    (tmp_path / "good.txt").write_text("zwx in a park", encoding="utf-8")
    return tmp_path


def reason_of(manifest, name: str) -> str:
    (reason,) = [rejection.reason for rejection in manifest.rejected if rejection.path.name == name]
    assert [clip.path.name for clip in manifest.samples] == ["good.png"], "the good picture is still used"
    assert name in reason and name in report.text(manifest)
    return reason


def test_real_pictures_are_kept_with_caption_size_and_bucket(tmp_path):
    manifest = scan(tools.write_pictures(tmp_path / "pictures"), resolution=256, trigger_word="")
    assert [(c.path.stem, c.captions[0]) for c in manifest.samples] == [
        (name.split(".")[0], caption) for name, caption in sorted(tools.PICTURES.items())]
    sizes = {c.path.stem: (c.width, c.height, str(c.bucket)) for c in manifest.samples}
    assert sizes["astronaut"] == (512, 512, "256x256")
    assert sizes["coffee"] == (600, 400, "320x208")
    assert not manifest.rejected and not manifest.notes
    lines = report.text(manifest)
    assert "4 of 4 files are used" in lines and "40 samples an epoch" in lines and "320x208" in lines


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp", "PNG", "JPG"])
def test_every_promised_format_is_read(folder, suffix):
    Image.effect_noise((128, 96), 50).convert("RGB").save(folder / f"other.{suffix}")
    assert len(scan(folder).samples) == 2


def test_exif_orientation_turns_the_picture(folder):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (200, 100)).save(folder / "turned.jpg", exif=exif)
    clip = scan(folder).samples[1]
    assert (clip.width, clip.height) == (100, 200)


@pytest.mark.parametrize(("image", "expected"), [
    (Image.new("RGBA", (80, 80), (255, 0, 0, 0)), (255, 255, 255)),
    (Image.new("LA", (80, 80), (0, 255)), (0, 0, 0)),
    (Image.fromarray(np.full((80, 80), 32768, np.uint16)), (127, 127, 127)),
    (Image.new("CMYK", (80, 80), (0, 255, 255, 0)), (255, 0, 0)),
    (Image.new("L", (80, 80), 200), (200, 200, 200)),
    (Image.new("1", (80, 80), 1), (255, 255, 255)),
], ids=["transparent", "grey-alpha", "16-bit", "cmyk", "grey", "bilevel"])
def test_every_mode_becomes_rgb(tmp_path, image, expected):
    path = tmp_path / ("picture.jpg" if image.mode == "CMYK" else "picture.png")
    image.save(path)
    pixels = read_64(path)
    assert pixels.shape == (1, 64, 64, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_transparent_palette_lies_on_white(tmp_path):
    image = Image.new("P", (80, 80), 0)
    image.putpalette([0, 0, 255] + [0] * 765)
    image.save(tmp_path / "p.png", transparency=0)
    assert (read_64(tmp_path / "p.png") == 255).all()


def test_the_crop_is_the_centre_and_nothing_is_stretched(tmp_path):
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_64(tmp_path / "a.png")
    assert read.shape == (1, 64, 64, 3) and read[0, :, 2:-2].min() > 250


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; give"):
        scan(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no pictures or clips; put"):
        scan(tmp_path)


def test_a_folder_without_captions_says_what_to_write(tmp_path):
    tools.write_pictures(tmp_path)
    for caption in tmp_path.glob("*.txt"):
        caption.unlink()
    with pytest.raises(UserError, match="No file in .* has a caption; write a .txt"):
        scan(tmp_path, trigger_word="")


def test_without_caption_the_trigger_word_serves_and_a_note_says_so(folder):
    (folder / "good.txt").unlink()
    manifest = scan(folder)
    assert manifest.samples[0].captions[0] == "zwx"
    assert "good.png: has no caption" in report.text(manifest)


def test_one_picture_without_caption_is_left_out(folder):
    Image.effect_noise((128, 96), 50).save(folder / "bare.png")
    assert "write one into bare.txt" in reason_of(scan(folder, trigger_word=""), "bare.png")


def test_a_caption_without_the_trigger_word_gets_it_and_a_note(folder):
    (folder / "good.txt").write_text("a man in a park", encoding="utf-8")
    manifest = scan(folder)
    assert manifest.samples[0].captions[0] == "zwx, a man in a park"
    assert 'good.png: its caption lacks the trigger word; "zwx" was put in front' in report.text(manifest)


def test_a_truncated_picture_is_left_out(folder):
    Image.effect_noise((128, 96), 50).convert("RGB").save(folder / "cut.jpg")
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    assert "is damaged" in reason_of(scan(folder), "cut.jpg")


def test_a_zero_byte_file_is_left_out(folder):
    (folder / "nothing.png").write_bytes(b"")
    assert "is empty (0 bytes)" in reason_of(scan(folder), "nothing.png")


def test_a_text_called_png_is_left_out(folder):
    (folder / "liar.png").write_text("hello")
    assert "is not a picture" in reason_of(scan(folder), "liar.png")


def test_a_picture_smaller_than_its_bucket_is_left_out_unless_upscale_is_on(folder):
    Image.effect_noise((40, 40), 50).save(folder / "small.png")
    reason = reason_of(scan(folder), "small.png")
    assert "40x40, smaller than its bucket 64x64" in reason and "upscale" in reason
    assert len(scan(folder, upscale=True).samples) == 2


def test_a_decompression_bomb_is_refused_with_a_sentence(folder):
    side = 20_000
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(bomb)
    assert "too many pixels" in reason_of(scan(folder), "bomb.png")


def test_an_unreadable_file_is_left_out(folder, monkeypatch):
    Image.effect_noise((128, 96), 50).save(folder / "locked.png")
    read_bytes = Path.read_bytes

    def refuse(path):  # not chmod: the tests may run as root, who reads everything
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "permissions" in reason_of(scan(folder), "locked.png")


@pytest.mark.parametrize(("encoding", "caption"), [
    ("utf-8-sig", "zwx café"), ("utf-16", "zwx café 猫"), ("latin-1", "zwx café"),
])
def test_captions_of_other_editors_are_read(folder, encoding, caption):
    (folder / "good.txt").write_bytes(caption.encode(encoding))
    assert scan(folder).samples[0].captions[0] == caption


def test_names_with_spaces_quotes_and_chinese_work(folder):
    for name in ("with space", "it's \"quoted\"", "猫 🐈"):
        Image.effect_noise((128, 96), 50).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"zwx {name}", encoding="utf-8")
    assert len(scan(folder).samples) == 4


def test_leftovers_are_mentioned(folder):
    (folder / "orphan.txt").write_text("nobody")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    lines = report.text(scan(folder))
    assert "orphan.txt: a caption without its picture" in lines and "notes.pdf is no picture" in lines


def test_nothing_usable_lists_the_reasons(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_text("x")
    with pytest.raises(UserError, match="a.png is empty.*b.png is not a picture"):
        scan(tmp_path)


@pytest.mark.parametrize(("setting", "value"), [
    ("resolution", 8), ("resolution", 10_000), ("num_repeats", 0), ("validation_items", -1),
])
def test_wrong_settings_are_named_with_their_value(tmp_path, setting, value):
    with pytest.raises(UserError, match=f"{setting} is {value}"):
        DatasetConfig(folder=str(tmp_path), **{setting: value})


def test_the_digest_follows_content_and_caption_and_not_the_place(folder, tmp_path_factory):
    import shutil

    before = scan(folder).digest
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(folder, copy)
    assert scan(copy).digest == before
    (copy / "good.txt").write_text("zwx elsewhere", encoding="utf-8")
    assert scan(copy).digest != before
