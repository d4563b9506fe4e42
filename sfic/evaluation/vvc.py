"""The anchor: VVC that may downscale, at its best setting for the bytes.

Belongs here: reading the VVC bitstreams of the dev pictures, judging them, and the best value of a
measure at a number of bytes. Not here: the judges themselves, other codecs, plots.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from sfic.errors import InvalidInput
from sfic.evaluation.judges import WORKING_SIZE, Judges

__all__ = [
    "HIGHER_IS_BETTER",
    "MEASURES",
    "Point",
    "Stream",
    "best_at",
    "decode",
    "judge",
    "read_judged",
    "read_streams",
]

# Measures of a point, and how pictures are summed up: as in the shared table, all are means but the
# landmark error, which is a median.
HIGHER_IS_BETTER = {
    "identity": True,
    "identity_dlib": True,
    "vgg": False,
    "landmarks": False,
    "found": True,
    "psnr": True,
}
MEASURES = tuple(HIGHER_IS_BETTER)
# The measures' names in `dev_judged.json`.
_JUDGED_NAMES = {
    "identity": "id",
    "identity_dlib": "id_dlib",
    "vgg": "vgg",
    "landmarks": "lm",
    "found": "found",
    "psnr": "psnr",
}


@dataclass(frozen=True)
class Stream:
    """One coded picture: `size` px at `qp`; `bytes_vcl` leaves parameter sets and SEI out."""

    image: str
    size: int
    qp: int
    path: Path
    bytes_total: int
    bytes_vcl: int


@dataclass(frozen=True)
class Point:
    """One setting over a set of pictures: mean bytes (VCL), and the value of each measure."""

    size: int
    qp: int
    bytes: float
    values: Mapping[str, float]


def read_streams(folder: Path) -> list[Stream]:
    """All streams that `dev.csv` in `folder` lists. Raises InvalidInput if it is not there."""
    index = folder / "dev.csv"
    if not index.is_file():
        raise InvalidInput(f"no VVC index at {index}")
    with index.open(newline="") as file:
        return [
            Stream(
                row["image"],
                int(row["size"]),
                int(row["qp"]),
                folder / "dev" / row["file"],
                int(row["bytes_total"]),
                int(row["bytes_vcl"]),
            )
            for row in csv.DictReader(file)
        ]


def decode(stream: Stream, size: int = WORKING_SIZE) -> NDArray[np.uint8]:
    """Decoded RGB uint8 [size, size, 3], scaled up bicubically."""
    try:
        with av.open(str(stream.path), format="vvc") as container:
            frame = next(container.decode(video=0))
            rgb = frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, StopIteration) as error:
        raise InvalidInput(f"cannot decode {stream.path.name}: {error}") from error
    scaled = cv2.resize(rgb, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(scaled, dtype=np.uint8)


def judge(
    streams: Iterable[Stream], references: Mapping[str, NDArray[np.uint8]], judges: Judges
) -> Point:
    """Judge one setting: `streams` of the same size and QP; `references` by image name, 512 px."""
    chosen = list(streams)
    if len({(s.size, s.qp) for s in chosen}) != 1:
        raise InvalidInput("a point needs streams of one size and one QP")
    reference = np.stack([references[s.image] for s in chosen])
    result = judges.compare(reference, np.stack([decode(s) for s in chosen]))
    values = {name: float(np.mean(getattr(result, name))) for name in MEASURES}
    values["landmarks"] = float(np.median(result.landmarks))
    mean_bytes = float(np.mean([s.bytes_vcl for s in chosen]))
    return Point(chosen[0].size, chosen[0].qp, mean_bytes, values)


def read_judged(folder: Path, images: Iterable[str] | None = None) -> list[Point]:
    """Points from `dev_judged.json`, the figures that came with the streams, over `images`.

    By default over all images of a setting. Settings that lack one of the images are left out: a
    mean over the small ones alone would flatter them. The landmark error is a median.
    """
    file = folder / "dev_judged.json"
    if not file.is_file():
        raise InvalidInput(f"no judged VVC points at {file}")
    rows = json.loads(file.read_text())
    wanted = set(images) if images is not None else {row["image"] for row in rows}
    settings: dict[tuple[int, int], list[dict[str, float]]] = {}
    for row in rows:
        if row["image"] in wanted:
            settings.setdefault((int(row["size"]), int(row["qp"])), []).append(row)
    points = []
    for (size, qp), chosen in sorted(settings.items()):
        if len(chosen) != len(wanted):
            continue
        values = {
            name: float(np.mean([row[theirs] for row in chosen]))
            for name, theirs in _JUDGED_NAMES.items()
        }
        values["landmarks"] = float(np.median([row["lm"] for row in chosen]))
        mean_bytes = float(np.mean([float(row["bytes_vcl"]) for row in chosen]))
        points.append(Point(size, qp, mean_bytes, values))
    return points


def best_at(points: Iterable[Point], measure: str, budget: float) -> float | None:
    """The best value of `measure` that VVC reaches with `budget` bytes on average.

    Of the points that fit the budget the best, or what lies on the line (over the logarithm of
    bytes, which favours VVC) from it to the next better point that no longer fits. None if even the
    smallest point is larger than the budget.
    """
    if measure not in HIGHER_IS_BETTER:
        raise InvalidInput(f"no measure {measure}: one of {', '.join(MEASURES)}")
    sign = 1.0 if HIGHER_IS_BETTER[measure] else -1.0
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p.bytes, -sign * p.values[measure])):
        value = sign * point.values[measure]
        if not front or value > front[-1][1]:
            front.append((point.bytes, value))
    below = [f for f in front if f[0] <= budget]
    if not below:
        return None
    low = below[-1]
    if len(below) == len(front):
        return sign * low[1]
    high = front[len(below)]
    share = math.log(budget / low[0]) / math.log(high[0] / low[0])
    return sign * (low[1] + share * (high[1] - low[1]))
