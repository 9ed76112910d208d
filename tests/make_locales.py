"""Writes locales/en/nodeDefs.json from the schemas, which are the one place where English names and tooltips stand.

    python tests/make_locales.py

Run it in the environment of the tests after a schema was changed, then translate what is new in
locales/zh/nodeDefs.json; tests/nodes/test_locales.py says what that is.
"""

import asyncio
import json
from pathlib import Path

LOCALES = Path(__file__).resolve().parents[1] / "locales"


def english() -> dict[str, dict]:
    """The texts of each node in the format of ComfyUI's own nodeDefs.json; outputs are named by their number."""
    from wantune.nodes import WanTuneExtension

    nodes = asyncio.run(WanTuneExtension().get_node_list())
    return {schema.node_id: _described(schema) for schema in (node.GET_SCHEMA() for node in nodes)}


def text(translation: dict) -> str:
    """The content of a nodeDefs.json."""
    return json.dumps(translation, ensure_ascii=False, indent=2) + "\n"


def _described(schema) -> dict:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {each.id: {"name": each.display_name or each.id, "tooltip": each.tooltip}
                   for each in schema.inputs},
        "outputs": {str(number): {"name": each.display_name, "tooltip": each.tooltip}
                    for number, each in enumerate(schema.outputs)},
    }


if __name__ == "__main__":
    import conftest  # noqa: F401  tests/conftest.py: makes the pack and ComfyUI importable

    (LOCALES / "en" / "nodeDefs.json").write_text(text(english()), encoding="utf-8", newline="\n")
