"""The latent of a video is ComfyUI's own, a wrong length is refused, and a decoded clip is uint8 or an error."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wantune.trainer.base.errors import UserError
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.model.wan21 import WAN21_T2V

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.mark.parametrize("size", [(64, 64, 1), (64, 32, 5), (832, 480, 81)])
def test_the_latent_has_the_shape_of_comfyuis_empty_one(size):
    from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo

    from wantune.nodes.media.sampling import latent_shape

    width, height, frames = size
    expected = EmptyHunyuanLatentVideo.execute(*size).result[0]["samples"]
    assert latent_shape(WAN21_T2V, Bucket(frames, height, width)) == tuple(expected.shape)


def test_lengths():
    from wantune.nodes.media.sampling import check_frames

    for frames in (1, 5, 17, 1025):
        check_frames(frames)
        check_frames(frames, 1025)
    for frames in (-3, 0, 2, 16):
        with pytest.raises(UserError, match=f"frames is {frames}; Wan takes 4n.1 frames, for example 17"):
            check_frames(frames)
    with pytest.raises(UserError, match="frames is 1029; Wan takes 4n.1 frames from 1 to 1025, for example 17"):
        check_frames(1029, 1025)


def test_a_decoded_clip_is_rounded_and_clipped():
    from wantune.nodes.media.sampling import decode

    levels = torch.tensor([-1.0, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 2.0]).reshape(1, 1, 2, 1, 3)
    vae = SimpleNamespace(decode=lambda latent: levels)
    pixels_FHW3 = decode(vae, torch.zeros(1), "a clip")
    assert pixels_FHW3.dtype == np.uint8 and pixels_FHW3.shape == (1, 2, 1, 3)
    assert pixels_FHW3.flatten().tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_clip_that_is_not_finite_is_named(value):
    from wantune.nodes.media.sampling import decode

    vae = SimpleNamespace(decode=lambda latent: torch.full((1, 1, 2, 2, 3), value))
    with pytest.raises(UserError, match="The clip of step 2 holds values that are not numbers"):
        decode(vae, torch.zeros(1), "step 2")


def test_latents_are_normalised_as_comfyui_does():
    import comfy.latent_formats

    latent = torch.randn(2, 16, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(WAN21_T2V.normalize(latent), comfy.latent_formats.Wan21().process_in(latent))
    assert torch.equal(WAN21_T2V.denormalize(latent), comfy.latent_formats.Wan21().process_out(latent))
