"""The page itself: a real Chromium, a real ComfyUI server, both renderers, the front end it comes with and the newest.

Scenarios are tests/web/browser/*.mjs; what they saw lies in test_artifacts/ afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import uuid
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from wantune.demo import browser as browsers
from wantune.demo import graph as graphs
from wantune.demo import page
from wantune.demo.server import Server
from wantune.tests.conftest import ROOT
from wantune.tests.support import clips, example_workflows, frame_models
from wantune.tests.support.tools import WORLD

SCRIPTS = ROOT / "tests" / "web" / "browser"
ARTIFACTS = ROOT / "test_artifacts"
SECONDS = 420
"""A scenario takes one minute on an idle machine with two cores; this is where it is given up."""

EVER = 5000
"""Epochs of a run that only Stop ends: hours."""

SAVED_BEFORE = "WANTUNE_KEEP"
"""The type of the validation socket in graphs that were saved before it was renamed: they still open and run."""

LOW = "low_noise.safetensors"

RENDERERS = {"classic": False, "nodes2": True}

COMBINATIONS = [("shipped", "classic"), ("newest", "nodes2"), ("shipped", "nodes2"), ("newest", "classic")]
"""Front end and renderer; without --long each of them once."""


def pytest_generate_tests(metafunc):
    if "site" in metafunc.fixturenames:
        marked = [pytest.param(*each, marks=[pytest.mark.long] if number > 1 else [])
                  for number, each in enumerate(COMBINATIONS)]
        metafunc.parametrize(("site", "renderer"), marked, indirect=["site"])


@pytest.fixture(scope="module")
def browser() -> browsers.Browser:
    return _needed(lambda: browsers.find(ROOT, os.environ))


def _needed(find):
    try:
        return find()
    except browsers.Missing as missing:
        if os.environ.get("WANTUNE_BROWSER") == "required":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@dataclass
class Site:
    """A server with templates for the scenarios; each has a folder of pictures of the same name."""

    server: Server
    browser: browsers.Browser
    label: str
    core: dict[str, dict] = field(default_factory=dict)
    """Complaints that are not ours, by renderer."""

    def play(self, script: str, renderer: str, **given) -> str:
        """What the script printed; its failure is the test's."""
        done = self.browser.run(
            SCRIPTS / script, SECONDS, url=self.server.url, source=page.PACK, pack=ROOT.name, vue=RENDERERS[renderer],
            label=f"{self.label}-{renderer}", **{"artifacts": str(ARTIFACTS), **given})
        print(done.stdout)
        assert done.returncode == 0, f"{script} failed, see what it printed"
        return done.stdout

    def noise(self, renderer: str) -> dict:
        """What the page without our scripts complains about."""
        if renderer not in self.core:
            printed = self.play("noise.mjs", renderer, template=f"noise_{renderer}")
            self.core[renderer] = json.loads(printed.splitlines()[-1])
        return self.core[renderer]

    def scenario(self, name: str, renderer: str, **given) -> None:
        """Play it on a template of its own, and leave the server idle."""
        template = f"{name}_{renderer}"
        pictures = self.server.folder("input") / template
        try:
            core = self.noise(renderer)
            self.play(f"{name}.mjs", renderer, template=template, pictures=str(pictures), core=core, **given)
        finally:
            self.server._request("/queue", {"clear": True})
            self.server.interrupt()


@pytest.fixture(scope="module")
def site(request, browser, comfy, tmp_path_factory):
    """A server with the front end it comes with, or the newest of PyPI."""
    arguments = ()
    label = f"comfyui-{comfy.version}"
    if request.param == "newest":
        front_end = _needed(lambda: browsers.newest_front_end(ROOT))
        label = f"{label}-frontend-{front_end.version}"
        arguments = ("--front-end-root", str(front_end.static))
    print(f"{label}: {browser.chromium}")
    workspace = tmp_path_factory.mktemp("page")
    pack = write_templates(workspace)
    shutil.copy(comfy.path / "input" / "example.png", workspace / "input")
    arguments = (*arguments, "--extra-model-paths-config", str(_low_noise_expert(workspace)),
                 "--extra-model-paths-config", str(_named_models(workspace)))
    with Server(Path(sys.executable), comfy, ROOT, workspace, (pack,), arguments) as running:
        yield Site(running, browser, label)


def _low_noise_expert(workspace: Path) -> Path:
    """A second model of the small world's shape, LOW; returns the file that tells ComfyUI of its folder."""
    folder = workspace / "experts"
    folder.mkdir()
    save_file({name: value * 1.01 for name, value in load_file(WORLD / "dit.safetensors").items()}, folder / LOW)
    paths = workspace / "experts.yaml"
    paths.write_text(json.dumps({"experts": {"diffusion_models": str(folder)}}), encoding="utf-8")
    return paths


def _named_models(workspace: Path) -> Path:
    """Empty files named as the examples' models, so that the page misses none; as `_low_noise_expert`."""
    folder, kinds = workspace / "named", {}
    for name in example_workflows.NAMES:
        for node in example_workflows.load(name)["nodes"]:
            for model in node["properties"].get("models", []):
                kinds[model["directory"]] = str(folder / model["directory"])
                (folder / model["directory"]).mkdir(parents=True, exist_ok=True)
                (folder / model["directory"] / model["name"]).touch()
    paths = workspace / "named.yaml"
    paths.write_text(json.dumps({"named": kinds}), encoding="utf-8")
    return paths


def write_templates(workspace: Path) -> Path:
    """The example on the small world, once for each scenario and renderer, with a run and pictures of its own."""
    names = ("unet", "vae", "clip", "folder", "trigger", "prompt", "epochs", "seed")
    adapted = graphs.adapt(graphs.load(ROOT), argparse.Namespace(**dict.fromkeys(names)), ROOT)
    pack = page.write_pack(ROOT, adapted, workspace / "packs")
    templates = pack / "example_workflows"
    text = (templates / f"{page.WORKFLOW}.json").read_text(encoding="utf-8")
    clip_vision = frame_models.write_clip_vision(workspace / "clip_vision.safetensors", hidden_size=64)
    scenarios = {"noise": 1, "presets": 1, "training": EVER, "sheet": 1, "runs": 1, "pair": EVER}
    for renderer in RENDERERS:
        for scenario, epochs in scenarios.items():
            name = f"{scenario}_{renderer}"
            seed = zlib.crc32(name.encode())  # runs that differ in nothing but their name are one run
            shutil.copytree(ROOT / graphs.SMALL_WORLD.folder, workspace / "input" / name)
            workflow = _measured(json.loads(text), name)
            _add_clip_vision(workflow, clip_vision)
            workflow["id"] = str(uuid.uuid4())
            _set(workflow, "WanTune_TrainWanLoRA", {0: name, 1: epochs, 7: seed})
            _set(workflow, "KSampler", {0: seed, 2: 2})
            if scenario == "pair":
                _add_expert(workflow)
            (templates / f"{name}.json").write_text(json.dumps(workflow), encoding="utf-8")
    shutil.copytree(ROOT / graphs.SMALL_WORLD.folder, workspace / "input" / "wantune_example")
    tour = json.loads(text)
    _set(tour, "WanTune_LoadDataset", {0: "wantune_example", 5: 2})
    _set(tour, "WanTune_PreviewSettings", {7: 2})
    (templates / "tour.json").write_text(json.dumps(tour), encoding="utf-8")
    beside = {"WanTune_LoadDataset": [0, 0], "WanTune_TrainWanLoRA": [450, 0], "WanTune_CompareVideos": [1000, 0]}
    for node in tour["nodes"]:
        node["pos"] = beside.get(node["type"], [node["pos"][0], node["pos"][1] + 4000])
    close = {**tour, "id": str(uuid.uuid4()), "groups": []}
    (templates / "tour_close.json").write_text(json.dumps(close), encoding="utf-8")
    return pack


def _measured(workflow: dict, pictures: str) -> dict:
    """With held-out files, small previews of the model in training, and checkpoints at short intervals."""
    _set(workflow, "WanTune_LoadDataset", {0: pictures, 3: "1, 5", 4: 1, 5: 2})
    _set(workflow, "WanTune_PreviewSettings", dict(enumerate([64, 64, 5, 2, 1.0, 5.0, 0, 0, 40])))
    _unlink(workflow, "WanTune_PreviewSettings", ("model", "latent"))
    train = next(node for node in workflow["nodes"] if node["type"] == "WanTune_TrainWanLoRA")
    link, number = workflow["last_link_id"] + 1, workflow["last_node_id"] + 1
    train["inputs"].append({"name": "validation", "type": SAVED_BEFORE, "link": link})
    workflow["nodes"].append({
        "id": number, "type": "WanTune_KeepSettings", "pos": [980, -400], "size": [400, 300], "flags": {}, "order": 0,
        "mode": 0, "inputs": [], "outputs": [{"name": "validation", "type": SAVED_BEFORE, "links": [link]}],
        "properties": {}, "widgets_values": [0, 20, 0, 0, 25, 0.0, 3]})
    workflow["links"].append([link, number, 0, train["id"], len(train["inputs"]) - 1, SAVED_BEFORE])
    workflow.update(last_link_id=link, last_node_id=number)
    return workflow


def _unlink(workflow: dict, kind: str, sockets: tuple[str, ...]) -> None:
    node = next(node for node in workflow["nodes"] if node["type"] == kind)
    cut = {each["link"] for each in node["inputs"] if each["name"] in sockets}
    workflow["links"] = [link for link in workflow["links"] if link[0] not in cut]
    for each in workflow["nodes"]:
        for socket in each["inputs"]:
            socket["link"] = None if socket["link"] in cut else socket["link"]
        for socket in each["outputs"]:
            socket["links"] = [link for link in socket["links"] or [] if link not in cut]


def _add_clip_vision(workflow: dict, path: Path) -> None:
    """That of the file at Preview Settings."""
    previews = next(node for node in workflow["nodes"] if node["type"] == "WanTune_PreviewSettings")
    link, number = workflow["last_link_id"] + 1, workflow["last_node_id"] + 1
    previews["inputs"].append({"name": "clip_vision", "shape": 7, "type": "CLIP_VISION", "link": link})
    workflow["nodes"].append({
        "id": number, "type": "WanTuneTest_LoadClipVision", "pos": [980, -550], "size": [300, 60], "flags": {},
        "order": 0, "mode": 0, "inputs": [], "properties": {}, "widgets_values": [str(path)],
        "outputs": [{"name": "CLIP_VISION", "type": "CLIP_VISION", "links": [link]}]})
    workflow["links"].append([link, number, 0, previews["id"], len(previews["inputs"]) - 1, "CLIP_VISION"])
    workflow.update(last_link_id=link, last_node_id=number)


def _add_expert(workflow: dict) -> None:
    """The model LOW at model_low."""
    loader, train = (next(node for node in workflow["nodes"] if node["type"] == kind)
                     for kind in ("UNETLoader", "WanTune_TrainWanLoRA"))
    link, number = workflow["last_link_id"] + 1, workflow["last_node_id"] + 1
    low = json.loads(json.dumps({**loader, "id": number, "pos": [loader["pos"][0], loader["pos"][1] - 200]}))
    low["widgets_values"][0] = LOW
    low["outputs"] = [{"name": "MODEL", "type": "MODEL", "links": [link]}]
    slot = next(index for index, each in enumerate(train["inputs"]) if each["name"] == "model_low")
    train["inputs"][slot]["link"] = link
    workflow["nodes"].append(low)
    workflow["links"].append([link, number, 0, train["id"], slot, "MODEL"])
    workflow.update(last_link_id=link, last_node_id=number)


def _set(workflow: dict, kind: str, values: dict) -> None:
    for node in workflow["nodes"]:
        if node["type"] == kind:
            for index, value in values.items():
                node["widgets_values"][index] = value


def test_nodes_and_presets(site, renderer):
    site.scenario("presets", renderer)


def test_the_examples_as_they_open(site, renderer):
    site.scenario("examples", renderer, examples=str(ROOT / "example_workflows"))


def test_a_run_from_queue_to_comparison(site, renderer):
    site.scenario("training", renderer)


def test_a_pair_of_experts(site, renderer):
    site.scenario("pair", renderer)


def test_the_contact_sheet(site, renderer):
    pictures = site.server.folder("input") / f"sheet_{renderer}"
    clips.at_rate(pictures / "clip.mp4", 16, 8)
    (pictures / "broken.png").write_bytes(b"no picture")
    site.scenario("sheet", renderer)


def test_the_run_browser(site, renderer):
    site.scenario("runs", renderer, run=f"noise_{renderer}")


@pytest.mark.long
def test_the_first_run_of_the_readme(site, renderer):
    """Leaves its pictures in test_artifacts/first_run; in a clone called WanTune they are those of docs/."""
    if not RENDERERS[renderer]:
        pytest.skip("README shows Nodes 2.0")
    folder = ARTIFACTS / "first_run"
    site.play("tour.mjs", renderer, template="tour", artifacts=str(folder))
    pictures = {path.stem: Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))}
    left, right = pictures.pop("10_save"), pictures.pop("10_apply")
    pictures["10_save_apply"] = Image.new("RGB", (left.width + 16 + right.width, max(left.height, right.height)))
    pictures["10_save_apply"].paste(left, (0, 0))
    pictures["10_save_apply"].paste(right, (left.width + 16, 0))
    pictures["01_template"] = pictures["01_template"].crop((0, 0, 1320, 740))
    assert len(pictures) == 12
    for name, image in pictures.items():
        image.save(folder / f"{name}.jpg", quality=88)
