"""What image-to-video models are given is what ComfyUI's nodes give them, for each window of a clip."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.model import families
from wantune.trainer.model.wan21 import WAN21_FLF2V, WAN21_I2V, WAN21_T2V
from wantune.trainer.model.wan22 import WAN22_5B, WAN22_I2V
from wantune.trainer.settings.data import BOTH_ENDS, CONTROL, FIRST_FRAME, NO_FRAME
from wantune.trainer.wan_diffusers.codec import load_codec
from wantune.trainer.wan_diffusers.images import (
    ClipVisionEncoder,
    ImageEncoder,
    conditions_of,
    frame_encoders,
    load_clip_vision,
)

pytestmark = pytest.mark.usefixtures("comfy")

CONDITIONS = pytest.mark.parametrize("condition", [FIRST_FRAME, BOTH_ENDS])


@pytest.fixture(scope="module")
def codec(vae_file):
    return load_codec(vae_file, WAN21_T2V)


@CONDITIONS
@pytest.mark.parametrize("frames", [1, 9])
def test_the_given_frames_are_those_of_comfyuis_nodes(codec, condition, frames, clip_FHW3):
    from wantune.nodes.backend import encoders, frame_encoders

    vae = tools.load_vae()
    expected = frame_encoders.ImageEncoder(vae, encoders.WanCodec(vae), condition).encode(clip_FHW3[:frames])
    image_CFHW = ImageEncoder(codec, condition).encode(clip_FHW3[:frames])
    torch.testing.assert_close(image_CFHW, expected, rtol=0, atol=1e-5)
    assert torch.equal(image_CFHW[16:], expected[16:])


@CONDITIONS
def test_clip_vision_is_comfyuis(clip_vision_file, condition, clip_FHW3, tmp_path):
    from wantune.nodes.backend import frame_encoders
    from wantune.tests.world_nodes.frame_models import load_small_clip_vision

    with torch.inference_mode():
        theirs = load_small_clip_vision(clip_vision_file)
    expected = frame_encoders.ClipVisionEncoder(theirs, condition).encode(clip_FHW3)
    encoder = load_clip_vision(clip_vision_file, condition)
    states_LD = encoder.encode(clip_FHW3)
    assert states_LD.shape == ((514 if condition == BOTH_ENDS else 257), 1280) and states_LD.std() > 0.1
    torch.testing.assert_close(states_LD, expected.float(), rtol=0, atol=1e-5)
    assert torch.equal(states_LD[:257], load_clip_vision(clip_vision_file, FIRST_FRAME).encode(clip_FHW3[:1])[:257])
    encoder._model.save_pretrained(tmp_path / "image_encoder")
    folder = load_clip_vision(tmp_path, condition)
    assert folder.id == encoder.id and torch.equal(folder.encode(clip_FHW3), states_LD)


def test_another_clip_vision_is_refused(clip_vision_file, vae_file, tmp_path):
    with pytest.raises(UserError, match="The file holds no CLIP vision, which Wan does not read; load CLIP vision"):
        load_clip_vision(vae_file, FIRST_FRAME)
    tensors = load_file(clip_vision_file)
    name = "vision_model.embeddings.position_embedding.weight"
    save_file(tensors | {name: tensors[name][:50].contiguous()}, tmp_path / "small.safetensors")
    with pytest.raises(UserError, match="holds a CLIP vision with 50 tokens of width 1280, which Wan does not read"):
        load_clip_vision(tmp_path / "small.safetensors", FIRST_FRAME)


class Vision:
    """In the place of a CLIP vision."""

    def encode(self, pixels_FHW3):
        return torch.full((514, 1280), float(pixels_FHW3[0].mean()))


@pytest.mark.parametrize(("family", "condition", "kinds"), [
    (WAN21_T2V, NO_FRAME, {}), (WAN22_I2V, FIRST_FRAME, {"image": (1, 20, 3, 4, 8)}),
    (WAN21_I2V, FIRST_FRAME, {"image": (1, 20, 3, 4, 8), "clip_vision": (1, 257, 1280)}),
    (WAN21_FLF2V, BOTH_ENDS, {"image": (1, 20, 3, 4, 8), "clip_vision": (1, 514, 1280)}),
    (WAN22_5B, FIRST_FRAME, {"known": (1, 3)})], ids=lambda each: getattr(each, "name", ""))
def test_a_model_is_given_what_its_family_takes(codec, family, condition, kinds, clip_FHW3):
    encoders = frame_encoders(families.with_channels(family.latent_channels), condition, codec, Vision())
    assert {*kinds} <= {*encoders}
    found = conditions_of(clip_FHW3, family, encoders)
    assert {name: tuple(value.shape) for name, value in found.items()} == kinds


def test_what_is_missing_is_told(codec, clip_FHW3):
    with pytest.raises(UserError, match='condition is "control clip", whose control only ComfyUI encodes; cache it'):
        frame_encoders(families.DEFAULT, CONTROL, codec)
    encoders = frame_encoders(WAN21_I2V, FIRST_FRAME, codec)
    assert {*encoders} == {"image"}
    with pytest.raises(UserError, match="Wan2.1 I2V needs clip vision of its frames, and there is no encoder for it"):
        conditions_of(clip_FHW3, WAN21_I2V, encoders)
    assert conditions_of(clip_FHW3, WAN22_5B, {}) == {}


def test_ids_differ_by_what_is_given(codec, clip_vision_file):
    model = load_clip_vision(clip_vision_file, FIRST_FRAME)._model
    made = [ImageEncoder(codec, FIRST_FRAME), ImageEncoder(codec, BOTH_ENDS), ClipVisionEncoder(model, FIRST_FRAME),
            ClipVisionEncoder(model, BOTH_ENDS)]
    assert len({each.id for each in made}) == 4
