"""The article's 31,200 steps on a tiny model: memory flat, log and checkpoints bounded, the pace the same."""

import json
import statistics
from pathlib import Path

import pytest

from wantune.tests.support import tools
from wantune.trainer.data import scan
from wantune.trainer.encoded.fill import fill
from wantune.trainer.encoded.store import Store
from wantune.trainer.settings.data import DatasetConfig
from wantune.trainer.settings.training import LoraConfig, TrainConfig, ValidationConfig

pytestmark = [pytest.mark.usefixtures("comfy"), pytest.mark.long]

STEPS = 31_200
WARM = 2_000
"""Steps until allocators and caches have what they need."""


def resident() -> int:
    """Bytes this process holds."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory from /proc")
def test_the_articles_run(tmp_path, monkeypatch):
    import folder_paths

    from wantune.nodes.backend.encoders import CaptionEncoder, WanCodec
    from wantune.nodes.train import train

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    folder = tools.write_pictures(tmp_path / "data")
    config = DatasetConfig(folder=str(folder), resolution=64, num_repeats=10, trigger_word="zwx", validation_items=1)
    encoders = WanCodec(tools.load_vae()), {"text": CaptionEncoder(tools.load_clip())}
    cached = tools.drained(fill(scan.scan(config), Store(tmp_path / "cache"), *encoders))[1]
    model = tools.load_dit(tools.random_dit(tmp_path, dim=128, ffn_dim=128, layers=1))
    memory, seconds = [], []

    def look(event) -> None:
        if type(event).__name__ == "StepDone":
            seconds.append(event.seconds)
            if event.step % 100 == 0:
                memory.append(resident())

    watch = tools.Watch(look)
    watch.events = Forgetful()
    settings = TrainConfig(epochs=10**6, max_steps=STEPS, learning_rate=1e-4, lora=LoraConfig(rank=4),
                           gradient_checkpointing=False,
                           validation=ValidationConfig(every_steps=500, evaluate_steps=1000, every_epochs=0,
                                                       evaluate_epochs=0))
    _, losses, run = train(model, cached, "article", settings, watch)
    growth = (memory[-1] - memory[WARM // 100]) / 2**20
    first, last = (statistics.median(part) for part in (seconds[WARM:WARM + 2000], seconds[-2000:]))
    log = Path(run, "log.jsonl")
    print(f"{STEPS} steps: memory {growth:+.1f} MiB after warm-up, step {1000 * first:.2f} ms at the start and "
          f"{1000 * last:.2f} ms at the end ({last / first:.3f}), log {log.stat().st_size / 2**20:.1f} MiB")
    assert len(losses) == STEPS and growth <= 20 and last / first <= 1.05
    assert len(list(Path(run).glob("step_*"))) <= 4
    lines = log.read_text().splitlines()
    assert len(lines) <= STEPS * 1.01 and json.loads(lines[-1])["reason"] == "done"


class Forgetful(list):
    """Keeps no events."""

    def append(self, _event) -> None:
        pass
