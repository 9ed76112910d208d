"""What a training step costs, against a bare forward and backward and against other trainers.

    python bench/step.py [--comfyui PATH] [--out FILE] [--musubi PATH] [--turns FACTOR] [--only TEXT]

Others are ComfyUI's own TrainLoraNode, diffusers with PEFT, and musubi-tuner where a checkout of it is named.

What is compared runs in turns in one process (A, B, C, A, B, C, ...), and the median of the ratios of the
turns counts, so that a busy machine slows all alike. bench/README.md says what each figure means.
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import host

MEDIUM = {"dim": 512, "ffn_dim": 2048}
SIZES = {
    "dim 512, 6 layers, 256 tokens": ({**MEDIUM, "layers": 6}, (1, 32, 32), 12),
    "dim 512, 3 layers, 1024 tokens": ({**MEDIUM, "layers": 3}, (1, 64, 64), 6),
    "small world, 48 tokens": (None, (3, 8, 8), 60),
}
TOY = {"toy": ({"dim": 128, "ffn_dim": 256, "layers": 1}, (1, 8, 8), 2)}
"""Transformer, latent (frames, rows, columns), turns."""
CORE_ROUNDS, CORE_STEPS = 3, 6
TOY_ROUNDS, TOY_STEPS = 1, 3


def main() -> None:
    """Measure, print and write."""
    parser = host.parser("step", __doc__.splitlines()[0])
    parser.add_argument("--musubi", type=Path, metavar="PATH", help="a checkout of musubi-tuner to compare with")
    parser.add_argument("--turns", type=float, default=1.0, metavar="FACTOR", help="so many times the usual turns")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases that have this in their name")
    options = parser.parse_args()
    machine = host.start(options)
    from wantune.bench import plans
    from wantune.bench.cases import Case

    rounds, steps = (TOY_ROUNDS, TOY_STEPS) if options.toy else (CORE_ROUNDS, CORE_STEPS)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (dit, size_FHW, turns) in (TOY if options.toy else SIZES).items():
            case = Case(Path(folder) / name, dit, size_FHW)
            turns = max(2, round(turns * options.turns))
            for kind, plan in {"off": plans.OFF, "on": plans.ON, "by branches": plans.BRANCHES}.items():
                title = f"{name}, gradient checkpointing {kind}"
                if options.only not in title:
                    continue
                figures[title] = against_bare(case, plan, turns)
                figures[title] |= against_rivals(case, plan, turns, options.musubi)
                if kind != "by branches":  # which is no setting of the node
                    figures[title] |= against_core(case, plan, max(1, round(rounds * options.turns)), steps)
                lines = [f"  {key}: {value}" for key, value in figures[title].items()]
                print(title, *lines, sep="\n", flush=True)
                host.write(options, "step", machine, {"step": figures})


def against_bare(case, plan, turns: int) -> dict[str, float]:
    """Compares whole steps of our node with the steps of two bare loops, in turns."""
    from wantune.bench import plans
    from wantune.bench.cases import RANK, running
    from wantune.bench.peers import Bare
    from wantune.tests.support import tools

    sample, checkpointing = case.dataset.samples[0], plan != plans.OFF
    with ExitStack() as stack:
        run = stack.enter_context(running(case, tools.load_dit(case.path), plan, turns + 1))
        bare = Bare(case.path, sample, RANK, checkpointing, folded=True)
        padded = Bare(case.path, sample, RANK, checkpointing, folded=False)
        ours, same, usual = in_turns([run.step, bare.step, padded.step], turns)
    return {
        "ours / bare, same text rows": ratio(ours, same),
        "ours / bare, text padded to 512": ratio(ours, usual),
        "our step, ms": milliseconds(ours),
        "bare step, same text rows, ms": milliseconds(same),
        "bare step, text padded to 512, ms": milliseconds(usual),
    }


def against_rivals(case, plan, turns: int, musubi: Path | None) -> dict[str, float]:
    """Compares whole steps of ours with whole steps of trainers outside ComfyUI, in turns, all in fp32.

    `products` is the same ratio in operations of matrix products, counted: no ratio of times is lower where everything
    beside them costs nothing.
    """
    from safetensors.torch import load_file

    from wantune.bench import flops, plans, rivals
    from wantune.bench.cases import RANK, running
    from wantune.bench.peers import Given
    from wantune.tests.support import tools

    state, checkpointing = load_file(case.path), plan != plans.OFF
    with ExitStack() as stack:
        run = stack.enter_context(running(case, tools.load_dit(case.path), plan, turns + 2))
        dtype, device = run.denoiser.compute_dtype, run.denoiser.device
        state = {name: tensor.to(device, dtype) for name, tensor in state.items()}
        given = Given(case.dataset.samples[:1], device, dtype, folded=False)
        others = {"diffusers": rivals.Diffusers(state, given, RANK, checkpointing, dtype)}
        if musubi:
            others["musubi-tuner"] = rivals.Musubi(musubi, state, given, RANK, checkpointing, dtype)
        ours, *times = in_turns([run.step, *(other.step for other in others.values())], turns)
        products = flops.counted(run.step)
        figures = {}
        for (name, other), theirs in zip(others.items(), times, strict=True):
            figures[f"ours / {name}"] = ratio(ours, theirs)
            figures[f"ours / {name}, products"] = round(products / flops.counted(other.step), 3)
            figures[f"{name}, ms a step"] = milliseconds(theirs)
    return figures


def in_turns(steps: list[Callable[[], None]], turns: int) -> list[list[float]]:
    """Seconds of each step function, called once in each turn; a first turn, which is not counted, warms up."""
    from wantune.bench.card import seconds_of

    seconds = [[seconds_of(step) for step in steps] for _ in range(turns + 1)]
    return [list(times) for times in zip(*seconds[1:], strict=True)]


def against_core(case, plan, rounds: int, steps: int) -> dict[str, float]:
    """Compares the steps of whole runs of our node and of ComfyUI's TrainLoraNode, in turns."""
    from wantune.bench import flops, plans
    from wantune.bench.card import seconds_a_step, seconds_of
    from wantune.bench.cases import RANK, running
    from wantune.bench.peers import train_with_core
    from wantune.tests.support import tools

    ours, core, floor, checkpointing = [], [], [], plan != plans.OFF
    with running(case, tools.load_dit(case.path), plan, 2) as run:
        products = flops.counted(run.step)
        alone = flops.alone(run.step)
    for _ in range(rounds):
        # a model each: some versions of core's node leave theirs changed
        ours.append(seconds_a_step(lambda: case.train(tools.load_dit(case.path), checkpointing, steps)))
        core.append(seconds_a_step(
            lambda: train_with_core(tools.load_dit(case.path), case.dataset, steps, RANK, checkpointing)
        ))
        floor.append(statistics.median(seconds_of(alone) for _ in range(steps)))
    core_products = flops.counted(
        lambda: train_with_core(tools.load_dit(case.path), case.dataset, 1, RANK, checkpointing))
    return {
        "ours / core": ratio(ours, core),
        "ours / core, products": round(products / core_products, 3),
        "our products alone / core": ratio(floor, core),
        "our node, ms a step": milliseconds(ours),
        "core's node, ms a step": milliseconds(core),
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over all turns of the ratio ours / theirs."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def milliseconds(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return round(1000 * statistics.median(seconds), 1)


if __name__ == "__main__":
    main()
