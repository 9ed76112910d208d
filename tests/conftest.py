"""Makes this checkout importable as `wantune`, without running its root, and ComfyUI from COMFYUI_PATH."""

import os
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Our nodes/ would hide ComfyUI's nodes.py; `python -m pytest` puts the working folder on the path.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

pack = types.ModuleType("wantune")
pack.__path__ = [str(ROOT)]
sys.modules["wantune"] = pack

from wantune.demo import launch  # noqa: E402
from wantune.demo.comfyui import ComfyUI, find, unpacked  # noqa: E402
from wantune.demo.server import Server  # noqa: E402
from wantune.tests.support import windows_rules  # noqa: E402


def _comfyui() -> ComfyUI | None:
    found = find(ROOT, None, os.environ) or unpacked(ROOT)
    return found if found.path.is_dir() else None


launch.prepare_imports()
COMFYUI = _comfyui()
if COMFYUI:
    import torch

    torch.set_num_threads(1)  # models this small only lose by handing work between threads
    launch.import_comfyui(COMFYUI.path)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes to hours")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


UNDER_WINDOWS = ("trainer/base/", "trainer/runs/", "trainer/encoded/", "trainer/data/test_folder.py",
                 "trainer/data/test_captions.py", "trainer/data/test_scan.py", "trainer/data/test_thumbnails.py",
                 "nodes/test_load_run.py")
"""Tests that also run under Windows' rules about files; with --long all of trainer/ and nodes/ do."""


def pytest_generate_tests(metafunc):
    name = Path(metafunc.module.__file__).relative_to(ROOT / "tests").as_posix()
    is_other = ("test_killed_" in name or "rules" in metafunc.fixturenames  # other processes, and its own rules
                or metafunc.definition.get_closest_marker("long") is not None)
    if name.startswith(("trainer/", "nodes/")) and not is_other:
        windows = pytest.param("windows", marks=[] if name.startswith(UNDER_WINDOWS) else [pytest.mark.long])
        metafunc.fixturenames.insert(0, "file_rules")
        metafunc.parametrize("file_rules", ["here", windows], indirect=True)


@pytest.fixture
def file_rules(request, tmp_path_factory):
    """Windows' rules about files where a test asks for them."""
    if request.param == "here":
        yield
        return
    with windows_rules.in_force(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(scope="session")
def comfy() -> ComfyUI:
    """The ComfyUI under test; its modules can be imported."""
    if COMFYUI is None:
        pytest.fail("These tests need a ComfyUI: start them with `python3 run.py test`, or set COMFYUI_PATH.")
    return COMFYUI


@pytest.fixture(scope="session")
def server(comfy, tmp_path_factory):
    """A real ComfyUI server with this pack and the small world, started when first asked for."""
    with Server(Path(sys.executable), comfy, ROOT, tmp_path_factory.mktemp("server")) as running:
        yield running
