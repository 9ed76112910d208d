"""Writes the English of locales/ from the source, the one place where it stands: nodeDefs.json from the schemas, and
sentences.json from what the server says to the page (support/sentences.py).

    python tests/make_locales.py

Run it in the environment of the tests after a schema or a sentence was changed, then translate what is new in
locales/zh/: in sentences.json new ones stand empty; for nodeDefs.json tests/nodes/test_locales.py says what that is.
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


def sentences(translated: dict[str, str]) -> dict[str, str]:
    """{template: translation} for each sentence that the server may say to the page, "" where there is none yet."""
    from wantune.tests.support.sentences import templates

    return {template: translated.get(template, "") for template in templates()}


def text(translation: dict) -> str:
    """The content of a nodeDefs.json or sentences.json."""
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
    for language in LOCALES.iterdir():
        path = language / "sentences.json"
        if language.name == "en":
            found = {template: template for template in sentences({})}
        else:
            found = sentences(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
            print(f"{language.name}: {sum(not each for each in found.values())} sentences are to be translated")
        path.write_text(text(found), encoding="utf-8", newline="\n")
