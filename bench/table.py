"""The figures of gpu.py on disk: JSON that a later run adds to, and tables of the same for people."""

import json
from pathlib import Path

import host

MISSING = "-"
COLUMNS = {
    "ms a step": "ms a step", "share": "share of the rate", "share, with what is computed again": "with what is again",
    "peak, GiB": "peak, GiB", "plan / peak": "plan / peak", "start-up, s": "start-up, s",
}
"""Of a plan, by their titles in the table."""


class Results:
    """What is measured so far; each `add` writes it.

    Figures of another version, device or card in the same file are not kept.
    """

    def __init__(self, options, machine: dict) -> None:
        self._options, self._machine = options, machine
        found = _read(options.out or host.result_path("gpu", machine))
        found = found if found.get("machine") == machine else {}
        self._figures = {kind: found.get(kind, {}) for kind in ("cases", "cache")}

    def has(self, kind: str, title: str) -> bool:
        """Whether a case or a filled cache is measured already."""
        return title in self._figures[kind]

    def add(self, kind: str, title: str, figures: dict) -> None:
        """Write it down; the table lies beside the JSON, as .md."""
        self._figures[kind][title] = figures
        print(title, *(f"  {key}: {value}" for key, value in figures.items()), sep="\n", flush=True)
        path = host.write(self._options, "gpu", self._machine, self._figures)
        path.with_suffix(".md").write_text(tables(self._machine, self._figures), encoding="utf-8")


def tables(machine: dict, figures: dict) -> str:
    """Three tables in markdown: ours under each plan, rivals, and filling the cache."""
    lines = [", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += _table(["case", "plan", *COLUMNS.values()], [
        [title, plan, *(found.get(key, MISSING) for key in COLUMNS)] if "ms a step" in found else
        [title, plan, next(iter(found)), *[MISSING] * (len(COLUMNS) - 1)]
        for title, case in figures["cases"].items() for plan, found in case["plans"].items()])
    lines += _table(["case", "rival", "ms a step", "peak, GiB", "ours is faster by"], [
        [title, rival, found.get("ms a step", "out of memory"), found.get("peak, GiB", MISSING),
         found.get("ours is faster by", MISSING)]
        for title, case in figures["cases"].items() for rival, found in case.get("rivals", {}).items()])
    lines += _table(["cache", "figure", "value"], [
        [title, key, value] for title, found in figures["cache"].items() for key, value in found.items()])
    return "\n".join(lines)


def _table(head: list[str], rows: list[list]) -> list[str]:
    if not rows:
        return []
    cells = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells] + [""]


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
