"""What every bench script begins and ends with: the command line, ComfyUI in this process, figures as JSON."""

import argparse
import hashlib
import json
import os
import platform
import sys
import types
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The command line options that all benches have."""
    options = argparse.ArgumentParser(prog=f"bench/{name}.py", description=description)
    options.add_argument("--comfyui", metavar="PATH", help="the ComfyUI to use (default: run.py's)")
    options.add_argument("--out", type=Path, metavar="FILE", help="default: in bench/results")
    options.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default: 1)")
    options.add_argument("--toy", action="store_true", help="tiny sizes, to see in seconds that it runs")
    return options


def start(options: argparse.Namespace, before_comfyui: Callable[[], None] = lambda: None) -> dict:
    """Make ComfyUI and this checkout importable; what needs either is imported after this.

    Args:
        before_comfyui: called when torch can be imported and ComfyUI has not been yet.

    Returns:
        What the figures are measured on: versions, device and threads.
    """
    measured = code_digest()
    # Read when torch is loaded: threads that wait by spinning slow a busy machine down more than tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Our nodes/ would hide ComfyUI's nodes.py, and these scripts would hide modules of the same names.
    ours = (ROOT, ROOT / "bench")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in ours]
    pack = types.ModuleType("wantune")
    pack.__path__ = [str(ROOT)]
    sys.modules["wantune"] = pack

    from wantune.demo import comfyui, launch

    found = comfyui.find(ROOT, options.comfyui, os.environ) or comfyui.unpacked(ROOT)
    if not found.path.is_dir():
        sys.exit("There is no ComfyUI here; run `python3 run.py test` first, or name one with --comfyui.")
    launch.prepare_imports()
    before_comfyui()
    launch.import_comfyui(found.path)
    import comfy.utils
    import torch

    torch.set_num_threads(options.threads)
    comfy.utils.set_progress_bar_enabled(False)
    machine = {
        "wantune": measured,
        "comfyui": found.version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {_processor()}",
        "threads": options.threads,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    return machine


def write(options: argparse.Namespace, name: str, machine: dict, figures: dict) -> Path:
    """Write the figures as JSON, to --out or `result_path`, which is returned."""
    if code_digest() != machine["wantune"]:
        sys.exit("nodes/ or trainer/ changed while this ran, so the figures are of no version; run it again.")
    path = options.out or result_path(name, machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n", encoding="utf-8")
    return path


def result_path(name: str, machine: dict) -> Path:
    """Where a bench writes its figures unless it is told otherwise."""
    kind = "cpu" if machine["device"].startswith("CPU") else "gpu"
    return RESULTS / f"{name}-{machine['comfyui']}-{kind}.json"


def code_digest() -> str:
    """A hash of the source of nodes/ and trainer/, which tells what version was measured."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("nodes", "trainer") for path in (ROOT / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
