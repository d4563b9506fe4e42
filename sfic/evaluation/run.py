"""An evaluation: faces through codecs, before the judges, with everything kept as it comes.

Belongs here: which settings are tried, the order of work, and the table that comes of it. Not here:
codecs, judges, the store, and what is made of the table (`sfic.evaluation.report`).

One original at a time: every setting of every codec is decoded and judged against it, since what
judges say of the original, half of their work, is then needed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sfic.errors import InvalidInput
from sfic.evaluation.codecs import Coder, Setting, scale
from sfic.evaluation.curves import along, best_at, front
from sfic.evaluation.dataset import Sample, digest
from sfic.evaluation.judges import WORKING_SIZE
from sfic.evaluation.metrics import METRICS, Examiner, Judged, Metric, SetOfFaces
from sfic.evaluation.store import ORIGINAL, Key, Result, Store

__all__ = ["Curve", "Evaluation", "Face", "Summary", "evaluate", "plan"]

SCOUTS: Final = 8
_BATCH: Final = 24  # pictures decoded before they are judged
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Face:
    """One face of the set: its sample, what it is known by, and its side in source pixels."""

    sample: Sample
    digest: str
    source_size: float


@dataclass(frozen=True)
class Curve:
    """A codec's results: `results[s][p]` of setting s and picture p."""

    name: str
    settings: tuple[Setting, ...]
    results: tuple[tuple[Result, ...], ...]

    @property
    def sizes(self) -> Doubles:
        """Bytes [settings, pictures]."""
        return np.array([[r.bytes for r in row] for row in self.results], np.float64)

    def judged(self, setting: int) -> list[Judged]:
        """What the judges said at a setting, one a picture."""
        return [result.judged for result in self.results[setting]]


@dataclass(frozen=True)
class Summary:
    """A metric along a curve, over the pictures of a set: bytes [S], values [S], and replicates."""

    metric: Metric
    bytes: Doubles  # [S]
    values: Doubles  # [S]
    replicate_bytes: Doubles  # [S, R]
    replicates: Doubles  # [S, R]

    def at(self, budget: float) -> float | None:
        """The best of the curve within `budget` bytes (see `curves.best_at`)."""
        return best_at(self.bytes, self.values, budget, self.metric.higher_is_better)

    def replicates_at(self, budgets: Sequence[float]) -> Doubles:
        """`at` for each replicate [B, R]; nan where the curve does not reach down to a budget.

        Where it does, but not with the pictures of a replicate, their smallest setting stands in.
        """
        found = np.full((len(budgets), self.replicates.shape[1]), np.nan)
        reached = [b for b, budget in enumerate(budgets) if self.at(budget) is not None]
        for r, (sizes, values) in enumerate(
            zip(self.replicate_bytes.T, self.replicates.T, strict=True)
        ):
            best = front(sizes, values, self.metric.higher_is_better)
            for b in reached if best else ():
                value = along(best, budgets[b])
                found[b, r] = best[0][1] if value is None else value
        return found


@dataclass(frozen=True)
class Evaluation:
    """All that was measured."""

    faces: tuple[Face, ...]
    metrics: tuple[Metric, ...]
    missing: dict[str, str]  # metrics left out, and the judge that each lacks
    originals: tuple[Judged, ...]
    curves: tuple[Curve, ...]

    def summaries(self, metric: str, chosen: Sequence[int] | None = None) -> dict[str, Summary]:
        """A metric along each curve, over all pictures or those `chosen` by index."""
        faces = SetOfFaces([original.vectors for original in self.originals], chosen)
        summed = {}
        for curve in self.curves:
            sizes = curve.sizes
            judged = [curve.judged(s) for s in range(len(curve.settings))]
            summed[curve.name] = Summary(
                METRICS[metric],
                sizes[:, faces.chosen].mean(axis=1),
                np.array([faces.value(metric, row) for row in judged]),
                np.stack([faces.mean_bytes(metric, row) for row in sizes]),
                np.stack([faces.replicates(metric, row) for row in judged]),
            )
        return summed


def evaluate(
    samples: Sequence[Sample],
    coders: Sequence[Coder],
    examiner: Examiner,
    store: Store,
    max_bytes: int = 2000,
    workers: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Evaluation:
    """Put every sample through every setting that stays under `max_bytes` on the first few faces.

    What `store` holds already is not done again. Samples with the same pixels count once.
    `workers`: faces at once; networks of one thread each then use the cores better than threads do.
    `progress` is told what is being done, how much of it is done, and of how much. Raises
    InvalidInput for a sample that cannot be read, or when no setting is small enough.
    """
    if not samples:
        raise InvalidInput("there are no faces to evaluate on")
    faces: dict[str, Face] = {}
    for done, sample in enumerate(samples):
        progress("reading faces", done, len(samples))
        crop, source_size = sample.read()
        known = digest(crop)
        faces.setdefault(known, Face(sample, known, source_size))
    settings = {c.name: plan(c, list(faces.values()), max_bytes, progress) for c in coders}
    originals = []
    columns: dict[str, list[list[Result]]] = {c.name: [] for c in coders}
    with ThreadPoolExecutor(workers) as pool:
        jobs = [_Job(face, coders, settings, store) for face in faces.values()]
        running = [pool.submit(job.work, examiner) for job in jobs]
        try:
            for done, (job, result) in enumerate(zip(jobs, running, strict=True)):
                progress("coding and judging", done, len(jobs))
                store.put(result.result())
                originals.append(job.original())
                for name, row in job.rows().items():
                    columns[name].append(row)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    progress("coding and judging", len(jobs), len(jobs))
    curves = tuple(
        Curve(c.name, tuple(settings[c.name]), tuple(zip(*columns[c.name], strict=True)))
        for c in coders
        if settings[c.name]
    )
    if not curves:
        raise InvalidInput(f"no codec reaches {max_bytes} bytes a face: allow more")
    return Evaluation(
        tuple(faces.values()),
        examiner.metrics,
        {name: judge for name, judge in examiner.missing.items() if judge},
        tuple(originals),
        curves,
    )


def plan(
    coder: Coder,
    faces: Sequence[Face],
    max_bytes: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Setting]:
    """A coder's settings; of a sweep those whose mean over the first faces is in `max_bytes`."""
    sequences = coder.settings()
    if not coder.sweeps:
        return [setting for sequence in sequences for setting in sequence]
    crops = [(face.sample, face.sample.read()[0]) for face in faces[:SCOUTS]]
    kept = []
    for done, sequence in enumerate(sequences):
        progress(f"{coder.name}: settings", done, len(sequences))
        for setting in sequence:
            sizes = [coder.code(sample, crop, setting).bytes for sample, crop in crops]
            if np.mean(sizes) > max_bytes:
                break
            kept.append(setting)
    return kept


class _Job:
    """One face: what of it is stored, and the rest, made by `work` in any thread."""

    def __init__(
        self,
        face: Face,
        coders: Sequence[Coder],
        settings: dict[str, list[Setting]],
        store: Store,
    ) -> None:
        self._face, self._store, self._settings = face, store, settings
        self._original = Key(face.digest, ORIGINAL, "")
        self._keys = {
            (c.name, s): Key(face.digest, c.key, s.label) for c in coders for s in settings[c.name]
        }
        self._wanted = [
            (c, s) for c in coders for s in settings[c.name] if not store.get(self._keys[c.name, s])
        ]
        self._new = bool(self._wanted) or not store.get(self._original)

    def work(self, examiner: Examiner) -> list[tuple[Key, Result]]:
        """What was not stored, to be stored."""
        if not self._new:
            return []
        crop, _ = self._face.sample.read()
        reference = examiner.reference(crop)
        vectors = {name: vector[0] for name, vector in reference.vectors.items()}
        made = [(self._original, Result(0, 0, Judged({}, vectors)))]
        for batch in _batches(self._wanted):
            coded = [coder.code(self._face.sample, crop, setting) for coder, setting in batch]
            pictures = np.stack([scale(one.picture, WORKING_SIZE) for one in coded])
            judged = examiner.examine(reference, pictures)
            for (coder, setting), one, said in zip(batch, coded, judged, strict=True):
                result = Result(one.bytes, one.total_bytes, said)
                made.append((self._keys[coder.name, setting], result))
        return made

    def original(self) -> Judged:
        """Of the original, once `work` is stored."""
        return self._stored(self._original).judged

    def rows(self) -> dict[str, list[Result]]:
        """By curve, a result for each setting, once `work` is stored."""
        return {
            name: [self._stored(self._keys[name, s]) for s in chosen]
            for name, chosen in self._settings.items()
        }

    def _stored(self, key: Key) -> Result:
        result = self._store.get(key)
        assert result is not None, key
        return result


def _batches(wanted: Sequence[tuple[Coder, Setting]]) -> Iterator[Sequence[tuple[Coder, Setting]]]:
    for start in range(0, len(wanted), _BATCH):
        yield wanted[start : start + _BATCH]
