"""Where the page may look: the forms of paths on both kinds of systems, and links."""

from pathlib import PurePath, PureWindowsPath

import pytest

from wantune.tests.support.folders import draw, link
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import folder, scan
from wantune.trainer.data.notes import Notes
from wantune.trainer.settings.data import DatasetConfig

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture
def places(comfy, tmp_path, monkeypatch):
    import folder_paths

    from wantune.nodes.page import places

    (tmp_path / "input" / "pictures").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "datasets", ([str(tmp_path / "missing")], set()))
    monkeypatch.setattr(places, "_read", {})
    return places


BASE, ROOTS = r"C:\ComfyUI\input", (r"C:\ComfyUI\input", r"D:\datasets", r"\\nas\pictures")


@pytest.mark.parametrize("text", [
    r"\\server\share", r"\\server\share\cats", "//server/share", r"\\?\C:\ComfyUI\input", r"\\.\C:\ComfyUI\input",
    r"\\.\pipe\x", r"\\?\UNC\server\share", "C:cats", "D:", r"\Windows", "/Windows", "NUL", "cats/con", "COM1.txt",
    r"cats\aux .png", "cats:stream", r"cats\a.png:hidden", r"\\nas\pictures\..\..\other\share", "CONIN$", "lpt\u00b9",
])
def test_windows_is_not_even_asked_for_forms_that_lead_elsewhere(places, text):
    from wantune.nodes.page.asking import Forbidden

    with pytest.raises(Forbidden, match="lies outside"):
        places.joined(text, BASE, ROOTS, windows=True)


@pytest.mark.parametrize("text, path", [
    ("cats", r"C:\ComfyUI\input\cats"), (r"cats\small", r"C:\ComfyUI\input\cats\small"),
    ("cats/small", r"C:\ComfyUI\input\cats\small"), (r'"D:\datasets\cats"', r"D:\datasets\cats"),
    (r"\\nas\pictures\cats", r"\\nas\pictures\cats"), ("console", r"C:\ComfyUI\input\console"),
    ("comic1", r"C:\ComfyUI\input\comic1"),
])
def test_windows_paths_that_are_asked_for(places, text, path):
    assert places.joined(text, BASE, ROOTS, windows=True) == PureWindowsPath(path)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("text", ["", "  ", "a\0b", "x" * 5000, "\ud800"])
def test_what_is_no_path_is_refused_in_a_sentence(places, text, windows):
    with pytest.raises(UserError, match="^folder .*give the folder"):
        places.joined(text, BASE, ROOTS, windows=windows)


def test_elsewhere_a_path_is_taken_as_it_is(places):
    assert places.joined("/data/x", "/input", (), windows=False) == PurePath("/data/x")
    assert places.joined(" cats ", "/input", (), windows=False) == PurePath("/input/cats")


def test_only_what_lies_in_a_root_can_be_opened(places, tmp_path):
    from wantune.nodes.page.asking import Forbidden, NotFound

    assert places.inside("pictures", "default") == tmp_path / "input" / "pictures"
    assert places.inside(".", "default") == tmp_path / "input"
    assert places.inside(str(tmp_path / "input" / "pictures"), "default") == tmp_path / "input" / "pictures"
    for text in ("..", "../outside", str(tmp_path / "outside"), str(tmp_path), "/", "pictures/../../outside",
                 str(tmp_path / "input" / ".." / "outside"), str(tmp_path / "not there"), "../not there",
                 str(tmp_path / "input2")):
        with pytest.raises(Forbidden, match="queue this node once"):
            places.inside(text, "default")
    for text in ("not there", "y" * 300, "pictures/" * 400, r"C:\Windows", r"\\server\share", "%2e%2e", "..%2foutside"):
        with pytest.raises(NotFound, match="does not exist"):
            places.inside(text, "default")


def test_a_link_counts_as_what_it_leads_to(places, tmp_path):
    from wantune.nodes.page.asking import Forbidden

    link(tmp_path / "input" / "out", tmp_path / "outside")
    link(tmp_path / "input" / "in", tmp_path / "input" / "pictures")
    with pytest.raises(Forbidden):
        places.inside("out", "default")
    assert places.inside("in", "default") == tmp_path / "input" / "pictures"


def test_what_a_node_has_read_can_be_looked_into(places, tmp_path):
    (tmp_path / "outside" / "deep").mkdir()
    places.allow(tmp_path / "outside" / "deep")
    assert places.inside(str(tmp_path / "outside" / "deep"), "default")
    with pytest.raises(UserError):
        places.inside(str(tmp_path / "outside"), "default")
    assert [root.name for root in places.roots("default")] == ["input", "deep"]


def test_with_several_users_each_has_the_folders_of_their_own_graphs(places, tmp_path, monkeypatch):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "multi_user", True)
    monkeypatch.setattr(places, "running_user", lambda: "anna")
    places.allow(tmp_path / "outside")
    assert places.inside(str(tmp_path / "outside"), "anna")
    with pytest.raises(UserError):
        places.inside(str(tmp_path / "outside"), "berta")


def test_folders_of_datasets_are_roots_where_they_exist(places, tmp_path):
    assert [root.name for root in places.roots("default")] == ["input"]
    (tmp_path / "missing" / "cats").mkdir(parents=True)
    assert [root.name for root in places.roots("default")] == ["input", "datasets"]
    found = places.inside(str(tmp_path / "missing" / "cats"), "default")
    assert places.shown(found) == str(found)
    assert places.shown(tmp_path / "input" / "pictures") == "pictures"


def test_a_scan_for_the_page_leaves_out_what_links_lead_out_to_and_says_so(places, tmp_path):
    pictures, outside = tmp_path / "input" / "pictures", tmp_path / "outside"
    draw(pictures / "a.png", 1, "a")
    draw(outside / "b.png", 2, "b")
    draw(outside / "deep" / "c.png", 3, "c")
    link(pictures / "b.png", outside / "b.png")
    link(pictures / "a.bak.txt", outside / "b.txt")
    link(pictures / "deep", outside / "deep")
    may_read = places.reader("default")
    assert [entry.name for entry in folder.walk(pictures, Notes(), may_read)] == ["a.png", "a.txt"]
    config = DatasetConfig(folder=str(pictures), resolution=64)
    assert {entry.name for entry in folder.walk(pictures, Notes())} > {"b.png", "deep/c.png"}

    def result(scan):
        while True:
            try:
                next(scan)
            except StopIteration as finished:
                return finished.value

    found = result(scan.scanning(config, None, may_read))
    assert {clip.name for clip in found.samples} == {"a.png"}
    assert any("b.png" in note and "may not read" in note for note in found.notes)
