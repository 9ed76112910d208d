"""What the memory of training depends on, and of which parts it consists."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """What of a model counts: blocks of attention over the video, attention over the text, and a feed-forward."""

    dim: int
    ffn_dim: int
    heads: int
    blocks: int
    weights: int
    """Bytes of all weights, as they are loaded."""
    block_values: int
    """Numbers in the Linears of one block."""
    value: int
    """Bytes of a value of the activations."""
    are_cast: bool
    """Whether the weights have another form than the activations, so that each is cast when it is used."""
    latent_values: int = 64
    """Of a token: channels times the latent pixels of a patch."""
    values_beside: int = 0
    """Of a token, that are put beside its latent: an image's, and a mask."""
    blocks_beside: int = 0
    """Further blocks of the same sizes that no gradient goes through, and whose results are added to the video: VACE.
    They read tokens of their own."""
    image_rows: int = 0
    """Tokens of an image to which each block attends besides the text."""
    stored: int
    """Bytes of the weights of one block, as they are loaded."""
    are_lent: bool = False
    """Whether they come in buffers that the next ones overwrite, so that what is held for backward is copied."""
    copies: int = 0
    """Bytes of the copies in 8 bits that are kept of weights on the device, with all of them there."""

    @property
    def streamed(self) -> int:
        """Bytes of one block's weights while they are cast, or fetched from RAM."""
        return self.block_values * self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a step computes on, in the largest bucket, and what is computed beside steps."""

    side: int
    """Pixels: the square root of width x height."""
    frames: int
    stride: int
    """Frames in a latent frame, of which the first has one to itself."""
    tokens: int
    """Of one sample."""
    batch_size: int
    text_rows: int
    """Of a caption, or of a prior caption, whichever has more."""
    shown_tokens: int = 0
    """The most tokens of a sample that is measured on, or of a preview; 0 = there are none."""
    prior_rows: int = 0
    """Of a prior caption, for which the model is held to what it was; 0 = it is not held."""
    decoding: int = 0
    """Bytes taken for a preview while the model may be moved away: by the VAE, its weights included, or by a sampler
    for which training steps aside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Bytes on the device at most, by part; they add up to `total`."""

    weights: int
    adapter: int
    """Its numbers in fp32, and their moving average."""
    optimizer: int
    """What it remembers of each number."""
    activations: int
    """Of a step, with the gradients."""
    previews: int
    """What evaluations and previews need more than a step does."""
    copies: int = 0
    """Of weights, in 8 bits, with which products are computed."""
    offloaded: int = 0
    """Bytes of the weights that stay in RAM."""
    ram: int = 0
    """Bytes of pinned RAM in which inputs of blocks wait."""

    @property
    def lasting(self) -> int:
        """Bytes that stay while the run goes on, beside the weights."""
        return self.adapter + self.optimizer + self.copies

    @property
    def passing(self) -> int:
        """Bytes that are used for a while in each step, evaluation or preview."""
        return self.activations + self.previews

    @property
    def total(self) -> int:
        """All that is on the device."""
        return self.weights + self.lasting + self.passing
