"""Machine-task results of many faces, and statistics of them with intervals.

Belongs here: reading fields, tolerant of those that a bundle lacks, and the arithmetic of
`benchmarks.tasks`. Not here: which tasks there are, and what they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sfic.evaluation.curves import interval
from training.data import FaceRow

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.int64]
Statistic = Callable[[Indexes], float]

CLASSES, SKIN = 19, 1
FOLDS = 10
REPLICATES = 1000


@dataclass(frozen=True)
class Basics:
    """Basic layers of some pictures at one rate, and what was read from them (None: an error)."""

    rows: tuple[FaceRow, ...]
    sizes: Floats  # [n]
    results: tuple[Any, ...]

    def of(self, *sets: str) -> Indexes:
        """Indexes of the pictures of some sets."""
        return np.array([i for i, r in enumerate(self.rows) if r.set in sets], np.int64)

    def numbers(self, *path: str) -> Floats:
        """One number a picture, from a field by its path; nan where it is not given."""
        return np.array([number(result, path) for result in self.results], np.float64)

    def arrays(self, name: str) -> dict[int, npt.NDArray[Any]]:
        """A field of arrays, by index of the picture, for those that give it."""
        found = {i: getattr(result, name, None) for i, result in enumerate(self.results)}
        return {i: np.asarray(value) for i, value in found.items() if value is not None}


def number(result: object, path: Sequence[str]) -> float:
    """A field of a result, by attribute names; an estimate stands for its value; nan if absent."""
    value: Any = result
    for name in path:
        value = getattr(value, name, None)
    value = getattr(value, "value", value)
    return float("nan") if value is None else float(value)


@dataclass
class Line:
    """One line of the table."""

    task: str
    data: str
    unit: str
    count: int
    value: float
    low: float
    high: float
    bytes: float
    wanted: str
    met: bool | None
    higher_is_better: bool
    beside: dict[str, float] = field(default_factory=dict)
    by_group: dict[str, dict[str, float]] = field(default_factory=dict)
    vvc: dict[str, Any] = field(default_factory=dict)


class Table:
    """Lines at one rate, made from statistics over pictures, with bootstrap intervals."""

    def __init__(self, basics: Basics, seed: int = 0) -> None:
        self.basics = basics
        self.lines: list[Line] = []
        self.left_out: list[str] = []
        self._rng = np.random.default_rng(seed)

    def add(
        self,
        task: str,
        data: str,
        unit: str,
        units: Sequence[Any] | npt.NDArray[Any],
        statistic: Statistic,
        bytes_of: Indexes,
        wanted: tuple[str, float] | None = None,
        higher_is_better: bool = True,
        groups: Mapping[str, Indexes] | None = None,
        beside: Mapping[str, float] | None = None,
    ) -> None:
        """A line: `statistic` of indexes into `units` (pictures or pairs), all and resampled.

        `bytes_of`: the pictures whose basic layers were read. `groups`: indexes into `units` that
        share a label; those under five are left out.
        """
        count = len(units)
        value = statistic(np.arange(count)) if count else float("nan")
        if not np.isfinite(value):
            self.left_out.append(f"{task}: no {data} picture gives it")
            return
        draws = self._rng.integers(0, count, (REPLICATES, count))
        low, high = interval(np.array([statistic(draw) for draw in draws]), value)
        met = None
        if wanted is not None:
            met = bool(value >= wanted[1] if higher_is_better else value <= wanted[1])
        by_group = {}
        for name, chosen in (groups or {}).items():
            if len(chosen) >= 5 and np.isfinite(statistic(chosen)):
                of_group = self._rng.integers(0, len(chosen), (REPLICATES, len(chosen)))
                spread = np.array([statistic(chosen[draw]) for draw in of_group])
                edges = interval(spread, statistic(chosen))
                by_group[name] = {
                    "count": len(chosen),
                    "value": statistic(chosen),
                    "low": edges[0],
                    "high": edges[1],
                }
        mean_bytes = float(self.basics.sizes[bytes_of].mean())
        self.lines.append(
            Line(
                task,
                data,
                unit,
                count,
                value,
                low,
                high,
                mean_bytes,
                wanted[0] if wanted else "",
                met,
                higher_is_better,
                dict(beside or {}),
                by_group,
            )
        )


def verification(scores: Floats, same: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which pairs [P] are told right, each by the threshold that is best on the other nine folds.

    Folds alternate within the same and within the different pairs, so that each holds its share.
    """
    fold = np.empty(len(scores), np.int64)
    for truth in (False, True):
        fold[same == truth] = np.arange((same == truth).sum()) % FOLDS
    right = np.zeros(len(scores), np.bool_)
    for number_ in range(FOLDS):
        inside = fold == number_
        candidates = np.sort(scores[~inside])
        hits = [((scores[~inside] >= t) == same[~inside]).mean() for t in candidates]
        right[inside] = (scores[inside] >= candidates[int(np.argmax(hits))]) == same[inside]
    return right


def auc(scores: Floats, truth: npt.NDArray[np.bool_]) -> float:
    """Area under the receiver's curve: how often a true one scores higher, ties half."""
    above, below = scores[truth], scores[~truth]
    if not len(above) or not len(below):
        return float("nan")
    difference = above[:, None] - below[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def rank1(gallery: Floats, probes: Floats) -> npt.NDArray[np.bool_]:
    """Whether each probe [N, D] is nearest to its own gallery entry [N, D]."""
    return np.asarray((probes @ gallery.T).argmax(axis=1) == np.arange(len(probes)))


def confusion(found: npt.NDArray[Any], truth: npt.NDArray[np.uint8]) -> Indexes:
    """Counts [19, 19] of true (rows) and found classes; `found`: labels [S, S] or scores
    [19, S, S]."""
    labels = found.argmax(axis=0) if found.ndim == 3 else found
    side = labels.shape[0]
    at = cv2.resize(truth, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)  # cells' middles
    pairs = CLASSES * at.ravel().astype(np.int64) + labels.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def iou(counts: Indexes) -> Floats:
    """Intersection over union of each class [19] that occurs; nan for the others."""
    both = counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    occurs = counts.sum(axis=1) > 0
    return np.where(occurs, np.diag(counts) / np.maximum(both, 1), np.nan)


def by_label(rows: Sequence[FaceRow], *fields: str) -> dict[str, Indexes]:
    """Indexes of rows that share a value of some fields of the index."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        for name in fields:
            if row.fields[name]:
                groups.setdefault(row.fields[name].replace("_", " "), []).append(i)
    return {name: np.array(groups[name]) for name in sorted(groups)}
