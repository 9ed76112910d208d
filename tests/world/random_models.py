"""Random-weight Wan2.1 files in the real file format, for tests and memory measurements.

ComfyUI's stock loaders open the transformer and the VAE; tests/world_nodes opens the text encoder.
Needs torch, safetensors and, for the text encoder, sentencepiece; not ComfyUI:

    python tests/world/random_models.py dit  FILE [--dim 1024 --ffn-dim 4096 --layers 6 --dtype float16]
    python tests/world/random_models.py vae  FILE [--dim 4]
    python tests/world/random_models.py umt5 FILE
"""

import argparse
import io
import string
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

LATENT_CHANNELS = 16
WAN22_LATENT_CHANNELS = 48  # of Wan2.2 5B
PATCH_AREA = 4  # 1 frame x 2 x 2 latent pixels
FREQUENCIES = 256  # width of the sinusoidal time embedding
CLIP_VISION_DIM = 1280
IMAGE_TO_VIDEO_IN_DIM = 36  # noise 16, mask 4, image 16


class Weights:
    """Collects named random tensors: layers keep the size of their input, norms scale by about 1.

    They are drawn on `device`, which is fast on a GPU, and kept in RAM; on "meta" they have names and shapes alone.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        self.device, self.dtype = torch.device(device), dtype
        is_meta = self.device.type == "meta"
        self.generator = None if is_meta else torch.Generator(self.device).manual_seed(seed)
        self.kept_on = "meta" if is_meta else "cpu"
        self.tensors: dict[str, torch.Tensor] = {}

    def normal(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
        tensor = torch.randn(shape, generator=self.generator, device=self.device) * std + mean
        self.tensors[name] = tensor.to(self.dtype).to(self.kept_on)

    def layer(self, name: str, out_dim: int, in_dim: int, kernel: tuple[int, ...] = (), gain: float = 1.0):
        """A Linear, or a convolution where a kernel is given."""
        fan_in = in_dim * torch.Size(kernel).numel()
        self.normal(f"{name}.weight", (out_dim, in_dim, *kernel), gain * fan_in**-0.5)
        self.normal(f"{name}.bias", (out_dim,), 0.02)

    def norm(self, name: str, dim: int, bias: bool = False) -> None:
        self.normal(f"{name}.weight", (dim,), 0.05, mean=1.0)
        if bias:
            self.normal(f"{name}.bias", (dim,), 0.02)

    def gamma(self, name: str, dim: int, axes: int) -> None:
        self.normal(f"{name}.gamma", (dim, *[1] * axes), 0.05, mean=1.0)

    def save(self, path: Path | str, metadata: dict[str, str] | None = None) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, path, metadata)
        return path


def make_dit(
    path: Path | str,
    dim: int = 128,
    ffn_dim: int = 256,
    layers: int = 2,
    in_dim: int = LATENT_CHANNELS,
    text_dim: int = 4096,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """A transformer; in_dim 16 makes text-to-video, 36 image-to-video with its image branch.

    ComfyUI only opens text_dim 4096. dim 1024, ffn_dim 4096, 6 layers in float16 are about 220 MB.
    """
    return dit_weights(dim, ffn_dim, layers, in_dim, text_dim, Weights(seed, dtype)).save(path)


def dit_weights(
    dim: int, ffn_dim: int, layers: int, in_dim: int, text_dim: int, weights: Weights, image_tokens: int | None = None
) -> Weights:
    """`weights` with the tensors of such a transformer.

    Args:
        in_dim: 48 makes Wan2.2 5B.
        image_tokens: of CLIP vision: 0 for none, as in Wan2.2 I2V, 514 for two images, as in Wan2.1 FLF2V; None for one
            image in image-to-video.
    """
    if dim % 128:
        raise ValueError(f"dim is {dim}, but Wan's heads are 128 wide; choose a multiple of 128.")
    if in_dim not in (LATENT_CHANNELS, IMAGE_TO_VIDEO_IN_DIM, WAN22_LATENT_CHANNELS):
        raise ValueError(f"in_dim is {in_dim}; choose 16 for text-to-video, 36 for image-to-video or 48 for Wan2.2 5B.")
    image_to_video = in_dim == IMAGE_TO_VIDEO_IN_DIM and image_tokens != 0
    out_dim = WAN22_LATENT_CHANNELS if in_dim == WAN22_LATENT_CHANNELS else LATENT_CHANNELS
    weights.layer("patch_embedding", dim, in_dim, (1, 2, 2))
    weights.layer("text_embedding.0", dim, text_dim)
    weights.layer("text_embedding.2", dim, dim)
    weights.layer("time_embedding.0", dim, FREQUENCIES)
    weights.layer("time_embedding.2", dim, dim)
    weights.layer("time_projection.1", 6 * dim, dim, gain=0.5)
    if image_to_video:
        weights.norm("img_emb.proj.0", CLIP_VISION_DIM, bias=True)
        weights.layer("img_emb.proj.1", CLIP_VISION_DIM, CLIP_VISION_DIM)
        weights.layer("img_emb.proj.3", dim, CLIP_VISION_DIM)
        weights.norm("img_emb.proj.4", dim, bias=True)
        if image_tokens:
            weights.normal("img_emb.emb_pos", (1, image_tokens, CLIP_VISION_DIM), 0.1)
    for index in range(layers):
        _dit_block(weights, f"blocks.{index}", dim, ffn_dim, image_to_video)
    weights.layer("head.head", out_dim * PATCH_AREA, dim)
    weights.normal("head.modulation", (1, 2, dim), dim**-0.5)
    return weights


def _dit_block(weights: Weights, block: str, dim: int, ffn_dim: int, image_to_video: bool) -> None:
    for attention in ("self_attn", "cross_attn"):
        for projection in ("q", "k", "v", "o"):
            weights.layer(f"{block}.{attention}.{projection}", dim, dim)
        weights.norm(f"{block}.{attention}.norm_q", dim)
        weights.norm(f"{block}.{attention}.norm_k", dim)
    if image_to_video:
        weights.layer(f"{block}.cross_attn.k_img", dim, dim)
        weights.layer(f"{block}.cross_attn.v_img", dim, dim)
        weights.norm(f"{block}.cross_attn.norm_k_img", dim)
    weights.norm(f"{block}.norm3", dim, bias=True)
    weights.layer(f"{block}.ffn.0", ffn_dim, dim)
    weights.layer(f"{block}.ffn.2", dim, ffn_dim)
    weights.normal(f"{block}.modulation", (1, 6, dim), dim**-0.5)
    # Rows 2 and 5 gate attention and feed-forward: near zero they would hide both from output and gradient.
    modulation = weights.tensors[f"{block}.modulation"].float()
    modulation[:, [2, 5]] += 0.5
    weights.tensors[f"{block}.modulation"] = modulation.to(weights.dtype)


def make_vae(path: Path | str, dim: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A Wan2.1 VAE; the real one has dim 96."""
    return vae_weights(dim, Weights(seed, dtype)).save(path)


def vae_weights(dim: int, weights: Weights) -> Weights:
    """`weights` with the tensors of such a VAE."""
    if dim < 2 or dim % 2:
        raise ValueError(f"dim is {dim}, but the decoder halves it; choose an even number from 2 on.")
    widths = [dim, 2 * dim, 4 * dim, 4 * dim]
    weights.layer("encoder.conv1", dim, 3, (3, 3, 3))
    _vae_stages(weights, "encoder.downsamples", dim, widths, residual_blocks=2, time_stages=(1, 2))
    _vae_middle(weights, "encoder", 4 * dim)
    weights.gamma("encoder.head.0", 4 * dim, 3)
    weights.layer("encoder.head.2", 2 * LATENT_CHANNELS, 4 * dim, (3, 3, 3))
    weights.layer("conv1", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, (1, 1, 1))
    weights.layer("conv2", LATENT_CHANNELS, LATENT_CHANNELS, (1, 1, 1))
    weights.layer("decoder.conv1", 4 * dim, LATENT_CHANNELS, (3, 3, 3))
    _vae_middle(weights, "decoder", 4 * dim)
    _vae_stages(weights, "decoder.upsamples", 4 * dim, widths[::-1], residual_blocks=3, time_stages=(0, 1))
    weights.gamma("decoder.head.0", dim, 3)
    weights.layer("decoder.head.2", 3, dim, (3, 3, 3))
    return weights


def _vae_stages(
    weights: Weights,
    name: str,
    in_dim: int,
    widths: list[int],
    residual_blocks: int,
    time_stages: tuple[int, ...],
) -> None:
    decoder = name.startswith("decoder")
    index = 0
    for stage, width in enumerate(widths):
        for _ in range(residual_blocks):
            _vae_residual(weights, f"{name}.{index}", width, in_dim)
            in_dim = width
            index += 1
        if stage == len(widths) - 1:
            return
        # The decoder halves its width with each enlargement in space, and doubles frames as channels.
        out_dim = width // 2 if decoder else width
        weights.layer(f"{name}.{index}.resample.1", out_dim, width, (3, 3))
        if stage in time_stages:
            weights.layer(f"{name}.{index}.time_conv", width * (2 if decoder else 1), width, (3, 1, 1))
        in_dim = out_dim
        index += 1


def _vae_middle(weights: Weights, name: str, dim: int) -> None:
    _vae_residual(weights, f"{name}.middle.0", dim, dim)
    weights.gamma(f"{name}.middle.1.norm", dim, 2)
    weights.layer(f"{name}.middle.1.to_qkv", 3 * dim, dim, (1, 1))
    weights.layer(f"{name}.middle.1.proj", dim, dim, (1, 1))
    _vae_residual(weights, f"{name}.middle.2", dim, dim)


def _vae_residual(weights: Weights, name: str, out_dim: int, in_dim: int) -> None:
    weights.gamma(f"{name}.residual.0", in_dim, 3)
    weights.layer(f"{name}.residual.2", out_dim, in_dim, (3, 3, 3))
    weights.gamma(f"{name}.residual.3", out_dim, 3)
    weights.layer(f"{name}.residual.6", out_dim, out_dim, (3, 3, 3))
    if in_dim != out_dim:
        weights.layer(f"{name}.shortcut", out_dim, in_dim, (1, 1, 1))


def make_umt5(
    path: Path | str,
    dim: int = 4096,
    head_dim: int = 8,
    ffn_dim: int = 8,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Path:
    """A one-layer, one-head UMT5 encoder with a character vocabulary inside the file, as ComfyUI wants it."""
    return umt5_weights(dim, head_dim, ffn_dim, Weights(seed, dtype)).save(path)


def umt5_weights(
    dim: int, head_dim: int, ffn_dim: int, weights: Weights, heads: int = 1, layers: int = 1, vocabulary: int = 0
) -> Weights:
    """`weights` with the tensors of a UMT5 encoder; UMT5-XXL has dim 4096, head_dim 64, ffn_dim 10240, heads 64,
    layers 24 and a vocabulary of 256384 (0: as many as it has characters)."""
    tokenizer, vocab_size = _tokenizer()
    weights.normal("shared.weight", (vocabulary or vocab_size, dim), 1.0)
    for number in range(layers):
        block = f"encoder.block.{number}.layer"
        for projection in ("q", "k", "v"):
            weights.normal(f"{block}.0.SelfAttention.{projection}.weight", (heads * head_dim, dim), dim**-0.5)
        weights.normal(f"{block}.0.SelfAttention.o.weight", (dim, heads * head_dim), (heads * head_dim) ** -0.5)
        weights.normal(f"{block}.0.SelfAttention.relative_attention_bias.weight", (32, heads), 0.1)
        weights.norm(f"{block}.0.layer_norm", dim)
        for projection in ("wi_0", "wi_1"):
            weights.normal(f"{block}.1.DenseReluDense.{projection}.weight", (ffn_dim, dim), dim**-0.5)
        weights.normal(f"{block}.1.DenseReluDense.wo.weight", (dim, ffn_dim), ffn_dim**-0.5)
        weights.norm(f"{block}.1.layer_norm", dim)
    weights.norm("encoder.final_layer_norm", dim)
    weights.tensors["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    return weights


def _tokenizer() -> tuple[bytes, int]:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(),
        model_writer=model,
        model_type="char",
        vocab_size=len(string.printable) + 3,
        hard_vocab_limit=False,
        character_coverage=1.0,
        # As in UMT5's own tokenizer.
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return model.getvalue(), processor.get_piece_size()


def _sentences() -> Iterator[str]:
    characters = string.ascii_letters + string.digits + string.punctuation
    yield characters
    yield " ".join(characters)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random-weight Wan2.1 file.")
    kinds = parser.add_subparsers(required=True)
    makers = {make_dit: ("dim", "ffn_dim", "layers", "in_dim"), make_vae: ("dim",), make_umt5: ()}
    for make, sizes in makers.items():
        kind = kinds.add_parser(make.__name__.removeprefix("make_"), help=make.__doc__.splitlines()[0])
        kind.set_defaults(make=make)
        kind.add_argument("path", type=Path)
        for name in (*sizes, "seed"):
            kind.add_argument(f"--{name.replace('_', '-')}", type=int, default=argparse.SUPPRESS)
        kind.add_argument("--dtype", type=_dtype, default=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    print(options.pop("make")(**options))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise argparse.ArgumentTypeError(f"torch has no type {name!r}; choose float32, float16 or bfloat16.")
    return dtype


if __name__ == "__main__":
    main()
