"""The records of learning.py as figures, as a table and as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..tests.world.concept import interval
from . import svg
from .variants import Variant

BASE, DEFAULT = "base", "default"
MEASURES = {"nines": "concept", "kept": "others"}
"""Shares of frames by the group of videos that they are of."""


def figures(records: Sequence[dict], variants: Sequence[Variant]) -> dict:
    """Of each variant and step: shares with their confidence intervals over all videos, and the mean of each seed."""
    base = next(record for record in records if record["variant"] == BASE)
    found = {BASE: {"group": "", "steps": {"0": _of_step([base], base)}}}
    for variant in variants:
        of_variant = [record for record in records if record["variant"] == variant.name]
        steps = {str(step): _of_step([record for record in of_variant if record["step"] == step], base)
                 for step in sorted({record["step"] for record in of_variant})}
        if steps:
            found[variant.name] = {"group": variant.group, "steps": steps}
    return {"variants": found, "rank correlation": correlations(records, base)}


def _of_step(records: Sequence[dict], base: dict) -> dict:
    result = {"visits": records[0]["visits"], "seeds": len(records),
              "seconds": round(sum(record["seconds"] for record in records) / len(records), 1)}
    for name, group in MEASURES.items():
        of_seeds = [_share(record, group) for record in records]
        every = [value for record in records for value in record[group]["frames"]]
        result |= {name: round(sum(of_seeds) / len(of_seeds), 4),
                   f"{name}, interval": [round(edge, 4) for edge in interval(every)],
                   f"{name} of each seed": [round(share, 4) for share in of_seeds]}
    videos = sum(len(record["concept"]["frames"]) for record in records)
    result |= {name: round(sum(record["concept"][name] for record in records) / videos, 4)
               for name in ("color", "direction")}
    for name in ("learned", "drift"):  # where a checkpoint is not kept, a new definition of a meter leaves it unknown
        known = [record[name] for record in records if record[name] is not None]
        result[name] = round(sum(known) / len(known), 4) if known else None
    return {**result, "damage": round(_share(base, "others") - result["kept"], 4)}


def _share(record: dict, group: str) -> float:
    return sum(record[group]["frames"]) / len(record[group]["frames"])


def correlations(records: Sequence[dict], base: dict) -> dict:
    """Spearman's rank correlation of both meters with what the classifier saw, over all checkpoints."""
    from scipy.stats import spearmanr

    measured = [record for record in records if record["variant"] != BASE and record["learned"] is not None]
    if len(measured) < 3:
        return {}
    nines = [_share(record, "concept") for record in measured]
    damage = [_share(base, "others") - _share(record, "others") for record in measured]

    def with_meter(name: str, seen: list[float]) -> float:
        return round(float(spearmanr([record[name] for record in measured], seen).statistic), 3)

    return {"checkpoints": len(measured), "runs": len({(each["variant"], each["seed"]) for each in measured}),
            "learned with nines": with_meter("learned", nines), "drift with damage": with_meter("drift", damage)}


def table(found: dict) -> str:
    """As Markdown: a line for each variant and step."""
    lines = ["| | steps | pictures seen | seconds | seeds | nines | kept | colour | direction | learned | drift |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for name, variant in found["variants"].items():
        for step, of in variant["steps"].items():
            shares = (f"{of[each]:.2f} ({', '.join(f'{edge:.2f}' for edge in of[f'{each}, interval'])})"
                      for each in MEASURES)
            lines.append(
                f"| {name} | {step} | {of['visits']} | {of['seconds']:.0f} | {of['seeds']} | {' | '.join(shares)} | "
                f"{of['color']:.2f} | {of['direction']:.2f} | {_told(of['learned'])} | {_told(of['drift'])} |")
    if found["rank correlation"]:
        lines += ["", "Rank correlation: " + ", ".join(f"{name} {value}" for name, value in
                                                      found["rank correlation"].items()) + "."]
    return "\n".join(lines) + "\n"


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def draw(found: dict, folder: Path) -> None:
    """A file for each group of variants, the default among them: nines and what is kept, by pictures seen."""
    folder.mkdir(parents=True, exist_ok=True)
    variants = found["variants"]
    for group in dict.fromkeys(variant["group"] for variant in variants.values() if variant["group"]):
        shown = {name: variant["steps"].values() for name, variant in variants.items()
                 if name == DEFAULT or variant["group"] == group}
        base = variants[BASE]["steps"]["0"]
        panels = []
        for measure, title in (("nines", "frames with the nine"), ("kept", "frames with another digit that was asked")):
            lines = {name: [(of["visits"], of[measure], *_spread(of, measure)) for of in [base, *steps]]
                     for name, steps in shown.items()}
            panels.append(svg.Panel(title, "pictures seen", lines))
        path = folder / f"{group.replace(', ', '-').replace(' ', '-')}.svg"
        path.write_text(svg.drawn(group, panels), encoding="utf-8")


def _spread(of: dict, measure: str) -> tuple[float, float]:
    """The least and the most of the seeds; of a single seed the confidence interval."""
    seeds = of[f"{measure} of each seed"]
    return tuple(of[f"{measure}, interval"]) if len(seeds) == 1 else (min(seeds), max(seeds))
