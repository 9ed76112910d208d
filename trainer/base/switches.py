"""Switches of the whole process, which any pack may set for all others: our computations go without them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import torch

from .errors import UserError

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
"""Torch reads it before the first matrix product of the process, and refuses to be deterministic without it."""


@contextmanager
def own_switches() -> Iterator[None]:
    """Inside the context torch, numpy and warnings are as they are when Python starts; put back on exit.

    Default dtype and device, autocast, deterministic algorithms, anomaly detection, the precision of fp32 matrix
    products, numpy's errors, and warnings that are errors. Gradients are what `torch.inference_mode(False)` enables.
    """
    with ExitStack() as stack:
        for switch in (_dtype, _deterministic, _anomaly, _precision, _warnings):
            stack.enter_context(switch())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if torch.get_default_device().type != "cpu":  # costs a little at each call of torch
            stack.enter_context(torch.device("cpu"))
        for device_type in {"cpu", "cuda", *_accelerator()}:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def kept_switches() -> Callable[[], AbstractContextManager[None]]:
    """What to call within `own_switches` to compute as others do: gives a context with the switches as they are now.

    Those of them that change what is computed: the default dtype, deterministic algorithms, and the precision of fp32
    matrix products.
    """
    dtype, precision, algorithms = torch.get_default_dtype(), _fp32_precision(), _algorithms()

    @contextmanager
    def again() -> Iterator[None]:
        with _dtype(dtype), _deterministic(*algorithms), _precision(precision):
            yield

    return again


@contextmanager
def full_sums() -> Iterator[None]:
    """Inside the context products of fp16 matrices are summed up in fp32; put back on exit.

    ComfyUI's --fast and loaders of other packs have CUDA sum them up in fp16, which is good enough to sample with.
    """
    matmul = torch.backends.cuda.matmul
    before = getattr(matmul, "allow_fp16_accumulation", False)  # torch before 2.7 has no such switch
    if not before:
        yield
        return
    matmul.allow_fp16_accumulation = False
    try:
        yield
    finally:
        matmul.allow_fp16_accumulation = before


def check_deterministic(device: torch.device) -> None:
    """UserError where `deterministic` cannot be: cuBLAS must have been told when the process started."""
    if device.type == "cuda" and torch.version.cuda and os.environ.get(_CUBLAS) not in (":4096:8", ":16:8"):
        raise UserError("deterministic is on, which CUDA's matrix products must be told when ComfyUI starts: start it "
                        f"with --deterministic (or with {_CUBLAS}=:4096:8), or switch deterministic off.")


@contextmanager
def deterministic(is_on: bool) -> Iterator[None]:
    """Inside the context torch takes kernels that give the same bits each time, if `is_on`; put back on exit.

    Torch only warns of the backward of its attention kernels where warnings are all that is asked for, so errors are.

    Raises:
        UserError: a kernel has no such form.
    """
    if not is_on:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # finds faults of programs, at a price
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError("deterministic is on, but training needs a kernel that does not give the same bits each time; "
                        f"switch deterministic off. ({str(error).splitlines()[0]})") from None
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fills


def _accelerator() -> set[str]:
    found = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    return {found.type} if found is not None else set()


@contextmanager
def _dtype(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _algorithms() -> tuple[bool, bool]:
    """Whether deterministic ones are asked for, and whether there is only a warning where there is none."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@contextmanager
def _deterministic(is_on: bool = False, warn_only: bool = False) -> Iterator[None]:
    """Some kernels of attention have no deterministic backward, and raise where one is asked for."""
    before, before_warn_only = _algorithms()
    torch.use_deterministic_algorithms(is_on, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=before_warn_only)


@contextmanager
def _anomaly() -> Iterator[None]:
    """It raises at a gradient that is not finite, which fp16's loss scaling meets on its way, and is slow."""
    before, check_nan = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    torch.autograd.set_detect_anomaly(False)
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(before, check_nan)


def _fp32_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set through torch's newer names, which do not mix with this one
        return "highest"


@contextmanager
def _precision(wanted: str = "highest") -> Iterator[None]:
    before = _fp32_precision()
    if before == wanted:
        yield
        return
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _warnings() -> Iterator[None]:
    """Only where some are errors: to set filters anew shows each warning once more."""
    if all(action != "error" for action, *_ in warnings.filters):
        yield
        return
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # as Python does by itself
        yield
