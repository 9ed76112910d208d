"""ComfyUI as it is on a machine with an NVIDIA card of so many GiB, and Wan models without data in its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from types import SimpleNamespace
from unittest.mock import patch

import torch

from wantune.tests.support.wan_models import WANS

from . import streams
from .aimdo import Aimdo
from .counting import Counting
from .device import CUDA

GIB = 2**30

RAM = 256
"""GiB; more than the card has, so that ComfyUI loads a model into RAM first."""

STREAMS = 2
"""ComfyUI's streams for offloaded weights: its default on NVIDIA."""

SIZES = {
    "tiny": {"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 2},
    "1.3b": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "14b": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    "5b": {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30},
}
"""Of Wan's models; the tiny one is like them."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}


class Card:
    """A card; while `in_place`, ComfyUI sees it."""

    def __init__(self, counting: Counting, gib: float) -> None:
        self.counting = counting
        self.total = int(gib * GIB)

    @property
    def free(self) -> int:
        """Bytes."""
        return max(0, self.total - self.counting.now)

    def _get_free_memory(self, dev=None, torch_free_too: bool = False):
        free = int(RAM * GIB) if dev is not None and torch.device(dev).type == "cpu" else self.free
        return (free, 0) if torch_free_too else free

    def _get_total_memory(self, dev=None, torch_total_too: bool = False):
        total = int(RAM * GIB) if dev is not None and torch.device(dev).type == "cpu" else self.total
        return (total, total) if torch_total_too else total

    @contextmanager
    def in_place(self, aimdo: Aimdo | None = None) -> Iterator[None]:
        """Inside the context ComfyUI runs on it, with dynamic VRAM where there is an `aimdo`."""
        import comfy.model_management as management

        properties = SimpleNamespace(major=8, minor=9, total_memory=self.total, name="a card that is not there",
                                     gcnArchName="", multi_processor_count=128)
        replaced = [
            (management, "get_torch_device", lambda: CUDA),
            (management, "vram_state", management.VRAMState.NORMAL_VRAM),
            (management, "cpu_state", management.CPUState.GPU),
            (management, "NUM_STREAMS", STREAMS),
            (management, "get_free_memory", self._get_free_memory),
            (management, "get_total_memory", self._get_total_memory),
            (management, "soft_empty_cache", lambda *_args, **_options: None),
            (management, "should_use_fp16", lambda *_args, **_options: True),
            (management, "should_use_bf16", lambda *_args, **_options: True),
            (management, "current_loaded_models", []),
            (torch.cuda, "get_device_properties", lambda *_args: properties),
            (torch.cuda, "get_device_capability", lambda *_args: (properties.major, properties.minor)),
            (torch.nn.Module, "_apply", _apply),
        ]
        with ExitStack() as stack:
            for place, name, value in replaced:
                stack.enter_context(patch.object(place, name, value))
            stack.enter_context(streams.in_place(self.counting))
            stack.enter_context(aimdo.in_place() if aimdo else nullcontext())
            yield


def load(counting: Counting, family: str, size: str, dtype: str, num_blocks: int = 0):
    """A MODEL without data, through ComfyUI's own detection and loader.

    Args:
        family: of wan_models.WANS.
        size: of SIZES.
        dtype: of the weights, of DTYPES.
        num_blocks: in place of the size's own number; 0 for that.
    """
    import comfy.sd
    from comfy.ldm.wan.model import VaceWanModel, WanModel

    wan = WANS[family]
    sizes = SIZES[size] | ({"num_layers": num_blocks} if num_blocks else {})
    sizes |= {"model_type": "t2v" if wan.image_tokens == 0 else "i2v", "in_dim": wan.in_dim,
              "out_dim": wan.latent_channels, "flf_pos_embed_token_number": wan.image_tokens or None}
    if wan.is_vace:
        sizes |= {"vace_layers": max(1, sizes["num_layers"] // 2), "vace_in_dim": 96}
    if wan.has_ref_conv:
        sizes["in_dim_ref_conv"] = wan.latent_channels
    with counting.fake, torch.inference_mode():
        # torch's own layers: with dynamic VRAM ComfyUI's have no weights before they are loaded
        kind = VaceWanModel if wan.is_vace else WanModel
        network = kind(**sizes, dtype=DTYPES[dtype], device="cpu", operations=torch.nn)
        state = {key: torch.empty(value.shape, dtype=DTYPES[dtype]) for key, value in network.state_dict().items()}
        del network
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": DTYPES[dtype]})
    # its means are used on the host, by a thread: tensors there are real
    model.model.latent_format = type(model.model.latent_format)()
    return model


@wraps(torch.nn.Module._apply)  # by its module the project tells what other packs have replaced
def _apply(module: torch.nn.Module, function, recurse: bool = True) -> torch.nn.Module:
    """nn.Module._apply with new parameters: those without data cannot be swapped in place."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for name, value in module._parameters.items():
        if value is not None:
            with torch.no_grad():
                module._parameters[name] = torch.nn.Parameter(function(value), value.requires_grad)
    for name, value in module._buffers.items():
        if value is not None:
            module._buffers[name] = function(value)
    return module
