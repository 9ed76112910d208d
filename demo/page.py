"""The example workflow for the page of `demo --serve`, with the demo's values, as a template ComfyUI offers."""

import json
from pathlib import Path

WORKFLOW = "train_and_compare"
PACK = "wantune_demo"
PLACE, SIZE = [1530, 720], [380, 560]
"""Of a node that the example has not: free space beside Train Wan LoRA."""


def adapt(workflow: dict, adapted: dict) -> dict:
    """The page's form of the example with the values of its adapted API form; both use the same node ids."""
    for node in workflow["nodes"]:
        wanted = adapted.get(str(node["id"]))
        if wanted is None:
            continue
        if node["type"] != wanted["class_type"]:
            _replace(node, wanted)
        # The page would offer to download the models that the example names.
        node.get("properties", {}).pop("models", None)
        pairs = zip(_widget_names(node), node.get("widgets_values") or [], strict=True)
        node["widgets_values"] = [wanted["inputs"].get(name, value) for name, value in pairs]
    for target in list(workflow["nodes"]):
        for name, value in adapted.get(str(target["id"]), {"inputs": {}})["inputs"].items():
            if isinstance(value, list) and name not in {socket["name"] for socket in target["inputs"]}:
                _add_settings(workflow, value[0], adapted[value[0]], target, name)
    return workflow


def write_pack(root: Path, adapted: dict, folder: Path) -> Path:
    """A node pack without nodes that offers the workflow as a template; returns the pack's folder."""
    source = (root / "example_workflows" / f"{WORKFLOW}.json").read_text(encoding="utf-8")
    templates = folder / PACK / "example_workflows"
    templates.mkdir(parents=True, exist_ok=True)
    (folder / PACK / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
    workflow = adapt(json.loads(source), adapted)
    (templates / f"{WORKFLOW}.json").write_text(json.dumps(workflow), encoding="utf-8")
    return folder / PACK


def address(url: str) -> str:
    """Where the page opens with the workflow in it."""
    return f"{url}/?template={WORKFLOW}&source={PACK}"


def _replace(node: dict, wanted: dict) -> None:
    node["type"] = wanted["class_type"]
    node["properties"] = {"Node name for S&R": wanted["class_type"]}
    node["inputs"] = [
        {"name": name, "type": "STRING", "widget": {"name": name}, "link": None} for name in wanted["inputs"]
    ]
    node["widgets_values"] = list(wanted["inputs"].values())


def _add_settings(workflow: dict, number: str, wanted: dict, target: dict, socket: str) -> None:
    """A node of settings, connected to a socket of WanTune's that the example leaves open."""
    kind, link, slot = f"WANTUNE_{socket.upper()}", workflow["last_link_id"] + 1, len(target["inputs"])
    node = {"id": int(number), "type": "", "pos": PLACE, "size": SIZE, "flags": {}, "order": 0, "mode": 0,
            "outputs": [{"name": socket, "type": kind, "links": [link]}]}
    _replace(node, wanted)
    workflow["nodes"].append(node)
    target["inputs"].append({"name": socket, "shape": 7, "type": kind, "link": link})
    workflow["links"].append([link, node["id"], 0, target["id"], slot, kind])
    workflow.update(last_link_id=link, last_node_id=max(node["id"], workflow["last_node_id"]))


def _widget_names(node: dict) -> list[str]:
    names = [item["widget"]["name"] for item in node.get("inputs", []) if item.get("widget")]
    if node["type"] == "KSampler":
        # The page adds this widget itself, behind the seed; the API form does not have it.
        names.insert(names.index("seed") + 1, "control_after_generate")
    return names
