"""The report of a folder with something of everything, in text and as JSON; hold-out; joined datasets."""

import json
import math
import shutil

import pytest
import torch
from PIL import Image

from wantune.tests.support import clips, tools
from wantune.tests.support.folders import captions_of, draw, names, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import captions, report
from wantune.trainer.data.manifest import join
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store, read_tensor

SETTINGS = {"resolution": 64, "more_resolutions": (128,), "frame_buckets": (1, 17, 33), "extraction": "chunks",
            "num_repeats": 2, "validation_items": 2, "prepend_trigger": False}


@pytest.fixture
def root(tmp_path):
    """Pictures, one masked, one transparent, one too small for 128; a clip in chunks; files left out; repeats."""
    root = tmp_path / "data"
    for number in range(6):
        draw(root / f"{number}.png", number, f"zwx number {number}", size=(240, 160))
    draw(root / "7_often" / "masked.png", 10, "a man", size=(200, 200))
    draw(root / "7_often" / "masks" / "masked.png", 11, size=(200, 200))
    draw(root / "small.png", 12, "zwx small", size=(96, 72))
    glass = Image.new("RGBA", (200, 150), (1, 2, 3, 100))
    glass.save(root / "glass.png")
    (root / "glass.txt").write_text("zwx glass")
    clips.at_rate(root / "clip.mp4", 24, 150)
    (root / "clip.txt").write_text("zwx counting")
    (root / "empty.png").write_bytes(b"")
    (root / "notes.pdf").write_bytes(b"%PDF")
    return root


def tokens(width: int, height: int, frames: int) -> int:
    """Of the transformer: patches of 1 x 2 x 2 of a latent of an eighth of each side and a quarter of the frames."""
    return (1 + (frames - 1) // 4) * (width // 8 // 2) * (height // 8 // 2)


def as_json(manifest) -> tuple[dict, dict[str, dict]]:
    """(all of it, the files by name), after a way through text."""
    found = json.loads(json.dumps(report.to_json(manifest), allow_nan=False))
    assert len({file["path"] for file in found["files"]}) == len(found["files"])
    return found, {file["file"]: file for file in found["files"]}


def test_json_says_of_every_file_what_becomes_of_it(root):
    manifest = scan(root, **SETTINGS)
    found, files = as_json(manifest)
    assert set(files) == {*(f"{number}.png" for number in range(6)), "7_often/masked.png", "small.png", "glass.png",
                          "clip.mp4", "empty.png", "notes.pdf"}
    assert all(file["path"] == str(root / name) for name, file in files.items())
    assert {name for name, file in files.items() if not file["used"]} == {"empty.png", "notes.pdf"}
    assert files["empty.png"]["reason"] == "empty.png is empty (0 bytes); export or download it again."
    held_out = {clip.name for clip in manifest.held_out}
    assert len(held_out) == 2
    assert {name for name, file in files.items() if file.get("held_out")} == held_out
    assert found["folders"] == [str(root)] and found["trigger_word"] == "zwx"
    assert found["notes"] == list(manifest.notes)


def test_json_has_all_of_a_picture_a_masked_one_a_transparent_one_and_a_clip(root):
    _, files = as_json(scan(root, **SETTINGS))

    def sample(width, height, frames=1, used=None, repeats=2):
        return {"width": width, "height": height, "frames": frames, "frames_used": [used or [0, 0]],
                "repeats": repeats}

    plain = {"used": True, "frames": 1, "fps": None, "mask": None, "control": None, "alpha_color": None,
             "trigger_present": True}
    expected = {
        "0.png": {**plain, "width": 240, "height": 160, "captions": ["zwx number 0"],
                  "samples": [sample(80, 48), sample(160, 96)]},
        "small.png": {**plain, "width": 96, "height": 72, "captions": ["zwx small"], "samples": [sample(80, 48)]},
        "7_often/masked.png": {**plain, "width": 200, "height": 200, "captions": ["a man"], "trigger_present": False,
                               "mask": "7_often/masks/masked.png",
                               "samples": [sample(64, 64, repeats=7), sample(128, 128, repeats=7)]},
        "glass.png": {**plain, "width": 200, "height": 150, "captions": ["zwx glass"], "alpha_color": "#ffffff",
                      "samples": [sample(80, 48), sample(144, 112)]},
        "clip.mp4": {**plain, "width": 128, "height": 128, "captions": ["zwx counting"], "frames": 150, "fps": 24.0,
                     "samples": [sample(side, side, 33, [start, start + 32])
                                 for start in (0, 33, 66) for side in (64, 128)]},
    }
    for name, fields in expected.items():
        assert {key: files[name][key] for key in fields} == fields, name
        assert set(files[name]) - set(fields) == {"file", "path", "held_out"}


def test_json_s_totals_are_sums_over_its_files(root):
    manifest = scan(root, **SETTINGS)
    found, files = as_json(manifest)
    totals, used = found["totals"], [file for file in files.values() if file["used"]]
    samples = [sample for file in used if not file["held_out"] for sample in file["samples"]]
    assert (totals["files"], totals["files_used"], totals["files_held_out"]) == (12, 10, 2)
    assert totals["samples"] == totals["steps_per_epoch"] == sum(sample["repeats"] for sample in samples)
    sizes = {(each["width"], each["height"], each["frames"]): each for each in totals["buckets"]}
    assert len(sizes) == len(totals["buckets"])
    assert set(sizes) == {(each["width"], each["height"], each["frames"]) for each in samples}, "none is dropped"
    for size, bucket in sizes.items():
        assert bucket["tokens_per_step"] == tokens(*size)
        assert bucket["samples"] == sum(each["repeats"] for each in samples
                                        if (each["width"], each["height"], each["frames"]) == size)
    assert totals["expected_cache_bytes"] == report.expected_bytes(manifest)


def test_the_text_says_the_same(root):
    manifest = scan(root, **SETTINGS)
    found, files = as_json(manifest)
    lines = report.text(manifest).splitlines()
    assert lines[0] == f"10 of 12 files are used from {root}"
    for bucket in found["totals"]["buckets"]:
        size = f"{bucket['width']}x{bucket['height']}" + (f"x{bucket['frames']}" if bucket["frames"] > 1 else "")
        (line,) = (line for line in lines if line.startswith(f"bucket {size}: "))
        assert line.endswith(f", {bucket['samples']} samples an epoch, {bucket['tokens_per_step']} tokens a step")
    samples = found["totals"]["samples"]
    assert f"{samples} samples an epoch ({samples} steps at batch size 1), 2 files held out" in lines
    assert f"expected cache size: about {found['totals']['expected_cache_bytes'] / 2**20:.1f} MiB" in lines

    def fate(name):
        return "held out" if files[name]["held_out"] else "used    "

    for name, rest in {
        "0.png": '240x160 -> 160x96, x2, "zwx number 0", trigger word in it',
        "7_often/masked.png": '200x200 -> 64x64, x7, mask 7_often/masks/masked.png, "a man", without the trigger word',
        "glass.png": '200x150 -> 80x48, x2, "zwx glass", trigger word in it',
        "clip.mp4": '128x128, 150 frames at 24 fps -> 64x64x33, frames 33-65 of 100 at 16 fps, x2, "zwx counting", '
                    "trigger word in it",
    }.items():
        assert f"{fate(name)}  {name}: {rest}" in lines
    assert "left out  empty.png is empty (0 bytes); export or download it again." in lines
    assert [line for line in lines if line.startswith("left out  notes.pdf is no picture")]
    assert [line[10:] for line in lines if line.startswith("note      ")] == list(manifest.notes)


def test_captions_are_reported_as_they_are_encoded(root):
    (root / "0.txt").unlink()
    (root / "captions.json").write_text(json.dumps({"0.png": ["[trigger] at dawn", "a man"]}))
    manifest = scan(root, **SETTINGS | {"prepend_trigger": True})
    assert as_json(manifest)[1]["0.png"]["captions"] == ["zwx at dawn", "zwx, a man"]
    assert '"zwx at dawn" or "zwx, a man", trigger word in it' in report.text(manifest)
    half = as_json(scan(root, **SETTINGS))[1]["0.png"]
    assert half["captions"] == ["zwx at dawn", "a man"] and half["trigger_present"] is False
    without = scan(root, **SETTINGS | {"trigger_word": ""})
    assert as_json(without)[1]["1.png"]["trigger_present"] is None
    assert "trigger word in it" not in report.text(without)


def test_a_shortened_report_says_how_much_more_there_is(root):
    for number in range(4):
        (root / f"bad{number}.png").write_bytes(b"")
    manifest = scan(root, resolution=64, frame_buckets=(1, 17))
    short, whole = report.text(manifest, 3).splitlines(), report.text(manifest).splitlines()
    assert sum(line.startswith("used  ") for line in short) == 3 < sum(line.startswith("used  ") for line in whole)
    assert sum(line.startswith("left out") for line in short) == 3
    assert "          ... and 7 more" in short and "          ... and 3 more" in short
    assert report.text(manifest, 10) == report.text(manifest) and len(whole) > len(short)


class Codec:
    """Stands for the VAE: a latent of the size of Wan's."""

    id = "vae"

    def encode(self, pixels_FHW3):
        frames, height, width, _ = pixels_FHW3.shape
        return torch.zeros(16, (frames - 1) // 4 + 1, height // 8, width // 8)


class Text:
    """Stands for UMT5: as many rows as the estimate expects, in numbers that 16 bits hold."""

    id = "umt5"

    def encode(self, caption):
        return torch.ones(captions.estimate_tokens(caption), 4096)


def test_the_expected_cache_size_is_the_size_of_the_cache(root):
    shutil.copy(root / "1.png", root / "the same.png")
    (root / "the same.txt").write_text("zwx number 1")
    manifest = scan(root, **SETTINGS)
    store = Store(root.parent / "cache")
    tools.drained(fill(manifest, store, Codec(), {"text": Text()}))
    paths = [path for kind in ("latents", "texts") for path in (store.folder / kind).iterdir()]
    payload = [read_tensor(path) for path in paths]
    expected = report.expected_bytes(manifest)
    assert sum(tensor.nbytes for tensor in payload) == expected
    assert expected <= sum(path.stat().st_size for path in paths) <= expected + 1024 * len(paths)


def test_a_picture_too_small_for_one_resolution_is_used_at_the_others(root):
    manifest = scan(root, **SETTINGS | {"more_resolutions": (32, 128)})
    everything = (*manifest.samples, *manifest.held_out)
    assert {clip.family.num_tokens(clip.bucket) for clip in everything if clip.name == "small.png"} == {
        tokens(80, 48, 1), tokens(32, 32, 1)}
    assert "small.png: too small for resolution 128; it is trained on at the smaller ones." in manifest.notes


def contents(folder, count=12):
    for number in range(count):
        draw(folder / f"{number:02}.png", number, f"zwx {number}")
    return folder


def held(manifest) -> set[str]:
    return {clip.digest for clip in manifest.held_out}


def test_hold_out_depends_on_contents_and_not_on_names_order_or_captions(tmp_path):
    first = scan(contents(tmp_path / "a"), validation_items=4)
    for number in range(12):
        draw(tmp_path / "b" / f"{99 - number}_x" / f"{number}.png", number)
    second = scan(tmp_path / "b", validation_items=4, num_repeats=3)
    assert held(first) == held(second) and len(held(first)) == 4
    assert len(first.samples) == len(second.samples) == 8 and not held(first) & {clip.digest for clip in first.samples}


def test_a_file_more_changes_at_most_one_that_is_held_out(tmp_path):
    before, changes = held(scan(contents(tmp_path), validation_items=4)), []
    for number in range(12, 40):
        draw(tmp_path / f"{number}.png", number)
        after = held(scan(tmp_path, validation_items=4))
        changes.append(len(after - before))
        before = after
    assert set(changes) == {0, 1}


@pytest.mark.parametrize("extraction", ["chunks", "uniform"])
def test_all_that_has_a_held_out_content_is_held_out(tmp_path, extraction):
    contents(tmp_path, 6)
    name = scan(tmp_path, validation_items=1).held_out[0].name
    shutil.copy(tmp_path / name, tmp_path / "another name.png")
    manifest = scan(tmp_path, validation_items=1, more_resolutions=(32,), extraction=extraction)
    assert sorted({clip.name for clip in manifest.held_out}) == [name, "another name.png"]
    assert len(manifest.held_out) == 4 and len(names(manifest)) == 5


def test_text_and_json_count_the_same_files_held_out(tmp_path):
    contents(tmp_path, 6)
    name = scan(tmp_path, validation_items=1).held_out[0].name
    shutil.copy(tmp_path / name, tmp_path / "another name.png")
    manifest = scan(tmp_path, validation_items=1)
    assert f"{report.to_json(manifest)['totals']['files_held_out']} files held out" in report.text(manifest)


@pytest.mark.parametrize("count", [6, 100])
def test_more_held_out_than_there_is_says_how_many_can_be(tmp_path, count):
    contents(tmp_path, 6)
    shutil.copy(tmp_path / "00.png", tmp_path / "again.png")
    with pytest.raises(UserError, match=f"validation_items is {count}, but .* has 6 usable files; choose 5 or less"):
        scan(tmp_path, validation_items=count)
    assert len(scan(tmp_path, validation_items=5).samples) in (1, 2)


def test_one_file_cannot_be_held_out_and_the_sentence_says_so(tmp_path):
    contents(tmp_path, 1)
    with pytest.raises(UserError, match="validation_items is 1, but .* has one usable file; choose 0, or add files."):
        scan(tmp_path, validation_items=1)


def test_joined_datasets_keep_their_own_repeats_resolution_trigger_and_hold_out(tmp_path):
    first = scan(contents(tmp_path / "a"), num_repeats=3, validation_items=2)
    outside = first.held_out[0].path
    draw(tmp_path / "b" / "50.png", 50, "a picture", size=(300, 300))
    shutil.copy(outside, tmp_path / "b" / "leak.png")
    second = scan(tmp_path / "b", resolution=32, trigger_word="qqq", num_repeats=5)
    joined = join([first, second])
    by_name = {clip.name: clip for clip in (*joined.samples, *joined.held_out)}
    assert by_name["50.png"].captions == ("qqq, a picture",) and by_name["50.png"].repeats == 5
    assert str(by_name["50.png"].bucket) == "32x32" and joined.trigger_word == "zwx, qqq"
    assert {clip.repeats for clip in joined.samples if clip.path.parent.name == "a"} == {3}
    assert {clip.path for clip in joined.held_out} == {*(clip.path for clip in first.held_out),
                                                       tmp_path / "b" / "leak.png"}
    found, _ = as_json(joined)
    assert found["folders"] == [str(tmp_path / "a"), str(tmp_path / "b")] and found["totals"]["samples"] == 35
    assert captions_of(joined)["50.png"] == ("qqq, a picture",) and set(joined.notes) == {*first.notes, *second.notes}
    assert math.isclose(report.expected_bytes(joined), sum(map(report.expected_bytes, (first, second))), rel_tol=0.2)
