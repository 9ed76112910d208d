"""Latents and pixels are ComfyUI's, whether the VAE lies in its single file or in a diffusers folder."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.tests.support import frame_models, tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.model.wan22 import WAN22_5B
from wantune.trainer.wan_diffusers.codec import _vae, load_codec

pytestmark = pytest.mark.usefixtures("comfy")

FAMILIES = pytest.mark.parametrize("family", [WAN21_T2V, WAN22_5B], ids=lambda family: family.name)


@pytest.fixture(scope="module")
def files(vae_file, vae22_file):
    return {WAN21_T2V: vae_file, WAN22_5B: vae22_file}


@pytest.fixture(scope="module")
def theirs(comfy, files):
    return {WAN21_T2V: tools.load_vae(), WAN22_5B: frame_models.wan22_vae()}


@FAMILIES
def test_latents_and_pixels_are_those_of_comfyui(files, theirs, family, clip_FHW3):
    from wantune.nodes.backend.encoders import WanCodec
    from wantune.nodes.media.sampling import decode

    codec, comfy_codec = load_codec(files[family], family), WanCodec(theirs[family], family)
    for frames in (1, 9):
        latent_CFHW, expected = codec.encode(clip_FHW3[:frames]), comfy_codec.encode(clip_FHW3[:frames])
        assert latent_CFHW.dtype == torch.float32 and latent_CFHW.device.type == "cpu"
        torch.testing.assert_close(latent_CFHW, expected, rtol=0, atol=1e-5)
        pixels_FHW3 = codec.decode(latent_CFHW, "a clip")
        wanted = decode(theirs[family], family.denormalize(expected[None]), "a clip")
        assert pixels_FHW3.shape == clip_FHW3[:frames].shape and pixels_FHW3.dtype == np.uint8
        assert np.abs(pixels_FHW3.astype(int) - wanted.astype(int)).max() <= 1, "but for what rounds the other way"
        assert pixels_FHW3.std() > 5, "not one colour, which would be equal too"


@FAMILIES
def test_a_folder_that_diffusers_wrote_is_the_same_vae(files, family, clip_FHW3, tmp_path):
    from diffusers import AutoencoderKLWan

    single = load_codec(files[family], family)
    single._vae.save_pretrained(tmp_path / "vae")
    for path in (tmp_path, tmp_path / "vae"):
        folder = load_codec(path, family)
        assert folder.id == single.id and torch.equal(folder.encode(clip_FHW3), single.encode(clip_FHW3))
    vae = AutoencoderKLWan.from_pretrained(tmp_path / "vae")  # with the sizes in config.json, not in the shapes
    pixels = torch.from_numpy(clip_FHW3).movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        expected = family.normalize(vae.encode(pixels).latent_dist.mode())[0]
    torch.testing.assert_close(single.encode(clip_FHW3), expected, rtol=0, atol=1e-5)
    assert vae.config.scale_factor_spatial == family.stride_FHW[1] and vae.config.z_dim == family.latent_channels


@FAMILIES
def test_the_full_size_is_read_from_its_shapes(comfy, family):
    """Without memory: names and shapes of the real VAEs, as ComfyUI makes them."""
    import comfy.ldm.wan.vae
    import comfy.ldm.wan.vae2_2

    with torch.device("meta"):
        if family == WAN22_5B:
            vae = comfy.ldm.wan.vae2_2.WanVAE(
                dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])
        else:
            vae = comfy.ldm.wan.vae.WanVAE(
                dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
                temperal_downsample=[False, True, True], dropout=0.0)
    found = _vae(vae.state_dict(), torch.bfloat16, "this very VAE")
    assert sum(value.numel() for value in found.parameters()) == sum(value.numel() for value in vae.parameters())


def test_the_id_changes_with_weights_and_dtype(files, tmp_path):
    tensors = load_file(files[WAN21_T2V])
    tensors["conv1.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    ids = {load_codec(path, WAN21_T2V, dtype=dtype).id for path, dtype in (
        (files[WAN21_T2V], None), (files[WAN21_T2V], torch.bfloat16), (tmp_path / "other.safetensors", None))}
    assert len(ids) == 3


def test_another_vae_and_what_is_no_vae_are_refused(files, tmp_path):
    with pytest.raises(UserError, match=r"The VAE has 48 latent channels; load Wan2.1's VAE \(wan_2.1_vae"):
        load_codec(files[WAN22_5B], WAN21_T2V)
    with pytest.raises(UserError, match=r"The VAE has 16 latent channels; load Wan2.2's VAE \(wan2.2_vae"):
        load_codec(files[WAN21_T2V], WAN22_5B)
    with pytest.raises(UserError, match="The file holds no VAE of Wan; load Wan2.1's VAE"):
        load_codec(tools.WORLD / "umt5.safetensors", WAN21_T2V)
    with pytest.raises(UserError, match="There is no .*nothing; give a safetensors file, or a diffusers folder"):
        load_codec(tmp_path / "nothing", WAN21_T2V)
    with pytest.raises(UserError, match="holds no safetensors file"):
        load_codec(tmp_path, WAN21_T2V)
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(b"not one")
    with pytest.raises(UserError, match="holds several models, such as a.safetensors and b.safetensors; name one"):
        load_codec(tmp_path, WAN21_T2V)
    with pytest.raises(UserError, match="a.safetensors cannot be read as a safetensors file .*; download it again"):
        load_codec(tmp_path / "a.safetensors", WAN21_T2V)
    tensors = load_file(files[WAN21_T2V])
    del tensors["decoder.middle.0.residual.2.bias"]
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match="not Wan2.1's VAE .*: decoder.mid_block.resnets.0.conv1.bias has the shape of "
                                        "nothing, it is missing"):
        load_codec(tmp_path / "half.safetensors", WAN21_T2V)


def test_too_little_memory_and_no_numbers_are_said_in_a_sentence(files, clip_FHW3, monkeypatch):
    codec = load_codec(files[WAN21_T2V], WAN21_T2V)
    with pytest.raises(UserError, match="The clip of step 2 holds values that are not numbers"):
        codec.decode(torch.full((16, 1, 4, 8), torch.nan), "step 2")

    def full(_pixels):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nadvice")

    monkeypatch.setattr(codec._vae, "encode", full)
    with pytest.raises(UserError, match=r"There is too little memory for 9 frames of 64 x 32 to be encoded \(CUDA out "
                                        r"of memory. Tried to allocate 9 GiB.\); choose a lower resolution"):
        codec.encode(clip_FHW3)
