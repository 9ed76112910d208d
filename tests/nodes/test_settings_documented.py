"""docs/settings.md has one reason for each setting of the nodes that lead to Train Wan LoRA, and its default."""

import asyncio
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "settings.md").read_text(encoding="utf-8")

SHOWN = {"": "empty", True: "on", False: "off"}
"""How a default is written that is not its own text."""


def entries() -> list[tuple[str, str, str, str]]:
    """(display name of the node, setting, default, what speaks for it) of each entry, in order."""
    found = []
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        node, _, rest = section.partition("\n")
        for entry in re.split(r"^- ", rest, flags=re.MULTILINE)[1:]:
            name, default, reason = re.fullmatch(r"\*\*(\w+)\*\* \((.+?)\): (.+)", entry.strip(), re.DOTALL).groups()
            found.append((node, name, default, reason))
    return found


@pytest.fixture(scope="module")
def widgets(comfy) -> dict[tuple[str, str], object]:
    """The default of each widget, by its node's display name and its own, of all nodes whose output flows into Train
    Wan LoRA, and of itself."""
    from comfy_api.latest._io import WidgetInput

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
    return {(schema.display_name, each.id): each.default for schema in leading for each in schema.inputs
            if isinstance(each, WidgetInput)}


def test_each_setting_has_one_entry_and_no_entry_is_left_over(widgets):
    named = [(node, name) for node, name, _, _ in entries()]
    assert len(widgets) > 90 and len(set(named)) == len(named)
    assert set(widgets) - set(named) == set(), "these have no entry"
    assert set(named) - set(widgets) == set(), "there is no such setting"


def test_each_entry_says_the_default_of_the_schema(widgets):
    for node, name, told, _ in entries():
        default = widgets[node, name]
        is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
        assert (float(told) == default) if is_number else (told == SHOWN.get(default, default)), f"{node}, {name}"


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
