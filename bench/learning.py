"""Learning curves: what a LoRA of twelve stills shows, and what it costs of what the model knew, for ways to train.

    python bench/learning.py [--comfyui PATH] [--world FOLDER] [--only TEXT ...] [--seeds N] [--n N] [--plots FOLDER]

Each variant is trained through the library of the nodes, and each of its checkpoints is examined on videos that an
independent classifier reads. A run that was killed goes on when the same is started again: the records lie in --work.
bench/README.md says what each figure means.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import host

VIDEOS, SEEDS, TOY_VISITS, TOY_STEPS = 36, 3, (4, 8), 2
BASE = "base"


def main() -> None:
    """Train, examine, record, print and write."""
    parser = host.parser("learning", __doc__.splitlines()[0])
    parser.add_argument("--world", type=Path, metavar="FOLDER", default=host.ROOT / "tests" / "world",
                        help="with dit.safetensors (default: tests/world)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", default=host.ROOT / ".learning",
                        help="records, runs and cache (default: .learning)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="variants whose names begin so, and groups")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"runs of each (default: {SEEDS})")
    parser.add_argument("--n", type=int, default=VIDEOS, metavar="N", help=f"videos of each kind (default: {VIDEOS})")
    parser.add_argument("--visits", type=int, nargs="+", metavar="N", help="examine after so many pictures seen "
                        "(default: as the variant says)")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the curves there")
    parser.add_argument("--list", action="store_true", help="only say what the variants are called")
    options = parser.parse_args()
    if options.toy:
        options.n, options.seeds, options.only, options.visits = 2, 1, ["default"], TOY_VISITS
    machine = host.start(options)
    from wantune.bench import learning_report
    from wantune.bench.variants import variants

    chosen = [variant for variant in variants() if is_chosen(variant, options.only)]
    if options.list:
        print(*(f"{variant.name}  ({variant.group or 'all plots'})" for variant in chosen), sep="\n")
        return
    if options.visits:
        chosen = [replace(variant, visits=tuple(options.visits)) for variant in chosen]
    records = Records(options)
    for record in taught(options, machine, chosen, records):
        print(told(record), flush=True)
    figures = learning_report.figures(records.found, list(variants()))
    path = host.write(options, "learning", machine, {**records.of, **figures})
    path.with_suffix(".md").write_text(learning_report.table(figures), encoding="utf-8")
    print(learning_report.table(figures))
    if options.plots:
        learning_report.draw(figures, options.plots)


def is_chosen(variant, only: list[str] | None) -> bool:
    """Whether a variant is asked for on the command line."""
    return not only or any(variant.name.startswith(text) or variant.group == text for text in only)


class Records:
    """What was examined of one world by one examination: a line of JSON each, kept in the working folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        digest = hashlib.sha256((options.world / "dit.safetensors").read_bytes()).hexdigest()[:12]
        self.of = {"world": digest, "videos": options.n, "sampling steps": sampling_steps(options)}
        self.work = options.work.resolve() / (f"toy-{digest}" if options.toy else digest)
        self.work.mkdir(parents=True, exist_ok=True)
        self._path = self.work / "records.jsonl"
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        whole = [line for line in lines if line.endswith("}")]  # a killed process may have left half of one
        if whole != lines:
            self._path.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
        every = map(json.loads, whole)
        self.found = [record for record in every if record["of"] == self.of]

    def add(self, record: dict) -> dict:
        record = {"of": self.of, **record}
        self.found.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def steps(self, name: str, seed: int) -> set[int]:
        """After which a variant was examined."""
        return {each["step"] for each in self.found if (each["variant"], each["seed"]) == (name, seed)}


def sampling_steps(options: argparse.Namespace) -> int:
    """Of the examination."""
    from wantune.tests.world import concept

    return TOY_STEPS if options.toy else concept.SAMPLING_STEPS


def taught(options: argparse.Namespace, machine: dict, chosen: list, records: Records) -> Iterator[dict]:
    """Train and examine what is not recorded yet; yields each new record."""
    from wantune.bench.lessons import Lessons
    from wantune.bench.variants import Unavailable
    from wantune.tests.world import concept
    from wantune.tests.world.meters import Meters

    is_base_missing = not records.steps(BASE, 0)
    # the first seed of all before the second of any
    missing = [(variant, seed, wanted) for seed in range(options.seeds) for variant in chosen
               if (wanted := set(variant.steps) - records.steps(variant.name, seed))]
    if not (missing or is_base_missing):
        return
    files = concept.Files.of(options.world.resolve())
    lessons = Lessons(files, records.work)
    examiner = concept.Examiner(files, options.n, sampling_steps(options))
    meters = Meters(examiner, concept.write_held_out(records.work / "held_out"), lessons.base)

    def examined(weights, **told) -> dict:
        marks = {group: examiner(weights, group) for group in examiner.groups}
        learned, drift = meters(weights)
        return records.add({
            **told, "wantune": machine["wantune"], "learned": learned, "drift": drift,
            **{group: {"frames": each.frames, "color": sum(each.colors), "direction": sum(each.directions)}
               for group, each in marks.items()}})

    if is_base_missing:
        yield examined(lessons.base, variant=BASE, seed=0, step=0, visits=0, seconds=0.0)
    for variant, seed, wanted in missing:
        try:
            for each in lessons.taught(variant, seed, wanted):
                yield examined(lessons.tuned(each.lora), variant=variant.name, seed=seed, step=each.step,
                               visits=each.step * variant.batch_size, seconds=each.seconds)
        except Unavailable as error:
            print(f"{variant.name}: left out, {error}", flush=True)


def told(record: dict) -> str:
    """A record in a line."""
    frames = {group: sum(record[group]["frames"]) / len(record[group]["frames"]) for group in ("concept", "others")}
    return (f"{record['variant']}, seed {record['seed']}, step {record['step']}, {record['seconds']:.0f} s: nines "
            f"{frames['concept']:.3f}, kept {frames['others']:.3f}, learned {record['learned']:.3f}, drift "
            f"{record['drift']:.3f}")


if __name__ == "__main__":
    main()
