"""The example workflows, as the page opens them, fit the nodes of the ComfyUI under test.

Every node type is known, every link joins an output to an input of its type, and every widget value lies in
the slot of its input. What the page itself does with the files is beyond these tests: they need no browser.
"""

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

from wantune.tests.support.example_workflows import (
    FOLDER,
    NAMES,
    NOTES,
    api_graph,
    describe_nodes,
    inputs_of,
    load,
    load_api,
    widget_values,
)


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def workflow(name) -> dict:
    return load(name)


@pytest.fixture(scope="module")
def descriptions(comfy) -> dict:
    return describe_nodes()


def test_every_node_type_is_known_and_switched_on(workflow, descriptions):
    types = [node["type"] for node in workflow["nodes"]]
    assert set(types) - set(descriptions) == NOTES
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
        kind, _ = inputs_of(descriptions[nodes[target]["type"]])[taken["name"]]
        assert description["outputs"][output] in kind.split(","), f"link {number} into {taken['name']}"
    used = [item["link"] for node in workflow["nodes"] for item in node["inputs"] if item["link"] is not None]
    assert sorted(used) == sorted(link[0] for link in workflow["links"])


def test_every_required_socket_is_connected(workflow, descriptions):
    for node in api_graph(workflow, descriptions).values():
        required = descriptions[node["class_type"]]["inputs"].get("required", {})
        assert set(required) <= set(node["inputs"]), node["class_type"]


def test_widget_values_are_of_the_type_and_range_of_their_input(workflow, descriptions):
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        inputs = inputs_of(descriptions[node["type"]])
        for name, value in widget_values(node, descriptions[node["type"]]).items():
            kind, options = inputs[name]
            place = f"{node['type']}.{name} = {value!r}"
            if isinstance(kind, list) or kind == "COMBO":
                choices = kind if isinstance(kind, list) else options["options"]
                # Which files there are differs from machine to machine; example.png comes with ComfyUI.
                assert value in choices or value.endswith(".safetensors") or value == "example.png", place
            elif kind in ("INT", "FLOAT"):
                assert isinstance(value, int | float) and not isinstance(value, bool), place
                assert options.get("min", value) <= value <= options.get("max", value), place
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), place


def test_the_api_workflow_is_the_same_graph(name, workflow, descriptions):
    graph = api_graph(workflow, descriptions)
    api = load_api(name)
    assert set(api) == set(graph)
    for number, node in api.items():
        assert node["class_type"] == graph[number]["class_type"]
        # It may leave optional inputs to the nodes' own defaults.
        assert node["inputs"].items() <= graph[number]["inputs"].items(), number


def _files(workflow: dict) -> dict[str, str]:
    """The address of each model file that the page may offer to fetch, by name."""
    return {model["name"]: model["url"] for node in workflow["nodes"]
            for model in node["properties"].get("models", [])}


def test_the_page_and_the_note_say_where_each_model_file_comes_from(workflow):
    named = [value for node in workflow["nodes"] for value in node.get("widgets_values", [])
             if str(value).endswith(".safetensors")]
    assert sorted(named) == sorted(_files(workflow)) and len(named) >= 3
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node.get("title") == "Where to get the files")
    for node in workflow["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] == node["widgets_values"][0]
            address = model["url"].removesuffix("?download=true")
            assert address.endswith(f"/split_files/{model['directory']}/{model['name']}")
            assert f"{model['directory']}: [{model['name']}]({address})" in note


def test_model_files_are_those_of_comfyui_s_own_templates(workflow):
    package = importlib.util.find_spec("comfyui_workflow_templates")
    if package is None:
        pytest.skip("this ComfyUI was installed without its templates")
    templates = Path(package.origin).parents[1].glob("comfyui_workflow_templates*/templates/*wan*.json")
    known = {address for template in templates
             for address in re.findall(r"https://[^\s\"?)]+\.safetensors", template.read_text(encoding="utf-8"))}
    assert {address.removesuffix("?download=true") for address in _files(workflow).values()} <= known


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


def test_thumbnail_is_a_picture_of_the_same_name(name):
    with Image.open(FOLDER / f"{name}.jpg") as picture:
        assert picture.format == "JPEG" and picture.width == 512


def test_server_offers_the_workflows_as_templates_of_this_pack(server):
    pack = FOLDER.parent.name
    assert sorted(server.get("/workflow_templates")[pack]) == NAMES
    for name in NAMES:
        served = server.get(f"/api/workflow_templates/{pack}/{name}.json")
        assert served == load(name)
