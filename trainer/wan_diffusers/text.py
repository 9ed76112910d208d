"""transformers' UMT5 encoder as the ConditionEncoder of captions. A caption is plain text.

Weights stay as they are stored, in 16 bits or in fp8, and are computed with in fp32, as ComfyUI does it: so the
embeddings are its own, and the text encoder of 14B models takes 11 or 6 GB and not 22.

Shape legend: L text tokens, D width of the text encoder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ..base.errors import UserError, content_hash
from .weights import fill, fingerprint, read

WANTED = "Wan's text encoder (UMT5-XXL, such as umt5_xxl_fp8_e4m3fn_scaled.safetensors)"

_SCALES = (".scale_weight", ".weight_scale")
"""How names of a weight's scale end in ComfyUI's fp8 files, older and newer ones."""

_BESIDE = re.compile(r".*\.(scale_input|input_scale|comfy_quant)|scaled_fp8|spiece_model")
"""What else stands in files and is no weight: how products in fp8 are computed, and the tokenizer."""

_WORDS = "shared.weight", "encoder.embed_tokens.weight"
"""Both names of the embedding of words; files have one or both."""


_BLOCK = re.compile(r"encoder\.block\.(\d+)\.")


class Tokenizer(Protocol):
    """UMT5's words, without a limit to their number."""

    id: str

    def __call__(self, text: str) -> list[int]:
        """The numbers of the tokens, with the end token after them."""


class SentencePiece:
    """The tokenizer as its authors stored it: spiece.model, or `spiece_model` in ComfyUI's files.

    Raises:
        UserError: the package sentencepiece is missing.
    """

    def __init__(self, proto: bytes) -> None:
        try:
            import sentencepiece
        except ImportError:
            raise UserError("The tokenizer of this text encoder is read with the package sentencepiece, which is "
                            "missing; install it with `python -m pip install sentencepiece`.") from None
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto, add_eos=True)
        self.id = hashlib.sha256(proto).hexdigest()

    def __call__(self, text: str) -> list[int]:
        return self._processor.encode(text)


class TokenizerFile:
    """The tokenizer as newer diffusers folders hold it: tokenizer.json alone.

    Raises:
        UserError: it is another tokenizer than UMT5's.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Read

        content = path.read_bytes()
        said = json.loads(content)
        if said["model"]["type"] != "Unigram":
            raise UserError(f"{path} holds a {said['model']['type']} tokenizer and not UMT5's; give the tokenizer that "
                            "belongs to the text encoder.")
        # "</s>" in a caption is text, as for SentencePiece; the end token is added by its number
        special = {token["content"] for token in said["added_tokens"] if token["special"]}
        said["model"]["vocab"] = [["\0" + piece if piece in special else piece, score]
                                  for piece, score in said["model"]["vocab"]]
        said |= {"added_tokens": [], "truncation": None, "padding": None}
        self._tokenizer = Read.from_str(json.dumps(said))
        self.id = hashlib.sha256(content).hexdigest()

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids


class Stored(nn.Module):
    """A Linear without bias whose weight is cast to the dtype of its input when it is used.

    Args:
        scale: of an fp8 weight; None for 1.
    """

    weight = None
    """UMT5 asks for the dtype of a `weight`, and would cast its activations to it."""

    def __init__(self, stored: torch.Tensor, scale: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.stored.to(x.dtype)
        return F.linear(x, weight if self.scale is None else weight * self.scale.to(x.dtype))


class Umt5Encoder:
    """UMT5EncoderModel and its tokenizer."""

    def __init__(self, model, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.id = content_hash("transformers UMT5", fingerprint(model.state_dict()), tokenizer.id)

    @torch.no_grad()
    def encode(self, caption: str) -> torch.Tensor:
        """text_LD, fp32 on the CPU, of all tokens, however many, and the end token; without padding."""
        words = self._model.shared.weight
        token_1L = torch.tensor([self._tokenizer(caption)], device=words.device)
        embedded_1LD = F.embedding(token_1L, words).float()
        return self._model(inputs_embeds=embedded_1LD).last_hidden_state[0].float().cpu()


def load_text_encoder(path: Path, device: torch.device | str = "cpu") -> Umt5Encoder:
    """The text encoder of a diffusers folder (`text_encoder` and `tokenizer`), or of ComfyUI's single file.

    Raises:
        UserError: there is no such file, it holds another model or no tokenizer, or a package is missing.
    """
    weights = read(path, "text_encoder", _compact)
    tokenizer = _tokenizer(path, weights)
    scales = {name.removesuffix(end): value for name, value in weights.items() for end in _SCALES if name.endswith(end)}
    weights = {name: value for name, value in weights.items()
               if not name.endswith(_SCALES) and not _BESIDE.fullmatch(name)}
    weights = _without_marks(weights)
    if words := [weights.pop(name) for name in _WORDS if name in weights]:
        weights[_WORDS[0]] = words[0]
    return Umt5Encoder(_model(weights, scales).to(device), tokenizer)


def _compact(value: torch.Tensor) -> torch.Tensor:
    """The same in 16 bits where that loses nothing: diffusers' folders of Wan hold 16 bits as fp32."""
    for dtype in (torch.bfloat16, torch.float16):
        if value.dtype == torch.float32 and torch.equal(value.to(dtype).float(), value):
            return value.to(dtype)
    return value


def _without_marks(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without blocks of a single tensor: small files have one, by which ComfyUI knows UMT5-XXL."""
    blocks = {name: match[1] for name in weights if (match := _BLOCK.match(name))}
    counts = Counter(blocks.values())
    return {name: value for name, value in weights.items() if counts[blocks.get(name)] != 1}


def _tokenizer(path: Path, weights: Mapping[str, torch.Tensor]) -> Tokenizer:
    if "spiece_model" in weights:
        return SentencePiece(weights["spiece_model"].numpy().tobytes())
    folders = [path / "tokenizer", path.parent / "tokenizer", path] if path.is_dir() else []
    for folder in folders:
        if (folder / "spiece.model").is_file():
            return SentencePiece((folder / "spiece.model").read_bytes())
        if (folder / "tokenizer.json").is_file():
            return TokenizerFile(folder / "tokenizer.json")
    raise UserError(f"{path} holds no tokenizer; give a diffusers folder with text_encoder and tokenizer, or ComfyUI's "
                    "own file, which holds one.")


def _model(weights: Mapping[str, torch.Tensor], scales: Mapping[str, torch.Tensor]):
    """A UMT5EncoderModel with its Linears `Stored`, and fp32 in all others but the embedding of words."""
    from accelerate import init_empty_weights
    from transformers import UMT5EncoderModel

    with init_empty_weights(include_buffers=False):
        model = UMT5EncoderModel(_config(weights))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    others = {name: value if name == _WORDS[0] else value.float() for name, value in weights.items()
              if name.removesuffix(".weight") not in linears}
    for name, module in linears.items():
        stored, scale = weights.get(f"{name}.weight"), scales.get(name)
        is_one = scale is None or scale.numel() == 1
        if stored is None or stored.shape != module.weight.shape or not stored.is_floating_point() or not is_one:
            raise UserError(f"The file is not {WANTED}, in 16 bits or fp8: {name} is missing, of another size, or "
                            f"quantised otherwise; load {WANTED}.")
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Stored(stored, scale))
    model.set_input_embeddings(nn.Embedding.from_pretrained(others.pop(_WORDS[0])))
    fill(model, others | _held(model), WANTED)
    return model


def _held(model: nn.Module) -> dict[str, torch.Tensor]:
    """What of the model is in its place already."""
    return {name: value for name, value in model.state_dict().items()
            if name in _WORDS or name.endswith((".stored", ".scale"))}


def _config(weights: Mapping[str, torch.Tensor]):
    """A UMT5Config; what no shape tells is that of UMT5-XXL (google/umt5-xxl, config.json)."""
    from transformers import UMT5Config

    first = "encoder.block.0.layer.{}.{}.weight"
    names = [_WORDS[0], *(first.format(0, f"SelfAttention.{name}") for name in ("q", "relative_attention_bias")),
             first.format(1, "DenseReluDense.wi_0")]
    if not all(name in weights for name in names):
        raise UserError(f"The file holds no UMT5 encoder; load {WANTED}.")
    words, query, bias, wide = (weights[name].shape for name in names)
    layers = {match[1] for name in weights if (match := _BLOCK.match(name))}
    return UMT5Config(
        vocab_size=words[0], d_model=words[1], d_kv=query[0] // bias[1], num_heads=bias[1], d_ff=wide[0],
        num_layers=len(layers), feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-6,
        relative_attention_num_buckets=bias[0], relative_attention_max_distance=128)
