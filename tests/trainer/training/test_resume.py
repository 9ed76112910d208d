"""A run that is interrupted and goes on is bit for bit the run that was not, and a finished one is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from wantune.tests.support import clips, tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.runs import state as run_state
from wantune.trainer.runs.folder import RunFolder
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import (
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def cached(tmp_path_factory, comfy):
    """Pictures of two shapes and a clip, one picture masked, two held out, captions dropped now and then."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec

    folder = tools.write_pictures(tmp_path_factory.mktemp("data"))
    for number in range(3):
        clips.at_rate(folder / f"clip {number}.mp4", 24, 12 + number)
    config = DatasetConfig(folder=str(folder), resolution=64, num_repeats=2, trigger_word="zwx", frame_buckets=(1, 5),
                           validation_items=2, caption_dropout=0.2)
    store = Store(tmp_path_factory.mktemp("cache"))
    encoders = WanCodec(tools.load_vae()), {"text": CaptionEncoder(tools.load_clip())}
    return tools.drained(fill(scan.scan(config), store, *encoders))[1]


@pytest.fixture(scope="module")
def model(comfy):
    return tools.load_dit(tools.WORLD / "dit.safetensors")


@pytest.fixture
def train(monkeypatch, model, cached, tmp_path):
    """Trains in a folder of the test, or of its own."""
    import folder_paths

    from wantune.nodes import train

    def run(settings, watch=None, place="here", name="run", **inputs):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / place))
        with torch.inference_mode():  # as ComfyUI runs nodes
            return train.train(model, cached, name, settings, watch or tools.Watch(), **inputs)

    return run


def config(
    validation: ValidationConfig | None = None, optimizer: OptimizerConfig | None = None, **settings
) -> TrainConfig:
    validation = validation or ValidationConfig(every_epochs=0, evaluate_epochs=0, every_minutes=0)
    return TrainConfig(**{
        "epochs": 3, "batch_size": 2, "learning_rate": 1e-3, "lora": LoraConfig(rank=4), "validation": validation,
        "optimizer": optimizer or OptimizerConfig(), "gradient_checkpointing": False, **settings})


def interrupt_after(count: int):
    """A display at which Cancel is pressed after so many steps."""
    import comfy.model_management

    def look(event) -> None:
        if type(event).__name__ == "StepDone" and event.step == count:
            raise comfy.model_management.InterruptProcessingException

    return tools.Watch(look)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


OPTIMIZERS = {
    "adamw": OptimizerConfig(),
    "accumulation and cosine": OptimizerConfig(accumulation=3, schedule="cosine"),
    "prodigy": OptimizerConfig(name="prodigy"),
    "average": OptimizerConfig(ema_decay=0.9),
    "prodigy, average, accumulation": OptimizerConfig(name="prodigy", ema_decay=0.9, accumulation=2),
    "schedule free": OptimizerConfig(name="schedule_free"),
    "lion": OptimizerConfig(name="lion"),
    "adafactor": OptimizerConfig(name="adafactor"),
    "came": OptimizerConfig(name="came"),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_cancelled_and_continued_is_bit_for_bit_the_whole_run(train, optimizer):
    import comfy.model_management

    objective = ObjectiveConfig(stratified=True, shift=2.0, noise_offset=0.05)
    settings = config(optimizer=optimizer, objective=objective)
    whole, losses, _ = train(settings, place="whole")
    assert len(losses) >= 5
    for count in (1, 3, len(losses) - 1):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(settings, interrupt_after(count), place="parts")
    watch = tools.Watch()
    parts, found, folder = train(settings, watch, place="parts")
    assert watch.events[0].step == len(losses) - 1, "it went on from the last finished step"
    assert found == losses and same(parts, whole)
    steps = [json.loads(line) for line in open(f"{folder}/log.jsonl", encoding="utf-8")]
    assert [line["step"] for line in steps if line["event"] == "StepDone"] == list(range(1, len(losses) + 1))


def test_what_was_the_best_is_known_after_two_interruptions_of_its_evaluation(train):
    """The first Cancel saves the step before it is measured, the second one comes when it has been."""
    import comfy.model_management

    settings = config(ValidationConfig(every_epochs=0, evaluate_epochs=0, every_minutes=0, evaluate_steps=3))
    *_, whole = train(settings, place="whole")

    def measured(event) -> None:
        if type(event).__name__ == "Evaluated":
            raise comfy.model_management.InterruptProcessingException

    for display in (interrupt_after(3), tools.Watch(measured)):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(settings, display, place="parts")
    *_, parts = train(settings, place="parts")
    evaluated, expected = ([(line["step"], line["is_best"]) for line in RunFolder(Path(folder)).logged()
                            if line["event"] == "Evaluated"] for folder in (parts, whole))
    assert evaluated == expected
    assert json.loads(Path(parts, "best.json").read_text()) == json.loads(Path(whole, "best.json").read_text())


@pytest.mark.parametrize("kind", ["lora", "rslora", "lokr", "loha"])
def test_every_kind_of_adapter_goes_on_bit_for_bit_with_dropout_and_checkpointing(train, kind):
    import comfy.model_management

    lora = LoraConfig(rank=4, alpha=2, kind=kind, dropout=0.3, targets="attention")
    settings = config(lora=lora, gradient_checkpointing=True)
    whole, losses, _ = train(settings, place="whole")
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(settings, interrupt_after(3), place="parts")
    parts, found, _ = train(settings, place="parts")
    assert found == losses and same(parts, whole)
    assert not any(".ffn." in key for key in whole), "attention alone"


def test_what_preserves_goes_on_bit_for_bit_with_dropout_checkpointing_accumulation_and_average(train):
    """Which steps preserve is counted from the run's first one, not from where it went on."""
    import comfy.model_management

    settings = config(
        lora=LoraConfig(rank=4, dropout=0.2), gradient_checkpointing=True, optimizer=OptimizerConfig(
            accumulation=2, ema_decay=0.9), objective=ObjectiveConfig(preserve=0.5, preserve_every=2))
    watch = tools.Watch()
    whole, losses, _ = train(settings, watch, place="whole")
    measured = [event.preservation for event in watch.events if type(event).__name__ == "StepDone"]
    assert measured[0] < 1e-9 and all(value > 1e-9 for value in measured[2::2])
    assert all(value is None for value in measured[1::2])
    for count in (1, 2):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(settings, interrupt_after(count), place="parts")
    parts, found, folder = train(settings, place="parts")
    assert found == losses and same(parts, whole)
    steps = [json.loads(line) for line in open(f"{folder}/log.jsonl", encoding="utf-8")]
    assert [line["preservation"] for line in steps if line["event"] == "StepDone"] == measured


def test_a_lora_is_continued(train):
    first, losses, folder = train(config())
    settings = config(lora=LoraConfig(rank=32), learning_rate=1e-9)  # rank and alpha are the file's
    same_again, found, other = train(settings, continued=first)
    assert other != folder and first.keys() == same_again.keys()
    for key, value in first.items():
        torch.testing.assert_close(same_again[key], value, rtol=1e-3, atol=1e-6)
    assert found[0] != losses[0], "it begins where the other ended"
    fresh = train(settings, place="fresh")[0]
    assert fresh["diffusion_model.blocks.0.ffn.0.lora_A.weight"].shape[0] == 32


def test_going_on_from_an_older_checkpoint_gives_the_same(train):
    settings = config(ValidationConfig(every_steps=1, keep_last=100, every_epochs=0, evaluate_epochs=0), epochs=4)
    whole, losses, folder = train(settings)
    for step in (len(losses), len(losses) - 1, 4, 2):
        (path,) = [path for path in _steps(folder) if path.name == f"step_{step:06d}"]
        for later in [path for path in _steps(folder) if path.name >= f"step_{step:06d}"]:
            shutil.rmtree(later)
        watch = tools.Watch()
        again, found, _ = train(settings, watch)
        assert watch.events[0].step == step - 1 and found == losses and same(again, whole)


def _steps(folder: str):
    from pathlib import Path

    return sorted(Path(folder).glob("step_*"))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(train):
    first = train(config(), place="a")[0]
    assert same(first, train(config(), place="b")[0])
    assert not same(first, train(config(seed=1), place="c")[0])


def test_the_average_is_what_is_used_unless_it_is_only_kept(train):
    plain = train(config(), place="plain")[0]
    average = train(config(optimizer=OptimizerConfig(ema_decay=0.9)), place="average")[0]
    kept = train(config(optimizer=OptimizerConfig(ema_decay=0.9, use_average=False)), place="kept")[0]
    assert same(kept, plain) and not same(average, plain)


def test_measuring_and_saving_often_changes_nothing(train):
    for optimizer in (OptimizerConfig(), OptimizerConfig(ema_decay=0.9), OptimizerConfig(name="schedule_free")):
        quiet = train(config(optimizer=optimizer, epochs=1), place=f"quiet {optimizer.name} {optimizer.ema_decay}")
        validation = ValidationConfig(every_steps=1, evaluate_steps=1, keep_last=1)
        watch = tools.Watch()
        busy = train(config(validation, optimizer, epochs=1), watch,
                     place=f"busy {optimizer.name} {optimizer.ema_decay}")
        assert same(quiet[0], busy[0]) and quiet[1] == busy[1]
        kinds = [type(event).__name__ for event in watch.events]
        assert kinds.count("Evaluated") == len(busy[1]) + 1 and kinds.count("Saved") >= len(busy[1])


def test_a_finished_run_is_loaded_and_not_trained(train, monkeypatch):
    from wantune.trainer.training import loop

    lora, losses, folder = train(config())
    monkeypatch.setattr(loop.Trainer, "train_step", lambda self: pytest.fail("it trains again"))
    watch = tools.Watch()
    again, found, same_folder = train(config(), watch)
    assert same(again, lora) and found == losses and same_folder == folder and not watch.events
    assert "trained before: " in watch.said[0]
    assert train(config(), name="another name")[2] == folder, "a name changes nothing"
    validation = ValidationConfig(every_steps=2, evaluate_steps=1, keep_last=7)
    assert same(train(config(validation, gradient_checkpointing=True))[0], lora), "nor do cadences and memory"


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"learning_rate": 2e-3}, {"batch_size": 1}, {"lora": LoraConfig(rank=8)},
    {"objective": ObjectiveConfig(shift=3.0)}, {"optimizer": OptimizerConfig(weight_decay=0.1)},
])
def test_what_changes_the_result_is_another_run(train, change):
    folder = train(config(epochs=1))[2]
    watch = tools.Watch()
    assert train(config(epochs=1, **change), watch)[2] != folder and watch.events


def test_more_epochs_continue_a_finished_run_and_fewer_are_found_again(train):
    validation = ValidationConfig(every_epochs=1, keep_last=100, evaluate_epochs=0)
    whole, losses, _ = train(config(validation, epochs=4), place="whole")
    first = train(config(validation, epochs=2))
    watch = tools.Watch()
    longer = train(config(validation, epochs=4), watch)
    assert watch.events[0].step == len(first[1]) and longer[1] == losses and same(longer[0], whole)
    watch = tools.Watch()
    shorter = train(config(validation, epochs=2), watch)
    assert not watch.events and same(shorter[0], first[0]) and shorter[1] == first[1]


def test_fewer_steps_without_a_checkpoint_are_trained_to_and_the_longer_run_stays(train):
    longer = train(config(epochs=4))
    watch = tools.Watch()
    shorter = train(config(max_steps=3), watch)
    assert len(shorter[1]) == 3 and shorter[1] == longer[1][:3] and watch.events
    assert same(train(config(epochs=4))[0], longer[0])
    assert same(shorter[0], train(config(max_steps=3), place="alone")[0])


def test_stop_ends_after_the_present_step_and_queueing_again_goes_on(train):
    whole, losses, _ = train(config(), place="whole")
    watch = tools.Watch()
    watch._look = lambda event: setattr(watch, "stop", type(event).__name__ == "StepDone" and event.step == 3)
    stopped, found, _ = train(config(), watch)
    assert found == losses[:3] and watch.events[-1].reason == "stopped"
    assert not same(stopped, whole) and any(value.any() for key, value in stopped.items() if "lora_B" in key)
    continued, found, _ = train(config())
    assert found == losses and same(continued, whole)


def test_damaged_checkpoints_are_passed_over_and_named(train):
    settings = config(ValidationConfig(every_steps=1, keep_last=100, every_epochs=0, evaluate_epochs=0))
    whole, losses, folder = train(settings)
    *_, third, second, newest = _steps(folder)
    (newest / "adapter.safetensors").write_bytes((newest / "adapter.safetensors").read_bytes()[:-10])
    (second / "state.safetensors").unlink()
    (third / "state.json").write_text("{}")
    watch = tools.Watch()
    again, found, _ = train(settings, watch)
    assert watch.events[0].step == len(losses) - 3 and same(again, whole) and found == losses
    named = [fault.split()[2] for fault in watch.events[0].passed_over]
    assert named == [path.name for path in (newest, second, third)]


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_former_checkpoint_is_whole(train, monkeypatch):

    whole, losses, _ = train(config(), place="whole")
    settings = config(ValidationConfig(every_steps=2, every_epochs=0, evaluate_epochs=0))
    save, count = run_state.save_file, []

    def full(tensors, path):
        count.append(path)
        if len(count) > 2:  # the second checkpoint
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(run_state, "save_file", full)
    with pytest.raises(UserError, match="checkpoint of step 4 cannot be written.*No space left.*free some space"):
        train(settings)
    monkeypatch.setattr(run_state, "save_file", save)
    watch = tools.Watch()
    again, found, _ = train(settings, watch)
    assert watch.events[0].step == 2 and same(again, whole) and found == losses


def test_steps_without_a_finite_loss_are_skipped_and_counted(train, monkeypatch):
    from wantune.trainer.training import objective

    loss, calls = objective.denoising_loss, []

    def sometimes(*args):
        calls.append(1)
        return loss(*args) * (float("nan") if len(calls) in (2, 5) else 1.0)

    monkeypatch.setattr(objective, "denoising_loss", sometimes)
    watch = tools.Watch()
    lora, losses, folder = train(config(), watch)
    steps = [event for event in watch.events if type(event).__name__ == "StepDone"]
    assert [event.step for event in steps if event.is_skipped] == [2, 5] and watch.events[-1].skipped == 2
    assert len(losses) == len(steps) - 2 and all(value.isfinite().all() for value in lora.values())
    lines = [json.loads(line) for line in open(f"{folder}/log.jsonl", encoding="utf-8")]
    assert [line["loss"] for line in lines if line["event"] == "StepDone"][1] is None


def test_out_of_memory_saves_what_was_learned_and_says_what_to_lower(train, model, monkeypatch):
    from wantune.trainer.training import objective

    loss, calls = objective.denoising_loss, []

    def third_time(*args):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
        return loss(*args)

    snapshot = tools.Snapshot(model)
    monkeypatch.setattr(objective, "denoising_loss", third_time)
    with pytest.raises(UserError, match="Out of memory at step 3 of .*; lower batch_size.*Tried to allocate"):
        train(config())
    snapshot.assert_untouched()
    monkeypatch.setattr(objective, "denoising_loss", loss)
    watch = tools.Watch()
    lora, losses, _ = train(config(), watch)
    assert watch.events[0].step == 2 and same(lora, train(config(), place="whole")[0])


@pytest.mark.parametrize("place", ["forward", "backward", "optimizer", "evaluation", "writing", "sealing"])
def test_cancel_at_any_place_leaves_the_model_and_the_last_finished_step(train, model, monkeypatch, place):
    """ComfyUI's interrupt is a BaseException in newer versions: it may come up wherever Python runs."""
    import comfy.model_management

    from wantune.trainer.training import evaluate, loop, objective

    owner, name = {
        "forward": (objective, "timesteps_of"), "backward": (objective, "weight"),
        "optimizer": (loop.Trainer, "_clip"), "evaluation": (evaluate, "held_out_loss"),
        "writing": (run_state, "save_file"), "sealing": (run_state, "_seal"),
    }[place]
    original, calls = getattr(owner, name), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        result = original(*args, **kwargs)
        if len(calls) == 4 and place == "backward":
            return result.requires_grad_().register_hook(interrupt) and result  # raised by autograd itself
        if len(calls) == 4:
            interrupt()
        return result

    def interrupt(*_args):
        raise comfy.model_management.InterruptProcessingException

    validation = ValidationConfig(every_steps=1, evaluate_steps=1, keep_last=100)
    whole, losses, _ = train(config(validation, epochs=1), place="whole")
    snapshot = tools.Snapshot(model)
    monkeypatch.setattr(owner, name, interrupted)
    watch = tools.Watch()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(config(validation, epochs=1), watch)
    monkeypatch.setattr(owner, name, original)
    snapshot.assert_untouched()
    finished = max(event.step for event in watch.events if type(event).__name__ == "StepDone")
    again = tools.Watch()
    parts, found, folder = train(config(validation, epochs=1), again)
    assert again.events[0].step == finished and found == losses and same(parts, whole)
    lines = [json.loads(line) for line in open(f"{folder}/log.jsonl", encoding="utf-8")]
    measured = [line["step"] for line in lines if line["event"] == "Evaluated"]
    assert measured == list(range(len(losses) + 1)), "nothing is measured twice or left out"


def test_early_stop_ends_a_run_that_gets_no_better_for_good(train):
    validation = ValidationConfig(evaluate_steps=1, early_stop=2, every_epochs=0)
    watch = tools.Watch()
    _, losses, folder = train(config(validation, epochs=40, learning_rate=0.3), watch)
    assert watch.events[-1].reason == "early stop" and len(losses) < 40
    measured = [event for event in watch.events if type(event).__name__ == "Evaluated"]
    best = min(measured[1:], key=lambda event: event.loss)
    assert measured[-1].step - best.step == 2 and [event for event in measured if event.is_best][-1] == best
    assert f"step_{best.step:06d}" in [path.name for path in _steps(folder)], "the best one stays"
    with open(f"{folder}/best.json", encoding="utf-8") as file:
        assert json.load(file) == {
            "step": best.step, "loss": best.loss, "folder": f"step_{best.step:06d}", "learned": best.learned}
    watch = tools.Watch()
    train(config(validation, epochs=40, learning_rate=0.3), watch)
    assert not watch.events, "it is over"


def test_old_checkpoints_are_deleted(train):
    validation = ValidationConfig(every_steps=1, keep_last=2, every_epochs=0, evaluate_epochs=0)
    _, losses, folder = train(config(validation, epochs=4))
    assert [path.name for path in _steps(folder)] == [f"step_{step:06d}" for step in (len(losses) - 1, len(losses))]
