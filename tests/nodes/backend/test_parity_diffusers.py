"""The same training step in code we did not write: diffusers' transformer with PEFT in its own Linears."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from wantune.tests.support import tools
from wantune.tests.support.adapted import ALPHA, RANK, AdaptedModel, compute_in_fp32, random_batch
from wantune.tests.world import random_models

DIM, FFN_DIM, BLOCKS = 256, 512, 2
TOLERANCE = 1e-5
"""Relative; measured 4e-7 for the velocity, 2e-7 for the loss, 2e-6 for the worst of the gradients."""
FP32_REFERENCE_TOLERANCE = 5e-5
"""For gradients against diffusers in fp32 as it is, whose own rounding is in them too.

3e-5 at t = 0.99: each side has its own time embedding (see `comfy_sinusoid`).
2e-5 in lora_A and lora_B of the text's k and v: a matrix product that adds 490 equal rows, those of the
text's padding, one after the other rounds each sum the same way. The code under test folds them into one.
"""

PICTURE, TALL_PICTURE, CLIP, WIDE_CLIP = (1, 8, 12), (1, 10, 6), (3, 6, 10), (3, 2, 14)
"""Latent frames, rows and columns. The first has as many tokens as the folded text would have rows."""
CASES = [
    pytest.param(size_FHW, t, id=f"{'x'.join(map(str, size_FHW))}-t{'-'.join(map(str, t))}")
    for size_FHW, t in [
        *itertools.product((PICTURE, CLIP), ((0.01,), (0.5,), (0.99,))),
        *itertools.product((PICTURE, TALL_PICTURE, CLIP, WIDE_CLIP), ((0.01, 0.5, 0.99),)),
    ]
]


class Reference:
    """diffusers' model of the same weights, with the same adapter."""

    def __init__(self, state: dict[str, torch.Tensor], adapted: AdaptedModel) -> None:
        from diffusers import WanTransformer3DModel
        from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers as convert

        model = WanTransformer3DModel(
            num_attention_heads=DIM // 128, attention_head_dim=128, ffn_dim=FFN_DIM, num_layers=BLOCKS
        )
        model.load_state_dict(convert(dict(state)))
        keys = convert({f"{name}.weight": name for name in adapted.linears})
        self.names = {name: key.removesuffix(".weight") for key, name in keys.items()}
        self.model = self._with_adapter(model.requires_grad_(False), adapted)

    def _with_adapter(self, model, adapted: AdaptedModel):
        import peft

        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(self.names.values()))
        peft.inject_adapter_in_model(config, model)
        self.parameters = {}
        for key, value in adapted.adapter.state_dict().items():
            name, kind = key.removesuffix(".weight").rsplit(".", 1)
            parameter = getattr(model.get_submodule(self.names[name]), kind)["default"].weight
            parameter.data.copy_(value)
            self.parameters[key] = parameter
        trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert trainable == {id(parameter) for parameter in self.parameters.values()}
        return model.to(adapted.denoiser.device)

    def step(self, batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Velocity, loss of each sample, and the gradient of the mean loss by our keys."""
        x0, text, noise = (
            tensor.to(self.model.dtype) for tensor in (batch.latent_BCFHW, batch.text_BLD, batch.noise_BCFHW)
        )
        t = batch.t_B.to(x0)[:, None, None, None, None]
        x_t = (1 - t) * x0 + t * noise
        velocity = self.model(x_t, 1000 * batch.t_B, text, return_dict=False)[0]
        target = noise - x0
        losses = torch.stack([F.mse_loss(*pair) for pair in zip(velocity, target, strict=True)])
        gradients = torch.autograd.grad(losses.mean(), list(self.parameters.values()))
        return velocity.detach(), losses.detach(), dict(zip(self.parameters, gradients, strict=True))


def comfy_sinusoid(timestep: torch.Tensor) -> torch.Tensor:
    """ComfyUI's sines and cosines of 1000 t for diffusers: (B) to (B, 256).

    Both compute the phase, up to 990 radians, in fp32, where it rounds by 3e-5; which way depends on
    whether a power (ComfyUI) or an exponential (diffusers) gave the frequency.
    """
    from comfy.ldm.wan.model import sinusoidal_embedding_1d

    return sinusoidal_embedding_1d(random_models.FREQUENCIES, timestep)


def without_rounding(reference: Reference) -> Reference:
    """In float64, wherever diffusers' code does not itself ask for fp32, and with the same time embedding."""
    reference.model.double()
    reference.model.condition_embedder.timesteps_proj.forward = comfy_sinusoid
    return reference


def ours(adapted: AdaptedModel, batch, gradient_checkpointing: bool):
    """What `Reference.step` gives, of the code under test."""
    from wantune.trainer.training import objective

    with adapted.attached(gradient_checkpointing):
        x_t = objective.interpolate(batch.latent_BCFHW, batch.noise_BCFHW, batch.t_B)
        velocity = adapted.denoiser.velocity(x_t, batch.t_B, adapted.conditions(batch)).detach()
        loss_B = adapted.loss_B(batch)
        return velocity, loss_B.detach(), adapted.gradients(loss_B)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.dtype == torch.float32 and value.shape == reference.shape
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def assert_same(result, reference, gradient_tolerance: float) -> None:
    (velocity, loss_B, gradients), (velocity_there, loss_B_there, gradients_there) = result, reference
    assert relative_error(velocity, velocity_there) <= TOLERANCE
    for loss, loss_there in zip(loss_B, loss_B_there, strict=True):
        assert relative_error(loss, loss_there) <= TOLERANCE
    assert len(gradients) == 2 * 10 * BLOCKS and gradients.keys() == gradients_there.keys()
    for key, gradient in gradients.items():
        assert gradients_there[key].norm() > 0, key
        assert relative_error(gradient, gradients_there[key]) <= gradient_tolerance, key


@pytest.fixture(scope="module")
def dit_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "dit.safetensors"
    return random_models.make_dit(path, dim=DIM, ffn_dim=FFN_DIM, layers=BLOCKS)


@pytest.fixture(scope="module")
def adapted(comfy, dit_file):
    return AdaptedModel(tools.load_dit(dit_file, dtype=torch.float32))


@pytest.fixture(scope="module")
def reference(adapted, dit_file):
    return Reference(load_file(dit_file), adapted)


@pytest.fixture(scope="module")
def exact_reference(adapted, dit_file):
    return without_rounding(Reference(load_file(dit_file), adapted))


@pytest.mark.parametrize(("size_FHW", "t"), CASES)
def test_velocity_loss_and_gradients_are_those_of_diffusers(adapted, exact_reference, size_FHW, t):
    batch = random_batch(size_FHW, t, adapted.denoiser.device)
    expected = exact_reference.step(batch)
    for gradient_checkpointing in (False, True):
        assert_same(ours(adapted, batch, gradient_checkpointing), expected, TOLERANCE)


@pytest.mark.parametrize("t", [(0.01,), (0.5,), (0.99,), (0.01, 0.5, 0.99)])
def test_diffusers_in_fp32_as_it_is_differs_by_rounding_only(adapted, reference, t):
    batch = random_batch(CLIP, t, adapted.denoiser.device)
    assert_same(ours(adapted, batch, False), reference.step(batch), FP32_REFERENCE_TOLERANCE)


def test_time_embeddings_of_both_are_right_to_the_rounding_of_their_phase(comfy):
    from diffusers.models.embeddings import Timesteps

    half = random_models.FREQUENCIES // 2
    timestep = torch.tensor([10.0, 500.0, 990.0])
    phase = timestep.double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    exact = torch.cat([phase.cos(), phase.sin()], dim=1)
    for embedding in (comfy_sinusoid, Timesteps(2 * half, flip_sin_to_cos=True, downscale_freq_shift=0)):
        assert ((embedding(timestep) - exact).norm(dim=1) / exact.norm(dim=1) < 2e-5).all()


def test_the_adapter_matters(adapted):
    """Or the comparisons above would say little about it."""
    batch = random_batch(PICTURE, (0.5,), adapted.denoiser.device)
    with torch.inference_mode():
        x_t = (batch.latent_BCFHW + batch.noise_BCFHW) / 2
        without = adapted.denoiser.velocity(x_t, batch.t_B, adapted.conditions(batch))
    velocity, _, _ = ours(adapted, batch, False)
    assert relative_error(velocity, without) > 0.2


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_low_precision_weights_train_as_diffusers_does_on_the_same_rounded_weights(comfy, dit_file, dtype):
    model = tools.load_dit(dit_file, dtype=dtype)
    compute_in_fp32(model)
    adapted = AdaptedModel(model)
    state = {key: value.float() for key, value in model.model.diffusion_model.state_dict().items()}
    reference = without_rounding(Reference(state, adapted))
    batch = random_batch(CLIP, (0.01, 0.5, 0.99), adapted.denoiser.device)
    assert_same(ours(adapted, batch, True), reference.step(batch), TOLERANCE)
