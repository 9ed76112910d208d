"""Too little memory: in a step, when the model is attached, in a preview; and what is decided before anything moves.

As on a card, where torch raises OutOfMemoryError; nothing of it needs one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wantune.tests.support import tools, trained
from wantune.trainer.base.errors import UserError
from wantune.trainer.memory.choice import Space
from wantune.trainer.memory.plan import Plan
from wantune.trainer.runs.events import Finished, Noted, Previewed, StepDone
from wantune.trainer.runs.history import RunLog
from wantune.trainer.settings.memory import MemoryConfig
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")

FAULT = "CUDA out of memory. Tried to allocate 2.00 GiB\nmore"


@pytest.fixture(scope="module")
def world(tmp_path_factory, comfy):
    return trained.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def train(world, tmp_path, monkeypatch):
    """Trains in a folder of its own; gives the LoRA, the losses, the folder and the events."""
    import folder_paths

    from wantune.nodes import train

    def run(place: str, previews=None, **settings):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / place))
        watch = tools.Watch()
        config = TrainConfig(**{
            "epochs": 99, "max_steps": 5, "batch_size": 2, "learning_rate": 1e-3, "lora": LoraConfig(rank=4),
            "validation": ValidationConfig(every_minutes=0, evaluate_epochs=0), **settings})
        with torch.inference_mode():
            found = train.train(world.model, world.cached, "run", config, watch, previews=previews)
        return *found, watch

    return run


@pytest.fixture
def plans(monkeypatch):
    """The plans that were followed, in their order."""
    from wantune.nodes.backend.stand_ins import StandIns

    followed, hold = [], StandIns.hold

    def seen(self, *args, **kwargs):
        followed.append(next(each for each in (*args, *kwargs.values()) if isinstance(each, Plan)))
        return hold(self, *args, **kwargs)

    monkeypatch.setattr(StandIns, "hold", seen)
    return followed


def failing(monkeypatch, numbers: set[int], in_backward: bool = False) -> None:
    """Have these calls of the loss, counted from 1, find too little memory."""
    from wantune.trainer.training import objective

    loss, calls = objective.denoising_loss, []

    def fail(*_):
        raise torch.OutOfMemoryError(FAULT)

    def sometimes(*args):
        calls.append(1)
        if len(calls) in numbers and not in_backward:
            fail()
        loss_B = loss(*args)
        if len(calls) in numbers:
            loss_B.register_hook(fail)
        return loss_B

    monkeypatch.setattr(objective, "denoising_loss", sometimes)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("in_backward", "optimizer"), [
    (False, OptimizerConfig()), (True, OptimizerConfig(accumulation=2)), (True, OptimizerConfig(ema_decay=0.9))])
def test_a_step_without_memory_is_done_again_by_the_next_smaller_plan(
    world, train, plans, monkeypatch, in_backward, optimizer
):
    whole, losses, *_ = train("whole", optimizer=optimizer)
    snapshot = tools.Snapshot(world.model)
    plans.clear()
    failing(monkeypatch, {4}, in_backward)
    lora, found, folder, watch = train("parts", optimizer=optimizer)
    blocks = len(world.model.model.diffusion_model.blocks)
    assert plans == [Plan(whole_blocks=blocks), Plan(segments="branch", keeps_attention=True)]
    assert found == losses and same(lora, whole), "nothing is lost, and nothing else is drawn"
    (note,) = [event for event in watch.events if isinstance(event, Noted)]
    assert "done again with less: " in note.sentence and "Tried to allocate 2.00 GiB" in note.sentence
    assert f"{blocks} of {blocks} blocks are computed again" in note.sentence
    log = RunLog(Path(folder) / "log.jsonl")
    log.refresh()
    assert log.noted == [note.sentence], "for the page"
    snapshot.assert_untouched()


def test_that_is_done_once(train, monkeypatch):
    failing(monkeypatch, {3, 5})
    with pytest.raises(UserError, match="Out of memory at step 4 of 5; lower batch_size.*Tried to allocate"):
        train("twice")


def test_a_plan_that_is_pinned_stays(train, plans, monkeypatch):
    failing(monkeypatch, {3})
    with pytest.raises(UserError, match="Out of memory at step 3 of 5"):
        train("pinned", memory=MemoryConfig(
            whole_blocks=0, segments="block", keep_attention="off", inputs_in_ram="off"))
    assert plans == [Plan()]


def test_too_little_memory_when_the_model_is_attached_is_told(world, train, monkeypatch):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    snapshot = tools.Snapshot(world.model)

    def reload(self):
        raise torch.OutOfMemoryError(FAULT)

    with monkeypatch.context() as patch:
        patch.setattr(ComfyDenoiser, "reload", reload)
        with pytest.raises(UserError, match="when the model was made ready for training; end other programs"):
            train("attached")
    snapshot.assert_untouched()


def test_a_preview_without_memory_is_left_out_and_the_run_goes_on(world, train, monkeypatch):
    from wantune.nodes.previews import PreviewSettings

    previews = PreviewSettings.execute(
        positive=world.conditioning("zwx"), negative=world.conditioning(""), vae=world.vae, width=64, height=64,
        frames=5, steps=2, cfg=1.0, shift=5.0, seed=7, every_epochs=0, every_steps=2).result[0]
    _, losses, _, watch = train("all", previews)
    assert sum(isinstance(event, Previewed) for event in watch.events) == 4
    decode, calls = world.vae.decode, []

    def second(latent):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError(FAULT)
        return decode(latent)

    monkeypatch.setattr(world.vae, "decode", second)
    _, found, _, watch = train("some", previews)
    assert found == losses and isinstance(watch.events[-1], Finished)
    assert sum(isinstance(event, Previewed) for event in watch.events) == 3
    (note,) = [event for event in watch.events if isinstance(event, Noted)]
    assert note.step == 2 and note.sentence.startswith("The preview after step 2 was left out, as there was too little")


def test_room_is_made_before_the_adapter_and_only_what_passes_is_left_free_later(train, monkeypatch):
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.trainer.training import run

    happened = []

    def watched(owner, name, note):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            happened.append((note, args[-1] if args else None))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    watched(ComfyDenoiser, "make_room", "room")
    watched(run, "Adapter", "adapter")
    watched(run, "Trainer", "optimizer")
    watched(ComfyDenoiser, "attached", "attached")
    watched(ComfyDenoiser, "keep_free", "free")
    *_, watch = train("order")
    order = [note for note, _ in happened]
    assert order[:4] == ["room", "adapter", "optimizer", "attached"]
    figures = dict(reversed(happened))
    assert happened[0][1] > figures["attached"] > happened[-1][1] > 0 and order[-1] == "free"
    assert any(isinstance(event, StepDone) for event in watch.events)


def test_what_does_not_fit_is_refused_before_anything_is_moved(train, monkeypatch):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    def never(*_args, **_options):
        raise AssertionError("moved")

    monkeypatch.setattr(ComfyDenoiser, "space", lambda self: Space(free=1 << 20, ram=0, offloads=False))
    monkeypatch.setattr(ComfyDenoiser, "make_room", never)
    monkeypatch.setattr(ComfyDenoiser, "reload", never)
    with pytest.raises(UserError, match=r"Training needs at least 0\.\d GiB of memory here, 0.0 GiB are there; "):
        train("refused")


def test_how_far_products_in_8_bits_are_off_is_noted_once_for_the_page_and_the_log(train, monkeypatch):
    from wantune.nodes.backend import denoiser

    sentence = "Products of the model's weights are computed in int8: results are off by 1.0%."
    monkeypatch.setattr(denoiser.quantised_linear, "measure", lambda *_args: sentence)
    for steps in (2, 4):  # the second goes on with the first
        *_, folder, watch = train("noted", max_steps=steps)
        kinds = [type(event).__name__ for event in watch.events]
        assert kinds[:2] == ["Started", "Noted"] and watch.events[1].sentence == sentence
        log = RunLog(Path(folder) / "log.jsonl")
        log.refresh()
        assert log.noted == [sentence]


def test_the_plan_is_said_and_shown_by_part(train):
    *_, watch = train("said")
    (told,) = [said for said in watch.said if said.startswith("Memory: ")]
    assert told in watch.notes and "nothing is computed twice" in told
    for part in ("weights", "adapter", "optimizer", "activations", "previews"):
        assert f"{part} " in told
