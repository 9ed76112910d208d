"""Which Wan a transformer is by its shapes, and how it is called here and in diffusers.

Names here are ComfyUI's, which are those of Wan's own files, such as `blocks.0.self_attn.q`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..base.errors import UserError
from ..lora.names import wan_name
from ..model import families
from ..model.family import ModelFamily
from ..model.forms import NO_IMAGE, ONE, OTHERS, TRAINED, TWO, Form

HEAD_WIDTH = 128
"""Of each of Wan's attention heads."""

SUPPORTED = ("Wan2.1 T2V", "Wan2.1 I2V", "Wan2.1 FLF2V", "Wan2.1 Fun-Control", "Wan2.2 I2V", "Wan2.2 5B")
"""Families whose networks are diffusers' WanTransformer3DModel."""

_MARKS = {
    "vace_": "Wan VACE", "ref_conv.": "Wan2.2 Fun-Control, or another Wan with a reference image",
    "control_adapter.": "Wan Fun-Camera", "casual_audio_encoder.": "Wan2.2 S2V", "audio_proj.": "HuMo",
    "face_adapter.": "Wan2.2 Animate", "motion_encoder.": "Wan2.2 Animate", "patch_embedding_mask.": "Wan SCAIL 2",
    "patch_embedding_pose.": "Wan SCAIL", "patch_embedding_global.": "Wan2.2 WanDancer",
}
"""Beginnings of names that Wans have which are computed in a way of their own."""

UNREAD = {"Wan2.1 Fun-Control": ("ref_conv.",)}
"""Beginnings of names of what a family's files may hold and nothing reads: ComfyUI's node gives it nothing."""

Shapes = Mapping[str, Sequence[int]]
"""Of a transformer's parameters, by their names here."""


def comfyui_name(parameter: str) -> str:
    """The name here of a parameter, or of a module, of diffusers' transformer; also of one that has it already.

    Not of a block's norms that have no parameters, which change places with one that has.
    """
    module, dot, leaf = parameter.rpartition(".")
    if leaf in ("weight", "bias"):
        return f"{wan_name(module) or module}{dot}{leaf}"
    return wan_name(parameter) or parameter


def by_comfyui_name(names: Iterable[str]) -> dict[str, str]:
    """diffusers' names of parameters by those here."""
    return {comfyui_name(name): name for name in names}


def family_of(shapes: Shapes) -> ModelFamily:
    """The family of a transformer.

    Raises:
        UserError: it is no Wan, or one that diffusers' WanTransformer3DModel does not compute.
    """
    if not {"patch_embedding.weight", "head.head.weight", "head.modulation"} <= shapes.keys():
        raise UserError(f"This is no transformer of Wan (it has {next(iter(shapes), 'nothing')}); give a text-to-video "
                        "or image-to-video model of Wan2.1 or Wan2.2.")
    patch = shapes["patch_embedding.weight"]
    volume = patch[2] * patch[3] * patch[4]
    image = NO_IMAGE if "img_emb.proj.1.weight" not in shapes else TWO if "img_emb.emb_pos" in shapes else ONE
    form = Form(latent=shapes["head.head.weight"][0] // volume, channels=patch[1], image=image)
    read = [name for name in shapes if not name.startswith(UNREAD.get(TRAINED.get(form), ()))]
    marked = next((what for mark, what in _MARKS.items() if any(name.startswith(mark) for name in read)), None)
    return checked(form, marked)


def checked(form: Form, what: str | None = None) -> ModelFamily:
    """The family of a form.

    Args:
        what: the name of a Wan that is told by something else than its form.

    Raises:
        UserError: as `family_of`.
    """
    name = TRAINED.get(form)
    if what is not None or name not in SUPPORTED:
        raise UserError(f"The model is {what or name or OTHERS.get(form) or form.told()}; without ComfyUI "
                        f"{', '.join(SUPPORTED[:-1])} and {SUPPORTED[-1]} are trained, so train this one in ComfyUI.")
    return families.named(name)


def config_of(shapes: Shapes) -> dict[str, object]:
    """What diffusers' WanTransformer3DModel is made with, for a transformer of a family.

    Raises:
        UserError: a weight is missing.
    """
    for name in ("blocks.0.ffn.0.weight", "text_embedding.0.weight", "time_embedding.0.weight"):
        if name not in shapes:
            raise missing([name])
    ffn_dim, dim = shapes["blocks.0.ffn.0.weight"]
    patch = tuple(shapes["patch_embedding.weight"][2:])
    sees_image = "img_emb.proj.1.weight" in shapes
    return {
        "patch_size": patch,
        "num_attention_heads": dim // HEAD_WIDTH,
        "attention_head_dim": HEAD_WIDTH,
        "in_channels": shapes["patch_embedding.weight"][1],
        "out_channels": shapes["head.head.weight"][0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": ffn_dim,
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "image_dim": shapes["img_emb.proj.1.weight"][1] if sees_image else None,
        "added_kv_proj_dim": dim if sees_image else None,
        "pos_embed_seq_len": shapes["img_emb.emb_pos"][1] if "img_emb.emb_pos" in shapes else None,
    }


def missing(names: Sequence[str]) -> UserError:
    """The sentence about weights that a transformer lacks."""
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return UserError(f"The transformer has no {names[0]}{rest}, so it is not a whole one; take the whole file.")
