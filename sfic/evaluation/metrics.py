"""What is measured of decoded faces: one value a picture, and summaries over a set of pictures.

Belongs here: the metrics' definitions, which judges they need, their sums over pictures and the
replicates that their confidence intervals come from. Not here: running a judge
(`sfic.evaluation.judges`), curves over bytes (`sfic.evaluation.curves`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sfic.errors import InvalidInput
from sfic.evaluation.judges import (
    Judges,
    Pictures,
    Placement,
    kid,
    landmark_error,
    polynomial_kernel,
    psnr256,
)

__all__ = ["METRICS", "Examiner", "Judged", "Metric", "Reference", "SetOfFaces", "metric_named"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

REPLICATES: Final = 1000
_METHOD: Final = "1"  # part of the examiner's fingerprint: raise it when a definition here changes


@dataclass(frozen=True)
class Metric:
    """One measure. `judge`: the network it needs, None for none; `kind`: how pictures sum up;
    `plot_to`: beyond it a value only says that the face is lost.
    """

    name: str
    label: str
    judge: str | None
    higher_is_better: bool
    kind: Literal["mean", "median", "kid"] = "mean"
    decimals: int = 3
    plot_to: float = float("inf")


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("identity", "identity cosine (mobileface)", "mobileface", True),
        Metric("vgg", "VGG distance", "vgg", False),
        Metric(
            "landmarks",
            "68-point error, median % of eye distance",
            "landmarks68",
            False,
            "median",
            2,
            plot_to=25.0,
        ),
        Metric("kid", "KID (EfficientNet-lite0)", "features", False, "kid", 4),
        Metric("rank1", "rank-1 among originals (mobileface)", "mobileface", True),
        Metric("identity_dlib", "identity cosine (dlib)", "dlib", True),
        Metric("rank1_dlib", "rank-1 among originals (dlib)", "dlib", True),
        Metric("found", "face found", None, True),
        Metric("psnr", "PSNR at 256 px, dB", None, True, "mean", 2),
    )
}
# The judge whose vectors a metric is made from once all pictures are there.
_VECTORS: Final = {"rank1": "identity", "rank1_dlib": "identity_dlib", "kid": "features"}


def metric_named(name: str) -> Metric:
    """InvalidInput, listing the metrics, for a name that is none."""
    if name not in METRICS:
        raise InvalidInput(f"no metric {name!r}: one of {', '.join(METRICS)}")
    return METRICS[name]


@dataclass(frozen=True)
class Judged:
    """What the judges say of one decoded picture: values by metric, vectors by what they are of."""

    values: dict[str, float]
    vectors: dict[str, Floats]


@dataclass(frozen=True)
class Reference:
    """An original [1, 512, 512, 3], and all that has to be judged of it only once."""

    picture: Pictures
    place: Placement
    landmarks: Floats | None
    vectors: dict[str, Floats]


class Examiner:
    """Judges decoded pictures of one original at a time, by the metrics whose judges are there.

    `missing`: metrics that were asked for and cannot be measured, and the judge that each lacks.
    """

    def __init__(self, judges: Judges, metrics: Iterable[str] = tuple(METRICS)) -> None:
        """`metrics`: names; InvalidInput for an unknown one."""
        wanted = [metric_named(name) for name in metrics]
        self._judges = judges
        self.missing = {m.name: m.judge for m in wanted if m.judge and not judges.has(m.judge)}
        self.metrics = tuple(m for m in wanted if m.name not in self.missing)
        self._names = {m.name for m in self.metrics}

    @property
    def fingerprint(self) -> str:
        """Changes with the metrics, a judge's weights, or a definition of this module."""
        parts = [_METHOD, *sorted(self._names)]
        for judge in sorted({m.judge for m in self.metrics if m.judge}):
            parts.append(self._judges.digest(judge))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def reference(self, picture: NDArray[np.uint8]) -> Reference:
        """An original, uint8 [512, 512, 3]."""
        batch = picture[None]
        place = self._judges.place(batch)
        wanted = "landmarks" in self._names
        landmarks = self._judges.landmarks68(batch, place) if wanted else None
        return Reference(batch, place, landmarks, self._vectors(batch, place))

    def examine(self, reference: Reference, decoded: Pictures) -> list[Judged]:
        """Decoded pictures uint8 [N, S, S, 3] of one original, each judged."""
        count = len(decoded)
        one = reference.place
        place = Placement(
            np.repeat(one.points, count, 0),
            np.repeat(one.boxes, count, 0),
            np.repeat(one.found, count, 0),
        )
        vectors = self._vectors(decoded, place)
        columns: dict[str, NDArray[Any]] = {}
        for name in ("identity", "identity_dlib"):
            if name in self._names:
                columns[name] = vectors[name] @ reference.vectors[name][0]
        if "vgg" in self._names:
            columns["vgg"] = self._judges.vgg_distance(reference.picture, decoded)
        if reference.landmarks is not None:
            theirs = np.repeat(reference.landmarks, count, 0)
            columns["landmarks"] = landmark_error(theirs, self._judges.landmarks68(decoded, place))
        if "found" in self._names:
            columns["found"] = self._judges.place(decoded).found
        if "psnr" in self._names:
            columns["psnr"] = psnr256(reference.picture, decoded)
        return [
            Judged(
                {name: float(column[i]) for name, column in columns.items()},
                {name: vector[i] for name, vector in vectors.items()},
            )
            for i in range(count)
        ]

    def _vectors(self, pictures: Pictures, place: Placement) -> dict[str, Floats]:
        vectors = {}
        if self._names & {"identity", "rank1"}:
            vectors["identity"] = self._judges.identity(pictures, place)
        if self._names & {"identity_dlib", "rank1_dlib"}:
            vectors["identity_dlib"] = self._judges.identity_dlib(pictures, place)
        if "kid" in self._names:
            vectors["features"] = self._judges.features(pictures)
        return vectors


class SetOfFaces:
    """The originals of a set, and the sums of judged pictures over it.

    `originals`: vectors of every original, in the order of the pictures. `chosen`: a subset by
    index; identification is still among all originals.
    """

    def __init__(
        self, originals: Sequence[dict[str, Floats]], chosen: Sequence[int] | None = None
    ) -> None:
        """Stack the vectors."""
        self._gallery = {
            name: np.stack([vectors[name] for vectors in originals])
            for name in (originals[0] if originals else {})
        }
        self.chosen = np.arange(len(originals)) if chosen is None else np.asarray(chosen, np.int64)
        rng = np.random.default_rng(0)
        count = len(self.chosen)
        self._draws = rng.integers(0, count, (REPLICATES, count))  # [R, n]

    def column(self, metric: str, judged: Sequence[Judged]) -> Doubles:
        """One value a picture [n] of the chosen ones; for KID there is none, so zeros."""
        if metric in ("rank1", "rank1_dlib"):
            name = _VECTORS[metric]
            decoded = np.stack([judged[i].vectors[name] for i in self.chosen])
            nearest = (decoded @ self._gallery[name].T).argmax(axis=1)
            return np.asarray(nearest == self.chosen, np.float64)
        if metric == "kid":
            return np.zeros(len(self.chosen))
        return np.array([judged[i].values[metric] for i in self.chosen])

    def value(self, metric: str, judged: Sequence[Judged]) -> float:
        """The metric over the chosen pictures; nan for the KID of fewer than two."""
        if metric == "kid":
            originals, decoded = self._features(judged)
            return kid(originals, decoded)[0] if len(originals) > 1 else float("nan")
        return float(self._sum(metric, self.column(metric, judged)))

    def replicates(self, metric: str, judged: Sequence[Judged]) -> Doubles:
        """The metric over resampled pictures: bootstrap [1000], for KID leave-one-out [n].

        The same pictures are drawn for every setting and codec, so differences are paired.
        """
        if metric == "kid":
            return _leave_one_out_kid(*self._features(judged))
        return self._sum(metric, self.column(metric, judged)[self._draws])

    def mean_bytes(self, metric: str, sizes: Doubles) -> Doubles:
        """Mean bytes [R] over the pictures that each replicate of `metric` is over."""
        of_chosen = sizes[self.chosen]
        if metric == "kid":
            count = len(of_chosen)
            return np.asarray((of_chosen.sum() - of_chosen) / max(count - 1, 1))
        return np.asarray(of_chosen[self._draws].mean(axis=1))

    def _features(self, judged: Sequence[Judged]) -> tuple[Floats, Floats]:
        decoded = np.stack([judged[i].vectors["features"] for i in self.chosen])
        return self._gallery["features"][self.chosen], decoded

    @staticmethod
    def _sum(metric: str, values: Doubles) -> Doubles:
        how = np.median if METRICS[metric].kind == "median" else np.mean
        return np.asarray(how(values, axis=-1))


def _leave_one_out_kid(originals: Floats, decoded: Floats) -> Doubles:
    """KID [n] without each picture in turn, in both sets; for the jackknife (see `curves`)."""
    count = len(originals)
    if count < 3:
        return np.full(count, np.nan)
    xx = polynomial_kernel(originals, originals)
    yy = polynomial_kernel(decoded, decoded)
    xy = polynomial_kernel(originals, decoded)
    within = np.zeros(count)
    for kernel in (xx, yy):
        off = kernel - np.diag(np.diag(kernel))
        within += (off.sum() - 2 * off.sum(axis=1)) / ((count - 1) * (count - 2))
    between = xy.sum() - xy.sum(axis=0) - xy.sum(axis=1) + np.diag(xy)
    return np.asarray(within - 2 * between / (count - 1) ** 2)
