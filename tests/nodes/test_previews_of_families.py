"""Previews of each Wan through ComfyUI's own sampling, with the conditioning of ComfyUI's own nodes."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from wantune.tests.support import carried, tools, wan_models
from wantune.tests.support.adapted import AdaptedModel, batch_of

pytestmark = pytest.mark.usefixtures("comfy")

WIDTH, HEIGHT, FRAMES, SEED = 64, 64, 9, 5
CLIP = (3, 4, 6)
"""Latent frames, rows and columns that are trained on."""
SAMPLER = {"steps": 4, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "beta"}


class Vae:
    """Encodes by a formula and decodes to grey, for latents of any number of channels; keeps what it decodes."""

    def __init__(self, name: str) -> None:
        self._family = wan_models.family(name)
        self.latent_channels = self._family.latent_channels
        self.decoded = []

    def encode(self, pixels_FHW3: torch.Tensor) -> torch.Tensor:
        strides = self._family.stride_FHW
        frames = (len(pixels_FHW3) - 1) // strides[0] + 1
        picked = pixels_FHW3[:: strides[0], :: strides[1], :: strides[2], 0][:frames]
        return (picked * 2 - 1)[None, None].expand(1, self.latent_channels, *picked.shape).clone()

    def spacial_compression_encode(self) -> int:
        return self._family.stride_FHW[1]

    def decode(self, latent_BCFHW: torch.Tensor) -> torch.Tensor:
        self.decoded.append(latent_BCFHW.clone())
        return torch.full((1, FRAMES, HEIGHT, WIDTH, 3), 0.5)


def text(seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 512, 4096, generator=generator), {"pooled_output": None}]]


def pictures(number: int) -> torch.Tensor:
    """Real ones, as Load Image gives them: (number, height, width, 3)."""
    import skimage

    found = [torch.from_numpy(picture[:256, :256].copy()).float() / 255
             for picture in (skimage.data.astronaut(), skimage.data.chelsea())]
    return torch.stack(found[:number])


def clip_vision(seed: int) -> SimpleNamespace:
    """CLIP_VISION_OUTPUT with what the models take of it."""
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(penultimate_hidden_states=torch.randn(1, 257, 1280, generator=generator))


def conditioned(name: str, vae: Vae) -> tuple[list, list, dict]:
    """Positive, negative and latent, from the node that belongs to the model."""
    from comfy_extras import nodes_wan

    first, last = pictures(2).split(1)
    size = (WIDTH, HEIGHT, FRAMES, 1)
    if name == "Wan2.2 5B":
        latent = nodes_wan.Wan22ImageToVideoLatent.execute(vae, *size, start_image=first).result[0]
        return text(1), text(2), latent
    if name == "Wan2.1 FLF2V":
        node, given = nodes_wan.WanFirstLastFrameToVideo, {
            "clip_vision_start_image": clip_vision(1), "clip_vision_end_image": clip_vision(2), "end_image": last}
    else:
        seen = {"clip_vision_output": clip_vision(1)} if name == "Wan2.1 I2V" else {}
        node, given = nodes_wan.WanImageToVideo, seen
    return node.execute(text(1), text(2), vae, *size, start_image=first, **given).result


def by_samplers(models, positive, negative, latent, switch: int) -> torch.Tensor:
    import nodes as comfy_nodes

    told = (SEED, *SAMPLER.values(), positive, negative)
    if len(models) == 1:
        return comfy_nodes.KSampler().sample(models[0], *told, latent)[0]["samples"]
    (half,) = comfy_nodes.KSamplerAdvanced().sample(models[0], "enable", *told, latent, 0, switch, "enable")
    (found,) = comfy_nodes.KSamplerAdvanced().sample(models[1], "disable", *told, half, switch, 10000, "disable")
    return found["samples"]


def lora_of(adapted: AdaptedModel):
    from wantune.trainer.lora import file as lora_file

    return lora_file.LoraStateDict(lora_file.from_adapter(adapted.adapter.state_dict(), 6.0), {})


@pytest.mark.parametrize("is_pair", [False, True], ids=["one model", "a pair"])
@pytest.mark.parametrize("name", ["Wan2.1 I2V", "Wan2.1 FLF2V", "Wan2.2 I2V", "Wan2.2 5B"])
def test_a_preview_is_the_graph_bit_for_bit_and_training_goes_on_as_without(name, is_pair, tmp_path):
    from wantune.nodes.lora import ApplyLoRA
    from wantune.nodes.media import previewer
    from wantune.nodes.previews import PreviewSettings

    model, vae = wan_models.load(name), Vae(name)
    snapshot = tools.Snapshot(model)
    low = carried.shifted(wan_models.load(name, seed=9), 3.0) if is_pair else None
    shifted = carried.shifted(model, 8.0)
    with torch.inference_mode():
        positive, negative, latent = conditioned(name, vae)
        (config,) = PreviewSettings.execute(
            positive=positive, negative=negative, vae=vae, width=WIDTH, height=HEIGHT, frames=FRAMES, shift=5.0,
            seed=SEED, every_epochs=1, every_steps=0, model=shifted, model_low=low, latent=latent,
            switch_at_step=2 if is_pair else 0, **SAMPLER).result
    adapted = AdaptedModel(model)
    previewer.check(config, adapted.denoiser)
    made = previewer.Previewer(config, adapted.denoiser, tmp_path, nullcontext)
    assert made.decoding > 0 == made.tokens
    batch = batch_of(name, CLIP, (0.3, 0.8), adapted.denoiser.device)

    def step():
        with adapted.denoiser.training():
            loss_B = adapted.loss_B(batch)
            return loss_B.detach(), adapted.gradients(loss_B)

    with torch.inference_mode(), torch.inference_mode(False):
        with adapted.denoiser.attached(adapted.adapter, adapted.linears, _plan(), memory=0):
            before = step()
            made.make(0, "base", None)
            made.make(1, "step", lambda: lora_of(adapted))
            carried.assert_equal(step(), before)
    snapshot.assert_untouched()
    with torch.inference_mode():
        applied = ApplyLoRA.execute(shifted, 1.0, lora_of(adapted)).result[0]
        for found, high in zip(vae.decoded, (shifted, applied), strict=True):
            expected = by_samplers((high, low) if is_pair else (high,), positive, negative, latent, 2)
            assert torch.equal(found, expected)
    assert not torch.equal(*vae.decoded)
    assert (tmp_path / "samples" / "step_0.mp4").is_file()


def _plan():
    from wantune.trainer.memory.plan import Plan

    return Plan()


def test_without_a_model_previews_of_other_models_than_text_to_video_are_refused(tmp_path):
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.nodes.media import previewer
    from wantune.nodes.previews import PreviewSettings
    from wantune.trainer.base.errors import UserError

    denoiser = ComfyDenoiser(wan_models.load("Wan2.1 I2V"))
    inputs = {"positive": text(1), "negative": text(2), "vae": Vae("Wan2.1 I2V"), "width": WIDTH, "height": HEIGHT,
              "frames": FRAMES, "shift": 5.0, "seed": SEED, "every_epochs": 1, "every_steps": 0, "steps": 4, "cfg": 3.0}
    with pytest.raises(UserError, match="Previews of Wan2.1 I2V need a model in Preview Settings; connect"):
        previewer.check(PreviewSettings.execute(**inputs).result[0], denoiser)
    of_text = carried.shifted(wan_models.load("Wan2.1 T2V"))
    with pytest.raises(UserError, match="model of Preview Settings is Wan2.1 T2V .*, the model in training Wan2.1 I2V"):
        previewer.check(PreviewSettings.execute(**inputs, model=of_text).result[0], denoiser)


@pytest.mark.parametrize(("name", "other"), [("Wan2.2 5B", "Wan2.1 T2V"), ("Wan2.1 T2V", "Wan2.2 5B")])
def test_the_vae_of_another_model_is_refused_before_anything_is_trained(name, other):
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.nodes.media import previewer
    from wantune.nodes.previews import PreviewSettings
    from wantune.trainer.base.errors import UserError

    model = wan_models.load(name)
    (config,) = PreviewSettings.execute(
        positive=text(1), negative=text(2), vae=Vae(other), width=WIDTH, height=HEIGHT, frames=FRAMES, shift=5.0,
        seed=SEED, every_epochs=1, every_steps=0, steps=4, cfg=3.0, model=model).result
    channels = [wan_models.family(each).latent_channels for each in (other, name)]
    with pytest.raises(UserError, match="The VAE has latents of {} channels, the model of {}; conn".format(*channels)):
        previewer.check(config, ComfyDenoiser(model))


def test_the_sizes_of_wan22_5b(tmp_path):
    """Its sides are multiples of 32, its clips have 24 frames a second, its empty latent 48 channels."""
    from wantune.nodes.media import sampling
    from wantune.trainer.base.errors import UserError

    model = wan_models.load("Wan2.2 5B")
    family = sampling.family_like(model)
    assert (family.fps, family.latent_channels) == (24, 48)
    size = {"negative": text(2), "seed": 0, "steps": 2, "cfg": 1.0, "frames": 9}
    found = sampling.sample(model, None, text(1), sampling.Sampling(**size, width=96, height=64))
    assert found.shape == (1, 48, 3, 4, 6)
    with pytest.raises(UserError, match="width is 80; the model takes multiples of 32, the nearest is"):
        sampling.check(model, None, sampling.Sampling(**size, width=80, height=64))
