"""Load Run LoRA: a checkpoint of a run is what Train gave, whatever path or name leads to it, and nothing else."""

import json
import os
import shutil

import pytest
import torch

from wantune.tests.support import tools, trained
from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import file as lora_file
from wantune.trainer.runs import checkpoints as run_lora

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(scope="module")
def world(comfy, tmp_path_factory):
    """A run with held-out files and one without."""
    made = trained.world(tmp_path_factory.mktemp("world"))
    patch = trained.output_folder(made.output)
    made.train("best", evaluate_steps=2)
    made.train("plain", seed=1)
    yield made
    patch.undo()


def load(run, checkpoint="newest"):
    from wantune.nodes.load_run import LoadRunLoRA

    with torch.inference_mode():
        return LoadRunLoRA.execute(str(run), checkpoint)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_newest_checkpoint_is_what_train_gave_bit_for_bit_with_its_metadata(world):
    for name in ("best", "plain"):
        expected, folder = world.runs[name]
        lora, run = load(folder).result
        assert same(lora, expected) and lora.metadata == expected.metadata and run == str(folder)
    assert lora.metadata["wantune.step"] == lora.metadata["ss_steps"] == "6"
    assert lora.metadata["wantune.trigger_word"] == "zwx"


def test_a_run_is_found_by_its_name_its_path_and_with_quotes(world):
    _, folder = world.runs["plain"]
    for text in (folder.name, str(folder), f' "{folder}" ', f"{folder}{os.sep}", os.path.join(folder.parent, ".",
                                                                                             folder.name)):
        assert load(text, "2").result[1] == str(folder)


def test_each_step_is_another_lora_and_works_where_train_s_does(world, tmp_path, monkeypatch):
    import folder_paths

    from wantune.nodes.backend.applied import applied_loras, apply
    from wantune.nodes.lora import SaveLoRA

    _, folder = world.runs["best"]
    found = [load(folder, str(step)).result[0] for step in (2, 4, 6)]
    assert not same(found[0], found[1]) and not same(found[1], found[2])
    videos = [tools.sample(apply(world.model, lora, 1.0)[0]) for lora in found]
    assert not torch.equal(videos[0], videos[2])
    assert applied_loras(apply(world.model, found[1], 0.5)[0]) == ("best, step 4, strength 0.5",)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda name: [str(tmp_path)])
    name, _ = SaveLoRA.execute(found[1], "of a run").result
    assert same(lora_file.load(tmp_path / name), found[1])


def test_best_is_the_best_on_the_held_out_files_and_else_the_newest_which_is_said(world):
    _, folder = world.runs["best"]
    kept = json.loads((folder / "best.json").read_text())
    best = kept["step"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    learned = {line["step"]: line["learned"] for line in log if line["event"] == "Evaluated"}
    assert learned[0] == 0.0 and kept["learned"] == learned[best] != 0 and "drift" not in kept
    output = load(folder, "best")
    assert output.result[0].metadata["wantune.step"] == str(best)
    assert output.ui.as_dict()["text"] == (f"{folder.name}, step {best} (best)",)
    _, folder = world.runs["plain"]
    output = load(folder, "Best")
    assert output.result[0].metadata["wantune.step"] == "6"
    assert "step 6: the newest, as no files were held out" in output.ui.as_dict()["text"][0]


@pytest.mark.parametrize(("run", "sentence"), [
    ("", "run is empty; give "), ("nowhere", "There is no run 'nowhere' in"), ("..", "There is no run '..'"),
    ("../wantune", "does not lie in"), ("/etc", "does not lie in"), ("a\0b", "does not lie in"),
    ("cache", "There is no run 'cache'"), ("C:\\runs\\x", "There is no run"), (".", "There is no run '.'"),
])
def test_what_is_no_run_of_ours_is_refused_with_those_there_are(world, run, sentence):
    from wantune.nodes.load_run import LoadRunLoRA

    (world.output / "wantune" / "cache").mkdir(exist_ok=True)
    with pytest.raises(UserError) as caught:
        load(run)
    assert sentence in str(caught.value) and world.runs["best"][1].name in str(caught.value)
    assert LoadRunLoRA.validate_inputs(run, "best") == str(caught.value)


def test_a_link_out_of_the_folder_and_a_run_elsewhere_are_refused(world, tmp_path):
    _, folder = world.runs["plain"]
    elsewhere = shutil.copytree(folder, tmp_path / folder.name)
    with pytest.raises(UserError, match="does not lie in"):
        load(elsewhere.parent / "." / "x" / ".." / elsewhere.name)
    link = folder.parent / "link-00000000"
    try:
        link.symlink_to(elsewhere)
    except OSError:
        pytest.skip("links need a right here")
    try:
        with pytest.raises(UserError, match="There is no run 'link"):
            load(link.name)
    finally:
        link.unlink()


@pytest.mark.parametrize(("checkpoint", "sentence"), [
    ("3", "the checkpoints of the steps 2, 4, 6"), ("", "give best, newest or a step"), ("all", "checkpoint has 'all'"),
    ("2, 4", "give best, newest or a step"), ("epoch 2", "checkpoint has 'epoch 2'"), ("-2", "checkpoint has '-2'"),
])
def test_a_checkpoint_that_is_not_there_is_answered_before_anything_runs(world, checkpoint, sentence):
    from wantune.nodes.load_run import LoadRunLoRA

    answer = LoadRunLoRA.validate_inputs(world.runs["plain"][1].name, checkpoint)
    assert sentence in answer
    with pytest.raises(UserError, match="."):
        load(world.runs["plain"][1], checkpoint)
    assert LoadRunLoRA.validate_inputs(None, "best") is LoadRunLoRA.validate_inputs(None, "step_000400") is True


def test_the_fingerprint_follows_the_checkpoint_that_is_meant(world):
    from wantune.nodes.load_run import LoadRunLoRA

    def fingerprint(checkpoint):
        return LoadRunLoRA.fingerprint_inputs(folder.name, checkpoint)

    _, original = world.runs["best"]
    folder = shutil.copytree(original, original.with_name("copy-11111111"))
    try:
        newest, best, second = fingerprint("newest"), fingerprint("best"), fingerprint("2")
        assert newest == fingerprint("newest") and newest != second
        shutil.rmtree(folder / "step_000006")
        assert fingerprint("newest") not in (newest, second) and fingerprint("2") == second
        (folder / "best.json").write_text(json.dumps({"step": 2 if "(4,)" in best else 4}))
        assert fingerprint("best") != best
        os.utime(folder / "step_000002" / "state.json", ns=(1, 1))
        assert fingerprint("2") != second
    finally:
        shutil.rmtree(folder)
    assert fingerprint("2").startswith("There is no run"), "no exception, which ComfyUI would print"


def test_a_damaged_checkpoint_is_told_and_a_run_without_metadata_still_loads(world):
    _, original = world.runs["best"]
    folder = shutil.copytree(original, original.with_name("copy-22222222"))
    try:
        (folder / "lora.json").unlink()
        expected, _ = world.runs["best"]
        lora = load(folder).result[0]
        assert same(lora, expected) and lora.metadata["ss_output_name"] == "best"
        assert json.loads(lora.metadata["wantune.config"]) == json.loads(expected.metadata["wantune.config"])
        (folder / "step_000006" / "state.safetensors").unlink()
        assert same(load(folder).result[0], expected), "what training goes on from is not needed"
        with (folder / "step_000006" / "adapter.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")
        with pytest.raises(UserError, match="step_000006 of copy-22222222 cannot be used"):
            load(folder)
        (folder / "config.json").write_text(json.dumps({"key": "x"}))
        with pytest.raises(UserError, match="none of a run"):
            load(folder, "2")
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(("text", "expected"), [
    ("all", (100, 200, 300, 400)), ("last 2", (300, 400)), ("newest 3", (200, 300, 400)), ("last 9", (100, 200, 300,
     400)), ("best", (200,)), ("newest", (400,)), ("300, 100, best, 100", (100, 200, 300)), ("step 100", (100,)),
    ("Step_000100", (100,)), ("last2,", (300, 400)),
])
def test_lists_of_checkpoints(tmp_path, text, expected):
    assert run_lora.Checkpoints(tmp_path, (100, 200, 300, 400), 200).some(text) == expected


@pytest.mark.parametrize(("text", "sentence"), [
    ("", "give all, last 4"), ("last 0", "checkpoints has 'last 0'"), ("first", "checkpoints has 'first'"),
    ("100, 250", "has 250, but .* 100, 200 .best., 300"), ("1.5", "checkpoints has '1.5'"),
])
def test_lists_that_name_nothing(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        run_lora.Checkpoints(tmp_path, (100, 200, 300), 200).some(text)


def test_a_long_list_of_checkpoints_is_shortened(tmp_path):
    assert str(run_lora.Checkpoints(tmp_path, tuple(range(1, 101)), None)).endswith("20, ... 100")


def test_a_run_whose_lora_is_in_use_can_be_deleted_in_the_page(world):
    from wantune.nodes.backend.applied import apply
    from wantune.nodes.page import runs
    from wantune.nodes.page.asking import Asked

    expected, original = world.runs["plain"]
    folder = shutil.copytree(original, original.with_name("copy-33333333"))
    lora = load(folder).result[0]
    applied, _ = apply(world.model, lora, 1.0)
    assert runs._delete(Asked("default", {}, {"run": folder.name})) == {"deleted": folder.name}
    assert not folder.exists() and same(lora, expected)
    assert torch.isfinite(tools.sample(applied)).all()
