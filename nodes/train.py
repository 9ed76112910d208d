"""Train Wan LoRA."""

from __future__ import annotations

from contextlib import closing

import torch
from comfy_api.latest import io

from ..trainer import lora_file, lora_keys
from ..trainer.adapters import Adapter
from ..trainer.cache import CachedDataset, read_batch
from ..trainer.checkpoint import RunFolder, check_name
from ..trainer.config import LoraConfig, TrainConfig, UserError, content_hash
from ..trainer.loop import Trainer
from . import paths, sockets
from .comfy_backend import ComfyDenoiser
from .live import Live


class TrainWanLoRA(io.ComfyNode):
    """Train on the model ComfyUI has loaded, and leave that model as it was."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanTune_TrainWanLoRA",
            display_name="Train Wan LoRA",
            category="WanTune",
            description="Trains a LoRA on the very Wan2.1 model that is loaded; the model itself is not changed.",
            inputs=[
                io.Model.Input("model", tooltip="A Wan2.1 text-to-video model (Load Diffusion Model), fp16, bf16, "
                               "fp32 or fp8. LoRAs already applied to it are trained on top of."),
                sockets.Cache.Input("cache", tooltip="From Cache Latents."),
                io.String.Input("run_name", default="my_lora", tooltip="Names the run's folder in output/wantune."),
                io.Int.Input("epochs", default=20, min=1, max=100000, tooltip="Passes over all samples x repeats."),
                io.Int.Input("max_steps", default=0, min=0, max=10_000_000, tooltip="Stop after so many steps; 0 = "
                             "after all epochs."),
                io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="Pictures a step. More needs more "
                             "memory; 1 is what most recipes use."),
                io.Float.Input("learning_rate", default=1e-4, min=0.0, max=1.0, step=1e-6, round=False,
                               tooltip="How far a step goes; 1e-4 with alpha = rank suits most."),
                io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Size of the LoRA: 16-32 for a person, "
                             "more learns more and forgets more."),
                io.Float.Input("alpha", default=32.0, min=0.001, max=4096.0, step=1.0, tooltip="The LoRA's strength "
                               "is alpha / rank while it is trained; leave it equal to rank."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF,
                             control_after_generate=False, tooltip="Same seed, same LoRA."),
                io.Boolean.Input("gradient_checkpointing", default=True, optional=True, tooltip="Needs far less "
                                 "memory for about a third more time. Switch off if the model fits without."),
                io.Int.Input("warmup_steps", default=10, min=0, max=10000, optional=True, tooltip="Steps over which "
                             "the learning rate rises from 0, at most a tenth of the run."),
                io.Float.Input("max_grad_norm", default=1.0, min=0.0, max=1000.0, step=0.1, optional=True,
                               tooltip="A longer gradient is shortened to this; 0 = never."),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Apply LoRA and Save LoRA."),
                io.LossMap.Output(display_name="loss", tooltip="The loss of each step, for Plot Loss Graph."),
                io.String.Output(display_name="run", tooltip="The run's folder, with its log."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **inputs):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        known = {name: value for name, value in inputs.items() if value is not None}
        try:
            check_name(known.pop("run_name", "linked"))
            _config(**known)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model, cache, run_name, **settings) -> io.NodeOutput:
        lora, losses, folder = train(model, cache, run_name, _config(**settings), Live(cls.hidden))
        return io.NodeOutput(lora, {"loss": losses}, str(folder))


def _config(rank: int = 32, alpha: float = 32.0, **settings) -> TrainConfig:
    return TrainConfig(lora=LoraConfig(rank=rank, alpha=alpha), **settings)


def train(
    model, dataset: CachedDataset, run_name: str, config: TrainConfig, live: Live
) -> tuple[lora_file.LoraStateDict, list[float], str]:
    """The LoRA, the loss of each step, and the run's folder."""
    denoiser = ComfyDenoiser(model)
    _check_data(denoiser, dataset)
    base_digest = denoiser.id
    key = content_hash(dataset.digest, base_digest, config.to_dict())
    folder = RunFolder(paths.runs_folder(), run_name, key, config.to_dict())
    with torch.inference_mode(False):  # ComfyUI runs nodes in inference mode, where nothing can be learned
        linears = denoiser.linears()
        adapter = Adapter(config.lora, linears, denoiser.device, config.seed)
        trainer = Trainer(config, denoiser, adapter, dataset, folder)
        tokens = max(clip.bucket.num_tokens for clip in dataset.clips)
        checkpointing = config.gradient_checkpointing
        memory = denoiser.memory_estimate(tokens, config.batch_size, adapter, checkpointing)
        with denoiser.attached(adapter, linears, checkpointing, memory), closing(trainer.run()) as events:
            for event in events:
                live.publish(event)
        tensors = lora_file.from_adapter(adapter.state_dict(), config.lora.alpha)
    base_model = lora_keys.describe_model(denoiser.linear_sizes())
    metadata = lora_file.metadata(config, dataset, run_name, base_model, base_digest, trainer.step)
    return lora_file.LoraStateDict(tensors, metadata), trainer.losses, folder.path


def _check_data(denoiser: ComfyDenoiser, dataset: CachedDataset) -> None:
    batch = read_batch([dataset.clips[0].visit(0)])
    num_channels, text_width = batch.latent_BCFHW.shape[1], batch.text_BLD.shape[2]
    if num_channels != denoiser.num_channels:
        raise UserError(f"The cached latents have {num_channels} channels, the model takes "
                        f"{denoiser.num_channels}; cache with the VAE that belongs to the model.")
    if text_width != denoiser.text_width:
        raise UserError(f"The cached captions are {text_width} wide, the model takes {denoiser.text_width}; "
                        "cache with the UMT5 text encoder (Load CLIP: umt5_xxl, type wan).")
