"""What a step takes from the host is made in another thread, and is a function of (seed, step) and the data alone."""

import itertools
import threading

import pytest
import torch

from wantune.tests.support import small_model
from wantune.tests.support.small_model import SmallModel
from wantune.trainer.encoded.batches import BucketSampler, LookAhead, read_batch
from wantune.trainer.settings.training import ObjectiveConfig, OptimizerConfig, TrainConfig
from wantune.trainer.training import inputs, objective


@pytest.fixture
def dataset(tmp_path):
    return small_model.dataset(tmp_path / "cache", count=7)


CONFIG = TrainConfig(batch_size=2, seed=3, optimizer=OptimizerConfig(accumulation=3), objective=ObjectiveConfig(
    stratified=True, noise_offset=0.1, weighting="cosmap", resolution_shift=True))


def sampler(dataset, position=(0, 0)) -> BucketSampler:
    found = BucketSampler(dataset.samples, CONFIG.batch_size, CONFIG.seed)
    found.epoch, found.cursor = position
    return found


def taken(dataset, count: int, position=(0, 0), step: int = 0, model=None) -> list[inputs.Inputs]:
    drawn = inputs.of_steps(CONFIG, model or SmallModel(), sampler(dataset, position), step)
    return list(itertools.islice(drawn, count))


def tensors(batch: inputs.Inputs) -> dict[str, torch.Tensor]:
    found = {name: getattr(batch, name) for name in ("latent_BCFHW", "noise_BCFHW", "t_B", "weight_B", "mask_B11HW")}
    return {name: tensor for name, tensor in {**found, **batch.conditions}.items() if tensor is not None}


def equal(one: inputs.Inputs, other: inputs.Inputs) -> bool:
    a, b = tensors(one), tensors(other)
    return (a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
            and all(getattr(one, name) == getattr(other, name) for name in (
                "names", "timesteps", "dropout_seed", "num_samples", "position", "is_last")))


def test_each_step_has_batches_of_one_epoch_and_says_where_it_ends(dataset):
    batches = taken(dataset, 20)
    assert sampler(dataset).steps_per_epoch == 4  # of 4 and 3 samples of two sizes
    assert [batch.is_last for batch in batches] == [False, False, True, True] * 5
    assert [batch.position for batch in batches] == [(epoch, cursor) for epoch in range(5) for cursor in (1, 2, 3, 4)]
    assert {batch.num_samples for batch in batches} <= {1, 2, 5, 6}
    assert any(batch.mask_B11HW is None for batch in batches) and any(batch.mask_B11HW is not None for batch in batches)


def test_a_run_that_goes_on_gets_what_it_would_have_got(dataset):
    whole = taken(dataset, 24)
    for step, index in enumerate(index + 1 for index, batch in enumerate(whole[:-1]) if batch.is_last):
        again = taken(dataset, 24 - index, whole[index - 1].position, step + 1)
        assert all(map(equal, again, whole[index:]))


def test_the_numbers_are_those_of_one_generator_for_each_step(dataset):
    """As the loop drew them itself: the noise levels of the whole step first, then the noise of each batch."""
    own, alone = iter(taken(dataset, 16)), sampler(dataset)
    for step in range(8):
        visits = [alone.next() for _ in range(3 if step % 2 == 0 else 1)]
        generator = objective.generator(CONFIG.seed, step)
        sizes = [len(each) for each in visits]
        uniform = objective.sample_uniform(CONFIG.objective, sum(sizes), generator).split(sizes)
        seen = 0
        for each, u_B in zip(visits, uniform, strict=True):
            batch, found = read_batch(each, SmallModel.family.conditions), next(own)
            t_B = objective.timesteps_of(CONFIG.objective, u_B, batch.latent_BCFHW[0].numel() // 64)
            assert torch.equal(found.t_B, t_B) and found.timesteps == tuple(t_B.tolist())
            assert torch.equal(found.noise_BCFHW, objective.sample_noise(batch.latent_BCFHW, generator, 0.1))
            assert torch.equal(found.weight_B, objective.weight(CONFIG.objective, t_B))
            assert torch.equal(found.latent_BCFHW, batch.latent_BCFHW) and found.names == batch.names
            assert found.dropout_seed == objective.generator("dropout", CONFIG.seed, step, seen).initial_seed()
            seen += len(each)


def test_they_are_made_in_another_thread(dataset):
    threads = set()

    class Model(SmallModel):
        def prepared(self, conditions, size_FHW):
            threads.add(threading.current_thread())
            return super().prepared(conditions, size_FHW)

    ahead = LookAhead(inputs.of_steps(CONFIG, Model(), sampler(dataset), 0))
    found = [ahead.next() for _ in range(9)]
    ahead.close()
    assert all(map(equal, found, taken(dataset, 9)))
    assert len(threads) == 1 and threading.current_thread() not in threads


class Card(SmallModel):
    device = torch.device("cuda")


def test_for_a_card_they_lie_in_pinned_memory_and_the_copies_are_not_waited_for(dataset, monkeypatch):
    pinned, copied = [], []

    def pin_memory(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    def to(tensor, device, non_blocking=False):
        copied.append((tensor, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    batches = taken(dataset, 4, model=Card())
    monkeypatch.setattr(torch.Tensor, "to", to)
    for batch in batches:
        batch.to(Card.device)
    assert [id(tensor) for tensor, _ in copied] and all(is_async for _, is_async in copied)
    assert {id(tensor) for tensor, _ in copied} == {id(tensor) for tensor in pinned}
    assert len(copied) == sum(len(tensors(batch)) for batch in batches)
    assert all(map(equal, batches, taken(dataset, 4)))


def test_where_the_system_gives_no_pinned_memory_it_goes_without(dataset, monkeypatch):
    def refused(_tensor):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    assert all(map(equal, taken(dataset, 4, model=Card()), taken(dataset, 4)))
