"""The templates of all sentences that the server says to the page, read from the source.

A sentence is a text or an f-string of the files below; what is filled in has a name, as in "{name} is empty". Where a
choice stands in it ("{'clip' if ... else 'picture'}"), each outcome is a template of its own.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SPOKEN = ("nodes/page/asking.py", "nodes/page/clip_progress.py", "nodes/page/datasets.py", "nodes/page/live.py",
          "nodes/page/places.py", "nodes/page/runs.py", "nodes/cache.py", "nodes/dataset.py", "nodes/load_run.py",
          "nodes/lora.py", "nodes/backend/applied.py", "nodes/media/likeness.py", "nodes/backend/paths.py",
           "nodes/export_job.py", "nodes/backend/quantised_linear.py", "trainer/base",
          "trainer/settings/data.py", "trainer/memory/choice.py", "trainer/model/family.py", "trainer/memory/plan.py",
          "trainer/data", "trainer/encoded", "trainer/lora/keys.py", "trainer/runs/folder.py",
          "trainer/runs/reading.py", "trainer/runs/history.py", "trainer/training/experts.py",
           "trainer/training/batch_size.py", "trainer/training/memory.py",
          "trainer/training/retry.py")
"""Files and folders whose sentences may reach the page: answers of routes, notes, reasons, texts in nodes."""

SILENT = {"compile", "Input", "Output", "Schema", "execute", "executemany", "rows", "write", "take_over", "debug",
          "get", "post", "info", "say", "ValueError", "RuntimeError", "TypeError", "DaemonPool", "getLogger", "search"}
"""Calls whose arguments are not said to the page: patterns, schemas, queries, addresses, the log."""

_NOT_SAID = re.compile(r"CREATE TABLE|DELETE FROM|INSERT OR|SELECT |max-age|^step \{|^lokr_|^[\w/{}.-]*$|\||T2V$"
                       r"|Pillow \{|^ *[\w-]+ ?[:=] ?\{\w+\}$|\[\w|^/|\\\\")
"""Queries, headers, lines of the log, keys and names."""

_WORD = re.compile(r"[A-Za-z]{3,}")

GLUE = ("{files}: {remark}", "{first}, {second}, {third} and {value} more", "{verb} {kind} {done} of {total}{eta}",
        "{verb} {number} of {num_clips}: {label}", "{number} files", "1 file", "encoding", "sampling", "decoding",
        "captions", "latents", "masks", "copying", "data", "cache")
"""How sentences are put together, and single words in them: too short to be told from names and keys."""

_VALUES = {"trigger word", "file name", "leave out", "hold out", "early stop", "(the lora input)",
           "first frame", "first and last frame"}
"""Of widgets and records."""


def templates() -> dict[str, str]:
    """Each template with the file that says it first, in the order of the files."""
    found: dict[str, str] = {}
    for path in _files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for template in _spoken(tree):
            found.setdefault(template.strip(), path.relative_to(ROOT).as_posix())
    return {**found, **dict.fromkeys(GLUE, "")}


def _files() -> Iterator[Path]:
    for name in SPOKEN:
        place = ROOT / name
        yield from [place] if place.is_file() else sorted(place.glob("*.py"))


def _spoken(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.JoinedStr, ast.Constant)):
        if isinstance(node, ast.JoinedStr) or isinstance(node.value, str):
            yield from filter(_is_sentence, _alternatives(node))
        return
    if isinstance(node, ast.Call) and _name(node.func) in SILENT:
        return
    if isinstance(node, ast.Assign) and any(_name(target).isupper() and "FORMAT" not in _name(target)
                                            and not _name(target).startswith("FROM") for target in node.targets):
        return
    for child in ast.iter_child_nodes(node):
        is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if not is_docstring:
            yield from _spoken(child)


def _alternatives(node: ast.expr) -> list[str]:
    """What a text or f-string may be, with {names} for what is filled in."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.IfExp):
        return [*_alternatives(node.body), *_alternatives(node.orelse)]
    if isinstance(node, ast.JoinedStr):
        parts = [[(part.value, None)] if isinstance(part, ast.Constant) else _filled(part) for part in node.values]
        return [_numbered(each) for each in itertools.product(*parts)]
    return [f"{{{_name(node)}}}"]


def _filled(part: ast.FormattedValue) -> list[tuple[str, str | None]]:
    if isinstance(part.value, ast.IfExp) and not part.format_spec:
        return [(each, None) for each in _alternatives(part.value)]
    return [("", _name(part.value))]


def _numbered(parts) -> str:
    text, seen = "", {}
    for literal, name in parts:
        if name is None:
            text += literal
        else:
            seen[name] = seen.get(name, 0) + 1
            text += f"{{{name}{seen[name] if seen[name] > 1 else ''}}}"
    return text


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_") or "value"
        case ast.Call(func=func, args=[first, *_]) if _name(func) in ("len", "str", "round", "repr"):
            return _name(first)
        case ast.Call(func=func):
            return _name(func)
        case ast.Subscript(value=value):
            return _name(value)
    return "value"


def _is_sentence(text: str) -> bool:
    words = re.sub(r"\{\w+\}", "", text)
    return " " in text.strip() and _WORD.search(words) is not None and not (
        _NOT_SAID.search(text) or text in _VALUES or "%s" in text)
