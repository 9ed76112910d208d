"""From the texts of a folder to what is encoded: whose word counts, the trigger word, fallbacks, orders of tags."""

import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from wantune.tests.support.folders import captions_of, draw, names, notes_on, reasons, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import captions
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded.cache import CachedSample


@pytest.fixture
def root(tmp_path):
    """Two pictures without captions."""
    draw(tmp_path / "a.png", 1)
    draw(tmp_path / "sub" / "b.png", 2)
    return tmp_path


def write_json(folder: Path, content: object) -> None:
    (folder / "captions.json").write_text(json.dumps(content), encoding="utf-8")


def write_lines(folder: Path, *lines: object) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def test_a_txt_goes_before_lists_and_a_note_says_so(root):
    (root / "a.txt").write_text("zwx from the txt")
    write_json(root, {"a.png": "zwx from the json", "sub/b.png": "zwx from the json"})
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx from the txt",), "sub/b.png": ("zwx from the json",)}
    assert manifest.notes == ("a.png: has captions in its .txt and in captions.json; the .txt is used.",)


def test_an_empty_txt_says_nothing_and_the_list_counts(root):
    (root / "a.txt").write_text(" \n\t\n")
    write_lines(root, {"file_name": "a.png", "text": "zwx from a line"})
    assert captions_of(scan(root))["a.png"] == ("zwx from a line",)


def test_a_txt_and_a_list_that_agree_are_not_mentioned(root):
    (root / "a.txt").write_text("zwx the same\n")
    write_json(root, {"a.png": "zwx the  same", "b.png": ""})
    assert not notes_on(scan(root), "a.png")


def test_captions_json_goes_before_metadata_jsonl(root):
    write_json(root, {"a.png": "zwx from the json"})
    write_lines(root, {"file_name": "a.png", "text": "zwx from a line"}, {"file_name": "sub/b.png", "text": "zwx b"})
    assert captions_of(scan(root)) == {"a.png": ("zwx from the json",), "sub/b.png": ("zwx b",)}


@pytest.mark.parametrize(("outer", "inner"), [
    ("sub/b.png", "b.png"), ("sub/b", "b"), ("sub/b", "b.png"),
    ("sub/b.png", "b"),
])
@pytest.mark.parametrize(("first", "second"), [("json", "json"), ("lines", "lines"), ("lines", "json")])
def test_what_an_inner_folder_says_goes_before_what_an_outer_one_says(root, outer, inner, first, second):
    for folder, kind, name, text in ((root, first, outer, "zwx outer"), (root / "sub", second, inner, "zwx inner")):
        if kind == "json":
            write_json(folder, {name: text})
        else:
            write_lines(folder, {"file_name": name, "text": text})
    assert captions_of(scan(root))["sub/b.png"] == ("zwx inner",)


@pytest.mark.parametrize("key", ["sub/b.png", "sub\\b.png", "sub/b", "sub\\b", "./sub/b.png", ".\\sub\\b"])
@pytest.mark.parametrize(("value", "expected"), [
    ("zwx  one\n line", ("zwx one line",)), (["zwx one", "zwx two"], ("zwx one", "zwx two")),
    (["zwx one", "", "zwx one"], ("zwx one",)),
])
def test_captions_json_holds_a_text_or_several_for_a_name_written_in_any_way(root, key, value, expected):
    write_json(root, {key: value})
    manifest = scan(root)
    assert captions_of(manifest)["sub/b.png"] == expected and not notes_on(manifest, "sub/b.png")


@pytest.mark.parametrize("name", ["file_name", "file", "image_path", "video_path", "path", "image", "video"])
@pytest.mark.parametrize("text", ["text", "captions", "caption", "prompt"])
def test_a_line_of_metadata_jsonl_may_call_its_parts_as_other_trainers_do(root, name, text):
    write_lines(root, {name: "sub\\b.png", text: "zwx a line", "score": 3, "other": None})
    assert captions_of(scan(root))["sub/b.png"] == ("zwx a line",)


def test_accents_and_case_of_the_list_s_own_name_do_not_matter(root):
    draw(root / "cafe\u0301.png", 3)
    (root / "Captions.JSON").write_text(json.dumps({"caf\u00e9.png": "zwx in a café"}), encoding="utf-8")
    assert ("zwx in a café",) in captions_of(scan(root)).values()


@pytest.mark.parametrize(("text", "remark"), [
    ('{"a.png": "zwx', "is not valid JSON"), ("", "is not valid JSON"),
    pytest.param("[" * 100_000, "is not valid JSON", id="deep"),
    ('["zwx"]', "must hold one object"), ('"zwx"', "must hold one object"),
])
def test_a_captions_json_that_cannot_be_used_is_noted_and_the_rest_counts(root, text, remark):
    (root / "captions.json").write_text(text)
    (root / "a.txt").write_text("zwx a")
    write_lines(root, {"file_name": "sub/b.png", "text": "zwx b"})
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx a",), "sub/b.png": ("zwx b",)}
    (note,) = manifest.notes
    assert note.startswith(f"captions.json: {remark}")


@pytest.mark.parametrize("value", [5, None, {"text": "zwx"}, ["zwx", 3], [["zwx"]]])
def test_a_value_that_is_no_caption_is_noted_with_its_file_and_the_rest_is_used(root, value):
    write_json(root, {"a.png": value, "sub/b.png": "zwx b"})
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx",), "sub/b.png": ("zwx b",)}
    assert any("what it says of a.png is neither a caption nor a list" in note for note in
               notes_on(manifest, "captions.json"))


@pytest.mark.parametrize("bad", ["{", "null", "[1]", '{"text": "zwx"}', '{"file_name": 5, "text": "x"}',
                                 pytest.param("[" * 9999, id="deep")])
def test_a_bad_line_is_noted_with_its_number_and_the_others_are_used(root, bad):
    good = [json.dumps({"file_name": name, "text": f"zwx {name}"}) for name in ("a.png", "sub/b.png")]
    (root / "metadata.jsonl").write_text("\r\n".join([good[0], "", bad, good[1]]))
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx a.png",), "sub/b.png": ("zwx sub/b.png",)}
    (note,) = manifest.notes
    assert note.startswith("metadata.jsonl: line 3 is not")


def test_names_without_a_file_are_noted_with_the_list_they_stand_in(root):
    write_json(root / "sub", {"b.png": "zwx b", "gone.png": "zwx gone"})
    write_lines(root, {"file_name": "a.png", "text": "zwx a"}, {"file_name": "b.png", "text": "zwx elsewhere"})
    (root / "sub" / "lonely.txt").write_text("zwx")
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx a",), "sub/b.png": ("zwx b",)}
    assert "sub/gone.png: named in sub/captions.json, but there is no such picture or clip; correct the name." \
        in manifest.notes
    assert "b.png: named in metadata.jsonl, but there is no such picture or clip; correct the name." in manifest.notes
    assert "sub/lonely.txt: a caption without its picture; add the picture or delete it." in manifest.notes
    assert len(manifest.notes) == 3


def test_a_caption_of_a_damaged_picture_is_not_called_one_without_a_picture(root):
    for name in ("a", "sub/b"):
        (root / f"{name}.txt").write_text("zwx")
    (root / "a.png").write_bytes(b"")
    assert not notes_on(scan(root), "a.txt")


def test_a_txt_named_after_the_whole_name_is_used_or_mentioned(root):
    (root / "a.png.txt").write_text("zwx another form")
    manifest = scan(root)
    assert captions_of(manifest)["a.png"] == ("zwx another form",) or notes_on(manifest, "a.png.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_lists_and_texts_are_read_in_any_editor_s_encoding(root, encoding):
    (root / "a.txt").write_bytes("zwx café".encode(encoding))
    (root / "captions.json").write_bytes('{"sub/b.png": "zwx über"}'.encode(encoding))
    manifest = scan(root)
    assert captions_of(manifest) == {"a.png": ("zwx café",), "sub/b.png": ("zwx über",)}
    remarks = [note for note in manifest.notes if "is not UTF-8 and was read as Latin-1" in note]
    assert len(remarks) == (encoding == "latin-1")
    assert not remarks or all(name in remarks[0] for name in ("a.txt", "captions.json"))


@pytest.mark.parametrize(("written", "trigger", "prepend", "expected", "remark"), [
    ("zwx in a park", "zwx", True, "zwx in a park", None),
    ("a man", "zwx", True, "zwx, a man", 'lacks the trigger word; "zwx" was put in front'),
    ("a man", "zwx", False, "a man", 'lacks the trigger word "zwx"; write it in, or switch prepend_trigger on'),
    ("a man", "", True, "a man", None),
    ("a man", "  ", True, "a man", None),
    ("[trigger] in a park, [trigger]", "zwx", True, "zwx in a park, zwx", None),
    ("[trigger] in a park", "zwx", False, "zwx in a park", None),
    ("[trigger] in a park", "", True, "[trigger] in a park", "has [trigger], and trigger_word is empty; set it"),
    ("a party", "art", True, "art, a party", "lacks the trigger word"),
    ("state of the art", " art ", True, "state of the art", None),
    ("在公园里的小猫", "小猫", True, "在公园里的小猫", None),
    ("a dog", "小猫", True, "小猫, a dog", "lacks the trigger word"),
    ("C++ code", "C++", True, "C++ code", None),
    ("two words here", "two words", True, "two words here", None),
])
def test_the_trigger_word_stands_in_every_caption_or_a_note_says_so(root, written, trigger, prepend, expected, remark):
    (root / "a.txt").write_text(written, encoding="utf-8")
    (root / "sub" / "b.txt").write_text(f"{trigger} b", encoding="utf-8")
    manifest = scan(root, trigger_word=trigger, prepend_trigger=prepend)
    assert captions_of(manifest)["a.png"] == (expected,)
    notes = notes_on(manifest, "a.png")
    assert len(notes) == (remark is not None) and (remark is None or remark in notes[0])


@pytest.mark.parametrize(("caption", "trigger", "expected"), [
    ("a party", "art", False), ("the art.", "art", True), ("art", "art", True), ("art_2", "art", False),
    ("my-art-piece", "art", True), ("ART", "art", False), ("xart", "art", False), ("arts", "art", False),
    ("我的猫咪", "猫", True), ("猫art猫", "art", True), ("a+b", "+", True), ("sks123", "sks", False),
    ("", "art", False), ("котёл", "кот", False), ("кот спит", "кот", True), ("arté", "art", False),
])
def test_a_trigger_word_is_a_word_of_its_own_where_words_have_ends(caption, trigger, expected):
    assert captions.has_trigger(caption, trigger) is expected


def test_a_file_without_caption_gets_what_was_chosen(root):
    (root / "sub" / "b.txt").write_text("zwx b")
    by_word = scan(root)
    assert captions_of(by_word)["a.png"] == ("zwx",) and 'has no caption; it is captioned "zwx"' in by_word.notes[0]
    by_name = scan(root, caption_fallback="file name")
    assert captions_of(by_name)["a.png"] == ("zwx, a",) and "its name is taken" in notes_on(by_name, "a.png")[0]
    by_none = scan(root, caption_fallback="leave out")
    assert names(by_none) == ["sub/b.png"]
    assert reasons(by_none) == {"a.png": "a.png has no caption; write one into a.txt."}
    without_word = scan(root, trigger_word="")
    assert "write one into a.txt, or set trigger_word." in reasons(without_word)["a.png"]


def test_an_empty_caption_is_one_that_is_missing(root):
    (root / "a.txt").write_text("")
    (root / "sub" / "b.txt").write_text("zwx b")
    assert "a.png: has no caption" in scan(root).notes[0]


def test_where_no_file_has_a_caption_the_remedy_is_one_that_helps(root):
    with pytest.raises(UserError, match="write a .txt") as error:
        scan(root, caption_fallback="leave out")
    assert "set trigger_word" not in str(error.value)


@pytest.mark.parametrize(("windows", "texts"), list(product(range(1, 7), range(1, 7))))
def test_every_window_meets_every_caption_and_all_have_equal_shares(windows, texts):
    clip = CachedSample("a", Bucket(1, 64, 64), 1, tuple(Path(f"w{i}") for i in range(windows)),
                      tuple({"text": Path(f"t{i}")} for i in range(texts)))
    visits = [clip.visit(number) for number in range(2 * windows * texts)]
    assert set(Counter((visit.latent_path, visit.condition_paths["text"]) for visit in visits).values()) == {2}
    for first in range(0, len(visits) - texts + 1, texts):
        if windows == 1:
            seen = {visit.condition_paths["text"] for visit in visits[first:first + texts]}
            assert seen == {by_kind["text"] for by_kind in clip.captions}


@pytest.mark.parametrize("tags", ["zwx, red, green, blue, black, white", "zwx, red, green, blue", "zwx, red, green",
                                  "a zwx, red, green, blue, black, white, grey, pink, brown"])
def test_tags_are_taken_in_a_few_orders_with_the_trigger_word_in_front(root, tags):
    (root / "a.txt").write_text(tags)
    orders = captions_of(scan(root, shuffle_tags=True))["a.png"]
    parts = [order.split(", ") for order in orders]
    possible = {4: 6, 3: 2}.get(len(parts[0]), captions.TAG_ORDERS)
    assert orders[0] == tags and len(set(orders)) == len(orders) == possible
    assert all(Counter(part) == Counter(parts[0]) and part[0] == parts[0][0] for part in parts)
    assert captions_of(scan(root, shuffle_tags=True))["a.png"] == orders, "the same each time"
    assert captions_of(scan(root))["a.png"] == (tags,)


def test_a_trigger_word_with_a_comma_is_not_torn_apart(root):
    (root / "a.txt").write_text("zwx, man, red, green")
    orders = captions_of(scan(root, shuffle_tags=True, trigger_word="zwx, man"))["a.png"]
    assert all(order.startswith("zwx, man, ") for order in orders)


@pytest.mark.parametrize("short", ["zwx in a park", "zwx, in a park"])
def test_a_caption_of_few_parts_is_left_as_it_is(root, short):
    (root / "a.txt").write_text(short)
    assert captions_of(scan(root, shuffle_tags=True))["a.png"] == (short,)


def test_captions_keep_equal_shares_when_one_of_them_has_tags(root):
    write_json(root, {"a.png": ["zwx, red, green, blue", "zwx in a park"]})
    found = captions_of(scan(root, shuffle_tags=True))["a.png"]
    assert found.count("zwx in a park") == len(found) / 2


@pytest.mark.parametrize(("caption", "is_long"), [
    ("zwx " + "word " * 380, False), ("zwx " + "word " * 390, True), ("zwx " + "猫" * 505, False),
    ("zwx " + "猫" * 515, True), ("zwx " + "!" * 505, False), ("zwx " + "!" * 515, True),
])
def test_captions_longer_than_wan_reads_are_noted(root, caption, is_long):
    (root / "a.txt").write_text(caption, encoding="utf-8")
    assert any("more than 512 tokens" in note for note in notes_on(scan(root), "a.png")) is is_long


def test_files_of_one_caption_are_noted_unless_it_is_the_trigger_word_alone(root):
    draw(root / "c.png", 3, "zwx in a park")
    (root / "a.txt").write_text("zwx in a park")
    (note,) = (note for note in scan(root).notes if "one caption for" in note)
    assert note == 'a.png, c.png: one caption for 2 files, "zwx in a park"; say what differs.'
    for name in ("a.txt", "c.txt"):
        (root / name).unlink()
    assert not any("one caption for" in note for note in scan(root).notes)
