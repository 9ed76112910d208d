"""How many bytes training takes on the device, by part: arithmetic on sizes, without a tensor.

The constants count values per token, as multiples of the model's width and of its feed-forward's. bench/calibration.py
and tests/fake_cuda measure them in bf16, for which autograd keeps a little more than for fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..adapter.adapter_size import AdapterSize
from ..settings.training import OptimizerConfig
from .plan import BRANCH, Plan

BRANCHES = ("self_attn", "cross_attn", "ffn")

KEPT = {"self_attn": (9.0, 0.0), "cross_attn": (7.0, 0.0), "ffn": (3.0, 2.2)}
"""By branch of a block: what its backward needs, (x dim, x ffn_dim), beside the block's input and the adapter's. Norm
and modulation, q, k and v before and after norm and RoPE, attention's result, GELU's input and result."""

BACKWARD = (2.0, 2.0)
"""What is used for a while in a block's backward: the gradient of the stream, and that of the feed-forward."""

FORWARD = (3.5, 3.0)
"""What is used for a while in a block's forward where nothing is kept: evaluations and previews."""

TEXT = 4.0
"""x dim, for each row of the text, in each block: keys and values before and after norm."""

OUTSIDE = 2048
"""Bytes per token of what is not in blocks: latent, noise, target and prediction in fp32, embedding and head."""

RAM_BUFFERS = 2
"""Inputs of blocks that are on the device while the others wait in RAM: the one in use, and the one on its way."""

STATISTICS = 4
"""Bytes per token and head that attention keeps beside its result: the logarithm of the sum of exponentials."""

OPTIMIZER_STATE = {"adamw": (8.0, 0.0), "adamw8bit": (2.1, 0.0), "prodigy": (16.0, 0.0), "adafactor": (0.0, 4.0),
                   "lion": (4.0, 0.0), "came": (4.0, 8.0), "schedule_free": (8.0, 0.0)}
"""Bytes that last, for each trained number and for each row and column of its matrices; a test makes them."""

OPTIMIZER_WORK = {"adamw": 0.0, "adamw8bit": 0.0, "prodigy": 4.1, "adafactor": 4.3, "lion": 4.0, "came": 8.1,
                  "schedule_free": 8.0}
"""Bytes for each trained number that an update uses for a while, where it takes all tensors at once, as on CUDA."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """What of a model counts: blocks of attention over the video, attention over the text, and a feed-forward."""

    dim: int
    ffn_dim: int
    heads: int
    blocks: int
    weights: int
    """Bytes of all weights, as they are loaded."""
    block_values: int
    """Numbers in the Linears of one block."""
    value: int
    """Bytes of a value of the activations."""
    are_cast: bool
    """Whether the weights have another form than the activations, so that each is cast when it is used."""

    @property
    def streamed(self) -> int:
        """Bytes of one block's weights while they are cast, or fetched from RAM."""
        return self.block_values * self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a step computes on, in the largest bucket, and what is computed beside steps."""

    side: int
    """Pixels: the square root of width x height."""
    frames: int
    stride: int
    """Frames in a latent frame, of which the first has one to itself."""
    tokens: int
    """Of one sample."""
    batch_size: int
    text_rows: int
    shown_tokens: int = 0
    """The most tokens of a sample that is measured on, or of a preview; 0 = there are none."""
    decoding: int = 0
    """Bytes that the VAE takes for a preview, its weights included; the model may be moved away meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Bytes on the device at most, by part; they add up to `total`."""

    weights: int
    adapter: int
    """Its numbers in fp32, and their moving average."""
    optimizer: int
    """What it remembers of each number."""
    activations: int
    """Of a step, with the gradients."""
    previews: int
    """What evaluations and previews need more than a step does."""
    offloaded: int = 0
    """Bytes of the weights that stay in RAM."""
    ram: int = 0
    """Bytes of pinned RAM in which inputs of blocks wait."""

    @property
    def lasting(self) -> int:
        """Bytes that stay while the run goes on, beside the weights."""
        return self.adapter + self.optimizer

    @property
    def passing(self) -> int:
        """Bytes that are used for a while in each step, evaluation or preview."""
        return self.activations + self.previews

    @property
    def total(self) -> int:
        """All that is on the device."""
        return self.weights + self.lasting + self.passing


def parts(model: ModelSize, adapter: AdapterSize, optimizer: OptimizerConfig, work: Work, plan: Plan) -> Parts:
    """What a run takes by a plan with all weights on the device."""
    state, of_sides = OPTIMIZER_STATE[optimizer.name]
    a_step = step(model, adapter, optimizer, work, plan)
    return Parts(
        weights=model.weights,
        adapter=adapter.numbers * (8 if optimizer.ema_decay else 4),
        optimizer=int(state * adapter.numbers + of_sides * adapter.sides),
        activations=a_step,
        previews=max(0, _shown(model, adapter, optimizer, work) - a_step, work.decoding - model.weights - a_step),
        ram=_waiting(model, work, plan) if plan.inputs_in_ram else 0)


def step(model: ModelSize, adapter: AdapterSize, optimizer: OptimizerConfig, work: Work, plan: Plan) -> int:
    """The most bytes that a step holds at a time, beside what lasts.

    Backward frees a block's activations and makes its gradients, so the most is there at the end of forward, when
    the first block is computed again, when the last one is, or when the optimizer has all gradients.
    """
    tokens = work.tokens * work.batch_size
    gradients, collected = model.value * adapter.numbers, 4 * adapter.numbers
    before = collected if optimizer.accumulation > 1 else 0  # those of the batches before
    num_whole = min(plan.whole_blocks, model.blocks)
    num_again = model.blocks - num_whole
    whole, again, kept = _of_a_block(model, adapter, work, plan)
    on_device = min(num_again, RAM_BUFFERS) if plan.inputs_in_ram else num_again
    held = on_device * kept[0] + num_again * kept[1]
    at_end = num_whole * whole + held + (0 if num_whole else again)
    later = held + again + gradients * num_whole / model.blocks if num_again else 0
    last = (again if num_again else whole) + gradients
    dims, ffns = BACKWARD
    working = tokens * ((dims * model.dim + ffns * model.ffn_dim) * model.value + OUTSIDE) + adapter.working_bytes
    streamed = model.streamed if model.are_cast else 0
    update = collected + OPTIMIZER_WORK[optimizer.name] * adapter.numbers
    return int(max(max(at_end, later, last) + working + streamed + before, update))


def _of_a_block(
    model: ModelSize, adapter: AdapterSize, work: Work, plan: Plan
) -> tuple[float, float, tuple[float, float]]:
    """Bytes of all that a block keeps; of what is there when it, or a branch of it, was computed again; and of what
    waits for that: its inputs, and results of attention."""
    tokens = work.tokens * work.batch_size
    an_input = tokens * model.dim * model.value
    branches = {name: tokens * (dims * model.dim + ffns * model.ffn_dim) * model.value
                for name, (dims, ffns) in KEPT.items()}
    branches["cross_attn"] += work.batch_size * work.text_rows * TEXT * model.dim * model.value
    copies = adapter.numbers / model.blocks * (model.value if model.value < 4 else 0)
    adapted = tokens * adapter.values_per_token * model.value + adapter.built_per_block * model.value + copies
    inner = sum(branches.values()) + adapted + 2 * tokens * STATISTICS * model.heads
    is_by_branch = plan.segments == BRANCH
    again = max(branches.values()) + adapted if is_by_branch else inner
    results = tokens * (model.dim * model.value + STATISTICS * model.heads) if plan.keeps_attention else 0
    return an_input + inner, again, ((len(BRANCHES) if is_by_branch else 1) * an_input, results)


def _waiting(model: ModelSize, work: Work, plan: Plan) -> int:
    num_inputs = (model.blocks - plan.whole_blocks) * (len(BRANCHES) if plan.segments == BRANCH else 1)
    return num_inputs * work.tokens * work.batch_size * model.dim * model.value


def _shown(model: ModelSize, adapter: AdapterSize, optimizer: OptimizerConfig, work: Work) -> int:
    """Of an evaluation or a preview, for which the averages of the trained numbers may stand in their place."""
    if not work.shown_tokens:
        return 0
    dims, ffns = FORWARD
    values = dims * model.dim + ffns * model.ffn_dim
    has_average = optimizer.use_average and (optimizer.ema_decay or optimizer.name == "schedule_free")
    forward = work.shown_tokens * (values * model.value + OUTSIDE) + (model.streamed if model.are_cast else 0)
    return int(forward) + (4 * adapter.numbers if has_average else 0)
