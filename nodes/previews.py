"""Preview Settings, and the short videos that are sampled while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.k_diffusion.sampling
import comfy.latent_formats
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..trainer.base.errors import UserError
from ..trainer.runs.events import Previewed
from . import sockets
from .backend.denoiser import ComfyDenoiser
from .media.side_by_side import write_mp4

FPS = 16

MAX_STRIP = 6
"""Frames of a video that are shown beside each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """What is sampled, and how often; changes nothing of what is learned."""

    positive: list
    """CONDITIONING of each prompt."""
    negative: list
    vae: object
    width: int
    height: int
    frames: int
    steps: int
    cfg: float
    shift: float
    seed: int
    every_epochs: int
    every_steps: int

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int) -> bool:
        """Whether a preview is made after this step; also at the end."""
        period = self.every_epochs * steps_per_epoch
        return bool((self.every_steps and step % self.every_steps == 0) or (period and step % period == 0)
                    or step == total_steps)


class PreviewSettings(io.ComfyNode):
    """What is sampled while a run goes on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_PreviewSettings",
            display_name="Preview Settings",
            category="WanTune",
            description="Samples a short video of your prompts while Train Wan LoRA runs, with what is learned so far "
                        "and the same seed each time, and once without. Changes nothing of what is learned.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="A prompt with the trigger word, from CLIP Text Encode."),
                io.Conditioning.Input("negative", tooltip="The negative prompt you sample with."),
                io.Vae.Input("vae", tooltip="The Wan2.1 VAE you sample with."),
                io.Int.Input("width", default=448, min=16, max=4096, step=16, tooltip="Of the video, in pixels."),
                io.Int.Input("height", default=256, min=16, max=4096, step=16, tooltip="Of the video, in pixels."),
                io.Int.Input("frames", default=17, min=1, max=1025, step=4, tooltip="Of the video; 1 is a picture."),
                io.Int.Input("steps", default=15, min=1, max=1000, tooltip="Of the sampler (euler, simple)."),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.5, tooltip="1 halves the time."),
                io.Float.Input("shift", default=5.0, min=0.01, max=100.0, step=0.5, tooltip="As in ModelSamplingSD3."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                             tooltip="The same for every preview."),
                io.Int.Input("every_epochs", default=2, min=0, max=100000, tooltip="Make one after so many epochs; 0 = "
                             "not by epochs. There is always one at the end."),
                io.Int.Input("every_steps", default=0, min=0, max=10_000_000, tooltip="And after so many steps; 0 = "
                             "not by steps."),
                io.Conditioning.Input("positive_2", optional=True, tooltip="A second prompt to sample."),
                io.Conditioning.Input("positive_3", optional=True, tooltip="A third prompt to sample."),
            ],
            outputs=[sockets.Previews.Output(display_name="previews", tooltip="For Train Wan LoRA.")],
        )

    @classmethod
    def execute(cls, positive, positive_2=None, positive_3=None, **inputs) -> io.NodeOutput:
        if inputs["frames"] % 4 != 1:
            raise UserError(f"frames is {inputs['frames']}; Wan takes 4n+1 frames, for example 17.")
        prompts = [prompt for prompt in (positive, positive_2, positive_3) if prompt is not None]
        return io.NodeOutput(PreviewConfig(positive=prompts, **inputs))


class Previewer:
    """Samples on the very model that is trained, with whatever adapter is switched on.

    The sampler is ComfyUI's own euler on its own "simple" noise levels; only the way to the model is ours, since
    ComfyUI's would load, patch and unload the model in the middle of training.
    """

    def __init__(self, config: PreviewConfig, denoiser: ComfyDenoiser, folder: Path) -> None:
        self.config = config
        self._denoiser = denoiser
        self._folder = folder / "samples"
        sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
        sampling.set_parameters(shift=config.shift)
        self._sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", config.steps)

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int) -> bool:
        """As the settings say."""
        return self.config.is_due(step, total_steps, steps_per_epoch)

    def make(self, step: int, name: str) -> Previewed:
        """Write `samples/<name>_<prompt>.mp4`, and its frames beside each other as `.jpg`."""
        paths = []
        for number, prompt in enumerate(self.config.positive):
            pixels_FHW3 = self.sample(prompt)
            path = self._folder / f"{name}_{number}.mp4"
            write_mp4(path, pixels_FHW3, FPS)
            strip(pixels_FHW3).save(path.with_suffix(".jpg"), quality=90)
            paths.append(path.relative_to(self._folder.parent).as_posix())
        return Previewed(step, name, tuple(paths))

    def sample(self, prompt: list) -> np.ndarray:
        """pixels_FHW3 uint8 of one prompt."""
        config = self.config
        shape = (1, 16, (config.frames - 1) // 4 + 1, config.height // 8, config.width // 8)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
        positive_BLD, negative_BLD = (self._text(each) for each in (prompt, config.negative))

        def denoised(x_BCFHW: torch.Tensor, sigma_B: torch.Tensor, **_arguments) -> torch.Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            velocity = self._denoiser.velocity(x_BCFHW, sigma_B, {"text": positive_BLD})
            if config.cfg != 1:
                without = self._denoiser.velocity(x_BCFHW, sigma_B, {"text": negative_BLD})
                velocity = without + config.cfg * (velocity - without)
            return x_BCFHW - sigma_B.view(-1, 1, 1, 1, 1) * velocity

        with self._denoiser.training(), torch.no_grad():
            start = (noise * self._sigmas[0]).to(self._denoiser.device)
            latent = comfy.k_diffusion.sampling.sample_euler(
                denoised, start, self._sigmas.to(self._denoiser.device), disable=True)
        with torch.inference_mode():
            images = config.vae.decode(comfy.latent_formats.Wan21().process_out(latent.clone()))
            levels = images.reshape(-1, *images.shape[-3:]).float().cpu() * 255
        self._denoiser.reload()  # the VAE may have pushed it off the device
        return levels.round().clamp(0, 255).byte().numpy()

    def _text(self, conditioning: list) -> torch.Tensor:
        return conditioning[0][0].float().clone().to(self._denoiser.device)


def strip(pixels_FHW3: np.ndarray) -> Image.Image:
    """Evenly chosen frames beside each other."""
    chosen = np.linspace(0, len(pixels_FHW3) - 1, min(MAX_STRIP, len(pixels_FHW3))).round().astype(int)
    return Image.fromarray(np.concatenate([pixels_FHW3[index] for index in chosen], axis=1))
