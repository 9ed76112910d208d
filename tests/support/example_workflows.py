"""The example workflows and the nodes they are made of, read as the page reads them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NOTES = {"MarkdownNote"}
"""Types that exist in the page alone."""
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SAMPLERS = {"KSampler", "KSamplerAdvanced"}


def load(name: str) -> dict:
    """A workflow in the page's form."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="ascii"))


def load_api(name: str) -> dict:
    """The same in API form."""
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="ascii"))


def describe_nodes() -> dict[str, dict]:
    """What /object_info says of each node type in the workflows."""
    from comfy_extras import nodes_hunyuan, nodes_model_advanced, nodes_wan

    import nodes as comfy_nodes
    from wantune.nodes import WanTuneExtension

    known = dict(comfy_nodes.NODE_CLASS_MAPPINGS)
    for module in (nodes_hunyuan, nodes_model_advanced, nodes_wan):
        if hasattr(module, "comfy_entrypoint"):
            extension = asyncio.run(module.comfy_entrypoint())
            known.update({node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())})
        else:
            known.update(module.NODE_CLASS_MAPPINGS)
    known.update({node.GET_SCHEMA().node_id: node for node in asyncio.run(WanTuneExtension().get_node_list())})
    return {node_id: _describe(node) for node_id, node in known.items()}


def _describe(node) -> dict:
    if hasattr(node, "GET_NODE_INFO_V1"):
        info = node.GET_NODE_INFO_V1()
        return {"inputs": info["input"], "outputs": info["output"], "output_names": info["output_name"]}
    outputs = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    return {"inputs": node.INPUT_TYPES(), "outputs": list(node.RETURN_TYPES), "output_names": list(outputs)}


def inputs_of(description: dict) -> dict:
    """Name to (type, options), in the order of the node."""
    groups = (description["inputs"].get(group) or {} for group in ("required", "optional"))
    return {
        name: (spec[0], spec[1] if len(spec) > 1 else {}) for group in groups for name, spec in group.items()
    }


def _is_widget(kind, options: dict) -> bool:
    return not options.get("forceInput") and (isinstance(kind, list) or kind in WIDGET_TYPES)


def widget_values(node: dict, description: dict) -> dict:
    """Input name to value, read from the list of values as the page reads it."""
    values = list(node.get("widgets_values", []))
    found = {}
    for name, (kind, options) in inputs_of(description).items():
        if not _is_widget(kind, options):
            continue
        found[name] = values.pop(0)
        # The page puts a widget of its own behind an input of this name, unless the node says not to.
        if options.get("control_after_generate", name in ("seed", "noise_seed")):
            assert values.pop(0) == "fixed", f"{node['type']}: {name} must stay the same from run to run"
        if options.get("image_upload"):
            assert values.pop(0) == "image", "of the page's button to upload one"
    assert not values, f"{node['type']} has values left over: {values}"
    return found


def api_graph(workflow: dict, descriptions: dict) -> dict:
    """The workflow as the page would queue it."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            linked = {
                item["name"]: sources[item["link"]] for item in node["inputs"] if item["link"] is not None
            }
            inputs = {**widget_values(node, descriptions[node["type"]]), **linked}
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def samplers_of(graph: dict, image: list) -> list[dict]:
    """The inputs of the samplers whose latent is decoded to an image, in their order."""
    found = []
    made = graph[graph[image[0]]["inputs"]["samples"][0]]
    while made["class_type"] in SAMPLERS:
        found.insert(0, dict(made["inputs"]))
        made = graph[made["inputs"]["latent_image"][0]]
    return found


def ours(graph: dict, kind: str) -> dict:
    """The inputs of the one node of ours of that type."""
    (found,) = (node["inputs"] for node in graph.values() if node["class_type"] == f"WanTune_{kind}")
    return found
