"""Loads a small UMT5 file as ComfyUI's CLIP object for Wan; the stock loader only takes the full size."""

from pathlib import Path

import torch

# ComfyUI recognises UMT5-XXL by this tensor: 0.3.75 by its last size, newer versions by its first.
RECOGNISED_BY = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
RECOGNISED_SHAPE = (10240, 4096)


def load_small_text_encoder(path: Path | str):
    """Load a small UMT5 file, such as tests/world/umt5.safetensors, as CLIP."""
    import comfy.sd
    import comfy.utils

    state_dict = comfy.utils.load_torch_file(str(path), safe_load=True)
    if hasattr(comfy.utils, "convert_old_quants"):  # as load_clip does it, where it knows newer forms of fp8
        state_dict, _ = comfy.utils.convert_old_quants(state_dict)
    config = config_from_shapes(state_dict)
    # Expanded, so that it costs no memory. ComfyUI also takes the encoder's type from it.
    marker = torch.zeros((), dtype=state_dict["shared.weight"].dtype)
    state_dict[RECOGNISED_BY] = marker.expand(RECOGNISED_SHAPE)
    return comfy.sd.load_text_encoder_state_dicts(
        [state_dict],
        clip_type=comfy.sd.CLIPType.WAN,
        model_options={"umt5xxl_model_config": config},
    )


def config_from_shapes(state_dict) -> dict[str, int]:
    """The sizes that differ from UMT5-XXL, read from the tensors of a UMT5 encoder."""
    layer = "encoder.block.0.layer.{}.{}.weight"
    needed = {
        "embedding": "shared.weight",
        "query": layer.format(0, "SelfAttention.q"),
        "bias": layer.format(0, "SelfAttention.relative_attention_bias"),
        "feed_forward": layer.format(1, "DenseReluDense.wi_0"),
    }
    missing = [name for name in needed.values() if name not in state_dict]
    if missing:
        raise ValueError(f"The file lacks {missing}, so it is no UMT5 encoder; name a UMT5 file.")
    shapes = {name: tuple(state_dict[key].shape) for name, key in needed.items()}
    num_heads = shapes["bias"][1]
    return {
        "vocab_size": shapes["embedding"][0],
        "d_model": shapes["embedding"][1],
        "d_kv": shapes["query"][0] // num_heads,
        "num_heads": num_heads,
        "d_ff": shapes["feed_forward"][0],
        "num_layers": _num_layers(state_dict),
    }


def _num_layers(state_dict) -> int:
    # Counted without gaps: block 23 may be there for ComfyUI's recognition only.
    layer = 0
    while f"encoder.block.{layer}.layer.0.layer_norm.weight" in state_dict:
        layer += 1
    return layer
