"""The commands with their arguments. Nothing here imports torch, so that --help answers at once."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from ..trainer.lora.forms import FORMATS
from . import options

RUNS = Path("output", "wantune")
"""Where runs lie below the present folder, as they do below ComfyUI's."""

_EPILOG = """Settings come from a file (TOML or JSON), whose sections and keys are the nodes' and widgets' names, and
from flags, which overrule it. A key that several sections have is a flag with its section, such as
--preview-settings.seed; any key may be written so. Exit codes: 0 done, 1 refused with a sentence, 2 wrong command
line, 130 stopped by Ctrl-C."""


class Parser(argparse.ArgumentParser):
    """Never takes an abbreviation for a flag, since a later version may have two that begin so, and suggests one."""

    def __init__(self, **arguments) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse's, but an unknown flag is answered with the nearest one."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            chosen = self._chosen(found)
            near = difflib.get_close_matches(unknown[0].partition("=")[0], chosen._option_string_actions, 1)
            chosen.error(f"unknown argument {unknown[0]}" + (f"; did you mean {near[0]}?" if near else ""))
        return found

    def _chosen(self, found: argparse.Namespace) -> argparse.ArgumentParser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and getattr(found, action.dest, None) in action.choices:
                return action.choices[getattr(found, action.dest)]
        return self

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and how to get help, instead of pages of usage."""
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")


def parser() -> Parser:
    """The parser of the whole command line."""
    whole = Parser(prog="wantune", description="Train LoRAs for Wan2.1 and Wan2.2 from the command line: the same runs "
                   "as in ComfyUI, on diffusers.", epilog=_EPILOG)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _scan(_command(commands, "scan", "report what of a dataset will be trained on"))
    _cache(_command(commands, "cache", "encode a dataset once, so that training needs neither VAE nor text encoder"))
    _train(_command(commands, "train", "train a LoRA, or go on with the same run"))
    _resume(_command(commands, "resume", "go on with a run that this command line has begun"))
    _eval(_command(commands, "eval", "measure LoRAs on the held-out files"))
    _sample(_command(commands, "sample", "make a video without and with a LoRA, side by side"))
    _lora(_command(commands, "lora", "inspect, convert and merge LoRA files"))
    _export(_command(commands, "export", "a run's LoRA as a file, or a run as a folder for another machine"))
    return whole


def _command(commands, name: str, about: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_EPILOG)


def _scan(command: argparse.ArgumentParser) -> None:
    _settings(command, options.DATA)
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.add_argument("--cache-folder", type=Path, metavar="FOLDER", help=_CACHE_HELP)


def _cache(command: argparse.ArgumentParser) -> None:
    _settings(command, options.ENCODED)
    _places(command)


def _train(command: argparse.ArgumentParser) -> None:
    _settings(command, options.RUN, "a settings file, or the folder of a job")
    _places(command)
    _shard(command)


def _resume(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="the name of its folder, or its path")
    _places(command)
    _shard(command)
    _flags(command, "RUN", options.RUN)


def _eval(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="RUN|SETTINGS", help="a run, whose checkpoints are measured, or a settings "
                         "file with the data")
    command.add_argument("--lora", type=Path, action="append", default=[], metavar="FILE", help="measure this LoRA "
                         "file; may be given several times")
    command.add_argument("--checkpoints", default="all", metavar="LIST", help="of a run: all, last 4, best, or steps "
                         "such as 100, 200. Default: all.")
    command.add_argument("--json", action="store_true", help="print what was measured as JSON")
    _places(command)
    _flags(command, "RUN|SETTINGS", options.ENCODED)


def _sample(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", nargs="?", default="", metavar="RUN|SETTINGS", help="a run, or a settings file")
    command.add_argument("--lora", type=Path, metavar="FILE", help="a LoRA file of any trainer, instead of a run's")
    command.add_argument("--lora-low", type=Path, metavar="FILE", help="the LoRA of model_low")
    command.add_argument("--checkpoint", default="best", metavar="STEP", help="of a run: best, newest or a step. "
                         "Default: best.")
    command.add_argument("--strength", type=float, default=1.0, metavar="X", help="of the LoRA; 0 = the base model. "
                         "Default: 1.")
    command.add_argument("--first-frame", type=Path, metavar="FILE", help="the picture that image-to-video begins with")
    command.add_argument("--last-frame", type=Path, metavar="FILE", help="the one it ends with, of FLF2V")
    command.add_argument("-o", "--output", type=Path, default=Path("sample.mp4"), metavar="FILE", help="the video, "
                         "mp4; a number is added for further prompts. Default: sample.mp4.")
    _places(command)
    _flags(command, "[RUN|SETTINGS]", ("preview_settings", "models"), "preview_settings")


def _lora(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    inspect = _command(actions, "inspect", "say what a LoRA file holds, and for which model it was made")
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="print it as JSON")
    convert = _command(actions, "convert", "write a LoRA under the names of another program")
    convert.add_argument("file", type=Path, metavar="FILE")
    convert.add_argument("--to", choices=FORMATS, required=True, help="comfyui: also kijai's wrapper; kohya: also "
                         "musubi-tuner")
    convert.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    merge = _command(actions, "merge", "add LoRAs up to one, or put one into the weights of its model")
    merge.add_argument("files", nargs="+", metavar="FILE[=WEIGHT]", help="a weight is 1 if none is given")
    merge.add_argument("--rank", type=int, default=0, metavar="N", help="of the sum, cut to its largest parts; 0 = "
                       "exact, of all ranks together. Default: 0.")
    merge.add_argument("--into", type=Path, metavar="MODEL", help="write this model with the LoRA in its weights")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")


def _export(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    lora = _command(actions, "lora", "write a run's checkpoint as a LoRA file")
    lora.add_argument("run", metavar="RUN", help="the name of its folder, or its path")
    lora.add_argument("--checkpoint", default="best", metavar="STEP", help="best, newest or a step. Default: best.")
    lora.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: RUN_stepN.safetensors, here")
    _places(lora)
    job = _command(actions, "job", "write data, settings and cache as a folder that trains on another machine")
    _settings(job, options.RUN)
    job.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="must not exist yet")
    job.add_argument("--include-dataset", action="store_true", help="copy the data files into it")
    job.add_argument("--include-cache", action="store_true", help="encode the data first, and copy the cache into it: "
                     "then neither VAE nor text encoder is needed there")
    _places(job)


_CACHE_HELP = "where encoded data is kept. Default: the folder cache in that of the runs."


def _settings(command: argparse.ArgumentParser, sections: Iterable[str], what: str = "a settings file") -> None:
    command.add_argument("settings", nargs="?", type=Path, metavar="SETTINGS", help=f"{what}; may be left out where "
                         "flags say all")
    command.add_argument("--from-diffusion-pipe", type=Path, metavar="FILE", help="read diffusion-pipe's config, or "
                         "its dataset.toml; what has no counterpart here is named")
    command.add_argument("--from-musubi", type=Path, action="append", default=[], metavar="FILE", help="read "
                         "musubi-tuner's dataset TOML; given again: its config_file, or a script with its command line")
    command.add_argument("--print-settings", action="store_true", help="print the settings as a file, and do nothing")
    _flags(command, "[SETTINGS]", sections)


def _shard(command: argparse.ArgumentParser) -> None:
    command.add_argument("--shard", action="store_true", help="with several processes: share the model's weights out "
                         "over all cards (FSDP2), where one does not hold them")


def _flags(command: argparse.ArgumentParser, what: str, sections: Iterable[str], short: str = "") -> None:
    command.usage = f"{command.prog} {what} [--FLAG VALUE ...]"  # written out, the flags are a page
    options.add(command, sections, short)


def _places(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runs", type=Path, default=RUNS, metavar="FOLDER", help=f"the folder of all runs; give "
                         f"ComfyUI's output/wantune to see them there. Default: {RUNS.as_posix()}.")
    command.add_argument("--cache-folder", type=Path, metavar="FOLDER", help=_CACHE_HELP)

