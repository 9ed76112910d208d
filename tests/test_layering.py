"""The import rules of the house, executable: docs/design.md says why."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from wantune.tests.support import javascript

ROOT = Path(__file__).resolve().parents[1]
TRAINER = sorted((ROOT / "trainer").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
COMMAND = sorted((ROOT / "command").glob("*.py"))
BESIDE = [ROOT / "run.py", ROOT / "__init__.py", ROOT / "__main__.py", *COMMAND, *sorted((ROOT / "demo").glob("*.py")),
          *sorted((ROOT / "bench").glob("*.py"))]
TRAINER_ORDER = (
    "base", "settings", "adapter", "memory", "blocks", "model", "data", "encoded", "lora", "runs", "training", "media",
    "job", "wan_diffusers")
NODES_ORDER = ("backend", "media", "page")
"""The folders in the order in which a sample flows; each imports only from those before it."""
STDLIB = set(sys.stdlib_module_names)
EVERYWHERE = {"torch", "numpy", "safetensors", "PIL", "av"}
WAN_DIFFUSERS = {f"trainer/wan_diffusers/{name}.py" for name in (
    "codec", "denoiser", "images", "loading", "quantised", "sampling", "sharded", "space", "text")}
ONLY_IN = {"filelock": {"trainer/encoded/store.py", "trainer/runs/lock.py"}, "peft": {"trainer/adapter/peft_layers.py"},
           "diffusers": {"trainer/training/optim.py", *WAN_DIFFUSERS},
           "accelerate": {"trainer/training/launch.py", *WAN_DIFFUSERS}, "transformers": WAN_DIFFUSERS,
           "sentencepiece": WAN_DIFFUSERS, "tokenizers": WAN_DIFFUSERS, "psutil": WAN_DIFFUSERS,
           "torchao": WAN_DIFFUSERS,
           "pytorch_optimizer": {"trainer/training/optim.py"},
           "bitsandbytes": {"trainer/training/optim.py", "trainer/wan_diffusers/quantised.py"},
           "scipy": {"trainer/training/objective.py"},
           "tomllib": {"trainer/job/settings.py"}, "tomli": {"trainer/job/settings.py"}}  # Python 3.11, and before
COMFYUI = {"aiohttp", "comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfyui_version",
           "folder_paths", "server"}


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


def imported_files(path: Path) -> set[Path]:
    """Our own files that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        start = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for place in [start, *(start / alias.name for alias in node.names)]:
            if place.with_suffix(".py").is_file():
                found.add(place.with_suffix(".py"))
            elif place != start and (place / "__init__.py").is_file():
                found.add(place / "__init__.py")
    return found


def room_of(path: Path) -> str:
    """The folder of trainer/ or nodes/ that a file stands in; "" for those above all folders."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if len(parts) > 2 else ""


def check_order(files: list[Path], order: tuple[str, ...], allowed: dict[str, set[str]]) -> None:
    """Fails at the first import that leads to a later folder."""
    for path in files:
        for target in imported_files(path):
            if target.relative_to(ROOT).parts[0] == files[0].relative_to(ROOT).parts[0]:
                assert room_of(target) in allowed[room_of(path)], (
                    f"{name_of(path)} imports {name_of(target)}; the order is {' '.join(order)}")


def up_to(order: tuple[str, ...]) -> dict[str, set[str]]:
    """What each folder may import from: itself and those before it; the files above all folders, from all."""
    return {room: set(order[:number + 1]) for number, room in enumerate(order)} | {"": {"", *order}}


def test_each_folder_of_the_trainer_imports_only_from_those_before_it():
    assert {path.name for path in (ROOT / "trainer").iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        *TRAINER_ORDER}
    check_order(TRAINER, TRAINER_ORDER, up_to(TRAINER_ORDER))


def test_each_folder_of_the_nodes_imports_only_from_those_before_it():
    assert {path.name for path in (ROOT / "nodes").iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        *NODES_ORDER}
    check_order(NODES, NODES_ORDER, up_to(NODES_ORDER))


def test_an_import_that_leads_back_up_is_found():
    backwards = TRAINER_ORDER[::-1]
    with pytest.raises(AssertionError, match="imports trainer/"):
        check_order(TRAINER, backwards, up_to(backwards))


def test_no_files_import_each_other_in_a_circle():
    targets = {path: imported_files(path) for path in TRAINER + NODES}
    done: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(map(name_of, (*way[way.index(path):], path)))
        if path not in done:
            for target in targets.get(path, ()):
                visit(target, (*way, path))
            done.add(path)

    for path in targets:
        visit(path, ())


@pytest.mark.parametrize("path", [path for path in TRAINER + NODES if path.name == "__init__.py"], ids=name_of)
def test_every_room_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


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


@pytest.mark.parametrize("path", COMMAND, ids=name_of)
def test_the_command_line_knows_the_trainer_alone(path):
    for level, name in imports(path):
        if level == 2:
            assert name.split(".")[0] == "trainer", f"{name_of(path)} imports {name}"
        elif not level:
            known = {*STDLIB, *EVERYWHERE, *({"tomllib", "tomli"} if path.name == "foreign.py" else ())}
            assert name.split(".")[0] in known, f"{name_of(path)} imports {name}"


def test_the_root_imports_nothing_when_it_is_imported():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("path", TRAINER + NODES, ids=name_of)
def test_no_file_touches_the_path_of_modules_or_pickles(path):
    text = path.read_text(encoding="utf-8")
    for forbidden in ("sys." + "path", "import " + "pickle", "torch." + "save(", "torch." + "load("):
        assert forbidden not in text


@pytest.mark.parametrize("path", TRAINER + NODES + BESIDE, ids=name_of)
def test_files_stay_one_room(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", TRAINER + NODES + BESIDE, ids=name_of)
def test_functions_fit_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "define_schema":
            length = node.end_lineno - node.lineno + 1
            limit = {"execute": 20, "train_step": 50}.get(node.name, 60)
            assert length <= limit, f"{node.name} has {length} lines"


# The page's scripts: web/.

WEB = ROOT / "web"
SCRIPTS = sorted(WEB.rglob("*.js"))
WEB_FOLDERS = ("shared", "texts", "settings", "chart", "sheet", "training", "compare", "runs")
"""Each imports only from itself and from those before it; what all share comes first, then what a user meets first."""


def scripts_imported_by(path: Path) -> list[Path]:
    """Those of ours; ComfyUI's lie outside."""
    found = [(path.parent / each).resolve() for each in javascript.imports(path.read_text(encoding="utf-8"))]
    return [each for each in found if each.is_relative_to(WEB)]


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_folders_of_the_page_import_only_from_those_before_them(path):
    allowed = WEB_FOLDERS[:WEB_FOLDERS.index(path.parent.name) + 1]
    for other in scripts_imported_by(path):
        assert other.parent.name in allowed, f"{name_of(path)} imports {name_of(other)}"


def test_the_page_has_no_other_folders():
    assert {path.parent for path in SCRIPTS} == {WEB / name for name in WEB_FOLDERS}


def test_no_scripts_of_the_page_import_each_other_in_a_circle():
    TopologicalSorter({path: scripts_imported_by(path) for path in SCRIPTS}).prepare()


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_stay_one_room(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_functions_of_scripts_fit_a_screen(path):
    for name, length in javascript.function_lengths(path.read_text(encoding="utf-8")):
        assert length <= 60, f"{name_of(path)} has {length} lines in: {name}"


def test_the_length_of_a_function_is_that_of_all_that_is_written_in_it():
    source = """import { el } from '../shared/elements.js'
export function outer() {
  const inner = () => {
    return 1
  }
  return inner
}
class Player {
  #key = (event) => event.key
  async play() {
    await import(
      './pair.js')
  }
}
"""
    assert javascript.function_lengths(source) == [
        ("export function outer() {", 6), ("const inner = () => {", 3), ("#key = (event) => event.key", 1),
        ("async play() {", 4)]
    assert javascript.imports(source) == ["../shared/elements.js", "./pair.js"]
    assert javascript.function_lengths("f(() => {" + "\n" * 60 + "})") == [("f(() => {", 61)]
    with pytest.raises(ValueError, match="not JavaScript"):
        javascript.function_lengths("function (")
