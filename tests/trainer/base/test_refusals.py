"""What the file system refuses is told as what it is, on each system; room is asked for only where there is none."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from wantune.trainer.base import refusals
from wantune.trainer.base.errors import UserError

PLACE = Path("/output/run")


def on_windows(winerror: int, number: int = errno.EACCES, path: str = "a") -> OSError:
    error = OSError(number, "refused", path)
    error.winerror = winerror
    return error


FULL = "the disk of /output/run is full; free some space on it, then queue again."
HELD = "another program has a file open in /output/run; close it, be it a player"
DENIED = "/output/run does not allow it"
GONE = "/output/run was deleted or renamed meanwhile"
LONG = "a path in /output/run is too long; choose a shorter name"


@pytest.mark.parametrize(("error", "sentence"), [
    (OSError(errno.ENOSPC, "x"), FULL), (OSError(errno.EDQUOT, "x"), FULL), (on_windows(112, errno.ENOSPC), FULL),
    (on_windows(39), FULL), (SafetensorError("I/O error: No space left on device (os error 28)"), FULL),
    (OSError(errno.EBUSY, "x"), HELD), (OSError(errno.ETXTBSY, "x"), HELD), (on_windows(32), HELD),
    (on_windows(33), HELD), (on_windows(1224, errno.EINVAL), HELD),
    (PermissionError(errno.EACCES, "x"), f"{DENIED}; check its permissions, then"),
    (OSError(errno.EROFS, "x"), f"{DENIED}; check its permissions, then"),
    (SafetensorError("I/O error: Permission denied (os error 13)"), f"{DENIED}; check its permissions, then"),
    (on_windows(5), f"{DENIED}, or another program has a file open in it; check its permissions, or close that"),
    (FileNotFoundError(errno.ENOENT, "x", "a"), GONE), (on_windows(3, errno.ENOENT), GONE),
    (on_windows(3, errno.ENOENT, "a" * 260), LONG), (on_windows(206, errno.ENOENT), LONG),
    (OSError(errno.ENAMETOOLONG, "x"), LONG),
    (FileExistsError(errno.EEXIST, "x"), "a file is where a folder must be in /output/run"),
    (NotADirectoryError(errno.ENOTDIR, "x"), "a file is where a folder must be in /output/run"),
    (OSError(errno.EIO, "x"), "the disk of /output/run does not work as it should; check the disk"),
    (SafetensorError("header too large"), "does not work as it should"),
], ids=lambda value: value if isinstance(value, str) else repr(value)[:40])
def test_the_reason_and_the_remedy_belong_to_each_other(error, sentence):
    text = str(refusals.refused("The log cannot be written", PLACE, error))
    assert text.startswith("The log cannot be written (") and sentence in text and text.endswith("then queue again.")
    assert ("free some space" in text) == (sentence == FULL)


def test_a_block_is_in_a_sentence_and_other_errors_pass():
    with pytest.raises(UserError, match=r"^It cannot be done \(x\), as the disk .*, then save it again\.$"):
        with refusals.in_a_sentence("It cannot be done", PLACE, "save it again"):
            raise OSError(errno.ENOSPC, "x")
    with pytest.raises(KeyError), refusals.in_a_sentence("It", PLACE):
        raise KeyError
