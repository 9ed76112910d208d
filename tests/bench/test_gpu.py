"""bench/gpu.py on a CPU with small models: what it counts is right, what it builds is Wan2.1, and it still runs."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")

BENCH = Path(__file__).resolve().parents[2] / "bench"
DIT, SIZE_FHW = {"dim": 256, "ffn_dim": 384, "layers": 3}, (2, 8, 10)
MUSUBI = os.environ.get("MUSUBI_PATH")
"""A checkout of musubi-tuner, which is in no package."""


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """bench/gpu.py and bench/table.py as Python sees them when the former is started."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.syspath_prepend(BENCH)
    import gpu
    import table

    return gpu, table


@pytest.fixture(scope="module")
def case(comfy, tmp_path_factory):
    from wantune.bench.cases import Case

    return Case(tmp_path_factory.mktemp("case"), DIT, SIZE_FHW)


def shape(case, text_rows: int):
    from wantune.bench import cases, flops

    sizes = {"dim": DIT["dim"], "ffn_dim": DIT["ffn_dim"], "blocks": DIT["layers"]}
    return flops.Shape(**sizes, tokens=case.num_tokens, text_rows=text_rows, rank=cases.RANK)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("folded", [False, True])
def test_the_formula_counts_what_a_bare_step_multiplies(case, checkpointing, folded):
    from wantune.bench import cases, flops
    from wantune.bench.peers import Bare

    bare = Bare(case.path, case.dataset.samples[0], cases.RANK, checkpointing, folded)
    again = flops.Again(blocks=DIT["layers"] if checkpointing else 0)
    assert flops.counted(bare.step) == flops.done(shape(case, 48 if folded else 512), again)


def test_the_formula_counts_what_our_step_multiplies(case):
    from wantune.bench import cases, contenders, flops, plans
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.tests.support import tools

    model = tools.load_dit(case.path)
    assert contenders.shape_of(case, ComfyDenoiser(model), model) == shape(case, 48)
    for plan in plans.plans(DIT["layers"]).values():
        with cases.running(case, model, plan, 1) as run:
            counted = flops.counted(run.step)
        assert counted == flops.done(shape(case, 48), plans.again(plan, shape(case, 48))), plan


@pytest.mark.parametrize("name", ["diffusers", pytest.param("musubi-tuner", marks=pytest.mark.skipif(
    not MUSUBI, reason="needs a checkout of musubi-tuner in MUSUBI_PATH"))])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_rival_computes_our_loss_and_multiplies_what_the_formula_says(case, name, checkpointing):
    from safetensors.torch import load_file

    from wantune.bench import cases, flops, rivals
    from wantune.bench.peers import Bare, Given

    given = Given(case.dataset.samples[:1], torch.device("cpu"), torch.float32, folded=False)
    rest = (load_file(case.path), given, cases.RANK, checkpointing, torch.float32)
    rival = rivals.Musubi(MUSUBI, *rest) if name == "musubi-tuner" else rivals.Diffusers(*rest)
    ours = Bare(case.path, case.dataset.samples[0], cases.RANK, False, folded=True).loss().item()
    assert rival.loss().item() == pytest.approx(ours, rel=1e-5)
    assert len(rival.parameters) == 2 * 10 * DIT["layers"]
    again = flops.Again(blocks=DIT["layers"] if checkpointing else 0)
    assert flops.counted(rival.step) == flops.done(shape(case, 512), again)
    assert rival.loss().item() < ours, "a step that does not learn is not a step"


@pytest.mark.parametrize("name", ["1.3B", "14B"])
def test_the_transformers_have_wans_full_size(name):
    import comfy.ldm.wan.model
    import comfy.ops

    from wantune.bench import full_size

    sizes = full_size.DITS[name]
    with torch.device("meta"):
        network = comfy.ldm.wan.model.WanModel(
            model_type="t2v", dim=sizes["dim"], ffn_dim=sizes["ffn_dim"], num_layers=sizes["layers"],
            num_heads=sizes["dim"] // 128, operations=comfy.ops.disable_weight_init)
    ours = full_size.dit_weights(name, torch.bfloat16, "meta").tensors
    assert shapes(ours) == shapes(network.state_dict())
    billions = sum(tensor.numel() for tensor in ours.values()) / 1e9
    assert billions == pytest.approx({"1.3B": 1.419, "14B": 14.288}[name], abs=1e-3)


def test_the_encoders_have_wans_full_size():
    import comfy.ldm.wan.vae
    import comfy.ops
    import comfy.text_encoders.t5

    from wantune.bench import full_size
    from wantune.tests.world import random_models

    config = json.loads(
        (Path(comfy.text_encoders.t5.__file__).parent / "umt5_config_xxl.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        vae = comfy.ldm.wan.vae.WanVAE(
            dim=full_size.VAE_DIM, z_dim=16, temperal_downsample=[False, True, True])
        t5 = comfy.text_encoders.t5.T5(config, torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    meta = random_models.Weights(0, torch.bfloat16, "meta")
    assert shapes(random_models.vae_weights(full_size.VAE_DIM, meta).tensors) == shapes(vae.state_dict())
    meta = random_models.Weights(0, torch.bfloat16, "meta")
    tensors = random_models.umt5_weights(**full_size.UMT5_XXL, weights=meta).tensors
    del tensors["spiece_model"]
    assert shapes(tensors) == shapes(t5.state_dict())


def shapes(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_an_imitated_card_is_no_larger_than_asked_for(monkeypatch):
    from wantune.bench import card

    gib = card.GIB
    used = {"reserved": 0, "others": gib // 2}
    fractions = []
    properties = SimpleNamespace(total_memory=80 * gib)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: used["reserved"])
    monkeypatch.setattr(torch.cuda, "mem_get_info",
                        lambda device=None: (80 * gib - used["reserved"] - used["others"], 80 * gib))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    card.imitate(12)
    assert fractions == [11.5 / 80]
    assert torch.cuda.mem_get_info() == (int(11.5 * gib), 12 * gib)
    used["reserved"] = 10 * gib
    assert torch.cuda.mem_get_info() == (int(1.5 * gib), 12 * gib)
    used["others"] = 69 * gib  # another program's
    assert torch.cuda.mem_get_info() == (gib, 12 * gib)


@pytest.fixture
def options(tmp_path):
    return SimpleNamespace(steps=2, turns=1, musubi=MUSUBI, out=tmp_path / "gpu.json", toy=True)


@pytest.mark.parametrize("weights", ["fp32", "fp8", "fp8_scaled"])
def test_a_case_is_measured(scripts, options, tmp_path, weights):
    from wantune.bench import full_size
    from wantune.bench.cases import Data

    gpu, _ = scripts
    case = gpu.Measured(
        options, weights, Data(tmp_path / "data", SIZE_FHW, 2), full_size.load_dit("toy", weights), is_whole=True)
    case.take_turns(gpu.Spare("toy", weights))
    plans, rivals = case.figures["plans"], case.figures["rivals"]
    operations = case.figures["needed, TFLOP a step"] / case.figures["the card's rate, TFLOP/s"]
    measured = {name: found for name, found in plans.items() if "refused" not in found}
    assert len(measured) >= 8 and all(name.endswith("products") for name in plans.keys() - measured.keys())
    for found in measured.values():
        assert found["share"] == pytest.approx(operations / (found["ms a step"] / 1000), rel=1e-2, abs=1e-3)
        assert found["share"] <= found["share, with what is computed again"]
        assert 0.8 < found["plan / peak"] < 2.0
    expected = 0 if weights in full_size.FP8 else 6 if MUSUBI else 4
    assert len(rivals) == expected and all(found["ours is faster by"] > 0 for found in rivals.values())


def test_what_does_not_fit_is_written_down_and_the_rest_goes_on(scripts, options, tmp_path, monkeypatch):
    from wantune.bench import contenders, full_size, plans
    from wantune.bench.cases import Data
    from wantune.trainer.base.out_of_memory import OUT_OF_MEMORY

    gpu, table = scripts
    first, *rest = plans.plans(full_size.DITS["toy"]["layers"])
    running = contenders.running

    def too_large(data, model, plan, steps, **variant):
        if plan == plans.OFF:
            raise OUT_OF_MEMORY("Tried to allocate 20 GiB.\nDetails")
        return running(data, model, plan, steps, **variant)

    monkeypatch.setattr(contenders, "running", too_large)
    case = gpu.Measured(options, "fp32", Data(tmp_path / "data", SIZE_FHW), full_size.load_dit("toy", "fp32"), True)
    assert case.figures["plans"][first] == {"out of memory": "Tried to allocate 20 GiB."}
    assert all("ms a step" in case.figures["plans"][name] for name in rest)
    lines = table.tables({"device": "here"}, {"cases": {"a case": case.figures}, "cache": {}}).splitlines()
    assert f"| a case | {first} | out of memory | - | - | - | - | - |" in lines


def test_an_interrupted_bench_goes_on(scripts, options):
    import host

    _, table = scripts
    machine = {"wantune": host.code_digest(), "comfyui": "0", "device": "CPU"}
    table.Results(options, machine).add("cache", "a cache", {"fill, s": 1.5})
    assert table.Results(options, machine).has("cache", "a cache")
    assert not table.Results(options, machine).has("cases", "a cache")
    assert not table.Results(options, machine | {"comfyui": "1"}).has("cache", "a cache")
    assert "| a cache | fill, s | 1.5 |" in options.out.with_suffix(".md").read_text(encoding="utf-8")


def test_the_command_measures_a_toy(comfy, tmp_path):
    import subprocess

    out = tmp_path / "toy.json"
    command = [sys.executable, str(BENCH / "gpu.py"), "--toy", "--turns", "0", "--comfyui", str(comfy.path),
               "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert len(figures["cases"]) == 1 and len(figures["cache"]) == 1


@pytest.mark.parametrize("weights", ["fp32", "fp8"])
def test_a_models_size_is_what_the_denoiser_counts(scripts, weights):
    import choices

    from wantune.bench import full_size
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    denoiser = ComfyDenoiser(full_size.load_dit("toy", weights))
    size, linears = choices.sizes("toy", weights)
    for name in ("dim", "ffn_dim", "heads", "blocks", "block_values", "are_cast"):
        assert getattr(size, name) == getattr(denoiser.size, name), name
    assert size.weights == pytest.approx(denoiser.size.weights, rel=0.02)  # modulations stay in a higher precision
    assert linears == {name: (each.out_features, each.in_features) for name, each in denoiser.linears().items()}


def test_what_the_node_would_choose_depends_on_the_card(scripts):
    import choices

    gib = choices.GIB
    assert "nothing again" in choices.chosen("1.3B", "bf16", "512x512x1", 20 * gib)
    assert "weights in RAM" in choices.chosen("14B", "fp8", "512x512x1", 10 * gib)
    assert choices.chosen("14B", "fp8", "512x512x81", 4 * gib).startswith("does not fit: ")
