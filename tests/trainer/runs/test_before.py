"""A run folder, a cache and a graph of before the folders still open: tests/before was written by the commit before."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from wantune.tests.support import fixed, tools
from wantune.trainer.data import scan
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.runs import history
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import LoraConfig, OptimizerConfig, TrainConfig, ValidationConfig

BEFORE = Path(__file__).parents[2] / "before"
RUN = "before-c2b726bd"

pytestmark = pytest.mark.usefixtures("comfy")


class Never:
    """An encoder that must not be asked for what is in the cache of before, in which are no prior captions."""

    def __init__(self, encoder) -> None:
        self.id, self._encoder = encoder.id, encoder

    def encode(self, content):
        assert isinstance(content, str) and content and "zwx" not in content, "it is in the cache of before"
        return self._encoder().encode(content)


def config(steps: int) -> TrainConfig:
    return TrainConfig(
        epochs=99, max_steps=steps, learning_rate=1e-2, optimizer=OptimizerConfig(ema_decay=0.5, warmup_steps=2),
        lora=LoraConfig(rank=2, alpha=2, targets=r"blocks\.0\.self_attn\.q"),
        validation=ValidationConfig(every_steps=2, every_minutes=0, keep_last=9, evaluate_steps=2))


@pytest.fixture
def output(tmp_path, monkeypatch):
    """A copy of the output folder of before."""
    import folder_paths

    folder = Path(shutil.copytree(BEFORE / "output", tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    return folder


@pytest.fixture
def cached(output):
    data = DatasetConfig(folder=str(BEFORE / "pictures"), resolution=64, num_repeats=2, trigger_word="zwx",
                         validation_items=1, caption_dropout=0.2)
    store = Store(output / "wantune" / "cache")
    return tools.drained(fill(scan.scan(data), store, Never(fixed.Codec), {"text": Never(fixed.Text)}))[1]


def learned(part: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """What the commit before learned in 6 or 10 steps in one go, and its losses."""
    with safe_open(BEFORE / "learned.safetensors", "pt") as file:
        tensors = {key.removeprefix(f"{part}."): file.get_tensor(key) for key in file.keys()  # noqa: SIM118
                   if key.startswith(f"{part}.")}
        return tensors, json.loads(file.metadata()["losses"])


def test_a_finished_run_is_found_and_not_trained_again(cached, output, tmp_path):
    from wantune.nodes.train import train

    watch = tools.Watch()
    lora, losses, folder = train(tools.load_dit(fixed.dit(tmp_path)), cached, "another name", config(6), watch)
    assert Path(folder) == output / "wantune" / RUN
    assert watch.said == [f"trained before: 6 steps, loaded from {RUN}"] and len(losses) == 6
    expected, _ = learned("six")
    assert lora.keys() == expected.keys() and all(torch.equal(lora[key], expected[key]) for key in expected)


def test_a_run_goes_on_from_its_checkpoints(cached, output, tmp_path):
    from wantune.nodes.train import train

    watch = tools.Watch()
    with torch.inference_mode():  # as ComfyUI runs nodes
        lora, losses, folder = train(tools.load_dit(fixed.dit(tmp_path)), cached, "before", config(10), watch)
    assert Path(folder).name == RUN and watch.events[0].step == 6
    expected, expected_losses = learned("ten")
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    for key, value in expected.items():
        torch.testing.assert_close(lora[key], value, rtol=1e-3, atol=1e-6)


def test_the_list_of_runs_shows_it(output):
    found = history.summary(output / "wantune" / RUN)
    assert (found.name, found.step, found.total_steps, found.state) == ("before", 6, 6, "done")
    assert [checkpoint["step"] for checkpoint in found.checkpoints] == [2, 4, 6] and found.rank == 2


def test_load_run_lora_takes_each_checkpoint(output):
    from wantune.nodes.load_run import LoadRunLoRA

    for checkpoint in ("2", "4", "best", "newest"):
        lora, run = LoadRunLoRA.execute(RUN, checkpoint).result
        assert len(lora) == 3 and Path(run).name == RUN


def test_every_node_of_a_saved_graph_is_there_with_its_inputs_and_outputs():
    """nodes.json: the nodes of before with the type of each socket."""
    from wantune.nodes import WanTuneExtension

    renamed = {"WANTUNE_KEEP": "WANTUNE_VALIDATION"}
    schemas = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in asyncio.run(WanTuneExtension().get_node_list())}
    before = json.loads((BEFORE / "nodes.json").read_text(encoding="utf-8"))
    assert len(before) == 16
    for node, sockets in before.items():
        inputs = {each.id: each.get_io_type() for each in schemas[node].inputs}
        outputs = [each.get_io_type() for each in schemas[node].outputs]
        assert sockets["inputs"].items() <= {name: kind for name, kind in inputs.items()}.items() | {
            (name, old) for name, kind in inputs.items() for old, new in renamed.items() if new == kind}
        assert outputs[:len(sockets["outputs"])] == [renamed.get(kind, kind) for kind in sockets["outputs"]]
