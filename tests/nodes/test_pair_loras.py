"""Both LoRAs of a pair: saved side by side, each on its own model, and what is said where they change places."""

import os

import pytest
import torch
from safetensors import safe_open

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import file as lora_file

pytestmark = pytest.mark.usefixtures("comfy")

HIDDEN_PROMPT = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan2.2_t2v_high_noise_14B.safetensors"}},
    "2": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan2.2_t2v_low_noise_14B.safetensors"}},
    "3": {"class_type": "WanTune_ApplyLoRA", "inputs": {"model": ["1", 0], "model_low": ["2", 0]}},
    "4": {"class_type": "WanTune_ApplyLoRA", "inputs": {"model": ["3", 1]}},
    "5": {"class_type": "WanTune_ApplyLoRA", "inputs": {"model": ["3", 0]}},
}


@pytest.fixture(scope="module")
def models(comfy, tmp_path_factory):
    return [tools.load_dit(tools.random_dit(tmp_path_factory.mktemp("m"), seed=seed)) for seed in (1, 2)]


@pytest.fixture
def loras(tmp_path, monkeypatch):
    return tools.loras_folder(tmp_path / "loras", monkeypatch)


def lora_of(model, expert: str = "", seed: int = 0, file: str = "") -> lora_file.LoraStateDict:
    from wantune.nodes.backend.denoiser import linear_sizes

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (rows, columns) in linear_sizes(model).items():
        if name.startswith("blocks."):
            state[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.1
            state[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    header = {"wantune.expert": expert} if expert else {}
    return lora_file.LoraStateDict(lora_file.from_adapter(state, 4), header, file)


@pytest.fixture
def apply(monkeypatch, models):
    """Apply LoRA in a graph; returns its models, and what the node shows."""
    from wantune.nodes.lora import ApplyLoRA

    for model in models:
        monkeypatch.setattr(model, "cached_patcher_init", None, raising=False)  # as before ComfyUI 0.13

    def run(*arguments, node: str = "0", **inputs):
        hidden = type("Hidden", (), {"prompt": HIDDEN_PROMPT, "unique_id": node, "extra_pnginfo": None})
        output = type("Node", (ApplyLoRA,), {"hidden": hidden}).execute(*arguments, **inputs)
        return output.result, output.ui.as_dict()["text"][0]

    return run


def test_two_files_of_one_number_are_written(models, loras):
    from wantune.nodes.lora import SaveLoRA

    high, low = lora_of(models[0], "high"), lora_of(models[1], "low", 1)
    (loras / "sub").mkdir()
    (loras / "sub" / "mine_low_00004.safetensors").touch()
    output = SaveLoRA.execute(high, "sub/mine", models[0], low)
    assert output.result == tuple(os.path.join("sub", f"mine_{name}_00005.safetensors") for name in ("high", "low"))
    assert output.ui.as_dict()["text"][0].count("20 of 20 modules matched") == 2
    for name, lora in zip(output.result, (high, low), strict=True):
        found = lora_file.load(loras / name)
        assert found.metadata["wantune.expert"] == lora.metadata["wantune.expert"]
        assert all(torch.equal(found[key], lora[key]) for key in lora)
    assert SaveLoRA.execute(high, "sub/mine").result == (os.path.join("sub", "mine_00001.safetensors"), None)


def test_nothing_is_written_where_one_of_two_is_no_lora_or_they_change_places(models, loras):
    from wantune.nodes.lora import SaveLoRA

    high, low = lora_of(models[0], "high"), lora_of(models[1], "low", 1)
    half = {key: value for key, value in low.items() if not key.endswith("lora_B.weight")}
    with pytest.raises(UserError, match="without the other matrix"):
        SaveLoRA.execute(high, "mine", lora_low=half)
    with pytest.raises(UserError, match="lora was trained for the low-noise expert and lora_low for the high-noise on"):
        SaveLoRA.execute(low, "mine", lora_low=high)
    assert not list(loras.rglob("*.safetensors"))


def test_each_goes_to_its_own_model(models, loras, apply):
    from wantune.nodes.lora import SaveLoRA

    high, low = lora_of(models[0], "high"), lora_of(models[1], "low", 1)
    alone = [apply(model, 0.7, lora=lora)[0][0] for model, lora in zip(models, (high, low), strict=True)]
    expected = [tools.sample(model) for model in alone]
    names = SaveLoRA.execute(high, "mine", lora_low=low).result
    for first, second in ((high, low), names):
        found, said = apply(models[0], 0.7, lora=first, model_low=models[1], lora_low=second)
        assert all(torch.equal(tools.sample(each), video) for each, video in zip(found, expected, strict=True))
        assert said == "high: 20 of 20 modules matched, strength 0.7\nlow: 20 of 20 modules matched, strength 0.7"
    assert not torch.equal(*expected)
    assert apply(models[0], 1.0, lora=high)[0][1] is None


def test_an_input_without_its_other_half_is_refused(models, apply):
    lora = lora_of(models[0])
    with pytest.raises(UserError, match="Apply LoRA has model_low, but no lora_low; connect both, or neither"):
        apply(models[0], 1.0, lora=lora, model_low=models[1])
    with pytest.raises(UserError, match="Apply LoRA has lora_low, but no model_low; connect both, or neither"):
        apply(models[0], 1.0, lora=lora, lora_low=lora)
    with pytest.raises(UserError, match="; swap lora and lora_low"):
        apply(models[0], 1.0, lora=lora_of(models[0], "low"), model_low=models[1], lora_low=lora_of(models[1], "high"))


@pytest.mark.parametrize(("lora", "node", "expert"), [
    ({"expert": "high"}, "4", "The LoRA was made for the high-noise expert, and it is on the low-noise one."),
    ({"expert": "low"}, "5", "The LoRA was made for the low-noise expert, and it is on the high-noise one."),
    ({"file": "wan22_mine_high_noise.safetensors"}, "4", "By its name the LoRA was made for the high-noise expert, by"),
    ({"expert": "low", "file": "wan22_mine_high_noise.safetensors"}, "4", ""),
    ({"expert": "high"}, "5", ""), ({"expert": "high"}, "0", ""), ({}, "4", ""),
])
def test_a_lora_of_one_expert_on_the_other_is_said(models, apply, lora, node, expert):
    """By what the header says, else by names; the model's name is looked for above Apply LoRA's second output too."""
    said = apply(models[0], 1.0, lora=lora_of(models[0], **lora), node=node)[1]
    assert expert in said and ("expert" in said) == bool(expert)


def test_in_a_pair_the_sockets_say_which_model_is_which(models, apply):
    high, low = lora_of(models[0], "high"), lora_of(models[1], "low")
    said = apply(models[0], 1.0, lora=high, model_low=models[1], lora_low=high)[1]
    assert "low: 20 of 20 modules matched, strength 1\nThe LoRA was made for the high-noise expert, and" in said
    assert "high: 20 of 20 modules matched, strength 1\nlow:" in said
    named = lora_of(models[0], file="wan22_mine_low_noise.safetensors")
    said = apply(models[0], 1.0, lora=named, model_low=models[1], lora_low=low)[1]
    assert said.count("The LoRA was made for the low-noise expert, and it is on the high-noise one.") == 1


def test_the_header_of_an_expert_reads_as_others_write_it(models, loras):
    """Lora Manager files a LoRA by ss_base_model_version, in Civitai's names."""
    from wantune.tests.support.small_model import dataset
    from wantune.trainer.settings.training import TrainConfig

    data = dataset(loras / "data")
    plain = lora_file.metadata(TrainConfig(), data, "a", "b", "c", 1)
    high = lora_file.metadata(TrainConfig(), data, "a", "b", "c", 1, "high")
    assert "wantune.expert" not in plain and plain["ss_base_model_version"] == "wan2.1"
    changed = {key for key in high if high[key] != plain.get(key)}
    assert changed == {"ss_base_model_version", "modelspec.architecture", "modelspec.implementation", "wantune.expert"}
    lora_file.save(loras / "a.safetensors", lora_of(models[0]), high)
    with safe_open(loras / "a.safetensors", "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "Wan Video 2.2 T2V-A14B"
        assert file.metadata()["wantune.expert"] == "high"
