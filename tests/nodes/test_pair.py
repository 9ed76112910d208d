"""Both experts of Wan2.2 A14B as a pair: bit for bit what each learns alone in its window."""

import json
from pathlib import Path

import pytest
import torch

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.runs.events import Finished, StepDone
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import (
    LoraConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)

pytestmark = pytest.mark.usefixtures("comfy")

STEPS = 9


@pytest.fixture(scope="module")
def cached(tmp_path_factory, comfy):
    """Three real pictures at 64 x 64, and one that is held out."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec

    folder = tools.write_pictures(tmp_path_factory.mktemp("pictures"))
    config = DatasetConfig(folder=str(folder), resolution=64, num_repeats=1, trigger_word="zwx", validation_items=1)
    clip = CaptionEncoder(tools.load_clip())
    place = Store(tmp_path_factory.mktemp("cache"))
    return tools.drained(fill(scan.scan(config), place, WanCodec(tools.load_vae()), {"text": clip}))[1]


@pytest.fixture(scope="module")
def models(comfy, tmp_path_factory):
    """Two models of one shape with other weights."""
    return {expert: tools.load_dit(tools.random_dit(tmp_path_factory.mktemp(expert), seed=seed))
            for expert, seed in (("high", 1), ("low", 2))}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where runs go; `place(name)` makes it another one."""
    import folder_paths

    def choose(name: str) -> Path:
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / name))
        return tmp_path / name / "wantune"

    choose("here")
    return choose


def config(window: str = "whole", **changes) -> TrainConfig:
    return TrainConfig(**{
        "epochs": 3, "learning_rate": 1e-3, "lora": LoraConfig(rank=4, alpha=4),
        "objective": ObjectiveConfig(window=window), "validation": ValidationConfig(evaluate_steps=4), **changes})


def alone(models, cached, **changes) -> dict:
    """Each expert trained as a run of its own, in a window that one model has by the word."""
    from wantune.nodes import train

    found = {}
    for expert, model in models.items():
        lora, losses, folder = train.train(
            model, cached, f"a_{expert}", config(f"{expert} expert", **changes), tools.Watch())
        found[expert] = lora, losses, Path(folder)
    return found


def trained(models, cached, watch, settings=None, **options) -> dict:
    from wantune.nodes import pair

    both = {expert: pair.Expert(model=model) for expert, model in models.items()}
    return pair.train(both, cached, "a", settings or config(), watch, **options)


def assert_same(found: dict, expected: dict) -> None:
    for expert, (lora, losses, _) in expected.items():
        assert found[expert].losses == losses, expert
        assert found[expert].lora.keys() == lora.keys()
        assert all(torch.equal(found[expert].lora[key], lora[key]) for key in lora), expert


def held_out(folder) -> list:
    lines = map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["levels"]) for line in lines if line["event"] == "Evaluated"]


@pytest.fixture
def short_turns(monkeypatch):
    """Turns of two steps, whatever a swap costs."""
    from wantune.trainer.training import pair

    monkeypatch.setattr(pair, "LEAST_STEPS", 2)
    monkeypatch.setattr(pair, "SHARE_OF_SWAPS", 1e6)


@pytest.fixture
def one_fits(monkeypatch):
    """A device that holds one of the models at a time."""
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    reload = ComfyDenoiser.reload

    def displace_and_reload(self) -> None:
        self.make_room(0)  # moves every other model off
        reload(self)

    monkeypatch.setattr(ComfyDenoiser, "reload", displace_and_reload)


SETTINGS = {
    "adamw": {},
    "average, dropout, accumulation": {
        "optimizer": OptimizerConfig(ema_decay=0.9, accumulation=2, schedule="cosine"), "epochs": 6,
        "lora": LoraConfig(rank=4, alpha=4, dropout=0.1)},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("order", ["by turns", "high, then low"])
def test_a_pair_is_each_trained_alone_bit_for_bit(models, cached, place, short_turns, order, settings):
    place("alone")
    expected = alone(models, cached, **settings)
    snapshots = [tools.Snapshot(model) for model in models.values()]
    place("pair")
    watch = tools.PairWatch()
    found = trained(models, cached, watch, config(**settings), order=order)
    assert_same(found, expected)
    count = len(expected["high"][1])
    pairs = "hhll" * (count // 2) + "hl" * (count % 2)
    assert watch.steps == (pairs if order == "by turns" else "h" * count + "l" * count)
    for expert, (_, _, folder) in expected.items():
        assert held_out(found[expert].folder) == held_out(folder) and held_out(folder)
        assert Path(found[expert].folder).name == folder.name, "the same run, by its key"
    for snapshot in snapshots:
        snapshot.assert_untouched()
    again = tools.PairWatch()
    assert_same(trained(models, cached, again, config(**settings), order=order), expected)
    assert not again.events and all(is_finished for *_, is_finished in again.described.values())


@pytest.mark.parametrize("order", ["by turns", "high, then low"])
def test_stopped_in_the_middle_and_queued_again_it_is_bit_for_bit_the_whole_pair(
        models, cached, place, short_turns, order):
    place("alone")
    expected = alone(models, cached)
    place("pair")
    steps = []
    for stop_after in (1, 3, 4, 6, 0):  # in a first turn, in a second, at the end of one, late, never
        watch = tools.PairWatch(stop_after)
        found = trained(models, cached, watch, order=order)
        steps.append(watch.steps)
        if stop_after:
            ended = {expert: event.reason for expert, event in watch.events if isinstance(event, Finished)}
            assert ended and set(ended.values()) <= {"stopped", "done"}
            for expert, each in found.items():
                done = len(each.losses)
                assert each.losses == expected[expert][1][:done]
                assert each.lora.metadata["wantune.step"] == str(done)
                assert not done or (Path(each.folder) / f"step_{done:06d}").is_dir()
    print(steps)
    assert_same(found, expected)
    assert sum(map(len, steps)) == 2 * STEPS, "no step is done twice"


def test_cancelled_in_a_turn_both_are_saved_and_both_models_are_whole(models, cached, place, short_turns):
    import comfy.model_management

    place("alone")
    expected = alone(models, cached)
    snapshots = [tools.Snapshot(model) for model in models.values()]
    place("pair")

    def interrupt(expert, event) -> None:
        if isinstance(event, StepDone) and (expert, event.step) == ("low", 3):
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        trained(models, cached, tools.PairWatch(look=interrupt))  # raised by ComfyUI's next operation, within a forward
    comfy.model_management.interrupt_current_processing(False)
    for snapshot in snapshots:
        snapshot.assert_untouched()
    watch = tools.PairWatch()
    assert_same(trained(models, cached, watch), expected)
    assert watch.steps.count("h") == STEPS - 4 and watch.steps.count("l") == STEPS - 3


def test_a_model_that_was_displaced_in_each_turn_of_the_other_goes_on_bit_for_bit(
        models, cached, place, short_turns, one_fits):
    """Nothing of it is in force meanwhile: it is not loaded, its layers have their own forwards."""
    import comfy.model_management

    place("alone")
    expected = alone(models, cached)
    place("pair")
    seen = []

    def look(expert, event) -> None:
        if isinstance(event, StepDone):
            other = models["low" if expert == "high" else "high"]
            loaded = [each.model for each in comfy.model_management.current_loaded_models if each.model is not None]
            forwards = [module for module in other.model.modules() if "forward" in module.__dict__]
            seen.append((any(each.is_clone(other) for each in loaded), bool(forwards),
                         getattr(comfy.model_management, "in_training", False)))

    watch = tools.PairWatch(look=look)
    assert_same(trained(models, cached, watch), expected)
    assert watch.steps == "hhll" * (STEPS // 2) + "hl" and set(seen) == {(False, False, False)}


def test_previews_of_each_and_early_stop_of_one(models, cached, place, short_turns):
    """One ends early and the other goes on; each samples with itself, and neither disturbs what is learned."""
    from wantune.nodes.previews import PreviewSettings

    clip = tools.load_clip()
    with torch.inference_mode():
        prompts = {name: clip.encode_from_tokens_scheduled(clip.tokenize(text))
                   for name, text in (("positive", "a cat"), ("negative", ""))}
        (previews,) = PreviewSettings.execute(
            **prompts, vae=tools.load_vae(), width=64, height=64, frames=1, steps=1, cfg=1.0, shift=5.0, seed=0,
            every_epochs=0, every_steps=3).result
    settings = {"validation": ValidationConfig(evaluate_steps=1, early_stop=1), "learning_rate": 0.3}
    place("alone")
    expected = alone(models, cached, **settings)
    place("pair")
    watch = tools.PairWatch()
    found = trained(models, cached, watch, config(**settings), previews=previews)
    assert_same(found, expected)
    ends = {expert: event for expert, event in watch.events if isinstance(event, Finished)}
    assert [ends[expert].step for expert in ends] == [len(expected[expert][1]) for expert in ends]
    assert "early stop" in {event.reason for event in ends.values()}
    for expert in expected:
        assert (Path(found[expert].folder) / "samples" / "base_0.mp4").is_file()
        assert len(list(Path(found[expert].folder).glob("samples/step_*_0.mp4"))) >= 1


def test_previews_of_both_are_the_graph_of_both_loras(models, cached, place, short_turns, monkeypatch):
    """Bit for bit two KSampler Advanced after Apply LoRA on each; what is learned is as without."""
    from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo

    import nodes as comfy_nodes
    from wantune.nodes.backend.applied import apply
    from wantune.nodes.previews import PreviewSettings

    clip, vae = tools.load_clip(), tools.load_vae()
    shown, decode = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda latent: (shown.append(latent.clone()), decode(latent))[1])
    sampler = {"steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
    with torch.inference_mode():
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a cat", ""))
        (previews,) = PreviewSettings.execute(
            positive=positive, negative=negative, vae=vae, width=64, height=64, frames=5, shift=5.0, seed=3,
            every_epochs=0, every_steps=0, model=models["high"], model_low=models["low"], switch_at_step=2, **sampler
        ).result

    def by_graph(high, low) -> torch.Tensor:
        told = (3, *sampler.values(), positive, negative)
        with torch.inference_mode():
            (empty,) = EmptyHunyuanLatentVideo.execute(64, 64, 5).result
            (half,) = comfy_nodes.KSamplerAdvanced().sample(high, "enable", *told, empty, 0, 2, "enable")
            return comfy_nodes.KSamplerAdvanced().sample(
                low, "disable", *told, half, 2, 10000, "disable")[0]["samples"]

    place("quiet")
    expected = {expert: (each.lora, each.losses, each.folder)
                for expert, each in trained(models, cached, tools.PairWatch()).items()}
    for order, high_alone in (("by turns", False), ("high, then low", True)):
        place(order)
        shown.clear()
        found = trained(models, cached, tools.PairWatch(), order=order, previews=previews)
        assert_same(found, expected)
        with torch.inference_mode():
            tuned = {expert: apply(model, found[expert].lora, 1.0)[0] for expert, model in models.items()}
        base, of_high, of_low = shown[0], shown[-2], shown[-1]
        assert torch.equal(base, by_graph(models["high"], models["low"]))
        assert torch.equal(of_low, by_graph(tuned["high"], tuned["low"])), order
        if high_alone:
            base_of_low, of_high = shown[-2], shown[-3]
            assert torch.equal(base_of_low, base)
            assert torch.equal(of_high, by_graph(tuned["high"], models["low"]))
        assert not torch.equal(of_high, of_low)


@pytest.mark.parametrize("expert", ["high", "low"])
def test_out_of_memory_in_one_is_a_smaller_plan_for_that_one(models, cached, place, short_turns, monkeypatch, expert):
    from wantune.trainer.training.loop import Trainer

    place("alone")
    expected = alone(models, cached)
    place("pair")
    step, failed = Trainer.train_step, []

    def short_of_memory(self):
        if expert in self.folder.path.name and self.step == 3 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", short_of_memory)
    watch = tools.PairWatch()
    assert_same(trained(models, cached, watch), expected)
    assert [who for who, event in watch.events if type(event).__name__ == "Noted"] == [expert]


def test_a_pair_continues_a_lora_of_each(models, cached, place):
    from wantune.nodes import pair

    place("first")
    first = trained(models, cached, tools.PairWatch())
    place("second")
    both = {expert: pair.Expert(model=model, continued=first[expert].lora) for expert, model in models.items()}
    found = pair.train(both, cached, "b", config(max_steps=1, learning_rate=1e-9), tools.PairWatch())
    for expert, each in found.items():
        assert all(torch.allclose(each.lora[key], first[expert].lora[key], atol=1e-6) for key in each.lora)


def test_what_cannot_be_a_pair_is_refused_before_anything_is_written(models, cached, place, tmp_path):
    from wantune.nodes import pair
    from wantune.nodes.backend.applied import apply

    root = place("refused")
    high, low = models.values()
    again = tools.load_dit(tools.random_dit(tmp_path / "again", seed=1))
    wide = tools.load_dit(tools.random_dit(tmp_path / "wide", dim=256))
    long = tools.load_dit(tools.random_dit(tmp_path / "long", layers=3))
    place("loras")
    tuned = apply(again, trained(models, cached, tools.PairWatch(), config(max_steps=1))["high"].lora, 1.0)[0]
    place("refused")
    cases = [
        ((high, high), "model and model_low hold the same weights; connect the high-noise expert to model and"),
        ((high, high.clone()), "hold the same weights"), ((high, again), "hold the same weights"),
        ((high, tuned), "hold the same weights"),
        ((high, wide), "model and model_low have other shapes, such as blocks.0.cross_attn.k, 128 x 128 and 256 x 256"),
        ((high, long), "other shapes, such as blocks.2.cross_attn.k, none and 128 x 128; connect the two experts"),
    ]
    for (first, second), sentence in cases:
        both = {"high": pair.Expert(model=first), "low": pair.Expert(model=second)}
        with pytest.raises(UserError, match=sentence):
            pair.train(both, cached, "a", config(), tools.PairWatch())
    named = {"high": pair.Expert(model=high, file="wan2.2_low_noise.safetensors"),
             "low": pair.Expert(model=low, file="wan2.2_high_noise.safetensors")}
    with pytest.raises(UserError, match="swap model and model_low"):
        pair.train(named, cached, "a", config(), tools.PairWatch())
    with pytest.raises(UserError, match="window is high expert .* set window to whole"):
        trained(models, cached, tools.PairWatch(), config("high expert"))
    for narrow, expert in (({"min_t": 0.9}, "low"), ({"max_t": 0.8}, "high")):
        with pytest.raises(UserError, match=f"leaves nothing of the {expert} expert's noise levels"):
            trained(models, cached, tools.PairWatch(), config(objective=ObjectiveConfig(**narrow)))
    assert not root.exists()


def test_the_node_gives_both_loras_one_after_the_other_in_the_loss_graph(models, cached, place, caplog):
    from wantune.nodes.train import TrainWanLoRA

    place("node")
    inputs = {"model": models["high"], "cache": cached, "run_name": "mine", "epochs": 1, "rank": 4, "alpha": 4,
              "preset": "custom", "boundary": 0.8}
    with torch.inference_mode(), caplog.at_level("INFO", "wantune"):  # as ComfyUI runs nodes
        lora, losses, folder, lora_low, folder_low = TrainWanLoRA.execute(**inputs, model_low=models["low"]).result
    assert len(losses["loss"]) == 6 and Path(folder).name.startswith("mine_high-")
    assert Path(folder_low).name.startswith("mine_low-")
    assert [each.metadata["wantune.expert"] for each in (lora, lora_low)] == ["high", "low"]
    settings = [json.loads(Path(path, "config.json").read_text())["objective"] for path in (folder, folder_low)]
    assert [(each["min_t"], each["max_t"]) for each in settings] == [(0.8, 1.0), (0.0, 0.8)]
    assert "low expert, done: 3 steps" in caplog.text
    with torch.inference_mode():
        alone = TrainWanLoRA.execute(**inputs).result
    assert alone[3:] == (None, None) and "wantune.expert" not in alone[0].metadata
    with pytest.raises(UserError, match="continue_from_low is connected, but not model_low"):
        TrainWanLoRA.execute(**inputs, continue_from_low=lora_low)
    assert "boundary is 1.5; choose" in TrainWanLoRA.validate_inputs(run_name="mine", boundary=1.5)
    assert TrainWanLoRA.validate_inputs(run_name="mine", order="low first") == (
        "order is 'low first'; choose one of by turns; high, then low.")
    assert TrainWanLoRA.validate_inputs(run_name="mine", boundary=0.9, order="by turns", model_low=None) is True
