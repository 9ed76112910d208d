"""What a step does to the card: memory held, kernels, calls of the dispatcher, bytes over the bus, and waits.

On the CPU tensors are real and are computed with; only what is on the card, or comes from a weight without data, is a
FakeTensor. What is read back from the card has no values, so ones come back (all text is in use, a loss is 1), and a
single number is 0 (no overflow was found, a self-test's error is 0).

Memory: every storage on the card, rounded up to 512 bytes as CUDA's caching allocator does, from its first appearance
until Python and autograd have let go of it.

Kernels: calls that start something on the card, copies included; views and allocations are none. One call of ATen is
one kernel, which is so for most; several stages of one library call count as one. `_foreach_` and `_fused_` calls work
on lists of tensors, and are counted as CUDA starts them (`launches`).

Dispatches: calls that arrive at the dispatcher below autograd, views and allocations included; the host needs about 5
to 10 microseconds for each.
"""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDING = 512
"""Bytes: kMinBlockSize of c10/cuda/CUDACachingAllocator."""

CHUNK, MOST_TENSORS, MOST_BLOCKS = 65536, (110, 64, 48, 36, 30), 320
"""Values a block takes, tensors of a launch by the number of lists, blocks of a launch (aten/src/ATen/native/cuda/
MultiTensorApply.cuh, for builds with 4 KiB of kernel arguments; CUDA 13 takes more in one launch)."""

MOST_READ = 2**21
"""Values; more than that is not read back for its values but moved away, and stays without data."""

NO_LAUNCH = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
             "aten::empty_permuted", "aten::detach_", "aten::set_", "aten::resize_", "aten::_unsafe_view",
             "aten::_reshape_alias", "aten::lift_fresh", "aten::_local_scalar_dense", "aten::record_stream",
             "aten::is_pinned", "aten::lift"}
"""Besides views; reading a number is a wait that follows a copy, which is not counted twice."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Step:
    """What was counted in one step."""

    forward: Counter = field(default_factory=Counter)
    """Calls by operator; what runs outside of autograd's backward."""
    backward: Counter = field(default_factory=Counter)
    kernels: Counter = field(default_factory=Counter)
    """Launches by operator, forward and backward."""
    peak: int = 0
    """Bytes held on the card at most."""
    weights_in: int = 0
    """Bytes of weights of the model copied to the card."""
    to_card: int = 0
    """Bytes of everything else copied to the card."""
    from_card: int = 0
    waits: list[str] = field(default_factory=list)
    """Where the host waited for the card: file, line and what it did."""

    @property
    def dispatches(self) -> int:
        """Calls of the dispatcher."""
        return self.forward.total() + self.backward.total()


class Counting(TorchDispatchMode):
    """While active, everything on the card goes through it; `step` is what is being counted."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.step = Step()
        self.now = 0
        """Bytes held on the card."""
        self._is_as_one = False
        self._sizes: dict[int, int] = {}
        self._pinned: set[int] = set()

    def begin(self) -> Step:
        """Count anew."""
        self.step = Step(peak=self.now)
        return self.step

    def held(self, tensors: Iterable[torch.Tensor]) -> int:
        """Bytes that these hold on the card, each storage once."""
        storages = {tensor.untyped_storage()._cdata: tensor for tensor in tensors if _on_card(tensor)}
        return sum(_rounded(tensor.untyped_storage().nbytes()) for tensor in storages.values())

    def note(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is on the card and was not seen before."""
        if not _on_card(tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = _rounded(storage.nbytes())
        self._sizes[key] = size
        self.now += size
        self.step.peak = max(self.step.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def outgrow(self, tensor: torch.Tensor) -> None:
        """A tensor's memory is part of a larger piece from now on, which is counted in its place."""
        key = tensor.untyped_storage()._cdata
        if key in self._sizes:
            self.now -= self._sizes[key]
            self._sizes[key] = 0

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def wait(self, what: str) -> None:
        """The host waits for the card."""
        self.step.waits.append(f"{_where()}: {what}")

    def pin(self, tensor: torch.Tensor) -> None:
        """A host tensor's memory is pinned from now on."""
        storage = tensor.untyped_storage()
        self._pinned.add(storage._cdata)
        weakref.finalize(storage, self._pinned.discard, storage._cdata)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a host tensor lies in pinned memory."""
        return tensor.untyped_storage()._cdata in self._pinned

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function.name().removesuffix(".default") if hasattr(function, "name") else str(function)
        if name.startswith("prim::"):
            return function(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        base = name.split(".")[0]
        self._count(function, base, tensors, args, kwargs)
        if base == "aten::_local_scalar_dense" and isinstance(args[0], FakeTensor):
            return self._number(args[0])
        is_pinned = kwargs.pop("pin_memory", None)
        if not _is_without_data(tensors, kwargs):
            out = function(*args, **kwargs)
            if is_pinned:
                self.pin(out)
            return out
        if base in ("aten::_to_copy", "aten::copy_"):
            out = self._copied(function, base, args, kwargs)
        else:
            with self.fake:
                out = function(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf)
        return out

    @contextmanager
    def as_one(self, name: str, kernels: int) -> Iterator[None]:
        """Inside the context nothing is counted but memory; it counts as so many kernels and dispatches."""
        self._is_as_one = True
        try:
            yield
        finally:
            self._is_as_one = False
        (self.step.backward if torch._C._current_autograd_node() is not None else self.step.forward)[name] += kernels
        self.step.kernels[name] += kernels

    def _count(self, function, base: str, tensors: list, args: tuple, kwargs: dict) -> None:
        if self._is_as_one:
            return
        in_backward = torch._C._current_autograd_node() is not None
        (self.step.backward if in_backward else self.step.forward)[base] += 1
        is_view = getattr(function, "is_view", False) or base in NO_LAUNCH
        if not is_view and (any(map(_on_card, tensors)) or _asks_for_card(kwargs)):
            self.step.kernels[base] += launches(base, _lists_on_card(args))

    def _copied(self, function, base: str, args: tuple, kwargs: dict) -> torch.Tensor:
        """A copy, which may cross the bus: what comes from the card gets values where someone may read them."""
        source = args[1] if base == "aten::copy_" else args[0]
        target = args[0] if base == "aten::copy_" else kwargs.get("device") or source.device
        device = target.device if isinstance(target, torch.Tensor) else torch.device(target)
        if source.device.type == device.type:
            with self.fake:
                return function(*args, **kwargs)
        is_weight = isinstance(source, FakeTensor) and source.device.type == "cpu"
        non_blocking = kwargs.get("non_blocking", args[2] if base == "aten::copy_" and len(args) > 2 else False)
        out = self._moved(function, base, args, kwargs, device)
        if device.type == "cuda":
            if is_weight:
                self.step.weights_in += out.nbytes  # ComfyUI has them in pinned memory
            else:
                self.step.to_card += out.nbytes
            is_async = is_weight or (non_blocking and self.is_pinned(source))
        else:
            self.step.from_card += out.nbytes
            is_async = non_blocking and (base == "aten::_to_copy" or self.is_pinned(out))
        if not is_async:
            self.wait(f"copy of {tuple(out.shape)} {source.device.type} -> {device.type}")
        return out

    def _moved(self, function, base: str, args: tuple, kwargs: dict, device: torch.device) -> torch.Tensor:
        if device.type == "cpu" and base == "aten::copy_" and not isinstance(args[0], FakeTensor):
            return args[0].fill_(1)
        if device.type == "cpu" and base == "aten::_to_copy" and args[0].numel() <= MOST_READ:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        with self.fake:
            return function(*args, **kwargs)

    def _number(self, tensor: torch.Tensor) -> float | int | bool:
        if _on_card(tensor):
            self.wait("a number is read")
        if tensor.dtype == torch.bool:
            return False
        return 0.0 if tensor.dtype.is_floating_point else 0


def launches(base: str, lists: Sequence[Sequence[torch.Size]]) -> int:
    """Kernels that one call starts: 1, or for lists of tensors as many as CUDA needs for them.

    A launch takes so many tensors and so many blocks of CHUNK values each; MOST_TENSORS depends on how many lists there
    are (parameters, gradients, ...). `_foreach_norm` has one more launch that adds up the blocks.

    Args:
        base: the operator without its overload.
        lists: the shapes of the tensors in each list that lies on the card.
    """
    if not lists or not base.startswith(("aten::_foreach_", "aten::_fused_", "aten::_amp_foreach_")):
        return 1
    lists = [shapes for shapes in lists if len(shapes[0])] or lists  # the counters of an optimizer's steps do not count
    most = MOST_TENSORS[min(len(lists), len(MOST_TENSORS)) - 1]
    count = tensors = blocks = 0
    for shape in lists[0]:
        tensors += 1
        for _ in range(-(-shape.numel() // CHUNK)):
            blocks += 1
            if blocks == MOST_BLOCKS:  # the rest of this tensor goes into the next launch
                count, tensors, blocks = count + 1, 1, 0
        if tensors == most:
            count, tensors, blocks = count + 1, 0, 0
    return count + (blocks > 0) + base.startswith("aten::_foreach_norm")


def _lists_on_card(args: tuple) -> list[list[torch.Size]]:
    return [[tensor.shape for tensor in arg] for arg in args if isinstance(arg, (list, tuple)) and arg
            and isinstance(arg[0], torch.Tensor) and _on_card(arg[0])]


def _rounded(size: int) -> int:
    return -(-size // ROUNDING) * ROUNDING


def _is_without_data(tensors: list[torch.Tensor], kwargs: dict) -> bool:
    return any(isinstance(tensor, FakeTensor) for tensor in tensors) or _asks_for_card(kwargs)


def _asks_for_card(kwargs: dict) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cuda"


def _on_card(tensor: torch.Tensor) -> bool:
    # not tensor.device, which for a FakeTensor is a call of the dispatcher
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"


def _where() -> str:
    """The innermost line that is neither torch's nor ours, and the project's that led there, such as "loop.py:178"."""
    frames = [frame for frame in traceback.extract_stack()
              if "/fake_cuda/" not in frame.filename and "/site-packages/" not in frame.filename]
    own = next((frame for frame in reversed(frames) if Path(frame.filename).is_relative_to(ROOT)), frames[-1])
    places = [own] if own is frames[-1] else [own, frames[-1]]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in places)
