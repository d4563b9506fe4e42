"""Rate curves: the best a codec reaches with a number of bytes, and Bjontegaard rates.

Belongs here: arithmetic on points of mean bytes and a value. Not here: where the points come from
(`sfic.evaluation.run`), what the values mean (`sfic.evaluation.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfic.errors import InvalidInput

__all__ = ["BdRate", "along", "bd_rate", "best_at", "bytes_for", "front", "interval"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class BdRate:
    """Mean difference of bytes at equal quality, in % (below 0: fewer bytes than the anchor).

    It holds between the qualities `low` and `high`, which both curves cover; `covered` is the part
    of the anchor's own range of quality that lies between them.
    """

    percent: float
    low: float
    high: float
    covered: float


def front(
    sizes: Sequence[float] | Floats, values: Sequence[float] | Floats, higher_is_better: bool
) -> list[tuple[float, float]]:
    """The points (bytes, value) that no other point beats with as few bytes, by rising bytes."""
    sign = 1.0 if higher_is_better else -1.0
    points = sorted(
        zip(map(float, sizes), map(float, values), strict=True), key=lambda p: (p[0], -sign * p[1])
    )
    best: list[tuple[float, float]] = []
    for size, value in points:
        if math.isfinite(value) and (not best or sign * value > sign * best[-1][1]):
            best.append((size, value))
    return best


def best_at(
    sizes: Sequence[float] | Floats,
    values: Sequence[float] | Floats,
    budget: float,
    higher_is_better: bool,
) -> float | None:
    """The best value that a codec's settings reach with `budget` bytes on average.

    Of the points that fit the budget the best, or what lies on the line (over the logarithm of
    bytes) from it to the next better point that no longer fits. None if even the smallest point is
    larger than the budget. With more bytes than the largest point has, its value stays.
    """
    return along(front(sizes, values, higher_is_better), budget)


def along(points: Sequence[tuple[float, float]], budget: float) -> float | None:
    """`best_at` on a `front`."""
    below = [p for p in points if p[0] <= budget]
    if not below:
        return None
    low = below[-1]
    if len(below) == len(points):
        return low[1]
    high = points[len(below)]
    share = math.log(budget / low[0]) / math.log(high[0] / low[0])
    return low[1] + share * (high[1] - low[1])


def bytes_for(
    sizes: Sequence[float] | Floats,
    values: Sequence[float] | Floats,
    wanted: float,
    higher_is_better: bool,
) -> float | None:
    """The fewest bytes at which `best_at` is as good as `wanted`; None if it never is."""
    sign = 1.0 if higher_is_better else -1.0
    points = front(sizes, values, higher_is_better)
    for i, (size, value) in enumerate(points):
        if sign * value >= sign * wanted:
            if i == 0:
                return size
            low, before = points[i - 1]
            share = (wanted - before) / (value - before)
            return float(low * (size / low) ** share)
    return None


def bd_rate(
    anchor: tuple[Sequence[float] | Floats, Sequence[float] | Floats],
    test: tuple[Sequence[float] | Floats, Sequence[float] | Floats],
    higher_is_better: bool,
) -> BdRate | None:
    """Bjontegaard's delta rate of `test` against `anchor`, each (bytes, values).

    The logarithm of bytes as a function of quality is interpolated through each curve's front by
    monotone piecewise cubics (Fritsch and Carlson 1980, as in JVET's reporting template) and
    integrated over the qualities that both cover. None when they share none, or a front has fewer
    than two points.
    """
    curves = []
    for sizes, values in (anchor, test):
        points = front(sizes, values, higher_is_better)
        if len(points) < 2:
            return None
        logs, quality = np.log(np.array(points)[:, 0]), np.array(points)[:, 1]
        order = np.argsort(quality)
        curves.append((quality[order], logs[order]))
    low = max(float(quality[0]) for quality, _ in curves)
    high = min(float(quality[-1]) for quality, _ in curves)
    if not high > low:
        return None
    theirs, ours = (_integral(quality, logs, low, high) for quality, logs in curves)
    span = float(curves[0][0][-1] - curves[0][0][0])
    percent = 100 * (math.exp((ours - theirs) / (high - low)) - 1)
    return BdRate(percent, low, high, (high - low) / span)


def interval(replicates: Floats, value: float, jackknife: bool = False) -> tuple[float, float]:
    """95 % interval of `value` from its replicates: bootstrap quantiles, or the jackknife's error.

    Replicates that are not numbers (a curve that did not reach) are left out; (nan, nan) when more
    than one in twenty are.
    """
    there = replicates[np.isfinite(replicates)]
    if len(there) < 0.95 * len(replicates) or not len(there):
        return math.nan, math.nan
    if jackknife:
        count = len(there)
        error = math.sqrt((count - 1) * float(np.var(there)))
        return value - 1.96 * error, value + 1.96 * error
    low, high = np.quantile(there, (0.025, 0.975))
    return float(low), float(high)


def _slopes(x: Floats, y: Floats) -> Floats:
    """Derivatives at the knots that keep a piecewise cubic monotone (Fritsch and Butland 1984)."""
    step = np.diff(x)
    slope = np.diff(y) / step
    if len(x) == 2:
        return np.repeat(slope, 2)
    inner = np.zeros(len(x) - 2)
    same = slope[:-1] * slope[1:] > 0
    left, right = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    inner[same] = ((left + right)[same]) / (
        left[same] / slope[:-1][same] + right[same] / slope[1:][same]
    )
    ends = [
        _end_slope(step[0], step[1], slope[0], slope[1]),
        _end_slope(step[-1], step[-2], slope[-1], slope[-2]),
    ]
    return np.concatenate((ends[:1], inner, ends[1:]))


def _end_slope(near: float, far: float, slope: float, other: float) -> float:
    """One-sided three-point derivative, kept from overshooting."""
    value = ((2 * near + far) * slope - near * other) / (near + far)
    if value * slope <= 0:
        return 0.0
    if slope * other <= 0 and abs(value) > 3 * abs(slope):
        return 3 * slope
    return float(value)


def _integral(x: Floats, y: Floats, low: float, high: float) -> float:
    """Of the monotone piecewise cubic through (x, y), x rising, from `low` to `high`."""
    if (np.diff(x) <= 0).any():
        raise InvalidInput("the knots of a curve must rise")
    slopes = _slopes(x, y)
    total = 0.0
    for i, width in enumerate(np.diff(x)):
        a, b = (min(max((edge - x[i]) / width, 0.0), 1.0) for edge in (low, high))
        if b <= a:
            continue
        # Hermite form on [0, 1], as a polynomial in t.
        m0, m1 = slopes[i] * width, slopes[i + 1] * width
        cubic = np.array(
            [2 * y[i] - 2 * y[i + 1] + m0 + m1, -3 * y[i] + 3 * y[i + 1] - 2 * m0 - m1, m0, y[i]]
        )
        antiderivative = np.polyint(cubic)
        total += width * float(np.polyval(antiderivative, b) - np.polyval(antiderivative, a))
    return total
