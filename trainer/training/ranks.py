"""The processes that train one run together, each on a device of its own; torch.distributed joins them.

A batch is one for all of them: there is one order of samples, noise and noise levels are drawn for the whole batch, and
each process computes its rows of it. The sum of their gradients is that of one process, so what is learned does not
depend on how many there are, but for rounding. The first one alone writes.

Every exchange begins with `agree`, over a group of its own on the CPU. So whoever leaves early says it with one
`agree`, wherever the others are, and who was killed is missed there by all; nobody waits for what never comes.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from ..base.errors import UserError
from ..base.out_of_memory import first_line, is_out_of_memory

PATIENCE = timedelta(hours=2)
"""For processes that are there and have not come to the exchange yet: the first one may be sampling previews."""

LAST_WORDS = timedelta(seconds=10)
"""In which the others hear why a process leaves; after that they miss it."""

PIECE = 32 << 20
"""Bytes; smaller tensors are summed together."""

GO, STOP, FAILED = range(3)

Value = TypeVar("Value")
Item = TypeVar("Item")


class InAll(UserError):
    """Raised in all processes, so that it is enough where the first one tells it."""


class Ended(UserError):
    """Another process has ended, and so does this one."""


class Ranks:
    """One process, to which everything falls. `Together` are several, which call the same methods in the same order."""

    rank, count = 0, 1
    is_broken = False
    """Whether a process is missing: what the device still waits for may never come."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes the log, checkpoints and whatever else is there once."""
        return self.rank == 0

    def rows(self, size: int) -> tuple[slice, bool]:
        """Which rows of a batch of this size the process computes, and whether they count.

        Where there are fewer rows than processes, one without takes the first row along and counts it as nothing, since
        a model that lies in parts on all devices is computed by all of them.
        """
        each, more = divmod(size, self.count)
        first = self.rank * each + min(self.rank, more)
        end = first + each + (self.rank < more)
        return (slice(first, end), True) if first < end else (slice(0, 1), False)

    def most_rows(self, size: int) -> int:
        """Rows of a batch of this size that one process computes at most."""
        return -(-size // self.count)

    def part(self, tensor: torch.Tensor, rows: slice) -> torch.Tensor:
        """Rows of a tensor that was made for the whole batch; the others are not kept in memory."""
        return tensor if self.count == 1 else tensor[rows].clone()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes."""
        return flag

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put in the place of each tensor the sum over all processes: the same bits in all of them."""

    def of_first(self, make: Callable[[], Value], told: Callable[[Value], Value] = lambda value: value) -> Value:
        """What `make` gives in the first process, where alone it is called; its UserError is raised in all.

        Args:
            told: what of it the others get.
        """
        return make()

    def measured(self, items: Sequence[Item], measure: Callable[[Item], torch.Tensor]) -> torch.Tensor:
        """(items, ...): what `measure` gives for each item, fp64 on the CPU; each is measured by one of the processes.
        """
        return torch.stack([measure(item) for item in items]).cpu().double()

    def check_same(self, facts: Mapping[str, str]) -> None:
        """UserError in all processes unless they all have the same facts, given by what they are called."""

    def owns(self, key: str) -> bool:
        """Whether what has this key, a hash of content, is made by this process; it is by exactly one."""
        return True

    def gathered(self, found: Mapping) -> dict:
        """What all processes have found, once all have come so far."""
        return dict(found)

    def leave(self, code: int = FAILED) -> None:
        """Tell the others, wherever they are, that this process goes: they stop after the same step or fail, too."""


ALONE = Ranks()


class Together(Ranks):
    """Several processes, whose group torch.distributed has made.

    Raises, in each exchange:
        Ended: a process has ended or left.
    """

    def __init__(self) -> None:
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        self._told = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self._has_left = False

    def agree(self, code: int = GO) -> int:
        """The highest code that a process gives; it comes back when all have given one."""
        codes = torch.tensor([code])
        with self._all_there():
            distributed.all_reduce(codes, distributed.ReduceOp.MAX, group=self._told)
        if codes.item() == FAILED:
            self._has_left = True
            raise Ended(f"Another of the {self.count} processes has ended with an error, and so does process "
                        f"{self.rank}: see what it says. What was learned is saved.")
        return codes.item()

    def any(self, flag: bool) -> bool:
        return self.agree(STOP if flag else GO) == STOP

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        self._begin()
        with self._all_there(), torch.no_grad():
            waiting = []
            for piece in _pieces(tensors):
                flat = piece[0] if len(piece) == 1 else torch.cat([tensor.flatten() for tensor in piece])
                waiting.append((piece, flat, distributed.all_reduce(flat, async_op=True)))
            for piece, flat, work in waiting:
                work.wait()
                if len(piece) > 1:
                    parts = flat.split([tensor.numel() for tensor in piece])
                    torch._foreach_copy_(piece, [part.view_as(own) for part, own in zip(parts, piece, strict=True)])

    def of_first(self, make: Callable[[], Value], told: Callable[[Value], Value] = lambda value: value) -> Value:
        value, heard = None, [None, ""]
        if self.is_first:
            try:
                value = make()
                heard = [told(value), ""]
            except UserError as error:
                heard = [None, str(error)]
        self._begin()
        with self._all_there():
            distributed.broadcast_object_list(heard, src=0, group=self._told)
        if heard[1]:
            raise InAll(heard[1])
        return value if self.is_first else heard[0]

    def measured(self, items: Sequence[Item], measure: Callable[[Item], torch.Tensor]) -> torch.Tensor:
        turns = self.most_rows(len(items))
        # those who are done measure again what comes first: all must compute equally often
        own = torch.stack([measure(items[(turn * self.count + self.rank) % len(items)]) for turn in range(turns)])
        whole = torch.zeros(turns * self.count, *own.shape[1:], dtype=torch.float64)
        whole[self.rank::self.count] = own.cpu().double()
        self._begin()
        with self._all_there():
            distributed.all_reduce(whole, group=self._told)
        return whole[:len(items)]

    def check_same(self, facts: Mapping[str, str]) -> None:
        here = f"process {self.rank} on {socket.gethostname()}"
        everyone = self._each({name: (value, here) for name, value in facts.items()})
        for name in facts:
            found, first = everyone[0][name]
            for other_found, other in (each[name] for each in everyone):
                if other_found != found:
                    raise InAll(f"The {self.count} processes must have the same {name}: {first} has {found}, {other} "
                                f"has {other_found}. Give all of them the same files and versions.")

    def owns(self, key: str) -> bool:
        return int(hashlib.sha256(key.encode()).hexdigest()[:15], 16) % self.count == self.rank

    def gathered(self, found: Mapping) -> dict:
        whole = {}
        for each in self._each(dict(found)):
            whole |= each
        return whole

    def leave(self, code: int = FAILED) -> None:
        if self._has_left or self.is_broken:
            return
        self._has_left = True
        with suppress(RuntimeError):
            codes = torch.tensor([code])
            distributed.all_reduce(
                codes, distributed.ReduceOp.MAX, group=self._told, async_op=True).wait(LAST_WORDS)

    def _begin(self) -> None:
        if self.agree() != GO:
            self._has_left = True
            raise Ended(f"Another of the {self.count} processes was stopped in the middle of a step, and so ends "
                        f"process {self.rank}. What was learned is saved.")

    def _each(self, value: dict) -> list[dict]:
        self._begin()
        everyone: list = [None] * self.count
        with self._all_there():
            distributed.all_gather_object(everyone, value, group=self._told)
        return everyone

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):  # not to be done again: the others are in the middle of the exchange
                raise UserError(f"Process {self.rank} has too little memory to exchange gradients; lower rank or "
                                f"batch_size. ({first_line(error)})") from None
            self.is_broken = True
            raise Ended(
                f"Another of the {self.count} processes is gone (it was killed, or its machine or the network failed), "
                f"and so ends process {self.rank}. Start the same again: it goes on from the last checkpoint. "
                f"({first_line(error)[:200]})") from None


def from_accelerate(accelerator) -> Ranks:
    """The processes of an accelerate.Accelerator."""
    return Together() if accelerator.num_processes > 1 else ALONE


def _pieces(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The tensors in their order, small ones together."""
    piece, size = [], 0
    for tensor in tensors:
        if piece and size + tensor.nbytes > PIECE:
            yield piece
            piece, size = [], 0
        piece.append(tensor)
        size += tensor.nbytes
    yield piece
