"""Training steps aside while ComfyUI samples and decodes in the middle of a run, and goes on as if nothing had been.

The MODEL that is sampled mostly shares the network with the one in training. ComfyUI then loads the one in place of the
other, with its own patches of the weights, and puts the weights back bit for bit when ours is loaded again.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import comfy.model_management
import torch

from .denoiser import ComfyDenoiser


@contextmanager
def aside(denoiser: ComfyDenoiser, waiting: Iterable[ComfyDenoiser] = ()) -> Iterator[None]:
    """Inside the context the network and the device are ComfyUI's, as when it runs a node; afterwards training's again.

    Args:
        denoiser: attached, and between steps.
        waiting: others that may be attached and are loaded again when it is their turn.
    """
    management = comfy.model_management
    device = denoiser.device
    devices = [] if device.type == "cpu" else [device]
    for each in (denoiser, *waiting):
        each.take_out()
    management.soft_empty_cache()  # a step's memory, which torch still holds in pieces of its sizes
    try:
        with torch.random.fork_rng(devices, device_type="cuda" if not devices else device.type), torch.inference_mode():
            yield
    except BaseException as error:  # Cancel is one in newer versions of ComfyUI
        traceback.clear_frames(error.__traceback__)  # they hold what was on the device
        raise
    finally:
        management.soft_empty_cache()
        denoiser.reload()
