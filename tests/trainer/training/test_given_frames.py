"""Frames that a model is given beside its caption: from the setting `condition` to batch, loss, Stop and resume, for
each family of Wan."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageOps

from wantune.tests.support import clips, runs, tools
from wantune.tests.support.adapted import FixedLinear
from wantune.tests.support.small_model import NAME, SmallModel
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.data.manifest import join
from wantune.trainer.encoded.batches import BucketSampler, read_batch
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store, read_tensor
from wantune.trainer.model import families
from wantune.trainer.model.conditions import CLIP_VISION, KNOWN, FirstFrameKnown
from wantune.trainer.model.family import ModelFamily
from wantune.trainer.model.wan21 import IMAGE, WAN21_FLF2V, WAN21_FUN_CONTROL, WAN21_I2V, WAN21_T2V, WAN21_VACE
from wantune.trainer.model.wan22 import WAN22_5B, WAN22_FUN_CONTROL, WAN22_I2V
from wantune.trainer.settings.data import (
    BOTH_ENDS,
    CONTROL,
    CONTROL_AND_FIRST,
    CONTROLLED,
    FIRST_FRAME,
    NO_FRAME,
    VACE,
    DatasetConfig,
)
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig
from wantune.trainer.training.run import Run


class Codec:
    """Means over each cell of the latent's grid."""

    def __init__(self, family: ModelFamily) -> None:
        self.id, self._family = f"codec of {family.latent_channels}", family

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        frames, height, width, _ = pixels_FHW3.shape
        (stride, rows, columns), channels = self._family.stride_FHW, self._family.latent_channels
        pixels = torch.tensor(pixels_FHW3).float().permute(3, 0, 1, 2).repeat(channels // 3 + 1, 1, 1, 1)[:channels]
        return torch.nn.functional.adaptive_avg_pool3d(
            pixels / 255, ((frames - 1) // stride + 1, height // rows, width // columns))


class Image(Codec):
    """Where the ends are given, and their colours."""

    def __init__(self, family: ModelFamily, condition: str) -> None:
        super().__init__(family)
        self.id, self._takes_last = f"image of {condition}", condition == BOTH_ENDS

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        shown = np.full_like(pixels_FHW3, 128)
        shown[0] = pixels_FHW3[0]
        if self._takes_last:
            shown[-1] = pixels_FHW3[-1]
        latent_CFHW = super().encode(shown)
        mask_CFHW = torch.ones(4, *latent_CFHW.shape[1:])
        mask_CFHW[:, 0] = 0
        return torch.cat([latent_CFHW, mask_CFHW])


class Of(Codec):
    """What the frames of a kind are, of a control clip or of its own."""

    def __init__(self, family: ModelFamily, kind: str) -> None:
        super().__init__(family)
        self.id, self._kind = f"{kind} of {family.latent_channels}", kind

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        if self._kind == "reference":
            return super().encode(pixels_FHW3[:1])
        latent_CFHW = super().encode(pixels_FHW3)
        return torch.cat([torch.full_like(latent_CFHW, 0.5), latent_CFHW]) if self._kind == "vace" else latent_CFHW


class Seen:
    """Stands for CLIP vision."""

    id = "seen"

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        return torch.full((257, 1280), float(pixels_FHW3[0].mean()) / 255 + 0.1)


class Text:
    """One row for each word, as wide as UMT5's."""

    id = "text"

    def encode(self, caption: str) -> torch.Tensor:
        return torch.full((len(caption.split()) or 1, 4096), 0.25)


class Model(SmallModel):
    """Its prediction depends on all that it is given, and counts known frames at noise level 0."""

    def __init__(self, family: ModelFamily) -> None:
        super().__init__()
        self.id, self.family, self.seen = f"model of {family.name}", family, []

    def linear_sizes(self):
        return {NAME: (self.family.latent_channels, self.family.latent_channels)}

    def linears(self):
        return {NAME: FixedLinear(torch.eye(self.family.latent_channels))}

    @contextmanager
    def attached(self, adapter, linears, plan, memory):
        self._forward = adapter.forward_of(NAME, torch.float32)
        yield ()

    def velocity(self, x_BCFHW, t_B, conditions):
        self.seen.append(conditions)
        known_BF = conditions.get("known", torch.zeros(len(t_B), x_BCFHW.shape[2]))
        told_B = sum(conditions[name].flatten(1).mean(1) for name in conditions.keys() - {"known"})
        x = x_BCFHW + (told_B[:, None] + t_B[:, None] * (1 - known_BF))[:, None, :, None, None]
        return self._forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.fixture
def folder(tmp_path):
    """Two pictures and two clips of 2.5 seconds."""
    return clips.with_pictures(tmp_path / "data")


def with_controls(folder):
    """The folder, with a control clip for each of its files."""
    control = folder / "control"
    if not control.exists():
        control.mkdir()
        for path in folder.glob("*.png"):
            ImageOps.invert(PIL.Image.open(path).convert("RGB")).save(control / path.name)
        for number in range(2):
            clips.at_rate(control / f"clip {number}.mp4", 16, 40 + 8 * number,
                          picture=lambda number: 255 - clips.numbered(number))
    return folder


def scanned(folder, data: ModelFamily = WAN21_T2V, condition: str = NO_FRAME, **settings):
    return scan.scan(DatasetConfig(**{
        "folder": str(folder), "family": data.name, "condition": condition, "resolution": 64, "num_repeats": 2,
        "frame_buckets": (1, 9), "upscale": True, "trigger_word": "zwx", **settings}))


def cached(folder, data: ModelFamily = WAN21_T2V, condition: str = NO_FRAME, with_clip: bool = True, **settings):
    """The dataset as Cache Latents makes it."""
    encoders = {"text": Text()}
    if condition in CONTROLLED:
        with_controls(folder)
        encoders |= {kind: Of(data, kind) for kind in ("control", "reference", "vace")}
    if condition != NO_FRAME:
        encoders |= {"known": FirstFrameKnown(), "image": Image(data, condition)}
        encoders |= {"clip_vision": Seen()} if with_clip else {}
    store = Store(folder.parent / "cache")
    return tools.drained(fill(scanned(folder, data, condition, **settings), store, Codec(data), encoders))[1]


def config(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch_size": 2, "learning_rate": 1e-2, "lora": LoraConfig(rank=2), **settings,
                          "validation": ValidationConfig(every_steps=3, every_minutes=0)})


def over(run: Run, stop_at: int = 10**9) -> Run:
    runs.driven(run, stop_at=stop_at)
    return run


SUITED = [(WAN21_T2V, NO_FRAME), (WAN21_I2V, FIRST_FRAME), (WAN21_I2V, BOTH_ENDS), (WAN21_FLF2V, BOTH_ENDS),
          (WAN22_I2V, FIRST_FRAME), (WAN22_I2V, BOTH_ENDS), (WAN22_5B, NO_FRAME), (WAN22_5B, FIRST_FRAME),
          (WAN21_FUN_CONTROL, CONTROL_AND_FIRST), (WAN22_FUN_CONTROL, CONTROL), (WAN22_FUN_CONTROL, CONTROL_AND_FIRST),
          (WAN21_VACE, VACE)]


def data_of(family: ModelFamily) -> ModelFamily:
    return WAN22_5B if family is WAN22_5B else WAN21_T2V


@pytest.mark.parametrize(("family", "condition"), SUITED, ids=lambda each: getattr(each, "name", each))
def test_each_family_trains_on_what_it_is_given_and_goes_on_bit_for_bit(folder, tmp_path, family, condition):
    dataset = cached(folder, data_of(family), condition, condition_dropout=0.3)
    model = Model(family)
    whole = over(Run(model, dataset, "given", config(), tmp_path / "whole"))
    taken = {kind.name for kind in family.conditions if not kind.given or condition in kind.given}
    assert {frozenset(seen) for seen in model.seen} == {frozenset(taken)}
    assert all(np.isfinite(whole.losses)) and len(whole.losses) >= 4
    assert whole.lora.metadata["modelspec.architecture"] == f"{family.architecture}/lora"

    over(Run(Model(family), dataset, "given", config(), tmp_path / "parts"), stop_at=2)
    resumed = Run(Model(family), dataset, "given", config(), tmp_path / "parts")
    assert over(resumed).losses == whole.losses
    assert all(torch.equal(resumed.lora[key], whole.lora[key]) for key in whole.lora)


def test_what_is_learned_depends_on_the_picture(folder, tmp_path):
    class Blind(Model):
        def velocity(self, x_BCFHW, t_B, conditions):
            return super().velocity(x_BCFHW, t_B, {**conditions, "image": 0 * conditions["image"]})

    dataset = cached(folder, condition=FIRST_FRAME)
    seeing, blind = (over(Run(kind(WAN22_I2V), dataset, "given", config(), tmp_path / kind.__name__))
                     for kind in (Model, Blind))
    assert seeing.losses[0] != blind.losses[0]


def test_the_tensors_of_a_batch_have_the_shapes_of_comfyuis(folder):
    dataset = cached(folder, condition=FIRST_FRAME)
    clip = next(sample for sample in dataset.samples if sample.bucket.frames == 9)
    batch = read_batch([clip.visit(0), clip.visit(1)], WAN21_I2V.conditions)
    rows, columns = clip.bucket.height // 8, clip.bucket.width // 8
    assert batch.latent_BCFHW.shape == (2, 16, 3, rows, columns)
    assert batch.conditions["image"].shape == (2, 20, 3, rows, columns)
    assert batch.conditions["clip_vision"].shape == (2, 257, 1280)

    five = cached(folder, WAN22_5B, FIRST_FRAME)
    known = {sample.bucket.frames: read_batch([sample.visit(0)], WAN22_5B.conditions).conditions["known"].tolist()
             for sample in five.samples}
    assert known == {1: [[0.0]], 9: [[1.0, 0.0, 0.0]]}, "a still has no frame that is given"


def test_models_with_one_vae_share_latents_and_captions(folder):
    plain, given, ends = (cached(folder, condition=condition) for condition in (NO_FRAME, FIRST_FRAME, BOTH_ENDS))
    assert [sample.latent_paths for sample in plain.samples] == [sample.latent_paths for sample in given.samples]
    assert [sample.captions for sample in plain.samples] == [sample.captions for sample in given.samples]
    assert plain.kinds == {"text"} and given.kinds == ends.kinds == {"text", "image", "clip_vision"}
    assert len({plain.digest, given.digest, ends.digest}) == 3
    images = [{sample.windows[0]["image"] for sample in dataset.samples if sample.bucket.frames > 1}
              for dataset in (given, ends)]
    assert images[0].isdisjoint(images[1])


def test_a_share_of_the_visits_is_given_nothing_and_the_order_stays(folder):
    dataset = cached(folder, condition=FIRST_FRAME, condition_dropout=0.25, num_repeats=40, caption_dropout=0.5)
    without = [replace(sample, condition_dropout=0.0) for sample in dataset.samples]
    one, two, again = (BucketSampler(samples, 1, seed=3) for samples in (dataset.samples, without, dataset.samples))
    count = 5 * one.steps_per_epoch
    visits = [(one.next()[0], two.next()[0], again.next()[0]) for _ in range(count)]
    assert all(a == c and replace(a, is_condition_dropped=False) == b for a, b, c in visits)
    dropped = [visit for visit, *_ in visits if visit.is_condition_dropped]
    assert abs(len(dropped) / count - 0.25) < 4 * (0.25 * 0.75 / count) ** 0.5
    empty = {path for sample in dataset.samples for path in sample.empty_caption.values()}
    both = sum(visit.condition_paths["text"] in empty for visit in dropped) / len(dropped)
    assert abs(both - 0.5) < 4 * 0.5 / len(dropped) ** 0.5, "captions are dropped independently"


def test_dropped_frames_are_what_a_model_gets_that_got_none(folder):
    sample = next(each for each in cached(folder, condition=FIRST_FRAME).samples if each.bucket.frames > 1)
    given, dropped = (read_batch([sample.visit(0, False, is_dropped)], WAN21_I2V.conditions).conditions
                      for is_dropped in (False, True))
    assert torch.equal(given["text"], dropped["text"])
    assert (WAN21_T2V.normalize(dropped["image"][:, :16]) == 0).all() and (dropped["image"][:, 16:] == 1).all()
    assert (dropped["clip_vision"] == 0).all() and not torch.equal(given["image"], dropped["image"])
    five = next(each for each in cached(folder, WAN22_5B, FIRST_FRAME).samples if each.bucket.frames > 1)
    assert read_batch([five.visit(0, False, True)], WAN22_5B.conditions).conditions["known"].tolist() == [[0, 0, 0]]


REFUSED = [
    (WAN21_I2V, WAN21_T2V, NO_FRAME, 'has the condition "none", Wan2.1 I2V takes "first frame" or "first and last '
                                     'frame"; choose that in Dataset Settings'),
    (WAN22_I2V, WAN21_T2V, NO_FRAME, 'the condition "none", Wan2.2 I2V takes "first frame" or'),
    (WAN21_FLF2V, WAN21_T2V, FIRST_FRAME, 'the condition "first frame", Wan2.1 FLF2V takes "first and last frame"; '),
    (WAN22_5B, WAN21_T2V, NO_FRAME, "cached for Wan2.1 T2V, the model is Wan2.2 5B; cache it for this model"),
    (WAN21_T2V, WAN22_5B, NO_FRAME, "cached for Wan2.2 5B, the model is Wan2.1 T2V; cache it for this model"),
    (WAN22_I2V, WAN22_5B, FIRST_FRAME, "cached for Wan2.2 5B, the model is Wan2.2 I2V"),
    (WAN21_T2V, WAN21_T2V, CONTROL, 'the condition "control clip", Wan2.1 T2V takes "none" or "first frame" or "first '
                                    'and last frame"; choose that in Dataset Settings'),
    (WAN21_FUN_CONTROL, WAN21_T2V, CONTROL, 'Wan2.1 Fun-Control takes "control clip and first frame"; choose'),
    (WAN22_FUN_CONTROL, WAN21_T2V, VACE, 'Wan2.2 Fun-Control takes "control clip" or "control clip and first frame"'),
    (WAN21_VACE, WAN21_T2V, CONTROL, 'the condition "control clip", Wan2.1 VACE takes "VACE control clip"; choose'),
]


@pytest.mark.parametrize(("family", "data", "condition", "sentence"), REFUSED)
def test_a_dataset_that_does_not_suit_is_refused(folder, tmp_path, family, data, condition, sentence):
    with pytest.raises(UserError, match=sentence):
        Run(Model(family), cached(folder, data, condition), "given", config(), tmp_path / "runs")
    assert not (tmp_path / "runs").exists(), "before anything is written"


@pytest.mark.parametrize(("family", "condition", "other"), [
    (WAN21_I2V, FIRST_FRAME, WAN22_I2V), (WAN21_FLF2V, BOTH_ENDS, WAN22_I2V),
    (WAN21_FUN_CONTROL, CONTROL_AND_FIRST, WAN22_FUN_CONTROL)])
def test_models_of_wan21_that_see_a_picture_are_refused_without_clip_vision(folder, tmp_path, family, condition, other):
    dataset = cached(folder, condition=condition, with_clip=False)
    with pytest.raises(UserError, match=f"no clip_vision, which {family.name} needs; connect a CLIP vision to Cache"):
        Run(Model(family), dataset, "given", config(), tmp_path / "runs")
    with closing(Run(Model(other), dataset, "given", config(), tmp_path / "runs")) as run:
        assert run.notes == ()


@pytest.mark.parametrize(("family", "note"), [
    (WAN22_I2V, "Wan2.2 I2V takes no CLIP vision; it is trained without."),
    (WAN21_T2V, "The dataset gives the first frame of its clips, which Wan2.1 T2V does not take; it is trained "
                "without.")])
def test_what_a_model_does_not_take_is_left_out_with_a_note(folder, tmp_path, family, note):
    model = Model(family)
    run = over(Run(model, cached(folder, condition=FIRST_FRAME), "given", config(), tmp_path / "runs"))
    assert note in run.notes
    assert {frozenset(seen) for seen in model.seen} == {frozenset(kind.name for kind in family.conditions)}


def test_stills_are_their_own_first_frame_with_a_note(folder):
    given, five = (scanned(folder, data, FIRST_FRAME) for data in (WAN21_T2V, WAN22_5B))
    assert len(given.samples) == len(five.samples) == 4
    assert "astronaut.png, chelsea.png: a picture, which is its own first frame; it teaches no motion." in given.notes
    assert any("is trained on as in text-to-video" in note for note in five.notes)
    assert not any("a picture, which" in note for note in scanned(folder).notes)


def test_stills_have_no_last_frame_and_are_left_out(folder):
    found = scanned(folder, condition=BOTH_ENDS)
    assert {sample.name for sample in found.samples} == {"clip 0.mp4", "clip 1.mp4"}
    assert [rejection.reason for rejection in found.rejected] == [
        f'{name} is a picture, which has no last frame; use a clip, or the condition "first frame".'
        for name in ("astronaut.png", "chelsea.png")]


def test_5b_reads_24_frames_a_second_at_sides_of_32(folder):
    found = scanned(folder, WAN22_5B, extraction="uniform", resolution=100)
    assert all(side % 32 == 0 for sample in found.samples for side in (sample.bucket.height, sample.bucket.width))
    # 2.5 and 3 seconds are 60 and 72 frames
    ends = {sample.name: max(sample.starts) + 9 for sample in found.samples if sample.source}
    assert ends == {"clip 0.mp4": 60, "clip 1.mp4": 72}
    for sample in cached(folder, WAN22_5B).samples:
        size = (1 if sample.bucket.frames == 1 else 3, sample.bucket.height // 16, sample.bucket.width // 16)
        assert read_tensor(sample.latent_paths[0]).shape == (48, *size)
    with pytest.raises(UserError, match="frame_buckets has 10; Wan takes 4n.1 frames, the nearest is 9"):
        scanned(folder, WAN22_5B, frame_buckets=(1, 10))
    with pytest.raises(UserError, match='condition is "first and last frame"; Wan2.2 5B takes none or first frame'):
        scanned(folder, WAN22_5B, BOTH_ENDS)


def test_datasets_that_give_other_frames_or_are_for_other_models_are_not_joined(folder):
    with pytest.raises(UserError, match="joined datasets have the conditions first frame and none; choose one"):
        join([scanned(folder), scanned(folder, condition=FIRST_FRAME)])
    with pytest.raises(UserError, match="joined datasets are meant for Wan2.1 T2V and Wan2.2 5B"):
        join([scanned(folder), scanned(folder, WAN22_5B)])
    assert join([scanned(folder, condition=FIRST_FRAME)] * 2).condition == FIRST_FRAME


@pytest.mark.parametrize("settings", [{"condition": "last frame"}, {"condition_dropout": 1.5},
                                      {"condition_dropout": float("nan")}])
def test_settings_that_make_no_sense_are_refused(folder, settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))} is .*; choose"):
        DatasetConfig(folder=str(folder), **settings)


def test_every_family_is_registered_with_what_it_takes():
    taken = {family.name: [kind.name for kind in families.named(family.name).conditions]
             for family in (WAN21_T2V, WAN21_I2V, WAN21_FLF2V, WAN22_I2V, WAN22_5B)}
    assert taken == {"Wan2.1 T2V": ["text"], "Wan2.1 I2V": ["text", "image", "clip_vision"],
                     "Wan2.1 FLF2V": ["text", "image", "clip_vision"], "Wan2.2 I2V": ["text", "image"],
                     "Wan2.2 5B": ["text", "known"]}
    assert {name: family.name for name, family in families.DATASETS.items()} == {
        "Wan2.1, Wan2.2 A14B": "Wan2.1 T2V", "Wan2.2 5B": "Wan2.2 5B"}
    assert all(kind.without for kind in (IMAGE, CLIP_VISION, KNOWN))
    with pytest.raises(UserError, match="model is 'Wan3'; choose one of Wan2.1, Wan2.2 A14B; Wan2.2 5B"):
        families.of_dataset("Wan3")
