"""Which checkpoints of a run stay: the newest of this run and the best, and what cannot be used pushes none out."""

from contextlib import nullcontext

import pytest
import torch

from wantune.tests.support.adapted import FixedLinear
from wantune.tests.support.runs import begun
from wantune.trainer.adapter.adapters import Adapter
from wantune.trainer.data.buckets import Bucket
from wantune.trainer.encoded.cache import CachedDataset, CachedSample
from wantune.trainer.encoded.store import Store
from wantune.trainer.model.wan21 import WAN21_T2V
from wantune.trainer.runs.folder import RunFolder
from wantune.trainer.runs.state import STATE
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig
from wantune.trainer.training.loop import Trainer, total_steps


class Small:
    """A model of one Linear over the channels."""

    device = torch.device("cpu")
    family = WAN21_T2V
    compute_dtype = torch.float32

    def __init__(self) -> None:
        self.adapter = Adapter(
            LoraConfig(rank=2), {"blocks.0.self_attn.q": FixedLinear(torch.eye(16))}, self.device, 0)
        self.forward = self.adapter.forward_of("blocks.0.self_attn.q", torch.float32)

    def prepared(self, conditions, size_FHW):
        return conditions

    def velocity(self, x_BCFHW, t_B, conditions):
        return self.forward(x_BCFHW.movedim(1, -1)).movedim(-1, 1)

    def training(self):
        return nullcontext()


@pytest.fixture
def dataset(tmp_path):
    """Five latents to train on."""
    store, random = Store(tmp_path / "cache"), torch.Generator().manual_seed(0)
    text = store.path("texts", "text")
    store.write(text, torch.zeros(1, 8))
    clips = []
    for number in range(5):
        path = store.path("latents", str(number))
        store.write(path, torch.randn(16, 1, 2, 2, generator=random))
        clips.append(CachedSample(f"{number}.png", Bucket(1, 16, 16), 1, (path,), ({"text": text},)))
    return CachedDataset(WAN21_T2V, tuple(clips), (), "digest", "zwx", ("",) * 5)


def config(every_steps: int = 5, **settings) -> TrainConfig:
    validation = ValidationConfig(every_steps=every_steps, every_epochs=0, every_minutes=0, keep_last=3,
                                  evaluate_epochs=0)
    return TrainConfig(**{"epochs": 8, "learning_rate": 1e-2, "lora": LoraConfig(rank=2), "validation": validation,
                          **settings})


def total(config: TrainConfig) -> int:
    return total_steps(config, batches_per_epoch=5)


@pytest.fixture
def train(tmp_path, dataset):
    """Trains in the one folder, to the end or up to a step at which it is stopped."""
    def run(config: TrainConfig, stop_at: int = 10**9) -> RunFolder:
        folder, model = begun(tmp_path / "runs", "lora", "0" * 64, config.to_dict()), Small()
        trainer = Trainer(config, model, model.adapter, dataset, folder, folder.resume(total(config)))
        for event in trainer.run():
            trainer.stop = event.step >= stop_at
        return folder

    return run


def test_the_last_ones_stay(train):
    folder = train(config())
    assert folder.steps() == [30, 35, 40] and folder.newest()[0].step == 40


def test_a_run_that_is_stopped_goes_on_where_it_was(train):
    assert train(config(), stop_at=17).newest()[0].step == 17
    assert train(config()).newest()[0].step == 40


def test_a_run_that_was_made_shorter_keeps_its_own_end(train, dataset):
    train(config())
    shorter = config(epochs=3)
    folder = train(shorter)
    assert folder.resume(total(shorter)).checkpoint.step == total(shorter), "queued again it would be trained again"


def test_damaged_checkpoints_push_out_nothing_that_is_saved_after_them(train):
    folder = train(config())
    for step in folder.steps():
        path = folder.path / f"step_{step:06d}" / STATE
        path.write_bytes(path.read_bytes()[:-1])
    assert train(config(every_steps=2), stop_at=7).newest()[0].step == 7
