"""The command line of run.py."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from . import browser, demo, environment


def main(root: Path, arguments: list[str]) -> int:
    """Run `demo`, `test` or `browser`; a mistake of the user ends in one sentence, not in a traceback."""
    options, further = _parser().parse_known_args(arguments)
    if further and options.command != "test":
        _parser().error(f"unrecognized arguments: {' '.join(further)}")
    try:
        if options.command == "test":
            return test(root, options, further)
        if options.command == "browser":
            browser.install(root, environment.prepare(root, options.comfyui, options.python, "test")[1])
            return 0
        return demo.main(root, options)
    except subprocess.CalledProcessError as error:
        program = subprocess.list2cmdline(str(part) for part in error.cmd)
        print(f"run.py: this failed with exit code {error.returncode}: {program}", file=sys.stderr)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("run.py: stopped", file=sys.stderr)
        return 130
    return 1


def test(root: Path, options: argparse.Namespace, further: list[str]) -> int:
    """Run pytest in the environment, with everything that run.py does not know passed on."""
    comfyui, python = environment.prepare(root, options.comfyui, options.python, "test")
    print(f"Testing with ComfyUI {comfyui.version}", flush=True)
    command = [str(python), "-m", "pytest", *further]
    settings = {**os.environ, "COMFYUI_PATH": str(comfyui.path)}
    return subprocess.run(command, cwd=root, env=settings).returncode


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--comfyui",
        metavar="PATH",
        help="the ComfyUI to use (default: $COMFYUI_PATH, the one this pack sits in, or a copy of our own)",
    )
    common.add_argument(
        "--python",
        metavar="FILE",
        help="the Python that runs that ComfyUI; nothing is installed into it "
        "(default: the one found in ComfyUI's folder, or an environment of our own)",
    )
    parser = argparse.ArgumentParser(prog="run.py", description="Try WanTune, or test it.")
    commands = parser.add_subparsers(dest="command", required=True)
    # allow_abbrev off: pytest's own options are passed on as they are.
    commands.add_parser(
        "test",
        parents=[common],
        allow_abbrev=False,
        help="run every test; further arguments go to pytest, --long adds the tests that take hours",
    )
    commands.add_parser("browser", parents=[common], help="install what the tests of the page need, for `test`")
    _add_demo(commands.add_parser("demo", parents=[common], help="train, sample and compare in one graph"))
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="where the results go")
    parser.add_argument("--serve", action="store_true", help="leave the server up, with the workflow at hand")
    models = parser.add_argument_group("real models, by the names ComfyUI lists (default: a small Wan world)")
    models.add_argument("--unet", metavar="NAME", help="the Wan2.1 text-to-video model")
    models.add_argument("--vae", metavar="NAME")
    models.add_argument("--clip", metavar="NAME", help="the UMT5 text encoder")
    training = parser.add_argument_group("training and sampling")
    training.add_argument("--folder", type=Path, help="your pictures or clips with captions")
    training.add_argument("--trigger", metavar="WORDS", help="the trigger word that stands for your subject")
    training.add_argument("--prompt", metavar="TEXT")
    training.add_argument("--epochs", type=int)
    training.add_argument("--seed", type=int, help="of the training and of both videos")
