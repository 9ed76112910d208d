"""Each Wan through a real ComfyUI server: cached, trained, stopped, queued again, saved, applied and sampled.

The models are tiny and random, the nodes around ours are ComfyUI's own, but for loaders of what it only takes in full
size (tests/world_nodes).
"""

import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from skimage import data, io

from wantune.demo.server import PromptFailed, Server
from wantune.tests.conftest import ROOT
from wantune.tests.support import clips, frame_models, wan_models

STEPS = 60
"""Of each run: so many that Stop comes before their end."""

SIZE = {"width": 64, "height": 64, "length": 5, "batch_size": 1}
SAMPLER = {"steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
VAE, CLIP_VISION = "wan22_vae.safetensors", "clip_vision.safetensors"


@dataclass(frozen=True)
class Case:
    """How a family is trained and sampled in a graph."""

    family: str
    """Its name in trainer/model/families.py."""
    samples: int = 4
    """That are left of two pictures and two clips."""
    settings: dict = field(default_factory=dict)
    """Of Dataset Settings."""
    is_pair: bool = False
    """Whether it has two experts."""


FIRST, BOTH = {"condition": "first frame"}, {"condition": "first and last frame"}
FIVE = {"model": "Wan2.2 5B"}
CONTROL, BOTH_GIVEN, VACE = (
    {"condition": given} for given in ("control clip", "control clip and first frame", "VACE control clip"))

CASES = {
    "T2V": Case("Wan2.1 T2V"),
    "I2V": Case("Wan2.1 I2V", settings=FIRST),
    "FLF2V": Case("Wan2.1 FLF2V", samples=2, settings=BOTH),
    "T2V of two experts": Case("Wan2.1 T2V", is_pair=True),
    "I2V of two experts": Case("Wan2.2 I2V", settings=FIRST, is_pair=True),
    "5B": Case("Wan2.2 5B", settings={**FIVE, **FIRST}),
    "Fun-Control": Case("Wan2.1 Fun-Control", settings=BOTH_GIVEN),
    "Fun-Control of 2.2": Case("Wan2.2 Fun-Control", settings=CONTROL),
    "VACE": Case("Wan2.1 VACE", settings=VACE),
}


@pytest.fixture(scope="module")
def server(comfy, tmp_path_factory):
    place = tmp_path_factory.mktemp("families_server")
    models, paths = place / "models", place / "families.yaml"
    models.mkdir()
    for number, (name, case) in enumerate(CASES.items()):
        for expert in experts(case):
            wan_models.write(case.family, models / file_of(name, expert), seed=2 * number + (expert == "low"))
    frame_models.write_wan22_vae(models / VAE)
    frame_models.write_clip_vision(models / CLIP_VISION)
    frame_models.write_clip_vision(models / "small.safetensors", hidden_size=64)
    paths.write_text(json.dumps({"families": dict.fromkeys(
        ("diffusion_models", "vae", "clip_vision"), str(models))}), encoding="utf-8")
    # classic: newer versions let go of a model where memory is short, and it would not be the same one afterwards
    arguments = ("--extra-model-paths-config", str(paths), "--cache-classic")
    with Server(Path(sys.executable), comfy, ROOT, place, arguments=arguments) as running:
        clips.with_pictures(running.folder("input") / "data")
        clips.with_controls(running.folder("input") / "controlled")
        for number, picture in enumerate((data.astronaut(), data.chelsea())):
            io.imsave(running.folder("input") / f"{number}.png", picture[:256, :256])
        yield running


def experts(case: Case) -> tuple[str, ...]:
    return ("high", "low") if case.is_pair else ("",)


def file_of(name: str, expert: str) -> str:
    return f"wan {name} {expert}_noise.safetensors" if expert else f"wan {name}.safetensors"


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def loaded(name: str) -> dict:
    """The models of a family, and what is given to them in sampling."""
    case, given = CASES[name], {}
    for expert in experts(case):
        given[f"unet {expert}"] = node("UNETLoader", unet_name=file_of(name, expert), weight_dtype="default")
        given[f"model {expert}"] = node("WanTuneTest_Weights", model=[f"unet {expert}", 0])
        given[f"weights {expert}"] = node("PreviewAny", source=[f"model {expert}", 1])
    is_five = case.settings.get("model") == FIVE["model"]
    given["vae"] = node("WanTuneTest_LoadWan22VAE", name=VAE) if is_five else node(
        "VAELoader", vae_name="vae.safetensors")
    given["clip"] = node("WanTuneTest_LoadTextEncoder", name="umt5.safetensors")
    for number, text in enumerate(("zwx, a cup of coffee", "")):
        given[f"text {number}"] = node("CLIPTextEncode", clip=["clip", 0], text=text)
        given[f"picture {number}"] = node("LoadImage", image=f"{number}.png")
    if "control" in case.settings.get("condition", ""):
        given["control clip"] = node("RepeatImageBatch", image=["picture 1", 0], amount=SIZE["length"])
    if "clip_vision" in kinds(case):
        given["clip vision"] = node("WanTuneTest_LoadClipVision", name=CLIP_VISION)
        for number in range(2):
            given[f"seen {number}"] = node("CLIPVisionEncode", clip_vision=["clip vision", 0],
                                           image=[f"picture {number}", 0], crop="none")
    return given


def kinds(case: Case) -> set[str]:
    return {kind.name for kind in wan_models.family(case.family).conditions}


def begun(case: Case) -> tuple[dict, list]:
    """The node that conditions the model, and the links to positive, negative and latent."""
    texts = [["text 0", 0], ["text 1", 0]]
    if case.settings == {}:
        return node("EmptyHunyuanLatentVideo", **SIZE), [*texts, ["begun", 0]]
    given = {**SIZE, "vae": ["vae", 0]}
    start, control = {"start_image": ["picture 0", 0]}, {"control_video": ["control clip", 0]}
    if case.family == "Wan2.2 5B":
        return node("Wan22ImageToVideoLatent", **given, **start), [*texts, ["begun", 0]]
    given |= {"positive": texts[0], "negative": texts[1]}
    links = [["begun", number] for number in range(3)]
    if case.settings == BOTH:
        return node("WanFirstLastFrameToVideo", **given, **start, end_image=["picture 1", 0],
                    clip_vision_start_image=["seen 0", 0], clip_vision_end_image=["seen 1", 0]), links
    if case.settings == CONTROL:
        return node("Wan22FunControlToVideo", **given, **control), links
    if case.settings == VACE:
        return node("WanVaceToVideo", **given, **control, strength=1.0), links
    if "clip_vision" in kinds(case):
        given["clip_vision_output"] = ["seen 0", 0]
    if case.settings == BOTH_GIVEN:
        return node("WanFunControlToVideo", **given, **start, **control), links
    return node("WanImageToVideo", **given, **start), links


def sampled(case: Case, models: list, name: str) -> dict:
    """The latent that is sampled by a model, or begun by one and ended by another, is written to a file."""
    begin, (positive, negative, latent) = begun(case)
    common = {**SAMPLER, "positive": positive, "negative": negative}
    if not case.is_pair:
        found = {name: node("KSampler", **common, model=models[0], latent_image=latent, seed=1, denoise=1.0)}
    else:
        common["noise_seed"] = 1
        found = {
            f"{name} half": node("KSamplerAdvanced", **common, model=models[0], latent_image=latent,
                                 add_noise="enable", start_at_step=0, end_at_step=1,
                                 return_with_leftover_noise="enable"),
            name: node("KSamplerAdvanced", **common, model=models[1], latent_image=[f"{name} half", 0],
                       add_noise="disable", start_at_step=1, end_at_step=2, return_with_leftover_noise="disable")}
    return {"begun": begin, **found, f"{name} file": node("SaveLatent", samples=[name, 0], filename_prefix=name)}


def base(name: str) -> dict:
    """The model alone is sampled, and says what its weights are."""
    case = CASES[name]
    return {**loaded(name), **sampled(case, [[f"model {expert}", 0] for expert in experts(case)], "base")}


def trained(name: str, run_name: str) -> dict:
    """From the folder to the training."""
    case = CASES[name]
    models = {"model": ["unet high", 0], "model_low": ["unet low", 0]} if case.is_pair else {"model": ["unet ", 0]}
    seen = {"clip_vision": ["clip vision", 0]} if "clip_vision" in kinds(case) else {}
    given = loaded(name)
    return {
        **{number: entry for number, entry in given.items() if not number.startswith(("model", "weights"))},
        "settings": node("WanTune_DatasetSettings", more_resolutions="", prepend_trigger=True,
                         caption_fallback="trigger word", caption_dropout=0.0, shuffle_tags=False, masks="folder",
                         alpha_color="white", **case.settings),
        "data": node("WanTune_LoadDataset", folder="controlled" if "control clip" in given else "data",
                     trigger_word="zwx", resolution=64, frame_buckets="1, 5", num_repeats=5, validation_items=0,
                     settings=["settings", 0]),
        "cache": node("WanTune_CacheLatents", dataset=["data", 0], vae=["vae", 0], clip=["clip", 0], **seen),
        "train": node("WanTune_TrainWanLoRA", **models, cache=["cache", 0], run_name=run_name, preset="custom",
                      epochs=99, max_steps=STEPS, rank=4, alpha=4, learning_rate=2e-2)}


def used(name: str, run_name: str) -> dict:
    """Trained, saved, applied and sampled."""
    case, graph = CASES[name], trained(name, run_name)
    lows = {"lora_low": ["train", 3]} if case.is_pair else {}
    low_models = {"model_low": ["unet low", 0]} if case.is_pair else {}
    graph["save"] = node("WanTune_SaveLoRA", lora=["train", 0], filename=run_name, **lows)
    graph["apply"] = node("WanTune_ApplyLoRA", lora=["train", 0], strength=1.0,
                          model=graph["train"]["inputs"]["model"], **low_models, **lows)
    return {**graph, **sampled(case, [["apply", number] for number in range(len(experts(case)))], "tuned")}


def told_of(case: Case) -> str:
    """What the file of a LoRA says of the model that it was made for."""
    family = "" if case.family == "Wan2.1 T2V" else f"{case.family} "  # its shapes are those of most others
    return f"a {family or 'Wan '}model of width 128 with 2 blocks"


def latent_of(server, outputs: dict, name: str) -> np.ndarray:
    (file,) = outputs[f"{name} file"]["latents"]
    return load_file(server.folder("output") / file["subfolder"] / file["filename"])["latent_tensor"]


def weights_of(outputs: dict, case: Case) -> list[str]:
    return [outputs[f"weights {expert}"]["text"][0] for expert in experts(case)]


def logged(server, run_name: str, event: str) -> list[list[dict]]:
    """The lines of an event, of each run of that name: those of a pair are two."""
    found = []
    for folder in sorted(server.folder("output").glob(f"wantune/{run_name}*-*")):
        lines = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
        found.append([line for line in lines if line["event"] == event])
    return found


def saved(server, run_name: str, case: Case) -> list[Path]:
    parts = [f"_{expert}" if expert else "" for expert in experts(case)]
    return [server.folder("loras") / f"{run_name}{part}_00001.safetensors" for part in parts]


def stopped(server, graph: dict, case: Case) -> dict:
    """The outputs of the graph, whose run is asked to stop once the expert that comes last has begun."""
    label, already = ("low expert, " if case.is_pair else ""), len(server.log())
    prompt, began = server.post(graph), time.monotonic()
    while f"{label}step 1/{STEPS}" not in server.log()[already:] and server.history(prompt) is None:
        assert time.monotonic() < began + 60
        time.sleep(0.02)
    server.ask("/wantune/stop", {})
    entry = server.wait(prompt, 60)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    return entry["outputs"]


@pytest.mark.parametrize("name", CASES)
def test_trained_stopped_resumed_saved_applied_sampled_and_the_model_is_as_before(server, name):
    case = CASES[name]
    run_name = re.sub("[^a-z0-9]", "", name.lower())
    before = server.run(base(name))["outputs"]
    cached = stopped(server, trained(name, run_name), case)["cache"]["text"][0]
    outputs = server.run(used(name, run_name))["outputs"]
    again = server.run(used(name, f"unbroken{run_name}"))["outputs"]

    assert f"{case.samples} samples are encoded" in cached
    for started, steps in zip(logged(server, run_name, "Started"), logged(server, run_name, "StepDone"), strict=True):
        assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
        first, second = (line["step"] for line in started)
        assert first == 0 < second < STEPS
    loras, unbroken = saved(server, run_name, case), saved(server, f"unbroken{run_name}", case)
    for path, other in zip(loras, unbroken, strict=True):
        one, two = load_file(path), load_file(other)
        assert one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)
        assert any(value.any() for key, value in one.items() if "lora_B" in key)
        with safe_open(path, "np") as file:
            assert told_of(case) in file.metadata()["wantune.base_model"]

    assert outputs["apply"]["text"][0].count("20 of 20 modules matched") == len(loras)
    tuned, untuned = latent_of(server, outputs, "tuned"), latent_of(server, before, "base")
    assert np.isfinite(tuned).all() and not np.array_equal(tuned, untuned)
    assert np.array_equal(tuned, latent_of(server, again, "tuned"))
    after = server.run(base(name))["outputs"]
    assert weights_of(after, case) == weights_of(before, case)
    assert np.array_equal(latent_of(server, after, "base"), untuned)


@pytest.mark.parametrize(("name", "changes", "sentence"), [
    ("T2V", {"vae": node("WanTuneTest_LoadWan22VAE", name=VAE)},
     "WanVAE with 48 latent channels; load Wan2.1's (wan_2.1_vae.safetensors, WanVAE with 16), or choose another"),
    ("5B", {"vae": node("VAELoader", vae_name="vae.safetensors")},
     "WanVAE with 16 latent channels; load Wan2.2's (wan2.2_vae.safetensors, WanVAE with 48), or choose another"),
    ("I2V", {"clip vision": node("WanTuneTest_LoadClipVision", name="small.safetensors")},
     "257 tokens of width 64, which Wan does not read; load clip_vision_h.safetensors"),
])
def test_a_model_of_another_kind_is_refused_before_anything_is_encoded(server, name, changes, sentence):
    graph = trained(name, "refused") | changes
    graph["data"]["inputs"]["trigger_word"] = "never seen before"
    cached = sorted(server.folder("output").rglob("*.safetensors"))
    with pytest.raises(PromptFailed, match=re.escape(sentence)):
        server.run(graph)
    assert sorted(server.folder("output").rglob("*.safetensors")) == cached
    assert not logged(server, "refused", "Started")
