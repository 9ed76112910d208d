"""Where the memory of training goes, and whether a second copy of the model hides in it.

    python bench/memory.py [--comfyui PATH] [--out FILE]

Each training runs in a process of its own. bench/README.md says what each figure means.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import host

MODELS = {
    # 220 MB of fp32, used where it lies; and 110 MB of fp8, whose cast to fp32 would be 440 MB
    "fp32": ({"dim": 768, "ffn_dim": 3072, "layers": 5}, None, (1, 32, 32)),
    "fp8": ({"dim": 1024, "ffn_dim": 4096, "layers": 6}, "float8_e4m3fn", (1, 32, 32)),
}
TOY_MODELS = {"fp32": ({"dim": 128, "ffn_dim": 256, "layers": 1}, None, (1, 8, 8))}
"""Transformer, the weight_dtype it is loaded in, latent (frames, rows, columns)."""
TRAININGS = ("ours", "ours, gradient checkpointing", "core", "core, gradient checkpointing")
STEPS = 3
MIB = 2**20


def main() -> None:
    """Measure, print and write."""
    parser = host.parser("memory", __doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "TRAINING"), help="this one, in this process")
    options = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("bench/memory.py reads the memory of its process from /proc; run it on Linux.")
    models = TOY_MODELS if options.toy else MODELS
    if options.one:
        host.start(options)
        model, training = options.one
        options.out.write_text(json.dumps(measure_one(*models[model], training)), encoding="utf-8")
        return
    machine = host.start(options)
    from wantune.bench import calibration

    figures = {"training": measure_all(options, models)}
    figures["estimate"] = calibration.measure(toy=options.toy)
    host.write(options, "memory", machine, figures)


def measure_all(options, models: dict) -> dict:
    """The figures of each training of each model, each measured in a process of its own."""
    figures = {}
    for model in models:
        for training in TRAININGS:
            if training.startswith("core") and model != "fp32":
                continue  # core's node has no way to train on fp8 weights
            figures[f"{model}, {training}"] = found = _in_process(options, model, training)
            lines = [f"  {key}: {value}" for key, value in found.items()]
            print(f"{model}, {training}", *lines, sep="\n", flush=True)
    return figures


def _in_process(options, model: str, training: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "one.json"
        command = [sys.executable, __file__, "--out", out, "--one", model, training]
        command += ["--threads", str(options.threads)]
        command += ["--toy"] if options.toy else []
        command += ["--comfyui", options.comfyui] if options.comfyui else []
        # glibc would keep freed tensors of up to 32 MB, and they would count as used
        subprocess.run(command, check=True, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})
        return json.loads(out.read_text(encoding="utf-8"))


def measure_one(dit: dict, dtype: str | None, size_FHW: tuple[int, int, int], training: str) -> dict:
    """MiB that one training adds to the same process after the model was loaded and has sampled once."""
    import torch

    from wantune.bench import plans
    from wantune.bench.cases import Case
    from wantune.tests.support import tools

    checkpointing = "checkpointing" in training
    train = _train_core if training.startswith("core") else Case.train
    model_options = {"dtype": getattr(torch, dtype)} if dtype else {}
    with tempfile.TemporaryDirectory() as folder:
        toy = Case(Path(folder) / "toy", *TOY_MODELS["fp32"][::2])
        train(toy, tools.load_dit(toy.path), checkpointing, 2)  # loads libraries, starts threads
        case = Case(Path(folder) / "case", dit, size_FHW)
        before = in_use()
        model = tools.load_dit(case.path, **model_options)
        tools.sample(model, frames=1, size=8 * size_FHW[1])
        loaded = in_use()
        reset_peak()
        train(case, model, checkpointing, STEPS)
        extra = peak() - loaded
        found = {
            "model weights": model.model_size(),
            "loading it took": loaded - before,
            "extra over model": extra,
        }
        if train is Case.train:
            found |= _breakdown(case, model, plans.ON if checkpointing else plans.OFF, extra)
    figures = {f"{key}, MiB": round(value / MIB, 1) for key, value in found.items()}
    if "unexplained" in found:
        figures["second copy"] = "yes" if found["unexplained"] > 0.5 * found["model weights"] else "no"
    return figures


def _train_core(case, model, checkpointing: bool, steps: int) -> None:
    from wantune.bench.cases import RANK
    from wantune.bench.peers import train_with_core

    train_with_core(model, case.dataset, steps, RANK, checkpointing)


def _breakdown(case, model, plan, extra: int) -> dict[str, int]:
    """The extra memory in bytes, by its use, and the estimate for it."""
    from wantune.bench import plans
    from wantune.bench.calibration import Step, peak
    from wantune.bench.cases import running

    with running(case, model, plan, STEPS) as run:
        step = Step(run)
        checkpoint = peak(lambda: list(run.events))  # all steps are done; what is left is to save them
        estimate = plans.planned(run.denoiser, run.adapter.config, case.num_tokens, 1, plan)
    return {
        "of it adapter and AdamW": step.adapter,
        "of it kept after forward": step.kept,
        "of it used for a while, gradients among it": step.peak - step.kept,
        "of it copies for the checkpoint, while no step is computed": checkpoint,
        "unexplained": extra - step.adapter - max(step.peak, checkpoint),
        "our estimate": estimate,
    }


def in_use() -> int:
    """Bytes in use: allocated on the GPU where there is one, else resident in this process."""
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def peak() -> int:
    """The most bytes that were in use since `reset_peak`."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def reset_peak() -> None:
    """Forget the peak so far. (5 resets VmHWM, see proc_pid_clear_refs(5).)"""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kib) * 1024


if __name__ == "__main__":
    main()
