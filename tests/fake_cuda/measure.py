"""Measure training steps of the project on a card that is not there, and print JSON.

    COMFYUI_PATH=... python -m tests.fake_cuda.measure --family "Wan2.1 T2V" --size tiny|1.3b|5b|14b --latent 1,64,64
        --plan auto|block|branch+attention|ram|whole=5|whole --memory classic|partly:0.4|dynamic:0.4
        --dtype bf16|fp16|fp8 --rank 32 --batch 1 --kind lora --by-op

It opens a run (`Run`) over a cache of one batch and trains two steps; the second is measured. What is put in the
place of the project's own code: the hash of the weights, which have no values, and the writing of checkpoints.
With `--serve` it reads cases as JSON from stdin, a line each, and answers each with a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import traceback
import types
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MEASURED = 2
"""The step that is measured: the first with the optimizer's moments and a step before it."""

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    family: str = "Wan2.1 T2V"
    """Of wan_models.WANS; all conditions that it takes are there, and a clip's first frame is given to 5B."""
    size: str = "1.3b"
    """Of card.SIZES."""
    latent: str = "1,64,64"
    """Frames, height and width of the latent; pixels / 8 (16 for 5B), and (frames - 1) / 4 + 1."""
    plan: str = "block"
    """What is kept of the forward pass. auto: what the project chooses for the card. Else parts joined by +: block or
    branch, attention, ram, whole=<blocks> or whole, as in trainer/settings/memory.py."""
    memory: str = "classic"
    """How ComfyUI holds the weights: classic, partly:<share> (lowvram, so much of them on the card), or
    dynamic:<share> (dynamic VRAM, so much of them resident)."""
    dtype: str = "bf16"
    """Of the weights, of card.DTYPES."""
    rank: int = 32
    batch: int = 1
    kind: str = "lora"
    dropout: float = 0.0
    preserve: float = 0.0
    """The weight of what holds the model to what it was on prior captions."""
    optimizer: str = "adamw"
    text: int = 40
    """Tokens of the caption."""
    blocks: int = 0
    """In place of the size's number of blocks; 0 for that."""
    vram: float = 80.0
    """GiB of the card."""
    aside: bool = False
    """Whether ComfyUI computes with another clone of the model, with a LoRA on it, before the measured step."""
    compile: bool = False
    """Whether the small functions of blocks count as what torch's compiler makes of them (compiled.py)."""
    fault: str = ""
    """The name of a fault of faults.py that is planted."""


def prepare() -> None:
    """Make torch, ComfyUI and this checkout ready, once in the process."""
    warnings.filterwarnings("ignore")
    # nodes/ of this folder would hide ComfyUI's nodes.py
    sys.path[:] = [entry for entry in sys.path
                   if Path(entry or ".").resolve() not in (ROOT, ROOT / "tests", Path(__file__).parent)]
    if "wantune" not in sys.modules:
        pack = types.ModuleType("wantune")
        pack.__path__ = [str(ROOT)]
        sys.modules["wantune"] = pack
    from wantune.demo import launch
    from wantune.demo.comfyui import find, unpacked

    launch.prepare_imports()
    import torch

    torch.set_num_threads(1)
    from wantune.tests.fake_cuda import device, kernels

    device.install()
    kernels.install()
    found = find(ROOT, None, os.environ) or unpacked(ROOT)
    launch.import_comfyui(found.path)
    import comfy.sd  # noqa: F401

    from wantune.nodes import train  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith(("wantune.nodes.", "wantune.trainer.")):
            module.type = device.plain_type


def measure(case: Case) -> dict:
    """Train, and say what the last step took; bytes as GiB."""
    from wantune.tests.fake_cuda import faults
    from wantune.tests.fake_cuda.aimdo import Aimdo
    from wantune.tests.fake_cuda.card import Card, load
    from wantune.tests.fake_cuda.counting import Counting
    from wantune.tests.fake_cuda.driving import Driven

    how, _, share = case.memory.partition(":")
    counting = Counting()
    card = Card(counting, case.vram)
    aimdo = Aimdo(counting, float(share)) if how == "dynamic" else None
    with card.in_place(aimdo), tempfile.TemporaryDirectory() as folder, faults.planted(case.fault):
        model = load(counting, case.family, case.size, case.dtype, case.blocks)
        driven = Driven(case, card, model, float(share) if share else None, aimdo)
        with counting:
            driven.train(Path(folder), MEASURED)
        return {**asdict(case), **driven.result()}


def _case(values: dict) -> Case:
    unknown = values.keys() - {field.name for field in fields(Case)}
    if unknown:
        raise ValueError(f"A case has no {', '.join(sorted(unknown))}; it has "
                         f"{', '.join(field.name for field in fields(Case))}.")
    return Case(**values)


def serve() -> None:
    """Answer the cases on stdin; an error is an answer too, its kind and its last lines."""
    for line in sys.stdin:
        try:
            answer = measure(_case(json.loads(line)))
        except Exception as error:
            answer = {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


def main(arguments: list[str]) -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Case):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--by-op", action="store_true", help="also the calls and kernels of each operator")
    parser.add_argument("--serve", action="store_true", help="read cases as JSON from stdin, a line each")
    given = vars(parser.parse_args(arguments))
    by_op = given.pop("by_op")
    is_serving = given.pop("serve")
    prepare()
    if is_serving:
        serve()
        return
    result = measure(_case(given))
    tables = result.pop("by_op")
    print(json.dumps(result, indent=1))
    if by_op:
        print(f"{'operator':60}{'forward':>9}{'backward':>9}{'kernels':>9}")
        for name, (forward, backward, kernels) in tables.items():
            print(f"{name:60}{forward:9}{backward:9}{kernels:9}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch's own end would meet what device.py put in half gone
