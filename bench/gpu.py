"""Full-size Wan2.1 trained on this card: time, share of its rate, memory against the plan, and rivals beside it.

    python bench/gpu.py [--comfyui PATH] [--out FILE] [--musubi PATH] [--models 1.3B 14B] [--weights bf16 fp8] ...

Random weights; every model and every imitated card in a process of its own. Writes JSON and a table after each case,
and leaves out what FILE has already. bench/README.md says what each figure means.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import data as data_bench
import filling
import host
import table

SIZES = {
    "512x512x1": (1, 64, 64), "480x832x1": (1, 60, 104), "512x512x33": (9, 64, 64), "480x832x33": (9, 60, 104),
    "512x512x81": (21, 64, 64),
}
"""Latent frames, rows and columns by pixels and frames."""
TOY = {"models": ["toy", "encoders"], "weights": ["fp8_scaled"], "sizes": ["64x64x1"], "cards": []}
TOY_SIZES = {"64x64x1": (1, 8, 8)}
STEPS, TOY_STEPS = 20, 2
SECONDS = 15.0
"""No further step of a contender is begun after so long."""
TURNS = 3
"""Of ours and its rivals."""
ENCODERS = "encoders"
"""In the place of a model's name: filling the cache."""
CHOSEN = "what the node chooses"
VARIANTS = {"not compiled": {"compiled": "off"}, "fp8 products": {"products": "fp8"},
            "int8 products": {"products": "int8"}}
"""Of the fastest plan, which is compiled where Triton works and multiplies exactly."""
PICTURES, CLIPS, CLIP_FRAMES, RESOLUTION = 16, 2, 33, 512
GIB = 2**30


def main() -> None:
    """Measure, print and write."""
    options = read_options()
    if options.one:
        one(options, *options.one)
        return
    card = [0.0, *options.cards]
    jobs = [(model, weights, str(gib)) for model in options.models if model != ENCODERS
            for weights in options.weights for gib in card]
    jobs += [(ENCODERS, "", "0.0")] if ENCODERS in options.models else []
    failed = []
    for job in jobs:
        print(*filter(None, job), flush=True)
        if subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", *job]).returncode:
            failed.append(" ".join(job))
    if failed:
        sys.exit(f"These ended with an error, which stands above; the rest is written: {', '.join(failed)}.")


def read_options():
    """The command line."""
    parser = host.parser("gpu", __doc__.splitlines()[0])
    parser.add_argument("--musubi", type=Path, metavar="PATH", help="a checkout of musubi-tuner to compare with")
    parser.add_argument("--models", nargs="+", default=["1.3B", "14B", ENCODERS], metavar="NAME",
                        help="1.3B, 14B, and encoders for filling the cache (default: all)")
    parser.add_argument("--weights", nargs="+", default=["bf16", "fp8_scaled"], metavar="DTYPE",
                        help="bf16, fp8 (fp8_e4m3fn), fp8_scaled, fp32 (default: bf16 fp8_scaled)")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="WxHxF", choices=[*SIZES, *TOY_SIZES])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], metavar="N")
    parser.add_argument("--cards", nargs="*", type=float, default=[8, 12, 16, 24], metavar="GIB",
                        help="smaller cards to imitate; of each the plan that the node chooses, batch 1")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"timed of each contender at most (default: {STEPS})")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"with the rivals; 0: none (default: {TURNS})")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "DTYPE", "GIB"), help="this one, in this process")
    options = parser.parse_args()
    if options.toy:
        vars(options).update(TOY, steps=TOY_STEPS, turns=min(options.turns, 1), batches=options.batches[:1])
    return options


def one(options, model_name: str, weights: str, gib: str) -> None:
    """Measure one model on one card, or filling the cache; writes after each case."""
    smaller = float(gib)
    machine = host.start(options, lambda: _imitate(smaller))
    from wantune.bench import full_size
    from wantune.bench.cases import Data

    results = table.Results(options, machine)
    if model_name == ENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            results.add("cache", "random VAE and text encoder", fill_cache(Path(folder), options))
        return
    model = full_size.load_dit(model_name, weights)
    spare = Spare(model_name, weights)
    for size in options.sizes:
        for batch_size in options.batches[:1] if smaller else options.batches:
            title = f"{model_name} {weights}, {size}, batch {batch_size}" + (f", {gib} GiB imitated" if smaller else "")
            if results.has("cases", title):
                continue
            with tempfile.TemporaryDirectory() as folder:
                data = Data(Path(folder), (TOY_SIZES | SIZES)[size], batch_size)
                case = Measured(options, weights, data, model, is_whole=not smaller)
                if not smaller and options.turns:
                    case.take_turns(spare)
            results.add("cases", title, case.figures)


def _imitate(gib: float) -> None:
    from wantune.bench import card

    if gib:
        card.imitate(gib)


class Spare:
    """A second MODEL of the same kind, made when it is first asked for: core's node leaves its own changed."""

    def __init__(self, name: str, weights: str) -> None:
        self._kind, self._model = (name, weights), None

    def model(self):
        """The MODEL."""
        from wantune.bench import full_size

        if self._model is None:
            self._model = full_size.load_dit(*self._kind)
        return self._model


class Measured:
    """One case: ours under each plan, or (not `is_whole`) under the one that the node chooses; `figures` holds what was
    found."""

    def __init__(self, options, weights: str, data, model, is_whole: bool) -> None:
        from wantune.bench import card, contenders, flops, plans
        from wantune.nodes.backend.denoiser import ComfyDenoiser
        from wantune.trainer.base.errors import UserError

        self._blocks = {}
        self._options, self._weights, self._data, self._model = options, weights, data, model
        denoiser = ComfyDenoiser(model)
        self._dtype = denoiser.compute_dtype
        self._extent = contenders.Extent(steps=options.steps, seconds=SECONDS)
        shape = contenders.shape_of(data, denoiser, model)
        rate = card.multiplication_rate(model.load_device, self._dtype)
        self.figures = {"tokens": data.num_tokens, "the card's rate, TFLOP/s": float(f"{rate / 1e12:.4g}"),
                        "needed, TFLOP a step": float(f"{flops.needed(shape) / 1e12:.4g}"), "plans": {}}
        try:
            chosen = plans.automatic(denoiser, data.dataset, data.config(True, 1))
        except UserError as error:
            self.figures["plans"][CHOSEN] = {"out of memory": str(error)}
            return
        self.figures["the node chooses"] = chosen.told(shape.blocks)
        self._plans = plans.plans(shape.blocks) if is_whole else {CHOSEN: chosen}
        self._shape, self._rate = shape, rate
        for name, plan in self._plans.items():
            self._measure(name, plan)
        if is_whole and self._blocks:
            best = self._best
            for name, variant in VARIANTS.items():
                self._measure(f"{best}, {name}", self._plans[best], **variant)

    @property
    def _best(self) -> str:
        """The fastest plan, by its name."""
        return min((name for name in self._blocks if name in self._plans), key=lambda name: self._blocks[name].seconds)

    def _measure(self, name: str, plan, **variant: str) -> None:
        from wantune.bench import contenders
        from wantune.trainer.base.errors import UserError

        try:
            block = self._blocks[name] = contenders.ours(self._data, self._model, plan, self._extent, **variant)
        except contenders.OutOfMemory as error:
            self.figures["plans"][name] = {"out of memory": str(error)}
            return
        except UserError as error:
            self.figures["plans"][name] = {"refused": str(error)}
            return
        shares = contenders.shares(self._shape, plan, block.seconds, self._rate)
        self.figures["plans"][name] = _told(block) | shares | {
            "plan, GiB": round(block.planned / GIB, 3), "plan / peak": round(block.planned / block.peak, 3),
            "start-up, s": round(block.start_up, 2)}

    def take_turns(self, spare: Spare) -> None:
        """Our fastest plan and each rival in turns; the median of the turns' ratios counts."""
        from wantune.bench import contenders

        if not self._blocks:
            return
        best = self._best
        figures = self.figures["rivals"] = {}
        ratios = {name: [] for name in self._rivals(spare)}
        for _ in range(self._options.turns):
            ours = contenders.ours(self._data, self._model, self._plans[best], self._extent)
            for name in [name for name in ratios if "out of memory" not in figures.get(name, ())]:
                try:
                    block = self._rivals(spare)[name]()
                except contenders.OutOfMemory as error:
                    figures[name] = {"out of memory": str(error)}
                    continue
                ratios[name].append(block.seconds / ours.seconds)
                figures[name] = _told(block) | {"ours is faster by": round(statistics.median(ratios[name]), 3)}

    def _rivals(self, spare: Spare) -> dict[str, Callable]:
        from wantune.bench import contenders, full_size

        data, model, dtype, extent = self._data, self._model, self._dtype, self._extent
        found = {name: partial(contenders.rival, make, data, model, dtype, extent)
                 for name, make in contenders.makers(self._options.musubi, self._weights, dtype).items()}
        if self._weights not in full_size.FP8:  # which core's node cannot train on
            for checkpointing in (False, True):
                name = f"core's node, gradient checkpointing {'on' if checkpointing else 'off'}"
                found[name] = lambda checkpointing=checkpointing: contenders.core(
                    data, spare.model(), dtype, checkpointing, extent)
        return found


def _told(block) -> dict[str, float]:
    return {"ms a step": round(1000 * block.seconds, 2)} | (
        {"peak, GiB": round(block.peak / GIB, 3)} if block.peak else {})


def fill_cache(folder: Path, options) -> dict:
    """Time of filling an empty cache through encoders of real size, and what it takes on the device."""
    from wantune.bench import card, full_size

    if options.toy:
        return data_bench.fill(folder, 4, 1, 1, 5, 1)
    encoders = full_size.load_vae(), full_size.load_clip()
    pictures = data_bench.make_pictures(folder / "data", PICTURES, ((RESOLUTION, RESOLUTION),))
    filling.add_clips(pictures, CLIPS)
    manifest = data_bench.scanned(pictures, RESOLUTION, CLIP_FRAMES)
    card.start_peak()
    figures = filling.filled(folder, manifest, 1, filling.named(*encoders))
    return figures | ({"peak, GiB": round(peak / GIB, 3)} if (peak := card.peak()) else {})


if __name__ == "__main__":
    main()
