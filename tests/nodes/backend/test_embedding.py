"""The embedding of the noise level is made on the device, with ComfyUI's own function, which is put back."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("comfy")

CARD = torch.device("meta")
"""Stands for a card: its tensors have no values, and copies to it can be told."""


class Copies(TorchDispatchMode):
    """Notes what is copied between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.name().startswith(("aten::_to_copy", "aten::copy_")) and args[0].device != out.device:
            self.found.append(tuple(out.shape))
        return out


def test_nothing_is_copied_to_the_card():
    from comfy.ldm.wan import model

    from wantune.nodes.backend import embedding

    theirs, position = model.sinusoidal_embedding_1d, torch.empty(2, device=CARD)
    with Copies() as copies:
        model.sinusoidal_embedding_1d(256, position)
    assert copies.found == [(128,)], "what this is about"
    with embedding.on_device(model, CARD), Copies() as copies:
        assert model.sinusoidal_embedding_1d(256, position).shape == (2, 256)
    assert not copies.found and model.sinusoidal_embedding_1d is theirs


def test_the_numbers_are_comfyuis():
    from comfy.ldm.wan import model

    from wantune.nodes.backend import embedding

    position = torch.tensor([3.25, 987.5])
    expected = model.sinusoidal_embedding_1d(256, position)
    with embedding.on_device(model, CARD):
        assert torch.equal(model.sinusoidal_embedding_1d(256, position), expected)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_put_back_after_errors_and_left_alone_on_a_cpu(error):
    from comfy.ldm.wan import model

    from wantune.nodes.backend import embedding

    theirs = model.sinusoidal_embedding_1d
    with pytest.raises(error), embedding.on_device(model, CARD):
        raise error
    assert model.sinusoidal_embedding_1d is theirs
    with embedding.on_device(model, torch.device("cpu")):
        assert model.sinusoidal_embedding_1d is theirs
    with embedding.on_device(torch, CARD):  # a version that has no such function
        assert not hasattr(torch, embedding.NAME)
