"""Room for the weights in dynamic VRAM: when it is made again, and in which order a model is loaded."""

from types import SimpleNamespace

import pytest
import torch

from wantune.tests.support import tools
from wantune.tests.support.adapted import AdaptedModel


class Pages:
    """A model's pages of dynamic VRAM: `peak` takes room away, which only `prioritize` gives back."""

    offset = 100

    def __init__(self) -> None:
        self.room = self.resident = 100
        self.raised = 0

    def peak(self) -> None:
        self.room = self.resident = 40

    def prioritize(self) -> None:
        self.raised += 1
        self.room = 100

    def loaded_size(self) -> int:
        return self.resident

    def use(self) -> None:
        """A pass through the network brings what there is room for."""
        self.resident = self.room


@pytest.fixture
def pages():
    return Pages()


@pytest.fixture
def room(comfy, pages):
    from wantune.nodes.backend.room import Room

    device = torch.device("cuda", 0)
    return Room(SimpleNamespace(model=SimpleNamespace(dynamic_vbars={device: pages}), load_device=device))


def test_room_is_made_again_after_a_peak_and_only_then(pages, room):
    for step in range(40):
        room.look()
        pages.use()
        assert pages.resident == 100
        if step in (10, 30):
            pages.peak()
    assert pages.raised == 2


def test_without_it_weights_would_stream_for_the_rest_of_the_run(pages):
    pages.peak()
    for _ in range(40):
        pages.use()
    assert pages.resident == 40


def test_where_each_pass_takes_it_away_it_is_asked_for_ever_more_rarely(pages, room):
    raised = []
    for step in range(400):
        room.look()
        if pages.raised > len(raised):
            raised.append(step)
        pages.use()
        pages.peak()
    pauses = [later - earlier for earlier, later in zip(raised, raised[1:], strict=False)]
    assert pauses[:7] == [1, 2, 3, 5, 9, 17, 33]
    assert set(pauses[7:]) == {65}


def test_it_begins_anew_when_room_was_there_again(pages, room):
    for _ in range(20):
        room.look()
        pages.use()
        pages.peak()
    for _ in range(70):
        room.look()
        pages.use()
    before = pages.raised
    pages.peak()
    room.look()
    assert pages.raised == before + 1


def test_a_model_outside_dynamic_vram_is_left_alone(comfy):
    from wantune.nodes.backend.room import Room

    Room(SimpleNamespace(model=SimpleNamespace(), load_device=torch.device("cpu"))).look()


def test_buffers_are_dropped_before_the_model_is_loaded(comfy, tmp_path, monkeypatch):
    """Dropping them takes the pinned RAM of every loaded model out of use, and loading puts it to use."""
    import comfy.model_management

    calls = []
    load = comfy.model_management.load_models_gpu

    def loaded(*args, **kwargs):
        calls.append("load")
        return load(*args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "reset_cast_buffers", lambda: calls.append("drop"), raising=False)
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loaded)
    adapted = AdaptedModel(tools.load_dit(tools.random_dit(tmp_path)))
    with adapted.attached():
        assert calls == ["drop", "load"]
        adapted.denoiser.reload()
        assert calls == ["drop", "load"] * 2
