"""What the page says in English and in Chinese: names and tooltips of the nodes, our own texts, what the server says,
help pages.

English names and tooltips stand in the schemas alone; locales/en/nodeDefs.json is made of them (make_locales.py).
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from wantune.tests import make_locales
from wantune.tests.support.folders import draw
from wantune.tests.support.sentences import GLUE
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.data.scan import _nothing_usable
from wantune.trainer.settings.data import DatasetConfig

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "locales"
WEB = ROOT / "web"
DOCS = WEB / "docs"
SCRIPTS = {path.relative_to(WEB).as_posix(): path.read_text(encoding="utf-8") for path in sorted(WEB.rglob("*.js"))}

STATES = ("running", "done", "stopped", "early_stop", "interrupted", "unreadable")
"""Of a run (trainer/runs/history.py), as keys of texts."""

TECHNICAL = {"VAE", "CLIP", "LoRA", "alpha", "beta1", "beta2", "eps", "cfg"}
"""Names that ComfyUI's own Chinese leaves as they are, or that are symbols."""

SAME = {"", "A/B", "{meters}：{says}", "{frame} / {frames}", "{size} MiB", "{used} / {total} GiB"}
"""Texts without a word to translate."""

IN_OTHER_WORDS = {
    "WanTune_CompareVideos": {"base", "tuned", "fps", "base_label", "tuned_label"},
    "WanTune_CompareCheckpoints": {"positive", "negative", "vae", "width", "height", "frames", "seed", "steps", "cfg",
                                   "sampler_name", "scheduler", "positive_2", "positive_3"},
}
"""Inputs that an English page explains without their names: by what is seen, or as KSampler's."""


def read(language: str, name: str) -> dict:
    def checked(pairs: list) -> dict:
        found = dict(pairs)
        assert len(found) == len(pairs), f"{language}/{name} has a key twice among {[key for key, _ in pairs]}"
        return found

    return json.loads((LOCALES / language / name).read_text(encoding="utf-8"), object_pairs_hook=checked)


def texts(tree: dict, path: str = "") -> dict[str, str]:
    """Every text by its path, such as "chart.loss"; none may be anything but a text."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found.update(texts(value, f"{path}{key}."))
        else:
            assert isinstance(value, str), f"{path}{key}"
            found[f"{path}{key}"] = value
    return found


def has_chinese(text: str) -> bool:
    return re.search(r"[\u4e00-\u9fff]", text) is not None


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:[.,]\d+)*", text))


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"\{\w+\}", text))


def base_name(name: str) -> str:
    """Without the number of one of several alike: "dataset_2", "数据集 2"."""
    return re.sub(r"[_ ]\d$", "", name)


@pytest.fixture(scope="module")
def english(comfy) -> dict:
    return make_locales.english()


@pytest.fixture(scope="module")
def ours() -> tuple[dict[str, str], dict[str, str]]:
    """English and Chinese texts of main.json by "section.key"."""
    return texts(read("en", "main.json")["wantune"]), texts(read("zh", "main.json")["wantune"])


def test_english_is_what_the_schemas_say(english):
    written = (LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8")
    assert written == make_locales.text(english), "run python tests/make_locales.py, then translate what is new"


def test_chinese_has_every_text_of_every_node_in_the_same_order(english):
    assert list(texts(read("zh", "nodeDefs.json"))) == list(texts(english))


def test_chinese_is_chinese_with_the_numbers_of_the_english(english):
    translated = texts(read("zh", "nodeDefs.json"))
    for path, text in texts(english).items():
        chinese = translated[path]
        if path.endswith(".name"):
            assert has_chinese(chinese) or chinese in TECHNICAL, path
        else:
            assert has_chinese(chinese) and numbers(chinese) == numbers(text), f"{path}: {text} / {chinese}"


def test_no_two_inputs_of_a_node_have_the_same_name():
    for node, each in read("zh", "nodeDefs.json").items():
        names = [entry["name"] for entry in each["inputs"].values()]
        assert len(set(names)) == len(names), node


@pytest.mark.parametrize("language", ["en", "zh"])
def test_vue_i18n_takes_names_and_tooltips_as_they_are(language):
    # it would read {} as a place to fill in, | as plural forms, @ as a link to another text, and warns of tags
    for path, text in texts(read(language, "nodeDefs.json")).items():
        assert not set(text) & set("{}|@<>") and text == text.strip(), path


def test_comfyui_serves_both_languages(comfy, tmp_path, monkeypatch):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    shutil.copytree(LOCALES, tmp_path / "custom_nodes" / "WanTune" / "locales")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path / "custom_nodes")], set()))
    served = CustomNodeManager().build_translations()
    assert set(served) == {"en", "zh"}
    for language, found in served.items():
        assert found == {**read(language, "main.json"), "nodeDefs": read(language, "nodeDefs.json")}


def test_our_texts_are_there_in_both_languages_with_the_same_places_and_numbers(ours):
    english, chinese = ours
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert placeholders(chinese[key]) == placeholders(text), key
        assert numbers(chinese[key]) == numbers(text), key
        assert has_chinese(chinese[key]) or chinese[key] in SAME, key
        assert text or key == "sheet.unchanged", f"{key} is empty"


def spoken() -> Iterator[tuple[str, str]]:
    """(script, key) of each text that a script names in full."""
    sections = "|".join(read("en", "main.json")["wantune"])
    for name, script in SCRIPTS.items():
        for key in re.findall(rf"['`]((?:{sections})\.\w+)['`]", script) + re.findall(r"\bt\('(\w+\.\w+)'", script):
            yield name, key
    for name in ("training/run_state.js", "chart/meters.js"):
        for key in re.findall(r"\btext\('(\w+)'", SCRIPTS[name]):
            yield name, f"chart.{key}"


def composed() -> list[tuple[str, str]]:
    """(beginning, end) of each name of a text that a script puts together, with or without its section."""
    found = {pair for script in SCRIPTS.values() for pair in re.findall(r"`([\w.]*)\$\{[^}`]*\}(\w*)`", script)}
    return [(start, end) for start, end in found if start.partition(".")[2] or end or "_" in start]


def test_every_text_that_a_script_names_is_there(ours):
    named = list(spoken())
    assert len(named) > 100
    assert [(script, key) for script, key in named if key not in ours[0]] == []


def test_every_text_that_a_script_puts_together_is_there(ours):
    for key in (f"{section}.state_{state}" for section in ("chart", "runs") for state in STATES):
        assert key in ours[0]
    sections = tuple(f"{section}." for section in read("en", "main.json")["wantune"])
    for start, end in composed():
        if start.startswith(sections):
            assert any(key.startswith(start) and key.endswith(end) for key in ours[0]), f"{start}...{end}"


def test_every_text_is_used(ours):
    named = {key for _, key in spoken()}
    words = set(re.findall(r"\w+", "\n".join(SCRIPTS.values())))
    parts = composed()
    for key in ours[0]:
        section, _, name = key.partition(".")
        is_composed = any(key.startswith(start if "." in start else f"{section}.{start}") and key.endswith(end)
                          for start, end in parts)
        assert key in named or name in words or is_composed, f"no script says {key}"


def test_every_sentence_that_the_server_may_say_to_the_page_is_translated():
    english, chinese = read("en", "sentences.json"), read("zh", "sentences.json")
    assert list(english) == list(make_locales.sentences({})), "run python tests/make_locales.py"
    assert list(chinese) == list(english), "run python tests/make_locales.py"
    assert [template for template, translation in chinese.items() if not translation] == [], "translate these"
    for template, translation in chinese.items():
        assert placeholders(translation) == placeholders(template), template
        assert has_chinese(translation) or translation in TECHNICAL or template in GLUE, template


def said_in_chinese(sentences: list[str]) -> list[str]:
    """What the page makes of them."""
    script = (f"import {{ translator }} from {json.dumps((WEB / 'shared' / 'sentence_match.js').as_uri())}\n"
              f"import fs from 'node:fs'\n"
              f"const known = JSON.parse(fs.readFileSync({json.dumps(str(LOCALES / 'zh' / 'sentences.json'))}))\n"
              "console.log(JSON.stringify(JSON.parse(fs.readFileSync(0)).map(translator(known))))")
    done = subprocess.run(["node", "--input-type=module", "-e", script], input=json.dumps(sentences), text=True,
                          capture_output=True, check=True, encoding="utf-8")
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_what_a_scan_says_comes_out_in_chinese(tmp_path):
    for number in range(6):
        draw(tmp_path / f"twin_{number}.png", 1, "one caption")
    draw(tmp_path / "tiny.png", 2, "tiny", (16, 16))
    draw(tmp_path / "wide.png", 3, "wide", (600, 90))
    for name, content in (("empty.png", b""), ("text.jpg", b"no picture"), ("notes.docx", b"x"), ("lonely.txt", b"x")):
        (tmp_path / name).write_bytes(content)
    manifest = scan.scan(DatasetConfig(folder=str(tmp_path), resolution=64, trigger_word="zwx"))
    sentences = [*(rejection.reason for rejection in manifest.rejected), *manifest.notes]
    with pytest.raises(UserError) as refused:
        DatasetConfig(folder="", resolution=7)
    sentences += [str(refused.value), str(UserError(_nothing_usable(tmp_path, list(manifest.rejected), DatasetConfig(
        folder=str(tmp_path)))))]
    assert len(sentences) > 8
    for sentence, chinese in zip(sentences, said_in_chinese(sentences), strict=True):
        english = re.sub(r"\b[\w.]+\.(png|jpg|docx|txt)\b", "", chinese.replace(str(tmp_path), ""))
        is_left = re.search(r"[a-z]{4,} [a-z]{2,} [a-z]{2,}", english)
        assert has_chinese(chinese) and not is_left, f"{sentence}\n{chinese}"


def test_each_node_has_a_help_page_in_both_languages_and_nothing_else_lies_there(english):
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.is_file()}
    assert pages == {page for node in english for page in (f"{node}.md", f"{node}/zh.md")}


def help_pages(node: str) -> tuple[str, str]:
    return tuple(path.read_text(encoding="utf-8") for path in (DOCS / f"{node}.md", DOCS / node / "zh.md"))


def test_help_names_the_node_and_each_of_its_inputs(english):
    translated = read("zh", "nodeDefs.json")
    for node, each in english.items():
        page, chinese_page = help_pages(node)
        assert page.startswith(f"# {each['display_name']}\n")
        assert chinese_page.startswith(f"# {translated[node]['display_name']}\n")
        for name in each["inputs"].keys() - IN_OTHER_WORDS.get(node, set()):
            assert re.search(rf"\b{base_name(name)}(_\d)?\b", page, re.IGNORECASE), f"{node}: {name}"
        for name, entry in translated[node]["inputs"].items():
            chinese = base_name(entry["name"])
            assert f"**{chinese}" in chinese_page and base_name(name) in chinese_page, f"{node}: {name}"


def test_chinese_help_says_what_the_english_says(english):
    """As far as can be told: the same sections, with every file name, value and number."""
    for node in english:
        page, chinese = help_pages(node)
        assert page.count("\n## ") == chinese.count("\n## "), node
        assert page.count("\n- ") <= chinese.count("\n- "), node
        code = re.compile(r"`([^`]+)`")
        assert set(code.findall(page)) <= set(code.findall(chinese)), node
        assert numbers(code.sub("", page)) <= numbers(code.sub("", chinese)), node
