"""Commands as a user gives them, in this process, on the small world."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from wantune.command import main as command_line
from wantune.tests.support import tools
from wantune.trainer.runs import history

SETTINGS = """
[load_dataset]
folder = "pictures"
resolution = 64
frame_buckets = "1"
num_repeats = 1
trigger_word = "zwx"
validation_items = 1

[train_wan_lora]
run_name = "digits"
preset = "custom"
epochs = 99
max_steps = 4
learning_rate = 0.02
rank = 4
alpha = 4

[validation_and_checkpoint_settings]
every_steps = 2
every_minutes = 0
evaluate_epochs = 0
evaluate_steps = 2

[preview_settings]
prompts = "zwx a red three"
width = 64
height = 64
frames = 1
steps = 2
cfg = 1
every_epochs = 0
every_steps = 4

[models]
model = "dit.safetensors"
vae = "vae.safetensors"
clip = "umt5.safetensors"
folder = "{world}"
dtype = "float32"
"""


@dataclass
class Called:
    """What came of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys):
    """Runs a command; argparse's exits are exit codes."""
    def called(*arguments) -> Called:
        try:
            code = command_line.main([str(each) for each in arguments])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return Called(code, captured.out, captured.err)

    return called


def place_for_runs(folder: Path) -> Path:
    """A folder with pictures and settings, in which commands are given."""
    tools.write_pictures(folder / "pictures")
    (folder / "settings.toml").write_text(SETTINGS.replace("{world}", tools.WORLD.as_posix()), encoding="utf-8")
    return folder


def the_run(folder: Path) -> Path:
    """The only run that was trained in a folder."""
    (run,) = [path for path in (folder / "output" / "wantune").iterdir() if history.is_run(path)]
    return run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The present folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(comfy, tmp_path_factory) -> Path:
    """A folder in which a run of four steps was trained in two commands; tests must not change it."""
    folder, before = place_for_runs(tmp_path_factory.mktemp("trained")), os.getcwd()
    os.chdir(folder)
    try:
        assert command_line.main(["cache", "settings.toml"]) == 0
        assert command_line.main(["train", "settings.toml"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def in_trained(trained, monkeypatch) -> Path:
    """The same as the present folder."""
    monkeypatch.chdir(trained)
    return trained
