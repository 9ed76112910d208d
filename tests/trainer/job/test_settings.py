"""A settings file: what it may say, what is made of it, and what is answered where it says something else."""

from dataclasses import replace

import pytest

from wantune.trainer.base.errors import UserError
from wantune.trainer.job import configs, settings
from wantune.trainer.settings.adapter import LoraConfig
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.memory import MemoryConfig
from wantune.trainer.settings.training import ObjectiveConfig, OptimizerConfig, TrainConfig, ValidationConfig

FILE = """
[[load_dataset]]
folder = "Omas F\u00fc\u00dfe"
trigger_word = "zwx"

[[load_dataset]]
folder = "other"
frame_buckets = [1, 17]
    [load_dataset.dataset_settings]
    shuffle_tags = false

[dataset_settings]
shuffle_tags = true
preserve_prompts = ["a dog", "a cat"]

[train_wan_lora]
preset = "quick try"
rank = 8
attempt = 2

[optimizer_settings]
weight_decay = 1

[preview_settings]
prompts = "zwx runs"
steps = 4

[timestep_and_loss_settings]
timesteps = "as sampled"

[models]
model = "wan.safetensors"
dtype = "float32"
"""


def of(text, folder, name="settings.toml"):
    (folder / name).write_text(text, encoding="utf-8-sig")  # as Notepad saves it
    return settings.of(settings.read(folder / name), folder)


def test_a_file_becomes_records(tmp_path):
    found = of(FILE, tmp_path)
    first, second = found.datasets
    assert first == DatasetConfig(
        folder=str((tmp_path / "Omas F\u00fc\u00dfe").resolve()), trigger_word="zwx", frame_buckets=(1, 33),
        shuffle_tags=True, preserve_prompts=("a dog", "a cat"))
    assert second.frame_buckets == (1, 17) and not second.shuffle_tags and second.preserve_prompts
    train = found.train
    assert (train.epochs, train.max_steps, train.lora.rank, train.lora.alpha) == (100, 300, 8, 16), "of the preset"
    assert train.optimizer.weight_decay == 1.0 and len(train.objective.sigmas) == 5
    assert found.previews.prompts == ("zwx runs",) and found.attempt == 2
    assert found.models == settings.Models(model="wan.safetensors", dtype="float32")


def test_json_says_the_same(tmp_path):
    found = of('{"train_wan_lora": {"epochs": 3}, "load_dataset": {"folder": "a"}}', tmp_path, "settings.json")
    assert found.train.epochs == 3 and found.datasets[0].folder == str((tmp_path / "a").resolve())
    assert found.train.lora == LoraConfig() and found.previews is None


def test_nothing_but_defaults_is_a_fresh_node():
    assert settings.of({}, None) == settings.Settings(datasets=(), train=TrainConfig())


def test_records_become_a_file_that_gives_them_back(tmp_path):
    datasets = tuple(DatasetConfig(
        folder=str((tmp_path / name).resolve()), family="Wan2.2 5B", frame_buckets=(1, 17), more_resolutions=(256, 768),
        preserve_prompts=("a \\ \"dog\"\x7f", "a cat"), trigger_word="\u6bd4\t", condition="first frame", num_repeats=3)
        for name in ("one and 1", "\u4e8c"))
    train = TrainConfig(
        lora=LoraConfig(rank=3, kind="loha", dropout=0.5, last_block=4), epochs=7, deterministic=True, seed=2**64 - 1,
        optimizer=OptimizerConfig(eps=1e-8, beta2=0.999, name="lion"), validation=ValidationConfig(early_stop=2),
        objective=ObjectiveConfig(boundary=0.3, window="high expert", preserve=0.1),
        memory=MemoryConfig(segments="block"))
    for each in (train, replace(train, objective=ObjectiveConfig(timesteps="as sampled", sigmas=(1.0, 0.123457, 0.0)))):
        sections = {"load_dataset": [configs.of_dataset(config, config.folder) for config in datasets],
                    **configs.of_train(each)}
        found = of(settings.to_toml(sections), tmp_path)
        assert found.datasets == datasets and found.train == each
        assert found.train.identity() == each.identity()


@pytest.mark.parametrize(("text", "sentence"), [
    ("[train_wan_lora]\nrnak = 3", "train_wan_lora has no key 'rnak'; did you mean rank."),
    ("[optimiser_settings]", "no section 'optimiser_settings'; did you mean optimizer_settings."),
    ("[zzz]", "there are load_dataset, dataset_settings, "),
    ("[train_wan_lora]\nrank = '3'", "rank of train_wan_lora is '3'; give a whole number, for example 32."),
    ("[train_wan_lora]\nrank = 3.5", "give a whole number"),
    ("[train_wan_lora]\nrestart = 1", "give true or false, for example false"),
    ("[memory_settings]\ncompile = 'maybe'", "choose one of auto; on; off."),
    ("[train_wan_lora]\nepochs = 0", "epochs is 0; choose 1 or more."),
    ("[train_wan_lora]\nrun_name = 'a/b'", "a/b"),
    ("train_wan_lora = 3", "write it as a section, [train_wan_lora]"),
    ("[job]\nversion = 1", "give the folder in which it lies"),
    ("[load_dataset]\nresolution = 64", "folder of load_dataset is empty"),
    ("[load_dataset]\nfolder = 'a'\n[load_dataset.dataset_settings]\nmask = 'none'", "did you mean masks"),
    ("[preview_settings]\nprompts = 'a'\nframes = 18", "the nearest is 17"),
    ("[timestep_and_loss_settings]\nsigmas = 'high'\ntimesteps = 'as sampled'", "give numbers that fall"),
    ("[timestep_and_loss_settings]\ntimesteps = 'as sampled'", "nothing tells how your graph samples"),
    ("[preview_settings]\nscheduler = 'beta'\n[timestep_and_loss_settings]\ntimesteps = 'as sampled'", "as sigmas"),
    ("epochs =", "cannot be read"),
])
def test_what_is_not_taken_is_answered_in_a_sentence(text, sentence, tmp_path):
    with pytest.raises(UserError) as caught:
        of(text, tmp_path)
    assert sentence in str(caught.value)


def test_flags_are_read_as_their_key():
    widget = settings.SECTIONS["train_wan_lora"].widget
    assert widget("rank").read("16", "--rank") == 16 and widget("learning_rate").read("1e-5", "--x") == 1e-5
    assert widget("restart").read("on", "--restart") is True and widget("run_name").read("1", "--x") == "1"
    with pytest.raises(UserError, match="--rank is 'much'; give a whole number, for example 32."):
        widget("rank").read("much", "--rank")
