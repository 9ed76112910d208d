"""What other node packs switch for the whole process changes nothing of what is read, and is left as they set it."""

import io
import logging
import threading
import warnings

import av
import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin

from wantune.tests.support import clips
from wantune.tests.support.folders import draw, names, noise, reasons, scan
from wantune.trainer.base import remembered
from wantune.trainer.data import facts, pictures, thumbnails
from wantune.trainer.encoded import fill as filling

FORMATS = {"jpg": {}, "png": {}, "webp": {}, "bmp": {}, "gif": {}, "tiff": {}, "lzw.tiff": {"compression": "tiff_lzw"}}


@pytest.fixture
def root(tmp_path):
    """A picture of each kind, an animation and a clip; none is broken."""
    for suffix, options in FORMATS.items():
        noise(1).save(tmp_path / f"{suffix.replace('.', '_')}_picture.{suffix.split('.')[-1]}", **options)
    layered = noise(2)
    layered.putalpha(Image.linear_gradient("L").resize(layered.size))
    layered.save(tmp_path / "layered.png")
    layered.quantize(64).save(tmp_path / "palette.png")
    layered.quantize(64).save(tmp_path / "palette.gif")
    moving = [noise(number) for number in range(20)]
    for suffix in ("gif", "webp", "png"):
        moving[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=moving[1:], duration=100)
    clips.at_rate(tmp_path / "clip.mp4", 16, 20)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"{path.stem}.txt").write_text(f"zwx {path.stem}", encoding="utf-8")
    return tmp_path


def everything(root) -> dict:
    """What a scan finds and what is trained on, by name."""
    manifest = scan(root, frame_buckets=(1, 17), alpha_color="#204060")
    found = {sample.name: (sample.content, filling._pixels(sample, 0).tobytes(), thumbnails.make(sample, 0, False))
             for sample in manifest.samples}
    return {**found, **reasons(manifest)}


SWITCHES = {
    "truncated": (ImageFile, "LOAD_TRUNCATED_IMAGES", True), "few pixels": (Image, "MAX_IMAGE_PIXELS", 10),
    "any pixels": (Image, "MAX_IMAGE_PIXELS", None), "little text": (PngImagePlugin, "MAX_TEXT_CHUNK", 10),
    "no text": (PngImagePlugin, "MAX_TEXT_MEMORY", 10), "block": (ImageFile, "MAXBLOCK", 8192),
    "gif": (GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_ALWAYS),
    "open": (Image, "open", lambda *arguments, **settings: noise(9)),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_of_pillow_change_nothing(root, monkeypatch, name):
    before = everything(root)
    assert len(before) == 14 and not [each for each in before.values() if isinstance(each, str)]
    monkeypatch.setattr(*SWITCHES[name])
    assert everything(root) == before
    owner, attribute, value = SWITCHES[name]
    assert getattr(owner, attribute) is value or getattr(owner, attribute) == value, "it is left as it was set"


@pytest.mark.parametrize("is_tiny", [False, True])
def test_warnings_that_are_errors_change_nothing(root, monkeypatch, is_tiny):
    exif = Image.Exif()
    exif[0x0112] = 6
    damaged = bytearray(exif.tobytes())
    damaged[14:16] = b"\x09\x00"  # nine entries where there is one: Pillow warns and takes what it finds
    noise(3).save(root / "exif.jpg", exif=bytes(damaged))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = everything(root)
    assert "exif.jpg" in before and not isinstance(before["exif.jpg"], str)
    if is_tiny:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        assert everything(root) == before
        assert warnings.filters == filters


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff"])
def test_half_a_picture_is_damaged_whatever_is_switched(tmp_path, monkeypatch, suffix):
    draw(tmp_path / "good.png", 0, "zwx good")
    out = io.BytesIO()
    noise(1, (128, 128)).save(out, {"jpg": "jpeg"}.get(suffix, suffix))
    (tmp_path / f"half.{suffix}").write_bytes(out.getvalue()[:len(out.getvalue()) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    manifest = scan(tmp_path)
    assert names(manifest) == ["good.png"] and f"half.{suffix}" in reasons(manifest)
    with pytest.raises(ValueError, match="half"):
        pictures.open_picture((tmp_path / f"half.{suffix}").read_bytes(), f"half.{suffix}")


def test_another_thread_keeps_its_switch_while_pictures_are_read(root, monkeypatch):
    """ComfyUI's own Load Image sets it for a moment; what it reads then must not fail because a folder is scanned."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    seen, is_done = set(), threading.Event()

    def look():
        while not is_done.is_set():
            seen.add((ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS))

    limit, thread = Image.MAX_IMAGE_PIXELS, threading.Thread(target=look)
    thread.start()
    everything(root)
    is_done.set()
    thread.join()
    assert seen == {(True, limit)}


def test_facts_remembered_by_earlier_versions_are_not_believed(tmp_path, monkeypatch):
    """Half a picture that was called usable while a pack had switched that on."""
    root, memory = tmp_path / "pictures", tmp_path / "memory"
    draw(root / "good.png", 0, "zwx good")
    out = io.BytesIO()
    noise(1, (128, 128)).save(out, "jpeg")
    (root / "half.jpg").write_bytes(out.getvalue()[:len(out.getvalue()) // 2])
    monkeypatch.setattr(remembered, "SETTLED", -1.0)
    monkeypatch.setattr(facts, "VERSION", facts.VERSION.replace("2, ", "1, ", 1))
    monkeypatch.setattr(facts, "_read", lambda entry: facts.Facts("digest", 128, 128))
    assert names(scan(root, memory)) == ["good.png", "half.jpg"]
    monkeypatch.undo()
    assert facts.VERSION.startswith("2, ")
    assert names(scan(root, memory)) == ["good.png"]


@pytest.mark.parametrize("level", [av.logging.DEBUG, av.logging.PANIC, None])
def test_the_log_of_pyav_changes_nothing_and_hangs_nothing(root, level):
    before, was = everything(root), av.logging.get_level()
    logging.getLogger("libav").setLevel(logging.CRITICAL)
    try:
        av.logging.set_level(level)
        found = {}
        thread = threading.Thread(target=lambda: found.update(everything(root)), daemon=True)
        thread.start()
        thread.join(60)
        assert found == before
        assert av.logging.get_level() == level
    finally:
        av.logging.set_level(was)


def test_errors_of_arithmetic_and_another_working_folder_change_nothing(root, tmp_path_factory, monkeypatch):
    before = everything(root)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with np.errstate(all="raise"):
        assert everything(root) == before


def test_a_foreign_reader_of_png_is_not_asked(root, monkeypatch):
    class Other(ImageFile.ImageFile):
        format = "OTHER"

        def _open(self):
            raise AssertionError("asked")

    before = everything(root)
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        monkeypatch.setitem(Image.OPEN, kind, (Other, None))
    assert everything(root) == before
