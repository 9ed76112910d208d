"""The same tiny weights in ComfyUI and without it, from one file each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wantune.tests.support import frame_models, tools
from wantune.tests.world import random_models

HEIGHT, WIDTH = 32, 64


@pytest.fixture(scope="session")
def clip_FHW3() -> np.ndarray:
    """Nine frames; CLIP vision and the VAEs see what noise gives them."""
    return np.random.default_rng(0).integers(0, 256, (9, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def vae22_file(comfy, tmp_path_factory) -> Path:
    return frame_models.write_wan22_vae(tmp_path_factory.mktemp("vae") / "wan2.2_vae.safetensors")


@pytest.fixture(scope="session")
def clip_vision_file(comfy, tmp_path_factory) -> Path:
    """In 16 bits, as ComfyUI keeps it on a CPU, and as the real one is stored."""
    path = frame_models.write_clip_vision(tmp_path_factory.mktemp("vision") / "clip_vision_h.safetensors")
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    return path


@pytest.fixture(scope="session")
def umt5_file(tmp_path_factory) -> Path:
    """Three layers of two heads, so that each has a position bias of its own, with a tokenizer of characters."""
    weights = random_models.umt5_weights(64, 8, 16, random_models.Weights(0, torch.float16), heads=2, layers=3)
    return weights.save(tmp_path_factory.mktemp("text") / "umt5.safetensors")


@pytest.fixture(scope="session")
def vae_file() -> Path:
    return tools.WORLD / "vae.safetensors"
