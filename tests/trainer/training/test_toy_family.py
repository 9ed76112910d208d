"""A new model family is one file and its registration: this one is a toy with other numbers throughout.

Other channels, strides, patches, frames a second, names of blocks and Linears, and a further condition (the first
frame) go through scan, cache, training, Stop and resume without a change anywhere else.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from wantune.tests.support import clips, tools
from wantune.tests.support.adapted import FixedLinear
from wantune.tests.support.runs import driven
from wantune.tests.support.small_model import Roomy
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.data.manifest import join
from wantune.trainer.encoded.batches import read_batch
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store, read_tensor
from wantune.trainer.memory.sizes import ModelSize
from wantune.trainer.model import families
from wantune.trainer.model.conditions import TEXT, WINDOW, ConditionKind, stack
from wantune.trainer.model.family import ModelFamily
from wantune.trainer.runs.events import Finished, Started
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig
from wantune.trainer.training.run import Run

FIRST_FRAME = ConditionKind(name="first_frame", folder="first_frames", source=WINDOW, collate=stack)
"""first_frame_BC: the mean colour of the first frame."""

TOY = ModelFamily(
    name="Toy", series="Toy", architecture="toy", implementation="nowhere", fps=10, stride_FHW=(3, 12, 12),
    patch_FHW=(1, 1, 2), latent_mean=(0.5, 0.0, -0.5), latent_std=(2.0, 1.0, 0.5), text_length=7, text_width=6,
    time_scale=1.0, blocks="layers", trained=("mix",), conditions=(TEXT, FIRST_FRAME))


class Codec:
    """Means over each cell of the latent's grid: 3 channels."""

    id = "toy codec"

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        frames, height, width, _ = pixels_FHW3.shape
        pixels = torch.tensor(pixels_FHW3).float().permute(3, 0, 1, 2) / 255
        size = (frames - 1) // 3 + 1, height // 12, width // 12
        return TOY.normalize(torch.nn.functional.adaptive_avg_pool3d(pixels, size)[None])[0]


class Text:
    """One row for each word."""

    id = "toy text"

    def encode(self, caption: str) -> torch.Tensor:
        return torch.tensor([[float(ord(letter) % 7) for letter in f"{word:6.6}"] for word in caption.split() or [""]])


class FirstFrame:
    """The mean colour of the window's first frame."""

    id = "toy first frame"

    def encode(self, pixels_FHW3: np.ndarray) -> torch.Tensor:
        return torch.tensor(pixels_FHW3[0]).float().mean((0, 1)) / 255


class Network(torch.nn.Module):
    """velocity = layers of (a Linear over channels) of latent, text, first frame and time."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict({"mix": torch.nn.Linear(3, 3)}) for _ in range(2))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random) / 2

    def forward(self, x_BCFHW, t_B, text_BLD, first_frame_BC, calls):
        x = x_BCFHW.movedim(1, -1)
        told = (first_frame_BC + text_BLD.mean((1, 2))[:, None] / 7 + t_B[:, None])[:, None, None, None]
        for call in calls:
            x = x + torch.tanh(call(x + told))
        return x.movedim(-1, 1)


class ToyDenoiser(Roomy):
    """All that trainer/model/backend.py asks of a model."""

    id, family = "toy weights", TOY
    device, compute_dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.network, self.calls, self.seen = Network().requires_grad_(False), None, []

    def linears(self):
        return {f"layers.{number}.mix": FixedLinear(layer["mix"].weight, layer["mix"].bias)
                for number, layer in enumerate(self.network.layers)}

    def linear_sizes(self):
        return {name: (3, 3) for name in self.linears()}

    @contextmanager
    def attached(self, adapter, linears, plan, memory):
        self.calls = [adapter.forward_of(name, self.compute_dtype) for name in linears]
        try:
            yield ()
        finally:
            self.calls = None

    def training(self):
        return nullcontext()

    def prepared(self, conditions, size_FHW):
        return conditions

    def velocity(self, x_BCFHW, t_B, conditions):
        self.seen.append({name: tuple(tensor.shape) for name, tensor in conditions.items()})
        return self.network(x_BCFHW, t_B, conditions["text"], conditions["first_frame"], self.calls)

    @property
    def size(self):
        return ModelSize(dim=3, ffn_dim=3, heads=1, blocks=2, weights=96, block_values=9, value=4, are_cast=False,
                         stored=48)


@pytest.fixture
def data(tmp_path, monkeypatch) -> DatasetConfig:
    """Two pictures and two clips of 2.5 seconds, one file held out."""
    monkeypatch.setattr(families, "_KNOWN", dict(families._KNOWN))
    families.register(TOY)
    folder = clips.with_pictures(tmp_path / "data")
    return DatasetConfig(folder=str(folder), family="Toy", resolution=96, frame_buckets=(1, 7, 13), extraction="chunks",
                         num_repeats=2, caption_dropout=0.2, validation_items=1, upscale=True, trigger_word="zwx")


@pytest.fixture
def cached(data, tmp_path):
    encoders = {"text": Text(), "first_frame": FirstFrame()}
    return tools.drained(fill(scan.scan(data), Store(tmp_path / "cache"), Codec(), encoders))[1]


def config(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "batch_size": 2, "learning_rate": 1e-2, "lora": LoraConfig(rank=2), **settings,
                          "validation": ValidationConfig(every_steps=3, every_minutes=0, evaluate_steps=4)})


def test_the_scan_takes_the_familys_sizes_rate_and_frames(data):
    manifest = scan.scan(data)
    everything = (*manifest.samples, *manifest.held_out)
    assert all(side % 24 == 0 for sample in everything for side in (sample.bucket.height, sample.bucket.width))
    starts = {sample.name: [] for sample in everything if sample.source}
    for sample in everything:
        if sample.source:
            starts[sample.name] += [(start, sample.bucket.frames) for start in sample.starts]
    # 2.5 and 3 seconds are 25 and 30 frames at 10 a second
    assert starts == {"clip 0.mp4": [(0, 13), (13, 13)], "clip 1.mp4": [(0, 13), (13, 13)]}
    with pytest.raises(UserError, match="frame_buckets has 12; Toy takes 3n.1 frames, the nearest is 13"):
        scan.scan(DatasetConfig(folder=data.folder, family="Toy", frame_buckets=(1, 12)))
    with pytest.raises(UserError, match="no model family 'Nobody'; choose one of Wan2.1 T2V, .*, Toy"):
        scan.scan(DatasetConfig(folder=data.folder, family="Nobody"))


def test_each_kind_of_condition_is_encoded_once_and_put_in_a_batch(cached, data, tmp_path):
    for sample in cached.samples:
        size = TOY.latent_size(sample.bucket)
        assert read_tensor(sample.latent_paths[0]).shape == (3, *size)
        assert len(sample.windows) == len(sample.latent_paths)
        assert sample.empty_caption.keys() == {"text"}, "what is seen is not dropped with the caption"
    short, long = (sample.visit(0) for sample in (cached.samples[0], cached.samples[0]))
    batch = read_batch([short, long], TOY.conditions)
    assert batch.conditions["text"].shape[::2] == (2, 6) and batch.conditions["first_frame"].shape == (2, 3)
    folders = {path.parent.name for sample in cached.samples for path in sample.paths}
    assert folders == {"latents", "texts", "first_frames"}

    class Never:
        def __init__(self, encoder) -> None:
            self.id = encoder.id

        def encode(self, source):
            raise AssertionError("encoded twice")

    again = fill(scan.scan(data), Store(tmp_path / "cache"), Never(Codec),
                 {"text": Never(Text), "first_frame": Never(FirstFrame)})
    assert tools.drained(again)[1].digest == cached.digest


def test_it_trains_and_goes_on_bit_for_bit_where_it_was_stopped(cached, tmp_path):
    denoiser = ToyDenoiser()
    whole = Run(denoiser, cached, "toy", config(), tmp_path / "whole")
    events = driven(whole)
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished) and events[0].num_modules == 2
    assert {frozenset(seen) for seen in denoiser.seen} == {frozenset({"text", "first_frame"})}

    stopped = Run(ToyDenoiser(), cached, "toy", config(), tmp_path / "parts")
    driven(stopped, stop_at=5)
    assert stopped.steps == 5
    resumed = Run(ToyDenoiser(), cached, "toy", config(), tmp_path / "parts")
    assert not resumed.is_finished and driven(resumed)[0].step == 5
    assert resumed.losses == whole.losses and resumed.lora.keys() == whole.lora.keys()
    assert all(torch.equal(resumed.lora[key], whole.lora[key]) for key in whole.lora)
    assert resumed.lora.metadata["modelspec.architecture"] == "toy/lora"

    finished = Run(ToyDenoiser(), cached, "another name", config(), tmp_path / "parts")
    assert finished.is_finished and finished.losses == whole.losses and finished.folder.path == resumed.folder.path


def test_what_is_learned_depends_on_the_further_condition(cached, tmp_path):
    class Blind(ToyDenoiser):
        id = "blind"

        def velocity(self, x_BCFHW, t_B, conditions):
            return super().velocity(x_BCFHW, t_B, {**conditions, "first_frame": 0 * conditions["first_frame"]})

    seeing, blind = (Run(kind(), cached, "toy", config(), tmp_path / kind.__name__) for kind in (ToyDenoiser, Blind))
    driven(seeing), driven(blind)
    assert seeing.losses[0] != blind.losses[0]


def test_a_cache_for_another_family_is_refused(cached, tmp_path):
    class Other(ToyDenoiser):
        family = families.DEFAULT

    with pytest.raises(UserError, match="cached for Toy, the model is Wan2.1 T2V"):
        Run(Other(), cached, "toy", config(), tmp_path / "runs")


def test_datasets_for_different_models_are_not_joined(data):
    other = DatasetConfig(folder=data.folder, resolution=96, upscale=True, trigger_word="zwx")
    with pytest.raises(UserError, match="joined datasets are meant for Toy and Wan2.1 T2V; choose one"):
        join([scan.scan(data), scan.scan(other)])


def test_every_number_of_the_toy_is_another_than_wans():
    for field in ("fps", "stride_FHW", "patch_FHW", "latent_channels", "text_length", "text_width", "time_scale",
                  "blocks", "trained", "side_multiple", "values_per_token"):
        assert getattr(TOY, field) != getattr(families.DEFAULT, field), field
