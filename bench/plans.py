"""The memory plans that are measured, what backward computes again under each, and what each should need."""

from __future__ import annotations

from ..trainer.adapter.adapter_size import adapter_size
from ..trainer.encoded.cache import CachedDataset
from ..trainer.memory.footprint import parts
from ..trainer.memory.plan import BRANCH, EVERYTHING, FEW_ROWS, Plan
from ..trainer.memory.sizes import Work
from ..trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig
from ..trainer.training.memory import MemoryPlan
from .flops import Again, Shape

TEXT_ROWS = 64
"""Of a caption of usual length."""

OFF, ON, BRANCHES = Plan(whole_blocks=EVERYTHING), Plan(), Plan(segments=BRANCH)
"""No gradient checkpointing, checkpointing of each block as others do it, and of each branch of a block."""


def plans(blocks: int) -> dict[str, Plan]:
    """By their names in tables, the fastest first.

    Args:
        blocks: of the model.
    """
    return {
        "nothing again": OFF,
        "half of the branches again": Plan(whole_blocks=blocks // 2, segments=BRANCH, keeps_attention=True),
        "each branch again, attention kept": Plan(segments=BRANCH, keeps_attention=True),
        "each block again, attention kept": Plan(keeps_attention=True),
        "each branch again": BRANCHES,
        "each block again": ON,
        "each block again, inputs in RAM": Plan(inputs_in_ram=True),
    }


def again(plan: Plan, shape: Shape) -> Again:
    """What backward computes a second time under a plan."""
    without = {"self_attn.o", "cross_attn.o", "ffn.2"} if plan.segments == BRANCH else {"ffn.2"}
    if plan.keeps_attention:
        without |= {"self_attn"}
    if not plan.inputs_in_ram:
        without |= {"text", "A"} if shape.batch_size * shape.tokens <= FEW_ROWS else {"text"}
    return Again(blocks=max(0, shape.blocks - plan.whole_blocks), without=frozenset(without))


def automatic(denoiser, dataset: CachedDataset, config: TrainConfig) -> Plan:
    """What the node chooses by what is free now; UserError where nothing fits."""
    return MemoryPlan(denoiser, dataset, config).plan


def planned(denoiser, lora: LoraConfig, num_tokens: int, batch_size: int, plan: Plan) -> int:
    """Bytes that our estimate says a plan needs beside the weights."""
    linears = {name: (linear.out_features, linear.in_features) for name, linear in denoiser.linears().items()}
    work = Work(side=0, frames=1, stride=4, tokens=num_tokens, batch_size=batch_size, text_rows=TEXT_ROWS)
    found = parts(denoiser.size, adapter_size(lora, linears), OptimizerConfig(), work, plan)
    return found.lasting + found.passing
