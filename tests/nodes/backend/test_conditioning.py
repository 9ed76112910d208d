"""What reaches the network in training is, bit for bit, what reaches it in ComfyUI's own sampling of that picture."""

from contextlib import contextmanager

import pytest
import torch

from wantune.tests.support import tools, wan_models
from wantune.tests.support.adapted import AdaptedModel

pytestmark = pytest.mark.usefixtures("comfy")

WIDTH, HEIGHT, LENGTH, STEPS = 64, 96, 9, 2
"""Pixels, and frames."""

TOKENS = 20
"""Of the text, before its padding."""


@contextmanager
def calls(model):
    """The arguments of the network's calls inside the context."""
    seen = []

    def watch(_module, arguments, options):
        # a copy: a sampler may go on in the same memory
        seen.append(([value.clone() for value in arguments], {
            name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in options.items()}))

    handle = model.model.diffusion_model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def text() -> list:
    """CONDITIONING of a text, padded with zeros to 512 tokens as CLIPTextEncode gives it."""
    text_BLD = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(7))
    text_BLD[:, TOKENS:] = 0
    return [[text_BLD, {"pooled_output": None}]]


def pictures(count: int, seed: int = 8) -> torch.Tensor:
    """IMAGE of another size than the clip, so that the nodes scale and crop it."""
    return torch.rand(count, 70, 110, 3, generator=torch.Generator().manual_seed(seed))


def clip_vision(seed: int):
    import comfy.clip_vision

    output = comfy.clip_vision.Output()
    output.penultimate_hidden_states = torch.randn(1, 257, 1280, generator=torch.Generator().manual_seed(seed))
    return output


def first_frame(sees_clip: bool):
    from comfy_extras.nodes_wan import WanImageToVideo

    return WanImageToVideo.execute(
        text(), text(), tools.load_vae(), WIDTH, HEIGHT, LENGTH, 1, start_image=pictures(1),
        clip_vision_output=clip_vision(1) if sees_clip else None).args


def first_and_last_frame(sees_clip: bool):
    from comfy_extras.nodes_wan import WanFirstLastFrameToVideo

    clips = [clip_vision(seed) if sees_clip else None for seed in (1, 2)]
    return WanFirstLastFrameToVideo.execute(
        text(), text(), tools.load_vae(), WIDTH, HEIGHT, LENGTH, 1, start_image=pictures(1), end_image=pictures(1, 9),
        clip_vision_start_image=clips[0], clip_vision_end_image=clips[1]).args


def control_pictures() -> torch.Tensor:
    return pictures(LENGTH, 10)


def fun_control():
    from comfy_extras.nodes_wan import WanFunControlToVideo

    return WanFunControlToVideo.execute(
        text(), text(), tools.load_vae(), WIDTH, HEIGHT, LENGTH, 1, start_image=pictures(1),
        clip_vision_output=clip_vision(1), control_video=control_pictures()).args


def fun_control_22(ref_image: torch.Tensor | None = None):
    from comfy_extras.nodes_wan import Wan22FunControlToVideo

    return Wan22FunControlToVideo.execute(
        text(), text(), tools.load_vae(), WIDTH, HEIGHT, LENGTH, 1, ref_image=ref_image,
        control_video=control_pictures()).args


def vace():
    from comfy_extras.nodes_wan import WanVaceToVideo

    return WanVaceToVideo.execute(
        text(), text(), tools.load_vae(), WIDTH, HEIGHT, LENGTH, 1, 1.0, control_video=control_pictures()).args[:3]


class Vae22:
    """What Wan22ImageToVideoLatent asks of a VAE of Wan2.2 5B."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.randn(1, 48, 1, HEIGHT // 16, WIDTH // 16, generator=torch.Generator().manual_seed(4))


def known_frame():
    from comfy_extras.nodes_wan import Wan22ImageToVideoLatent

    (latent,) = Wan22ImageToVideoLatent.execute(Vae22(), WIDTH, HEIGHT, LENGTH, 1, start_image=pictures(1)).args
    return text(), text(), latent


def text_alone(channels: int):
    stride = 8 if channels == 16 else 16
    size_FHW = (LENGTH - 1) // 4 + 1, HEIGHT // stride, WIDTH // stride
    return text(), text(), {"samples": torch.zeros(1, channels, *size_FHW)}


CASES = {
    "Wan2.1 T2V": ("Wan2.1 T2V", lambda: text_alone(16)),
    "Wan2.1 I2V, first frame": ("Wan2.1 I2V", lambda: first_frame(True)),
    "Wan2.1 I2V, first and last frame": ("Wan2.1 I2V", lambda: first_and_last_frame(True)),
    "Wan2.1 FLF2V, first and last frame": ("Wan2.1 FLF2V", lambda: first_and_last_frame(True)),
    "Wan2.1 FLF2V, first frame": ("Wan2.1 FLF2V", lambda: first_frame(True)),
    "Wan2.2 I2V, first frame": ("Wan2.2 I2V", lambda: first_frame(False)),
    "Wan2.2 I2V, first and last frame": ("Wan2.2 I2V", lambda: first_and_last_frame(False)),
    "Wan2.2 I2V, no picture": ("Wan2.2 I2V", lambda: text_alone(16)),
    "Wan2.1 Fun-Control, control clip and first frame": ("Wan2.1 Fun-Control", fun_control),
    "Wan2.2 Fun-Control, control clip": ("Wan2.2 Fun-Control", fun_control_22),
    "Wan2.2 Fun-Control, control clip and first frame": ("Wan2.2 Fun-Control", lambda: fun_control_22(pictures(1))),
    "Wan2.1 VACE, VACE control clip": ("Wan2.1 VACE", vace),
    "Wan2.2 5B, first frame": ("Wan2.2 5B", known_frame),
    "Wan2.2 5B, text alone": ("Wan2.2 5B", lambda: text_alone(48)),
}


def cached(conditioning: list, latent: dict) -> dict[str, torch.Tensor]:
    """The conditions of a sample as they lie in the cache, of what ComfyUI's nodes gave."""
    (text_BLD, options), = conditioning
    found = {"text": text_BLD[:, :TOKENS]}
    image = options.get("concat_latent_image")
    if image is not None and image.shape[1] == 16:
        found["image"] = torch.cat([image, options["concat_mask"].expand(-1, 4, -1, -1, -1)], dim=1)
    elif image is not None:
        found["control"] = image[:, :16]
        if "concat_mask" not in options:
            found["reference"] = image[:, 16:, :1]
    if "reference_latents" in options:
        found["reference"] = options["reference_latents"][0]
    if "vace_frames" in options:
        found["vace"] = options["vace_frames"][0]
    if "clip_vision_output" in options:
        found["clip_vision"] = options["clip_vision_output"].penultimate_hidden_states
    if "noise_mask" in latent:
        found["known"] = 1 - latent["noise_mask"][:, 0, :, 0, 0]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_the_network_is_called_as_in_sampling(case, dtype):
    import comfy.sample

    name, make = CASES[case]
    model = wan_models.load(name, load_as=dtype)
    model.set_model_compute_dtype(dtype)
    with torch.inference_mode():
        positive, negative, latent = make()
        noise = comfy.sample.prepare_noise(latent["samples"], 3)
        with calls(model) as sampled:
            comfy.sample.sample(
                model, noise, STEPS, 1.0, "euler", "simple", positive, negative, latent["samples"], seed=3,
                noise_mask=latent.get("noise_mask"), disable_pbar=True)
        conditions = {kind: value.clone() for kind, value in cached(positive, latent).items()}
    assert len(sampled) == STEPS
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    adapted = AdaptedModel(model)
    channels = adapted.denoiser.family.latent_channels
    conditions = {kind: value.clone() for kind, value in conditions.items()}
    with adapted.attached(), torch.no_grad():
        prepared = adapted.denoiser.prepared(conditions, latent["samples"].shape[2:])
        with calls(model) as trained:
            for (arguments, _), t in zip(sampled, sigmas[:-1], strict=True):
                adapted.denoiser.velocity(arguments[0][:, :channels].float().clone(), t[None], prepared)
    for ((x, timestep), options), ((x_there, timestep_there), options_there) in zip(trained, sampled, strict=True):
        assert same(x, x_there) and same(timestep, timestep_there)
        context, context_there = options.pop("context"), options_there.pop("context")
        assert same(context[:, :TOKENS], context_there[:, :TOKENS])
        assert not context[:, TOKENS:].any() and not context_there[:, TOKENS:].any()
        for every in (options, options_there):
            del every["transformer_options"]
            every.pop("denoise_mask", None)  # the network does not read it: it has become timesteps
        given, given_there = ({key: value for key, value in every.items() if value is not None}
                              for every in (options, options_there))
        assert given.keys() == given_there.keys() == further(name, conditions)
        assert given.pop("vace_strength", None) == given_there.pop("vace_strength", None)
        assert all(same(given[key], given_there[key]) for key in given)
    assert x.shape[1] == wan_models.WANS[name].in_dim
    assert timestep.shape == ((1, 3) if "known" in conditions else (1,))


def further(name: str, conditions: dict) -> set[str]:
    """The network's arguments besides the latent, its noise level and the text."""
    found = {"clip_fea"} if "clip_vision" in conditions else set()
    if name == "Wan2.2 Fun-Control" and "reference" in conditions:
        found.add("reference_latent")
    return found | ({"vace_context", "vace_strength"} if "vace" in conditions else set())


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(found, expected)


def test_the_frame_that_is_given_is_clean_in_sampling_and_its_level_is_zero():
    """5B: what training must do with it too."""
    import comfy.sample

    from wantune.trainer.model import families

    model = wan_models.load("Wan2.2 5B", load_as=torch.float32)
    positive, negative, latent = known_frame()
    with torch.inference_mode(), calls(model) as sampled:
        noise = comfy.sample.prepare_noise(latent["samples"], 3)
        comfy.sample.sample(model, noise, STEPS, 1.0, "euler", "simple", positive, negative, latent["samples"], seed=3,
                            noise_mask=latent["noise_mask"], disable_pbar=True)
    clean = families.named("Wan2.2 5B").normalize(latent["samples"])[:, :, :1]
    for (x, timestep), _ in sampled:
        torch.testing.assert_close(x[:, :, :1], clean, rtol=1e-6, atol=1e-6)
        assert timestep[0, 0] == 0 and (timestep[0, 1:] > 0).all()
