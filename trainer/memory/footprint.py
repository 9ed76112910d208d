"""How many bytes training takes on the device, by part: arithmetic on sizes, without a tensor.

The constants count values per token, as multiples of the model's width and of its feed-forward's. bench/calibration.py
and tests/fake_cuda measure them in bf16, for which autograd keeps a little more than for fp32.
"""

from __future__ import annotations

from ..adapter.adapter_size import AdapterSize
from ..settings.training import OptimizerConfig
from .plan import BRANCH, FEW_ROWS, Plan
from .sizes import ModelSize, Parts, Work

BRANCHES = ("self_attn", "cross_attn", "ffn")
"""Of a block, in their order."""

KEPT = {"self_attn": (7.0, 0.0), "cross_attn": (4.0, 0.0), "ffn": (1.0, 2.0)}
"""What the backward of a branch needs beside its input and what an adapter adds, (x dim, x ffn_dim): the norm's result
and, in attention, q and k before their norm, q, k and v, and the result; hidden values before and after GELU."""

BACKWARD = {"self_attn": (6.1, 0.0), "cross_attn": (4.0, 0.0), "ffn": (2.1, 0.0)}
"""What is used for a while in the backward of a branch: rotation is computed in fp32, hidden values are overwritten."""

FORWARD = {"self_attn": (11.8, 0.0), "cross_attn": (8.0, 0.0), "ffn": (3.2, 2.0)}
"""What is used for a while in its forward where nothing is kept: evaluations and previews."""

TEXT = 3.0
"""x dim, for each row of the text, in each block: keys before and after their norm, and values."""

NORMS = 40
"""Bytes per token of the means and deviations that the norms of a block keep."""

STATISTICS = 8
"""Bytes per token and head that both attentions of a block keep beside their result: logarithms of sums."""

TEXT_OUTSIDE = 34_000
"""Bytes for each row of the text that are not in blocks: the text itself in fp32 and as it is embedded."""

PRIOR_OUTSIDE = 16_400
"""Bytes for each row of a prior caption, which lies there beside the caption."""

PRIOR_LATENT = 4
"""Bytes for each value of a token's latent: what the model without the adapter predicts for it, in fp32."""

IMAGE_OUTSIDE = 3_000
"""Bytes for each token of an image that are not in blocks, besides 2 x dim: CLIP vision's hidden states."""

FIXED = 3 << 20
"""Bytes that do not depend on sizes."""

SHARE_OF_BRANCH = 0.6
"""Of what an adapter keeps in a block, at most so much is in one of its branches."""

OUTSIDE = 2070
"""Bytes per token of what is not in blocks and does not depend on the latent: rotations, and modulation in the head."""

LATENT = 16
"""Bytes for each value of a token's latent: it, noise, mixture and prediction in fp32."""

IMAGE_KEPT, IMAGE_BACKWARD = 2.0, 1.0
"""x dim, in cross-attention, where it attends to an image besides: the result of that and the sum of both, which lies
in the memory of neither; and a further gradient of the queries."""

BESIDE_READ = 384
"""Values of a token that blocks beside read: VACE's 96 channels of four latent pixels."""

RECORDED = 4.3
"""x dim, kept in each block, where autograd records what the adapter does: LoKr, LoHa, and dropout."""

RECORDED_BACKWARD = (5.2, 1.5)
"""(x dim, x ffn_dim), used for a while there; nothing is written over."""

MARGIN = 1.04
"""For what is rounded up in memory."""

RAM_BUFFERS = 3
"""Inputs of blocks that are on the device while the others wait in RAM: the one in use, the one on its way, and one
that is given back only when its copy is done."""

OPTIMIZER_STATE = {"adamw": (8.0, 0.0), "adamw8bit": (2.1, 0.0), "prodigy": (16.0, 0.0), "adafactor": (0.0, 4.0),
                   "lion": (4.0, 0.0), "came": (4.0, 8.0), "schedule_free": (8.0, 0.0)}
"""Bytes that last, for each trained number and for each row and column of its matrices; a test makes them."""

OPTIMIZER_WORK = {"adamw": 0.0, "adamw8bit": 0.0, "prodigy": 4.1, "adafactor": 4.3, "lion": 4.0, "came": 8.1,
                  "schedule_free": 8.0}
"""Bytes for each trained number that an update uses for a while, where it takes all tensors at once, as on CUDA."""


def parts(model: ModelSize, adapter: AdapterSize, optimizer: OptimizerConfig, work: Work, plan: Plan) -> Parts:
    """What a run takes by a plan with all weights on the device."""
    a_step = step(model, adapter, optimizer, work, plan)
    of_adapter, of_optimizer = lasting(adapter, optimizer)
    return Parts(
        weights=model.weights,
        adapter=of_adapter,
        optimizer=of_optimizer,
        activations=a_step,
        previews=max(0, _shown(model, adapter, optimizer, work) - a_step, work.decoding - model.weights - a_step),
        copies=model.copies,
        ram=_waiting(model, work, plan) if plan.inputs_in_ram else 0)


def lasting(adapter: AdapterSize, optimizer: OptimizerConfig) -> tuple[int, int]:
    """Bytes that stay as long as a run: of the adapter with its moving average, and of what the optimizer remembers."""
    state, of_sides = OPTIMIZER_STATE[optimizer.name]
    return (adapter.numbers * (8 if optimizer.ema_decay else 4),
            int(state * adapter.numbers + of_sides * adapter.sides))


def stream_buffers(model: ModelSize, streams: int, offloaded: int, fetches_blocks: bool) -> int:
    """Bytes of the buffers through which weights reach the device: each stream has one for the largest that it fetches.

    Where that is all of a block which is not on the device: the largest matrices come there first, so that all blocks
    lack about as much, some of them one matrix more.
    """
    largest = model.stored * model.dim * model.ffn_dim / model.block_values
    of_block = min(model.stored, offloaded / model.blocks + largest)
    return int(streams * (of_block if fetches_blocks else largest))


def step(model: ModelSize, adapter: AdapterSize, optimizer: OptimizerConfig, work: Work, plan: Plan) -> int:
    """The most bytes that a step holds at a time, beside what lasts.

    Backward frees a block's activations and makes its gradients, so the most is there at the end of forward, when
    the first block is computed again, when the last one is, or when the optimizer has all gradients.
    """
    collected = 4 * adapter.numbers
    gradients = collected if adapter.has_fp32_gradients else model.value * adapter.numbers
    # those of the batches before, or of what is learned before what is preserved
    before = collected if optimizer.accumulation > 1 or work.prior_rows else 0
    num_whole = min(plan.whole_blocks, model.blocks)
    num_again = model.blocks - num_whole
    block = _Block(model, adapter, work, plan)
    on_device = min(num_again, RAM_BUFFERS) if plan.inputs_in_ram else num_again
    held = on_device * block.inputs + num_again * block.results
    at_end = num_whole * block.whole + held + (block.working if num_whole else block.again)
    if model.blocks_beside:
        before_last = (model.blocks_beside - 1) * (model.blocks // model.blocks_beside) + 1
        whole_then = max(0, before_last - num_again)
        held_then = held * min(before_last, num_again) / num_again if num_again else 0
        at_end = max(at_end, whole_then * block.whole + held_then + _beside(model, work))
    later = held + block.again + gradients * num_whole / model.blocks if num_again else 0
    last = (block.again if num_again else block.whole + block.working) + gradients
    recorded = RECORDED_BACKWARD if adapter.is_recorded else (0.0, 0.0)
    per_token = _outside(model) + (recorded[0] * model.dim + recorded[1] * model.ffn_dim) * model.value
    image = model.image_rows * (IMAGE_OUTSIDE + 2 * model.dim * model.value)
    prior = 0
    if work.prior_rows:
        prior = work.prior_rows * PRIOR_OUTSIDE + work.tokens * PRIOR_LATENT * model.latent_values
    outside = FIXED + work.batch_size * (work.tokens * per_token + work.text_rows * TEXT_OUTSIDE + image + prior) + (
        adapter.working_bytes + (block.casts if num_again else 0))
    # gradients are put into fp32 by halves of what is left, so that both forms of one block are too much at most
    update = collected + max(OPTIMIZER_WORK[optimizer.name] * adapter.numbers, gradients / model.blocks) + FIXED
    return int(MARGIN * max(max(at_end, later, last) + outside + before, update))


class _Block:
    """Bytes of a block in a step.

    inputs, results: what waits for its second computation: its inputs, and results that are kept.
    whole: all that it keeps. working: what is used for a while in its backward.
    again: what is there at most when it, or a branch of it, was computed again and has its backward.
    casts: its weights beside that, where a block is computed again: copied ones without the last, whose output nobody
        reads.
    """

    def __init__(self, model: ModelSize, adapter: AdapterSize, work: Work, plan: Plan) -> None:
        tokens = work.tokens * work.batch_size
        an_input = tokens * model.dim * model.value
        kept, working = (_by_branch(model, tokens, shares) for shares in (KEPT, BACKWARD))
        rows = work.batch_size * (work.text_rows + model.image_rows)
        of_text, of_rows = (each * TEXT * model.dim * model.value for each in (work.batch_size * work.text_rows, rows))
        kept["cross_attn"] += of_rows
        small = tokens * (NORMS + STATISTICS * model.heads)
        if model.image_rows:
            kept["cross_attn"] += IMAGE_KEPT * an_input
            working["cross_attn"] += IMAGE_BACKWARD * an_input
            small += tokens * STATISTICS / 2 * model.heads
        copies = adapter.numbers / model.blocks * (model.value if model.value < 4 else 0)
        recorded = RECORDED * model.dim if adapter.is_recorded else 0
        adapted = (tokens * (adapter.values_per_token + recorded) + adapter.built_per_block) * model.value + copies
        inner = sum(kept.values()) + adapted + small
        self.whole, self.working = len(BRANCHES) * an_input + inner, working["ffn"] + an_input
        last = model.dim * model.ffn_dim * model.value
        if model.are_cast:  # of one Linear at a time
            self.working += last
        self.casts = model.streamed if model.are_cast else model.streamed - last if model.are_lent else 0
        self.is_by_branch = plan.segments == BRANCH and plan.whole_blocks < model.blocks
        if self.is_by_branch:
            self.inputs = len(BRANCHES) * an_input
            casts = dict.fromkeys(BRANCHES, 0.0)
            if self.casts:  # a branch's weights, for its backward
                square = 4 * model.dim**2
                casts = {"self_attn": square, "cross_attn": square, "ffn": 2 * model.dim * model.ffn_dim}
                self.casts = 0
            self.again = max(kept[branch] + working[branch] + casts[branch] * model.value for branch in BRANCHES) + (
                SHARE_OF_BRANCH * adapted + small)
        else:
            self.inputs = an_input
            self.again = self.whole - an_input + working["ffn"]
        self.results = tokens * (model.dim * model.value + STATISTICS * model.heads / 2) if plan.keeps_attention else 0
        if not (plan.inputs_in_ram or adapter.is_recorded):
            self.results += of_text
            self.results += tokens * adapter.values_per_token * model.value if tokens <= FEW_ROWS else 0


def _outside(model: ModelSize) -> float:
    """Bytes per token of what is not in blocks."""
    return OUTSIDE + LATENT * model.latent_values + 2 * model.value * model.values_beside


def _beside(model: ModelSize, work: Work) -> float:
    """Bytes of the blocks beside in a forward pass, whose tokens, results and first inputs are freed with it.

    One runs after every so many blocks, from the first on.
    """
    tokens = work.tokens * work.batch_size
    cast = model.streamed if model.are_cast else 0
    return tokens * _beside_per_token(model) + max(_by_branch(model, tokens, FORWARD).values()) + cast


def _beside_per_token(model: ModelSize) -> int:
    return (3 * model.dim + BESIDE_READ) * model.value if model.blocks_beside else 0


def _by_branch(model: ModelSize, tokens: int, shares: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {branch: tokens * (dims * model.dim + ffns * model.ffn_dim) * model.value
            for branch, (dims, ffns) in shares.items()}


def _waiting(model: ModelSize, work: Work, plan: Plan) -> int:
    num_inputs = (model.blocks - plan.whole_blocks) * (len(BRANCHES) if plan.segments == BRANCH else 1)
    return num_inputs * work.tokens * work.batch_size * model.dim * model.value


def _shown(model: ModelSize, adapter: AdapterSize, optimizer: OptimizerConfig, work: Work) -> int:
    """Of an evaluation or a preview, for which the averages of the trained numbers may stand in their place."""
    if not work.shown_tokens:
        return 0
    has_average = optimizer.use_average and (optimizer.ema_decay or optimizer.name == "schedule_free")
    working = max(_by_branch(model, work.shown_tokens, FORWARD).values())
    forward = working + work.shown_tokens * (_outside(model) + _beside_per_token(model))
    average = 4 * adapter.numbers if has_average else 0
    return int(MARGIN * forward) + (model.streamed if model.are_cast else 0) + average
