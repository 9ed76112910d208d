"""The contact sheet's routes on a real server: what they give, what they save, and what they do not touch."""

import io
import json
import os
import shutil
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wantune.tests.nodes.page.test_routes import JSON, ask
from wantune.tests.support import clips, tools
from wantune.tests.support.folders import draw, link, noise
from wantune.trainer.base.errors import content_hash

SECRET = "nobody may read this"


@pytest.fixture
def data(server, request):
    """A folder of its own in ComfyUI's input folder."""
    folder = server.folder("input") / f"sheet_{content_hash(request.node.name)[:12]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def get(server, path: str, /, **query):
    """(status, JSON or bytes)"""
    return ask(server, "GET", f"/wantune/{path}?{urllib.parse.urlencode(query)}")


def sheet(server, folder, known: str = "", settings: dict | None = None, **widgets):
    """(status, answer) once the folder is read."""
    values = {"folder": str(folder), "trigger_word": "zwx", "resolution": 64, "frame_buckets": "1, 33", **widgets}
    if settings is not None:
        values["settings"] = settings
    while True:
        status, answer = get(server, "dataset", config=json.dumps(values), known=known)
        if "progress" not in answer:
            return status, answer


def files(answer: dict) -> dict[str, dict]:
    return {each["file"]: each for each in answer["files"]}


def save(server, folder, file: str, text, before: str = "", **headers):
    body = json.dumps({"folder": str(folder), "file": file, "text": text, "before": before}).encode()
    return ask(server, "POST", "/wantune/caption", body, {**JSON, **headers})


def snapshot(*roots: Path) -> dict[str, object]:
    """Everything below some folders, with content."""
    return {str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            for root in roots for path in sorted(root.rglob("*"))}


def test_a_folder_is_told_as_it_will_be_trained_on_without_queueing(server, data):
    draw(data / "a.png", 1, "a cat")
    draw(data / "b.png", 2)
    draw(data / "tiny.png", 3, "x", size=(8, 8))
    (data / "captions.json").write_text(json.dumps({"b.png": ["listed", "second"]}))
    clips.at_rate(data / "c.mp4", 16, 40)
    settings = {"more_resolutions": "32", "prepend_trigger": True}
    status, answer = sheet(server, data.name, num_repeats=3, settings=settings)
    found = files(answer)
    assert status == 200 and set(found) == {"a.png", "b.png", "c.mp4", "tiny.png"}
    assert found["a.png"]["captions"] == ["zwx, a cat"] and found["a.png"]["text"] == "a cat"
    assert found["a.png"]["text_file"] == "a.txt" and found["b.png"]["text_file"] is None
    assert found["b.png"]["listed_in"] == "captions.json" and found["b.png"]["text"] == "listed"
    assert [(each["width"], each["repeats"]) for each in found["a.png"]["samples"]] == [(32, 3), (80, 3)]
    assert found["c.mp4"]["samples"][0]["frames"] == 33 and "moving" in found["c.mp4"]["samples"][0]
    assert not found["tiny.png"]["used"] and "smaller" in found["tiny.png"]["reason"]
    assert answer["totals"]["files_used"] == 3 and answer["totals"]["expected_cache_bytes"] > 0


def test_what_did_not_change_is_said_in_a_word_and_every_change_is_seen(server, data):
    draw(data / "a.png", 1, "a cat")
    _, first = sheet(server, data.name)
    assert sheet(server, data.name, known=first["state"])[1] == {"state": first["state"], "same": True}
    states = {first["state"]}
    for change in (lambda: (data / "a.txt").write_text("a dog"), lambda: draw(data / "b.png", 2),
                   lambda: (data / "b.png").unlink()):
        change()
        _, answer = sheet(server, data.name, known=first["state"])
        assert "same" not in answer and answer["files"]
        states.add(answer["state"])
    assert len(states) == 3  # without b.png all is as it was before it
    assert "same" not in sheet(server, data.name, known=first["state"], num_repeats=2)[1]


def test_files_of_which_none_can_be_used_are_told_with_their_reasons(server, data):
    (data / "a.png").write_bytes(b"nothing")
    draw(data / "b.png", 1)
    status, answer = sheet(server, data.name, trigger_word="")
    assert status == 200 and "can be used" in answer["error"] and answer["totals"] is None
    found = files(answer)
    assert "a.png is not a picture" in found["a.png"]["reason"] and "has no caption" in found["b.png"]["reason"]
    assert found["b.png"]["text"] == ""
    assert save(server, data.name, "b.png", "a dog")[0] == 200
    assert files(sheet(server, data.name, trigger_word="")[1])["b.png"]["used"]


def test_opening_a_sheet_of_a_thousand_pictures_makes_no_thumbnail(server, data):
    drawn = io.BytesIO()
    for number in range(1000):
        drawn.seek(0)
        noise(number, (48, 48)).save(drawn, "BMP")
        (data / f"{number:04d}.bmp").write_bytes(drawn.getvalue())
    thumbs = server.folder("output") / "wantune" / "cache" / "thumbs"
    before = snapshot(thumbs)
    _, answer = sheet(server, data.name, resolution=16)
    assert "error" not in answer, answer["error"]
    assert answer["totals"]["files_used"] == 1000 and snapshot(thumbs) == before
    keys = [each["samples"][0]["thumbnail"] for each in answer["files"]]
    assert len(set(keys)) == 1000
    for key in keys[:3]:
        status, content = get(server, "thumbnail", id=key)
        assert status == 200 and Image.open(io.BytesIO(content)).size == (16, 16)
    assert len(snapshot(thumbs)) == len(before) + 3


def test_a_thumbnail_is_made_once_and_a_clip_moves(server, data):
    clips.at_rate(data / "c.mp4", 16, 40)
    sample = files(sheet(server, data.name)[1])["c.mp4"]["samples"][0]
    still = get(server, "thumbnail", id=sample["thumbnail"])[1]
    assert clips.number_of(np.asarray(Image.open(io.BytesIO(still)).convert("RGB"))) == 0
    assert Image.open(io.BytesIO(get(server, "thumbnail", id=sample["moving"])[1])).n_frames == 33
    assert get(server, "thumbnail", id=sample["thumbnail"])[1] == still


def test_a_file_that_is_damaged_or_changed_after_the_sheet_was_opened_is_a_sentence(server, data):
    draw(data / "a.png", 1, "a")
    key = files(sheet(server, data.name)[1])["a.png"]["samples"][0]["thumbnail"]
    (data / "a.png").write_bytes((data / "a.png").read_bytes()[:200])
    status, answer = get(server, "thumbnail", id=key)
    assert status == 400 and "a.png" in answer["error"]


@pytest.mark.parametrize("key", ["", "x", "../../x", "..%2f..", "0" * 64, "a\0b", "/etc/passwd", "C:\\x", "z" * 5000])
def test_a_key_that_nobody_gave_leads_nowhere(server, key):
    status, answer = get(server, "thumbnail", id=key)
    assert status == 404 and answer["error"].endswith(".")


def test_a_thumbnail_of_a_file_that_became_a_link_out_is_not_shown(server, data, tmp_path):
    draw(data / "a.png", 1, "a")
    key = files(sheet(server, data.name)[1])["a.png"]["samples"][0]["thumbnail"]
    shutil.move(data / "a.png", tmp_path / "a.png")
    link(data / "a.png", tmp_path / "a.png")
    assert get(server, "thumbnail", id=key)[0] == 404
    assert "a.png" not in str(sheet(server, data.name)[1].get("files"))


def test_a_caption_is_saved_and_what_was_written_before_is_kept(server, data):
    draw(data / "deep" / "a.png", 1)
    (data / "deep" / "a.txt").write_bytes("élan\r\nvital".encode("latin-1"))
    text = files(sheet(server, data.name)[1])["deep/a.png"]["text"]
    assert text == "élan\r\nvital"
    assert save(server, data.name, "deep/a.png", "  日本 zwx\n", text) == (200, {"saved": "a.txt", "text": "日本 zwx"})
    assert (data / "deep" / "a.txt").read_text(encoding="utf-8") == "日本 zwx"
    assert (data / "deep" / "a.txt.bak").read_bytes() == "élan\r\nvital".encode("latin-1")
    assert save(server, data.name, "deep/a.png", "third", "日本 zwx")[0] == 200
    assert (data / "deep" / "a.txt.bak").read_bytes() == "élan\r\nvital".encode("latin-1")
    (data / "deep" / "a.txt").write_text("by hand")
    assert save(server, data.name, "deep/a.png", "fifth", "by hand")[0] == 200
    assert (data / "deep" / "a.txt.bak2").read_text() == "by hand"
    _, answer = sheet(server, data.name)
    assert answer["files"][0]["text"] == "fifth" and set(files(answer)) == {"deep/a.png"}
    assert {path.name for path in (data / "deep").iterdir()} == {"a.png", "a.txt", "a.txt.bak", "a.txt.bak2"}


def test_a_caption_that_was_changed_meanwhile_is_not_overwritten(server, data):
    draw(data / "a.png", 1, "new")
    status, answer = save(server, data.name, "a.png", "mine", "old")
    assert status == 400 and 'changed meanwhile, to "new"' in answer["error"]
    assert (data / "a.txt").read_text() == "new" and not (data / "a.txt.bak").exists()


def test_a_txt_takes_the_place_of_a_listed_caption_but_an_empty_one_would_not(server, data):
    draw(data / "a.png", 1)
    (data / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "listed"}')
    status, answer = save(server, data.name, "a.png", " ", "listed")
    assert status == 400 and "metadata.jsonl; change it there" in answer["error"]
    assert save(server, data.name, "a.png", "own", "listed")[0] == 200
    assert files(sheet(server, data.name)[1])["a.png"]["captions"] == ["zwx, own"]
    assert not (data / "a.txt.bak").exists()


@pytest.mark.parametrize("text", [5, None, ["x"], {"a": 1}, "half \ud800", "NUL \0"])
def test_a_text_that_is_none_is_refused(server, data, text):
    draw(data / "a.png", 1, "old")
    status, answer = save(server, data.name, "a.png", text, "old")
    assert status == 400 and answer["error"].endswith(".") and (data / "a.txt").read_text() == "old"


HOSTILE = ["..", "../secret", "../../secret", "{outside}", "{outside}/a.png", "/", "/etc", "/etc/passwd", "a\0b", "\0",
           "C:\\Windows", "C:/Windows", "c:", "\\\\server\\share", "//server/share", "\\\\?\\C:\\x", "\\\\.\\pipe\\x",
           "%2e%2e", "%2e%2e%2fsecret", "..%2f..%2fetc", "..\\..\\secret", "x" * 3000, "a/" * 1000, "out", "out/a.png",
           "NUL", "file:///etc/passwd", "~", "$HOME", "./../..", ".txt", "a.txt", "a.png/../../secret", "captions.json"]


@pytest.mark.parametrize("path", HOSTILE)
def test_no_path_leads_out(server, data, tmp_path, path):
    draw(data / "a.png", 1, "inside")
    outside = tmp_path / "outside"
    draw(outside / "a.png", 2, SECRET)
    link(data / "out", outside)
    link(data / "b.png", outside / "a.png")
    link(data / "b.txt", outside / "a.txt")
    draw(data / "c.png", 3)
    link(data / "c.txt", outside / "a.txt")
    path = path.format(outside=outside)
    before = snapshot(data, outside)
    in_data = path if os.path.isabs(path) else f"{data.name}/{path}"
    for folder in (path, in_data):
        for status, answer in (get(server, "folders", path=folder), sheet(server, folder)):
            known = status == 200 and Path(os.path.realpath(server.folder("input") / folder)).is_relative_to(
                os.path.realpath(server.folder("input")))
            assert known or status in (400, 403, 404) and answer["error"].endswith("."), (status, answer)
            assert SECRET not in json.dumps(answer) and str(outside) not in json.dumps(answer.get("files", ""))
        assert save(server, folder, "a.png", "changed", "")[0] in (400, 403, 404)
    assert save(server, data.name, path, "changed", "")[0] in (400, 404)
    for name in ("b.png", "b.txt", "c.txt", "out/a.png", "c.png"):
        assert save(server, data.name, name, "changed", "")[0] in (400, 404)
    assert snapshot(data, outside) == before


def test_a_foreign_page_saves_nothing_and_a_long_text_is_refused(server, data):
    draw(data / "a.png", 1, "old")
    assert save(server, data.name, "a.png", "new", "old", Origin="http://evil.example")[0] == 403
    assert save(server, data.name, "a.png", "x" * 70_000, "old")[0] == 413
    assert (data / "a.txt").read_text() == "old" and not (data / "a.txt.bak").exists()


def test_a_folder_that_a_queued_node_has_read_can_be_seen(server, tmp_path):
    folder = tools.write_pictures(tmp_path / "elsewhere")
    status, answer = sheet(server, folder)
    assert status == 403 and "queue this node once" in answer["error"]
    load = {"class_type": "WanTune_LoadDataset", "inputs": {
        "folder": str(folder), "trigger_word": "zwx", "resolution": 64, "frame_buckets": "1", "num_repeats": 1,
        "validation_items": 0}}
    server.run({"1": load})
    status, answer = sheet(server, folder)
    assert status == 200 and answer["totals"]["files_used"] == 4
    assert sheet(server, folder.parent)[0] == 403
    assert str(folder) in [root["value"] for root in get(server, "folders")[1]["roots"]]


def test_the_folder_picker_lists_visible_folders_with_their_files(server, data):
    draw(data / "cats" / "a.png", 1, "a")
    draw(data / "cats" / "b.jpg", 2, "b")
    (data / ".hidden").mkdir()
    (data / "empty").mkdir()
    status, answer = get(server, "folders", path=data.name)
    assert status == 200 and answer["path"] == data.name and answer["parent"] == "."
    assert answer["folders"] == [{"name": "cats", "value": f"{data.name}/cats", "files": 2},
                                 {"name": "empty", "value": f"{data.name}/empty", "files": 0}]
    assert get(server, "folders", path=".")[1]["parent"] == ""
    assert get(server, "folders")[1]["folders"][0] == {"name": "input", "value": ".", "files": None}


@pytest.mark.parametrize("config", [
    "", "[]", "nonsense", "5", "null", '{"folder": 5}', '{"folder": ".", "resolution": "512"}', '{"folder": null}',
    '{"folder": ".", "resolution": true}', '{"folder": ".", "resolution": -5}', '{"folder": ".", "other": 1}',
    '{"folder": ".", "settings": []}', '{"folder": ".", "settings": {"caption_dropout": NaN}}', "[" * 2000,
    '{"folder": ".", "settings": {"folder": "/etc"}}', '{"folder": ".", "frame_buckets": "2"}', "{}",
    '{"folder": ".", "settings": {"alpha_color": "url(x)"}}', '{"folder": ".", "more_resolutions": "1e99"}',
])
def test_values_that_no_widget_has_are_refused_in_a_sentence(server, config):
    status, answer = get(server, "dataset", config=config)
    assert status in (400, 403) and answer["error"].endswith("."), answer


def test_gently_a_refusal_is_an_answer(server):
    config = json.dumps({"folder": "../x"})
    assert get(server, "dataset", config=config)[0] == 403
    status, answer = get(server, "dataset", config=config, gently="1")
    assert status == 200 and "queue this node once" in answer["error"] and answer["files"] == []


def test_saving_a_caption_does_not_keep_stop_waiting():
    from wantune.nodes.page import datasets

    class Door:
        def get(self, path, handler, quick=True):
            self.seen[path] = quick

        post, seen = get, {}

    datasets.register(Door())
    assert Door.seen and not any(Door.seen.values()), "each of them lists a folder or reads files"


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_not_utf_8_are_loaded_joined_shown_and_edited(server, data):
    odd = os.fsdecode(b"caf\xe9")
    draw(data / odd / f"{odd}.png", 1, "a cat")
    draw(data / "b.png", 2, "b")
    load = {"class_type": "WanTune_LoadDataset", "inputs": {
        "trigger_word": "zwx", "resolution": 64, "frame_buckets": "1", "num_repeats": 1, "validation_items": 0}}
    graph = {name: {**load, "inputs": {**load["inputs"], "folder": str(folder)}}
             for name, folder in (("1", data), ("2", data / odd))}
    graph["3"] = {"class_type": "WanTune_JoinDatasets", "inputs": {"dataset_1": ["1", 0], "dataset_2": ["2", 0]}}
    outputs = server.run(graph)["outputs"]
    assert "caf<e9>/caf<e9>.png" in outputs["3"]["text"][0] and "caf<e9>.png" in outputs["2"]["text"][0]
    _, answer = sheet(server, data.name)
    found = files(answer)["caf<e9>/caf<e9>.png"]
    assert get(server, "thumbnail", id=found["samples"][0]["thumbnail"])[0] == 200
    assert save(server, data.name, "caf<e9>/caf<e9>.png", "a dog", "a cat") == (
        200, {"saved": "caf<e9>.txt", "text": "a dog"})
    assert (data / odd / f"{odd}.txt").read_text() == "a dog"
    assert files(sheet(server, data / odd)[1])["caf<e9>.png"]["text"] == "a dog"
    status, answer = get(server, "folders", path=data.name)
    assert status == 200 and answer["folders"] == []


def test_a_folder_that_is_a_file_is_called_one(server, data):
    draw(data / "a.png", 1)
    status, answer = sheet(server, f"{data.name}/a.png")
    assert status == 400 and answer["error"].endswith("a.png is a file; give the folder in which it lies.")


def test_the_sheet_follows_the_model_and_the_frames_that_are_given(server, data):
    tools.write_pictures(data)
    clips.at_rate(data / "clip.mp4", 30, 45)
    settings = {"model": "Wan2.2 5B", "condition": "first frame", "condition_dropout": 0.1}
    _, answer = sheet(server, data, settings=settings, resolution=100, frame_buckets="1, 5")
    (of_clip,) = files(answer)["clip.mp4"]["samples"]
    assert of_clip["frames"] == 5 and of_clip["width"] % 32 == of_clip["height"] % 32 == 0
    assert any("trained on as in text-to-video" in note for note in answer["notes"])
    _, ends = sheet(server, data, settings={"condition": "first and last frame"}, frame_buckets="1, 5")
    assert [name for name, file in files(ends).items() if file["used"]] == ["clip.mp4"]
    status, refused = sheet(server, data, settings={"model": ["Wan2.2 5B"]})
    assert status == 400 and refused["error"].startswith("model is \"['Wan2.2 5B']\"; it takes a str")
    assert sheet(server, data, settings={"model": "Wan3"})[1]["error"].startswith("model is 'Wan3'; choose one of")
