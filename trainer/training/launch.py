"""Beginning and end of processes that `accelerate launch` or torchrun has started together."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed

from ..base.errors import UserError
from ..base.out_of_memory import first_line
from .ranks import ALONE, FAILED, STOP, Ranks, from_accelerate


@contextmanager
def launched(is_on_cpu: bool = False) -> Iterator[Ranks]:
    """The processes that `accelerate launch` or torchrun has started, and at the end what each owes the others.

    Without these it is ALONE, and accelerate is not imported.

    Raises:
        UserError: they do not find each other, or are not of the same version.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    ranks = from_accelerate(_accelerator(is_on_cpu))
    try:
        ranks.check_same({"version of WanTune (a digest of its code)": code_digest(),
                          "version of torch": torch.__version__})
        yield ranks
    except BaseException as error:
        ranks.leave(FAILED if isinstance(error, Exception) else STOP)
        raise
    distributed.destroy_process_group()


def code_digest() -> str:
    """Of the trainer's code, whatever the line ends."""
    root, found = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root).as_posix()}\n{path.read_text(encoding='utf-8')}\n".encode())
    return found.hexdigest()[:12]


def _accelerator(is_on_cpu: bool):
    import accelerate  # imports slowly

    rank, count, address, port = (os.environ.get(name, "?") for name in (
        "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    try:
        with warnings.catch_warnings():  # of the threads that accelerate gives each process on a CPU
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            return accelerate.Accelerator(cpu=is_on_cpu)
    except (RuntimeError, ValueError) as error:
        said = first_line(error)[:200]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise UserError(f"Port {port} of {address}, at which the {count} processes are to meet, is taken by "
                            "another program; name another one (accelerate launch --main_process_port N). "
                            f"({said})") from None
        raise UserError(f"Process {rank} of {count} does not find the others at {address}, port {port}; start all of "
                        f"them with the same address, which each machine can reach. ({said})") from None
