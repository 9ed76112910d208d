"""The modulation of all blocks of a step, computed when the first block asks for its own: two kernels instead of sixty.

Shape legend: n blocks, B batch (times F, where each frame has a noise level of its own), D width of the model.
"""

from __future__ import annotations

from collections.abc import Iterable

import comfy.model_management
import torch
from torch import nn

from ...trainer.blocks.pieces import Modulation, Shared


class Modulations:
    """What each block adds of its own to the modulation by the noise level.

    Args:
        blocks: WanAttentionBlocks with a `modulation` (1, 6, D) each.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self._blocks = list(blocks)
        self._all = Shared(self._of_all)

    def __call__(self, number: int, e: torch.Tensor, dtype: torch.dtype) -> tuple[Modulation, Modulation]:
        """Of self-attention and of the feed-forward branch of a block, given by its number.

        Args:
            e: (B, 6, D), or (B, F, 6, D) for each of F parts of a sample; the same tensor for all blocks of a step.
        """
        of_block = self._all(e, dtype)[number].split(1, dim=1)
        return Modulation(*of_block[:3]), Modulation(*of_block[3:])

    def _of_all(self, e: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        own_n16D = torch.stack([comfy.model_management.cast_to(block.modulation, dtype=dtype, device=e.device)
                                for block in self._blocks])
        all_nB6D = own_n16D + e.flatten(0, -3)
        all_nB6D[:, :, 1::3] += 1  # the scales
        return all_nB6D.unbind()
