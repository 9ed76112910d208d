"""A run that is trained is locked, so that no second process trains, tidies or deletes it; all may read it."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..base.files import write_json

LOCK, TRAINING = "training.lock", "training.json"
"""The file that is locked, and the file that says by whom: Windows reads no locked file."""

PATIENCE = 0.5
"""Seconds to wait for a lock, since `holder` takes it for a moment too."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that trains a run."""

    host: str
    process: int
    since: float
    """Seconds since 1970."""

    def __str__(self) -> str:
        here = "this ComfyUI" if (self.host, self.process) == _me() else f"process {self.process} on {self.host}"
        return f"{here} since {time.strftime('%H:%M on %Y-%m-%d', time.localtime(self.since))}"


class RunLock:
    """The lock of one run's folder. It ends with the process that holds it, also if that is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK, timeout=PATIENCE, thread_local=False)
        self.fault = ""
        """A sentence, if the file system has no locks and the run is trained without one."""

    def acquire(self) -> Holder | None:
        """Lock the run.

        Returns:
            None; or who has locked it before, and then it is not locked by this.

        Raises:
            OSError: the folder cannot be written to.
        """
        try:
            self._lock.acquire()
        except Timeout:
            return _told(self._folder) or Holder("another computer", 0, time.time())
        except (OSError, NotImplementedError) as error:
            if not os.access(self._folder, os.W_OK):
                raise
            self.fault = (f"The disk of {self._folder} has no file locks ({error}); do not train this run from a "
                          "second ComfyUI at the same time.")
        write_json(self._folder / TRAINING, asdict(Holder(*_me(), time.time())))
        return None

    def release(self) -> None:
        """Unlock the run; nothing happens if it is not locked by this."""
        if self._lock.is_locked or self.fault:
            with suppress(OSError):  # the folder has gone
                (self._folder / TRAINING).unlink(missing_ok=True)
        self._lock.release()


def holder(folder: Path) -> Holder | None:
    """Who trains the run in this folder; None if nobody does."""
    told = _told(folder)
    if told is None:
        return None
    try:
        with FileLock(folder / LOCK, timeout=0, thread_local=False):
            return None  # what is told was left by a process that was killed
    except Timeout:
        return told
    except (OSError, NotImplementedError):  # no locks on this disk, or a folder that is only read
        return told if told.host == _me()[0] and _is_alive(told.process) else None


def _me() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def _told(folder: Path) -> Holder | None:
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads((folder / TRAINING).read_bytes()))
    return None


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        return True  # os.kill would end it
    with suppress(OSError, OverflowError):
        os.kill(process, 0)
        return True
    return False
