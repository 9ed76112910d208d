"""Which Wan a MODEL is: told by what its network takes; all others are refused by the name of what they are."""

from types import SimpleNamespace

import pytest
import torch

from wantune.tests.support import wan_models
from wantune.trainer.base.errors import UserError
from wantune.trainer.model import families

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.mark.parametrize("name", wan_models.NAMES)
def test_a_model_is_of_its_family(name):
    from wantune.nodes.backend.family import family_of

    model = wan_models.load(name, layers=1)
    assert type(model.model.model_config).__name__ == wan_models.WANS[name].kind, "as ComfyUI's own detection says"
    assert set(model.model.diffusion_model.state_dict()) == set(wan_models.state_dict(name, layers=1))
    family = family_of(model)
    assert family is families.named(name)
    assert model.model.latent_format.latent_channels == family.latent_channels
    assert model.model.diffusion_model.patch_size == family.patch_FHW


@pytest.mark.parametrize("name", wan_models.NAMES)
def test_latents_are_normalised_as_comfyui_does_for_the_model(name):
    family, latent = families.named(name), wan_models.load(name, layers=1).model.latent_format
    raw = torch.randn(2, family.latent_channels, 2, 3, 4)
    torch.testing.assert_close(family.normalize(raw), latent.process_in(raw))


def changed(name: str, **tensors) -> dict[str, torch.Tensor]:
    return wan_models.state_dict(name, layers=1) | {
        key.replace("__", "."): torch.randn(*shape) for key, shape in tensors.items()}


OTHERS = {
    "Wan2.2 Fun-InP 5B": changed("Wan2.2 5B", patch_embedding__weight=(128, 100, 1, 2, 2)),
    "Wan2.2 Fun-Control 5B": changed("Wan2.2 5B", patch_embedding__weight=(128, 148, 1, 2, 2)),
    "a variant of Wan that takes 36 channels for latents of 16, with the embedding of one image and a reference image":
        changed("Wan2.1 I2V", ref_conv__weight=(128, 16, 2, 2), ref_conv__bias=(128,)),
    "a variant of Wan that takes 20 channels for latents of 16, with no image embedding":
        changed("Wan2.1 T2V", patch_embedding__weight=(128, 20, 1, 2, 2)),
    "a variant of Wan VACE": changed("Wan2.1 VACE", vace_patch_embedding__weight=(128, 64, 1, 2, 2)),
}


def test_a_fun_control_of_wan21_that_could_read_a_reference_is_trained():
    """V1.1; ComfyUI's node gives it none."""
    import comfy.sd

    from wantune.nodes.backend.family import family_of

    state = changed("Wan2.1 Fun-Control", ref_conv__weight=(128, 16, 2, 2), ref_conv__bias=(128,))
    with torch.inference_mode():
        assert family_of(comfy.sd.load_diffusion_model_state_dict(state)) is families.named("Wan2.1 Fun-Control")


@pytest.mark.parametrize("name", OTHERS)
def test_another_wan_is_refused_by_its_name(name):
    import comfy.sd

    from wantune.nodes.backend.family import family_of

    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(dict(OTHERS[name]))
    with pytest.raises(UserError, match=f"^The model is {name}; this version trains text-to-video, image-to-video, "
                                        "Fun-Control and VACE of Wan2.1 and Wan2.2 only.$"):
        family_of(model)


@pytest.mark.parametrize(("module", "network", "sentence"), [
    ("model", "CameraWanModel", "Wan Fun-Camera"), ("model", "WanModel_S2V", "Wan2.2 S2V"),
    ("model", "HumoWanModel", "HuMo"), ("model_animate", "AnimateWanModel", "Wan2.2 Animate"),
    ("model_animate2", "WanAnimate2Model", "Wan Animate 2"), ("ar_model", "CausalWanModel", "a causal Wan"),
    ("model", "SCAILWanModel", "Wan SCAIL"), ("model_wandancer", "WanDancerModel", "Wan2.2 WanDancer"),
])
def test_networks_of_their_own_are_refused_by_their_name(module, network, sentence):
    """Though their inputs may be those of a model that is trained: the class is asked besides."""
    import importlib

    from wantune.nodes.backend.family import family_of

    try:
        found = getattr(importlib.import_module(f"comfy.ldm.wan.{module}"), network)
    except (ImportError, AttributeError):
        pytest.skip(f"this version of ComfyUI has no {network}")
    model = wan_models.load("Wan2.1 T2V", layers=1)
    stranger = SimpleNamespace(model=SimpleNamespace(
        diffusion_model=found.__new__(found), latent_format=model.model.latent_format))
    stranger.model.diffusion_model.__dict__.update(model.model.diffusion_model.__dict__)
    with pytest.raises(UserError, match=f"^The model is {sentence}"):
        family_of(stranger)


def test_a_plain_network_in_a_model_that_noises_otherwise_is_refused():
    from wantune.nodes.backend.family import family_of

    model = wan_models.load("Wan2.1 T2V", layers=1)
    other = type("WAN21_FlowRVS", (), {})()
    other.__dict__.update(diffusion_model=model.model.diffusion_model, latent_format=model.model.latent_format)
    with pytest.raises(UserError, match="^The model is Wan FlowRVS"):
        family_of(SimpleNamespace(model=other))
