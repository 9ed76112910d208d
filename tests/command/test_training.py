"""From settings to a LoRA: cache, train, resume, eval, sample, export; and Ctrl-C in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from wantune.tests.command.conftest import SETTINGS, place_for_runs, the_run
from wantune.tests.support import tools
from wantune.tests.support.videos import read_back
from wantune.trainer.lora import file as lora_file
from wantune.trainer.runs import history
from wantune.trainer.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("comfy")

ROOT = Path(__file__).resolve().parents[2]


def test_two_commands_train_a_run_that_the_sidebar_shows(trained):
    found = history.summary(the_run(trained))
    assert (found.name, found.step, found.total_steps, found.state, found.faults) == ("digits", 4, 4, "done", ())
    assert found.base.startswith("a Wan model of width") and found.best["step"] in (2, 4) and found.thumbnail
    assert {each["step"] for each in found.checkpoints} == {2, 4}
    assert len(list((the_run(trained) / "samples").glob("*.mp4"))) == 2, "the base and the end"


def test_training_again_trains_nothing_and_needs_no_encoder(in_trained, call, monkeypatch):
    from wantune.command import engine

    def refuse(*_arguments, **_named):
        raise AssertionError("an encoder is loaded, though all is in the cache")

    monkeypatch.setattr(engine, "load_codec", refuse)
    monkeypatch.setattr(engine, "load_text_encoder", refuse)
    again = call("train", "settings.toml", "--prompts=")
    assert again.code == 0 and again.out.strip() == str(the_run(in_trained)) and "trained before: 4 steps" in again.err


def test_resume_goes_on_from_the_folder_alone(trained, tmp_path, call, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run = the_run(tmp_path)
    found = call("resume", run.name[:8], "--max-steps", 6)
    assert found.code == 0 and "going on after step 4: 6 steps" in found.err
    assert RunFolder(run).steps()[-1] == 6
    other = call("resume", run.name, "--rank", 8)
    assert other.code == 1 and "it is another run than" in other.err
    assert the_run(tmp_path) == run, "no folder of the other run is left"


def test_a_run_of_another_folder_of_runs_is_resumed_by_its_path(trained, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = call("resume", the_run(trained))
    assert found.code == 0 and "trained before: 4 steps" in found.err


def test_eval_measures_what_the_run_measured(in_trained, call):
    found = call("eval", the_run(in_trained).name, "--json")
    assert found.code == 0
    logged = {line["step"]: line for line in RunFolder(the_run(in_trained)).logged() if line["event"] == "Evaluated"}
    for each in json.loads(found.out):
        line = logged[int(each["name"].split()[1])]
        assert each["loss"] == pytest.approx(line["loss"]) and each["base_loss"] == pytest.approx(line["base_loss"])
        assert each["drift"] == pytest.approx(line["drift"])
        assert each["learned"] == pytest.approx(line["learned"])


def test_a_lora_file_is_exported_measured_and_sampled(in_trained, call, tmp_path):
    run = the_run(in_trained)
    exported = call("export", "lora", run.name, "--checkpoint", "newest", "-o", tmp_path / "my.safetensors")
    assert exported.code == 0
    lora, state = lora_file.load(tmp_path / "my.safetensors"), RunFolder(run).load(4).adapter
    assert lora.metadata["wantune.step"] == "4"
    assert all(torch.equal(lora[f"diffusion_model.{key}"], value) for key, value in state.items())
    assert call("export", "lora", run.name, "-o", tmp_path / "my.safetensors").code == 1, "nothing is overwritten"

    table = call("eval", "settings.toml", "--lora", tmp_path / "my.safetensors")
    assert table.code == 0 and "my.safetensors" in table.out and "without a LoRA" in table.out

    video, same = tmp_path / "compared.mp4", tmp_path / "same.mp4"
    sample = "sample", "settings.toml", "--lora", tmp_path / "my.safetensors"
    assert call(*sample, "-o", video, "--strength", 20).code == 0
    assert call(*sample, "-o", same, "--strength", 0).code == 0
    differences = []
    for path in (video, same):
        frame_HW3 = read_back(path)[0][0].astype(int)
        half = frame_HW3.shape[1] // 2
        differences.append(abs(frame_HW3[40:, :half] - frame_HW3[40:, half:]).mean())
    assert differences[0] > 5 > differences[1], "the halves differ by the LoRA alone"


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows gets no SIGINT from outside")
def test_ctrl_c_stops_after_the_step_saves_and_says_how_to_go_on(tmp_path, call, monkeypatch, trained):
    place_for_runs(tmp_path)
    shutil.copytree(trained / "output" / "wantune" / "cache", tmp_path / "output" / "wantune" / "cache")
    process = subprocess.Popen(
        [sys.executable, ROOT, "train", "settings.toml", "--max-steps", "100000", "--prompts="], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # ignored in the background
    try:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("output/wantune/digits-*/step_*")) and time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    run = the_run(tmp_path)
    step = RunFolder(run).steps()[-1]
    assert "Stopping after this step" in err and out.strip() == str(run)
    assert f"stopped and saved after step {step}; go on with: wantune resume {run.name}" in err
    assert "Traceback" not in err
    monkeypatch.chdir(tmp_path)
    on = call("resume", run.name, "--max-steps", step + 1)
    assert on.code == 0 and f"going on after step {step}: {step + 1} steps" in on.err


def test_a_job_trains_without_vae_and_text_encoder_and_is_resumed(trained, tmp_path, call, monkeypatch):
    monkeypatch.chdir(trained)
    made = call("export", "job", "settings.toml", "-o", tmp_path / "job", "--include-cache", "--prompts=")
    assert made.code == 0 and made.out.strip() == str(tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    shutil.copy(tools.WORLD / "dit.safetensors", "models")
    found = call("train", ".", "--max-steps", 2)
    assert found.code == 0, found.err
    run = the_run(Path("."))
    assert run.name == the_run(trained).name, "the same run"
    mine, theirs = (RunFolder(each).load(2).adapter for each in (run, the_run(trained)))
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert call("resume", run.name, "--max-steps", 3).code == 0
    damaged = bytearray(Path("models/dit.safetensors").read_bytes())
    damaged[-1] ^= 1
    Path("models/dit.safetensors").write_bytes(damaged)
    refused = call("train", ".")
    assert refused.code == 1 and "is not the file dit.safetensors of the job" in refused.err


def test_json_is_read_as_toml_is(trained, tmp_path, call, monkeypatch):
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    sections = tomllib.loads(SETTINGS.replace("{world}", tools.WORLD.as_posix()))
    sections["load_dataset"]["folder"] = str(trained / "pictures")
    (tmp_path / "settings.json").write_text(json.dumps(sections), encoding="utf-8")
    monkeypatch.chdir(trained)
    found = call("train", tmp_path / "settings.json")
    assert found.code == 0 and "trained before: 4 steps" in found.err, found.err
