"""run.py starts on any machine with Python 3.10: standard library, old enough syntax."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "demo"
FILES = [ROOT / "run.py", *sorted(HOST.glob("*.py"))]
INSIDE = {"launch.py": {"comfy", "torch", "utils"}, "measure.py": {"av", "numpy"}}
"""These run inside the environment, so they may import what it holds."""


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_the_standard_library_is_imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    allowed = sys.stdlib_module_names | {"demo"} | INSIDE.get(path.name, set())
    assert set(imported(tree)) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_runs_inside_the_environment_is_not_imported_by_run_py(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    siblings = [
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level for alias in node.names
    ]
    assert not {"launch", "measure"} & set(siblings)
