"""Rate curves as SVG, without a plotting library: the reports have to open anywhere.

Belongs here: drawing. What is drawn comes from `sfic.evaluation.run`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Line", "rate_plot"]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = (
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#7f7f7f",
    "#8c564b",
)
WIDTH, HEIGHT = 680, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 150, 34, 48


@dataclass(frozen=True)
class Line:
    """A curve: its name, the line through its best points, and all its points, as (bytes, value).

    `band`: a confidence band as (bytes, low, high), if there is one.
    """

    name: str
    best: Sequence[tuple[float, float]]
    points: Sequence[tuple[float, float]] = ()
    band: Sequence[tuple[float, float, float]] = ()

    def up_to(self, value: float) -> Line:
        """Without what lies above a value."""
        return Line(
            self.name,
            [p for p in self.best if p[1] <= value],
            [p for p in self.points if p[1] <= value],
            [(size, low, min(high, value)) for size, low, high in self.band if low <= value],
        )


def rate_plot(
    title: str,
    lines: Sequence[Line],
    note: str = "",
    up_to: float = math.inf,
    axis: str = "bytes a face",
) -> str:
    """An SVG of values over the logarithm of bytes, or of what else `axis` names.

    Values above `up_to`, and lines without a point, are left out.
    """
    shown = [line.up_to(up_to) for line in lines]
    shown = [line for line in shown if line.best]
    everything = [p for line in shown for p in (*line.best, *line.points)]
    everything += [(b, v) for line in shown for b, *lows in line.band for v in lows]
    everything = [(b, v) for b, v in everything if math.isfinite(v) and b > 0] or [(100, 0.0)]
    low, high = min(b for b, _ in everything), max(b for b, _ in everything)
    low, high = low / 1.1, high * 1.1
    ticks = nice_ticks(min(v for _, v in everything), max(v for _, v in everything))

    def x(size: float) -> float:
        return LEFT + math.log(size / low) / math.log(high / low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in ticks:
        out.append(_grid(LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        out.append(_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    for number in byte_ticks(low, high):
        out.append(_grid(x(number), TOP, x(number), HEIGHT - BOTTOM))
        out.append(_text(x(number), HEIGHT - BOTTOM + 16, f"{number:,}", "middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(_text(middle, HEIGHT - 10, f"{axis}{note and ' – '}{note}", "middle"))
    for number, line in enumerate(shown):
        colour = COLOURS[number % len(COLOURS)]
        if line.band:
            edge = [(b, lo) for b, lo, _ in line.band] + [(b, hi) for b, _, hi in line.band[::-1]]
            corners = " ".join(f"{x(b):.1f},{y(v):.1f}" for b, v in edge if math.isfinite(v))
            out.append(f'<polygon points="{corners}" fill="{colour}" fill-opacity="0.15"/>')
        for size, value in line.points:
            if math.isfinite(value):
                out.append(_dot(x(size), y(value), 2, colour, 0.45))
        path = " ".join(f"{x(b):.1f},{y(v):.1f}" for b, v in line.best)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.extend(_dot(x(b), y(v), 3, colour, 1.0) for b, v in line.best)
        legend = TOP + 12 + 18 * number
        out.append(_dot(WIDTH - RIGHT + 16, legend - 4, 4, colour, 1.0))
        out.append(_text(WIDTH - RIGHT + 26, legend, line.name, "start"))
    out.append("</svg>")
    return "\n".join(out)


def nice_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values, evenly spaced, around `low` .. `high`."""
    span = max(high - low, 1e-6, 1e-6 * abs(high))
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * power for s in (1, 2, 5, 10) if span / (s * power) <= about)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def byte_ticks(low: float, high: float) -> list[int]:
    """1, 2, 5 times powers of ten between two numbers of bytes."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [round(m * 10.0**p) for p in powers if p >= 0 for m in (1, 2, 5)]
    return [t for t in ticks if low <= t <= high]


def _grid(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _dot(x: float, y: float, radius: float, colour: str, opacity: float) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="{opacity}"/>'
    )
