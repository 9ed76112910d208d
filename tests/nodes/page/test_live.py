"""What a run tells the page: few messages, every step in them, and nothing when there is no page."""

import types

import pytest

from wantune.trainer.runs.events import Evaluated, Finished, Previewed, Saved, Started, StepDone

HIDDEN = types.SimpleNamespace(
    unique_id="5:12", prompt={"12": {"class_type": "X", "inputs": {}, "is_changed": [float("nan")]}},
    extra_pnginfo={"workflow": {"id": "the workflow"}})


@pytest.fixture
def page(comfy, monkeypatch):
    """The messages that a page gets, on a clock that is ours."""
    from wantune.nodes.page import live

    clock = types.SimpleNamespace(now=100.0, messages=[], bars=[])
    server = types.SimpleNamespace(
        client_id=None, sockets={}, send_progress_text=lambda text, node: None,
        send_sync=lambda name, content, page: clock.messages.append((clock.now, name, content, page)))
    monkeypatch.setattr(live.PromptServer, "instance", server, raising=False)
    bar = types.SimpleNamespace(update_absolute=lambda value, total: clock.bars.append((clock.now, value)))
    monkeypatch.setattr(live.comfy.utils, "ProgressBar", lambda total, node_id: bar)
    monkeypatch.setattr(live.time, "monotonic", lambda: clock.now)
    clock.server = server
    return clock


def step_done(step: int, total: int, loss: float = 0.5) -> StepDone:
    return StepDone(step, total, 1, loss, 1e-4, 1.0, (0.5,), (loss,), False, 0.01, 100.0)


def train(page, steps: int, seconds: float) -> None:
    """A run with an evaluation, a checkpoint and a preview every second."""
    from wantune.nodes.page.live import Live

    live = Live(HIDDEN)
    live.publish(Started(0, steps, 100, 40, 1000))
    due = page.now + 1
    for step in range(1, steps + 1):
        page.now += seconds
        live.publish(step_done(step, steps))
        if page.now >= due:
            due += 3
            live.publish(Evaluated(step, 0.5, (), 0.6, True))
    live.publish(Finished(steps, 1.0, "done", 0))


@pytest.mark.parametrize("seconds", [0.005, 0.04, 0.1, 0.29, 0.31, 1.7])
def test_the_page_gets_four_messages_a_second_at_most_and_every_step(page, seconds):
    steps = max(12, min(2000, round(20 / seconds)))
    train(page, steps, seconds)
    # ComfyUI sends two messages for its bar
    times = sorted([moment for moment, *_ in page.messages] + [moment for moment, _ in page.bars] * 2)
    for index, moment in enumerate(times[:-4]):  # the last step and the end come at once
        assert sum(moment <= other < moment + 1 for other in times[index:-4]) <= 5, "four, and the one that begins it"
    assert len(times) - 5 <= 4 * (times[-1] - times[0]) + 1
    assert page.bars[-1][1] == steps and len(page.bars) >= (times[-1] - times[0]) / (1 + seconds) - 1
    points = [step for _, name, content, _ in page.messages if name == "wantune.step" for step, *_ in content["points"]]
    if seconds > 0.005:  # more than 64 between two messages, of which the page asks for the older ones
        assert points == list(range(1, steps + 1))
    assert points == sorted(set(points)) and points[-1] == steps
    last = [content for _, name, content, _ in page.messages if name == "wantune.step"][-1]
    assert last["seconds_left"] == 0 and 0 < last["memory_bytes"] < last["memory_total_bytes"]


def test_every_message_says_whose_node_and_run_it_is_about(page):
    train(page, 5, 0.1)
    assert {(content["workflow"], content["node"]) for *_, content, _ in page.messages} == {("the workflow", "12")}
    assert [name for _, name, *_ in page.messages][0] == "wantune.started"
    assert {to for *_, to in page.messages} == {None}, "to every page"


def test_the_time_that_is_left_is_told_from_the_steps_so_far(page):
    train(page, 200, 0.5)
    told = [content for _, name, content, _ in page.messages if name == "wantune.step"]
    for content in told:
        assert content["seconds_left"] == pytest.approx(0.5 * (200 - content["step"]), rel=0.01)


def test_with_several_users_only_the_pages_of_the_runs_user_are_told(page, monkeypatch):
    from wantune.nodes.page import asking

    monkeypatch.setattr(asking.args, "multi_user", True)
    monkeypatch.setattr(asking.PromptServer, "instance", page.server, raising=False)
    monkeypatch.setattr(asking, "_clients", {"a": "anna", "a2": "anna", "b": "ben"})
    page.server.sockets, page.server.client_id = {"a": 1, "a2": 2, "b": 3, "unknown": 4}, "a"
    train(page, 5, 0.1)
    assert {to for *_, to in page.messages} == {"a", "a2"}


def test_without_a_server_nothing_is_told_and_nothing_fails(comfy, monkeypatch):
    from wantune.nodes.page import live

    monkeypatch.setattr(live.PromptServer, "instance", None, raising=False)
    shown = live.Live(None)
    for event in (Started(0, 2, 2, 1, 1), step_done(1, 2, float("nan")), Saved(1, 0.1), step_done(2, 2),
                  Previewed(2, "step_000002", ("samples/a.mp4",)), Finished(2, 1.0, "done", 1)):
        shown.publish(event)


def test_only_the_run_that_goes_on_is_stopped(page):
    from wantune.nodes.page import live

    assert not live.ask_to_stop() and live.current() is None
    shown = live.Live(HIDDEN)
    shown.run = "mine-1"
    with shown.running():
        assert live.current().run == "mine-1" and not shown.is_stop_asked()
        assert not live.ask_to_stop("another-2") and not shown.is_stop_asked()
        assert live.ask_to_stop("mine-1") and shown.is_stop_asked()
    assert not live.ask_to_stop("mine-1") and not shown.is_stop_asked()
    with pytest.raises(KeyboardInterrupt), shown.running():
        raise KeyboardInterrupt
    assert live.current() is None and page.messages[-1][1] == "wantune.ended"


def test_a_pair_has_one_bar_one_stop_and_messages_of_each_run(page, tmp_path):
    from wantune.nodes.page import live
    from wantune.nodes.page.pair_live import PairLive
    from wantune.trainer.runs.folder import RunFolder

    shown = PairLive(HIDDEN)
    for expert in ("high", "low"):
        (tmp_path / expert).mkdir()
        shown.describe(expert, RunFolder(tmp_path / expert), "a model")
    turns = ["high"] * 3 + ["low"] * 3 + ["high"] * 7 + ["low"] * 7
    steps = dict.fromkeys(("high", "low"), 0)
    with shown.running(("high", "low")):
        assert live.current().runs == ("high", "low")
        for expert in turns:
            if not steps[expert]:
                shown.publish(expert, Started(0, 10, 10, 40, 1000))
            steps[expert] += 1
            page.now += 0.25
            shown.publish(expert, step_done(steps[expert], 10))
            assert live.current().run == expert and not shown.is_stop_asked()
            if expert == "low" and steps["low"] == 3:
                told = [content for _, name, content, _ in page.messages if name == "wantune.step"]
                assert [step for each in told if each["run"] == "high" for step, *_ in each["points"]] == [1, 2, 3], (
                    "a run that waits has told of all its steps")
        assert live.ask_to_stop("low") and shown.is_stop_asked(), "both end"
        shown.publish("high", Finished(10, 1.0, "stopped", 0))
    points = {run: [step for _, name, content, _ in page.messages if name == "wantune.step" and content["run"] == run
                    for step, *_ in content["points"]] for run in ("high", "low")}
    assert points == {"high": list(range(1, 11)), "low": list(range(1, 11))}
    assert page.bars[-1][1] == 20, "of the steps of both"
    assert {content["run"] for _, name, content, _ in page.messages if name == "wantune.ended"} == {"high", "low"}
    left = [content["seconds_left"] for _, name, content, _ in page.messages if name == "wantune.step"]
    assert left[0] > left[-1] == 0


def test_the_time_that_is_left_of_a_pair_is_that_of_both(page):
    from wantune.nodes.page.bar import Bar

    bar = Bar(HIDDEN, 2)
    bar.start("high", 0, 100)
    bar.show("high", 10, 100, 2.0, page.now)
    assert bar.seconds_left == 90 * 2 + 100 * 2, "the other one has not begun"
    bar.start("low", 50, 100)
    assert bar.seconds_left == 90 * 2 + 50 * 2
    bar.show("low", 60, 100, 3.0, page.now + 5)
    assert bar.seconds_left == 90 * 2 + 40 * 3 and page.bars[-1][1] == 70
