"""Control clips: where they lie, that they are read as their clips are, and what is wrong with others."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from wantune.tests.support import clips, tools
from wantune.tests.support.folders import draw, names, reasons, sample_of, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.encoded import fill as filling
from wantune.trainer.encoded.store import Store
from wantune.trainer.settings.data import CONTROL, CONTROL_AND_FIRST, FIRST_FRAME, NO_FRAME, VACE

CLIP_FPS, FPS = 32, 16
"""Of the clip's file, and at which it is read."""


class Seen:
    """Stands for an encoder: keeps the numbers of the frames that it gets."""

    def __init__(self, name: str) -> None:
        self.id, self.numbers = name, []

    def encode(self, pixels_FHW3):
        self.numbers.append([clips.number_of(frame) for frame in pixels_FHW3])
        return torch.full((16, (len(pixels_FHW3) - 1) // 4 + 1, 8, 8), float(pixels_FHW3.mean()))


class Text:
    """Stands for UMT5."""

    id = "umt5"

    def encode(self, caption):
        return torch.ones(1, 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clip of two seconds, the same at half of its rate as its control clip, and a picture with its own."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "control").mkdir()
    clips.at_rate(folder / "clip.mp4", CLIP_FPS, 2 * CLIP_FPS)
    clips.at_rate(folder / "control" / "clip.mkv", FPS, 2 * FPS, picture=lambda number: clips.numbered(number + 500))
    Image.fromarray(clips.numbered(7)).save(folder / "still.png")
    Image.fromarray(clips.numbered(507)).save(folder / "control" / "still.webp", lossless=True)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "data")


def scanned(folder, condition: str = CONTROL, **settings):
    return scan(folder, condition=condition, **{"frame_buckets": (1, 9), **settings})


def filled(folder, condition: str = CONTROL, **settings):
    """The dataset, and what the encoders saw."""
    encoders = {name: Seen(name) for name in ("vae", "control", "reference", "vace")}
    found = tools.drained(filling.fill(
        scanned(folder, condition, **settings), Store(folder.parent / "cache"), encoders["vae"],
        {"text": Text(), **{name: encoders[name] for name in ("control", "reference", "vace")}}))[1]
    return found, {name: sorted(encoder.numbers) for name, encoder in encoders.items()}


def test_files_in_a_folder_of_control_clips_are_no_samples(folder):
    found = scanned(folder)
    assert names(found) == ["clip.mp4", "still.png"] and not found.rejected
    assert sample_of(found, "clip.mp4").control.name == "control/clip.mkv"
    assert sample_of(found, "still.png").control.name == "control/still.webp"


@pytest.mark.parametrize("condition", [NO_FRAME, FIRST_FRAME])
def test_without_the_setting_they_are_noted_and_nothing_else_changes(folder, condition):
    found = scanned(folder, condition)
    assert names(found) == ["clip.mp4", "still.png"] and all(sample.control is None for sample in found.samples)
    assert any(f'control clip that is not used, since condition is "{condition}"' in note for note in found.notes)
    shutil.rmtree(folder / "control")
    assert scanned(folder, condition).digest == found.digest


@pytest.mark.parametrize("extraction", ["start", "middle", "uniform"])
def test_a_control_clip_is_read_at_the_times_of_its_clip(folder, extraction):
    found, seen = filled(folder, extraction=extraction)
    assert len(seen["vae"]) == len(seen["control"]) == {"start": 2, "middle": 2, "uniform": 5}[extraction]
    for own, control in zip(seen["vae"], seen["control"], strict=True):
        if own == [7]:
            assert control == [507]
        else:
            assert [number // (CLIP_FPS // FPS) for number in own] == [number - 500 for number in control]
    assert not seen["reference"] and not seen["vace"] and found.kinds == {"text", "control"}


@pytest.mark.parametrize(("condition", "kinds"), [
    (CONTROL_AND_FIRST, {"control", "reference"}), (VACE, {"vace"}), (NO_FRAME, set())])
def test_what_is_made_of_it_follows_the_condition(folder, condition, kinds):
    found, seen = filled(folder, condition)
    assert found.kinds == {"text"} | kinds
    assert {name for name, numbers in seen.items() if numbers} == {"vae"} | kinds
    if "reference" in kinds:
        assert seen["reference"] == seen["vae"], "its own pixels, and not the control clip's"


def test_what_is_made_is_kept_by_the_content_of_both(folder):
    first, _ = filled(folder)
    assert filled(folder)[1]["control"] == []
    Image.fromarray(clips.numbered(509)).save(folder / "control" / "still.webp", lossless=True)
    second, seen = filled(folder)
    assert seen["control"] == [[509]] and not seen["vae"], "the latents stay"
    assert first.digest != second.digest
    named = {each.name: each for each in second.samples}
    for sample in first.samples:
        is_same = sample.windows == named[sample.name].windows
        assert is_same == (sample.content == named[sample.name].content) == (sample.name == "clip.mp4")


def test_the_crop_is_that_of_the_clip(folder):
    """A shape that is cropped to its bucket, in another size."""
    wide = np.zeros((64, 160, 3), np.uint8)
    wide[:, 70:] = 255
    Image.fromarray(wide).save(folder / "still.png")
    Image.fromarray(wide).resize((320, 128), Image.Resampling.NEAREST).save(folder / "control" / "still.webp",
                                                                            lossless=True)
    sample = sample_of(scanned(folder, upscale=True), "still.png")
    own, control = filling._pixels(sample, 0), filling._pixels(sample.controlling, 0)
    assert own.shape == control.shape and np.abs(own.astype(int) - control).mean() < 4


def without_control(folder, name: str) -> None:
    for path in (folder / "control").glob(f"{name.split('.')[0]}.*"):
        path.unlink()


def late(control):
    clips.at_rate(control / "clip.mp4", FPS, 7)


def narrow(control):
    clips.at_rate(control / "clip.mp4", FPS, 32, picture=lambda number: clips.numbered(number)[:, :64])


def damaged(control):
    whole = clips.at_rate(control / "clip.mp4", FPS, 32)
    whole.write_bytes(whole.read_bytes()[:900])


BAD = {
    "none": ("clip.mp4", lambda control: None,
             "clip.mp4 has no control clip; put one of the same name into a folder control beside it."),
    "short": ("clip.mp4", late, "clip.mp4 is trained on up to frame 9 at 16 fps, its control clip control/clip.mp4 has "
              "7; make it as long as the clip."),
    "narrow": ("clip.mp4", narrow, "clip.mp4 is 128x128, its control clip control/clip.mp4 is 64x128; make it of the "
               "clip's shape."),
    "damaged": ("clip.mp4", damaged, "clip.mp4 has a control clip that cannot be used: control/clip.mp4 "),
    "still": ("clip.mp4", lambda control: draw(control / "clip.png"),
              "clip.mp4 is a clip, its control clip control/clip.png a picture; use a clip."),
    "clip": ("still.png", lambda control: clips.at_rate(control / "still.mp4", FPS, 32),
             "still.png is a picture, its control clip control/still.mp4 moves; save the frame of it that belongs to "),
    "itself": ("still.png", lambda control: shutil.copy(control.parent / "still.png", control / "still.png"),
               "still.png is its own control clip, control/still.png is the same file; make the control clip of it."),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_whose_control_clip_cannot_be_used_is_left_out_with_a_sentence(folder, case):
    name, make, sentence = BAD[case]
    without_control(folder, name)
    make(folder / "control")
    found = scanned(folder)
    assert names(found) == [each for each in ("clip.mp4", "still.png") if each != name]
    assert reasons(found)[name].startswith(sentence)


def test_a_folder_without_control_clips_is_refused_before_anything_is_encoded(folder):
    shutil.rmtree(folder / "control")
    with pytest.raises(UserError, match=r'has a control clip; put one of the same name for each into a folder control '
                                        r'beside them, or choose another condition than "control clip"\.$'):
        scanned(folder)


def test_what_does_not_belong_or_lasts_longer_is_noted(folder):
    shutil.copy(folder / "control" / "still.webp", folder / "control" / "other.webp")
    without_control(folder, "clip")
    clips.at_rate(folder / "control" / "clip.mp4", 8, 32)
    notes = " ".join(scanned(folder).notes)
    assert "control/other.webp: a control clip without its clip" in notes
    assert "clip.mp4: lasts 2.0 s, its control clip 4.0 s; they are read at the same times" in notes


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes() * 2)],
                         ids=["gone", "changed"])
def test_a_control_clip_that_changes_after_the_scan_takes_its_clip_out(folder, change):
    manifest = scanned(folder)
    change(folder / "control" / "still.webp")
    found = tools.drained(filling.fill(manifest, Store(folder.parent / "cache"), Seen("vae"),
                                       {"text": Text(), "control": Seen("control")}))[1]
    assert [sample.name for sample in found.samples] == ["clip.mp4"]
    (rejection,) = found.left_out
    assert rejection.name == "still.png" and rejection.reason.startswith("control/still.webp ")
