"""LoRAs on a model that is not trained: those of a run's checkpoints, and of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..trainer.adapter.adapters import Adapter
from ..trainer.base.errors import UserError
from ..trainer.lora import file as lora_file
from ..trainer.lora.keys import normalize
from ..trainer.model.backend import Denoiser
from ..trainer.runs import history
from ..trainer.runs.folder import RunFolder
from ..trainer.settings.adapter import LoraConfig

_LINEAR = (".lora_B.weight", ".lokr_w1", ".hada_w1_b")
"""Of each kind of adapter the matrices in which its update is linear."""


@dataclass(frozen=True, slots=True)
class Worn:
    """A LoRA, and how an adapter becomes it."""

    name: str
    """For people."""
    config: LoraConfig
    matrices: Mapping[str, torch.Tensor]
    is_of_run: bool
    """Whether the matrices are a whole adapter's state, and not those of a file, which may have fewer modules."""

    def adapter(self, denoiser: Denoiser, strength: float = 1.0) -> Adapter:
        """An adapter over the model's Linears.

        Raises:
            UserError: the LoRA has modules that cannot be put on the model here.
        """
        adapter = Adapter(self.config, denoiser.linears(), denoiser.device, 0)
        matrices = {name: value * strength if name.endswith(_LINEAR) else value
                    for name, value in self.matrices.items()}
        if self.is_of_run:
            adapter.load_state_dict(matrices)
        else:
            adapter.start_from(matrices)
        return adapter


def of_run(folder: Path, step: int, name: str) -> Worn:
    """A checkpoint of a run.

    Raises:
        UserError: it is damaged.
    """
    try:
        config = LoraConfig(**history.read_json(folder / "config.json")["lora"])
    except (KeyError, TypeError) as error:
        raise UserError(f"config.json of {folder.name} is damaged ({error}); export the LoRA with `wantune export "
                        "lora`, and give that file.") from None
    return Worn(name, config, RunFolder(folder).load(step).adapter, True)


def of_file(path: Path, denoiser: Denoiser) -> Worn:
    """A LoRA file of any trainer.

    Raises:
        UserError: it is no plain LoRA, is damaged, or is for another model.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}; give a LoRA file.")
    config, matrices = lora_file.continued(
        normalize(lora_file.read(path)), LoraConfig(), denoiser.linear_sizes())
    return Worn(path.name, config, matrices, False)
