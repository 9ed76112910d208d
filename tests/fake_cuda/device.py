"""Lets a CPU build of torch run autograd on CUDA tensors without data (FakeTensor), as if there were a card.

Three things of torch are changed, for the whole process and for good, so it must be a process of its own that ends with
`os._exit`: torch's own end would meet what is put in here half gone.

1. The slot for CUDA in c10's registry of device guards (`c10::impl::device_guard_impl_registry`) is empty in a CPU
   build; a guard that does nothing is put in, so that autograd can note a tensor's device.
2. The table of virtual functions of the CUDA hooks (`at::detail::getCUDAHooks`) is copied, and two functions of the
   copy say yes: isBuilt, hasPrimaryContext. Autograd finds an accelerator then.
3. Backward runs in the calling thread, since there are no threads for the device.

This depends on how one build of torch lays out its libraries: `why_not` says where it does not fit.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor

BUILD = "2.13.0+cpu"
"""The build of torch for which the numbers below hold; the one that tests/requirements.txt leads to on a CPU."""

REQUIRED = "WANTUNE_FAKE_CUDA"
"""Environment variable that is "required" where these tests must not be skipped: CI, whose torch is BUILD."""

CUDA = torch.device("cuda", 0)

_DEVICE_TYPES = 21
_CUDA, _PRIVATE_USE = 1, 20
"""Numbers of device types (c10/core/DeviceType.h): the slot to fill, and the one where Python may register a guard."""
_IS_BUILT, _HAS_PRIMARY_CONTEXT, _SLOTS = 2, 4, 64
"""Places in the table of at::CUDAHooksInterface, counted from its address point; so many are copied."""
_BEFORE = 2
"""Words before a table's address point: offset to top, type information."""

_kept: list = []
"""What C++ points to."""


def why_not() -> str:
    """Why this cannot run here; "" where it can."""
    if not sys.platform.startswith("linux"):
        return f"CUDA tensors without data are made by a trick for Linux; this is {sys.platform}"
    if torch.__version__ != BUILD:
        return f"CUDA tensors without data are made by a trick for torch {BUILD}; this is {torch.__version__}"
    return ""


def is_required() -> bool:
    """Whether to fail rather than to skip."""
    return os.environ.get(REQUIRED) == "required"


def install() -> None:
    """Change torch. Call it once, before ComfyUI is imported.

    Raises:
        RuntimeError: on another build or system.
    """
    if why_not():
        raise RuntimeError(f"{why_not()}; install that build.")
    folder = Path(torch.__file__).parent / "lib"
    _fill_guard(ctypes.CDLL(str(folder / "libc10.so")))
    _replace_hooks(ctypes.CDLL(str(folder / "libtorch_cpu.so")))
    torch.autograd.set_multithreading_enabled(False)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes one on the CPU and copies it, as a card has it too
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_args, **_options: True
    _take_for_plain_tensors()


def _fill_guard(c10: ctypes.CDLL) -> None:
    class Guard(torch._C._acc.DeviceGuard):
        def type_(self):
            return torch._C._autograd.DeviceType.CUDA

    registry = (ctypes.c_void_p * _DEVICE_TYPES).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    guard = Guard()
    torch._C._acc.register_python_privateuseone_device_guard(guard)
    registry[_CUDA] = registry[_PRIVATE_USE]
    _kept.append(guard)


def _replace_hooks(torch_cpu: ctypes.CDLL) -> None:
    get = torch_cpu._ZN2at6detail12getCUDAHooksEv
    get.restype = ctypes.c_void_p
    hooks = ctypes.cast(get(), ctypes.POINTER(ctypes.c_void_p))
    word = ctypes.sizeof(ctypes.c_void_p)
    table = ctypes.cast(hooks[0] - _BEFORE * word, ctypes.POINTER(ctypes.c_void_p))
    copy = (ctypes.c_void_p * (_BEFORE + _SLOTS))(*table[:_BEFORE + _SLOTS])
    is_built = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(lambda _self: True)
    has_context = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_byte)(lambda _self, _index: True)
    copy[_BEFORE + _IS_BUILT] = ctypes.cast(is_built, ctypes.c_void_p).value
    copy[_BEFORE + _HAS_PRIMARY_CONTEXT] = ctypes.cast(has_context, ctypes.c_void_p).value
    hooks[0] = ctypes.addressof(copy) + _BEFORE * word
    _kept.extend((copy, is_built, has_context))


def _take_for_plain_tensors() -> None:
    """Torch chooses foreach and fused optimizers for plain tensors and parameters, and by the type of each."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for kinds in (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types):
        if FakeTensor not in kinds:
            kinds.append(FakeTensor)


def plain_type(*args):
    """Python's `type`, but a tensor without data is the plain tensor or parameter that it stands for.

    It is put into modules that ask for `type(weight) in (nn.Parameter, torch.Tensor)`.
    """
    kind = type(*args)
    if kind is FakeTensor:
        return torch.nn.Parameter if isinstance(args[0], torch.nn.Parameter) else torch.Tensor
    return kind
