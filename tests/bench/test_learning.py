"""bench/learning.py in small: it trains, examines, goes on where it was killed, and draws what it found."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from wantune.tests.support.tools import WORLD

pytestmark = pytest.mark.usefixtures("comfy")

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def learning(monkeypatch):
    """bench/learning.py, whose neighbours are found as where it is started."""
    monkeypatch.syspath_prepend(BENCH)
    from wantune.bench import learning

    return learning


def test_a_run_that_was_killed_goes_on_and_gives_the_same(learning, tmp_path):
    from wantune.bench.variants import variants

    options = Namespace(world=WORLD, work=tmp_path, n=2, seeds=1, toy=True)
    chosen = [replace(variant, visits=(4, 8)) for variant in variants() if variant.name == "default"]

    def found() -> list[dict]:
        return list(learning.taught(options, {"wantune": "this"}, chosen, learning.Records(options)))

    first = found()
    assert [(each["variant"], each["step"]) for each in first] == [("base", 0), ("default", 1), ("default", 2)]
    assert first[0]["learned"] == first[0]["drift"] == 0 < first[2]["drift"]
    assert found() == []
    (lines,) = tmp_path.rglob("records.jsonl")
    kept = lines.read_text().splitlines()
    lines.write_text("\n".join(kept[:-1]) + "\n" + kept[-1][:40])
    (again,) = found()
    seconds = again.pop("seconds")
    assert seconds == first[2].pop("seconds") and again == first[2]
    options.n = 3
    assert learning.Records(options).found == [], "another examination"


def test_every_variant_is_one_of_this_version_or_says_what_is_missing(comfy):
    from wantune.bench.variants import Unavailable, variants

    every = list(variants())
    assert len({variant.name for variant in every}) == len(every)
    missing = []
    for variant in every:
        try:
            config = variant.config(seed=3)
        except Unavailable as error:
            missing.append(f"{variant.name}: {error}")
            continue
        assert config.seed == 3 and config.max_steps == variant.steps[-1]
        assert all(step % config.validation.every_steps == 0 for step in variant.steps)
    assert all("preserve" in told or "dora" in told for told in missing)


def record(variant: str, seed: int, step: int, nines: float, kept: float) -> dict:
    def frames(share: float) -> list[float]:
        return [1.0] * round(10 * share) + [0.0] * round(10 * (1 - share))

    return {"variant": variant, "seed": seed, "step": step, "visits": 4 * step, "seconds": 0.1 * step,
            "learned": nines / 2, "drift": 1 - kept, "concept": {"frames": frames(nines), "color": 9, "direction": 10},
            "others": {"frames": frames(kept), "color": 10, "direction": 10}}


def test_figures_tables_and_plots(comfy, tmp_path):
    from wantune.bench import learning_report
    from wantune.bench.variants import variants

    records = [record("base", 0, 0, 0.0, 1.0), record("default", 0, 100, 0.2, 0.9), record("default", 1, 100, 0.4, 0.7),
               record("default", 0, 200, 0.6, 0.5), record("rank 4", 0, 100, 0.1, 0.9)]
    figures = json.loads(json.dumps(learning_report.figures(records, list(variants()))))
    default = figures["variants"]["default"]["steps"]
    assert default["100"]["nines"] == 0.3 and default["100"]["nines of each seed"] == [0.2, 0.4]
    low, high = default["100"]["nines, interval"]
    assert low == pytest.approx(0.1455, abs=1e-3) and high == pytest.approx(0.5190, abs=1e-3)  # Wilson, 6 of 20
    assert default["200"]["damage"] == 0.5 and default["200"]["color"] == 0.9
    told = figures["rank correlation"]
    assert (told["checkpoints"], told["runs"], told["learned with nines"]) == (4, 3, 1.0)
    assert "| rank 4 | 100 | 400 | 10 | 1 | 0.10 (" in learning_report.table(figures)
    learning_report.draw(figures, tmp_path)
    drawing = ElementTree.parse(tmp_path / "ranks.svg").getroot()
    texts = [each.text for each in drawing.iter() if each.tag.endswith("text")]
    assert {"default", "rank 4", "frames with the nine"} <= set(texts)
    lines = [each.get("points") for each in drawing.iter() if each.tag.endswith("polyline")]
    assert len(lines) == 4 and len(lines[0].split()) == 3
