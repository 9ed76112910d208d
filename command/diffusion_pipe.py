"""diffusion-pipe's config and dataset.toml as settings of ours.

Sources: its examples/main_example.toml and examples/dataset.toml, docs/supported_models.md, train.py and
utils/dataset.py (defaults).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..trainer.base.errors import UserError
from ..trainer.settings.adapter import MAX_RANK
from .foreign import Foreign, Table, beside, frames, read_toml, side

_OPTIMIZERS = {"adamw": "adamw", "adamw_optimi": "adamw", "adamw8bit": "adamw8bit", "adamw8bitkahan": "adamw8bit",
               "prodigy": "prodigy", "adafactor": "adafactor", "lion": "lion", "came": "came",
               "schedulefreeadamw": "schedule_free"}

_CLIP_MODES = {"single_beginning": "start", "single_middle": "middle", "multiple_overlapping": "uniform"}

_QUANTIZATIONS = {"float8": "fp8", "float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "nf4": "nf4"}

_PLANNED = "memory is planned by itself"


def read(path: Path) -> Foreign:
    """The settings in a config and in the dataset.toml it names, or in a dataset.toml alone.

    Raises:
        UserError: a file cannot be read, is for another model than Wan, or asks for a full fine-tune.
    """
    values = read_toml(path)
    if "directory" in values:
        datasets, notes = _datasets(path, values, 0.0, "start")
        return Foreign({"load_dataset": datasets}, tuple(notes))
    if "model" not in values:
        raise UserError(f"{path.name} has neither [model] nor [[directory]]; give diffusion-pipe's config or its "
                        "dataset.toml.")
    config = Table(path.name, values)
    first, dropout = config.take("dataset"), float(config.number("uncond_fraction", 0.0))
    optimizer, rate = _optimizer(config)
    adapter, size = _adapter(config)
    sections = {**_model(config), **_run(config), "adapter_settings": adapter, "optimizer_settings": optimizer}
    sections["train_wan_lora"] |= {**rate, **size}
    mode = config.take("video_clip_mode", "single_beginning")
    if mode not in _CLIP_MODES:
        config.note(f"video_clip_mode = {mode!r} is not known here; the start of each clip is taken")
    notes = config.end()
    if first:
        file = beside(first, path)
        sections["load_dataset"], more = _datasets(file, read_toml(file), dropout, _CLIP_MODES.get(mode, "start"))
        notes = [*notes, *more]
    return Foreign(sections, tuple(notes))


def _datasets(
    path: Path, values: Mapping[str, Any], dropout: float, extraction: str
) -> tuple[list[dict[str, Any]], list[str]]:
    shared = {key: value for key, value in values.items() if key != "directory"}
    found, notes, read = [], [], set()
    for number, directory in enumerate(values["directory"], 1):
        table = Table(f"{path.name}, directory {number}" if len(values["directory"]) > 1 else path.name, directory,
                      shared)
        found.append(_dataset(table, path, dropout, extraction))
        read |= table._read
        notes += table.end()
    rest = Table(path.name, {key: value for key, value in shared.items() if key not in read})
    return found, [*dict.fromkeys(notes), *rest.end()]


def _dataset(table: Table, path: Path, dropout: float, extraction: str) -> dict[str, Any]:
    folder = table.take("path")
    if not isinstance(folder, str):
        raise UserError(f"{table.title} has a [[directory]] without a path; give its folder.")
    folder = beside(folder, path)
    resolutions = sorted({side(each) for each in table.take("resolutions", [512])})
    settings: dict[str, Any] = {"more_resolutions": ", ".join(map(str, resolutions[1:])), "caption_dropout": dropout}
    settings["caption_fallback"] = "leave out" if table.take("skip_empty_caption", True) else "trigger word"
    if settings["caption_fallback"] != "leave out":
        table.note("skip_empty_caption = false gives files without a caption an empty one; here they get trigger_word, "
                   "and are left out where there is none")
    settings["shuffle_tags"] = bool(table.take("shuffle_tags") or table.take("cache_shuffle_num"))
    if table.take("cache_shuffle_num", 0) > 1 and table.take("cache_shuffle_num") != 8:
        table.note(f"cache_shuffle_num = {table.take('cache_shuffle_num')} orders of tags are up to 8 here")
    if table.take("cache_shuffle_delimiter", ", ").strip() != ",":
        table.note(f"cache_shuffle_delimiter is {table.take('cache_shuffle_delimiter')!r}; here tags have commas")
    masks = table.take("mask_path")
    settings["masks"] = "folder" if masks else "none"
    if masks and beside(masks, path) != folder / "masks":
        table.note(f"mask_path is {masks}; here masks are taken from {folder / 'masks'}, so put them there")
    prefix = str(table.take("caption_prefix", "")).strip(" ,.:")
    if prefix:
        table.note(f"caption_prefix becomes trigger_word {prefix!r}, put in front of captions that lack it")
    if table.take("enable_ar_bucket", True) is False:
        table.note("enable_ar_bucket = false has no counterpart: each file keeps its own aspect ratio")
    for key in ("min_ar", "max_ar", "num_ar_buckets", "ar_buckets", "size_buckets"):
        table.without(key, "buckets follow from the files' own aspect ratios, from 1:4 to 4:1")
    for key in ("control_path", "default_eval_path"):
        table.without(key, "it belongs to models for editing")
    return {"folder": str(folder), "trigger_word": prefix, "resolution": resolutions[0], "extraction": extraction,
            "frame_buckets": frames(table.take("frame_buckets", [1])), "upscale": True,
            "num_repeats": max(1, table.whole("num_repeats", 1)), "dataset_settings": settings}


def _model(config: Table) -> dict[str, Any]:
    table = Table(f"{config.title}, [model]", config.take("model"))
    kind = table.take("type")
    if kind != "wan":
        raise UserError(f"{config.title} is for a model of type {kind!r}; only wan is trained here.")
    checkpoint, transformer = table.take("ckpt_path"), table.take("transformer_path")
    dtype = {"float32": "float32", "float16": "float16"}.get(table.take("dtype"), "bfloat16")
    stored = table.take("transformer_dtype")
    if stored and stored not in (*_QUANTIZATIONS, table.take("dtype")):
        table.note(f"transformer_dtype = {stored!r} has no counterpart; choose quantization yourself")
    if stored == "float8_e5m2":
        table.note("transformer_dtype float8_e5m2 becomes fp8, which is e4m3 here")
    vae = table.take("vae_path")
    if checkpoint and not (vae and table.take("llm_path")):
        table.note(f"ckpt_path is {checkpoint}; here vae and clip are given as files of ComfyUI or folders of "
                   "diffusers, so add --vae and --clip")
    method = table.take("timestep_sample_method", "logit_normal")
    if method not in ("logit_normal", "uniform"):
        table.note(f"timestep_sample_method = {method!r} is not known here; logit_normal is taken")
    flux = bool(table.take("flux_shift"))
    if flux:
        table.note("flux_shift becomes resolution_shift, which has Wan's own numbers")
    objective = {"timesteps": "uniform" if method == "uniform" else "logit_normal", "resolution_shift": flux,
                 "logit_std": float(table.number("sigmoid_scale", 1.0)), "shift": float(table.number("shift", 1.0)),
                 "min_t": float(table.number("min_t", 0.0)), "max_t": float(table.number("max_t", 1.0))}
    models = {"model": transformer or checkpoint or "", "vae": vae or "", "clip": table.take("llm_path") or "",
              "clip_vision": table.take("clip_path") or "", "dtype": dtype,
              "quantization": _QUANTIZATIONS.get(stored, "none")}
    config.notes += table.end()
    return {"models": models, "timestep_and_loss_settings": objective}


def _run(config: Table) -> dict[str, Any]:
    batch = config.take("micro_batch_size_per_gpu", 1)
    if isinstance(batch, list):
        config.note(f"micro_batch_size_per_gpu differs by resolution; the smallest is taken for all, "
                    f"{min(number for _, number in batch)}")
        batch = min(number for _, number in batch)
    train = {"preset": "custom", "epochs": config.whole("epochs", 1), "max_steps": config.whole("max_steps", 0),
             "batch_size": batch, "gradient_checkpointing": bool(config.take("activation_checkpointing", False))}
    if config.take("pipeline_stages", 1) != 1:
        config.note("pipeline_stages has no counterpart: several GPUs share the batch, or the model's weights (see "
                    "docs/beyond_one_card.md)")
    for key, why in (("output_dir", "runs lie in the folder that --runs names"), ("blocks_to_swap", _PLANNED),
                     ("eval_datasets", "validation_items holds files of the dataset itself out"),
                     ("image_micro_batch_size_per_gpu", "pictures and clips have one batch size"),
                     ("pseudo_huber_c", "loss = huber with huber_delta is close to it"),
                     ("force_constant_lr", "give it as learning_rate"), ("save_dtype", "LoRAs are written in fp32"),
                     ("eval_every_n_examples", "give epochs or steps"),
                     ("save_every_n_examples", "give epochs or steps"),
                     ("checkpoint_every_n_epochs", "give every_epochs; each checkpoint is a LoRA, too")):
        config.without(key, why)
    config.pass_over("eval_before_first_step", "steps_per_print", "logging_steps", "partition_method",
                     "reentrant_activation_checkpointing", "caching_batch_size", "map_num_proc")
    monitoring = config.take("monitoring") or {}
    if monitoring.get("enable_wandb"):
        config.note("[monitoring] has no counterpart: each run writes TensorBoard's events into its folder")
    kept = {"every_epochs": config.whole("save_every_n_epochs", 0),
            "every_steps": config.whole("save_every_n_steps", 0),
            "every_minutes": float(config.number("checkpoint_every_n_minutes", 0.0)),
            "evaluate_epochs": config.whole("eval_every_n_epochs", 0),
            "evaluate_steps": config.whole("eval_every_n_steps", 0)}
    found = {"train_wan_lora": train, "validation_and_checkpoint_settings": kept}
    return found | ({"memory_settings": {"compile": "on"}} if config.take("compile") else {})


def _adapter(config: Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections adapter_settings and, in part, train_wan_lora."""
    if "adapter" not in config.values:
        raise UserError(f"{config.title} has no [adapter], which asks for a full fine-tune; only adapters are trained "
                        "here, so add one.")
    table = Table(f"{config.title}, [adapter]", config.take("adapter"))
    kind = table.take("type", "lora")
    if kind not in ("lora", "lokr"):
        raise UserError(f"{config.title} has an adapter of type {kind!r}; lora and lokr are known.")
    rank = int(table.number("rank", 32))
    if rank > MAX_RANK:
        table.note(f"rank = {rank} is {MAX_RANK} here, the most there is")
        rank = MAX_RANK
    start = table.take("init_from_existing") or ""
    if start and Path(start).is_dir():
        start = str(Path(start) / "adapter_model.safetensors")
    table.pass_over("dtype", "alpha")  # alpha is always the rank there; adapters are fp32 here
    settings: dict[str, Any] = {"kind": kind, "dropout": float(table.number("dropout", 0.0))}
    if kind == "lokr":
        settings["lokr_factor"] = int(table.number("decompose_factor", -1))
    config.notes += table.end()
    return settings, {"rank": rank, "alpha": float(rank), "continue_from": start}


def _optimizer(config: Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections optimizer_settings and, in part, train_wan_lora."""
    table = Table(f"{config.title}, [optimizer]", config.take("optimizer", {}))
    name = str(table.take("type", "adamw"))
    if name.lower() not in _OPTIMIZERS:
        table.note(f"type = {name!r} has no counterpart; adamw is taken")
    beta1, beta2 = [*table.take("betas", (0.9, 0.99))][:2]
    schedule = config.take("lr_scheduler", "constant")
    if schedule not in ("constant", "linear", "cosine"):
        config.note(f"lr_scheduler = {schedule!r} has no counterpart; constant is taken")
        schedule = "constant"
    found = {"name": _OPTIMIZERS.get(name.lower(), "adamw"), "beta1": float(beta1), "beta2": float(beta2),
             "eps": float(table.number("eps", 1e-8)), "weight_decay": float(table.number("weight_decay", 0.01)),
             "schedule": schedule, "warmup_steps": config.whole("warmup_steps", 0),
             "accumulation": max(1, config.whole("gradient_accumulation_steps", 1)),
             "max_grad_norm": float(config.number("gradient_clipping", 1.0))}
    rate = float(table.number("lr", 2e-5))
    config.notes += table.end()
    return found, {"learning_rate": rate}
