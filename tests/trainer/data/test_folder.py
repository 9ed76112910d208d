"""Walking a folder: what is found in it and the folders in it, through links, under any name, while it changes."""

import json
import os
import subprocess
import sys
import threading
import unicodedata

import pytest

from wantune.tests.conftest import ROOT
from wantune.tests.support import tools
from wantune.tests.support.folders import captions_of, config, draw, link, names, notes_on, reasons, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.base.threads import DaemonPool
from wantune.trainer.data import facts, folder, manifest, report
from wantune.trainer.data import scan as scanning

NFC, NFD = (unicodedata.normalize(form, "café über") for form in ("NFC", "NFD"))


@pytest.fixture
def root(tmp_path):
    """One good picture; each test adds something beside it."""
    root = tmp_path / "data"
    draw(root / "good.png", 0, "zwx good")
    return root


def test_pictures_in_folders_of_folders_are_used_with_the_captions_beside_them(root):
    draw(root / "a" / "one.png", 1, "zwx one")
    draw(root / "a" / "b" / "c" / "two.png", 2, "zwx two")
    draw(root / "empty" / "x" / "good.png", 3, "zwx another good")
    manifest = scan(root)
    assert captions_of(manifest) == {
        "good.png": ("zwx good",), "a/one.png": ("zwx one",), "a/b/c/two.png": ("zwx two",),
        "empty/x/good.png": ("zwx another good",)}
    assert all(clip.path == root / clip.name for clip in manifest.samples)
    assert not manifest.rejected


@pytest.mark.parametrize(("name", "repeats"), [
    ("a.png", 3), ("10_name/a.png", 10), ("10_name/deeper/a.png", 10), ("10_name/2_inner/a.png", 2),
    ("1_ a b/a.png", 1), ("0_name/a.png", 3), ("10/a.png", 3), ("name_10/a.png", 3), ("-5_name/a.png", 3),
    ("7_a.png", 3),
])
def test_the_nearest_folder_called_as_kohya_does_gives_the_repeats(tmp_path, name, repeats):
    draw(tmp_path / "99_root" / name, 1, "zwx")
    (clip,) = scan(tmp_path / "99_root", num_repeats=3).samples
    assert clip.repeats == repeats, "the dataset folder's own name says nothing"


@pytest.mark.parametrize(("at", "to"), [("sub/loop", "sub"), ("sub/up", "."), ("sub/deep/er/loop", "sub/deep")])
def test_a_link_into_a_circle_is_followed_no_further(root, at, to):
    draw(root / "sub" / "deep" / "a.png", 1, "zwx a")
    link(root / at, root / to)
    manifest = scan(root)
    assert names(manifest) == ["good.png", "sub/deep/a.png"] and not manifest.rejected
    (note,) = manifest.notes
    assert note == f"{at}: a link to a folder that is read already; it is not read twice."


def test_a_linked_folder_is_read_and_a_second_link_to_it_is_named(root, tmp_path):
    draw(tmp_path / "elsewhere" / "a.png", 1, "zwx a")
    link(root / "first", tmp_path / "elsewhere")
    link(root / "second", tmp_path / "elsewhere")
    manifest = scan(root)
    assert names(manifest) == ["first/a.png", "good.png"]
    assert notes_on(manifest, "second") and not notes_on(manifest, "first")


def test_of_a_folder_and_a_link_to_it_the_link_is_left_out_whatever_their_names(root):
    draw(root / "z" / "a.png", 1, "zwx a")
    link(root / "a link", root / "z")
    manifest = scan(root)
    assert names(manifest) == ["good.png", "z/a.png"] and notes_on(manifest, "a link")


def test_of_a_folder_and_a_link_to_it_from_another_folder_the_link_is_left_out(root):
    draw(root / "1_first" / "a.png", 1, "zwx a")
    draw(root / "5_second" / "b.png", 2, "zwx b")
    link(root / "1_first" / "link", root / "5_second")
    manifest = scan(root)
    assert names(manifest) == ["1_first/a.png", "5_second/b.png", "good.png"]
    assert notes_on(manifest, "1_first/link")


def test_a_link_to_a_picture_is_that_picture_under_the_link_s_name(root, tmp_path):
    draw(tmp_path / "elsewhere.png", 1)
    link(root / "linked.png", tmp_path / "elsewhere.png")
    (root / "linked.txt").write_text("zwx linked")
    assert captions_of(scan(root))["linked.png"] == ("zwx linked",)


def test_links_to_themselves_and_to_nothing_are_left_out_with_a_remedy(root):
    link(root / "itself.png", "itself.png")
    link(root / "nothing.png", "no such file.png")
    manifest = scan(root)
    left_out = reasons(manifest)
    assert names(manifest) == ["good.png"] and set(left_out) == {"itself.png", "nothing.png"}
    assert "link to nothing; queue again, or delete the link" in left_out["nothing.png"]
    assert "link to nothing" in left_out["itself.png"]


def test_a_link_up_and_out_of_the_dataset_is_not_followed(root, tmp_path):
    draw(tmp_path / "beside" / "other.png", 1, "zwx other")
    for target in ("..", "../..", "/"):
        link(root / "up", target)
        manifest = scan(root)
        assert names(manifest) == ["good.png"] and "is read already" in notes_on(manifest, "up")[0]
        (root / "up").unlink()


@pytest.mark.parametrize("name", [
    ".DS_Store", "._good.png", ".hidden/a.png", "Thumbs.db", "desktop.ini", "__MACOSX/a.png", "@eaDir/a.png",
    "$RECYCLE.BIN/a.png", "sub/.thumbs/a.png", "sub/thumbs.DB",
])
def test_what_systems_leave_behind_is_passed_over_without_a_word(root, name):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path, 1) if name.endswith("a.png") else path.write_bytes(b"of no interest")
    manifest = scan(root)
    assert names(manifest) == ["good.png"] and not manifest.rejected and not manifest.notes


def test_what_people_leave_behind_is_mentioned(root):
    (root / "sub").mkdir()
    for name in ("sub/notes.docx", "photo.heic", "no ending"):
        (root / name).write_bytes(b"something")
    left_out = reasons(scan(root))
    assert set(left_out) == {"sub/notes.docx", "photo.heic", "no ending"}
    assert all("is no picture and no clip; use jpg" in reason for reason in left_out.values())


@pytest.mark.parametrize("name", [
    "with space", "it's", "猫 在 公园", "🐈‍⬛", "a.b.c", "100%d {x}", "[x]", " leading", "UPPER",
    pytest.param('"quoted"', marks=pytest.mark.skipif(os.name == "nt", reason="not a name on Windows")),
    pytest.param("two\nlines", marks=pytest.mark.skipif(os.name == "nt", reason="not a name on Windows")),
])
def test_a_name_may_be_anything_for_a_file_and_a_folder(root, name):
    draw(root / name / f"{name}.png", 1, f"zwx in {name!r}")
    manifest = scan(root)
    assert captions_of(manifest)[f"{name}/{name}.png"] == (f"zwx in {name!r}",) and not manifest.notes


@pytest.mark.parametrize(("picture", "caption"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_accents_written_in_one_way_or_the_other_are_the_same_name(root, picture, caption):
    assert NFC != NFD
    draw(root / f"{picture}.png", 1)
    (root / f"{caption}.txt").write_text("zwx in a café", encoding="utf-8")
    manifest = scan(root)
    (clip,) = (clip for clip in manifest.samples if clip.name != "good.png")
    assert clip.captions == ("zwx in a café",) and not manifest.notes


def test_two_pictures_of_one_name_are_both_used_and_named(root):
    draw(root / "good.bmp", 1)
    draw(root / "sub" / "good.png", 2, "zwx elsewhere")
    manifest = scan(root)
    assert captions_of(manifest) == {
        "good.bmp": ("zwx good",), "good.png": ("zwx good",), "sub/good.png": ("zwx elsewhere",)}
    (note,) = (note for note in manifest.notes if "one name but for the ending" in note)
    assert note.startswith("good.bmp, good.png: ")


def test_files_of_the_same_content_are_used_and_the_later_one_is_named(root):
    draw(root / "sub" / "copy.png", 0, "zwx the same")
    manifest = scan(root)
    assert names(manifest) == ["good.png", "sub/copy.png"]
    (note,) = (note for note in manifest.notes if "the same file as" in note)
    assert note.startswith("sub/copy.png: the same file as good.png") and note.endswith("delete one.")


def while_reading(monkeypatch, name: str, happens) -> None:
    """Something happens to a file at the moment at which it is read."""
    read = facts._read

    def disturbed(entry):
        if entry.name == name:
            happens(entry.path)
        return read(entry)

    monkeypatch.setattr(facts, "_read", disturbed)


def test_a_file_that_goes_away_between_listing_and_reading_is_left_out(root, monkeypatch):
    draw(root / "going.png", 1, "zwx going")
    while_reading(monkeypatch, "going.png", lambda path: path.unlink())
    manifest = scan(root)
    assert names(manifest) == ["good.png"] and "going.png is gone" in reasons(manifest)["going.png"]


@pytest.mark.parametrize("number", [1, None], ids=["replaced", "appended to"])
def test_a_file_that_changes_while_it_is_read_is_left_out(root, monkeypatch, number):
    draw(root / "growing.png", 2, "zwx growing")
    while_reading(monkeypatch, "growing.png", lambda path: path.write_bytes(path.read_bytes() + b"more")
                  if number is None else draw(path, number, size=(128, 128)))
    manifest = scan(root)
    assert names(manifest) == ["good.png"]
    assert "growing.png changed while it was read; queue again" in reasons(manifest)["growing.png"]


def test_a_caption_that_goes_away_during_the_scan_leaves_its_picture_out(root):
    draw(root / "other.png", 1, "zwx other")
    progress = scanning.scanning(config(root))
    assert next(progress).total == 2
    (root / "other.txt").unlink()
    _, manifest = tools.drained(progress)
    assert names(manifest) == ["good.png"] and "other.txt cannot be read" in manifest.rejected[0].reason


def test_progress_counts_every_file_that_is_read_to_the_last(root):
    for number in range(1, 6):
        draw(root / "sub" / f"{number}.png", number, "zwx")
    draw(root / "sub" / "masks" / "1.png", 9)
    events, _ = tools.drained(scanning.scanning(config(root)))
    assert [(event.done, event.total) for event in events] == [(done, 7) for done in range(1, 8)]
    assert {event.name for event in events} == {"good.png", "sub/masks/1.png", *(f"sub/{n}.png" for n in range(1, 6))}


def test_a_scan_that_is_stopped_in_the_middle_reads_nothing_more(root, monkeypatch):
    for number in range(1, 60):
        draw(root / "sub" / f"{number}.png", number)
    first, seen, is_stopped = facts._read, [], threading.Event()

    class Stopping(DaemonPool):
        """Reads one file, and the others only when it is told to stop."""

        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            is_stopped.set()
            super().shutdown(wait=wait)

    def read(entry):
        seen.append(entry.name)
        assert entry.name == "good.png" or is_stopped.wait(60)
        return first(entry)

    monkeypatch.setattr(facts, "_read", read)
    monkeypatch.setattr(scanning, "DaemonPool", Stopping)
    progress = scanning.scanning(config(root))
    next(progress)
    progress.close()
    assert len(seen) <= 1 + scanning.MAX_THREADS


def refuse(monkeypatch, name: str) -> None:
    """Not chmod: the tests may run as root, who reads everything."""
    scandir = os.scandir

    def refusing(path="."):
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", refusing)


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_used(root, monkeypatch):
    draw(root / "sub" / "locked" / "a.png", 1, "zwx a")
    draw(root / "sub" / "open" / "b.png", 2, "zwx b")
    refuse(monkeypatch, "locked")
    manifest = scan(root)
    assert names(manifest) == ["good.png", "sub/open/b.png"]
    assert manifest.notes == ("sub/locked: cannot be read (Permission denied); check its permissions.",)


def test_a_dataset_folder_that_cannot_be_read_is_an_error_that_says_so(root, monkeypatch):
    refuse(monkeypatch, "data")
    with pytest.raises(UserError, match="data cannot be read .Permission denied.; check its permissions"):
        scan(root)


def test_a_file_in_the_place_of_the_folder_is_called_a_file(root):
    with pytest.raises(UserError, match="good.png is a file; give the folder in which it lies."):
        scan(root / "good.png")
    with pytest.raises(UserError, match="gone does not exist; give the folder"):
        scan(root / "gone")


def test_numbers_before_a_folder_s_name_are_told_and_a_year_is_no_repeats(root):
    for number, name in enumerate(("2024_holiday", "200_cats", "201_cats", "10_dogs/2024_may", "10_dogs/5_old",
                                   "7_none")):
        (root / name).mkdir(parents=True)
        if not name.startswith("7"):
            draw(root / name / "a.png", number + 1, "zwx")
    found = scan(root, num_repeats=3)
    assert {clip.name.removesuffix("/a.png"): clip.repeats for clip in found.samples} == {
        "good.png": 3, "2024_holiday": 3, "200_cats": 200, "201_cats": 3, "10_dogs/2024_may": 10, "10_dogs/5_old": 5}
    told = {name: note.split(": ")[1] for note in found.notes for name in note.split(": ")[0].split(", ")}
    assert set(told) >= {"2024_holiday", "200_cats", "201_cats", "10_dogs/2024_may", "10_dogs", "10_dogs/5_old"}
    for name, count in (("200_cats", 200), ("10_dogs", 10), ("10_dogs/5_old", 5)):
        assert told[name].startswith(f"its files count {count} times, as its name says")
    for name in ("2024_holiday", "201_cats", "10_dogs/2024_may"):
        assert told[name] == "begins with a number over 200, which is not taken for repeats."
    assert "7_none" not in told


odd_names = pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")


@pytest.fixture
def odd(root):
    """Pictures, a caption, a folder, a mask and an unused file whose names are Latin-1 or GBK, not UTF-8."""
    inner = root / os.fsdecode("été".encode("latin-1"))
    draw(inner / os.fsdecode("café.png".encode("latin-1")), 1, "zwx café")
    draw(root / os.fsdecode("狗.png".encode("gbk")), 2)
    draw(root / "masks" / os.fsdecode("狗.png".encode("gbk")), 3)
    (root / os.fsdecode("Übersicht.docx".encode("latin-1"))).write_bytes(b"x")
    return root


@odd_names
def test_names_that_are_not_utf_8_can_be_shown_sent_and_kept(odd, tmp_path):
    first, second = scan(odd, tmp_path / "memory"), scan(odd, tmp_path / "memory")
    assert captions_of(first) == {
        "good.png": ("zwx good",), "<e9>t<e9>/caf<e9>.png": ("zwx café",), "<b9><b7>.png": ("zwx",)}
    assert reasons(first)["<dc>bersicht.docx"] and first.digest == second.digest
    assert next(clip.mask for clip in first.samples if clip.name == "<b9><b7>.png").name == "masks/<b9><b7>.png"
    assert all(clip.path.exists() for clip in first.samples)
    joined = manifest.join([first, scan(next(odd.glob("*t*/")))])
    for text in (report.text(joined), *joined.notes, json.dumps(report.to_json(joined), ensure_ascii=False)):
        text.encode()


@odd_names
def test_a_name_that_is_not_utf_8_is_no_caption(odd):
    left_out = reasons(scan(odd, caption_fallback="file name"))
    assert left_out["<b9><b7>.png"] == "<b9><b7>.png has no caption, and a name that is not UTF-8; rename it."


@odd_names
@pytest.mark.parametrize("content", [b"", b"x"])
def test_errors_about_names_that_are_not_utf_8_can_be_shown(tmp_path, content):
    path = tmp_path / os.fsdecode(b"no\xe9")
    if content:
        path.write_bytes(content)
    for root in (path, path / "deeper"):
        with pytest.raises(UserError, match="no<e9>") as error:
            scan(root)
        str(error.value).encode()


@odd_names
def test_a_dataset_is_the_same_in_every_locale_and_place_and_with_warnings_as_errors(odd, tmp_path):
    (odd / "猫.png").write_bytes(draw(tmp_path / "c.png", 7).read_bytes())
    (odd / "metadata.jsonl").write_bytes(json.dumps({"file_name": "猫.png", "text": "zwx 一只猫坐在窗台上"},
                                                    ensure_ascii=False).encode("gbk"))
    script = """if True:
        import os, sys, types, warnings
        pack = types.ModuleType("wantune")
        pack.__path__ = [sys.argv[1]]
        sys.modules["wantune"] = pack
        from wantune.trainer.data import scan
        from wantune.trainer.settings.data import DatasetConfig
        os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
        warnings.simplefilter("error")
        manifest = scan.scan(DatasetConfig(folder=sys.argv[2], trigger_word="zwx", resolution=64))
        print(ascii([manifest.digest, [clip.name for clip in manifest.samples], manifest.notes]))
    """
    told = set()
    for language in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "C.UTF-8"}):
        done = subprocess.run([sys.executable, "-X", "warn_default_encoding", "-c", script, ROOT, odd], cwd=tmp_path,
                              env={**os.environ, **language}, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        told.add(done.stdout)
    assert len(told) == 1 and ascii("猫.png").encode() in told.pop()
