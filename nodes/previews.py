"""Preview Settings: what Train Wan LoRA samples while it runs. media/previewer.py does the sampling."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from . import sockets
from .advanced import marked
from .media.previewer import PreviewConfig
from .media.sampling import EULER, MAX_FRAMES, SIMPLE, Sampling, connected


class PreviewSettings(io.ComfyNode):
    """What is sampled while a run goes on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_PreviewSettings",
            display_name="Preview Settings",
            category="WanTune",
            description="Samples a short video of your prompts while Train Wan LoRA runs, with what is learned so far "
                        "and the same seed each time, and once without. Changes nothing of what is learned, unless "
                        "timesteps is as sampled.",
            inputs=marked("WanTune_PreviewSettings", [
                io.Conditioning.Input("positive", tooltip="A prompt with the trigger word, from CLIP Text Encode."),
                io.Conditioning.Input("negative", tooltip="The negative prompt you sample with."),
                io.Vae.Input("vae", tooltip="The VAE you sample with."),
                io.Int.Input("width", default=448, min=16, max=4096, step=16, tooltip="Of the video, in pixels."),
                io.Int.Input("height", default=256, min=16, max=4096, step=16, tooltip="Of the video, in pixels."),
                io.Int.Input("frames", default=17, min=1, max=MAX_FRAMES, step=4,
                             tooltip="Of the video; 1 is a picture."),
                io.Int.Input("steps", default=15, min=1, max=1000, tooltip="Of the sampler, as in KSampler."),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.5, tooltip="1 halves the time."),
                io.Float.Input("shift", default=5.0, min=0.01, max=100.0, step=0.5, tooltip="As in ModelSamplingSD3. "
                               "With a model connected its own counts."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                             tooltip="The same for every preview."),
                io.Int.Input("every_epochs", default=2, min=0, max=100000, tooltip="Make one after so many epochs; 0 = "
                             "not by epochs. There is always one at the end."),
                io.Int.Input("every_steps", default=0, min=0, max=10_000_000, tooltip="And after so many steps; 0 = "
                             "not by steps."),
                io.Conditioning.Input("positive_2", optional=True, tooltip="A second prompt to sample."),
                io.Conditioning.Input("positive_3", optional=True, tooltip="A third prompt to sample."),
                io.Model.Input("model", optional=True, tooltip="The model as you sample it, with its shift and other "
                               "LoRAs: previews are then what your graph gives with Apply LoRA, bit for bit. For a "
                               "pair the high-noise expert. Without, the model in training is sampled."),
                io.Model.Input("model_low", optional=True, tooltip="The low-noise expert of a pair, as you sample it."),
                io.Latent.Input("latent", optional=True, tooltip="The latent that your sampler gets, from "
                                "WanImageToVideo or Wan22ImageToVideoLatent for example; needs a model."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default=EULER, optional=True,
                               tooltip="As in KSampler; other than euler needs a model."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default=SIMPLE, optional=True,
                               tooltip="As in KSampler; other than simple needs a model."),
                io.Int.Input("switch_at_step", default=0, min=0, max=10000, optional=True, tooltip="The step from "
                             "which model_low samples, as in the start_at_step of your second KSampler Advanced; 0 = "
                             "there is no model_low."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="From Load CLIP Vision, such as "
                                    "clip_vision_h: each preview also says how like the training pictures it looks, "
                                    "beside the model without the LoRA. Any CLIP vision will do."),
            ]),
            outputs=[sockets.Previews.Output(display_name="previews", tooltip="For Train Wan LoRA.")],
        )

    @classmethod
    def execute(
        cls, positive, vae, shift, every_epochs, every_steps, positive_2=None, positive_3=None, model=None,
        model_low=None, clip_vision=None, **sampling
    ) -> io.NodeOutput:
        return io.NodeOutput(PreviewConfig(
            positive=connected(positive, positive_2, positive_3), sampling=Sampling(**sampling), shift=shift,
            vae=vae, every_epochs=every_epochs, every_steps=every_steps, model=model, model_low=model_low,
            clip_vision=clip_vision))
