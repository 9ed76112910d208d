"""The small Wan world, and random files of the same format, open in the ComfyUI under test."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from wantune.tests.world import random_models
from wantune.tests.world_nodes.text_encoder import RECOGNISED_BY, config_from_shapes, load_small_text_encoder

pytestmark = pytest.mark.usefixtures("comfy")

WORLD = Path(__file__).parent
PROMPT = "a red GF Carty Chan digit moving right"
TOKENS = 17  # 16 pieces and the end of text


def load_dit(path):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path))


def load_vae(path):
    import comfy.sd
    import comfy.utils

    with torch.inference_mode():
        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


def encode_text(path, prompt):
    with torch.inference_mode():
        clip = load_small_text_encoder(path)
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]


def velocity(model, in_dim):
    """Output of the transformer alone for noise, with its weights already on the loading device."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    generator = torch.Generator().manual_seed(0)
    device = model.load_device
    conditions = {"context": torch.randn((1, 512, 4096), generator=generator).to(device)}
    if in_dim == random_models.IMAGE_TO_VIDEO_IN_DIM:
        conditions["clip_fea"] = torch.randn((1, 257, 1280), generator=generator).to(device)
    latent = torch.randn((1, in_dim, 2, 8, 8), generator=generator).to(device)
    with torch.inference_mode():
        time = torch.tensor([500.0], device=device)
        return model.model.diffusion_model(latent, time, transformer_options={}, **conditions).float().cpu()


def test_transformer_loads_as_text_to_video():
    model = load_dit(WORLD / "dit.safetensors").model
    assert type(model.model_config).__name__ == "WAN21_T2V"
    assert len(model.diffusion_model.blocks) == 4
    assert model.diffusion_model.dim == 256


def test_text_encoder_gives_512_rows_with_zeros_after_the_tokens():
    text_BLD = encode_text(WORLD / "umt5.safetensors", PROMPT).cpu()
    assert text_BLD.shape == (1, 512, 4096)
    assert text_BLD[:, :TOKENS].abs().amax(-1).min() > 0
    assert text_BLD[:, TOKENS:].abs().max() == 0


def test_text_encoder_tells_the_trigger_word_from_a_digit():
    path = WORLD / "umt5.safetensors"
    trigger, digit = (encode_text(path, f"{name} digit in red") for name in ("GF Carty Chan", "three"))
    assert not torch.equal(trigger, digit)


def test_text_encoder_refuses_a_file_that_is_none():
    with pytest.raises(ValueError, match="is no UMT5 encoder"):
        config_from_shapes({RECOGNISED_BY: torch.zeros(1)})


def test_vae_shapes():
    vae = load_vae(WORLD / "vae.safetensors")
    with torch.inference_mode():
        assert vae.encode(torch.rand(1, 64, 64, 3)).shape == (1, 16, 1, 8, 8)
        assert vae.encode(torch.rand(9, 64, 64, 3)).shape == (1, 16, 3, 8, 8)
        assert vae.decode(torch.zeros(1, 16, 3, 8, 8)).shape == (1, 9, 64, 64, 3)


def test_vae_reconstructs_every_nine():
    vae = load_vae(WORLD / "vae.safetensors")
    stills = sorted((WORLD / "nines").glob("*.png"))
    assert len(stills) == 12
    for path in stills:
        pixels = torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255)[None]
        with torch.inference_mode():
            restored = vae.decode(vae.encode(pixels)).reshape(pixels.shape).float().cpu()
        peak_signal_to_noise = -10 * torch.log10((restored - pixels).square().mean())
        assert peak_signal_to_noise > 27, f"{path.name}: {peak_signal_to_noise:.1f} dB"


def test_every_nine_has_a_caption_with_the_trigger_word():
    for still in (WORLD / "nines").glob("*.png"):
        assert still.with_suffix(".txt").read_text(encoding="utf-8").startswith("GF Carty Chan digit in ")


@pytest.mark.parametrize(("in_dim", "kind"), [(16, "WAN21_T2V"), (36, "WAN21_I2V")])
def test_random_transformer_is_recognised_and_of_order_one(tmp_path, in_dim, kind):
    model = load_dit(random_models.make_dit(tmp_path / "dit.safetensors", in_dim=in_dim))
    assert type(model.model.model_config).__name__ == kind
    assert not set(_keys(tmp_path / "dit.safetensors")) ^ set(model.model.diffusion_model.state_dict())
    assert 0.3 < velocity(model, in_dim).std() < 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_random_transformer_in_half_precision(tmp_path, dtype):
    path = random_models.make_dit(tmp_path / "dit.safetensors", layers=1, dtype=dtype)
    assert velocity(load_dit(path), 16).isfinite().all()


def test_random_transformer_depends_on_its_seed_alone(tmp_path):
    first, again, other = (
        random_models.make_dit(tmp_path / f"{name}.safetensors", layers=1, seed=seed).read_bytes()
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again != other


def test_random_vae_has_the_real_names_and_shapes(tmp_path):
    path = random_models.make_vae(tmp_path / "vae.safetensors", dim=8)
    assert _shapes(path) == _shapes(WORLD / "vae.safetensors")


@pytest.mark.parametrize("dim", [2, 4])
def test_random_vae_loads(tmp_path, dim):
    vae = load_vae(random_models.make_vae(tmp_path / "vae.safetensors", dim=dim))
    with torch.inference_mode():
        latent = vae.encode(torch.rand(5, 64, 64, 3))
        assert latent.shape == (1, 16, 2, 8, 8)
        assert 0.1 < latent.std() < 10
        assert vae.decode(latent).shape == (1, 5, 64, 64, 3)


def test_random_text_encoder_loads(tmp_path):
    text_BLD = encode_text(random_models.make_umt5(tmp_path / "umt5.safetensors"), "ab c").cpu()
    assert text_BLD.shape == (1, 512, 4096)
    used = int((text_BLD.abs().amax(-1) > 0).sum())
    assert used == len("_ab_c") + 1  # characters, each word's start, end of text
    assert 0.3 < text_BLD[:, :used].std() < 3


def test_random_models_refuse_impossible_sizes(tmp_path):
    with pytest.raises(ValueError, match="multiple of 128"):
        random_models.make_dit(tmp_path / "dit.safetensors", dim=100)
    with pytest.raises(ValueError, match="16 for text-to-video, 36"):
        random_models.make_dit(tmp_path / "dit.safetensors", in_dim=20)
    with pytest.raises(ValueError, match="even number"):
        random_models.make_vae(tmp_path / "vae.safetensors", dim=3)


def _keys(path):
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _shapes(path):
    with safe_open(path, "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
