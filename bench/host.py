"""What both benches share: ComfyUI in this process, models and data of any size, results as JSON."""

import argparse
import json
import os
import platform
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
WORLD = ROOT / "tests" / "world" / "dit.safetensors"
TEXT_TOKENS = 40
"""A caption of usual length."""


def start(name: str, description: str) -> argparse.Namespace:
    """Read the command line and import ComfyUI; whatever needs torch or ComfyUI is imported after this."""
    # Read when torch is loaded: threads that wait by spinning slow a busy machine down more than tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser(name, description).parse_args()
    _make_importable()
    from wantune.tests.host import comfyui, launch

    found = comfyui.find(ROOT, options.comfyui, os.environ) or comfyui.unpacked(ROOT)
    if not found.path.is_dir():
        sys.exit("There is no ComfyUI here; run `python3 run.py test` first, or give one with --comfyui PATH.")
    launch.prepare_imports()
    launch.import_comfyui(found.path)
    import comfy.utils
    import torch

    torch.set_num_threads(options.threads)
    comfy.utils.set_progress_bar_enabled(False)
    options.out = options.out or RESULTS / f"{name}-{'toy-' if options.toy else ''}{found.version}.json"
    options.machine = {
        "comfyui": found.version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": _device_name(),
        "threads": options.threads,
    }
    print(", ".join(f"{key} {value}" for key, value in options.machine.items()), flush=True)
    return options


def write_result(options: argparse.Namespace, figures: dict) -> None:
    """The figures and the machine they were taken on, as JSON."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": options.machine, **figures}, indent=2) + "\n", encoding="utf-8")


def random_dataset(folder: Path, size_FHW: tuple[int, int, int], items: int, text_tokens: int = TEXT_TOKENS):
    """A cached dataset of random latents of so many latent frames, rows and columns, and of random texts."""
    import torch
    from wantune.trainer import cache
    from wantune.trainer.buckets import Bucket

    frames, rows, columns = size_FHW
    generator = torch.Generator().manual_seed(0)
    clips = []
    for index in range(items):
        clip = cache.CachedClip(
            name=f"{index}.png",
            bucket=Bucket(4 * (frames - 1) + 1, 8 * rows, 8 * columns),
            repeats=1,
            latent_path=folder / f"latent_{index}.safetensors",
            text_path=folder / f"text_{index}.safetensors",
        )
        cache.write_tensor(clip.latent_path, torch.randn(16, *size_FHW, generator=generator))
        cache.write_tensor(clip.text_path, torch.randn(text_tokens, 4096, generator=generator))
        clips.append(clip)
    return cache.CachedDataset(clips=tuple(clips), digest="random", trigger_word="", captions=("",) * items)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"bench/{name}.py", description=description)
    parser.add_argument("--comfyui", metavar="PATH", help="the ComfyUI to use (default: as run.py chooses)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go (default: bench/results)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default: 1)")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: shows in seconds that the bench runs")
    return parser


def _make_importable() -> None:
    # Our nodes/ would hide ComfyUI's nodes.py, and our scripts whatever has their names.
    ours = (ROOT, ROOT / "bench")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in ours]
    pack = types.ModuleType("wantune")
    pack.__path__ = [str(ROOT)]
    sys.modules["wantune"] = pack


def _device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
