"""`wantune`: reads the command line, calls the command, and turns what comes of it into an exit code.

0: done. 1: it could not be done, and a sentence says why. 2: the command line is wrong. 130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..trainer.base.errors import UserError
from .parsers import parser

FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code.
    """
    arguments = parser().parse_args([_with_dashes(each) for each in (sys.argv[1:] if argv is None else argv)])
    try:
        return _run(arguments)
    except UserError as error:
        print(f"wantune: {in_words_of_the_command_line(str(error))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def in_words_of_the_command_line(sentence: str) -> str:
    """The trainer's sentences say what to do in ComfyUI."""
    return sentence.replace("queue again", "run it again")


def _run(arguments: argparse.Namespace) -> int:
    # imported here, so that --help does not wait for torch
    if getattr(arguments, "print_settings", False):
        from . import given

        return given.show(arguments)
    if arguments.command in ("scan", "cache"):
        from . import data

        return data.scan(arguments) if arguments.command == "scan" else data.cache(arguments)
    if arguments.command in ("train", "resume"):
        from . import training

        return training.train(arguments) if arguments.command == "train" else training.resume(arguments)
    if arguments.command == "eval":
        from . import evaluating

        return evaluating.evaluate(arguments)
    if arguments.command == "sample":
        from . import sampling

        return sampling.sample(arguments)
    if arguments.command == "lora":
        from . import loras

        return loras.run(arguments)
    from . import exporting

    return exporting.run(arguments)


def _with_dashes(argument: str) -> str:
    """Flags may be written with the underscores of the widgets."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


if __name__ == "__main__":
    sys.exit(main())
