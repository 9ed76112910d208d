"""Rotation matrices of positions are computed once for each of the last sizes, by the network's own method."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture
def network():
    from comfy.ldm.wan.model import WanModel

    return WanModel(dim=24, ffn_dim=32, num_heads=2, num_layers=1, text_dim=8, freq_dim=8, operations=torch.nn)


@pytest.fixture
def calls(network, monkeypatch):
    """The sizes for which ComfyUI's own method was asked."""
    found, own = [], type(network).rope_encode

    def rope_encode(self, *size, **options):
        found.append(size)
        return own(self, *size, **options)

    rope_encode.__module__ = own.__module__
    monkeypatch.setattr(type(network), "rope_encode", rope_encode)
    return found


def asked(network, *size, **options) -> torch.Tensor:
    """As the network asks for them."""
    return network.rope_encode(*size, device=torch.device("cpu"), dtype=torch.float32, transformer_options={"a": 1},
                               **options)


def test_the_same_numbers_are_given_again_for_the_last_sizes(network, calls):
    from wantune.nodes.backend.positions import SIZES, Positions

    positions, sizes = Positions(), [(1, 8, 2 * columns) for columns in range(1, SIZES + 2)]
    expected = {size: asked(network, *size) for size in sizes}
    calls.clear()
    for size in 2 * sizes[1:]:
        with positions.kept(network):
            assert torch.equal(asked(network, *size), expected[size])
    assert calls == sizes[1:]
    with positions.kept(network):
        assert torch.equal(asked(network, *sizes[0]), expected[sizes[0]])
        asked(network, *sizes[1])  # the one that was not asked for longest has made room
        assert not torch.equal(asked(network, *sizes[2], t_start=3), expected[sizes[2]])
    assert calls == [*sizes[1:], sizes[0], sizes[1], sizes[2]]
    assert "rope_encode" not in network.__dict__


def test_those_of_many_tokens_and_of_inference_mode_are_not_kept(network, calls):
    from wantune.nodes.backend.positions import Positions

    positions = Positions()
    for _ in range(2):
        with positions.kept(network):
            asked(network, 3, 64, 64)
    with torch.inference_mode(), positions.kept(network):
        asked(network, 1, 8, 8)
    with positions.kept(network):
        assert not asked(network, 1, 8, 8).is_inference()
    with Positions(saves_memory=True).kept(network):
        asked(network, 1, 8, 8), asked(network, 1, 8, 8)
    assert len(calls) == 6


def test_another_packs_method_is_left_alone(network, monkeypatch):
    from wantune.nodes.backend.positions import Positions

    with monkeypatch.context() as patch:
        patch.setattr(network, "rope_encode", lambda *_size, **_options: "theirs", raising=False)
        with Positions().kept(network):
            assert asked(network, 1, 8, 8) == "theirs"
        assert network.rope_encode() == "theirs"
    monkeypatch.setattr(type(network), "rope_encode", lambda _self, *_size, **_options: "theirs")
    with Positions().kept(network):
        assert "rope_encode" not in network.__dict__ and asked(network, 1, 8, 8) == "theirs"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_networks_own_is_back_after_errors(network, error):
    from wantune.nodes.backend.positions import Positions

    with pytest.raises(error), Positions().kept(network):
        raise error
    assert "rope_encode" not in network.__dict__
