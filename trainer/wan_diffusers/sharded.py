"""A model that is larger than one device: each of several keeps its share of every weight (FSDP2), through accelerate.

The weights of a block are gathered while it is computed, forth and back, and those of the next one meanwhile. The
adapter is whole on each device, as small as it is, and so are its gradients and what the optimizer remembers. So a
step is that of a model that lies whole on each device, and every process must compute equally often: a forward pass
that one of them makes alone would wait for the others for ever.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..base.errors import UserError
from ..memory.plan import Plan
from ..memory.sizes import ModelSize
from ..model.family import ModelFamily
from .denoiser import DiffusersDenoiser
from .quantised import is_plain


class ShardedDenoiser(DiffusersDenoiser):
    """As DiffusersDenoiser, over a transformer that this shares out over all processes and that stays so.

    Args:
        transformer: whole, the same in each process; it may be in RAM, and goes to the devices block by block.
        device: of this process.

    Raises:
        UserError: as DiffusersDenoiser, its weights are quantised, or accelerate or torch is too old.
    """

    def __init__(self, transformer: nn.Module, family: ModelFamily, device: torch.device, id: str = "") -> None:
        whole = DiffusersDenoiser(transformer, family, device, id)  # a hash needs all of the weights
        if not all(map(is_plain, transformer.parameters())):
            raise UserError("A quantised model cannot be shared out over several devices; set quantization to none, or "
                            "let each device hold all of it.")
        blocks = transformer.blocks
        self._block_bytes = max(sum(value.nbytes for value in block.parameters()) for block in blocks)
        self._bytes_outside = sum(value.nbytes for value in transformer.parameters()) - sum(
            value.nbytes for block in blocks for value in block.parameters())
        transformer.requires_grad_(False)
        _share_out(transformer, type(blocks[0]).__name__, device)
        super().__init__(transformer, family, device, whole.id)

    @property
    def size(self) -> ModelSize:
        """What of it counts for memory on this device: its share, what lies outside blocks, and a block that is
        gathered ahead; the one that is computed counts as a copy."""
        size = super().size
        return replace(size, weights=size.weights + self._bytes_outside + self._block_bytes)

    def change_plan(self, plan: Plan) -> None:
        """Where a step is done again with less memory, the other processes do not do it again.

        Raises:
            UserError: always.
        """
        raise UserError("There was too little memory for a step of a model that lies on several devices, where it is "
                        "not done again; choose less by hand in Memory Settings, or lower batch_size or resolution.")


def _share_out(transformer: nn.Module, block: str, device: torch.device) -> None:
    try:
        from accelerate import Accelerator
        from accelerate.utils import FullyShardedDataParallelPlugin, fsdp2_prepare_model

        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, reshard_after_forward=True, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[block], cpu_ram_efficient_loading=False,
            state_dict_type="SHARDED_STATE_DICT")
    except ImportError as error:
        raise UserError("To share a model out over several devices accelerate 1.6 and torch 2.6 or newer are needed; "
                        f"install them. ({error})") from None
    accelerator = Accelerator(cpu=device.type == "cpu")
    accelerator.state.fsdp_plugin = plugin  # its own `prepare` wants an optimizer of the model, which has none here
    fsdp2_prepare_model(accelerator, transformer)
