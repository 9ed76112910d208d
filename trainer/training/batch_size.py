"""The batch size of a run where the user leaves it to the node: chosen when the run is first begun, and kept with it.

So a run goes on with it on another card too, and with more or less memory free: it is what the order of samples and the
number of steps depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..base.errors import UserError
from ..encoded.batches import visits_by_bucket
from ..encoded.cache import CachedDataset
from ..memory.batch_size import BatchSize, largest
from ..model.backend import Denoiser
from ..runs.attempts import attempts
from ..runs.history import read_json
from ..settings.training import TrainConfig
from .memory import Shown, needs

CHOSEN = "chosen_batch_size"
"""Its name in config.json."""


def of_run(
    config: TrainConfig, denoiser: Denoiser, dataset: CachedDataset, root: Path, keys: Sequence[str],
    previews: Shown | None, processes: int = 1,
) -> BatchSize | None:
    """That of the run with these keys, as it was chosen, or as it is chosen now; None where `config` sets it.

    All attempts at a run have the same, so that each gives what the first one gave.

    Args:
        root: the folder of all runs.
        previews: None where there are none.
        processes: that train it, each of which takes its part of a batch.

    Raises:
        UserError: not even a single sample fits, or the number of a run that was begun is unreadable.
    """
    if config.batch_size:
        return None
    begun = [attempt.path for key in keys for attempt in attempts(root, key)]
    if begun:
        return BatchSize(_read(begun[0]), "as when the run was begun")
    visits = max(visits_by_bucket(dataset.samples).values())
    found = largest(needs(denoiser, dataset, config, previews), denoiser.space(), visits, denoiser.device.type)
    if processes == 1:
        return found
    return BatchSize(min(visits, processes * found.number),
                     f"{found.number} on each of {processes} devices at most, {found.reason}")


def _read(path: Path) -> int:
    number = read_json(path / "config.json").get(CHOSEN)
    if type(number) is not int or number < 1:
        raise UserError(f"config.json of the run {path.name} has {number!r} as {CHOSEN}, the samples a step that were "
                        "chosen when it was begun; restore the file, delete the run, or set batch_size.")
    return number
