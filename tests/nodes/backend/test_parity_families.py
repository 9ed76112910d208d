"""The step of each family in code we did not write: diffusers, the authors' own package, and musubi-tuner.

For the last two, see tests/support/references.py; without them the tests are skipped. musubi-tuner gives the image's
layers the first 257 tokens alone, so that it is no source for FLF2V; the authors' package has no Wan2.1 I2V.
"""

import pytest
import torch

from wantune.tests.support import references, wan_models
from wantune.tests.support.adapted import AdaptedModel, batch_of, compute_in_fp32

pytestmark = pytest.mark.usefixtures("comfy")

TOLERANCE = 1e-5
"""Relative, of velocity and loss, in fp32; measured up to 8e-7 and 2e-7."""

GRADIENT_TOLERANCE = 5e-5
"""For each matrix, against references in fp32: their own rounding is in it too (see test_parity_diffusers.py).

Measured up to 1.3e-5."""

CASES = {
    **{f"diffusers, {name}": (references.diffusers, name)
       for name in wan_models.NAMES if not wan_models.WANS[name].has_ref_conv},
    **{f"wan22, {name}": (references.authors, name) for name in ("Wan2.1 T2V", "Wan2.2 I2V", "Wan2.2 5B")},
    **{f"musubi-tuner, {name}": (references.musubi, name) for name in ("Wan2.1 T2V", "Wan2.1 I2V")},
}

INPUTS = {"clip": ((3, 4, 6), (0.5,)), "two clips": ((2, 6, 4), (0.05, 0.95)), "picture": ((1, 8, 6), (0.7,))}
"""Latent frames, rows and columns, and noise levels."""


@pytest.mark.parametrize("case", CASES)
def test_velocity_loss_and_gradients_are_theirs(case, record_property):
    make, name = CASES[case]
    sizes = {"dim": 256, "ffn_dim": 512}
    network = make(wan_models.state_dict(name, **sizes), name)
    model = wan_models.load(name, load_as=torch.float32, **sizes)
    compute_in_fp32(model)
    adapted = AdaptedModel(model)
    network.adapt(adapted)
    network.module.to(adapted.denoiser.device)
    worst = dict.fromkeys(("velocity", "loss", "gradient"), 0.0)
    for size_FHW, t in INPUTS.values():
        batch = batch_of(name, size_FHW, t, adapted.denoiser.device)
        conditions = {key: value.to(adapted.denoiser.device) for key, value in adapted.conditions(batch).items()}
        with adapted.attached():
            t_B1111 = batch.t_B[:, None, None, None, None]
            x_BCFHW = (1 - t_B1111) * batch.latent_BCFHW + t_B1111 * batch.noise_BCFHW
            velocity = adapted.denoiser.velocity(x_BCFHW, batch.t_B, conditions)
            losses = (velocity - (batch.noise_BCFHW - batch.latent_BCFHW)).square().flatten(1).mean(1)
            found = velocity.detach(), losses.detach(), adapted.gradients(losses)
        expected = network.step(batch, conditions, size_FHW[1] * size_FHW[2] // 4)
        worst["velocity"] = max(worst["velocity"], error(found[0], expected[0]))
        worst["loss"] = max(worst["loss"], error(found[1], expected[1]))
        assert len(found[2]) == 2 * 10 * 2 and found[2].keys() == expected[2].keys()
        worst["gradient"] = max(worst["gradient"], *(error(found[2][key], expected[2][key]) for key in found[2]))
    for what, value in worst.items():
        record_property(what, value)
    assert worst["velocity"] <= TOLERANCE and worst["loss"] <= TOLERANCE
    assert worst["gradient"] <= GRADIENT_TOLERANCE


def error(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.dtype == torch.float32 and value.shape == reference.shape and reference.norm() > 0
    return float((value.double() - reference.double()).norm() / reference.double().norm())
