"""What is cached of the frames that a model is given is, bit for bit, what ComfyUI's nodes put into CONDITIONING."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wantune.tests.support import frame_models, tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.model.wan21 import CONTROL_CLIP, IMAGE, REFERENCE, WAN21_I2V, WAN21_T2V
from wantune.trainer.model.wan22 import WAN22_5B
from wantune.trainer.settings.data import BOTH_ENDS, FIRST_FRAME

pytestmark = pytest.mark.usefixtures("comfy")

HEIGHT, WIDTH = 32, 64


@pytest.fixture(scope="module")
def vae(comfy):
    return tools.load_vae()


@pytest.fixture(scope="module")
def vae22(comfy):
    return frame_models.wan22_vae()


@pytest.fixture(scope="module")
def clip_vision(comfy, tmp_path_factory):
    return frame_models.clip_vision(tmp_path_factory.mktemp("clip_vision"))


@pytest.fixture(scope="module")
def clip_FHW3() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, HEIGHT, WIDTH, 3), dtype=np.uint8)


def as_image(pixels_FHW3: np.ndarray) -> torch.Tensor:
    """As Load Image gives a picture."""
    return torch.from_numpy(pixels_FHW3.astype(np.float32) / 255.0)


def seen(clip_vision, frame_1HW3: np.ndarray):
    """The output of CLIP Vision Encode with crop "none"."""
    import nodes

    with torch.inference_mode():
        return nodes.CLIPVisionEncode().encode(clip_vision, as_image(frame_1HW3), "none")[0]


def conditioning(name: str, vae, frames: int, **inputs) -> dict:
    """What one of ComfyUI's nodes adds to CONDITIONING."""
    import comfy_extras.nodes_wan

    prompt = [[torch.ones(1, 3, 8), {"pooled_output": None}]]
    with torch.inference_mode():
        node = getattr(comfy_extras.nodes_wan, name)
        positive, _, latent, *_ = node.execute(
            prompt, prompt, vae, WIDTH, HEIGHT, frames, batch_size=1, **inputs).result
    assert latent["samples"].shape == (1, 16, (frames - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    return positive[0][1]


def encoder(vae, condition: str):
    from wantune.nodes.backend.encoders import WanCodec
    from wantune.nodes.backend.frame_encoders import ImageEncoder

    return ImageEncoder(vae, WanCodec(vae), condition)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_the_first_frame_is_that_of_wan_image_to_video(vae, clip_FHW3, frames):
    given = conditioning("WanImageToVideo", vae, frames, start_image=as_image(clip_FHW3[:1]))
    image_CFHW = encoder(vae, FIRST_FRAME).encode(clip_FHW3[:frames])
    assert image_CFHW.shape == (20, (frames - 1) // 4 + 1, 4, 8) and image_CFHW.dtype == torch.float32
    assert torch.equal(image_CFHW[:16], given["concat_latent_image"][0])
    assert all(torch.equal(channel, given["concat_mask"][0, 0]) for channel in image_CFHW[16:])
    assert (image_CFHW[16:, 0] == 0).all() and (image_CFHW[16:, 1:] == 1).all()


def test_both_ends_are_those_of_wan_first_last_frame_to_video(vae, clip_FHW3):
    given = conditioning("WanFirstLastFrameToVideo", vae, 9, start_image=as_image(clip_FHW3[:1]),
                         end_image=as_image(clip_FHW3[-1:]))
    image_CFHW = encoder(vae, BOTH_ENDS).encode(clip_FHW3)
    assert torch.equal(image_CFHW[:16], given["concat_latent_image"][0])
    assert torch.equal(image_CFHW[16:], given["concat_mask"][0])
    assert image_CFHW[16:, -1, 0, 0].tolist() == [1, 1, 1, 0], "only the last pixel frame of four is given"
    first = encoder(vae, FIRST_FRAME).encode(clip_FHW3)
    assert not torch.equal(first[:16, -1], image_CFHW[:16, -1])


def test_the_image_does_not_depend_on_the_frames_that_are_not_given(vae, clip_FHW3):
    other = clip_FHW3.copy()
    other[1:-1] = 255 - other[1:-1]
    both = encoder(vae, BOTH_ENDS)
    assert torch.equal(both.encode(clip_FHW3), both.encode(other))
    other[-1] = 0
    first = encoder(vae, FIRST_FRAME)
    assert torch.equal(first.encode(clip_FHW3), first.encode(other))
    assert not torch.equal(both.encode(clip_FHW3), both.encode(other)) and first.id != both.id


def of_node(kind: str, vae):
    from wantune.nodes.backend import frame_encoders
    from wantune.nodes.backend.encoders import WanCodec

    return getattr(frame_encoders, f"{kind}Encoder")(vae, WanCodec(vae))


@pytest.mark.parametrize("frames", [1, 9])
def test_a_control_clip_is_what_all_nodes_of_its_models_make_of_it(vae, clip_FHW3, frames):
    """Both Fun-Controls share what is cached, though their nodes put it into CONDITIONING otherwise."""
    control_FHW3 = 255 - clip_FHW3[:frames]
    given = {"start_image": as_image(clip_FHW3[:1]), "control_video": as_image(control_FHW3)}
    first = conditioning("WanFunControlToVideo", vae, frames, **given)["concat_latent_image"][0]
    given["ref_image"] = given.pop("start_image")
    second = conditioning("Wan22FunControlToVideo", vae, frames, **given)
    control_CFHW, reference_C1HW = of_node("Control", vae).encode(control_FHW3), of_node("Reference", vae).encode(
        clip_FHW3[:frames])
    assert torch.equal(control_CFHW, first[:16]) and torch.equal(reference_C1HW, first[16:, :1])
    assert torch.equal(control_CFHW, second["concat_latent_image"][0, :16])
    assert torch.equal(reference_C1HW, second["reference_latents"][0][0])
    (vace,) = conditioning("WanVaceToVideo", vae, frames, strength=1.0, control_video=as_image(control_FHW3))[
        "vace_frames"]
    vace_CFHW = of_node("Vace", vae).encode(control_FHW3)
    assert torch.equal(vace_CFHW, vace[0]) and vace_CFHW.shape == (32, (frames - 1) // 4 + 1, 4, 8)
    assert not torch.equal(vace_CFHW[:16], vace_CFHW[16:]), "grey, and the control clip"
    assert all(each.dtype == torch.float32 for each in (control_CFHW, reference_C1HW, vace_CFHW))
    assert len({of_node(kind, vae).id for kind in ("Control", "Reference", "Vace")}) == 3
    without = conditioning("WanFunControlToVideo", vae, frames)["concat_latent_image"][0]
    assert torch.equal(CONTROL_CLIP.without(control_CFHW), without[:16])
    assert torch.equal(REFERENCE.without(reference_C1HW), without[16:, :1])


def test_clip_vision_is_what_the_nodes_put_beside_the_image(vae, clip_vision, clip_FHW3):
    from wantune.nodes.backend.frame_encoders import ClipVisionEncoder

    start, end = seen(clip_vision, clip_FHW3[:1]), seen(clip_vision, clip_FHW3[-1:])
    given = conditioning("WanImageToVideo", vae, 9, start_image=as_image(clip_FHW3[:1]), clip_vision_output=start)
    first = ClipVisionEncoder(clip_vision, FIRST_FRAME)
    assert first.encode(clip_FHW3).shape == (257, 1280)
    assert torch.equal(first.encode(clip_FHW3), given["clip_vision_output"].penultimate_hidden_states[0])

    given = conditioning("WanFirstLastFrameToVideo", vae, 9, start_image=as_image(clip_FHW3[:1]),
                         end_image=as_image(clip_FHW3[-1:]), clip_vision_start_image=start, clip_vision_end_image=end)
    both = ClipVisionEncoder(clip_vision, BOTH_ENDS)
    assert both.encode(clip_FHW3).shape == (514, 1280)
    assert torch.equal(both.encode(clip_FHW3), given["clip_vision_output"].penultimate_hidden_states[0])
    assert first.id != both.id


def test_fun_inpaint_is_given_both_ends_and_sees_the_first(vae, clip_vision, clip_FHW3):
    from wantune.nodes.backend.frame_encoders import ClipVisionEncoder

    given = conditioning("WanFunInpaintToVideo", vae, 9, start_image=as_image(clip_FHW3[:1]),
                         end_image=as_image(clip_FHW3[-1:]), clip_vision_output=seen(clip_vision, clip_FHW3[:1]))
    image_CFHW = encoder(vae, BOTH_ENDS).encode(clip_FHW3)
    assert torch.equal(image_CFHW[:16], given["concat_latent_image"][0])
    assert torch.equal(image_CFHW[16:], given["concat_mask"][0])
    both_LD = ClipVisionEncoder(clip_vision, BOTH_ENDS).encode(clip_FHW3)
    collate = {kind.name: kind.collate for kind in WAN21_I2V.conditions}["clip_vision"]
    assert torch.equal(collate([both_LD]), given["clip_vision_output"].penultimate_hidden_states.float())


def test_the_first_latent_frame_of_a_5b_clip_is_that_of_wan22_image_to_video_latent(vae22, clip_FHW3):
    import comfy.latent_formats
    import comfy_extras.nodes_wan

    from wantune.nodes.backend.encoders import WanCodec

    latent_CFHW = WanCodec(vae22, WAN22_5B).encode(clip_FHW3)
    assert latent_CFHW.shape == (48, 3, HEIGHT // 16, WIDTH // 16)
    with torch.inference_mode():
        given = comfy_extras.nodes_wan.Wan22ImageToVideoLatent.execute(
            vae22, WIDTH, HEIGHT, 9, 1, start_image=as_image(clip_FHW3[:1])).result[0]
    sampled_from = comfy.latent_formats.Wan22().process_in(given["samples"])
    assert torch.equal(latent_CFHW[:, 0], sampled_from[0, :, 0])
    assert given["noise_mask"][0, 0, :, 0, 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize("family", [WAN21_T2V, WAN22_5B], ids=lambda family: family.name)
def test_latents_are_normalised_as_comfyui_does_it(comfy, family):
    import comfy.latent_formats

    formats = {16: comfy.latent_formats.Wan21, 48: comfy.latent_formats.Wan22}
    latent_BCFHW = torch.randn(2, family.latent_channels, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = formats[family.latent_channels]().process_in(latent_BCFHW)
    assert torch.equal(family.normalize(latent_BCFHW), expected)
    torch.testing.assert_close(family.denormalize(expected), latent_BCFHW)


@pytest.mark.parametrize("frames", [1, 9])
def test_a_dropped_image_is_what_a_model_gets_that_got_none(vae, clip_FHW3, frames):
    import comfy.latent_formats
    import comfy.model_base

    class Model:
        """What concat_cond asks of comfy.model_base.WAN21."""

        latent_format = comfy.latent_formats.Wan21()
        image_to_video = True
        diffusion_model = SimpleNamespace(patch_embedding=torch.nn.Conv3d(36, 8, 1))
        process_latent_in = staticmethod(latent_format.process_in)

    def concat(**given):
        noise = torch.randn(1, 16, (frames - 1) // 4 + 1, 4, 8)
        return comfy.model_base.WAN21.concat_cond(Model(), noise=noise, device=torch.device("cpu"), **given)

    image_CFHW = encoder(vae, FIRST_FRAME).encode(clip_FHW3[:frames])
    dropped_CFHW = IMAGE.without(image_CFHW)
    assert torch.equal(concat(concat_latent_image=dropped_CFHW[None, :16].clone(), concat_mask=dropped_CFHW[None, 16:]),
                       concat())
    assert (concat() == 0).all()
    assert not torch.equal(concat(concat_latent_image=image_CFHW[None, :16].clone(), concat_mask=image_CFHW[None, 16:]),
                           concat())


def test_another_vae_is_refused_both_ways(vae, vae22):
    from wantune.nodes.backend.encoders import WanCodec

    with pytest.raises(UserError, match=r"WanVAE with 48 latent channels; load Wan2.1's \(wan_2.1_vae.safetensors, "
                                        r"WanVAE with 16\), or choose another model in Dataset Settings\."):
        WanCodec(vae22, WAN21_T2V)
    with pytest.raises(UserError, match=r"WanVAE with 16 latent channels; load Wan2.2's \(wan2.2_vae.safetensors"):
        WanCodec(vae, WAN22_5B)
    assert WanCodec(vae22, WAN22_5B).id != WanCodec(vae).id


def test_another_clip_vision_is_refused(tmp_path):
    from wantune.nodes.backend.frame_encoders import ClipVisionEncoder

    other = frame_models.clip_vision(tmp_path, hidden_size=64)
    with pytest.raises(UserError, match="a CLIPVisionModelProjection with 257 tokens of width 64, which Wan does not "
                                        "read; load clip_vision_h"):
        ClipVisionEncoder(other, FIRST_FRAME)
    with pytest.raises(UserError, match="an unknown number of tokens"):
        ClipVisionEncoder(SimpleNamespace(model=torch.nn.Linear(2, 2)), FIRST_FRAME)
