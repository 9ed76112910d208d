"""Previews of a MODEL as the user samples it: the user's own graph bit for bit, and the training as it was."""

from pathlib import Path

import pytest
import torch

from wantune.tests.support import carried, tools, trained
from wantune.trainer.base.errors import UserError
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig

pytestmark = pytest.mark.usefixtures("comfy")

SIZE = {"width": 64, "height": 64, "frames": 5}
SAMPLER = {"steps": 4, "cfg": 3.0, "sampler_name": "uni_pc", "scheduler": "beta"}
SEED = 7


@pytest.fixture(scope="module")
def world(comfy, tmp_path_factory):
    return trained.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def loras(world, tmp_path_factory):
    """Two LoRA files for the small world, as of other trainers."""
    patch = carried.lora_folder(tmp_path_factory.mktemp("loras"), 256, 1024)
    yield
    patch.undo()


def config(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch_size": 2, "learning_rate": 3e-3, "lora": LoraConfig(rank=4),
                          "validation": ValidationConfig(every_epochs=0), **settings})


def previews(world, **changes):
    from wantune.nodes.previews import PreviewSettings

    inputs = {"positive": world.conditioning("zwx a red digit"), "negative": world.conditioning(""), "vae": world.vae,
              **SIZE, **SAMPLER, "shift": 5.0, "seed": SEED, "every_epochs": 1, "every_steps": 0, **changes}
    return PreviewSettings.execute(**inputs).result[0]


@pytest.fixture
def train(monkeypatch, world, tmp_path):
    import folder_paths

    from wantune.nodes import train

    def run(place, settings, model=None, **inputs):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / place))
        watch = tools.Watch()
        with torch.inference_mode():  # as ComfyUI calls nodes
            return (*train.train(model or world.model, world.cached, "run", settings, watch, **inputs), watch.events)

    return run


@pytest.fixture
def shown(world, monkeypatch):
    """The latents that are decoded, in order."""
    found, decode = [], world.vae.decode

    def decoded(latent):
        found.append(latent.clone())
        return decode(latent)

    monkeypatch.setattr(world.vae, "decode", decoded)
    return found


def applied(model, lora):
    from wantune.nodes.lora import ApplyLoRA

    with torch.inference_mode():
        return ApplyLoRA.execute(model, 1.0, lora).result[0]


def empty() -> dict:
    from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo

    return EmptyHunyuanLatentVideo.execute(*SIZE.values()).result[0]


def by_ksampler(world, model, latent=None, **changes) -> torch.Tensor:
    import nodes as comfy_nodes

    sampler = {**SAMPLER, **changes}
    with torch.inference_mode():
        (found,) = comfy_nodes.KSampler().sample(
            model, SEED, sampler["steps"], sampler["cfg"], sampler["sampler_name"], sampler["scheduler"],
            world.conditioning("zwx a red digit"), world.conditioning(""), latent or empty())
    return found["samples"]


def by_two_samplers(world, model, model_low, switch: int, **changes) -> torch.Tensor:
    """As the templates of Wan2.2 do."""
    import nodes as comfy_nodes

    sampler = {**SAMPLER, **changes}
    told = (SEED, sampler["steps"], sampler["cfg"], sampler["sampler_name"], sampler["scheduler"],
            world.conditioning("zwx a red digit"), world.conditioning(""))
    with torch.inference_mode():
        (half,) = comfy_nodes.KSamplerAdvanced().sample(model, "enable", *told, empty(), 0, switch, "enable")
        (found,) = comfy_nodes.KSamplerAdvanced().sample(model_low, "disable", *told, half, switch, 10000, "disable")
    return found["samples"]


def assert_same_training(one, other) -> None:
    (lora, losses, *_), (found, found_losses, *_) = one, other
    assert found_losses == losses and found.keys() == lora.keys()
    assert all(torch.equal(found[key], value) for key, value in lora.items())


@pytest.mark.parametrize("sampler", [{}, {"sampler_name": "euler_ancestral", "scheduler": "simple", "cfg": 1.0},
                                     {"sampler_name": "dpmpp_2m", "scheduler": "normal"}])
def test_a_preview_is_bit_for_bit_what_the_graph_gives_with_apply_lora(world, train, shown, sampler):
    """With another LoRA under it and a shift; the last preview is of the LoRA that Train gives out."""
    model = carried.shifted(carried.merged(world.model), 3.0)
    lora, *_ = train("a", config(), previews=previews(world, model=model, **sampler))
    assert torch.equal(shown[0], by_ksampler(world, model, **sampler)), "the base"
    assert torch.equal(shown[-1], by_ksampler(world, applied(model, lora), **sampler))
    assert len(shown) == 3 and not torch.equal(shown[0], shown[-1]) and not torch.equal(shown[1], shown[-1])
    plain = carried.shifted(world.model, 3.0)
    assert not torch.equal(shown[0], by_ksampler(world, plain, **sampler)), "the LoRA under it is seen"


def test_averages_are_what_is_shown(world, train, shown):
    model = carried.shifted(world.model)
    settings = config(optimizer=OptimizerConfig(ema_decay=0.9))
    lora, *_ = train("a", settings, previews=previews(world, model=model))
    assert torch.equal(shown[-1], by_ksampler(world, applied(model, lora)))


def test_a_latent_with_a_noise_mask_is_sampled_as_ksampler_does(world, train, shown):
    model = carried.shifted(world.model)
    generator = torch.Generator().manual_seed(1)
    latent = {"samples": torch.randn(1, 16, 2, 8, 8, generator=generator), "noise_mask": torch.ones(1, 1, 2, 8, 8)}
    latent["noise_mask"][:, :, 0] = 0
    lora, *_ = train("a", config(), previews=previews(world, model=model, latent=latent))
    assert torch.equal(shown[-1], by_ksampler(world, applied(model, lora), latent))
    torch.testing.assert_close(shown[-1][:, :, 0], latent["samples"][:, :, 0], atol=0.1, rtol=0)  # the mask keeps it
    assert not torch.equal(shown[-1], by_ksampler(world, applied(model, lora)))


@pytest.mark.parametrize("is_low", [False, True])
def test_the_previews_of_a_pair_are_two_ksamplers_advanced(world, train, shown, is_low):
    """The run's LoRA goes on the expert with which it shares the weights."""
    sampler = {"sampler_name": "euler", "scheduler": "simple", "steps": 4}
    high = carried.shifted(carried.merged(world.model), 8.0)
    low = carried.shifted(carried.merged(tools.load_dit(tools.WORLD / "dit.safetensors"), "second"), 3.0)
    shows = previews(world, model=high, model_low=low, switch_at_step=2, **sampler)
    quiet = train("quiet", config(), low if is_low else high)
    found = train("a", config(), low if is_low else high, previews=shows)
    assert_same_training(quiet, found)
    experts = (high, applied(low, found[0])) if is_low else (applied(high, found[0]), low)
    assert torch.equal(shown[0], by_two_samplers(world, high, low, 2, **sampler))
    assert torch.equal(shown[-1], by_two_samplers(world, *experts, 2, **sampler))
    assert not torch.equal(shown[0], shown[-1])


def test_both_loras_of_a_pair_are_on_where_the_other_one_is_known(world, train, shown, monkeypatch):
    from wantune.nodes import train as training

    high = carried.shifted(world.model, 8.0)
    low = carried.shifted(tools.load_dit(tools.WORLD / "dit.safetensors"), 3.0)
    other, *_ = train("other", config(seed=3), low)
    previewer = training.Previewer
    monkeypatch.setattr(training, "Previewer", lambda *given, **named: previewer(*given, other=lambda: other, **named))
    lora, *_ = train("a", config(), high, previews=previews(world, model=high, model_low=low, switch_at_step=1))
    assert torch.equal(shown[-1], by_two_samplers(world, applied(high, lora), applied(low, other), 1))
    assert torch.equal(shown[0], by_two_samplers(world, high, low, 1)), "the base is without both"


CARRYING = {"merged": carried.merged, "bypass": carried.bypass, "object patch": carried.guided,
            "wrapper": carried.wrapped, "options": carried.with_options}


@pytest.mark.parametrize("trained_on", [pytest.param("the plain model", marks=pytest.mark.long), "the same"])
@pytest.mark.parametrize("carries", CARRYING)
def test_whatever_the_model_carries_training_goes_on_bit_for_bit(world, train, carries, trained_on):
    plain = tools.load_dit(tools.WORLD / "dit.safetensors")
    carrying = CARRYING[carries](plain)
    model = carrying if trained_on == "the same" else plain
    sampled = carried.Sampled(plain, carrying)
    for settings in (config(lora=LoraConfig(rank=4, dropout=0.1)), config(gradient_checkpointing=False)):
        place = f"{settings.gradient_checkpointing}"
        quiet = train(f"quiet {place}", settings, model)
        found = train(f"shown {place}", settings, model,
                      previews=previews(world, model=carried.shifted(carrying), every_steps=1))
        assert_same_training(quiet, found)
    sampled.assert_again()


def test_previews_of_a_model_leave_the_model_and_the_random_states(world, train):
    snapshot = tools.Snapshot(world.model)
    quiet = train("quiet", config())
    state = torch.random.get_rng_state()
    found = train("shown", config(), previews=previews(world, model=carried.shifted(world.model), every_steps=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same_training(quiet, found)
    snapshot.assert_untouched()


def test_the_network_is_comfyuis_own_while_it_samples(world, train):
    """No stand-in of ours, no flag of training, inference mode, and the switches that others have set."""
    import comfy.model_management
    import comfy.patcher_extension

    seen, network = [], world.model.model.diffusion_model

    def looking(executor, *args, **kwargs):
        seen.append((torch.is_inference_mode_enabled(), getattr(comfy.model_management, "in_training", False),
                     torch.get_float32_matmul_precision(), [name for name, module in network.named_modules()
                                                            if "forward" in module.__dict__]))
        return executor(*args, **kwargs)

    model = carried.shifted(world.model)
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "looks", looking)
    torch.set_float32_matmul_precision("high")
    try:
        train("a", config(), previews=previews(world, model=model))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(seen) >= 2 * 3 * SAMPLER["steps"] // 2
    assert all(each == (True, False, "high", []) for each in seen)


@pytest.fixture
def failing(world):
    """A MODEL, shifted, whose network does something at its n-th call."""
    import comfy.patcher_extension

    def made(number: int, does):
        calls = []

        def counted(executor, *args, **kwargs):
            calls.append(1)
            if len(calls) == number:
                does()
            return executor(*args, **kwargs)

        model = carried.shifted(world.model)
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "fails", counted)
        return model, calls

    return made


CALLS = 2 * 4
"""Of the network for one preview, at most; in the tests below each fails in the second preview of a LoRA."""


def test_cancel_in_the_middle_of_a_preview_stops_at_once_and_loses_nothing(world, train, failing):
    import comfy.model_management

    whole = train("whole", config())
    snapshot = tools.Snapshot(world.model)
    model, calls = failing(10, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train("parts", config(), previews=previews(world, model=model, every_steps=1, cfg=1.0))
    assert len(calls) == 10, "not one call more"
    snapshot.assert_untouched()
    parts = train("parts", config(), previews=previews(world, model=carried.shifted(world.model), every_steps=1))
    assert parts[-1][0].step == 2
    assert_same_training(whole, parts)


def test_too_little_memory_leaves_out_that_preview_only(world, train, failing, shown):
    def full():
        raise torch.OutOfMemoryError("Allocation on device")

    quiet = train("quiet", config())
    snapshot = tools.Snapshot(world.model)
    model, _ = failing(10, full)
    found = train("shown", config(), previews=previews(world, model=model, every_steps=1, cfg=1.0))
    assert_same_training(quiet, found)
    kinds = [(type(event).__name__, event.step) for event in found[-1]
             if type(event).__name__ in ("Previewed", "Noted")]
    assert kinds == [("Previewed", 0), ("Previewed", 1), ("Noted", 2), ("Previewed", 3), ("Previewed", 4)]
    (note,) = [event for event in found[-1] if type(event).__name__ == "Noted"]
    assert "The preview after step 2 was left out" in note.sentence
    assert len(shown) == 4, "of each other preview"
    snapshot.assert_untouched()


def test_an_error_in_a_preview_ends_the_run_with_all_that_was_learned(world, train, failing):
    def wrong():
        raise ValueError("another pack's fault")

    whole = train("whole", config())
    snapshot = tools.Snapshot(world.model)
    model, _ = failing(10, wrong)
    with pytest.raises(ValueError, match="another pack's fault"):
        train("parts", config(), previews=previews(world, model=model, every_steps=1, cfg=1.0))
    snapshot.assert_untouched()
    parts = train("parts", config())
    assert parts[-1][0].step == 2
    assert_same_training(whole, parts)


def test_the_noise_levels_are_those_of_the_graph(world):
    import comfy.samplers

    from wantune.nodes.media.previewer import sigmas_of

    def by_comfyui(model, sampler_name, scheduler, steps):
        sampler = comfy.samplers.KSampler(model, steps, "cpu", sampler_name, scheduler)
        return tuple(sampler.sigmas.tolist())

    model, low = carried.shifted(world.model, 3.0), carried.shifted(world.model, 8.0)
    expected = by_comfyui(model, **{key: SAMPLER[key] for key in ("sampler_name", "scheduler", "steps")})
    assert sigmas_of(previews(world, model=model)) == expected and len(expected) == 5
    euler = {"sampler_name": "euler", "scheduler": "simple", "steps": 4}
    of_model, of_low = by_comfyui(model, **euler), by_comfyui(low, **euler)
    assert sigmas_of(previews(world, shift=8.0, **euler)) == of_low != of_model
    pair = previews(world, model=model, model_low=low, switch_at_step=3, **euler)
    assert sigmas_of(pair) == (*of_model[:3], *of_low[3:])


def test_the_memory_plan_counts_comfyuis_own_estimate_and_no_weights(world, tmp_path):
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.nodes.media.previewer import Previewer

    large = {"width": 832, "height": 480, "frames": 81}

    def made(config):
        return Previewer(config, ComfyDenoiser(world.model), tmp_path, None)

    own = made(previews(world, model=carried.shifted(world.model), **large))
    ours = made(previews(world, **large, sampler_name="euler", scheduler="simple"))
    assert own.tokens == 0 < ours.tokens
    assert own.decoding == max(ours.decoding, int(world.model.model.memory_required([1, 16, 21, 60, 104])))


def latent_of(frames: int, rows: int, columns: int, channels: int = 16) -> dict:
    return {"samples": torch.zeros(1, channels, frames, rows, columns)}


@pytest.mark.parametrize(("inputs", "sentence"), [
    ({"model_low": "a model"}, "model_low of Preview Settings needs a model; connect the model as you sample it"),
    ({"latent": latent_of(2, 8, 8)}, "latent of Preview Settings needs a model"),
    ({"scheduler": "simple"}, "sampler_name of Preview Settings needs a model"),
    ({"sampler_name": "euler"}, "scheduler of Preview Settings needs a model"),
    ({"model": "a model", "model_low": "a model"},
     "switch_at_step is 0 of 4 steps, but model_low is connected, which samples from that step on"),
    ({"model": "a model", "model_low": "a model", "switch_at_step": 4}, "switch_at_step is 4 of 4 steps"),
    ({"model": "a model", "switch_at_step": 2}, "switch_at_step is 2, but no model_low is connected"),
    ({"model": "a model", "latent": latent_of(2, 60, 104)},
     "The latent is one of 832 x 480 with 5 frames, but width, height and frames are 64 x 64 with 5; set them as"),
    ({"model": "a model", "latent": latent_of(21, 8, 8)}, "The latent is one of 64 x 64 with 81 frames, but"),
    ({"model": "a model", "latent": {"samples": torch.ones(1, 48, 2, 4, 4)}}, "The latent has the shape .1, 48, 2"),
    ({"model": "a model", "width": 72}, "width is 72; the model takes multiples of 16, the nearest is 64"),
    ({"model": "a model", "frames": 6}, "frames is 6; Wan takes 4n.1"),
])
def test_what_does_not_suit_each_other_is_refused_before_anything_is_computed(world, inputs, sentence):
    given = {name: carried.shifted(world.model) if value == "a model" else value for name, value in inputs.items()}
    with pytest.raises(UserError, match=sentence):
        previews(world, **given)


def test_an_empty_latent_of_another_model_is_taken_as_ksampler_takes_it(world, train, shown):
    model, latent = carried.shifted(world.model), latent_of(2, 8, 8, channels=4)
    lora, *_ = train("a", config(), previews=previews(world, model=model, latent=latent))
    assert torch.equal(shown[-1], by_ksampler(world, applied(model, lora), latent))


def test_a_model_of_another_size_than_the_trained_one_is_refused(world, train, tmp_path):
    other = carried.shifted(tools.load_dit(tools.random_dit(tmp_path, dim=256)))
    for name, settings in (("model", {}), ("model_low", {"model": carried.shifted(world.model), "switch_at_step": 2})):
        shows = previews(world, **{**settings, name: other})
        with pytest.raises(UserError, match=f"{name} of Preview Settings is Wan2.1 T2V .*width 256.*the model in "
                                            "training Wan2.1 T2V .*connect the model that you train, as you sample it"):
            train("a", config(), previews=shows)
    assert not Path(tmp_path / "a").exists()
