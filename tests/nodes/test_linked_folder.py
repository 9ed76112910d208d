"""Load Dataset whose folder comes over a link, on a real server: what is on disk decides, and nothing runs in vain."""

import os

import pytest

from wantune.tests.support.folders import draw


@pytest.fixture
def folder(server, request):
    """A folder with one picture, another one for each test."""
    folder = server.folder("input") / f"linked_{request.node.name}"
    draw(folder / "a.png", 1, "zwx a")
    return folder


def graph(*folders, settings: str = "1, 33") -> dict:
    """For each folder a String, a Load Dataset and what shows its report, from node 1 on."""
    parts = {}
    for number, folder in enumerate(folders):
        string, load, shown = (f"{3 * number + part}" for part in (1, 2, 3))
        parts |= {
            string: {"class_type": "PrimitiveString", "inputs": {"value": str(folder)}},
            load: {"class_type": "WanTune_LoadDataset", "inputs": {
                "folder": [string, 0], "trigger_word": "zwx", "resolution": 64, "frame_buckets": settings,
                "num_repeats": 1, "validation_items": 0}},
            shown: {"class_type": "PreviewAny", "inputs": {"source": [load, 1]}}}
    return parts


def run(server, *folders, **settings) -> tuple[set[str], dict[str, str]]:
    """(nodes that ran, the report by Load Dataset's number)"""
    queued = graph(*folders, **settings)
    entry = server.run(queued)
    said = dict(entry["status"]["messages"])
    return queued.keys() - set(said["execution_cached"]["nodes"]), {
        number: output["text"][0] for number, output in entry["outputs"].items() if "wantune_report" in output}


def test_an_unchanged_folder_runs_nothing_and_every_change_is_seen(server, folder):
    first, second, third = run(server, folder), run(server, folder), run(server, folder)
    assert first[0] == {"1", "2", "3"} and second[0] == third[0] == set()
    changes = [
        lambda: draw(folder / "b.png", 2, "zwx b"), lambda: (folder / "a.txt").write_text("zwx another"),
        lambda: os.remove(folder / "b.png"), lambda: draw(folder / "sub" / "c.png", 3, "zwx c"),
    ]
    for change, found in zip(changes, ("b.png", "zwx another", "1 of 1", "sub/c.png"), strict=True):
        change()
        ran, reports = run(server, folder)
        assert ran == {"2", "3"} and found in reports["2"]
        assert run(server, folder)[0] == set()


def test_each_node_looks_at_its_own_folder(server, folder):
    other = folder.with_name(f"{folder.name}_other")
    draw(other / "o.png", 5, "zwx o")
    run(server, folder, other)
    assert run(server, folder, other)[0] == set()
    draw(other / "p.png", 6, "zwx p")
    ran, reports = run(server, folder, other)
    assert ran == {"5", "6"} and "p.png" in reports["5"]


def test_a_change_is_seen_by_a_graph_that_was_not_queued_in_between(server, folder):
    """Two graphs with nodes of one id, as two tabs have them."""
    other = folder.with_name(f"{folder.name}_other")
    draw(other / "o.png", 5, "zwx o")
    run(server, folder)
    run(server, other)
    draw(folder / "b.png", 2, "zwx b")
    assert "o.png" in str(run(server, other)[1]) or not run(server, other)[0]
    assert "2 of 2" in str(server.run(graph(folder))["outputs"]["2"]["text"])
    run(server, folder, settings="1")
    draw(folder / "c.png", 3, "zwx c")
    run(server, folder, settings="1")
    assert "3 of 3" in str(server.run(graph(folder))["outputs"]["2"]["text"])


def test_a_folder_that_appears_after_an_error_is_read(server, folder):
    from wantune.demo.server import PromptFailed

    gone = folder / "later"
    with pytest.raises(PromptFailed, match="does not exist"):
        run(server, gone)
    draw(gone / "a.png", 1, "zwx later")
    assert "zwx later" in run(server, gone)[1]["2"]
