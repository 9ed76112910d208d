"""The example workflow in API form, adapted to the models and the data of a demo."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

EXAMPLE = Path("example_workflows", "api", "train_and_compare.json")
TEXT_ENCODER = "WanTuneTest_LoadTextEncoder"


@dataclass(frozen=True)
class SmallWorld:
    """What the example uses with the small models of tests/world: 600 steps, about a minute on a CPU."""

    folder: Path = Path("tests", "world", "nines")
    prompt: str = "a yellow GF Carty Chan digit moving left"
    unet: str = "dit.safetensors"
    vae: str = "vae.safetensors"
    clip: str = "umt5.safetensors"
    width: int = 64
    height: int = 64
    length: int = 9
    resolution: int = 64
    frame_buckets: str = "1"
    batch_size: int = 4
    epochs: int = 20
    learning_rate: float = 5e-4
    rank: int = 32
    alpha: int = 32
    sampler_name: str = "euler"
    steps: int = 8
    cfg: float = 4.0
    seed: int = 10


SMALL_WORLD = SmallWorld()

PRESERVING = {
    "timesteps": "logit_normal", "logit_mean": 0.0, "logit_std": 1.0, "mode_scale": 1.29, "beta_a": 1.0, "beta_b": 1.0,
    "shift": 1.0, "resolution_shift": False, "min_t": 0.0, "max_t": 1.0, "stratified": False, "weighting": "none",
    "loss": "mse", "huber_delta": 1.0, "noise_offset": 0.0, "window": "whole", "stills_min_t": 0.0, "stills_max_t": 1.0,
    "clips_min_t": 0.0, "clips_max_t": 1.0, "preserve": 1.0, "preserve_every": 4,
}
"""Timestep and Loss Settings of the small world, all its widgets in their order: the defaults, and the model is held to
what it was without the trigger word. From stills alone it then shows the nine in more frames of a video
(docs/learning.md)."""


@dataclass(frozen=True)
class Shown:
    """Ids of the nodes whose outputs the demo collects."""

    base: str
    tuned: str
    compare: str
    apply: str
    run: str
    lora_name: str


def load(root: Path) -> dict:
    """The example workflow as it is in the repository."""
    return json.loads((root / EXAMPLE).read_text(encoding="utf-8"))


def uses_small_world(options) -> bool:
    """Whether to use the small world (docs/small_world.md): unless the user names a real model."""
    return not (options.unet or options.vae or options.clip)


def name_installed_models(example: dict, options, models: Path) -> None:
    """Where the user names no model, name the example's real ones if all three lie in ComfyUI's models folder."""
    wanted = {
        "unet": (_of(example, "UNETLoader")["unet_name"], ("diffusion_models", "unet")),
        "vae": (_of(example, "VAELoader")["vae_name"], ("vae",)),
        "clip": (_of(example, "CLIPLoader")["clip_name"], ("text_encoders", "clip")),
    }
    there = all(
        any((models / folder / name).is_file() for folder in folders) for name, folders in wanted.values()
    )
    if there and uses_small_world(options):
        for option, (name, _) in wanted.items():
            setattr(options, option, name)


def adapt(example: dict, options, root: Path) -> dict:
    """The example with the user's choices, on the small world unless a real model is named.

    Raises:
        ValueError: --folder names no folder.
    """
    graph = copy.deepcopy(example)
    if uses_small_world(options):
        _use_small_world(graph, root)
    elif not options.folder:
        # a real model can learn the small world's nine, too; it trains on far larger pictures, hence upscale
        _set(graph, "WanTune_LoadDataset", folder=str(root / SMALL_WORLD.folder), upscale=True)
        _prompt(graph)["text"] = "a GF Carty Chan digit in red on a dark background"
    if options.folder:
        folder = options.folder.expanduser().absolute()
        if not folder.is_dir():
            raise ValueError(f"--folder names {folder}, which is no folder; name one with pictures or clips.")
        _set(graph, "WanTune_LoadDataset", folder=str(folder))
    _set(graph, "UNETLoader", unet_name=options.unet)
    _set(graph, "VAELoader", vae_name=options.vae)
    _set(graph, "CLIPLoader", clip_name=options.clip)
    _set(graph, "WanTune_LoadDataset", trigger_word=options.trigger)
    _set(graph, "WanTune_TrainWanLoRA", epochs=options.epochs, seed=options.seed)
    for sampling in ("KSampler", "WanTune_PreviewSettings"):
        _set(graph, sampling, seed=options.seed)
    _prompt(graph)["text"] = options.prompt or _prompt(graph)["text"]
    return graph


def add_outputs(graph: dict) -> Shown:
    """Save both videos on their own and show the two names that the demo needs."""
    compare = only(graph, "WanTune_CompareVideos")
    train, save = only(graph, "WanTune_TrainWanLoRA"), only(graph, "WanTune_SaveLoRA")
    return Shown(
        base=_add_video(graph, graph[compare]["inputs"]["base"], "base"),
        tuned=_add_video(graph, graph[compare]["inputs"]["tuned"], "lora"),
        compare=compare,
        apply=only(graph, "WanTune_ApplyLoRA"),
        run=_add(graph, "PreviewAny", source=[train, 2]),
        lora_name=_add(graph, "PreviewAny", source=[save, 0]),
    )


def only(graph: dict, class_type: str) -> str:
    """The id of the single node of that type.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [number for number, node in graph.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise ValueError(f"{EXAMPLE} has {len(found)} nodes {class_type}; the demo needs exactly one.")
    return found[0]


def _of(graph: dict, class_type: str) -> dict:
    return graph[only(graph, class_type)]["inputs"]


def _use_small_world(graph: dict, root: Path) -> None:
    world = SMALL_WORLD
    # ComfyUI's own loader accepts only the full-size UMT5.
    graph[only(graph, "CLIPLoader")] = {"class_type": TEXT_ENCODER, "inputs": {"name": world.clip}}
    _set(graph, "UNETLoader", unet_name=world.unet)
    _set(graph, "VAELoader", vae_name=world.vae)
    _set(graph, "EmptyHunyuanLatentVideo", width=world.width, height=world.height, length=world.length)
    _set(graph, "KSampler", sampler_name=world.sampler_name, steps=world.steps, cfg=world.cfg, seed=world.seed)
    _set(
        graph,
        "WanTune_PreviewSettings",
        width=world.width,
        height=world.height,
        frames=world.length,
        steps=world.steps,
        cfg=world.cfg,
        sampler_name=world.sampler_name,
        seed=world.seed,
    )
    _set(
        graph,
        "WanTune_LoadDataset",
        folder=str(root / world.folder),
        resolution=world.resolution,
        frame_buckets=world.frame_buckets,
    )
    _set(
        graph,
        "WanTune_TrainWanLoRA",
        batch_size=world.batch_size,
        epochs=world.epochs,
        learning_rate=world.learning_rate,
        rank=world.rank,
        alpha=world.alpha,
    )
    objective = _add(graph, "WanTune_ObjectiveSettings", **PRESERVING)
    _set(graph, "WanTune_TrainWanLoRA", objective=[objective, 0])
    _prompt(graph)["text"] = world.prompt
    _prompt(graph, "negative")["text"] = ""  # it knows none of the words of the example's


def _prompt(graph: dict, socket: str = "positive") -> dict:
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    return graph[sampler["inputs"][socket][0]]["inputs"]


def _set(graph: dict, class_type: str, **values) -> None:
    chosen = {name: value for name, value in values.items() if value is not None}
    for node in graph.values():
        if node["class_type"] == class_type:
            node["inputs"].update(chosen)


def _add(graph: dict, class_type: str, **inputs) -> str:
    # Above all ids of the workflow in the page, where notes have ids, too, though they are missing in the API form.
    number = str(max(999, *map(int, graph)) + 1)
    graph[number] = {"class_type": class_type, "inputs": inputs}
    return number


def _add_video(graph: dict, images: list, name: str) -> str:
    video = _add(graph, "CreateVideo", images=images, fps=16.0)
    # "format.codec" is where newer versions look for the codec, "codec" is for the older ones.
    choice = {"format": "mp4", "codec": "h264", "format.codec": "h264"}
    return _add(graph, "SaveVideo", video=[video, 0], filename_prefix=f"demo/{name}", **choice)
