"""AdamW and clipping over few large tensors, in each of which many of the trained matrices lie.

Both treat each number by itself, but start some work for each tensor: 600 matrices of a LoRA are 30 pieces. What is
told outside, the norm of the gradient and the optimizer's state, is that of the matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Split = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
"""Gives what of tensors like the pieces belongs to which matrix, as flat views."""

MOMENTS = ("exp_avg", "exp_avg_sq")


class PiecewiseAdamW(torch.optim.AdamW):
    """torch's AdamW over pieces, whose state is that of an AdamW over the matrices.

    Args:
        matrices: the parameters that lie in the pieces.
        split: gives them in this order.
        pieces: what is trained.
        options: as of torch's.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], split: Split, pieces: list[torch.nn.Parameter], **options
    ) -> None:
        super().__init__(pieces, **options)
        self._pieces, self._shapes, self._split = pieces, [matrix.shape for matrix in matrices], split

    def state_dict(self) -> dict[str, Any]:
        """By the number of each matrix; its moments are views."""
        told = super().state_dict()
        of_pieces = list(told["state"].values())
        state = {}
        if of_pieces:
            each = zip(*(self._split([of_piece[name] for of_piece in of_pieces]) for name in MOMENTS), strict=True)
            for number, (shape, moments) in enumerate(zip(self._shapes, each, strict=True)):
                # all have done the same number, which whoever loads this counts on for each by itself
                state[number] = {"step": of_pieces[0]["step"].clone()}
                state[number] |= {name: flat.view(shape) for name, flat in zip(MOMENTS, moments, strict=True)}
        return {**told, "state": state, "param_groups": self._groups(told, len(self._shapes))}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict`, or one of an AdamW over the matrices."""
        of_matrices, state = state_dict["state"], {}
        if of_matrices:
            flat = {name: [torch.zeros_like(piece) for piece in self._pieces] for name in MOMENTS}
            for name, pieces in flat.items():
                for number, view in enumerate(self._split(pieces)):
                    view.copy_(of_matrices[number][name].flatten())
            state = {number: {"step": of_matrices[0]["step"].clone(), **{name: flat[name][number] for name in MOMENTS}}
                     for number in range(len(self._pieces))}
        super().load_state_dict(
            {**state_dict, "state": state, "param_groups": self._groups(state_dict, len(self._pieces))})

    @staticmethod
    def _groups(state_dict: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
        (group,) = state_dict["param_groups"]
        return [{**group, "params": list(range(count))}]


@torch.no_grad()
def clip(parameters: Sequence[torch.nn.Parameter], limit: float, split: Split) -> torch.Tensor:
    """Scale the gradients down to a norm of `limit` at most; returns their norm before, on the device.

    As torch.nn.utils.clip_grad_norm_, bit for bit, over the matrices that `split` gives.
    """
    gradients = [parameter.grad for parameter in parameters]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(split(gradients))))
    torch._foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm
