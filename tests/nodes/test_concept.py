"""A concept is learned through the real nodes, and five deliberate faults of training do not pass as learning.

Twelve stills of the nine with a trigger word that the base never saw; the preset "person, pictures" scaled to the small
world (docs/small_world.md). An independent classifier reads every frame of videos whose colours and directions the
stills never had together (tests/world/concept.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from wantune.tests.support import tools

pytestmark = pytest.mark.usefixtures("comfy")

VIDEOS, FEWER_VIDEOS = 64, 36
"""Of each kind, and of those after a short training."""
FAULTY_STEPS = 100
"""Of a training with a fault, a sixth of the preset's; without a fault it passes after so many."""
SCALED = {"batch_size": 4, "learning_rate": 5e-4}
"""The preset with a rate for a model a sixth as wide as the smallest Wan; its 2,400 visits in batches of four."""


@dataclass(frozen=True, slots=True)
class Gates:
    """What an examination must show, in shares of frames or of videos."""

    nines: float
    """Least gain over the base, at the lower end of its 95 % interval."""
    base_nines: float
    """Most that the base may show."""
    color: float
    direction: float
    damage: float
    """Most that the other digits may lose, at the lower end of its 95 % interval."""
    drift: float
    """Most that the velocity without the trigger word may move, relative to it (tests/world/meters.py)."""


GATES = Gates(nines=0.5, base_nines=0.05, color=0.95, direction=0.95, damage=0.1, drift=0.45)
"""What five seeds give, with room for four times their spread (docs/learning.md)."""
SHORT_GATES = replace(GATES, nines=0.08)
"""After FAULTY_STEPS."""


class Watch(tools.Watch):
    """In the place of `Live`, where nobody looks."""

    def __init__(self, _hidden) -> None:
        super().__init__()

    @staticmethod
    def say(_text: str) -> None:
        pass


@dataclass
class School:
    """The models and nodes, and what is examined."""

    folder: Path
    model: object
    examiner: object
    meters: object
    base: dict
    """Marks of the base by group."""

    def train(self, name: str, monkeypatch, **settings):
        """Load Dataset, Cache Latents, Train Wan LoRA, Apply LoRA: the tuned MODEL."""
        import folder_paths

        from wantune.nodes import cache, dataset, train
        from wantune.nodes.lora import ApplyLoRA
        from wantune.tests.world import concept

        place = self.folder / name
        stills = concept.write_stills(place / "stills", concept.Files.of(tools.WORLD))
        monkeypatch.setattr(folder_paths, "output_directory", str(place))
        monkeypatch.setattr(train, "Live", Watch)
        with torch.inference_mode():  # as ComfyUI runs its nodes
            data = dataset.LoadDataset.execute(
                folder=str(stills), trigger_word=concept.TRIGGER_WORD, resolution=64, frame_buckets="1",
                num_repeats=10, validation_items=0).result[0]
            cached = cache.CacheLatents.execute(
                dataset=data, vae=tools.load_vae(), clip=tools.load_clip()).result[0]
            lora = train.TrainWanLoRA.execute(
                model=self.model, cache=cached, run_name=name, preset="person, pictures",
                **{**SCALED, **settings}).result[0]
            return ApplyLoRA.execute(model=self.model, lora=lora, strength=1.0).result[0]

    def examined(self, model, *groups: str, count: int | None = None) -> dict:
        """Marks of these groups and the drift, with the model's LoRA; of the first `count` videos of each, or of all.
        """
        from wantune.tests.world import concept

        weights = concept.weights_of(model)
        learned, drift = self.meters(weights)
        marks = {group: self.examiner(weights, group, count) for group in groups}
        shares = (f"{group} {each.share:.3f} ({low:.3f} to {high:.3f})" for group, each in marks.items()
                  for low, high in [concept.interval(each.frames)])
        print(*shares, f"learned {learned:.3f}, drift {drift:.3f}", sep=", ")
        return {**marks, "drift": drift}

    def failures(self, tuned: dict, gates: Gates = GATES) -> list[str]:
        """The gates that an examination does not pass, in words; that of damage only where it was looked for."""
        from wantune.tests.world import concept

        after = tuned["concept"].frames
        nines, error = concept.gain(self.base["concept"].frames[:len(after)], after)
        color, direction = (sum(marks) / len(marks) for marks in (tuned["concept"].colors, tuned["concept"].directions))
        found = {
            f"nines {nines:+.3f} +- {error:.3f}": nines - 1.96 * error >= gates.nines,
            f"nines of the base {self.base['concept'].share:.3f}": self.base["concept"].share <= gates.base_nines,
            f"colour {color:.3f}": color >= gates.color,
            f"direction {direction:.3f}": direction >= gates.direction,
            f"drift {tuned['drift']:.3f}": tuned["drift"] <= gates.drift,
        }
        if "others" in tuned:
            loss, error = concept.gain(tuned["others"].frames, self.base["others"].frames)
            found[f"damage {loss:.3f} +- {error:.3f}"] = loss - 1.96 * error <= gates.damage
        print(", ".join(found))
        return [told for told, passes in found.items() if not passes]


@pytest.fixture(scope="module")
def school(comfy, tmp_path_factory) -> School:
    from wantune.tests.world import concept, meters

    folder = tmp_path_factory.mktemp("concept")
    files, model = concept.Files.of(tools.WORLD), tools.load_dit(tools.WORLD / "dit.safetensors")
    examiner = concept.Examiner(files, VIDEOS)
    base = concept.weights_of(model)
    held_out = meters.Meters(examiner, concept.write_held_out(folder / "held_out"), base)
    return School(folder, model, examiner, held_out, {group: examiner(base, group) for group in examiner.groups})


def test_the_fast_sampler_gives_ksamplers_video(school, monkeypatch):
    """With a LoRA on the model: our batched Euler on our transformer against ComfyUI's sampler on its own."""
    import comfy.sample

    from wantune.tests.world import concept, evaluate

    tuned = school.train("sampled", monkeypatch, epochs=1)
    prompts = [case.prompt for case in school.examiner.groups["concept"][:2]]
    weights = concept.weights_of(tuned)
    ours = evaluate.sample(concept.transformer(weights), school.examiner.text, prompts, 3, 5, concept.SAMPLING_STEPS)
    clip, noise = tools.load_clip(), torch.randn(ours.shape, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        positives, negative = ([clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]
                               for texts in (prompts, [""]))
        for number, positive in enumerate(positives):
            latent = comfy.sample.sample(
                tuned, noise[number:number + 1], concept.SAMPLING_STEPS, evaluate.GUIDANCE, "euler", "simple",
                positive, negative[0], torch.zeros_like(noise[:1]), seed=0, disable_pbar=True)
            theirs = tuned.model.process_latent_in(latent)
            assert (theirs - ours[number]).abs().max() < 0.02 * ours.std()


def test_the_nine_is_learned(school, monkeypatch):
    """Nines with base and LoRA, colour, direction, and what the other digits lose."""
    tuned = school.examined(school.train("learned", monkeypatch), "concept", "others")
    assert not school.failures(tuned)


def _negated(monkeypatch, _school):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    velocity = ComfyDenoiser.velocity
    monkeypatch.setattr(ComfyDenoiser, "velocity", lambda *given: -velocity(*given))


def _not_normalised(monkeypatch, school):
    from wantune.nodes.backend.encoders import WanCodec

    encode = WanCodec.encode
    monkeypatch.setattr(WanCodec, "encode", lambda codec, pixels: school.model.model.process_latent_out(
        encode(codec, pixels)[None])[0])


def _timestep_in_units(monkeypatch, _school):
    from wantune.nodes.backend.denoiser import ComfyDenoiser

    velocity = ComfyDenoiser.velocity
    monkeypatch.setattr(ComfyDenoiser, "velocity", lambda denoiser, x_BCFHW, t_B, conditions: velocity(
        denoiser, x_BCFHW, t_B / 1000, conditions))


def _captions_shuffled(monkeypatch, _school):
    from wantune.trainer.training import inputs

    read = inputs.read_batch

    def shuffled(*given):
        batch = read(*given)
        text_BLD = batch.conditions["text"].roll(1, 0)
        return replace(batch, conditions={**batch.conditions, "text": text_BLD})

    monkeypatch.setattr(inputs, "read_batch", shuffled)


def _alpha_ignored(monkeypatch, _school):
    from wantune.trainer.lora import file

    written = file.from_adapter
    monkeypatch.setattr(file, "from_adapter", lambda state, _alpha: written(state, ALPHA["rank"]))


ALPHA = {"rank": 32, "alpha": 8.0, "learning_rate": 5e-4}
"""An alpha that is not the rank, so that it makes a difference."""
FAULTS = {"target's sign": (_negated, {}), "latents not normalised": (_not_normalised, {}),
          "timestep not times 1000": (_timestep_in_units, {}), "captions shuffled": (_captions_shuffled, {}),
          "alpha ignored": (_alpha_ignored, ALPHA)}


@pytest.mark.parametrize("settings", [{}, ALPHA], ids=["preset", "alpha"])
def test_without_a_fault_it_passes_in_a_sixth_of_the_steps(school, monkeypatch, settings):
    """So what the next test finds is its fault's."""
    tuned = school.train("short", monkeypatch, max_steps=FAULTY_STEPS, **settings)
    assert not school.failures(school.examined(tuned, "concept", count=FEWER_VIDEOS), SHORT_GATES)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_does_not_pass_as_learning(school, monkeypatch, fault):
    plant, settings = FAULTS[fault]
    plant(monkeypatch, school)
    tuned = school.train(fault, monkeypatch, max_steps=FAULTY_STEPS, **settings)
    monkeypatch.undo()
    assert school.failures(school.examined(tuned, "concept", count=FEWER_VIDEOS), SHORT_GATES)
