"""Exit codes, and one sentence for each mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wantune.command import main as command_line
from wantune.tests.command.conftest import place_for_runs
from wantune.trainer.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments, said", [
    ([], "the following arguments are required: COMMAND"),
    (["trian"], "invalid choice: 'trian'"),
    (["train", "--rnak", "8"], "unknown argument --rnak; did you mean --rank?"),
    (["train", "--rank", "many"], "rank is 'many'; give a whole number"),
    (["train", "--extraction", "end"], "extraction is 'end'; choose one of start; middle"),
    (["lora", "convert", "a.safetensors", "-o", "b"], "--to"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_wrong_command_line_is_exit_code_2(call, arguments, said):
    found = call(*arguments)
    assert found.code == 2 and said in found.err and "--help" in found.err
    assert len(found.err.splitlines()) == 2 and found.out == ""


@pytest.mark.parametrize("arguments, said", [
    (["train", "no.toml"], "The settings no.toml cannot be read"),
    (["train", "broken.toml"], "mend that line"),
    (["train", "section.toml"], "There is no section 'train_wan'; did you mean train_wan_lora"),
    (["train", "key.toml"], "train_wan_lora has no key 'rnak'; did you mean rank"),
    (["train", "settings.toml", "--rank", "4096"], "rank is 4096; choose 1 to 1024"),
    (["train", "settings.toml", "--model", ""], "model of models is empty"),
    (["train", "settings.toml", "--products", "fp8"], "products is fp8, which only ComfyUI's models have"),
    (["train", "settings.toml", "--from-musubi", "key.toml"], "Several sources of settings are given"),
    (["cache", "settings.toml", "--vae", "nowhere.safetensors"], "nowhere.safetensors (vae of models) is neither in"),
    (["scan"], "No dataset is given; name its folder with --folder"),
    (["scan", "--folder", "nowhere"], "nowhere"),
    (["train", "job"], "is no job, it has no job.toml"),
    (["resume", "my_run"], "There is no run my_run in"),
    (["resume", "settings.toml"], "is a file and no run"),
    (["eval", "settings.toml"], "Nothing is given to measure"),
    (["sample", "settings.toml", "--prompts="], "No prompt is given"),
    (["sample", "settings.toml", "-o", "video.avi"], "does not end in .mp4"),
    (["sample", "settings.toml", "--sampler-name", "dpmpp_2m"], "sampler"),
    (["lora", "inspect", "no.safetensors"], "There is no file no.safetensors"),
    (["export", "lora", "my_run"], "There is no run my_run in"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_cannot_be_done_is_one_sentence_and_exit_code_1(call, here, arguments, said):
    place_for_runs(here)
    (here / "job").mkdir()
    (here / "broken.toml").write_text("[train_wan_lora\n", encoding="utf-8")
    (here / "section.toml").write_text("[train_wan]\nrank = 4\n", encoding="utf-8")
    (here / "key.toml").write_text("[train_wan_lora]\nrnak = 4\n", encoding="utf-8")
    found = call(*arguments)
    assert found.code == 1 and found.out == ""
    sentence = found.err.splitlines()[-1]
    assert sentence.startswith("wantune: ") and said in sentence and sentence.endswith((".", ")")), found.err
    assert not (here / "output").exists() or not list((here / "output" / "wantune").glob("*/config.json"))


def test_sentences_of_comfyui_are_in_words_of_the_command_line(call, here, monkeypatch):
    def refuse(_arguments):
        raise UserError("The disk is full; free some space on it, then queue again.")

    monkeypatch.setattr(command_line, "_run", refuse)
    assert call("scan").err == "wantune: The disk is full; free some space on it, then run it again.\n"


def test_ctrl_c_outside_of_training_is_exit_code_130(call, monkeypatch):
    def interrupted(_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_run", interrupted)
    assert call("scan").code == 130


def test_scan_reports_as_text_and_as_json(call, here):
    place_for_runs(here)
    text, told = call("scan", "settings.toml"), call("scan", "settings.toml", "--json", "--resolution", "96")
    assert text.code == told.code == 0 and "4 of 4 files are used" in text.out
    assert {file["samples"][0]["width"] % 16 for file in json.loads(told.out)["files"]} == {0}
    assert json.loads(told.out)["totals"]["files_held_out"] == 1


def test_printed_settings_are_read_again(call, here):
    place_for_runs(here)
    first = call("train", "settings.toml", "--rank", 8, "--trigger_word=abc", "--print-settings")
    assert first.code == 0 and 'trigger_word = "abc"' in first.out and "rank = 8" in first.out
    (here / "again.toml").write_text(first.out, encoding="utf-8")
    assert call("train", "again.toml", "--print-settings").out == first.out


@pytest.mark.parametrize("name", ["wantune", "a checkout"])
def test_a_checkout_in_a_folder_of_any_name_is_started_by_its_path(tmp_path, name):
    checkout = tmp_path / name
    checkout.mkdir()
    for each in ("__init__.py", "__main__.py", "command", "trainer"):
        (checkout / each).symlink_to(ROOT / each)
    for command in ([checkout], ["-m", name]) if name.isidentifier() else ([checkout],):
        found = subprocess.run([sys.executable, *command, "train", "--help"], capture_output=True, text=True,
                               cwd=tmp_path, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        assert found.returncode == 0 and "usage: wantune train [SETTINGS]" in found.stdout, found.stderr


def test_help_does_not_wait_for_torch(tmp_path):
    code = ("import sys; sys.argv[1:] = sys.argv[2:]\nimport runpy\n"
            "try: runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
            "except SystemExit: print('torch' in sys.modules, 'numpy' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", code, "-", ROOT, "--help"], capture_output=True, text=True,
                           cwd=tmp_path)
    assert found.stdout.splitlines()[-1] == "False False", found.stderr
