"""Captions are plain text, and their embeddings are ComfyUI's."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.tests.support import tools
from wantune.tests.world import random_models
from wantune.trainer.base.errors import UserError
from wantune.trainer.wan_diffusers.text import SentencePiece, TokenizerFile, _model, load_text_encoder

pytestmark = pytest.mark.usefixtures("comfy")

CAPTIONS = (
    "a woman in an orange suit", "", "   two  spaces\nand a line ", "(vocaloid:1.4), ((a)) [girl]", r"\(escaped\)",
    "embedding:zwx", "</s> and <pad> are words here", "ein Mädchen, 猫がいる, \U0001f431 é",
    "a very long caption " * 40,
)
"""Of which ComfyUI's prompts read three otherwise, and the last has more tokens than Wan was trained on."""


@pytest.fixture(scope="module")
def encoder(umt5_file):
    return load_text_encoder(umt5_file)


@pytest.fixture(scope="module")
def theirs(comfy, umt5_file):
    from wantune.nodes.backend.encoders import CaptionEncoder

    return CaptionEncoder(tools.load_clip(umt5_file))


@pytest.mark.parametrize("caption", CAPTIONS)
def test_an_embedding_is_that_of_comfyui(encoder, theirs, caption):
    text_LD, expected = encoder.encode(caption), theirs.encode(caption)
    assert text_LD.dtype == torch.float32 and not text_LD.is_inference()
    torch.testing.assert_close(text_LD, expected, rtol=0, atol=1e-5)


def test_the_end_is_a_token_and_nothing_is_cut_off(encoder):
    assert encoder.encode("").shape == (1, 64) and len(encoder.encode(CAPTIONS[-1])) > 512
    assert not torch.allclose(encoder.encode("(a)"), encoder.encode("[a]"))


def test_the_small_worlds_text_encoder_is_read_from_its_shapes(theirs):
    from wantune.nodes.backend.encoders import CaptionEncoder

    expected = CaptionEncoder(tools.load_clip()).encode("three digit in red")
    found = load_text_encoder(tools.WORLD / "umt5.safetensors").encode("three digit in red")
    assert found.shape[1] == 4096 and found.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_umt5_xxl_is_read_from_its_shapes():
    """Without memory: names and shapes of the real one."""
    weights = random_models.umt5_weights(
        4096, 64, 10240, random_models.Weights(0, torch.bfloat16, "meta"), 64, 24, 256384).tensors
    del weights["spiece_model"]
    config = _model(weights, {}).config
    assert (config.num_layers, config.num_heads, config.d_kv, config.d_ff, config.vocab_size) == (
        24, 64, 64, 10240, 256384)


def in_fp8(tensors: dict, scale_name: str) -> tuple[dict, dict]:
    """The tensors with Linears in fp8, as ComfyUI's files hold them, and those that they stand for."""
    stored, meant = dict(tensors), {name: value.float() if value.is_floating_point() else value
                                    for name, value in tensors.items()}
    for name, value in tensors.items():
        if value.ndim == 2 and name.startswith("encoder") and "bias" not in name:
            scale = value.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            stored[name.replace(".weight", scale_name)] = scale
            meant[name] = stored[name].float() * scale
    return stored, meant


@pytest.mark.parametrize("scale_name", [".scale_weight", ".weight_scale"])
def test_fp8_weights_are_kept_and_computed_with_their_scales(umt5_file, tmp_path, scale_name):
    stored, meant = in_fp8(load_file(umt5_file), scale_name)
    is_old = scale_name == ".scale_weight"
    beside = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)} if is_old else {
        "encoder.block.0.layer.0.SelfAttention.q.comfy_quant": torch.zeros(4, dtype=torch.uint8)}
    save_file(stored | beside, tmp_path / "fp8.safetensors")
    save_file(meant, tmp_path / "fp32.safetensors")
    small, full = load_text_encoder(tmp_path / "fp8.safetensors"), load_text_encoder(tmp_path / "fp32.safetensors")
    torch.testing.assert_close(small.encode("a (cat)"), full.encode("a (cat)"), rtol=0, atol=1e-5)
    if is_old:  # which both versions of ComfyUI read
        from wantune.nodes.backend.encoders import CaptionEncoder

        theirs = CaptionEncoder(tools.load_clip(tmp_path / "fp8.safetensors")).encode("a (cat)")
        torch.testing.assert_close(small.encode("a (cat)"), theirs, rtol=0, atol=1e-5)
    kept = {value.dtype for name, value in small._model.state_dict().items() if name.endswith(".stored")}
    assert kept == {torch.float8_e4m3fn} and small.id != full.id


def test_a_folder_that_transformers_wrote_is_the_same_encoder(encoder, umt5_file, tmp_path):
    """Of two shards, with the tokenizer as its authors stored it, and then as tokenizer.json alone."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(**{name: getattr(encoder._model.config, name) for name in (
        "vocab_size", "d_model", "d_kv", "num_heads", "d_ff", "num_layers")}, feed_forward_proj="gated-gelu")
    model, tensors = UMT5EncoderModel(config).half(), load_file(umt5_file)
    proto = tensors.pop("spiece_model").numpy().tobytes()
    model.load_state_dict(tensors, strict=False)
    model.save_pretrained(tmp_path / "text_encoder", max_shard_size="20KB")
    assert len(list((tmp_path / "text_encoder").glob("*-of-*.safetensors"))) > 1
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(proto)
    model.float().save_pretrained(tmp_path / "wide" / "text_encoder", max_shard_size="20KB")
    for path in (tmp_path, tmp_path / "text_encoder"):
        assert load_text_encoder(path).id == encoder.id
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "wide" / "tokenizer")
    assert load_text_encoder(tmp_path / "wide").id == encoder.id, "16 bits, stored in 32"
    (tmp_path / "tokenizer" / "spiece.model").unlink()
    write_tokenizer_file(proto, tmp_path / "tokenizer" / "tokenizer.json")
    folder = load_text_encoder(tmp_path)
    assert folder.id != encoder.id, "words may be read otherwise"
    for caption in (CAPTIONS[0], CAPTIONS[1], CAPTIONS[3], CAPTIONS[6], CAPTIONS[8]):
        torch.testing.assert_close(folder.encode(caption), encoder.encode(caption), rtol=0, atol=1e-5)
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="holds no tokenizer; give a diffusers folder with text_encoder and tokenizer"):
        load_text_encoder(tmp_path)


def write_tokenizer_file(proto: bytes, path) -> None:
    """The same words as transformers writes them, with a truncation and specials that must not matter."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    words = sentencepiece.SentencePieceProcessor(model_proto=proto)
    vocabulary = [(words.id_to_piece(number), words.get_score(number)) for number in range(words.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=words.unk_id()))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", words.eos_id())])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<pad>", special=True)])
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(path))
    assert TokenizerFile(path)("")[-1] == words.eos_id()


def test_what_is_no_text_encoder_is_refused(umt5_file, vae_file, tmp_path, monkeypatch):
    tensors = load_file(umt5_file)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_text_encoder(vae_file)
    save_file({"spiece_model": tensors["spiece_model"]}, tmp_path / "empty.safetensors")
    with pytest.raises(UserError, match="The file holds no UMT5 encoder; load Wan's text encoder"):
        load_text_encoder(tmp_path / "empty.safetensors")
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_file(tensors | {name: tensors[name][:, :8].contiguous()}, tmp_path / "packed.safetensors")
    with pytest.raises(UserError, match=r"encoder.block.1.layer.1.DenseReluDense.wo is missing, of another size, or "):
        load_text_encoder(tmp_path / "packed.safetensors")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="package sentencepiece, which is missing; install it with"):
        SentencePiece(b"")
