"""The encoding of captions: those of a folder, and one alone, are read as they were written or left out."""

import random
import time

import pytest

from wantune.tests.support.folders import captions_of, draw, names, reasons, scan
from wantune.trainer.base.errors import UserError
from wantune.trainer.data.encodings import Encodings

WRITTEN = {
    "gbk": ["一个女孩站在雨中", "一只猫坐在窗台上，看着外面的花园", "1girl, solo, 微笑, 长发",
            "zwx, 红色的汽车停在路边", "帽子", "穿着蓝色连衣裙的女孩在海边散步，阳光明媚"],
    "big5": ["一個女孩站在雨中", "一隻貓坐在窗台上，看著外面的花園", "1girl, 微笑, 帽子",
             "zwx, 紅色的汽車停在路邊", "微笑"],
    "shift_jis": ["雨の中に立つ女の子", "窓辺に座っている猫", "1girl, 笑顔, 帽子", "zwx, 青いドレスを着た少女",
                  "ネコ", "猫"],
    "euc_jp": ["雨の中に立つ女の子", "窓辺に座っている猫", "zwx, 赤い車が道端に止まっている",
               "長髪, 青い目, ワンピース"],
    "euc_kr": ["비 속에 서 있는 소녀", "창가에 앉아 있는 고양이", "빨간 자동차가 길가에 서 있다", "미소",
               "1girl, 소녀, 미소"],
    "cp1252": ["zwx café", "une fille dans un château", "ein Mädchen über der Straße", "un niño con sombrero",
               "élan vital", "a girl’s “smile” — naïve", "en pojke på en båt", "um cão no chão", "über",
               "20° in Zürich"],
    "latin-1": ["zwx café", "crème brûlée on a table", "ein Junge, blond, weiß", "jalapeño"],
    "cp1250": ["dziewczyna z długimi włosami", "piękny uśmiech", "żółta łódź"],
    "cp1251": ["девушка под дождём", "кот сидит на окне", "zwx, красная машина", "улыбка"],
    "utf-16-le": ["zwx café", "一个女孩 in the rain", "girl, smile"],
    "utf-16-be": ["zwx café", "一个女孩 in the rain", "girl, smile"],
    "utf-16": ["zwx café", "一个女孩", "猫"],
    "utf-8-sig": ["zwx café", "一个女孩", "猫"],
    "utf-8": ["zwx café", "一个女孩", "猫", "девушка", "½", "20°", "ñ", "für", "פרח", "فتاة", "😀", "Ω", "naïve, 2×2"],
}


def read(texts: dict[str, bytes]) -> dict[str, str]:
    """What is read, by name; what is left out is missing."""
    found, encodings = {}, Encodings(texts)
    for name, data in texts.items():
        try:
            found[name] = encodings.read(name, data)[0]
        except UserError as error:
            assert name in str(error) and "UTF-8" in str(error)
    return found


@pytest.mark.parametrize("encoding", WRITTEN)
def test_captions_of_one_folder_are_read_as_they_were_written(encoding):
    texts = WRITTEN[encoding]
    assert read({text: text.encode(encoding) for text in texts}) == {text: text for text in texts}


@pytest.mark.parametrize("encoding", WRITTEN)
def test_a_caption_alone_is_read_as_it_was_written_or_left_out(encoding):
    left_out = 0
    for text in WRITTEN[encoding]:
        found = read({text: text.encode(encoding)})
        assert found in ({text: text}, {}), f"{text!r} was read as {found[text]!r}"
        left_out += not found
    assert left_out <= len(WRITTEN[encoding]) / 2


@pytest.mark.parametrize("legacy", ["gbk", "shift_jis", "euc_kr", "cp1252"])
def test_what_was_saved_as_utf_8_among_others_is_never_misread(legacy):
    texts = {text: text.encode(legacy) for text in WRITTEN[legacy]}
    plain = {text: text.encode() for text in WRITTEN["utf-8"]}
    found = read({**texts, **plain})
    assert all(found[name] == name for name in found)
    assert set(texts) <= set(found) and {"一个女孩", "猫"} <= set(found)


def test_one_caption_of_another_encoding_is_read_as_what_it_is_or_left_out():
    texts = {text: text.encode("gbk") for text in WRITTEN["gbk"]}
    for text in WRITTEN["shift_jis"][:2] + WRITTEN["cp1251"][:2] + WRITTEN["cp1252"][:4]:
        encoding = next(each for each in ("shift_jis", "cp1251", "cp1252") if text in WRITTEN[each])
        found = read({**texts, "odd": text.encode(encoding)})
        assert found.get("odd", text) == text and set(texts) <= set(found)


def test_what_is_no_text_is_left_out():
    draw_bytes = random.Random(5).randbytes
    found = read({f"{number}": draw_bytes(300) for number in range(50)})
    assert not found
    assert not read({"cut": "一个女孩".encode("utf-16")[:-1], "nul": b"\0\0\0"})


def test_the_order_of_files_does_not_matter():
    texts = {f"{encoding} {text}": text.encode(encoding) for encoding in ("gbk", "cp1252")
             for text in WRITTEN[encoding]}
    assert read(texts) == read(dict(reversed(texts.items())))


def test_thousands_of_captions_take_a_second_or_two():
    draw_texts = random.Random(1)
    texts = {f"{number}": ", ".join(draw_texts.choices(WRITTEN["gbk"], k=8)).encode("gbk") for number in range(3000)}
    start = time.process_time()
    assert len(read(texts)) == 3000
    assert time.process_time() - start < 3


@pytest.mark.parametrize(("encoding", "title"), [
    ("gbk", "GBK"), ("big5", "Big5"), ("shift_jis", "Shift-JIS"), ("euc_kr", "EUC-KR"),
    ("cp1252", "Latin-1 (Windows-1252)"),
])
def test_a_dataset_says_which_encoding_was_taken(tmp_path, encoding, title):
    texts = WRITTEN[encoding][:3]
    for number, text in enumerate(texts):
        draw(tmp_path / f"{number}.png", number).with_suffix(".txt").write_bytes(text.encode(encoding))
    manifest = scan(tmp_path, prepend_trigger=False)
    assert captions_of(manifest) == {f"{number}.png": (text,) for number, text in enumerate(texts)}
    assert f"0.txt, 1.txt, 2.txt: is not UTF-8 and was read as {title}; save it as UTF-8 if it looks wrong." \
        in manifest.notes


@pytest.mark.parametrize(("name", "text"), [
    ("metadata.jsonl", '{{"file_name": "a.png", "text": "{}"}}'), ("captions.json", '{{"a.png": "{}"}}'),
    ("metadata.csv", "file_name,text\na.png,{}"),
])
@pytest.mark.parametrize("encoding", ["gbk", "cp1252", "shift_jis"])
def test_lists_are_read_in_any_encoding(tmp_path, name, text, encoding):
    draw(tmp_path / "a.png", 1)
    caption = WRITTEN[encoding][1]
    (tmp_path / name).write_bytes(text.format(caption).encode(encoding))
    assert captions_of(scan(tmp_path, prepend_trigger=False)) == {"a.png": (caption,)}


def test_a_caption_in_doubt_leaves_its_file_out_with_the_reason(tmp_path):
    draw(tmp_path / "a.png", 1, "zwx a")
    draw(tmp_path / "b.png", 2).with_suffix(".txt").write_bytes("미소".encode("euc_kr"))
    manifest = scan(tmp_path)
    assert names(manifest) == ["a.png"]
    assert reasons(manifest) == {
        "b.png": "The caption of b.png cannot be read: b.txt is not marked as UTF-8 and may be EUC-KR or GBK; save it "
                 "as UTF-8."}


def test_a_list_that_cannot_be_read_leaves_out_what_may_stand_in_it(tmp_path):
    draw(tmp_path / "a.png", 1, "zwx a")
    draw(tmp_path / "b.png", 2)
    (tmp_path / "captions.json").write_bytes('{"b.png": "미소"}'.encode("euc_kr"))
    manifest = scan(tmp_path)
    assert names(manifest) == ["a.png"]
    assert "captions.json cannot be read" in reasons(manifest)["b.png"]
