"""docs/settings.md has one reason for each setting of the nodes that lead to Train Wan LoRA, its default, and whether
the page hides it."""

import asyncio
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TEXT = (DOCS / "settings.md").read_text(encoding="utf-8")

SHOWN = {"": "empty", True: "on", False: "off"}
"""How a default is written that is not its own text."""


ADVANCED = ", advanced"
"""Behind the default of a setting that is hidden at first."""


def entries() -> list[tuple[str, str, str, str]]:
    """(display name of the node, setting, what stands in brackets, what speaks for it) of each entry, in order."""
    found = []
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        node, _, rest = section.partition("\n")
        for entry in re.split(r"^- ", rest, flags=re.MULTILINE)[1:]:
            name, default, reason = re.fullmatch(r"\*\*(\w+)\*\* \((.+?)\): (.+)", entry.strip(), re.DOTALL).groups()
            found.append((node, name, default, reason))
    return found


@pytest.fixture(scope="module")
def leading(comfy) -> list:
    """The schemas of all nodes whose output flows into Train Wan LoRA, and its own."""
    from wantune.nodes import WanTuneExtension

    schemas = {each.node_id: each for each in
               (node.GET_SCHEMA() for node in asyncio.run(WanTuneExtension().get_node_list()))}
    leading, wanted = [], [schemas["WanTune_TrainWanLoRA"]]
    while wanted:
        schema = wanted.pop()
        leading.append(schema)
        taken = {str(each.io_type) for each in schema.inputs if str(each.io_type).startswith("WANTUNE_")}
        wanted += [other for other in schemas.values() if other not in (*leading, *wanted)
                   and taken & {str(output.io_type) for output in other.outputs}]
    return leading


@pytest.fixture(scope="module")
def widgets(leading) -> dict[tuple[str, str], object]:
    """The default of each widget, by its node's display name and its own."""
    from comfy_api.latest._io import WidgetInput

    return {(schema.display_name, each.id): each.default for schema in leading for each in schema.inputs
            if isinstance(each, WidgetInput)}


def test_each_setting_has_one_entry_and_no_entry_is_left_over(widgets):
    named = [(node, name) for node, name, _, _ in entries()]
    assert len(widgets) > 90 and len(set(named)) == len(named)
    assert set(widgets) - set(named) == set(), "these have no entry"
    assert set(named) - set(widgets) == set(), "there is no such setting"


def test_each_entry_says_the_default_of_the_schema(widgets):
    for node, name, told, _ in entries():
        default, told = widgets[node, name], told.removesuffix(ADVANCED)
        is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
        assert (float(told) == default) if is_number else (told == SHOWN.get(default, default)), f"{node}, {name}"


def test_the_page_is_told_what_is_hidden_and_the_entries_say_it(leading, widgets):
    from wantune.nodes.advanced import ADVANCED as MARKED

    hidden = {(schema.display_name, each.id) for schema in leading for each in schema.inputs
              if each.as_dict().get("advanced")}
    assert len(hidden) == sum(map(len, MARKED.values())), "a name is no widget of its node"
    assert hidden == {(node, name) for node, name, told, _ in entries() if told.endswith(ADVANCED)}


def test_help_says_what_is_hidden(leading):
    from wantune.nodes.advanced import ADVANCED as MARKED

    for node, names in MARKED.items():
        for page, start, colon in ((f"{node}.md", "In Nodes 2.0 hidden until", ": "),
                                   (f"{node}/zh.md", "在 Nodes 2.0 中以下设置平时隐藏", "：")):
            text = (ROOT / "web" / "docs" / page).read_text(encoding="utf-8")
            (told,) = [each for each in text.split("\n\n") if each.startswith(start)]
            assert tuple(re.findall(r"\w+", " ".join(told.split()).rpartition(colon)[2])) == names, page


def test_each_entry_gives_a_reason_and_marks_what_is_to_be_measured_again_at_the_end_of_a_line():
    reasons = {(node, name): reason for node, name, _, reason in entries()}
    for (node, name), reason in reasons.items():
        words = " ".join(line.removesuffix("<!-- learning -->").strip() for line in reason.splitlines())
        assert words.endswith(".") and "<!--" not in words, f"{node}, {name}"
        if same := re.match(r"as (\w+)[.,]", words):
            assert not reasons[node, same[1]].startswith("as "), f"{node}, {name}"
        else:
            assert len(words.split()) > 3, f"{node}, {name}"


def test_what_is_cited_is_there():
    for file, heading in re.findall(r"\]\(([\w./]+)(?:#([\w-]+))?\)", TEXT):
        headings = re.findall(r"^#+ (.+)$", (DOCS / file).read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert not heading or heading in anchors, f"{file}#{heading}"
