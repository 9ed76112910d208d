"""The page's pure modules under `node --test`, and what presets fill in."""

import shutil
import subprocess
from pathlib import Path

import pytest

from wantune.trainer.settings.presets import CUSTOM, PRESETS
from wantune.trainer.settings.training import LoraConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_pages_pure_modules():
    files = sorted(str(path) for path in (ROOT / "tests" / "web").glob("*.test.mjs"))
    assert files
    done = subprocess.run(["node", "--test", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_in_widgets_that_are_there_with_values_that_are_taken(comfy, name):
    from wantune.nodes.train import TrainWanLoRA

    widgets = {each.id: each for each in TrainWanLoRA.GET_SCHEMA().inputs}
    for widget, value in PRESETS[name].items():
        assert widgets[widget].min <= value <= widgets[widget].max
    values = dict(PRESETS[name])
    TrainConfig(lora=LoraConfig(rank=values.pop("rank"), alpha=values.pop("alpha")), **values)


def test_the_page_is_told_the_presets(comfy):
    from wantune.nodes.train import TrainWanLoRA

    (preset,) = [each for each in TrainWanLoRA.GET_SCHEMA().inputs if each.id == "preset"]
    assert preset.as_dict()["presets"] == PRESETS and preset.options == [CUSTOM, *PRESETS]


def test_no_script_imports_anything_but_comfyuis_two_and_ours():
    for path in (ROOT / "web").rglob("*.js"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("import "):
                source = line.rsplit("from ", 1)[1].strip("'\"; ")
                assert source.startswith("./") or source in ("../../scripts/app.js", "../../scripts/api.js"), line
