"""The import rules of the house, executable: docs/design.md says why."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAINER = sorted((ROOT / "trainer").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
STDLIB = set(sys.stdlib_module_names)
EVERYWHERE = {"torch", "numpy", "safetensors", "PIL", "av"}
ONLY_IN = {"filelock": {"trainer/encoded/store.py"}, "peft": {"trainer/model/adapters.py"},
           "diffusers": {"trainer/training/optim.py"},
           "pytorch_optimizer": {"trainer/training/optim.py"}, "bitsandbytes": {"trainer/training/optim.py"},
           "scipy": {"trainer/training/objective.py"}}
COMFYUI = {"aiohttp", "comfy", "comfy_api", "comfyui_version", "folder_paths", "server"}


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, dotted name) of every import of a file, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", TRAINER, ids=name_of)
def test_the_trainer_knows_neither_comfyui_nor_what_is_above_it(path):
    depth = len(path.relative_to(ROOT / "trainer").parts)
    for level, name in imports(path):
        if level:
            assert level <= depth, f"{name_of(path)} imports above trainer/"
            continue
        top = name.split(".")[0]
        if top in ONLY_IN:
            assert name_of(path) in ONLY_IN[top], f"{name_of(path)} imports {top}"
        else:
            assert top in STDLIB | EVERYWHERE, f"{name_of(path)} imports {top}"


@pytest.mark.parametrize("path", NODES, ids=name_of)
def test_nodes_import_comfyui_by_name_and_us_relatively(path):
    for level, name in imports(path):
        if not level:
            assert name.split(".")[0] in STDLIB | EVERYWHERE | COMFYUI, f"{name_of(path)} imports {name}"


def test_the_root_imports_nothing_when_it_is_imported():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", TRAINER + NODES, ids=name_of)
def test_no_file_touches_the_path_of_modules_or_pickles(path):
    text = path.read_text(encoding="utf-8")
    for forbidden in ("sys." + "path", "import " + "pickle", "torch." + "save(", "torch." + "load("):
        assert forbidden not in text


@pytest.mark.parametrize("path", TRAINER + NODES, ids=name_of)
def test_files_stay_one_room(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", TRAINER + NODES, ids=name_of)
def test_functions_fit_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "define_schema":
            length = node.end_lineno - node.lineno + 1
            limit = {"execute": 20, "train_step": 50}.get(node.name, 60)
            assert length <= limit, f"{node.name} has {length} lines"
