"""What is installed, what a foreign environment is told to install, and that a second start is quick."""

import re
import venv
from pathlib import Path

import pytest

from wantune.demo import environment, packages
from wantune.demo.comfyui import ComfyUI

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path):
    """A ComfyUI that needs one essential package that nobody has, and one that is not essential."""
    path = tmp_path / "ComfyUI"
    (path / "comfy").mkdir(parents=True)
    (path / "main.py").touch()
    text = "torch\ntorchaudio\nno-such-package==1.0\n\n#non essential dependencies:\nno-such-extra\n"
    (path / "requirements.txt").write_text(text, encoding="utf-8")
    return path


def test_requirement_files_are_read_without_comments(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# why\nnumpy>=1.25  # arrays\n\n--extra-index-url somewhere\nav\n", encoding="utf-8")
    assert packages.read(path) == ["numpy>=1.25", "av"]


def test_torch_family_is_never_left_to_a_requirement_file():
    lines = ["torch", "torchvision>=0.2", "TorchAudio", "torchsde", "av"]
    assert packages.without_torch(lines) == ["torchsde", "av"]


@pytest.mark.parametrize(
    "torch, torchvision, torchaudio",
    [
        ("2.13.0+cpu", "0.28.0", "2.11.0"),
        ("2.11.0", "0.26.0", "2.11.0"),
        ("2.7.1+cu128", "0.22.1", "2.7.1"),
        ("2.8", "0.23.0", "2.8.0"),
    ],
)
def test_companions_match_torch(torch, torchvision, torchaudio):
    assert packages.torchvision_for(torch) == torchvision
    assert packages.torchaudio_for(torch) == torchaudio


def test_unknown_torch_is_refused():
    with pytest.raises(ValueError, match="No torchvision is known for torch 1.13.1"):
        packages.torchvision_for("1.13.1")


def test_demo_needs_no_test_packages(tree):
    demo = packages.to_install(ROOT, tree, "demo")
    test = packages.to_install(ROOT, tree, "test")
    assert set(test) - set(demo) == set(packages.read(ROOT / "tests" / "requirements.txt"))
    assert "no-such-package==1.0" in demo and "no-such-extra" in demo


def test_own_python_of_comfyui_is_told_what_it_lacks_and_left_alone(tree):
    venv.create(tree / "venv", symlinks=True)
    before = sorted((tree / "venv").rglob("*"))
    with pytest.raises(ValueError) as refusal:
        environment.prepare(ROOT, str(tree), None, "demo")
    message = str(refusal.value)
    assert "lacks torch, no-such-package==1.0, accelerate>=1.0," in message
    assert f'{environment.python_in(tree / "venv")} -m pip install torch "no-such-package==1.0" "accelerate' in message
    assert "pytest>" not in message and "no-such-extra" not in message and "torchaudio" not in message
    assert sorted((tree / "venv").rglob("*")) == before


def test_python_that_does_not_run_is_named(tree):
    broken = tree / "broken-python"
    broken.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    broken.chmod(0o755)
    with pytest.raises(ValueError, match="does not run"):
        environment.prepare(ROOT, str(tree), str(broken), "demo")
    with pytest.raises(ValueError, match="is no file"):
        environment.prepare(ROOT, str(tree), str(tree / "absent"), "demo")


def test_each_bare_checkout_has_an_environment_of_its_own(tmp_path):
    first = environment.folder_for(tmp_path, ComfyUI(tmp_path / "first", "--comfyui"))
    second = environment.folder_for(tmp_path, ComfyUI(tmp_path / "second", "--comfyui"))
    assert re.fullmatch(r"\.venv-[0-9a-f]{8}", first.name) and first != second
    assert environment.folder_for(tmp_path, ComfyUI(tmp_path / "first", "wheel")).name == ".venv"


def test_nothing_is_installed_again_until_a_requirement_changes(tree, tmp_path, monkeypatch):
    root = tmp_path / "pack"
    (root / "tests").mkdir(parents=True)
    for place in (root, root / "tests"):
        (place / "requirements.txt").write_text("av\n", encoding="utf-8")
    calls = []
    monkeypatch.setattr(environment, "_create", lambda folder: folder.mkdir(exist_ok=True))
    monkeypatch.setattr(environment, "_has_pip", lambda python: True)
    monkeypatch.setattr(environment, "_version", lambda python, package: "2.13.0")
    monkeypatch.setattr(environment, "_pip", lambda python, *arguments: calls.append(arguments))
    for expected in (1, 1):
        environment.prepare(root, str(tree), None, "demo")
        assert len(calls) == expected
    (root / "requirements.txt").write_text("av>=14\n", encoding="utf-8")
    environment.prepare(root, str(tree), None, "test")
    assert len(calls) == 2 and "av>=14" in calls[-1]
    environment.prepare(root, str(tree), None, "demo")
    assert len(calls) == 2, "what was installed for the tests serves the demo"


def test_registry_metadata_lists_the_same_dependencies():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL).group(1)
    assert re.findall(r'"([^"]+)"', listed) == packages.read(ROOT / "requirements.txt")
    assert "torch" in packages.read(ROOT / "requirements.txt"), "an installed torch must never be replaced"
