"""Switches of the whole process, which any pack may set for all others: our computations go without them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


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


def _accelerator() -> set[str]:
    found = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    return {found.type} if found is not None else set()


@contextmanager
def _dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Some kernels of attention have no deterministic backward, and raise where one is asked for."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def _anomaly() -> Iterator[None]:
    """It raises at a gradient that is not finite, which fp16's loss scaling meets on its way, and is slow."""
    before, check_nan = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    torch.autograd.set_detect_anomaly(False)
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(before, check_nan)


@contextmanager
def _precision() -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through torch's newer names, which do not mix with this one
        before = "highest"
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
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
