"""The adapter's parameters of one block in one piece of memory, and their gradients in another.

A block has twenty small matrices. Lying side by side they are cast to the compute dtype by one kernel, an optimizer
that treats each number by itself takes them as one tensor, and those that follow each other can be multiplied as one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

ALIGNMENT = 32
"""Values; each matrix begins at a multiple of 128 bytes, as kernels that load several values at once need it."""


class BlockParameters:
    """The parameters become views of one flat fp32 tensor; they stay the same nn.Parameters.

    Args:
        parameters: by name, in the order in which they are to lie.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._places: dict[str, tuple[int, torch.Size]] = {}
        length = 0
        for name, parameter in self._parameters.items():
            self._places[name] = (length, parameter.shape)
            length += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self._flat = torch.zeros(length, dtype=torch.float32, device=self.trigger.device)
        self._cast: Values | None = None
        self._gradient: torch.Tensor | None = None
        self._written: set[str] = set()
        for name, parameter in self._parameters.items():
            view = self._view(self._flat, name)
            view.copy_(parameter.data)
            parameter.data = view
        self._own = Values(self._flat)
        self.piece = nn.Parameter(self._flat)
        """All of them as one parameter, in the same memory."""
        self._lengths = _lengths(self._places.values(), length)

    @property
    def trigger(self) -> nn.Parameter:
        """One of them: as an input it makes autograd record a node."""
        return next(iter(self._parameters.values()))

    def values(self, dtype: torch.dtype) -> Values:
        """The parameters' present values in dtype: views of one cast copy, in fp32 of the parameters themselves."""
        if dtype == torch.float32:
            return self._own
        return self._cast or Values(self._flat.to(dtype))

    @contextmanager
    def cast(self, dtype: torch.dtype, scratch: Scratch | None) -> Iterator[None]:
        """Inside the context `values` are made once.

        Args:
            scratch: where they are written, until those of another block are; None for memory of their own.
        """
        before = self._cast
        self._cast = self.values(dtype) if scratch is None or before is not None else scratch.filled(self._flat, dtype)
        try:
            yield
        finally:
            self._cast = before

    def place(self, names: tuple[str, ...]) -> Place:
        """Where a matrix lies, or several of the same width that follow each other without a gap, as one."""
        start, (_, width) = self._places[names[0]]
        return Place(start, sum(self._places[name][1][0] for name in names), width)

    def add_gradient(self, names: tuple[str, ...], left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
        """Add scale left @ right to the gradient of a matrix, or of several that lie one below the other.

        Args:
            left, right: with a first dimension of several, one product for each of as many parts of that.
        """
        if self._gradient is None:
            make = torch.zeros if any(self._lengths[1::2]) else torch.empty  # between the matrices nothing is written
            self._gradient = make(len(self._flat), dtype=left.dtype, device=left.device)
        place = self.place(names)
        before = float(names[0] in self._written)  # with beta 0 what is in the memory does not count
        if left.dim() == 2:
            place.rows(self._gradient).addmm_(left, right, beta=before, alpha=scale)
        else:
            place.batch(self._gradient, len(left)).baddbmm_(left, right, beta=before, alpha=scale)
        self._written.update(names)

    def collect_gradients(self, in_piece: bool) -> None:
        """After backward: make or raise the `grad`, in fp32, by what was added since; see `in_fp32`.

        Args:
            in_piece: that of `piece`, else those of the parameters.
        """
        if self._gradient is None:
            return
        gradient, self._gradient = self._gradient, None
        written, self._written = self._written, set()
        missing = self._parameters.keys() - written
        if missing:
            raise RuntimeError(f"no gradient was added for {sorted(missing)[0]} and {len(missing) - 1} more")
        if in_piece:
            _add(self.piece, gradient)
            return
        for name, parameter in self._parameters.items():
            _add(parameter, self._view(gradient, name))

    def discard_gradients(self) -> None:
        """Forget what was added since the last `collect_gradients`: backward did not come to its end."""
        self._gradient, self._written = None, set()

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """What of a flat tensor like `piece` belongs to which of them, as flat views; one call of the dispatcher."""
        parts = flat.split_with_sizes(self._lengths)
        return dict(zip(self._parameters, parts[::2], strict=True))

    def _view(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        return self.place((name,)).rows(flat)

    def are_adjacent(self, names: tuple[str, ...]) -> bool:
        """Whether these matrices lie one below the other without a gap."""
        length = sum(self._places[name][1].numel() for name in names)
        start, (end, last) = self._places[names[0]][0], self._places[names[-1]]
        return end + last.numel() - start == length


def in_fp32(blocks: Iterable[BlockParameters]) -> None:
    """Put what was added to the gradients of several blocks into fp32, before it is collected.

    Half of what is left at a time, by one kernel: both forms together then take no more than all take in fp32.
    """
    waiting = [block for block in blocks if block._gradient is not None and block._gradient.dtype != torch.float32]
    while waiting:
        half = waiting[:-(-len(waiting) // 2)]
        before = [block._gradient for block in half]
        after = [torch.empty_like(gradient, dtype=torch.float32) for gradient in before]
        torch._foreach_copy_(after, before)
        for block, gradient in zip(half, after, strict=True):
            block._gradient = gradient
        del before, after
        waiting = waiting[len(half):]


def _add(parameter: nn.Parameter, gradient: torch.Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient.to(torch.float32)  # as it is, after `in_fp32`
    else:
        parameter.grad += gradient


def _lengths(places: Collection[tuple[int, torch.Size]], end: int) -> list[int]:
    """Of each matrix and of the gap after it, in turn."""
    starts = [start for start, _ in places]
    lengths = []
    for (start, shape), following in zip(places, [*starts[1:], end], strict=True):
        lengths += [shape.numel(), following - start - shape.numel()]
    return lengths


class Place(NamedTuple):
    """Where the rows of a matrix lie in a flat tensor."""

    start: int
    height: int
    width: int

    def rows(self, flat: torch.Tensor) -> torch.Tensor:
        """The matrix (height, width)."""
        return flat.as_strided((self.height, self.width), (self.width, 1), self.start)

    def batch(self, flat: torch.Tensor, count: int) -> torch.Tensor:
        """It as a batch of matrices (count, height / count, width)."""
        height = self.height // count
        return flat.as_strided((count, height, self.width), (height * self.width, self.width, 1), self.start)


class Values:
    """The values of a block's parameters in one dtype; each view is made once."""

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat = flat
        self._rows: dict[Place, torch.Tensor] = {}
        self._columns: dict[Place, torch.Tensor] = {}
        self._batches: dict[tuple[Place, int], torch.Tensor] = {}

    def rows(self, place: Place) -> torch.Tensor:
        """The matrix at a place."""
        if place not in self._rows:
            self._rows[place] = place.rows(self.flat)
        return self._rows[place]

    def columns(self, place: Place) -> torch.Tensor:
        """Its transpose."""
        if place not in self._columns:
            self._columns[place] = self.rows(place).t()
        return self._columns[place]

    def batch(self, place: Place, count: int) -> torch.Tensor:
        """It as a batch of so many matrices."""
        if (place, count) not in self._batches:
            self._batches[place, count] = place.batch(self.flat, count)
        return self._batches[place, count]


class Scratch:
    """Memory for the values of one block at a time, whichever: blocks are alike, so the views of one are those of all.

    For blocks that are computed again in backward, which use their values twice, each time before those of another are
    written.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, torch.dtype], Values] = {}

    def filled(self, flat: torch.Tensor, dtype: torch.dtype) -> Values:
        """The values of a flat tensor in dtype."""
        key = len(flat), dtype
        if key not in self._values:
            self._values[key] = Values(torch.empty_like(flat, dtype=dtype))
        values = self._values[key]
        values.flat.copy_(flat)
        return values

    def clear(self) -> None:
        """Give the memory back, until values are asked for again."""
        self._values.clear()
