"""musubi-tuner's dataset TOML, and the arguments of its wan_train_network.py, as settings of ours.

Sources: its docs/dataset_config.md, docs/wan.md, src/musubi_tuner/dataset/config_utils.py (keys, defaults) and
src/musubi_tuner/training/parser_common.py (arguments, defaults).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..trainer.base.errors import UserError
from .foreign import Foreign, Table, beside, frames, read_toml, side

_OPTIMIZERS = {"": "adamw", "adamw": "adamw", "torch.optim.adamw": "adamw", "adamw8bit": "adamw8bit",
               "bitsandbytes.optim.adamw8bit": "adamw8bit", "adafactor": "adafactor", "lion": "lion",
               "prodigy": "prodigy", "prodigyopt.prodigy": "prodigy", "came": "came"}

_EXTRACTIONS = {"head": "start", "chunk": "chunks", "uniform": "uniform", "slide": "uniform", "full": "start"}

_KINDS = {"networks.lora_wan": "lora", "networks.lora": "lora", "networks.loha": "loha", "networks.lokr": "lokr"}

_SAMPLINGS = {"sigma": "uniform", "uniform": "uniform", "sigmoid": "logit_normal", "shift": "logit_normal"}

_ALWAYS = tuple("""
    sdpa flash_attn flash3 sage_attn xformers split_attn max_data_loader_n_workers persistent_data_loader_workers
    logging_dir log_with log_prefix dataset_config config_file gradient_checkpointing_cpu_offload save_state
    save_state_on_train_end cache_directory vae_dtype preserve_distribution_shape use_pinned_memory_for_block_swap
    offload_inactive_dit vae_cache_cpu disable_numpy_memmap fp8_t5 guidance_scale force_v2_1_time_embedding""".split())
"""Arguments without an effect on what is learned, for which something is done here in any case."""


def read(paths: Sequence[Path]) -> Foreign:
    """The settings in a dataset TOML and, if given, in a config_file or a script with the command line.

    Raises:
        UserError: a file cannot be read, no folder is given, or the task is no Wan's.
    """
    sections: dict[str, Any] = {}
    notes: list[str] = []
    condition, batches = "none", {1}
    for path in sorted(paths, key=lambda path: path.suffix.lower() == ".toml" and "datasets" in read_toml(path)):
        values = read_toml(path) if path.suffix.lower() == ".toml" else _of_script(path)
        if "datasets" in values:
            sections["load_dataset"], batches, more = _datasets(path, values, condition)
        else:
            table = Table(path.name, _flat(values))
            condition = _condition(table)
            sections |= _arguments(table)
            more = table.end()
        notes += more
    if max(batches) > 1 or len(batches) > 1:
        if len(batches) > 1:
            notes.append(f"The datasets have the batch sizes {', '.join(map(str, sorted(batches)))}; here there is "
                         f"one, {max(batches)}.")
        sections.setdefault("train_wan_lora", {})["batch_size"] = max(batches)
    return Foreign(sections, tuple(notes))


def _datasets(
    path: Path, values: Mapping[str, Any], condition: str
) -> tuple[list[dict[str, Any]], set[int], list[str]]:
    """The datasets, their batch sizes, and notes."""
    found, batches, notes = [], set(), []
    for number, entry in enumerate(values["datasets"], 1):
        title = f"{path.name}, dataset {number}" if len(values["datasets"]) > 1 else path.name
        table = Table(title, entry, values.get("general", {}))
        batches.add(table.whole("batch_size", 1))
        found.append(_dataset(table, path, condition))
        notes += table.end()
    return found, batches, list(dict.fromkeys(notes))


def _dataset(table: Table, path: Path, condition: str) -> dict[str, Any]:
    folder = table.take("video_directory") or table.take("image_directory")
    if not folder:
        listed = next((key for key in ("video_jsonl_file", "image_jsonl_file") if table.take(key)), "")
        raise UserError(f"{table.title} has {f'a {listed}, which is not read here' if listed else 'no folder'}; give a "
                        "folder of files with a .txt caption beside each.")
    folder, table_folder = beside(folder, path), table.take("control_directory")
    extraction = table.take("frame_extraction", "head")
    counts = table.take("target_frames", [1])
    if extraction == "full":
        counts = [table.whole("max_frames", 129)]
        table.note(f"frame_extraction = full takes each clip whole; here the first {counts[0]} frames at most, and "
                   "shorter clips need a frame bucket of their own")
    elif extraction == "slide":
        table.note("frame_extraction = slide becomes uniform: evenly spaced parts that may overlap")
    elif extraction not in _EXTRACTIONS:
        table.note(f"frame_extraction = {extraction!r} is not known here; the start of each clip is taken")
    table.pass_over("max_frames", "cache_directory", "frame_stride", "frame_sample", "skip_corrupted_cache",
                    "source_fps", "video_directory", "image_directory")
    if table.take("video_directory") and table.take("source_fps") is None:
        table.note("without source_fps every frame of a clip is taken whatever its rate; here each is taken at 16 a "
                   "second by the rate in its file")
    if table.take("enable_bucket", False) is False:
        table.note("enable_bucket = false crops all files to one size; here each keeps its own aspect ratio")
    if table.take("caption_extension", ".txt") not in (".txt", ".caption"):
        table.note(f"caption_extension is {table.take('caption_extension')}; here captions are .txt or .caption files")
    if table_folder:
        condition = "control clip"
        if beside(table_folder, path) != folder / "control":
            table.note(f"control_directory is {table_folder}; here control clips are taken from {folder / 'control'}, "
                       "so put them there")
    return {"folder": str(folder), "resolution": side(table.take("resolution", [960, 544])),
            "frame_buckets": frames(counts), "extraction": _EXTRACTIONS.get(extraction, "start"),
            "num_repeats": max(1, table.whole("num_repeats", 1)), "upscale": not table.take("bucket_no_upscale", False),
            "dataset_settings": {"masks": "none", "condition": condition}}


def _condition(table: Table) -> str:
    """What the model of a task is given beside captions."""
    task = str(table.take("task", "t2v-14B"))
    if not task.startswith(("t2v-", "i2v-", "t2i-", "flf2v-")):
        raise UserError(f"{table.title} is for the task {task}; those of Wan begin with t2v, i2v, t2i or flf2v.")
    if task.endswith("-FC"):
        return "control clip and first frame" if task.startswith("i2v") else "control clip"
    return {"i2v": "first frame", "flf": "first and last frame"}.get(task[:3], "none")


def _arguments(table: Table) -> dict[str, Any]:
    table.pass_over("task", *_ALWAYS)
    low = table.take("dit_high_noise")
    models = {"model": low or table.take("dit") or "", "model_low": table.take("dit") if low else "",
              "vae": table.take("vae") or "", "clip": table.take("t5") or "", "clip_vision": table.take("clip") or "",
              "dtype": {"fp16": "float16", "no": "float32"}.get(table.take("mixed_precision"), "bfloat16"),
              "quantization": "fp8" if table.take("fp8_base") or table.take("fp8_scaled") else "none"}
    table.pass_over("dit", "fp8_scaled")
    for key, why in (("output_dir", "runs lie in the folder that --runs names"),
                     ("blocks_to_swap", "memory is planned by itself"), ("resume", "a run goes on by itself"),
                     ("sample_prompts", "give --prompts"), ("scale_weight_norms", "it is not done here"),
                     ("base_weights", "merge them with `wantune lora merge --into`"),
                     ("network_args", "see Adapter Settings"), ("num_timestep_buckets", "stratified is close to it")):
        table.without(key, why)
    found = {"models": models, "train_wan_lora": _train(table), "adapter_settings": _adapter(table),
             "optimizer_settings": _optimizer(table), "timestep_and_loss_settings": _objective(table),
             "validation_and_checkpoint_settings": {
                 "every_epochs": table.whole("save_every_n_epochs", 0),
                 "every_steps": table.whole("save_every_n_steps", 0),
                 "keep_last": max(1, table.whole("save_last_n_epochs", 10000))}}
    return found | ({"memory_settings": {"compile": "on"}} if table.take("compile") else {})


def _train(table: Table) -> dict[str, Any]:
    epochs = table.whole("max_train_epochs", 0)
    # an epoch count overrules steps there, and without one the steps alone end the run
    length = {"epochs": epochs, "max_steps": 0} if epochs else {
        "epochs": 100_000, "max_steps": table.whole("max_train_steps", 1600)}
    table.pass_over("max_train_steps", "dim_from_weights")
    if table.take("seed") is None:
        table.note("without a seed musubi-tuner draws one; here it is 0")
    rank = table.whole("network_dim", 4)
    return {"preset": "custom", **length, "run_name": str(table.take("output_name") or "my_lora"),
            "learning_rate": float(table.number("learning_rate", 2e-6)), "rank": rank,
            "alpha": float(table.number("network_alpha", 1.0)), "seed": int(table.number("seed", 0)),
            "boundary": _level(table.number("timestep_boundary", 0.0)),
            "gradient_checkpointing": bool(table.take("gradient_checkpointing", False)),
            "continue_from": str(table.take("network_weights") or "")}


def _adapter(table: Table) -> dict[str, Any]:
    module = str(table.take("network_module") or "networks.lora_wan")
    if module not in _KINDS:
        table.note(f"network_module = {module} has no counterpart; a plain LoRA is trained")
    return {"kind": _KINDS.get(module, "lora"), "dropout": float(table.number("network_dropout", 0.0))}


def _optimizer(table: Table) -> dict[str, Any]:
    name = str(table.take("optimizer_type") or "")
    if name.lower() not in _OPTIMIZERS:
        table.note(f"optimizer_type = {name} has no counterpart; adamw is taken")
    schedule = str(table.take("lr_scheduler") or "constant").removesuffix("_with_warmup")
    if schedule not in ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"):
        table.note(f"lr_scheduler = {schedule} has no counterpart; constant is taken")
        schedule = "constant"
    warmup = table.number("lr_warmup_steps", 0)
    if 0 < warmup < 1:
        table.note(f"lr_warmup_steps = {warmup} is a share of the steps; here it is a number, so set warmup_steps")
        warmup = 0
    found = {"name": _OPTIMIZERS.get(name.lower(), "adamw"), "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
             "weight_decay": 0.01, "schedule": schedule, "warmup_steps": int(warmup),
             "cycles": table.whole("lr_scheduler_num_cycles", 1),
             "power": float(table.number("lr_scheduler_power", 1.0)),
             "accumulation": max(1, table.whole("gradient_accumulation_steps", 1)),
             "max_grad_norm": float(table.number("max_grad_norm", 1.0))}
    for argument in table.take("optimizer_args") or []:
        key, _, value = str(argument).partition("=")
        numbers = _numbers(value)
        if key == "betas" and len(numbers) == 2:
            found["beta1"], found["beta2"] = numbers
        elif key in ("weight_decay", "eps") and numbers:
            found[key] = numbers[0]
        else:
            table.note(f"optimizer_args {argument} has no counterpart")
    return found


def _objective(table: Table) -> dict[str, Any]:
    sampling, scheme = table.take("timestep_sampling") or "sigma", table.take("weighting_scheme") or "none"
    if sampling not in _SAMPLINGS:
        table.note(f"timestep_sampling = {sampling} has no counterpart; logit_normal is taken")
    found = {"timesteps": _SAMPLINGS.get(sampling, "logit_normal"),
             "logit_std": float(table.number("sigmoid_scale", 1.0)),
             "min_t": _level(table.number("min_timestep", 0)), "max_t": _level(table.number("max_timestep", 1000))}
    shift = float(table.number("discrete_flow_shift", 1.0))
    if sampling in ("sigma", "shift"):
        found["shift"] = shift
    if scheme in ("cosmap", "sigma_sqrt"):
        found["weighting"] = scheme
    elif scheme in ("logit_normal", "mode") and sampling == "sigma":  # there it says how levels are drawn
        found |= {"timesteps": scheme, "logit_mean": float(table.number("logit_mean", 0.0)),
                  "logit_std": float(table.number("logit_std", 1.0)),
                  "mode_scale": float(table.number("mode_scale", 1.29))}
    table.pass_over("logit_mean", "logit_std", "mode_scale")
    return found


def _level(timestep: float) -> float:
    """A noise level in 0..1 of one in 0..1000; boundaries may be either there."""
    return timestep / 1000 if timestep > 1 else float(timestep)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a config_file mean nothing."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= value if isinstance(value, Mapping) else {key: value}
    return found


def _of_script(path: Path) -> dict[str, Any]:
    """The arguments of wan_train_network.py in a script: {name: text, number, True, or several as a list}."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the script with the command line.") from None
    for continued in ("\\\n", "^\n", "`\n"):
        text = text.replace(continued, " ")
    line = next((line for line in text.splitlines() if "wan_train_network" in line), "")
    words = shlex.split(line.replace("\\", "/"), comments=True)
    start = next((number for number, word in enumerate(words) if "wan_train_network" in word), len(words))
    if start == len(words):
        raise UserError(f"{path} has no line with wan_train_network.py; give a TOML, or a script that has one.")
    found: dict[str, Any] = {}
    values: list[Any] = []
    for word in words[start + 1:]:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = [_value(value)] if equals else []
            found[name] = values
        else:
            values.append(_value(word))
    return {name: each if name.endswith("_args") else True if not each else each[0] if len(each) == 1 else each
            for name, each in found.items()}


def _value(text: str) -> Any:
    numbers = _numbers(text)
    if len(numbers) != 1:
        return text
    return int(numbers[0]) if numbers[0].is_integer() and "e" not in text.lower() and "." not in text else numbers[0]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []
