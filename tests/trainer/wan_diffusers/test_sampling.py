"""A sampled video is KSampler's of the same seed, without and with a LoRA, and becomes an mp4."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from wantune.tests.support import carried, frame_models, tools, wan_models
from wantune.tests.support.adapted import AdaptedModel
from wantune.tests.support.videos import read_back
from wantune.tests.world_nodes.frame_models import load_small_clip_vision
from wantune.trainer.base.errors import UserError
from wantune.trainer.media.side_by_side import side_by_side
from wantune.trainer.media.videos import write_mp4
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.settings.data import FIRST_FRAME
from wantune.trainer.wan_diffusers.codec import load_codec
from wantune.trainer.wan_diffusers.images import conditions_of, frame_encoders, load_clip_vision
from wantune.trainer.wan_diffusers.sampling import UNI_PC, Part, Sampling, sample
from wantune.trainer.wan_diffusers.text import load_text_encoder

pytestmark = pytest.mark.usefixtures("comfy")

SHIFT, CFG, STEPS, SEED = 8.0, 4.0, 6, 5


def sampling(**changes) -> Sampling:
    return Sampling(**{"width": 64, "height": 64, "frames": 9, "seed": SEED, "steps": STEPS, "cfg": CFG,
                       "shift": SHIFT, **changes})


def by_ksampler(model, positive, negative, latent: dict) -> torch.Tensor:
    """latent_BCFHW of ComfyUI's own node, normalised."""
    import nodes

    with torch.inference_mode():
        shifted = carried.shifted(model, SHIFT)
        (found,) = nodes.KSampler().sample(shifted, SEED, STEPS, CFG, "euler", "simple", positive, negative, latent)
        return model.model.process_latent_in(found["samples"]).clone()


def with_lora(adapted: AdaptedModel, model):
    from wantune.nodes.lora import ApplyLoRA
    from wantune.trainer.lora import file as lora_file

    lora = lora_file.LoraStateDict(lora_file.from_adapter(adapted.adapter.state_dict(), 6.0), {})
    with torch.inference_mode():
        return ApplyLoRA.execute(model, 1.0, lora).result[0]


def base_and_lora(adapted: AdaptedModel, *given, **further) -> list[torch.Tensor]:
    with adapted.attached():
        with adapted.adapter.switched_off():
            base = sample(adapted.denoiser, *given, **further)
        return [base, sample(adapted.denoiser, *given, **further)]


def assert_equal_videos(ours, theirs) -> None:
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == torch.float32 and found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert (ours[0] - ours[1]).abs().max() > 0.05, "the LoRA changes the video"


def test_base_and_lora_are_ksamplers_and_are_written_side_by_side(comfy, tmp_path):
    """The small world, from the prompt to the mp4: all of ours has no ComfyUI but the transformer."""
    model, clip = tools.load_dit(tools.WORLD / "dit.safetensors"), tools.load_clip()
    adapted, prompt = AdaptedModel(model), "a red three digit moving left"
    encoder, codec = (load_text_encoder(tools.WORLD / "umt5.safetensors"),
                      load_codec(tools.WORLD / "vae.safetensors", WAN21_T2V))
    steps = []
    ours = base_and_lora(adapted, {"text": encoder.encode(prompt)[None]}, encoder.encode("")[None], sampling(),
                         done=steps.append)
    assert steps == [*range(1, STEPS + 1)] * 2
    with torch.inference_mode():
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
    latent = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    assert_equal_videos(ours, [by_ksampler(each, positive, negative, latent)
                               for each in (model, with_lora(adapted, model))])
    base, tuned = (codec.decode(each[0], "a video") for each in ours)
    write_mp4(tmp_path / "both.mp4", side_by_side(base, tuned, ("base", "with LoRA")), WAN21_T2V.fps)
    frames, stream = read_back(tmp_path / "both.mp4")
    assert len(frames) == 9 and stream.average_rate == 16 and frames.shape[2] == 2 * 256
    for number, clip_FHW3 in enumerate((base, tuned)):
        shown = frames[:, -256:, 256 * number:256 * (number + 1)].reshape(9, 64, 4, 64, 4, 3).mean((2, 4))
        assert np.abs(shown - clip_FHW3).mean() < 6, "compressed, but these very frames"
    write_mp4(tmp_path / "base.mp4", iter(base), WAN21_T2V.fps)
    assert read_back(tmp_path / "base.mp4")[0].shape == (9, 64, 64, 3)


@pytest.mark.parametrize("name", ["Wan2.1 I2V", "Wan2.2 5B"])
def test_a_picture_is_what_the_video_begins_with_as_in_comfyuis_nodes(comfy, name, vae_file, vae22_file,
                                                                      clip_vision_file):
    from comfy_extras import nodes_wan

    family, model = wan_models.family(name), wan_models.load(name)
    picture_HW3 = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels_FHW3 = np.broadcast_to(picture_HW3, (9, 64, 64, 3))
    image = torch.from_numpy(picture_HW3 / np.float32(255))[None]
    generator = torch.Generator().manual_seed(1)
    texts_BLD = [torch.randn(1, length, 4096, generator=generator) for length in (12, 7)]
    prompts = [[[torch.nn.functional.pad(text, (0, 0, 0, 512 - text.shape[1])), {"pooled_output": None}]]
               for text in texts_BLD]
    clean_BCFHW = None
    if family.latent_channels == 48:
        codec = load_codec(vae22_file, family)
        clean_BCFHW = codec.encode(pixels_FHW3)[None]
        with torch.inference_mode():
            latent = nodes_wan.Wan22ImageToVideoLatent.execute(
                frame_models.wan22_vae(), 64, 64, 9, 1, start_image=image).result[0]
        positive, negative = prompts
        encoders = frame_encoders(family, FIRST_FRAME, codec)
    else:
        codec = load_codec(vae_file, family)
        with torch.inference_mode():
            seen = load_small_clip_vision(clip_vision_file).encode_image(image, crop=False)
            positive, negative, latent = nodes_wan.WanImageToVideo.execute(
                *prompts, tools.load_vae(), 64, 64, 9, 1, start_image=image, clip_vision_output=seen).result
        encoders = frame_encoders(family, FIRST_FRAME, codec, load_clip_vision(clip_vision_file, FIRST_FRAME))
    adapted = AdaptedModel(model)
    conditions = {"text": texts_BLD[0], **conditions_of(pixels_FHW3, family, encoders)}
    ours = base_and_lora(adapted, conditions, texts_BLD[1], sampling(), clean_BCFHW=clean_BCFHW)
    assert_equal_videos(ours, [by_ksampler(each, positive, negative, latent)
                               for each in (model, with_lora(adapted, model))])
    if clean_BCFHW is not None:
        assert torch.equal(ours[0][:, :, 0], clean_BCFHW[:, :, 0])
        with adapted.attached(), pytest.raises(UserError, match="Wan2.2 5B is given its first frame without noise"):
            sample(adapted.denoiser, conditions, texts_BLD[1], sampling())


class Formula:
    """A denoiser whose data is one point, so that every sampler must end there, whatever its steps: v = (x - x0) / t.

    With a curve in it, so that the steps count: v = (x - x0) / t + bend * t.
    """

    family, device = WAN21_T2V, torch.device("cpu")

    def __init__(self, bend: float) -> None:
        self.bend, self.levels = bend, []

    @contextmanager
    def training(self):
        with torch.enable_grad():
            yield

    def prepared(self, conditions, _size_FHW):
        return {"point": conditions["text"].mean()}

    def velocity(self, x_BCFHW, t_B, conditions):
        self.levels.append(float(t_B))
        return (x_BCFHW - conditions["point"]) / t_B + self.bend * t_B


def of_formula(bend: float, **changes) -> tuple[torch.Tensor, Formula]:
    denoiser = Formula(bend)
    given = {"cfg": 1.0, "steps": 20, **changes}
    part = given.pop("part", None)
    text_BLD = torch.full((1, 1, 4), 0.25)
    return sample(denoiser, {"text": text_BLD}, text_BLD, sampling(**given), part=part), denoiser


def test_uni_pc_keeps_to_the_curve_with_few_steps():
    """x(t) = x0 + t (noise - x0 + bend (t - 1)), before the last step, which goes straight to x0."""
    errors = {}
    for sampler in ("euler", UNI_PC):
        for steps in (10, 40):
            found, denoiser = of_formula(1.0, sampler=sampler, steps=steps, part=Part(first=0, end=steps - 1))
            whole, told = of_formula(1.0, sampler=sampler, steps=steps)
            assert told.levels == sorted(told.levels, reverse=True) and len(told.levels) == len(denoiser.levels) + 1
            t = told.levels[-1]
            noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(SEED))
            errors[sampler, steps] = float((found - 0.25 - t * (noise - 0.25 + t - 1)).abs().max())
            torch.testing.assert_close(whole, torch.full_like(whole, 0.25 - t * t), rtol=0, atol=1e-4)
    assert errors[UNI_PC, 10] < errors["euler", 40] / 3


def test_two_parts_are_the_whole_where_a_step_stands_alone():
    whole, _ = of_formula(1.0)
    first, _ = of_formula(1.0, part=Part(first=0, end=8))
    second, denoiser = of_formula(1.0, part=Part(first=8, end=20, start_BCFHW=first))
    assert torch.equal(whole, second) and len(denoiser.levels) == 12
    assert not torch.equal(first, whole)


def test_guidance_goes_from_the_negative_text_to_the_prompt_and_beyond():
    denoiser, far = Formula(0.0), torch.full((1, 1, 4), -1.0)
    latent_BCFHW = sample(denoiser, {"text": torch.full((1, 1, 4), 1.0)}, far, sampling(cfg=3.0, steps=4))
    torch.testing.assert_close(latent_BCFHW, torch.full_like(latent_BCFHW, 5.0))  # -1 + 3 * 2
    assert len(denoiser.levels) == 8


def test_what_no_model_makes_is_refused():
    for changes, said in (
            ({"sampler": "ddim"}, "sampler is 'ddim'; choose one of euler, uni_pc."), ({"steps": 0}, "steps is 0; "),
            ({"shift": 0.0}, "shift is 0.0; choose a number above 0"), ({"width": 0}, "width is 0; choose 1 or more")):
        with pytest.raises(UserError, match=said):
            sampling(**changes)
    for changes, said in (({"frames": 8}, "frames has 8; Wan takes 4n.1 frames, the nearest is 9"),
                          ({"width": 70}, "width is 70; Wan2.1 T2V makes multiples of 16, the nearest is 64")):
        with pytest.raises(UserError, match=said):
            sampling(**changes).check(WAN21_T2V)
