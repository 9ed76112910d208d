"""Names of Wan's modules in LoRA files: those of any trainer become Wan's own, such as `blocks.0.self_attn.q`."""

from __future__ import annotations

import re

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "norm_q": "norm_q", "norm_k": "norm_k"}

# diffusers' names of Wan's modules (scripts/convert_wan_to_diffusers.py in huggingface/diffusers); norm2 and norm3
# change places there, and the other of the two has no parameters
_BLOCK = {
    f"{theirs}.{name}": f"{ours}.{leaf}"
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")) for leaf, name in _ATTENTION.items()
} | {
    f"{theirs}.{name}": f"{ours}.o"
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")) for name in ("to_out.0", "to_out")
} | {
    "attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "norm2": "norm3",
    "scale_shift_table": "modulation", "proj_in": "before_proj", "proj_out": "after_proj",
}
_BLOCK |= {ours: ours for ours in (*_BLOCK.values(), "norm1")}

_TOP = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head", "scale_shift_table": "head.modulation",
}
_TOP |= {ours: ours for ours in (*_TOP.values(), "patch_embedding", "vace_patch_embedding")}

_DIFFUSERS_BLOCK, _DIFFUSERS_TOP = (
    {ours: theirs for theirs, ours in reversed(table.items()) if theirs != ours} for table in (_BLOCK, _TOP))

_BLOCK_UNDERSCORED, _TOP_UNDERSCORED = (
    {theirs.replace(".", "_"): ours for theirs, ours in table.items()} for table in (_BLOCK, _TOP))

_UNDERSCORE_PREFIXES = ("lora_unet__", "lora_unet_", "lycoris_", "lora_transformer_")
_UNDERSCORED = re.compile(r"((?:vace_)?blocks)_(\d+)_(\w+)")

_PREFIXES = re.compile(
    r"(?:(?:base_model\.model|diffusion_model|transformer_2|transformer|model|pipeline|pipe|dit|module|_orig_mod|unet"
    r"|net)\.)+")
_IN_BLOCKS = re.compile(r"(.*\.)?((?:vace_)?blocks)\.(\d+)\.(.+)")
_NOT_OF_THE_MODEL = re.compile(r"(?:^|\.)(text_encoders?|te\d?|clip|vae|image_encoder|control\w*)\.")


def wan_name(module: str) -> str:
    """Wan's own name of a module, without any prefix; "" for what is no module of a diffusion model by its name.

    Names with underscores in place of dots (kohya's lora_unet_blocks_0_self_attn_q) are known as far as Wan's modules
    are; a dotted name that is not known is given without the prefixes that are.
    """
    for prefix in (*_UNDERSCORE_PREFIXES, ""):
        if module.startswith(prefix) and (known := _from_underscores(module.removeprefix(prefix))):
            return known
    if module.startswith(_UNDERSCORE_PREFIXES) or module.startswith("lora_te") or _NOT_OF_THE_MODEL.search(module):
        return ""
    bare = bare_name(module.replace("attn1.processor.", "attn1.").replace("attn2.processor.", "attn2."))
    found = _IN_BLOCKS.fullmatch(bare)
    if found and found[4] in _BLOCK:
        return f"{found[2]}.{found[3]}.{_BLOCK[found[4]]}"
    return _TOP.get(bare, bare)


def bare_name(module: str) -> str:
    """A dotted name without the prefixes that are known, in the words of its writer."""
    found = _PREFIXES.match(module)
    return module[found.end():] if found else module


def comfyui_names(name: str) -> tuple[str, str]:
    """The two names of a module in files that ComfyUI's loader reads: with dots, and with underscores."""
    return f"diffusion_model.{name}", f"lora_unet_{name.replace('.', '_')}"


def diffusers_name(name: str) -> str:
    """diffusers' name of a module that Wan calls `name`; the same where that is not known."""
    found = _IN_BLOCKS.fullmatch(name)
    if found and not found[1]:
        return f"{found[2]}.{found[3]}.{_DIFFUSERS_BLOCK.get(found[4], found[4])}"
    return _DIFFUSERS_TOP.get(name, name)


def core_underscored(module: str) -> str:
    """A name with underscores that is not known here, as ComfyUI would read it; the same for other names."""
    for prefix in _UNDERSCORE_PREFIXES:
        if module.startswith(prefix):
            return f"lora_unet_{module.removeprefix(prefix)}"
    return module


def _from_underscores(name: str) -> str:
    found = _UNDERSCORED.fullmatch(name)
    if found and found[3] in _BLOCK_UNDERSCORED:
        return f"{found[1]}.{found[2]}.{_BLOCK_UNDERSCORED[found[3]]}"
    return _TOP_UNDERSCORED.get(name, "") if "_" in name or name == "proj_out" else ""
