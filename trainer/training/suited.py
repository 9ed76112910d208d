"""Whether a cached dataset suits a model: told before anything is trained, in a sentence that says what to do."""

from __future__ import annotations

from dataclasses import replace

from ..base.errors import UserError
from ..encoded.batches import Batch, read_batch
from ..encoded.cache import CachedDataset
from ..model.backend import Denoiser
from ..model.conditions import CLIP_VISION
from ..model.family import ModelFamily
from ..settings.data import NO_FRAME


def suited(denoiser: Denoiser, dataset: CachedDataset) -> tuple[CachedDataset, tuple[str, ...]]:
    """The dataset as one for the model's family, and notes about what it holds that the model does not take.

    Raises:
        UserError: it was cached for other models, or it lacks what the model takes.
    """
    family = denoiser.family
    if not family.shares_latents_with(dataset.family):
        raise UserError(f"The dataset was cached for {dataset.family.name}, the model is {family.name}; cache it for "
                        "this model (model in Dataset Settings), with its VAE.")
    _check_conditions(family, dataset)
    _check_tensors(family, read_batch([dataset.samples[0].visit(0)], family.conditions))
    return replace(dataset, family=family), _left_out(family, dataset)


def _check_conditions(family: ModelFamily, dataset: CachedDataset) -> None:
    if dataset.condition not in family.frames_given:
        wanted = " or ".join(f'"{condition}"' for condition in family.frames_given)
        raise UserError(f'The dataset has the condition "{dataset.condition}", {family.name} takes {wanted}; choose '
                        "that in Dataset Settings.")
    for kind in family.conditions:
        if kind.is_optional or kind.name in dataset.kinds:
            continue
        is_seen = kind.name == CLIP_VISION.name
        remedy = "connect a CLIP vision to Cache Latents (clip_vision_h.safetensors)" if is_seen else "cache it again"
        raise UserError(f"The dataset has no {kind.name}, which {family.name} needs; {remedy}.")


def _check_tensors(family: ModelFamily, batch: Batch) -> None:
    num_channels = batch.latent_BCFHW.shape[1]
    if num_channels != family.latent_channels:
        raise UserError(f"The cached latents have {num_channels} channels, the model takes {family.latent_channels}; "
                        "cache with the VAE that belongs to the model.")
    text_BLD = batch.conditions.get("text")
    if text_BLD is not None and text_BLD.shape[2] != family.text_width:
        raise UserError(f"The cached captions are {text_BLD.shape[2]} wide, the model takes {family.text_width}; cache "
                        "with the UMT5 text encoder (Load CLIP: umt5_xxl, type wan).")


def _left_out(family: ModelFamily, dataset: CachedDataset) -> tuple[str, ...]:
    extra = dataset.kinds - {kind.name for kind in family.conditions}
    if not extra:
        return ()
    if extra == {CLIP_VISION.name}:
        return (f"{family.name} takes no CLIP vision; it is trained without.",)
    given = f'the {dataset.condition} of its clips' if dataset.condition != NO_FRAME else ", ".join(sorted(extra))
    return (f"The dataset gives {given}, which {family.name} does not take; it is trained without.",)
