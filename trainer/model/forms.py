"""What tells the networks of Wan's plain class apart: the channels they take and predict, and what they see of images.
"""

from __future__ import annotations

from typing import NamedTuple

NO_IMAGE, ONE, TWO = "no image embedding", "the embedding of one image", "the embedding of two images"
"""What a network has for CLIP vision: nothing, an img_emb, or an img_emb with positions for two images (emb_pos)."""


class Form(NamedTuple):
    """Of a network, by its shapes alone."""

    latent: int
    """Channels of its latents."""
    channels: int
    """That it takes: the latent's, and what is put beside it."""
    image: str
    """NO_IMAGE, ONE or TWO."""

    def told(self) -> str:
        """In words, where it has no name."""
        return f"a variant of Wan that takes {self.channels} channels for latents of {self.latent}, with {self.image}"


TRAINED = {
    Form(16, 16, NO_IMAGE): "Wan2.1 T2V",
    Form(16, 36, ONE): "Wan2.1 I2V",
    Form(16, 36, TWO): "Wan2.1 FLF2V",
    Form(16, 36, NO_IMAGE): "Wan2.2 I2V",
    Form(48, 48, NO_IMAGE): "Wan2.2 5B",
    Form(16, 48, ONE): "Wan2.1 Fun-Control",
    Form(16, 52, NO_IMAGE): "Wan2.2 Fun-Control",
}
"""Names of families (families.py)."""

OTHERS = {
    Form(16, 32, NO_IMAGE): "Wan Fun-Camera",
    Form(48, 100, NO_IMAGE): "Wan2.2 Fun-InP 5B",
    Form(48, 148, NO_IMAGE): "Wan2.2 Fun-Control 5B",
}
"""Those that are not trained."""
