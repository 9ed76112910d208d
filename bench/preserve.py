"""What preserving the model costs: seconds of a step with and without it, in turns, by how often it is done.

    python bench/preserve.py [--comfyui PATH] [--out FILE] [--turns FACTOR]

A turn is so many steps that each of the ways preserves equally often: 4 steps, of which all, two or one preserve. The
median of the ratios of the turns counts, so that a busy machine slows all alike. `products` is the same ratio in
operations of matrix products, counted.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import host

SIZES = {
    "dim 512, 6 layers, 256 tokens": ({"dim": 512, "ffn_dim": 2048, "layers": 6}, (1, 32, 32), 5),
    "dim 512, 3 layers, 1024 tokens": ({"dim": 512, "ffn_dim": 2048, "layers": 3}, (1, 64, 64), 3),
}
TOY = {"toy": ({"dim": 128, "ffn_dim": 256, "layers": 1}, (1, 8, 8), 2)}
"""Transformer, latent (frames, rows, columns), turns."""

EVERY = (1, 2, 4)
STEPS = 4
"""Of a turn: the least in which each way preserves a whole number of times."""


def main() -> None:
    """Measure, print and write."""
    parser = host.parser("preserve", __doc__.splitlines()[0])
    parser.add_argument("--turns", type=float, default=1.0, metavar="FACTOR", help="so many times the usual turns")
    options = parser.parse_args()
    machine = host.start(options)
    from wantune.bench import plans

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (dit, size_FHW, turns) in (TOY if options.toy else SIZES).items():
            for kind, plan in {"off": plans.OFF, "on": plans.ON}.items():
                title = f"{name}, gradient checkpointing {kind}"
                turns = max(2, round(turns * options.turns))
                figures[title] = measured(Path(folder) / title, dit, size_FHW, plan, turns)
                print(title, *(f"  {key}: {value}" for key, value in figures[title].items()), sep="\n", flush=True)
                host.write(options, "preserve", machine, {"preserve": figures})


def measured(folder: Path, dit: dict, size_FHW: tuple[int, int, int], plan, turns: int) -> dict[str, float]:
    """Ratios to steps that do not preserve, and the milliseconds of these."""
    from wantune.bench import flops
    from wantune.bench.cases import Case, running
    from wantune.bench.step import in_turns, milliseconds, ratio
    from wantune.tests.support import tools
    from wantune.trainer.settings.training import ObjectiveConfig

    ways = [ObjectiveConfig(), *(ObjectiveConfig(preserve=1.0, preserve_every=every) for every in EVERY)]
    with ExitStack() as stack:
        turn_of = []
        for number, objective in enumerate(ways):
            case = Case(folder / str(number), dit, size_FHW)
            run = stack.enter_context(
                running(case, tools.load_dit(case.path), plan, STEPS * (turns + 2), objective=objective))
            turn_of.append(lambda step=run.step: [step() for _ in range(STEPS)])
        plain, *others = in_turns(turn_of, turns)
        alone, *products = map(flops.counted, turn_of)
    found = {"without, ms a step": round(milliseconds(plain) / STEPS, 1)}
    for every, times, number in zip(EVERY, others, products, strict=True):
        found[f"every {every}, with / without"] = ratio(times, plain)
        found[f"every {every}, with / without, products"] = round(number / alone, 3)
    return found


if __name__ == "__main__":
    main()
