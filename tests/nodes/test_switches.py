"""Switches that another pack sets for the whole process change nothing of what is cached and learned."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from wantune.tests.support import tools, trained
from wantune.trainer.base.switches import own_switches
from wantune.trainer.encoded.batches import read_batch

pytestmark = pytest.mark.usefixtures("comfy")


@contextmanager
def switched(change, back):
    change()
    try:
        yield
    finally:
        back()


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SWITCHES = {
    "bf16": lambda: switched(lambda: torch.set_default_dtype(torch.bfloat16),
                             lambda: torch.set_default_dtype(torch.float32)),
    "fp64": lambda: switched(lambda: torch.set_default_dtype(torch.float64),
                             lambda: torch.set_default_dtype(torch.float32)),
    "device": lambda: switched(lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "deterministic": lambda: switched(lambda: torch.use_deterministic_algorithms(True),
                                      lambda: torch.use_deterministic_algorithms(False)),
    "anomaly": torch.autograd.detect_anomaly,
    "precision": lambda: switched(lambda: torch.set_float32_matmul_precision("medium"),
                                  lambda: torch.set_float32_matmul_precision("highest")),
    "warnings": warnings_as_errors,
    "numpy": lambda: np.errstate(all="raise"),
}


def state() -> list:
    """All that the switches set, as it is now."""
    return [torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled(),
            torch.is_anomaly_enabled(), torch.get_float32_matmul_precision(), warnings.filters[0], np.geterr()]


@pytest.fixture(scope="module")
def world(comfy, tmp_path_factory):
    return trained.world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def run(world, tmp_path, request):
    """Trains two steps, as ComfyUI calls nodes, in an output folder of the test; gives the LoRA."""
    patches = []

    def train(name: str, **settings):
        patches.append(trained.output_folder(tmp_path / name))
        with torch.inference_mode():
            world.train(name, max_steps=2, **settings)
        patches.pop().undo()
        return world.runs[name][0]

    yield train
    for patch in patches:
        patch.undo()


@pytest.fixture(scope="module")
def expected(world, tmp_path_factory):
    patch = trained.output_folder(tmp_path_factory.mktemp("expected"))
    with torch.inference_mode():
        world.train("expected", max_steps=2)
    patch.undo()
    return world.runs["expected"][0]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("switch", SWITCHES)
def test_the_same_is_learned(run, expected, switch):
    with SWITCHES[switch]():
        before = state()
        lora = run(switch)
        assert state() == before
    assert lora.keys() == expected.keys()
    assert all(torch.equal(lora[key], truth) for key, truth in expected.items())


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("switch", ["bf16", "device", "autocast", "warnings", "numpy", "deterministic"])
def test_the_same_is_cached(world, tmp_path, monkeypatch, switch):
    import folder_paths

    from wantune.nodes.cache import CacheLatents
    from wantune.trainer.data import scan
    from wantune.trainer.settings.data import DatasetConfig

    pictures = tools.write_pictures(tmp_path / "pictures", (96, 96))
    manifest = scan.scan(DatasetConfig(folder=str(pictures), resolution=64, num_repeats=1))

    def cached(name: str):
        monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / name))
        with torch.inference_mode():
            return CacheLatents.execute(manifest, world.vae, world.clip).result[0]

    with SWITCHES[switch]():
        found = cached(switch)
    truth = cached("plain")
    assert found.digest == truth.digest
    for ours, theirs in zip(found.samples, truth.samples, strict=True):
        one, two = (read_batch([sample.visit(0)], found.family.conditions) for sample in (ours, theirs))
        assert torch.equal(one.latent_BCFHW, two.latent_BCFHW)
        assert torch.equal(one.conditions["text"], two.conditions["text"])


def test_inside_all_switches_are_as_python_starts_with_them():
    plain = state()
    with (SWITCHES["bf16"](), SWITCHES["device"](), SWITCHES["autocast"](), SWITCHES["deterministic"](),
          SWITCHES["precision"](), SWITCHES["numpy"](), SWITCHES["warnings"]()):
        with own_switches(), torch.inference_mode(False):
            now = state()
    assert now[:-2] == plain[:-2] and now[-1] == plain[-1] and now[-2][0] != "error"
