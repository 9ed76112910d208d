"""The small functions of a block as torch's compiler makes them, on a card that is not there.

Without Triton nothing is compiled here. They run as they are, and each call counts as the kernels that the compiler's
scheduler makes of the function; a test asks it, without having it make code.
"""

from __future__ import annotations

from wantune.trainer.blocks import pieces

from .counting import Counting

KERNELS = {"turned_norms": 1, "turned_norms_gradient": 3, "modulated_norm_gradient": 1, "layer_norm_gradient": 1}
"""For a single sample. Gradients of q and k are put beside each other, are turned back and go through their norms, and
that of v is put beside them."""


def pieces_of(counting: Counting) -> pieces.Pieces:
    """What counts as compiled."""
    def counted(name: str):
        function = getattr(pieces, name)

        def call(*args):
            with counting.as_one(f"compiled::{name}", KERNELS[name]):
                return function(*args)

        return call

    return pieces.Pieces(**{name: counted(name) for name in KERNELS})
