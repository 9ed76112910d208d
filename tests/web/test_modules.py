"""The page's pure modules under `node --test`, and what presets fill in."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wantune.tests.support import javascript
from wantune.trainer.settings.presets import CUSTOM, PRESETS
from wantune.trainer.settings.training import LoraConfig, TrainConfig
from wantune.trainer.training.evaluate import TOLERANCE

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
SCRIPTS = {path: path.read_text(encoding="utf-8") for path in sorted(WEB.rglob("*.js"))}


def test_the_page_waits_twice_as_long_as_an_even_rise_takes_to_be_better():
    (told,) = re.findall(r"PATIENT_SHARE = ([\d.]+)", SCRIPTS[WEB / "chart" / "meters.js"])
    assert float(told) == 2 * TOLERANCE


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_pages_pure_modules():
    files = sorted(str(path) for path in (ROOT / "tests" / "web").rglob("*.test.mjs"))
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
    comfyuis = [WEB / f"../../scripts/{name}.js" for name in ("app", "api")]  # seen from /extensions/<our folder>/
    allowed = {path.resolve() for path in (*SCRIPTS, *comfyuis)}
    for path, text in SCRIPTS.items():
        for source in javascript.imports(text):
            assert source.startswith(".") and (path.parent / source).resolve() in allowed, f"{path.name}: {source}"


def test_the_style_sheets_that_scripts_load_are_those_there_are():
    loaded = {each for text in SCRIPTS.values() for each in re.findall(r"stylesheet\('(.*?)'\)", text)}
    assert loaded == {path.relative_to(WEB).as_posix() for path in WEB.rglob("*.css")}
