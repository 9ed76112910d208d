"""`wantune lora`: what a file holds, the same under other names, and sums that are exact."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.lora import convert, keys, merge
from wantune.trainer.lora import file as lora_file
from wantune.trainer.lora.forms import FORMATS

BASE = tools.WORLD / "dit.safetensors"


def a_lora(seed: int, rank: int, alpha: float, names=("blocks.0.self_attn.q", "blocks.1.ffn.0")) -> dict:
    random, base, state = torch.Generator().manual_seed(seed), load_file(BASE), {}
    for name in names:
        out_features, in_features = base[f"{name}.weight"].shape
        state |= {f"diffusion_model.{name}.lora_A.weight": torch.randn(rank, in_features, generator=random),
                  f"diffusion_model.{name}.lora_B.weight": torch.randn(out_features, rank, generator=random),
                  f"diffusion_model.{name}.alpha": torch.tensor(alpha)}
    return state


def updates(state) -> dict[str, torch.Tensor]:
    """The change of each weight, by its name."""
    found = {}
    for name, matrices in keys.modules_of(keys.normalize(state)).items():
        a, b = matrices["lora_A.weight"].double(), matrices["lora_B.weight"].double()
        found[name] = float(matrices.get("alpha", len(a))) / len(a) * b @ a
    return found


def assert_same(found, expected, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance * float(value.abs().max()))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "first.safetensors"
    lora_file.save(path, a_lora(0, 4, 2.0), {"wantune.trigger_word": "zwx", "ss_steps": "400"})
    return path


def test_inspect_says_what_a_file_holds(call, file):
    found = json.loads(call("lora", "inspect", file, "--json").out)
    assert (found["modules"], found["kind"], found["rank"], found["alpha"], found["stored as"], found["steps"],
            found["trigger_word"]) == (2, "LoRA", 4, "2", "float32", "400", "zwx")
    assert "Wan model of width" in found["made for"] and "fault" not in found
    text = call("lora", "inspect", file)
    assert text.code == 0 and "trigger_word" in text.out and "first.safetensors" in text.out
    state = a_lora(0, 4, 2.0)
    del state["diffusion_model.blocks.0.self_attn.q.lora_A.weight"]
    lora_file.save(file.with_name("half.safetensors"), state, {})
    assert "is incomplete" in json.loads(call("lora", "inspect", file.with_name("half.safetensors"), "--json").out)[
        "fault"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_converted_lora_changes_the_same_by_the_same(call, file, tmp_path, form):
    path = tmp_path / f"{form}.safetensors"
    assert call("lora", "convert", file, "--to", form, "-o", path).code == 0
    found = lora_file.read(path)
    assert_same(updates(found), updates(a_lora(0, 4, 2.0)))
    first = {"comfyui": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
             "diffusers": "transformer.blocks.0.attn1.to_q.lora_A.weight",
             "kohya": "lora_unet_blocks_0_self_attn_q.lora_down.weight"}[form]
    assert first in found and found.metadata["wantune.trigger_word"] == "zwx"
    again = call("lora", "convert", file, "--to", form, "-o", path)
    assert again.code == 1 and "no file is overwritten" in again.err


def test_diffusers_names_are_those_of_its_transformer():
    from wantune.trainer.wan_diffusers.loading import load_transformer

    transformer = load_transformer(BASE, torch.float32, torch.device("cpu"))
    modules = {f"transformer.{name}" for name, module in transformer.named_modules()
               if isinstance(module, torch.nn.Linear)}
    names = [key.removesuffix(".weight") for key, value in load_file(BASE).items()
             if key.endswith(".weight") and value.ndim == 2]
    found = convert.converted(a_lora(0, 1, 1.0, names), "diffusers")
    named = {key.rpartition(".lora_")[0] for key in found}
    assert named == modules, "each Linear of the model, and no other"


def test_a_merge_is_the_weighted_sum(call, file, tmp_path):
    other, summed = tmp_path / "other.safetensors", tmp_path / "sum.safetensors"
    lora_file.save(other, a_lora(1, 2, 2.0, ("blocks.1.ffn.0", "blocks.2.ffn.2")), {})
    found = call("lora", "merge", file, f"{other}=-0.5", "-o", summed)
    assert found.code == 0 and "rank 6" in found.out
    expected = updates(a_lora(0, 4, 2.0))
    for name, value in updates(a_lora(1, 2, 2.0, ("blocks.1.ffn.0", "blocks.2.ffn.2"))).items():
        expected[name] = expected.get(name, 0) - 0.5 * value
    assert_same(updates(lora_file.load(summed)), expected, 1e-5)


def test_a_merge_that_is_cut_is_the_best_of_its_rank():
    loras = [(a_lora(0, 4, 2.0), 1.0), (a_lora(1, 4, 4.0), 0.7)]
    found, whole, kept = merge.merged(loras, 3), updates(merge.merged(loras).state), []
    for name, update in updates(found.state).items():
        u, values, v = torch.linalg.svd(whole[name], full_matrices=False)
        torch.testing.assert_close(update, u[:, :3] * values[:3] @ v[:3], rtol=1e-4, atol=1e-3)
        kept.append((values[:3].square().sum(), values.square().sum()))
    assert found.rank == 3 and found.kept == pytest.approx(float(
        sum(each for each, _ in kept) / sum(each for _, each in kept)), rel=1e-4)


def test_a_lora_is_merged_into_the_weights_of_its_model(call, file, tmp_path):
    path = tmp_path / "merged.safetensors"
    found = call("lora", "merge", f"{file}=0.5", "--into", BASE, "-o", path)
    assert found.code == 0 and "in 2 of its modules" in found.out
    before, after, expected = load_file(BASE), load_file(path), updates(a_lora(0, 4, 2.0))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{name}.weight" for name in expected} and before.keys() == after.keys()
    for name, update in expected.items():
        wanted = (before[f"{name}.weight"].double() + 0.5 * update).to(before[f"{name}.weight"].dtype)
        torch.testing.assert_close(after[f"{name}.weight"], wanted, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_merged_is_refused_in_a_sentence(call, file, tmp_path):
    lokr = {"diffusion_model.blocks.0.self_attn.q.lokr_w1": torch.ones(2, 2),
            "diffusion_model.blocks.0.self_attn.q.lokr_w2": torch.ones(2, 2)}
    with pytest.raises(UserError, match="is not that of a plain LoRA"):
        merge.merged([(lokr, 1.0)])
    with pytest.raises(UserError, match="weights of which one is not 0"):
        merge.merged([(a_lora(0, 4, 2.0), 0.0)])
    fp8 = {key: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for key, value in load_file(BASE).items()}
    save_file(fp8, tmp_path / "fp8.safetensors")
    for arguments, said in (
            (("--into", tmp_path / "fp8.safetensors"), "float8_e4m3fn, to which too little of a LoRA could be added"),
            (("--into", file), "has no blocks.0.self_attn.q"), (("--into", tmp_path / "no"), "cannot be read")):
        found = call("lora", "merge", file, *arguments, "-o", tmp_path / "merged.safetensors")
        assert found.code == 1 and said in found.err, found.err
    found = call("lora", "merge", f"{file}=half", "-o", tmp_path / "merged.safetensors")
    assert found.code == 1 and "has the weight 'half'" in found.err
    assert not (tmp_path / "merged.safetensors").exists()
