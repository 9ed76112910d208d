"""Start ComfyUI inside the environment: `python launch.py COMFYUI_FOLDER [main.py's arguments]`.

With a torch built for the CPU alone, torchvision cannot register its operators and torchaudio cannot load
its libraries, and ComfyUI does not start. `prepare_imports` works around both; in-process tests call it, too.
"""

import importlib.machinery
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

_libraries = []
"""torch.library.Library objects; their operators disappear when they are collected."""


def prepare_imports() -> list[str]:
    """Make torchvision and torchaudio importable where they are not; returns the names it repaired."""
    # Read when torch loads: threads that spin while they wait make a busy two-core machine ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    repaired = []
    for name, repair in (("torchvision", _define_schemas), ("torchaudio", _hide_libraries)):
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            for module in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
                del sys.modules[module]
            repair(name)
            repaired.append(name)
    return repaired


def accelerator_present() -> bool:
    """Whether torch sees a GPU that ComfyUI can use."""
    import torch

    others = [getattr(torch, name, None) for name in ("xpu", "mps")]
    return torch.cuda.is_available() or any(module and module.is_available() for module in others)


def import_comfyui(folder: Path) -> None:
    """Make ComfyUI's modules importable in this process; `prepare_imports` must have run."""
    # ComfyUI reads its command line when comfy.cli_args is first imported, and only if told to.
    sys.argv = ["main.py"] if accelerator_present() else ["main.py", "--cpu"]
    sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401  as main.py does first: later comfy/utils.py would take the name


def _define_schemas(name: str) -> None:
    """Import torchvision after declaring the operators that it expects its library to have registered."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    importlib.import_module(name)


def _hide_libraries(name: str) -> None:
    """Import torchaudio while its folder of libraries looks empty, so that it does not try to load them."""
    ordinary = Path.glob

    def without_libraries(self, pattern, *arguments, **options):
        hidden = self.parts[-2:] == (name, "lib")
        return iter(()) if hidden else ordinary(self, pattern, *arguments, **options)

    Path.glob = without_libraries
    try:
        importlib.import_module(name)
    finally:
        Path.glob = ordinary


def _built_for_gpu() -> bool:
    """Whether torch is a GPU build, read from its files: ComfyUI must set environment variables before torch loads."""
    torch = importlib.util.find_spec("torch")
    path = Path(torch.origin).with_name("version.py")
    loader = importlib.machinery.SourceFileLoader("torch_version", str(path))
    version = importlib.util.module_from_spec(importlib.util.spec_from_loader("torch_version", loader))
    loader.exec_module(version)
    return any(getattr(version, name, None) for name in ("cuda", "hip", "xpu"))


def _look() -> dict:
    """Whether there is a GPU, and which imports were repaired; with a GPU build of torch found out in a subprocess."""
    if not _built_for_gpu():
        return {"repaired": prepare_imports(), "accelerator": accelerator_present()}
    command = [sys.executable, str(Path(__file__).absolute()), "--look"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    if found["repaired"]:
        prepare_imports()
    return found


def _end_with_parent() -> None:
    """End this process when its parent, which holds the other end of our standard input, dies in whatever way."""
    # Not sys.stdin: a thread that waits inside it makes Python abort at an ordinary exit.
    while os.read(0, 1024):
        pass
    os._exit(1)


def main(arguments: list[str]) -> None:
    """Run ComfyUI's main.py in this process, as if it had been called directly."""
    if arguments == ["--look"]:
        print(json.dumps({"repaired": prepare_imports(), "accelerator": accelerator_present()}))
        return
    folder = Path(arguments[0])
    # This script's folder holds a server.py that would hide ComfyUI's.
    here = str(Path(__file__).absolute().parent)
    sys.path[:] = [str(folder)] + [entry for entry in sys.path if entry != here]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = [] if _look()["accelerator"] else ["--cpu"]
    sys.argv = [str(folder / "main.py"), *arguments[1:], *device]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
