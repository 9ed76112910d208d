"""How many samples a step takes where the user leaves it to the node: as many as keep the device busy and fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .choice import Needs, Space, choose, fitting

FILLED_CARD = 4096 * 1536
"""Tokens of a step, times the width of the model, that keep a card busy: with more, a step gets longer and a sample
hardly cheaper. These are 4,096 tokens of the 1.3B (width 1536) and 1,229 of the 14B (width 5120).

Two things count. Kernels multiply in tiles of some 128 x 128, of which a card computes one on each of its up to 130
multiprocessors at a time: the least matrices of the 1.3B make 96 tiles of 1,024 tokens, less than one round, and 384 of
4,096, three full ones. And the host makes some 9,000 calls a step, however many samples are in it: a tenth of a second,
in which a card that does 60 TFLOP/s computes 1,000 tokens of the 1.3B."""

FILLED_CPU = 256
"""Tokens of a step that keep a CPU busy. On one core a sample of 16 tokens took 24 ms in a batch of 8 and 56 alone, one
of 256 tokens the same in any batch (width 512 and 1536)."""

MOST = 16
"""Samples. More would make so few steps of a small dataset's epoch that the learning rate, which stays, fits no more.
"""


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Samples a step, and why not more."""

    number: int
    reason: str

    def told(self) -> str:
        """A sentence for the log and the page."""
        return f"batch_size 0: {self.number} a step, {self.reason}; learning_rate is not adapted to it."


def largest(needs: Needs, space: Space, visits: int, device: str) -> BatchSize:
    """The largest batch that is worth it, under the plan that a single sample gets.

    A larger batch that needed a slower plan, or more of the weights in RAM, would make each sample dearer.

    Args:
        needs: of the largest bucket; the size of its batch does not count.
        visits: the most in an epoch to samples of one bucket.
        device: its kind, such as "cuda" or "cpu".

    Raises:
        UserError: not even a single sample fits.
    """
    filled = FILLED_CPU if device == "cpu" else round(FILLED_CARD / needs.model.dim)
    # the first of equal ones is told
    limit, reason = min((
        (max(1, round(filled / needs.work.tokens)), f"as about {filled} tokens keep the device busy"),
        (visits, "as no shape comes more often in an epoch"),
        (MOST, "the most that is chosen by itself")), key=lambda limit: limit[0])
    alone = choose(_of(needs, 1), space)
    for number in range(limit, 1, -1):
        found = fitting(_of(needs, number), space)
        if found and (found.plan, found.parts.offloaded) == (alone.plan, alone.parts.offloaded):
            break
    else:
        number = 1
    return BatchSize(number, reason if number == limit else "as more would need a slower memory plan")


def _of(needs: Needs, batch_size: int) -> Needs:
    return replace(needs, work=replace(needs.work, batch_size=batch_size))
