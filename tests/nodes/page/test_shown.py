"""What nodes showed last: the newest is kept, of each user, whatever becomes of the file."""

import json
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture
def shown(tmp_path, monkeypatch):
    import folder_paths

    from wantune.nodes.page import shown

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(shown, "running_user", lambda: "default")
    return shown


@pytest.fixture
def path(tmp_path):
    return tmp_path / "wantune" / "shown.sqlite"


def hidden(node: str, workflow: str = "w"):
    return SimpleNamespace(unique_id=node, extra_pnginfo={"workflow": {"id": workflow}})


def test_the_last_of_each_kind_is_recalled_by_workflow_and_node(shown, path):
    shown.remember(hidden("5:12"), "run", "first")
    shown.remember(hidden("12"), "run", "second")
    shown.remember(hidden("12"), "compare", {"fps": 16, "name": "\u00fc"})
    shown.remember(hidden("12", "another"), "run", "third")
    shown.remember(hidden("12", ""), "run", "of no page")
    assert shown.recall("default", "w", "12") == {"run": "second", "compare": {"fps": 16, "name": "\u00fc"}}
    assert shown.recall("default", "another", "12") == {"run": "third"}
    assert shown.recall("default", "", "12") == shown.recall("default", "w", "13") == {}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_only_the_nodes_that_showed_something_most_recently_are_kept(shown, monkeypatch):
    monkeypatch.setattr(shown, "MAX_NODES", 3)
    for node in ("1", "2", "3", "1", "4"):
        shown.remember(hidden(node), "run", node)
        shown.remember(hidden(node), "compare", node)
    assert [node for node in "1234" if shown.recall("default", "w", node)] == ["1", "3", "4"]


def test_with_several_users_each_has_their_own_and_what_is_nobody_s(shown, monkeypatch):
    monkeypatch.setattr(shown.args, "multi_user", True)
    for user, kind in ((None, "run"), (None, "compare"), ("a", "run")):
        monkeypatch.setattr(shown, "running_user", lambda user=user: user)
        shown.remember(hidden("1"), kind, f"{kind} of {user}")
    assert shown.recall("a", "w", "1") == {"run": "run of a", "compare": "compare of None"}
    assert shown.recall("b", "w", "1") == {"run": "run of None", "compare": "compare of None"}


@pytest.mark.parametrize("damage", [b"", b"{", b"cut", "UPDATE shown SET data = '{'", "UPDATE shown SET data = NULL"])
def test_a_damaged_file_costs_what_was_shown_and_nothing_else(shown, path, damage):
    shown.remember(hidden("1"), "run", "before")
    if isinstance(damage, str):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(damage)
    else:
        path.write_bytes(path.read_bytes()[:5000] if damage == b"cut" else damage)
    assert shown.recall("default", "w", "1") == {}
    shown.remember(hidden("1"), "run", "after")
    assert shown.recall("default", "w", "1") == {"run": "after"}


def test_what_an_earlier_version_showed_is_taken_over_and_its_newest_stays_the_newest(shown, path, monkeypatch):
    """Its file, with the newest node last."""
    monkeypatch.setattr(shown, "MAX_NODES", 3)
    path.parent.mkdir()
    old = {json.dumps([None, "w", node]): {"run": f"run {node}", "compare": {"n": node}} for node in ("7", "1", "4")}
    path.with_suffix(".json").write_text(json.dumps(old))
    assert shown.recall("default", "w", "7") == {"run": "run 7", "compare": {"n": "7"}}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    shown.remember(hidden("9"), "run", "new")
    assert [node for node in "7149" if shown.recall("default", "w", node)] == ["1", "4", "9"]


@pytest.mark.parametrize("content", [b"", b"[3]", b'{"a": 3, "b": {"run": 1}}', b"[" * 100_000])
def test_a_damaged_file_of_an_earlier_version_is_no_hindrance(shown, path, content):
    path.parent.mkdir()
    path.with_suffix(".json").write_bytes(content)
    assert shown.recall("default", "w", "1") == {}
    shown.remember(hidden("1"), "run", "after")
    assert shown.recall("default", "w", "1") == {"run": "after"}


def test_a_folder_that_cannot_be_written_to_costs_what_is_shown(shown, path):
    path.parent.write_text("a file in the place of the folder")
    shown.remember(hidden("1"), "run", "before")
    assert shown.recall("default", "w", "1") == {}
