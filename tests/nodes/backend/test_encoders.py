"""Captions are read as they are written, and only by the text encoder that Wan was trained with."""

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError, content_hash
from wantune.trainer.data import scan
from wantune.trainer.encoded.cache import locate
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store, read_tensor
from wantune.trainer.settings.data import DatasetConfig

pytestmark = pytest.mark.usefixtures("comfy")

CAPTIONS = (
    "(vocaloid), a girl", "a (16:9) frame", "(left:0) and (right:2)", "(a:1e30)", "((deep) nest", "a smile :) here",
    r"already \(escaped\)", r"C:\pictures\(new)", "(unclosed", "ends )", "a [b] {c|d} <e:f> # g", "()",
)
"""All but the last but one mean something in ComfyUI's prompts."""


@pytest.fixture(scope="module")
def clip(comfy):
    return tools.load_clip()


def text_encode(clip, prompt: str) -> torch.Tensor:
    """text_LD of CLIP Text Encode, without the padding."""
    import nodes

    with torch.inference_mode():
        text_LD = nodes.CLIPTextEncode().encode(clip, prompt)[0][0][0][0].float()
    used = text_LD.abs().sum(1).nonzero()
    return text_LD[: int(used[-1]) + 1]


def by_hand(caption: str) -> str:
    return caption.replace("(", r"\(").replace(")", r"\)")


def ours(clip, caption: str, prompt_syntax: bool = False) -> torch.Tensor:
    from wantune.nodes.backend.encoders import CaptionEncoder

    return CaptionEncoder(clip, prompt_syntax).encode(caption)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_is_plain_text(clip, caption):
    assert torch.equal(ours(clip, caption), text_encode(clip, by_hand(caption)))


@pytest.mark.parametrize("caption", CAPTIONS[:3])
def test_with_prompt_syntax_a_caption_is_read_as_clip_text_encode_reads_it(clip, caption):
    assert torch.equal(ours(clip, caption, True), text_encode(clip, caption))
    assert not torch.equal(ours(clip, caption, True), ours(clip, caption))


@pytest.mark.parametrize("caption", ["a photo embedding:zwx", "embedding:zwx, a photo"])
def test_the_name_of_an_embedding_in_a_caption_is_no_file(clip, caption, tmp_path, monkeypatch):
    inner = getattr(clip.tokenizer, clip.tokenizer.clip)
    monkeypatch.setattr(inner, "embedding_directory", [str(tmp_path)])
    width = inner.embedding_size
    save_file({"umt5xxl": torch.ones(2, width)}, tmp_path / "zwx.safetensors")
    assert (text_encode(clip, caption) == ours(clip, caption, True)).all()
    plain = ours(clip, caption)
    expected = SimpleNamespace(input_ids=inner.tokenizer(caption)["input_ids"])
    assert len(plain) == len(expected.input_ids) and len(plain) != len(text_encode(clip, caption))
    assert inner.embedding_directory == [str(tmp_path)] and inner.embedding_identifier == "embedding:"


def test_a_caption_without_prompt_syntax_keeps_its_place_in_the_cache(clip, tmp_path):
    from wantune.nodes.backend.encoders import CaptionEncoder

    plain, prompts = CaptionEncoder(clip), CaptionEncoder(clip, prompt_syntax=True)
    assert plain.id == prompts.id
    ordinary = ["a cat, 4k", r"back\slash", "1:2 [b]", ""]
    assert [plain.key_of(caption) for caption in ordinary] == ordinary
    special = [caption for caption in CAPTIONS if re.search("[()]", caption)] + ["embedding:zwx"]
    keys = {caption: plain.key_of(caption) for caption in special}
    assert all(key != caption for caption, key in keys.items()) and len({*keys.values()}) == len(special)
    assert [prompts.key_of(caption) for caption in special] == special


def cached(folder, clip, caption: str, prompt_syntax: bool = False):
    """(the dataset, the embedding of its caption) through scan and cache."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec

    (folder / "cat.txt").write_text(caption)
    manifest = scan.scan(DatasetConfig(folder=str(folder), resolution=64, trigger_word=""))
    codec, encoder = WanCodec(tools.load_vae()), CaptionEncoder(clip, prompt_syntax)
    store = Store(folder.parent / "cache")
    dataset = tools.drained(fill(manifest, store, codec, {"text": encoder}))[1]
    before = locate(manifest.samples, store, codec.id, {"text": encoder.id})
    old = [sample.captions for sample in before] == [sample.captions for sample in dataset.samples]
    digest = content_hash(manifest.digest, [], codec.id, encoder.id)
    return dataset, read_tensor(dataset.samples[0].captions[0]["text"]).float(), old and digest == dataset.digest


def test_the_cache_tells_the_two_ways_to_read_a_caption_apart(clip, tmp_path):
    from PIL import Image

    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "cat.png")
    plain, plain_LD, is_old = cached(folder, clip, "(cat)")
    assert not is_old and torch.equal(plain_LD, text_encode(clip, r"\(cat\)"))
    prompt, prompt_LD, is_old = cached(folder, clip, "(cat)", True)
    assert is_old and torch.equal(prompt_LD, text_encode(clip, "(cat)"))
    assert plain.digest != prompt.digest
    assert cached(folder, clip, "a cat")[2], "files and runs of captions without brackets are found again"


@pytest.mark.parametrize("kind", ["MOCHI", "SD3", "LTXV", "PIXART", "COSMOS"])
def test_another_text_encoder_is_refused_by_its_name(kind):
    from wantune.nodes.backend.encoders import CaptionEncoder

    clip = small_t5(kind)
    with pytest.raises(UserError, match="The text encoder is a .*(Mochi|SD3|LTXV?|PixArt|Cosmos).*load umt5_xxl with"):
        CaptionEncoder(clip)


def small_t5(kind: str):
    """A CLIP as Load CLIP makes it of T5-XXL, on the meta device: 4.7 billion values would not fit."""
    import comfy.sd
    import comfy.text_encoders.cosmos
    import comfy.text_encoders.genmo
    import comfy.text_encoders.lt
    import comfy.text_encoders.pixart_t5
    import comfy.text_encoders.sd3_clip

    modules = comfy.text_encoders
    made = {"MOCHI": modules.genmo.mochi_te, "LTXV": modules.lt.ltxv_te, "PIXART": modules.pixart_t5.pixart_te,
            "COSMOS": modules.cosmos.te,
            "SD3": lambda: modules.sd3_clip.sd3_clip(clip_l=False, clip_g=False, t5=True)}[kind]()
    config = {"num_layers": 1, "d_model": 8, "d_ff": 8, "d_kv": 8, "num_heads": 1, "vocab_size": 8}
    return SimpleNamespace(cond_stage_model=made(model_options={"t5xxl_model_config": config}))
