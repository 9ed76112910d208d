"""Line charts of shares as SVG, written by hand: a few panels beside each other, and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
"""Okabe and Ito's, which also the colour-blind tell apart."""
WIDTH, HEIGHT, LEFT, TOP, GAP, LINE = 330, 220, 44, 44, 56, 18
"""Of a panel's axes, what is around them, and a line of the legend, in pixels."""

Point = tuple[float, float, float, float]
"""x, the share y, and the least and the most that it may be."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of shares from 0 to 1."""

    title: str
    axis: str
    lines: Mapping[str, Sequence[Point]]


def drawn(title: str, panels: Sequence[Panel]) -> str:
    """The document; the same name has the same colour in all panels."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    width = LEFT + len(panels) * (WIDTH + GAP)
    height = TOP + HEIGHT + 44 + LINE * len(names)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}" font-family="sans-serif" font-size="12">',
             f'<title>{escape(title)}</title>', f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({LEFT + number * (WIDTH + GAP)} {TOP})">', *_panel(panel, colors), "</g>"]
    for number, name in enumerate(names):
        y = TOP + HEIGHT + 50 + LINE * number
        parts += [f'<path d="M{LEFT} {y}h24" stroke="{colors[name]}" stroke-width="2"/>',
                  f'<text x="{LEFT + 32}" y="{y + 4}">{escape(name)}</text>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, colors: Mapping[str, str]) -> list[str]:
    most = max(x for points in panel.lines.values() for x, *_ in points) or 1
    parts = [f'<text y="-14" font-weight="bold">{escape(panel.title)}</text>',
             f'<text x="{WIDTH}" y="{HEIGHT + 34}" text-anchor="end">{escape(panel.axis)}</text>']
    for tenth in range(0, 11, 2):
        y = HEIGHT - HEIGHT * tenth / 10
        parts += [f'<path d="M0 {y:g}H{WIDTH}" stroke="#dddddd"/>',
                  f'<text x="-8" y="{y + 4:g}" text-anchor="end">{tenth / 10:g}</text>']
    for x in sorted({0, most / 2, most}):
        parts.append(f'<text x="{WIDTH * x / most:g}" y="{HEIGHT + 16}" text-anchor="middle">{x:g}</text>')
    for name, points in panel.lines.items():
        at = [(WIDTH * x / most, *(HEIGHT * (1 - share) for share in shares)) for x, *shares in sorted(points)]
        band = [(x, low) for x, _, low, _ in at] + [(x, high) for x, _, _, high in reversed(at)]
        color = colors[name]
        parts += [f'<polygon points="{_places(band)}" fill="{color}" fill-opacity="0.1"/>',
                  f'<polyline points="{_places([(x, y) for x, y, *_ in at])}" fill="none" stroke="{color}" '
                  'stroke-width="2"/>']
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y, *_ in at]
    return parts


def _places(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
