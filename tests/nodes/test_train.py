"""Training end to end in process: real pictures, ComfyUI's VAE and text encoder, ComfyUI's model."""

import json
from pathlib import Path

import pytest
import torch

from wantune.tests.support import tools
from wantune.trainer.base.errors import UserError
from wantune.trainer.data import scan
from wantune.trainer.encoded import store
from wantune.trainer.encoded.batches import read_batch
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.lora import file as lora_file
from wantune.trainer.memory.plan import Plan
from wantune.trainer.model.text_padding import pad
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import LoraConfig, TrainConfig
from wantune.trainer.training import objective

pytestmark = pytest.mark.usefixtures("comfy")


class Watch(tools.Watch):
    """May interrupt the run at one of its events, as ComfyUI does."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(self._interrupt)
        self.stop_at = stop_at

    def _interrupt(self, _event) -> None:
        if self.stop_at is not None and len(self.events) == self.stop_at:
            import comfy.model_management

            comfy.model_management.interrupt_current_processing()


@pytest.fixture(scope="module")
def cached(tmp_path_factory, comfy):
    """Four real pictures at 64 x 64, encoded with the small world's VAE and text encoder."""
    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec

    folder = tools.write_pictures(tmp_path_factory.mktemp("pictures"))
    config = DatasetConfig(folder=str(folder), resolution=64, num_repeats=1, trigger_word="zwx")
    manifest = scan.scan(config)
    clip = CaptionEncoder(tools.load_clip())
    place = Store(tmp_path_factory.mktemp("cache"))
    return tools.drained(fill(manifest, place, WanCodec(tools.load_vae()), {"text": clip}))[1]


@pytest.fixture(scope="module")
def model(comfy):
    """The small world's transformer."""
    return tools.load_dit(tools.WORLD / "dit.safetensors")


@pytest.fixture
def train(tmp_path, monkeypatch):
    """The node's training function, with its runs in a folder of the test."""
    import folder_paths

    from wantune.nodes import train

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return train.train


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "learning_rate": 1e-3, "lora": LoraConfig(rank=8, alpha=8), **changes})


def constant_loss(model, dataset_) -> float:
    """The loss of all pictures at nine noise levels with the same noise each time, through a bare ComfyUI model."""
    import comfy.model_management

    class Bare:
        device, compute_dtype = torch.device("cpu"), torch.float32

        def velocity(self, x_BCFHW, t_B, conditions):
            network = model.model.diffusion_model
            return network(x_BCFHW, t_B * 1000, context=conditions["text"], transformer_options={}).float()

    total = 0.0
    generator = torch.Generator().manual_seed(123)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        for clip in dataset_.samples:
            batch = read_batch([clip.visit(0)], dataset_.family.conditions)
            latent, text = batch.latent_BCFHW, batch.conditions["text"]
            t_B = torch.arange(1, 10) / 10
            latent, text = latent.repeat(9, 1, 1, 1, 1), pad(text, 512).repeat(9, 1, 1)
            noise = objective.sample_noise(latent, generator)
            total += objective.denoising_loss(Bare(), latent, {"text": text}, t_B, noise).mean().item()
    return total / len(dataset_.samples)


def test_overfitting_four_pictures_halves_the_loss_at_constant_noise(train, model, cached):
    from wantune.nodes.backend.applied import apply

    before = constant_loss(model, cached)
    settings = config(epochs=75, batch_size=4, learning_rate=2e-3, lora=LoraConfig(rank=32, alpha=32),
                      gradient_checkpointing=False)
    lora, losses, _ = train(model, cached, "overfit", settings, Watch())
    tuned, _ = apply(model, lora, 1.0)
    after = constant_loss(tuned, cached)
    print(f"constant-noise loss {before:.4f} -> {after:.4f} ({after / before:.2f}) in {len(losses)} steps")
    assert after <= 0.5 * before


def test_the_video_changes_with_the_lora_and_not_at_strength_zero(train, model, cached):
    from wantune.nodes.backend.applied import apply

    snapshot = tools.Snapshot(model)
    lora, _, _ = train(model, cached, "differs", config(epochs=10), Watch())
    base = tools.sample(model)
    assert torch.equal(tools.sample(apply(model, lora, 0.0)[0]), base)
    assert not torch.equal(tools.sample(apply(model, lora, 1.0)[0]), base)
    snapshot.assert_untouched()


def test_the_applied_lora_equals_the_trained_adapter(model, cached, tmp_path):
    """Velocity with Apply LoRA at strength 1 against the live adapter: 1e-5 relative in fp32, alpha != rank."""
    from wantune.nodes.backend.applied import apply
    from wantune.nodes.backend.denoiser import ComfyDenoiser
    from wantune.trainer.adapter.adapters import Adapter

    lora_config = LoraConfig(rank=8, alpha=20)
    denoiser = ComfyDenoiser(model)
    linears = denoiser.linears()
    adapter = Adapter(lora_config, linears, denoiser.device, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    batch = read_batch([cached.samples[0].visit(0)], cached.family.conditions)
    latent, text = batch.latent_BCFHW, pad(batch.conditions["text"], 512)
    x, t_B = torch.randn(latent.shape, generator=generator), torch.tensor([0.6])
    with torch.no_grad(), denoiser.attached(adapter, linears, Plan(), 0):
        live = denoiser.velocity(x, t_B, denoiser.prepared({"text": text}, x.shape[2:]))
    lora_file.save(tmp_path / "a.safetensors", lora_file.from_adapter(adapter.state_dict(), 20), {})
    applied, fit = apply(model, lora_file.load(tmp_path / "a.safetensors"), 1.0)
    with torch.inference_mode():
        import comfy.model_management

        comfy.model_management.load_models_gpu([applied])
        network = applied.model.diffusion_model
        merged = network(x, t_B * 1000, context=text, transformer_options={})
        comfy.model_management.load_models_gpu([model])
        base = network(x, t_B * 1000, context=text, transformer_options={})
    error = (live - merged).norm() / merged.norm()
    print(f"applied against live: {error:.1e} relative, {fit}")
    assert str(fit) == "40 of 40 modules matched"
    assert error <= 1e-5
    assert (merged - base).norm() / base.norm() > 0.05, "the adapter does something"


def test_the_same_seed_gives_the_same_lora_and_another_seed_another(train, model, cached):
    first, losses, _ = train(model, cached, "a", config(), Watch())
    torch.manual_seed(99)  # the global generator is not ours
    second, again, _ = train(model, cached, "b", config(), Watch())
    third, _, _ = train(model, cached, "c", config(seed=1), Watch())
    assert losses == again
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first)


def test_the_users_random_generator_is_left_alone(train, model, cached):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, cached, "a", config(epochs=1), Watch())
    assert torch.equal(torch.rand(3), expected)


def test_the_run_folder_tells_what_happened(train, model, cached):
    lora, losses, folder = train(model, cached, "told", config(batch_size=2), Watch())
    folder = Path(folder)
    assert folder.name.startswith("told-")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "StepDone"]
    assert [line["loss"] for line in steps] == losses and len(losses) == 6
    assert {"step", "epoch", "loss", "learning_rate", "seconds", "samples_per_second"} <= set(steps[0])
    # two buckets: three square pictures in two batches, the wide one alone
    assert [line["epoch"] for line in steps] == [1, 1, 1, 2, 2, 2]
    assert json.loads((folder / "config.json").read_text())["lora"]["rank"] == 8
    assert (folder / "step_000006" / "adapter.safetensors").is_file()
    assert lora.metadata["wantune.step"] == "6" and lora.metadata["modelspec.trigger_phrase"] == "zwx"
    assert "zwx, a ginger cat looking up" in lora.metadata["ss_tag_frequency"]
    assert not list(folder.rglob("*.tmp"))


def test_max_steps_ends_the_run(train, model, cached):
    assert len(train(model, cached, "a", config(epochs=100, max_steps=3), Watch())[1]) == 3


@pytest.mark.parametrize("stop_at", [2, 4])
def test_cancel_leaves_the_model_and_keeps_the_adapter(train, model, cached, stop_at, tmp_path):
    """ComfyUI's own interrupt, raised by its next operation in the middle of the forward."""
    import comfy.model_management

    snapshot = tools.Snapshot(model)
    watch = Watch(stop_at=stop_at)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(model, cached, "cancelled", config(epochs=50), watch)
    comfy.model_management.interrupt_current_processing(False)
    (saved,) = tmp_path.glob("wantune/cancelled-*/step_*")
    assert saved.name == f"step_{stop_at - 1:06d}"
    snapshot.assert_untouched()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_trained_in_their_own_dtype(train, cached, dtype, monkeypatch):
    """As on a GPU, where ComfyUI computes in the dtype of the file; on a CPU it would cast to fp32."""
    import comfy.model_management

    from wantune.nodes.backend.denoiser import ComfyDenoiser

    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_args, **_kwargs: None)
    model = tools.load_dit(tools.WORLD / "dit.safetensors", dtype=dtype)
    denoiser = ComfyDenoiser(model)
    assert denoiser.compute_dtype == dtype
    assert denoiser.linears()["blocks.0.ffn.0"].is_resident(torch.zeros(1, dtype=dtype))
    snapshot = tools.Snapshot(model)
    lora, losses, _ = train(model, cached, "half", config(epochs=20, gradient_checkpointing=False), Watch())
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in lora.values())
    snapshot.assert_untouched()
    full = train(tools.load_dit(tools.WORLD / "dit.safetensors"), cached, "full", config(epochs=20), Watch())[1]
    assert losses[0] == pytest.approx(full[0], rel=0.02), "the same loss as in fp32"


def test_a_loss_that_is_not_finite_ends_with_a_sentence_and_a_whole_model(train, cached, tmp_path):
    model = tools.load_dit(tools.random_dit(tmp_path))
    with torch.inference_mode():
        model.model.diffusion_model.head.head.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite for 10 steps in a row, the last at step 10 \(.*png, loss nan\)"):
        train(model, cached, "nan", config(epochs=20), Watch())
    assert not any("forward" in module.__dict__ for module in model.model.modules())


def test_latents_are_what_vae_encode_gives_and_normalised(cached):
    """An item of a mixed dataset against ComfyUI's VAE Encode of the same pixels, then process_latent_in."""
    import comfy.latent_formats

    from wantune.trainer.data import pictures
    clip = cached.samples[0]
    import skimage

    data = (Path(skimage.__file__).parent / "data" / "astronaut.png").read_bytes()
    pixels = pictures.fit(pictures.open_picture(data, "astronaut.png"), 64, 64)[None]
    with torch.inference_mode():
        raw = tools.load_vae().encode(torch.from_numpy(pixels.copy()).float() / 255)
        expected = comfy.latent_formats.Wan21().process_in(raw)[0]
    assert clip.name == "astronaut.png"
    assert torch.equal(store.read_tensor(clip.latent_paths[0]), expected)
    assert not torch.equal(expected, raw[0])


def test_captions_are_what_clip_text_encode_gives(cached):
    clip = tools.load_clip()
    with torch.inference_mode():
        tokens = clip.tokenize(cached.captions[1])
        expected = clip.encode_from_tokens_scheduled(tokens)[0][0]
    text = read_batch([cached.samples[1].visit(0)], cached.family.conditions).conditions["text"]
    assert expected.shape == (1, 512, 4096)
    assert torch.equal(pad(text, 512), expected.float())
    assert store.read_tensor(cached.samples[1].captions[0]["text"]).shape[0] < 64, "stored without the padding"


def test_a_wrong_text_encoder_is_refused(train, model, cached, tmp_path):
    from dataclasses import replace

    store.write_tensor(tmp_path / "narrow.safetensors", torch.zeros(5, 768))
    narrow = {"text": tmp_path / "narrow.safetensors"}
    wrong = replace(cached, samples=(replace(cached.samples[0], captions=(narrow,)),))
    with pytest.raises(UserError, match="captions are 768 wide, the model takes 4096; cache with the UMT5"):
        train(model, wrong, "a", config(), Watch())


def test_a_wrong_vae_is_refused(comfy):
    from wantune.nodes.backend.encoders import WanCodec

    class OtherVae:
        first_stage_model = torch.nn.Identity()
        latent_channels = 4

    with pytest.raises(UserError, match="VAE is a Identity with 4 latent channels; load Wan2.1's"):
        WanCodec(OtherVae())
