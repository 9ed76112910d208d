"""A process that has loaded ComfyUI and the small world once, and forks a child for each command it gets.

Started by killer.py as `python killable.py COMFYUI_FOLDER`. Each line on stdin is a command in JSON, the name of a
function below (fill, train or train_pair) and its arguments. It prints the child's process id and, at its end, its exit
code, which is -9 where it was killed.
"""

import json
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

world = {}
"""Loaded once: `encoders` and `model`."""


def main(comfyui: Path) -> None:
    """Serve until stdin ends."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "tests")]
    pack = types.ModuleType("wantune")
    pack.__path__ = [str(ROOT)]
    sys.modules["wantune"] = pack
    from wantune.demo import launch

    launch.prepare_imports()
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    launch.import_comfyui(comfyui)
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec
    from wantune.tests.support import tools

    vae, clip = tools.load_vae(), tools.load_clip()
    world.update(encoders=(WanCodec(vae), {"text": CaptionEncoder(clip)}), vae=vae, clip=clip,
                 model=tools.load_dit(tools.WORLD / "dit.safetensors"))
    print("ready", flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            {"fill": fill, "train": train, "train_pair": train_pair}[name](*arguments)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def fill(folder: str, place: str) -> None:
    """Scan `folder` and fill the cache `place`, with settings that make many kinds of files.

    These are windows of clips, orders of tags, masks and two resolutions.
    """
    from wantune.tests.support import tools
    from wantune.trainer.data import scan
    from wantune.trainer.encoded import fill as filling
    from wantune.trainer.encoded.store import Store
    from wantune.trainer.settings.data import DatasetConfig

    config = DatasetConfig(folder=str(folder), resolution=64, more_resolutions=(96,), frame_buckets=(1, 17),
                           extraction="chunks", trigger_word="zwx", shuffle_tags=True, caption_dropout=0.1)
    tools.drained(filling.fill(scan.scan(config, Path(place) / "scans"), Store(Path(place)),
                             *world["encoders"]))


def train(folder: str, place: str, optimizer: dict, objective: dict, epochs: int) -> None:
    """Train on `folder` with a checkpoint every other step; writes the LoRA and each loss to `place`/result.json.

    Some steps are followed by a preview, some by measuring on what is held out; older checkpoints are deleted.
    """
    import folder_paths
    import torch

    from wantune.nodes import train
    from wantune.nodes.previews import PreviewSettings
    from wantune.tests.support import tools
    from wantune.trainer.data import scan
    from wantune.trainer.encoded import fill as filling
    from wantune.trainer.encoded.store import Store
    from wantune.trainer.settings.data import DatasetConfig
    from wantune.trainer.settings.training import (
        LoraConfig,
        ObjectiveConfig,
        OptimizerConfig,
        TrainConfig,
        ValidationConfig,
    )

    folder_paths.output_directory = place
    config = DatasetConfig(folder=folder, resolution=64, frame_buckets=(1, 5), num_repeats=3, trigger_word="zwx",
                           validation_items=1, caption_dropout=0.2)
    store = Store(Path(folder).parent / "cache")
    cached = tools.drained(filling.fill(scan.scan(config), store, *world["encoders"]))[1]
    settings = TrainConfig(
        epochs=epochs, batch_size=2, learning_rate=1e-3, lora=LoraConfig(rank=4), gradient_checkpointing=False,
        optimizer=OptimizerConfig(**optimizer), objective=ObjectiveConfig(**objective),
        validation=ValidationConfig(every_steps=2, evaluate_steps=3, every_epochs=0))
    with torch.inference_mode():  # as ComfyUI runs nodes
        prompts = {name: world["clip"].encode_from_tokens_scheduled(world["clip"].tokenize(text))
                   for name, text in (("positive", "zwx a digit"), ("negative", ""))}
        (previews,) = PreviewSettings.execute(
            **prompts, vae=world["vae"], width=64, height=64, frames=1, steps=1, cfg=1.0, shift=5.0, seed=0,
            every_epochs=0, every_steps=3).result
        lora, losses, _ = train.train(world["model"], cached, "killed", settings, tools.Watch(), previews=previews)
    content = {"losses": losses, "lora": {key: value.flatten().tolist() for key, value in lora.items()}}
    Path(place, "result.json").write_text(json.dumps(content), encoding="utf-8")


def train_pair(folder: str, low: str, place: str, epochs: int) -> None:
    """Train both experts on `folder` by turns of two steps, `low` being the file of the low-noise one.

    Writes the LoRAs and each loss to `place`/result.json.
    """
    import folder_paths

    from wantune.nodes import pair
    from wantune.tests.support import tools
    from wantune.trainer.data import scan
    from wantune.trainer.encoded import fill as filling
    from wantune.trainer.encoded.store import Store
    from wantune.trainer.settings.data import DatasetConfig
    from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig
    from wantune.trainer.training import pair as turns

    turns.LEAST_STEPS, turns.SHARE_OF_SWAPS = 2, 1e6
    folder_paths.output_directory = place
    config = DatasetConfig(folder=folder, resolution=64, num_repeats=2, trigger_word="zwx", validation_items=1)
    store = Store(Path(folder).parent / "cache")
    cached = tools.drained(filling.fill(scan.scan(config), store, *world["encoders"]))[1]
    settings = TrainConfig(
        epochs=epochs, learning_rate=1e-3, lora=LoraConfig(rank=4), optimizer=OptimizerConfig(ema_decay=0.9),
        validation=ValidationConfig(every_steps=2, evaluate_steps=3, every_epochs=0))
    both = {"high": pair.Expert(model=world["model"]), "low": pair.Expert(model=tools.load_dit(Path(low)))}
    trained = pair.train(both, cached, "killed", settings, tools.PairWatch())
    content = {expert: {"losses": each.losses,
                        "lora": {key: value.flatten().tolist() for key, value in each.lora.items()}}
               for expert, each in trained.items()}
    Path(place, "result.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
