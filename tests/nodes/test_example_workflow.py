"""The example workflow, as the page opens it, fits the nodes of the ComfyUI under test.

Every node type is known, every link joins an output to an input of its type, and every widget value lies in
the slot of its input. What the page itself does with the file is beyond these tests: they need no browser.
"""

import asyncio
import json
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
WORKFLOW = FOLDER / "train_and_compare.json"
NOTES = {"MarkdownNote"}
"""Types that exist in the page alone."""
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}

CONTRACT_DEFAULTS = {
    "WanTune_LoadDataset": {
        "resolution": 512,
        "frame_buckets": "1, 33",
        "num_repeats": 10,
        "validation_items": 0,
    },
    "WanTune_CacheLatents": {},
    "WanTune_TrainWanLoRA": {
        "run_name": "my_lora",
        "epochs": 20,
        "max_steps": 0,
        "batch_size": 1,
        "learning_rate": 1e-4,
        "rank": 32,
        "alpha": 32,
        "seed": 0,
    },
    "WanTune_SaveLoRA": {"filename": "wantune/my_lora"},
    "WanTune_ApplyLoRA": {"strength": 1},
    "WanTune_CompareVideos": {"fps": 16},
}


@pytest.fixture(scope="module")
def workflow() -> dict:
    return json.loads(WORKFLOW.read_text(encoding="ascii"))


@pytest.fixture(scope="module")
def descriptions(comfy) -> dict:
    """What /object_info says of each node type in the workflow."""
    from comfy_extras import nodes_hunyuan, nodes_model_advanced

    import nodes as comfy_nodes
    from wantune.nodes import WanTuneExtension

    known = dict(comfy_nodes.NODE_CLASS_MAPPINGS)
    for module in (nodes_hunyuan, nodes_model_advanced):
        if hasattr(module, "comfy_entrypoint"):
            extension = asyncio.run(module.comfy_entrypoint())
            known.update({node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())})
        else:
            known.update(module.NODE_CLASS_MAPPINGS)
    known.update(
        {node.GET_SCHEMA().node_id: node for node in asyncio.run(WanTuneExtension().get_node_list())}
    )
    return {node_id: _describe(node) for node_id, node in known.items()}


def _describe(node) -> dict:
    if hasattr(node, "GET_NODE_INFO_V1"):
        info = node.GET_NODE_INFO_V1()
        return {"inputs": info["input"], "outputs": info["output"], "output_names": info["output_name"]}
    outputs = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    return {"inputs": node.INPUT_TYPES(), "outputs": list(node.RETURN_TYPES), "output_names": list(outputs)}


def _inputs(description: dict) -> dict:
    """Name to (type, options), in the order of the node."""
    groups = (description["inputs"].get(group) or {} for group in ("required", "optional"))
    return {
        name: (spec[0], spec[1] if len(spec) > 1 else {}) for group in groups for name, spec in group.items()
    }


def _is_widget(kind, options: dict) -> bool:
    return not options.get("forceInput") and (isinstance(kind, list) or kind in WIDGET_TYPES)


def _widget_values(node: dict, description: dict) -> dict:
    """Input name to value, read from the list of values as the page reads it."""
    values = list(node.get("widgets_values", []))
    found = {}
    for name, (kind, options) in _inputs(description).items():
        if not _is_widget(kind, options):
            continue
        found[name] = values.pop(0)
        # The page puts a widget of its own behind an input of this name, unless the node says not to.
        if options.get("control_after_generate", name in ("seed", "noise_seed")):
            assert values.pop(0) == "fixed", f"{node['type']}: {name} must stay the same from run to run"
    assert not values, f"{node['type']} has values left over: {values}"
    return found


def _api_graph(workflow: dict, descriptions: dict) -> dict:
    """The workflow as the page would queue it."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] not in NOTES:
            linked = {
                item["name"]: sources[item["link"]] for item in node["inputs"] if item["link"] is not None
            }
            inputs = {**_widget_values(node, descriptions[node["type"]]), **linked}
            graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def test_every_node_type_is_known_and_switched_on(workflow, descriptions):
    types = [node["type"] for node in workflow["nodes"]]
    assert set(types) - set(descriptions) == NOTES
    assert set(CONTRACT_DEFAULTS) <= set(types)
    assert all(node["mode"] == 0 for node in workflow["nodes"])
    assert len({node["id"] for node in workflow["nodes"]}) == len(types)
    assert workflow["version"] == 0.4 and workflow["last_node_id"] >= max(
        node["id"] for node in workflow["nodes"]
    )


def test_links_join_matching_sockets(workflow, descriptions):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, _ in workflow["links"]:
        sent = nodes[source]["outputs"][output]
        taken = nodes[target]["inputs"][slot]
        assert number in sent["links"] and taken["link"] == number
        description = descriptions[nodes[source]["type"]]
        assert sent["name"] == description["output_names"][output]
        kind, _ = _inputs(descriptions[nodes[target]["type"]])[taken["name"]]
        assert description["outputs"][output] in kind.split(","), f"link {number} into {taken['name']}"
    used = [item["link"] for node in workflow["nodes"] for item in node["inputs"] if item["link"] is not None]
    assert sorted(used) == sorted(link[0] for link in workflow["links"])


def test_every_required_socket_is_connected(workflow, descriptions):
    for node in _api_graph(workflow, descriptions).values():
        required = descriptions[node["class_type"]]["inputs"].get("required", {})
        assert set(required) <= set(node["inputs"]), node["class_type"]


def test_widget_values_are_of_the_type_and_range_of_their_input(workflow, descriptions):
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        inputs = _inputs(descriptions[node["type"]])
        for name, value in _widget_values(node, descriptions[node["type"]]).items():
            kind, options = inputs[name]
            place = f"{node['type']}.{name} = {value!r}"
            if isinstance(kind, list) or kind == "COMBO":
                choices = kind if isinstance(kind, list) else options["options"]
                # Which model files there are differs from machine to machine.
                assert value in choices or value.endswith(".safetensors"), place
            elif kind in ("INT", "FLOAT"):
                assert isinstance(value, int | float) and not isinstance(value, bool), place
                assert options.get("min", value) <= value <= options.get("max", value), place
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), place


def test_our_nodes_show_their_defaults(workflow, descriptions):
    for node in workflow["nodes"]:
        if node["type"] not in CONTRACT_DEFAULTS:
            continue
        values = _widget_values(node, descriptions[node["type"]])
        assert CONTRACT_DEFAULTS[node["type"]].items() <= values.items()
        if node["type"] == "WanTune_LoadDataset":
            assert (values.pop("folder"), values.pop("trigger_word")) == ("wantune_example", "GF Carty Chan")
        inputs = _inputs(descriptions[node["type"]])
        assert values == {name: inputs[name][1]["default"] for name in values}


def test_the_two_samplers_differ_in_the_lora_alone(workflow, descriptions):
    graph = _api_graph(workflow, descriptions)
    compare = next(node for node in graph.values() if node["class_type"] == "WanTune_CompareVideos")
    base, tuned = (
        graph[graph[compare["inputs"][side][0]]["inputs"]["samples"][0]] for side in ("base", "tuned")
    )
    base_model, tuned_model = base["inputs"].pop("model"), tuned["inputs"].pop("model")
    assert base["inputs"] == tuned["inputs"] and base["inputs"]["steps"] == 30 and base["inputs"]["cfg"] == 6
    assert graph[base_model[0]]["class_type"] == "ModelSamplingSD3"
    assert graph[tuned_model[0]]["class_type"] == "WanTune_ApplyLoRA"
    assert graph[tuned_model[0]]["inputs"]["model"] == base_model
    train = next(node for node in graph.values() if node["class_type"] == "WanTune_TrainWanLoRA")
    assert graph[train["inputs"]["model"][0]]["class_type"] == "UNETLoader"


def test_the_api_workflow_is_the_same_graph(workflow, descriptions):
    graph = _api_graph(workflow, descriptions)
    api = json.loads((FOLDER / "api" / WORKFLOW.name).read_text(encoding="utf-8"))
    assert set(api) == set(graph)
    for number, node in api.items():
        assert node["class_type"] == graph[number]["class_type"]
        # It leaves optional inputs to the nodes' own defaults.
        assert node["inputs"].items() <= graph[number]["inputs"].items(), number


def test_the_page_is_told_where_each_model_file_comes_from(workflow):
    for node in workflow["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] == node["widgets_values"][0]
            assert model["url"].split("?")[0].endswith(f"/split_files/{model['directory']}/{model['name']}")
    assert sum(len(node["properties"].get("models", [])) for node in workflow["nodes"]) == 3


def test_nothing_overlaps_and_each_node_lies_in_one_group(workflow):
    title_height = 30

    def box(node):
        x, y = node["pos"]
        return x, y - title_height, x + node["size"][0], y + node["size"][1]

    boxes = [box(node) for node in workflow["nodes"]]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
    for node in workflow["nodes"]:
        left, top, right, bottom = box(node)
        around = [
            group["title"]
            for group in workflow["groups"]
            for x, y, width, height in [group["bounding"]]
            if x <= left and y <= top and right <= x + width and bottom <= y + height
        ]
        assert len(around) == (0 if node.get("title") == "Start here" else 1), node["type"]


def test_thumbnail_is_a_picture_of_the_same_name():
    with Image.open(WORKFLOW.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and picture.width == 512


def test_server_offers_the_workflow_as_a_template_of_this_pack(server):
    name = FOLDER.parent.name
    assert WORKFLOW.stem in server.get("/workflow_templates")[name]
    served = server.get(f"/api/workflow_templates/{name}/{WORKFLOW.name}")
    assert served == json.loads(WORKFLOW.read_text(encoding="ascii"))
