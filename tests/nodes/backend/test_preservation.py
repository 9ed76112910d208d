"""What holds the model to itself, through ComfyUI's layers, against diffusers with PEFT's adapter switched off."""

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from wantune.tests.support import references, tools
from wantune.tests.support.adapted import AdaptedModel, gradients_of, random_batch
from wantune.tests.world import random_models

TOLERANCE = 1e-5
T = (0.01, 0.5, 0.99)


@pytest.fixture(scope="module")
def dit_file(tmp_path_factory):
    return random_models.make_dit(tmp_path_factory.mktemp("dit") / "dit.safetensors", dim=256, ffn_dim=512, layers=2)


@pytest.fixture(scope="module")
def adapted(comfy, dit_file):
    return AdaptedModel(tools.load_dit(dit_file, dtype=torch.float32))


@pytest.fixture(scope="module")
def batch(adapted):
    return random_batch((1, 8, 12), T, adapted.denoiser.device)


@pytest.fixture(scope="module")
def expected(adapted, dit_file, batch):
    """Loss of each sample, and the gradient of their mean by our keys, written out, in float64."""
    from peft.tuners.lora import LoraLayer

    network = references.diffusers(load_file(dit_file), "Wan2.1 T2V")
    network.adapt(adapted)
    network.module.double()
    twice = batch.double()
    t_B1111 = twice.t_B[:, None, None, None, None]
    x_BCFHW = (1 - t_B1111) * twice.latent_BCFHW + t_B1111 * twice.noise_BCFHW

    def velocity(is_on: bool) -> torch.Tensor:
        for module in network.module.modules():
            if isinstance(module, LoraLayer):
                module.enable_adapters(is_on)
        return network.call(x_BCFHW, 1000 * batch.t_B, twice.text_BLD.double(), {})

    before_BCFHW = velocity(False).detach()
    loss_B = ((velocity(True) - before_BCFHW) ** 2).flatten(1).mean(1)
    gradients = torch.autograd.grad(loss_B.mean(), list(network.parameters.values()))
    return loss_B.detach(), dict(zip(network.parameters, gradients, strict=True))


def ours(adapted: AdaptedModel, batch, plan: bool):
    from wantune.trainer.training.preservation import preservation_loss

    with adapted.attached(plan):
        loss_B = preservation_loss(adapted.denoiser, adapted.adapter, batch.latent_BCFHW, adapted.conditions(batch),
                                   batch.t_B, batch.noise_BCFHW)
        gradients = gradients_of(adapted.adapter, loss_B.mean())
    return loss_B.detach(), dict(zip(adapted.adapter.state_dict(), gradients, strict=True))


def error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def assert_same(found, expected) -> None:
    (loss_B, gradients), (loss_there_B, gradients_there) = found, expected
    assert error(loss_B, loss_there_B) <= TOLERANCE and (loss_there_B > 0).all()
    assert gradients.keys() == gradients_there.keys()
    assert max(error(gradients[key], gradients_there[key]) for key in gradients) <= TOLERANCE


@pytest.mark.parametrize("plan", [False, True], ids=["all kept", "blocks computed again"])
def test_loss_and_gradients_are_those_of_diffusers(adapted, expected, batch, plan):
    assert_same(ours(adapted, batch, plan), expected)


def test_a_base_that_has_the_adapter_on_is_found_out(adapted, expected, batch, monkeypatch):
    monkeypatch.setattr(adapted.adapter, "switched_off", nullcontext)
    with pytest.raises(AssertionError):
        assert_same(ours(adapted, batch, False), expected)
