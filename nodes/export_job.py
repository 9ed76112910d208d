"""Export Training Job: what Train Wan LoRA would do here, as a folder for another machine (trainer/job/)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comfy_api.latest import io, ui

from ..trainer.base.errors import UserError, content_hash
from ..trainer.base.switches import own_switches
from ..trainer.encoded.cache import CachedDataset
from ..trainer.job.configs import of_train, train_config
from ..trainer.job.widgets import SECTIONS
from ..trainer.job.writing import Content, ModelFile, write
from ..trainer.runs.folder import check_name
from ..trainer.settings.presets import CUSTOM
from ..trainer.settings.training import BY_TURNS, TrainConfig
from ..trainer.training.experts import HIGH, LOW, check_pair, of_expert
from ..trainer.training.suited import suited
from . import pair, sockets
from .backend import graph, named, paths
from .backend.carried import bare
from .backend.denoiser import ComfyDenoiser
from .backend.fingerprint import of_weights
from .media.previewer import PreviewConfig
from .page.live import show_text
from .page.progress_line import ProgressLine
from .train import TrainWanLoRA, as_sampled, experts_of

_NOT_HERE = ("cache", "restart", "attempt")
"""Inputs of Train Wan LoRA that say nothing of a job, or are another kind of input here."""

_MODELS = ("model", "model_low")

_ENCODERS = {"vae": ("vae_name",), "clip": ("clip_name", "clip_name1"), "clip_vision": ("clip_name",)}
"""Inputs of Cache Latents, and the widgets of ComfyUI's loaders with their files."""

_CASTS = ("weight_dtype",)
"""The widget of ComfyUI's loader that changes the precision of a file's weights."""

_PROMPTS = ("positive", "positive_2", "positive_3")


class ExportTrainingJob(io.ComfyNode):
    """A folder that takes the run to another machine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        of_train_wan_lora = [each for each in TrainWanLoRA.define_schema().inputs if each.id not in _NOT_HERE]
        return io.Schema(
            node_id="WanTune_ExportTrainingJob",
            display_name="Export Training Job",
            category="WanTune",
            description="Writes a folder with which another machine trains what Train Wan LoRA would train here, "
                        "without ComfyUI and on one graphics card or several. The graph goes on with the run that "
                        "comes back.",
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset or Join Datasets."),
                io.Boolean.Input("include_dataset", default=True, tooltip="Copy pictures, clips and captions into the "
                                 "folder. Off: they are named there, and checked."),
                io.Boolean.Input("include_cache", default=True, tooltip="Put what Cache Latents has encoded into the "
                                 "folder: the other machine then needs neither VAE nor text encoder, and the run that "
                                 "comes back is the one of this graph. Connect cache for it."),
                sockets.Cache.Input("cache", optional=True, tooltip="From Cache Latents, of the same dataset."),
                *of_train_wan_lora,
            ],
            outputs=[io.String.Output(display_name="folder", tooltip="The job's folder, in output/wantune_jobs.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **inputs):
        """True, or the sentence the page shows before anything runs; linked inputs are not known yet (None)."""
        for name in ("dataset", "include_dataset", "include_cache"):
            inputs.pop(name, None)
        return TrainWanLoRA.validate_inputs(**inputs)

    @classmethod
    def execute(
        cls, dataset, include_dataset, include_cache, model, run_name, cache=None, previews=None, preset=CUSTOM,
        continue_from=None, model_low=None, order=BY_TURNS, continue_from_low=None, **settings
    ) -> io.NodeOutput:
        settings["objective"] = as_sampled(settings.get("objective"), previews)
        config, name = train_config(preset, **settings), check_name(run_name)
        experts = experts_of(cls.hidden, model, continue_from, model_low, continue_from_low)
        given = {role: each for role, each in zip(_MODELS, experts, strict=True) if each is not None}
        cached, denoisers = cache if include_cache else None, _checked(given, cache, config)
        shown, notes = _previews(cls.hidden, previews)
        sections = {**of_train(config), **shown}
        sections["train_wan_lora"] |= {"run_name": name, "order": order}
        content = Content(
            sections=sections, dataset=dataset, cached=cached, has_data=include_dataset, loras=_loras(given),
            models=_models(cls.hidden, given, denoisers, cached is None), dtype=_dtype(denoisers))
        with own_switches():
            folder = ProgressLine(cls.hidden, "copying").follow(write(paths.new_job_folder(name), content))
        notes = [f"Wrote {folder}", *_missing(content), *_cast(cls.hidden, given), *notes]
        show_text(cls.hidden, text := "\n".join(notes))
        return io.NodeOutput(str(folder), ui=ui.PreviewText(text))


def _checked(given: Mapping[str, pair.Expert], cache: CachedDataset | None, config: TrainConfig) -> list[ComfyDenoiser]:
    """The models, once it is certain that the other machine can have the same.

    Raises:
        UserError: something is on one of them, they are no pair, or the cache is for other models.
    """
    denoisers = []
    for expert in given.values():
        denoisers.append(ComfyDenoiser(expert.model))
        with bare(expert.model):
            is_plain = denoisers[-1].id == content_hash(of_weights(expert.model), {})
        if not is_plain:
            raise UserError(f"A LoRA or another change is on the model {expert.file}, which the other machine "
                            "does not have; connect it as it was loaded, and a LoRA to begin with to continue_from.")
    if len(denoisers) == 2:
        pair.check(dict(zip((HIGH, LOW), given.values(), strict=True)))
        check_pair(*denoisers)
        of_expert(config.objective, HIGH)
    if cache is not None:
        suited(denoisers[0], cache)
    return denoisers


def _models(
    hidden, given: Mapping[str, pair.Expert], denoisers: Sequence[ComfyDenoiser], has_encoders: bool
) -> dict[str, ModelFile]:
    models = {}
    for (role, expert), denoiser in zip(given.items(), denoisers, strict=True):
        path = named.path_of(expert.file, expert.model)
        models[role] = ModelFile(path.name if path else expert.file, path, denoiser.id)
    return models | (_encoders(hidden) if has_encoders else {})


def _loras(given: Mapping[str, pair.Expert]) -> dict[str, Mapping]:
    return {f"continue_from{role.removeprefix('model')}": expert.continued for role, expert in given.items()
            if expert.continued is not None}


def _dtype(denoisers: Sequence[ComfyDenoiser]) -> str:
    return str(denoisers[0].compute_dtype).removeprefix("torch.")


def _encoders(hidden) -> dict[str, ModelFile]:
    """The files behind the Cache Latents that is connected, as far as the graph tells them."""
    prompt = hidden.prompt or {} if hidden else {}
    cache_latents = graph.above(prompt, hidden.unique_id, "cache") if hidden else ""
    names = {role: graph.file_above(prompt, cache_latents, role, widgets) for role, widgets in _ENCODERS.items()}
    return {role: ModelFile(name, named.path_of(name, kind=role)) for role, name in names.items() if name}


def _previews(hidden, previews: PreviewConfig | None) -> tuple[dict[str, dict], list[str]]:
    """The section of the previews, and a sentence where the graph does not tell what they are of."""
    if previews is None:
        return {}, []
    prompt = hidden.prompt or {} if hidden else {}
    node = graph.above(prompt, hidden.unique_id, "previews") if hidden else ""
    texts = [graph.text_above(prompt, node, socket) for socket in _PROMPTS if graph.above(prompt, node, socket)]
    if not texts or None in texts:
        return {}, ["The prompts of the previews are not known, as no CLIP Text Encode is connected to Preview "
                    "Settings; write them into job.toml for previews."]
    shift = previews.shift
    if previews.model is not None:
        shift = float(getattr(previews.model.get_model_object("model_sampling"), "shift", shift))
    sampling = {widget.name: getattr(previews.sampling, widget.name) for widget in SECTIONS["preview_settings"].widgets
                if hasattr(previews.sampling, widget.name)}
    return {"preview_settings": {
        **sampling, "prompts": [" ".join(text.split()) for text in texts], "shift": shift,
        "negative": graph.text_above(prompt, node, "negative") or "", "every_epochs": previews.every_epochs,
        "every_steps": previews.every_steps}}, []


def _cast(hidden, given: Mapping[str, pair.Expert]) -> list[str]:
    """Sentences about models that the other machine has in another precision."""
    prompt = hidden.prompt or {} if hidden else {}
    casts = {role: graph.widget_above(prompt, hidden.unique_id, role, _CASTS) for role in given} if prompt else {}
    return [f"{given[role].file} is loaded as {cast} here, and as its file has it on the other machine, which learns "
            "almost the same from it. Set weight_dtype to default for the very same."
            for role, cast in casts.items() if cast not in ("", "default")]


def _missing(content: Content) -> list[str]:
    """Sentences about what keeps the run from being the one of this graph."""
    notes = []
    for role, file in content.models.items():
        if not file.name:
            notes.append(f"The file of {role} is not known; write it into job.toml.")
        elif file.path is None:
            notes.append(f"{file.name} was not found among the files of ComfyUI, so the other machine cannot tell "
                         "whether it has the same.")
    if content.cached is None:
        notes.append("The cache is not included: the other machine needs VAE and text encoder, and its run is another "
                     "one than that of this graph.")
    return notes
