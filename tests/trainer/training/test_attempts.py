"""Nothing but Delete deletes a run, and a run is only continued where that gives what a run in one go would give."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from wantune.tests.support import tools
from wantune.tests.trainer.training.test_resume import cached, config, model, same, train  # noqa: F401
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.encoded.fill import fill
from wantune.trainer.runs.folder import delete_run
from wantune.trainer.runs.lock import RunLock, holder
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.memory import MemoryConfig
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")

EACH = ValidationConfig(every_steps=1, keep_last=100, evaluate_epochs=0, every_minutes=0)


def stop_after(count: int) -> tools.Watch:
    def look(event) -> None:
        watch.stop |= type(event).__name__ == "StepDone" and event.step == count

    watch = tools.Watch(look)
    return watch


def content(folder: str) -> dict[str, bytes]:
    """All files of a run, but for what says who trains it."""
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file() and not path.name.startswith("training.")}


# -- begun anew


def test_restart_stays_on_and_the_second_attempt_goes_on(train):  # noqa: F811
    first = train(config(EACH))
    before = content(first[2])
    stopped = train(config(EACH), stop_after(2), restart=True)
    assert Path(stopped[2]).name == Path(first[2]).name + "-2" and stopped[1] == first[1][:2]
    watch = tools.Watch()
    again = train(config(EACH), watch, restart=True)
    assert watch.events[0].step == 2 and again[2] == stopped[2] and again[1] == first[1] and same(again[0], first[0])
    watch = tools.Watch()
    assert train(config(EACH), watch, restart=True)[2] == again[2] and not watch.events, "a finished one is loaded"
    assert content(first[2]) == before, "the first attempt is as it was"


def test_without_restart_the_newest_attempt_goes_on(train):  # noqa: F811
    first = train(config(EACH), stop_after(3))
    second = train(config(EACH), stop_after(1), restart=True)
    watch = tools.Watch()
    assert train(config(EACH), watch)[2] == second[2] and watch.events[0].step == 1
    delete_run(Path(second[2]))
    watch = tools.Watch()
    assert train(config(EACH), watch)[2] == first[2] and watch.events[0].step == 3


def test_any_attempt_can_be_chosen_or_begun(train):  # noqa: F811
    folders = [train(config(EACH), stop_after(number), attempt=number)[2] for number in (1, 2, 3)]
    assert [Path(folder).name.removeprefix(Path(folders[0]).name) for folder in folders] == ["", "-2", "-3"]
    for number in (2, 1, 3):
        watch = stop_after(4)
        assert train(config(EACH), watch, attempt=number)[2] == folders[number - 1]
        assert watch.events[0].step == number
    assert train(config(EACH))[2] == folders[2]


def test_restart_of_a_run_that_was_never_trained_goes_on_too(train):  # noqa: F811
    first = train(config(EACH), stop_after(2), restart=True)
    watch = tools.Watch()
    assert train(config(EACH), watch, restart=True)[2] == first[2] and watch.events[0].step == 2


# -- length


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_a_falling_schedule_of_another_length_is_another_run(train, schedule):  # noqa: F811
    optimizer = OptimizerConfig(schedule=schedule, warmup_steps=0)
    longer = train(config(EACH, optimizer, max_steps=8, epochs=99))
    watch = tools.Watch()
    shorter = train(config(EACH, optimizer, max_steps=4, epochs=99), watch)
    assert watch.events[0].step == 0 and shorter[2] != longer[2]
    alone = train(config(EACH, optimizer, max_steps=4, epochs=99), place="alone")
    assert same(shorter[0], alone[0]) and shorter[1] == alone[1]
    assert same(train(config(EACH, optimizer, max_steps=8, epochs=99), place="here")[0], longer[0])


def test_fewer_steps_are_trained_beside_the_longer_run_and_both_histories_are_whole(train):  # noqa: F811
    keep = dataclasses.replace(EACH, every_steps=4, evaluate_steps=5)
    longer = train(config(keep, max_steps=10, epochs=99))
    before = content(longer[2])
    watch = tools.Watch()
    shorter = train(config(keep, max_steps=6, epochs=99), watch)
    assert watch.events[0].step in (4, 5) and Path(shorter[2]).name == Path(longer[2]).name + "-6steps"
    assert shorter[1] == longer[1][:6] and content(longer[2]) == before
    alone = train(config(keep, max_steps=6, epochs=99), place="alone")
    assert same(shorter[0], alone[0])

    def told(folder: str, *events: str) -> list:
        lines = map(json.loads, Path(folder, "log.jsonl").read_text(encoding="utf-8").splitlines())
        return [(line["event"], line["step"], line["loss"]) for line in lines if line["event"] in events]

    assert told(shorter[2], "StepDone", "Evaluated") == told(alone[2], "StepDone", "Evaluated")
    best = json.loads(Path(shorter[2], "best.json").read_text())
    assert best == json.loads(Path(alone[2], "best.json").read_text())
    for steps, folder in ((6, shorter[2]), (10, longer[2])):
        watch = tools.Watch()
        assert train(config(keep, max_steps=steps, epochs=99), watch)[2] == folder and not watch.events
    watch = tools.Watch()
    train(config(keep, max_steps=12, epochs=99), watch)
    assert watch.events[0].step == 10, "the one that has learned most goes on"


def test_a_cut_that_was_interrupted_goes_on(train):  # noqa: F811
    keep = dataclasses.replace(EACH, every_steps=4)
    train(config(keep, max_steps=10, epochs=99))
    stopped = train(config(keep, max_steps=7, epochs=99), stop_after(5))
    watch = tools.Watch()
    assert train(config(keep, max_steps=7, epochs=99), watch)[2] == stopped[2] and watch.events[0].step == 5


# -- identity


def test_a_setting_that_an_update_adds_leaves_the_key_as_it_was():
    settings = config()
    fields = [("preserve", float, dataclasses.field(default=0.0))]
    later = dataclasses.make_dataclass("TrainConfig", fields, bases=(TrainConfig,), frozen=True, kw_only=True)
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    assert later(**values).identity() == settings.identity()
    assert later(**values, preserve=0.5).identity() == {**settings.identity(), "preserve": 0.5}
    nested = dataclasses.make_dataclass("LoraConfig", [("dora", bool, dataclasses.field(default=False))],
                                        bases=(LoraConfig,), frozen=True, kw_only=True)
    assert later(**{**values, "lora": nested(rank=4)}).identity() == settings.identity()
    assert later(**{**values, "lora": nested(rank=4, dora=True)}).identity()["lora"]["dora"] is True


def test_the_defaults_that_are_part_of_no_key_are_still_neutral():
    """Settings added since keys were defined: to change such a default would give other runs the same key."""
    from wantune.trainer.settings.training import _FIRST, _PASSING

    def names(record, prefix=""):
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            yield from names(value, f"{prefix}{field.name}.") if dataclasses.is_dataclass(value) else [
                (f"{prefix}{field.name}", value)]

    added = {name: value for name, value in names(TrainConfig()) if name not in _FIRST
             and name.split(".")[0] not in _PASSING}
    assert added == {
        "objective.window": "whole", "objective.boundary": 0.0, "objective.stills_min_t": 0.0,
        "objective.stills_max_t": 1.0, "objective.clips_min_t": 0.0, "objective.clips_max_t": 1.0,
        "objective.sigmas": (), "objective.preserve": 0.0, "objective.preserve_every": 4}


def test_of_the_memory_settings_only_products_make_another_run():
    plain = TrainConfig().identity()
    kept = MemoryConfig(whole_blocks=3, segments="block", keep_attention="on", inputs_in_ram="on", keep_free=2.0,
                        compile="on")
    assert TrainConfig(memory=kept).identity() == plain
    others = [TrainConfig(memory=MemoryConfig(products=products)).identity() for products in ("fp8", "int8")]
    assert plain not in others and others[0] != others[1]


def test_renamed_pictures_are_the_same_run_and_give_the_same_bits(train, tmp_path, comfy):  # noqa: F811
    from wantune.nodes import train as node
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec
    from wantune.trainer.encoded.store import Store

    folder = tools.write_pictures(tmp_path / "pictures")
    store = Store(tmp_path / "cache")
    encoders = WanCodec(tools.load_vae()), {"text": CaptionEncoder(tools.load_clip())}

    def cache():
        data = DatasetConfig(folder=str(folder), resolution=64, trigger_word="zwx", validation_items=1)
        return tools.drained(fill(scan.scan(data), store, *encoders))[1]

    def run(watch):
        return node.train(tools.load_dit(tools.WORLD / "dit.safetensors"), cache(), "run", config(EACH), watch)

    watch = stop_after(2)
    first = train(config(EACH), place="output") and run(watch)
    names = sorted({path.stem for path in folder.iterdir()})
    for number, name in enumerate(names):  # in the opposite order
        for path in list(folder.glob(f"{name}.*")):
            path.rename(folder / f"renamed {len(names) - number:03d}{path.suffix}")
    watch = tools.Watch()
    renamed = run(watch)
    assert renamed[2] == first[2] and watch.events[0].step == 2
    whole = tools.Watch()
    delete_run(Path(first[2]))
    assert same(run(whole)[0], renamed[0]) and whole.events[0].step == 0


# -- one process at a time


def test_a_run_that_another_trains_is_refused_by_name_and_may_be_read(train):  # noqa: F811
    stopped = train(config(EACH), stop_after(2))
    folder = Path(stopped[2])
    before = content(stopped[2])
    lock = RunLock(folder)
    assert lock.acquire() is None and holder(folder).since == pytest.approx(time.time(), abs=60)
    with pytest.raises(UserError, match="is being trained by this ComfyUI since .*; wait for its end"):
        train(config(EACH))
    with pytest.raises(UserError, match="is being trained by .*; stop it first"):
        delete_run(folder)
    watch = tools.Watch()
    assert train(config(EACH, max_steps=2), watch)[1] == stopped[1] and not watch.events, "what it has done is read"
    assert content(stopped[2]) == before
    lock.release()
    assert holder(folder) is None
    train(config(EACH))
    assert holder(folder) is None


def test_what_a_killed_process_says_of_itself_is_no_lock(train):  # noqa: F811
    folder = Path(train(config(EACH), stop_after(2))[2])
    (folder / "training.json").write_text(json.dumps({"host": "other", "process": 7, "since": 0.0}))
    assert holder(folder) is None
    watch = tools.Watch()
    train(config(EACH), watch)
    assert watch.events[0].step == 2


def test_a_run_is_unlocked_however_it_ends(train, monkeypatch):  # noqa: F811
    from wantune.trainer.training import loop

    def fail(_event):
        raise KeyboardInterrupt

    folder = Path(train(config(EACH), stop_after(1))[2])
    with pytest.raises(KeyboardInterrupt):
        train(config(EACH), tools.Watch(fail))
    assert holder(folder) is None and not (folder / "training.json").exists()
    monkeypatch.setattr(loop.Trainer, "run", None)
    with pytest.raises(TypeError):
        train(config(EACH))
    assert holder(folder) is None


def test_without_file_locks_it_is_trained_and_said(train, monkeypatch):  # noqa: F811
    from wantune.trainer.runs import lock

    def none(self, *_args, **_kwargs):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(lock.FileLock, "acquire", none)
    watch = tools.Watch()
    train(config(), watch)
    assert watch.events and "has no file locks" in watch.notes[0]


def test_a_folder_that_is_deleted_in_mid_run_is_what_is_said(train):  # noqa: F811
    import shutil

    def delete(event) -> None:
        if type(event).__name__ == "StepDone" and event.step == 2:
            shutil.rmtree(output)

    output = Path(train(config(EACH), stop_after(1))[2])
    with pytest.raises(UserError, match="was deleted or renamed meanwhile"):
        train(config(EACH), tools.Watch(delete))


def test_a_run_without_one_finite_step_is_an_error_however_short(train, monkeypatch):  # noqa: F811
    from wantune.trainer.training import objective

    loss = objective.denoising_loss
    monkeypatch.setattr(objective, "denoising_loss", lambda *args: loss(*args) * float("nan"))
    for _ in range(2):  # queued again it is no success either
        with pytest.raises(UserError, match="not finite in any of the 3 steps, so nothing was learned"):
            train(config(max_steps=3))
