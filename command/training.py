"""`wantune train` and `wantune resume`: a run from settings to a LoRA, or the rest of one."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import torch

from ..trainer.base.errors import UserError
from ..trainer.base.files import replacing
from ..trainer.base.switches import own_switches
from ..trainer.encoded.cache import CachedDataset
from ..trainer.job.checked import JOB
from ..trainer.job.models import find
from ..trainer.job.settings import Settings, to_toml
from ..trainer.lora import file as lora_file
from ..trainer.model.backend import Denoiser
from ..trainer.model.conditions import TEXT
from ..trainer.runs import history
from ..trainer.runs.folder import delete_run, writing
from ..trainer.settings.memory import EXACT
from ..trainer.settings.training import BY_TURNS
from ..trainer.training import experts
from ..trainer.training.experts import HIGH, LOW
from ..trainer.training.launch import launched
from ..trainer.training.pair import Pair
from ..trainer.training.ranks import Ranks
from ..trainer.training.run import Run
from . import data, given
from .engine import ROLES, Engine, is_on_cpu
from .given import KEPT, Given
from .parsers import RUNS
from .previews import Previewer, Texts
from .stopping import Stopping
from .terminal import Terminal
from .watching import Watching


def train(arguments: argparse.Namespace) -> int:
    """Train a LoRA, or go on where the same run was left."""
    with launched(is_on_cpu()) as ranks:
        terminal = Terminal(is_quiet=not ranks.is_first)
        return _train(given.of(arguments, terminal), arguments, terminal, ranks)


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a run, by what is kept in its folder."""
    with launched(is_on_cpu()) as ranks:
        asked, folder = given.of_source(arguments, arguments.run)
        if folder is None:
            raise UserError(f"{arguments.run} is a file and no run; give settings to `wantune train`.")
        arguments.runs = folder.parent
        attempt = history.read_json(folder / "config.json").get("attempt", 1)
        asked = replace(asked, settings=replace(asked.settings, attempt=attempt, restart=False))
        return _train(asked, arguments, Terminal(is_quiet=not ranks.is_first), ranks, folder)


def _train(
    asked: Given, arguments: argparse.Namespace, terminal: Terminal, ranks: Ranks, resumed: Path | None = None
) -> int:
    """The model of the settings, or both experts of Wan2.2 A14B, by turns or one after the other.

    Args:
        resumed: the folder of the run that is meant, which must be that of these settings.
    """
    settings = asked.settings
    if settings.train.memory.products != EXACT:
        raise UserError(f"products is {settings.train.memory.products}, which only ComfyUI's models have; set it to "
                        f"{EXACT}, or choose a quantization of [models].")
    folder = data.cache_folder(arguments)
    engine = Engine(settings.models, folder, terminal.say)
    for role in ("model", "model_low")[:2 if settings.models.model_low else 1]:
        engine.path(role)  # that it is missing is said before anything is encoded
    dataset = asked.dataset() or data.encoded(settings, folder, engine, terminal, ranks=ranks)
    is_shared_out = arguments.shard and ranks.count > 1
    texts = None if is_shared_out else _texts(settings, dataset, engine, terminal)
    groups: list[tuple[str, ...]] = [("",)]
    if settings.models.model_low:
        groups = [(HIGH, LOW)] if settings.order == BY_TURNS else [(HIGH,), (LOW,)]
    runs = [_name(settings, expert) for group in groups for expert in group]
    for group in groups:
        roles = {expert: "model_low" if expert == LOW else "model" for expert in group}
        denoisers = {expert: engine.denoiser(role, asked.base_id(role), is_shared_out)
                     for expert, role in roles.items()}
        if len(group) == 2:
            experts.check_pair(denoisers[HIGH], denoisers[LOW])
        previewers = {expert: texts and Previewer(settings.previews, texts, each, engine.codec(each.family))
                      for expert, each in denoisers.items()}
        code = _run(asked, dataset, denoisers, previewers, arguments.runs, terminal, ranks,
                    resumed if len(runs) == 1 else None)
        if code:
            return code
        del denoisers, previewers  # before the next expert is loaded
    return 0


def _texts(settings: Settings, dataset: CachedDataset, engine: Engine, terminal: Terminal) -> Texts | None:
    """The prompts of the previews, encoded; None where none are made."""
    if settings.previews is None:
        return None
    models = settings.models
    why = ("each expert alone makes none" if models.model_low
           else "prompts have no frames to begin with" if dataset.kinds - {TEXT.name}
           else "they need vae and clip" if not (models.vae and models.clip) else "")
    if why:
        terminal.say(f"no previews on the way: {why}; use `wantune sample`")
        return None
    texts = Texts(settings.previews, engine.text())
    engine.release()
    return texts


def _name(settings: Settings, expert: str) -> str:
    return f"{settings.run_name}_{expert}" if expert else settings.run_name


def _run(
    asked: Given, dataset: CachedDataset, denoisers: Mapping[str, Denoiser], previewers: Mapping[str, Previewer | None],
    folder: Path, terminal: Terminal, ranks: Ranks, resumed: Path | None
) -> int:
    """Train one model, or two by turns; the exit code.

    Args:
        denoisers: by expert, "" for the whole of a model; likewise `previewers`.
        folder: of all runs.
    """
    settings = asked.settings
    with ExitStack() as stack:
        stack.enter_context(own_switches())
        runs = {expert: stack.enter_context(
            _opened(settings, dataset, expert, denoiser, previewers[expert], folder, ranks))
            for expert, denoiser in denoisers.items()}
        for expert, run in runs.items():
            if resumed is not None and run.folder.path.resolve() != resumed.resolve():
                _forget(run, ranks)
                raise UserError(f"With these settings it is another run than {resumed.name}, as they change what is "
                                "learned; leave them out, or begin that run with `wantune train`.")
            for note in run.notes:
                terminal.say(f"{_title(expert)}{note}")
            if run.is_finished:
                terminal.say(f"{_title(expert)}trained before: {run.steps} steps")
        left = {expert: run for expert, run in runs.items() if not run.is_finished}
        for expert, run in left.items():
            if ranks.is_first:
                _describe(run, asked)
            beside = sum(other.lasting_bytes for other in left.values() if other is not run)
            terminal.say(f"{_title(expert)}{run.memory_plan(previewers[expert], beside).told()}")
            if previewers[expert] is not None:
                previewers[expert].folder = run.folder.path
        code = _watched(left, previewers, terminal, folder) if left else 0
        if ranks.is_first:
            print("\n".join(str(run.folder.path.absolute()) for run in runs.values()))
        return code


def _opened(
    settings: Settings, dataset: CachedDataset, expert: str, denoiser: Denoiser, previewer: Previewer | None,
    folder: Path, ranks: Ranks
) -> Run:
    config, models = settings.train, settings.models
    denoiser.compile = config.memory.compile
    if expert:
        config = replace(config, objective=experts.in_numbers(
            experts.of_expert(config.objective, expert), denoiser.family))
    is_low = expert == LOW
    continued = _continued(settings.continue_from_low if is_low else settings.continue_from)
    return Run(denoiser, dataset, _name(settings, expert), config, folder, continued, settings.restart,
               settings.attempt, Path(models.model_low if is_low else models.model).name, previewer, ranks)


def _watched(
    runs: Mapping[str, Run], previewers: Mapping[str, Previewer | None], terminal: Terminal, folder: Path
) -> int:
    """Train to the end, or until Ctrl-C; the exit code."""
    pair = Pair(runs, takes_turns=len(runs) == 2)
    watching = {expert: Watching(terminal, _title(expert)) for expert in runs}
    try:
        with Stopping() as stopping, closing(pair.events(previewers)) as events:
            for expert, event in events:
                watching[expert].show(event)
                pair.stop = stopping.is_asked
    except KeyboardInterrupt:
        _say_how_to_go_on(runs, terminal, folder)
        raise
    if stopping.is_asked and any(each.step < each.total_steps for each in watching.values()):
        _say_how_to_go_on(runs, terminal, folder)
        return stopping.exit_code
    return 0


def _title(expert: str) -> str:
    return f"{expert}: " if expert else ""


def _say_how_to_go_on(runs: Mapping[str, Run], terminal: Terminal, folder: Path) -> None:
    where = "" if folder == RUNS else f" --runs {shlex.quote(str(folder))}"
    for expert, run in runs.items():
        step = max(run.folder.steps(), default=0)
        terminal.say(f"{_title(expert)}stopped and saved after step {step}; go on with: wantune resume "
                     f"{shlex.quote(run.folder.path.name)}{where}")


def _describe(run: Run, asked: Given) -> None:
    """Write what the run was begun with into its folder, for `resume`, and where it came from, for lists of runs."""
    path, job = run.folder.path, {}
    if asked.job is None:
        with writing(path), replacing(path / KEPT) as temporary:
            temporary.write_text(to_toml(_without_wishes(asked)), encoding="utf-8")
    else:
        job = {JOB: str(asked.job.folder)}
    started = history.read_json(path / "origin.json").get("started", time.time())
    run.folder.describe({"base": run.base_model, "started": started, "notes": list(run.notes), **job}, {})


def _without_wishes(asked: Given) -> dict:
    """The sections as they are to be read again: the newest attempt is then the one that is meant."""
    sections, models = dict(asked.sections), dict(asked.sections.get("models", {}))
    for role in filter(models.get, ROLES):
        with suppress(UserError):  # what is nowhere was not needed
            models[role] = str(find(asked.settings.models, Path.cwd(), [role])[role])
    if asked.settings.restart:
        sections["train_wan_lora"] = {**sections["train_wan_lora"], "restart": False}
    return {**sections, "models": models} if models else sections


def _continued(name: str) -> dict[str, torch.Tensor] | None:
    if name and not Path(name).is_file():
        raise UserError(f"There is no {name} to continue from; give a LoRA file as continue_from.")
    return lora_file.read(Path(name)) if name else None


def _forget(run: Run, ranks: Ranks) -> None:
    """Delete the folder that was made for a run which is not to be, where nothing is in it yet."""
    run.close()
    if ranks.is_first and not run.folder.logged() and not run.folder.steps():
        delete_run(run.folder.path)
