"""Whose caption counts: files beside the picture, lists of captions, and the paths that these hold."""

import csv
import json
import os
from pathlib import Path

import pytest

from wantune.tests.support.folders import captions_of, draw, names, notes_on, reasons, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import caption_edit, folder
from wantune.trainer.data.caption_files import CaptionFiles
from wantune.trainer.data.notes import Notes

ENDINGS = (".txt", ".caption", ".png.txt", ".png.caption")


@pytest.fixture
def root(tmp_path):
    """Two pictures without captions."""
    draw(tmp_path / "set" / "a.png", 1)
    draw(tmp_path / "set" / "sub" / "b.png", 2)
    return tmp_path / "set"


def write_list(path: Path, captions: dict[str, str]) -> None:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *captions.items()])
    elif path.suffix == ".json":
        path.write_text(json.dumps(captions), encoding="utf-8")
    else:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in captions.items()]
        path.write_text("\n".join(lines), encoding="utf-8")


LISTS = ["captions.json", "metadata.jsonl", "metadata.csv"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_name_of_a_caption_is_read(root, ending):
    (root / f"a{ending}").write_text("zwx a")
    (root / "sub" / f"b{ending}".upper()).write_text("zwx b")
    (root / "sub" / "b.png").rename(root / "sub" / "B.PNG")
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx a",), "sub/B.PNG": ("zwx b",)} and not manifest.rejected
    assert not manifest.notes or ending.startswith(".png")  # .PNG and .png are two names


@pytest.mark.parametrize("first", range(4))
def test_the_first_name_that_is_not_empty_counts_and_a_note_says_what_differs(root, first):
    for ending in ENDINGS:
        (root / f"a{ending}").write_text(f"zwx {ending}" if ending in ENDINGS[first:] else " ")
    (root / "captions.json").write_text(json.dumps({"a.png": "zwx listed"}))
    manifest = scan(root)
    assert captions_of(manifest)["a.png"] == (f"zwx {ENDINGS[first]}",)
    others = [*(f"its {ending}" for ending in ENDINGS[first + 1:]), "captions.json"]
    used = ENDINGS[first]
    assert notes_on(manifest, "a.png") == [
        f"a.png: has captions in its {used} and in {other}; the {used} is used." for other in others]


def test_names_that_agree_are_not_mentioned(root):
    for ending in ENDINGS:
        (root / f"a{ending}").write_text("zwx the same\n")
    assert not notes_on(scan(root), "a.png")


def test_two_pictures_of_one_name_have_captions_of_their_own(root):
    draw(root / "a.bmp", 3)
    (root / "a.png.txt").write_text("zwx png")
    (root / "a.bmp.txt").write_text("zwx bmp")
    found = captions_of(scan(root))
    assert (found["a.png"], found["a.bmp"]) == (("zwx png",), ("zwx bmp",))


def test_a_second_file_that_cannot_be_read_is_mentioned_and_the_first_counts(root):
    (root / "a.txt").write_text("zwx a")
    (root / "a.caption").write_bytes(b"\xff\x00\xfe")
    manifest = scan(root)
    assert captions_of(manifest)["a.png"] == ("zwx a",) and notes_on(manifest, "a.caption")


def test_a_file_too_large_for_a_caption_leaves_its_picture_out(root):
    (root / "a.txt").write_bytes(b"x" * (2**20 + 1))
    manifest = scan(root)
    assert names(manifest) == ["sub/b.png"] and "more than 1 MiB" in reasons(manifest)["a.png"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_edited_caption_goes_back_to_the_file_it_came_from(root, ending):
    path = root / f"a{ending}"
    path.write_text("zwx before")
    entries = list(folder.walk(root, Notes()))
    (entry,) = (entry for entry in entries if entry.name == "a.png")
    saved = caption_edit.save(entry, CaptionFiles.among(entries, Notes()), "zwx after", "zwx before")
    assert saved == Path(os.path.realpath(path)) and path.read_text() == "zwx after"
    assert path.with_name(f"{path.name}.bak").read_text() == "zwx before"
    manifest = scan(root)
    assert captions_of(manifest)["a.png"] == ("zwx after",) and not manifest.rejected


def test_a_caption_is_not_emptied_where_another_one_would_take_its_place(root):
    (root / "a.txt").write_text("zwx first")
    (root / "a.caption").write_text("zwx second")
    entries = list(folder.walk(root, Notes()))
    with pytest.raises(UserError, match="takes its caption from a.caption; change it there"):
        caption_edit.save(entries[0 if entries[0].name == "a.png" else 1 if entries[1].name == "a.png" else 2],
                          CaptionFiles.among(entries, Notes()), "", "zwx first")


@pytest.mark.parametrize("text", ["ñ", "20°", "café", "猫", "帽子", "a cat"])
def test_an_edited_caption_among_gbk_ones_is_read_back(root, text):
    for number, written in enumerate(("一个女孩站在雨中", "一只猫坐在窗台上", "红色的汽车停在路边")):
        draw(root / f"{number}.png", number + 5).with_suffix(".txt").write_bytes(written.encode("gbk"))
    entries = list(folder.walk(root, Notes()))
    (entry,) = (entry for entry in entries if entry.name == "a.png")
    caption_edit.save(entry, CaptionFiles.among(entries, Notes()), text, "")
    assert captions_of(scan(root, prepend_trigger=False))["a.png"] == (text,)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("folder_of", [
    "{root}", "/home/other/data/set", "C:\\Users\\other\\set", "\\\\server\\share\\set", "d:/set", "file:///data/set",
    "/",
])
def test_whole_paths_mean_the_files_that_they_end_with(root, kind, folder_of):
    before = folder_of.format(root=root)
    separator = "\\" if "\\" in before else "/"
    write_list(root / kind, {f"{before.rstrip(separator)}{separator}{name}": f"zwx {name}" for name in
                             ("a.png", f"sub{separator}b.png")})
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx a.png",), "sub/b.png": (f"zwx sub{separator}b.png",)}
    moved = [note for note in manifest.notes if "paths of another place" in note]
    assert len(moved) == (folder_of != "{root}") == len(manifest.notes)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("prefix", ["set/", "{parent}/set/", ".\\", "sub/../", "../set/"])
def test_paths_from_the_folder_above_are_understood(root, kind, prefix):
    prefix = prefix.format(parent=root.parent.name)
    write_list(root / kind, {f"{prefix}a.png": "zwx a", f"{prefix}sub/b.png": "zwx b"})
    assert captions_of(scan(root)) == {"a.png": ("zwx a",), "sub/b.png": ("zwx b",)}


def test_a_list_in_a_folder_speaks_of_that_folder(root):
    write_list(root / "sub" / "metadata.jsonl", {"D:\\somewhere\\b.png": "zwx b"})
    assert captions_of(scan(root))["sub/b.png"] == ("zwx b",)


@pytest.mark.parametrize("other", ["/data/other", "Z:\\other"])
def test_of_two_folders_with_files_of_one_name_this_one_counts_or_the_one_with_most(root, other):
    write_list(root / "metadata.jsonl", {f"{other}/a.png": "zwx wrong", f"{root}/a.png": "zwx right"})
    manifest = scan(root)
    assert captions_of(manifest)["a.png"] == ("zwx right",)
    assert any("named in metadata.jsonl, but there is no such" in note for note in manifest.notes)
    write_list(root / "metadata.jsonl", {f"{other}/a.png": "zwx wrong", "/moved/a.png": "zwx right",
                                         "/moved/sub/b.png": "zwx b"})
    assert captions_of(scan(root)) == {"a.png": ("zwx right",), "sub/b.png": ("zwx b",)}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(("name", "looked_for"), [
    ("C:\\data\\x.png", "C:/data/x.png"), ("/data/x.png", "/data/x.png"), ("x.png", "x.png"), ("../a.png", "../a.png"),
])
def test_a_list_that_fits_no_file_is_an_error_with_an_example(root, kind, name, looked_for):
    (root / "a.txt").write_text("zwx a")
    write_list(root / kind, {name: "zwx", "y.png": "zwx"})
    with pytest.raises(UserError) as error:
        scan(root)
    assert f"{kind} has captions for 2 files, and none of them is in this folder" in str(error.value)
    assert f"the first is called {name}, and {looked_for} was looked for" in str(error.value)


def test_a_list_is_not_an_error_for_a_picture_that_is_damaged(root):
    write_list(root / "captions.json", {"a.png": "zwx a"})
    (root / "a.png").write_bytes(b"")
    assert names(scan(root)) == ["sub/b.png"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("head", ["file_name{0}text", "Text{0}Score{0}FILE_NAME", "video{0}prompt", "path{0}caption"])
def test_csv_is_read_as_other_programs_write_it(root, separator, head):
    titles = head.format(separator).split(separator)
    row = {"text": 'zwx, "quoted"', "prompt": 'zwx, "quoted"', "caption": 'zwx, "quoted"', "score": "3"}
    with (root / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([titles, [row.get(title.lower(), "a.png") for title in titles], []])
    assert captions_of(scan(root))["a.png"] == ('zwx, "quoted"',)


@pytest.mark.parametrize("content", ["", "a.png,zwx", "file_name\na.png", 'file_name,text\na.png,"' + "x" * 200_000])
def test_a_csv_that_cannot_be_used_leaves_out_what_may_stand_in_it(root, content):
    (root / "metadata.csv").write_text(content)
    (root / "a.txt").write_text("zwx a")
    manifest = scan(root)
    assert names(manifest) == ["a.png"] and notes_on(manifest, "metadata.csv")
    assert "metadata.csv cannot be read" in reasons(manifest)["sub/b.png"]


def test_a_list_of_objects_is_read_from_json_as_well(root):
    (root / "metadata.json").write_text(json.dumps([{"file_path": "a.png", "text": "zwx a", "type": "image"}]))
    assert captions_of(scan(root))["a.png"] == ("zwx a",)


@pytest.mark.parametrize("content", ['{"title": "my set"}', "[1, 2]", "{", '"x"'])
def test_a_metadata_json_of_another_program_is_mentioned_and_takes_no_picture_out(root, content):
    (root / "metadata.json").write_text(content)
    manifest = scan(root)
    assert names(manifest) == ["a.png", "sub/b.png"] and notes_on(manifest, "metadata.json")


def test_half_a_character_in_a_list_is_no_caption(root):
    (root / "captions.json").write_text('{"a.png": "zwx \\ud83d", "sub/b.png": "zwx b"}')
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx",), "sub/b.png": ("zwx b",)}
    assert any("holds half a character" in note for note in manifest.notes)
