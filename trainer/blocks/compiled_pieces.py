"""The small functions of a block (pieces.py) compiled by torch.compile: the several kernels of each become one.

Only these pure functions are compiled, never a layer that the host program moves, patches or dequantises. What is one
kernel already (GELU, gate, the norm of a single sample) is not: a compiled call takes longer to start.

Each is compiled for the first number of tokens that it meets, then once more for any number; with several samples it is
compiled again. The text's rows are met by RMS norms alone, and only where PyTorch has no kernel for these.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable

import torch

from . import pieces
from .pieces import Modulation, Norm, Pieces

AUTO, ON, OFF = MODES = ("auto", "on", "off")
"""auto: on a GPU for which Triton makes code."""

logger = logging.getLogger("wantune")


def pieces_of(mode: str, device: torch.device) -> Pieces:
    """The functions for a device, as one of MODES says."""
    compiled = compiler(mode, device)
    if compiled is _as_it_is:
        return Pieces()
    of_several = compiled(pieces.modulated_norm)

    def modulated_norm(x_BLD: torch.Tensor, by: Modulation, eps: float) -> tuple[torch.Tensor, Norm]:
        return (pieces.modulated_norm if len(x_BLD) == 1 else of_several)(x_BLD, by, eps)

    norms = {} if pieces.rms_norm_is_fused(device) else dict(
        rms_norm=compiled(pieces.rms_norm), rms_norm_gradient=compiled(pieces.rms_norm_gradient))
    return Pieces(
        modulated_norm=modulated_norm,
        modulated_norm_gradient=compiled(pieces.modulated_norm_gradient),
        layer_norm_gradient=compiled(pieces.layer_norm_gradient),
        turned_norms=compiled(pieces.turned_norms),
        turned_norms_gradient=compiled(pieces.turned_norms_gradient),
        **norms,
    )


def compiler(mode: str, device: torch.device) -> Callable[[Callable], Callable]:
    """What makes of a pure function of tensors the one to be called, as one of MODES says.

    Why AUTO does not compile on a GPU is logged.
    """
    if mode == OFF or mode == AUTO and device.type != "cuda":
        return _as_it_is
    if mode == AUTO and (reason := obstacle(device)):
        logger.warning("Small kernels are not compiled: %s", reason)
        return _as_it_is
    return _Compiling().compiled


def _as_it_is(function: Callable) -> Callable:
    return function


@functools.cache
def obstacle(device: torch.device) -> str | None:
    """Why nothing can be compiled for a GPU, found by compiling something; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (on Windows its package is triton-windows)."
    try:
        x = torch.arange(8.0, device=device)
        is_right = torch.equal(torch.compile(_tried)(x), _tried(x))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        return _told(error)
    return None if is_right else "a compiled function gives another result here."


def _tried(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


class _Compiling:
    """Whether compiling has failed; then none of the functions is compiled any more."""

    def __init__(self) -> None:
        self._has_failed = False

    def compiled(self, function: Callable) -> Callable:
        """The function, compiled when it is first called; it must leave its arguments as they are."""
        compiled = functools.cache(lambda: torch.compile(function))  # which raises where it knows no such Python

        @functools.wraps(function)
        def call(*args):
            if self._has_failed:
                return function(*args)
            try:
                return compiled()(*args)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # the compilers raise errors of many kinds; a real one is raised again below
                self._has_failed = True
                logger.warning("Small kernels are not compiled any more: %s", _told(error))
                return function(*args)

        return call


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
