"""The adapter's parameters of one block in one piece of memory, and their gradients in another.

A block has twenty small matrices. Lying side by side they are cast to the compute dtype by one kernel, and so are their
gradients back to fp32; and matrices that follow each other can be multiplied as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
        self._own = Values(self, self._flat)

    @property
    def trigger(self) -> nn.Parameter:
        """One of them: as an input it makes autograd record a node."""
        return next(iter(self._parameters.values()))

    def values(self, dtype: torch.dtype) -> Values:
        """The parameters' present values in dtype: views of one cast copy, in fp32 of the parameters themselves."""
        if dtype == torch.float32:
            return self._own
        return self._cast or Values(self, self._flat.to(dtype))

    @contextmanager
    def cast(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside the context `values` are made once."""
        before, self._cast = self._cast, self.values(dtype)
        try:
            yield
        finally:
            self._cast = before

    def add_gradient(self, names: tuple[str, ...], left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
        """Add scale left @ right to the gradient of a matrix, or of several that lie one below the other."""
        if self._gradient is None:
            self._gradient = torch.empty(len(self._flat), dtype=left.dtype, device=left.device)
        view = self.rows(self._gradient, names)
        # with beta 0 what is in the memory does not count
        torch.addmm(view, left, right, beta=float(names[0] in self._written), alpha=scale, out=view)
        self._written.update(names)

    def collect_gradients(self) -> None:
        """After backward: make or raise the parameters' `grad`, in fp32, by what was added since."""
        if self._gradient is None:
            return
        gradient, self._gradient = self._gradient, None
        written, self._written = self._written, set()
        missing = self._parameters.keys() - written
        if missing:
            raise RuntimeError(f"no gradient was added for {sorted(missing)[0]} and {len(missing) - 1} more")
        if self.trigger.grad is None:
            gradient = gradient.to(torch.float32)
            for name, parameter in self._parameters.items():
                parameter.grad = self._view(gradient, name)
        else:
            for name, parameter in self._parameters.items():
                parameter.grad += self._view(gradient, name)

    def discard_gradients(self) -> None:
        """Forget what was added since the last `collect_gradients`: backward did not come to its end."""
        self._gradient, self._written = None, set()

    def _view(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        start, shape = self._places[name]
        return flat[start : start + shape.numel()].view(shape)

    def rows(self, flat: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
        """One matrix, or several of the same width that follow each other without a gap, as one."""
        start, (_, width) = self._places[names[0]]
        height = sum(self._places[name][1][0] for name in names)
        return flat.as_strided((height, width), (width, 1), start)

    def are_adjacent(self, names: tuple[str, ...]) -> bool:
        """Whether these matrices lie one below the other without a gap."""
        length = sum(self._places[name][1].numel() for name in names)
        start, (end, last) = self._places[names[0]][0], self._places[names[-1]]
        return end + last.numel() - start == length


class Values:
    """The values of a block's parameters in one dtype; a snapshot unless that is fp32. Each view is made once."""

    def __init__(self, block: BlockParameters, flat: torch.Tensor) -> None:
        self._block = block
        self._flat = flat
        self._rows: dict[tuple[str, ...], torch.Tensor] = {}
        self._columns: dict[tuple[str, ...], torch.Tensor] = {}

    def rows(self, names: tuple[str, ...]) -> torch.Tensor:
        """One matrix, or several that are adjacent as one."""
        if names not in self._rows:
            self._rows[names] = self._block.rows(self._flat, names)
        return self._rows[names]

    def columns(self, names: tuple[str, ...]) -> torch.Tensor:
        """The transpose of `rows`."""
        if names not in self._columns:
            self._columns[names] = self.rows(names).t()
        return self._columns[names]
