"""What it would gain to pack samples of several shapes into one step, instead of batches of one bucket.

    python bench/packing.py [--comfyui PATH] [--out FILE]

The node's own batches over datasets of pictures of many shapes: how many are full, and how many steps an epoch would
need if each were. And what a step costs the host by the number of its samples, counted on the card that is not there of
tests/fake_cuda. Prints a table and writes JSON; bench/README.md says what the figures mean.
"""

import json
import math
import os
import random
import statistics
import subprocess
import sys

import host

RESOLUTION = 512
MULTIPLE = 16
"""Of the sides of Wan2.1's buckets, in pixels."""
COUNTS, TOY_COUNTS = (12, 30, 100, 200), (12,)
REPEATS = (1, 10)
BATCHES = (1, 2, 4, 8)
DRAWS, TOY_DRAWS = 200, 5
"""Datasets of each kind, of whose figures the mean is taken."""
CAMERAS = ((3, 4), (4, 3), (2, 3), (3, 2), (9, 16), (16, 9), (1, 1))
"""Shapes that cameras and screens make."""
WIDEST = 2.0
"""Collected pictures are cut by hand to any shape up to this, logarithmically uniform."""
HOST = {"size": "1.3b", "latent": "1,64,64", "plan": "whole"}
TOY_HOST = {"size": "tiny", "latent": "1,16,16", "plan": "whole"}


def main() -> None:
    """Count, print and write."""
    options = host.parser("packing", __doc__.splitlines()[0]).parse_args()
    machine = host.start(options)
    figures = {"batches": batches(*(TOY_COUNTS, TOY_DRAWS) if options.toy else (COUNTS, DRAWS)),
               "host": host_cost(TOY_HOST if options.toy else HOST, BATCHES[:2] if options.toy else BATCHES)}
    columns = list(figures["batches"][0])
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in figures["batches"]:
        print(f"| {' | '.join(str(value) for value in row.values())} |")
    print(json.dumps(figures["host"]), flush=True)
    host.write(options, "packing", machine, figures)


def batches(counts: tuple[int, ...], draws: int) -> list[dict]:
    """A row for each kind of dataset and batch size: means over so many datasets."""
    return [
        {"shapes": shapes, "pictures": count, "num_repeats": repeats, "batch_size": batch_size,
         **_means([_of_epoch(_buckets(shapes, count, number), repeats, batch_size) for number in range(draws)])}
        for shapes in ("of cameras", "of any kind") for count in counts for repeats in REPEATS
        for batch_size in BATCHES if batch_size > 1]


def _means(rows: list[dict]) -> dict:
    return {name: round(statistics.mean(row[name] for row in rows), 3) for name in rows[0]}


def _buckets(shapes: str, count: int, seed: int) -> list:
    """The buckets of the pictures of one dataset."""
    from wantune.trainer.data.buckets import choose

    drawn, found = random.Random(f"{shapes} {seed}"), []
    for _ in range(count):
        if shapes == "of cameras":
            width, height = drawn.choice(CAMERAS)
        else:
            width, height = math.exp(drawn.uniform(-math.log(WIDEST), math.log(WIDEST))), 1.0
        found.append(choose(round(4000 * width), round(4000 * height), RESOLUTION, MULTIPLE))
    return found


def _of_epoch(buckets: list, repeats: int, batch_size: int) -> dict:
    """How an epoch is divided into batches by the node's own sampler.

    steps saved: of an epoch's, the share that there would be fewer if every batch but one were full. samples a step:
    as they are.
    """
    from wantune.trainer.encoded.batches import BucketSampler
    from wantune.trainer.encoded.cache import CachedSample

    samples = [CachedSample(name=str(number), bucket=bucket, repeats=repeats, latent_paths=(None,), captions=({},))
               for number, bucket in enumerate(buckets)]
    sampler = BucketSampler(samples, batch_size, 0)
    sizes = [len(sampler.next()) for _ in range(sampler.steps_per_epoch)]
    return {
        "buckets": len(set(buckets)),
        "full batches": sum(size == batch_size for size in sizes) / len(sizes),
        "samples a step": statistics.mean(sizes),
        "steps saved by packing": 1 - math.ceil(sum(sizes) / batch_size) / len(sizes),
    }


def host_cost(case: dict, sizes: tuple[int, ...]) -> dict:
    """Kernels, and calls of torch's dispatcher, of a whole step, by the number of its samples.

    Counted in a process of its own for each; {} with the reason where tests/fake_cuda does not run (another torch).
    """
    found = {}
    for batch_size in sizes:
        arguments = [f"--{name}={value}" for name, value in {**case, "batch": batch_size}.items()]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fake_cuda.measure", *arguments], cwd=host.ROOT, env=os.environ.copy(),
            capture_output=True, text=True)
        if done.returncode:
            return {"not counted": done.stderr.strip().splitlines()[-1]}
        counted = json.loads(done.stdout)
        found[batch_size] = {name: counted[name] for name in ("kernels", "dispatches")}
    return found


if __name__ == "__main__":
    main()
