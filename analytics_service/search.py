"""The likeness index: exact cosine search over every kept face, in memory.

Belongs here: the numpy matrix of embeddings with the columns that filters read, and the search over
it. Does not belong here: SQLite, gRPC messages, and the reading of requests.

Exact rather than approximate: a million faces of 256 dimensions are 1 GB and one matrix-vector
product, a fraction of a second, and an exact answer needs no tuning and no rebuild.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bounds", "FaceIndex", "Filters", "IndexEntry", "Match"]

# Rows multiplied at a time, so that filters never copy the whole matrix.
_CHUNK: Final = 65_536


@dataclass(frozen=True)
class Bounds:
    """A closed interval; a side that is None is open."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class Filters:
    """What a hit has to fulfil; all that are set must hold. Times are Unix nanoseconds."""

    camera_ids: Collection[str] = ()
    captured_from: int | None = None
    captured_until: int | None = None
    age: Bounds = field(default_factory=Bounds)
    gender: Bounds = field(default_factory=Bounds)
    smile: Bounds = field(default_factory=Bounds)
    min_face_score: float = 0.0


@dataclass(frozen=True)
class IndexEntry:
    """One face as the index keeps it.

    `embedding`: float32 [D], unit length, or None when it was made by another model bundle and can
    not be compared. `captured`: Unix nanoseconds.
    """

    cursor: int
    camera_id: str
    captured: int
    face_score: float
    age: float
    gender: float
    smile: float
    embedding: NDArray[np.float32] | None


@dataclass(frozen=True)
class Match:
    """A found face: its result cursor and its cosine with the example (0 when there is none)."""

    cursor: int
    similarity: float


_COLUMNS: Final = np.dtype(
    [
        ("cursor", np.int64),
        ("camera", np.int32),
        ("captured", np.int64),
        ("face_score", np.float32),
        ("age", np.float32),
        ("gender", np.float32),
        ("smile", np.float32),
        ("comparable", np.bool_),
    ]
)


class FaceIndex:
    """Every kept face, searchable. Safe to search from one thread while another adds or removes.

    Rows only ever get appended after the ones a running search looks at, and growth or removal
    makes new arrays, so that a search works on a consistent picture without holding the lock.
    """

    def __init__(self) -> None:
        """Empty; the first embedding that is added says its length D."""
        self._lock = threading.Lock()
        self._rows = np.empty(0, _COLUMNS)  # [capacity]
        self._embeddings = np.empty((0, 0), np.float32)  # [capacity, D]
        self._count = 0
        self._cameras: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def bytes_used(self) -> int:
        """Memory of the index, in bytes."""
        return self._rows.nbytes + self._embeddings.nbytes

    def add(self, entries: Sequence[IndexEntry]) -> None:
        """Appends faces. Cursors have to increase from call to call."""
        with self._lock:
            given = (len(e.embedding) for e in entries if e.embedding is not None)
            self._reserve(self._count + len(entries), self._embeddings.shape[1] or next(given, 0))
            for place, entry in enumerate(entries, start=self._count):
                camera = self._cameras.setdefault(entry.camera_id, len(self._cameras))
                self._rows[place] = (
                    entry.cursor,
                    camera,
                    entry.captured,
                    entry.face_score,
                    entry.age,
                    entry.gender,
                    entry.smile,
                    entry.embedding is not None,
                )
                self._embeddings[place] = 0.0 if entry.embedding is None else entry.embedding
            self._count += len(entries)

    def remove(self, cursors: Sequence[int]) -> None:
        """Takes faces out; those that are not there are ignored."""
        if not cursors:
            return
        with self._lock:
            rows = self._rows[: self._count]
            keep = ~np.isin(rows["cursor"], np.asarray(cursors, np.int64))  # [N]
            self._rows = rows[keep]
            self._embeddings = self._embeddings[: self._count][keep]
            self._count = len(self._rows)

    def search(
        self,
        filters: Filters,
        limit: int,
        example: NDArray[np.float32] | None = None,
        min_similarity: float | None = None,
    ) -> list[Match]:
        """Finds at most `limit` faces, best first; without an example newest capture first.

        `example`: float32 [D], unit length. Faces of another model bundle never match an example.
        """
        with self._lock:
            rows, embeddings = self._rows[: self._count], self._embeddings[: self._count]
            cameras = dict(self._cameras)
        places = np.flatnonzero(_holds(rows, filters, cameras))  # [M]
        if example is None:
            order = np.lexsort((-rows["cursor"][places], -rows["captured"][places]))[:limit]
            return [Match(int(rows["cursor"][place]), 0.0) for place in places[order]]
        places = places[rows["comparable"][places]]  # [M]
        if not len(places):
            return []
        cosines = _cosines(embeddings, places, example)  # [M]
        if min_similarity is not None:
            near = cosines >= min_similarity
            places, cosines = places[near], cosines[near]
        if len(places) > limit:
            best = np.argpartition(-cosines, limit - 1)[:limit]
            places, cosines = places[best], cosines[best]
        order = np.lexsort((-rows["cursor"][places], -cosines))
        return [Match(int(rows["cursor"][places[k]]), float(cosines[k])) for k in order]

    def _reserve(self, count: int, dimensions: int) -> None:
        capacity = len(self._rows)
        if count <= capacity and dimensions == self._embeddings.shape[1]:
            return
        if count > capacity:
            capacity = max(count, 2 * capacity, 1024)
        rows = np.empty(capacity, _COLUMNS)
        embeddings = np.zeros((capacity, dimensions), np.float32)
        rows[: self._count] = self._rows[: self._count]
        if self._embeddings.shape[1]:
            embeddings[: self._count] = self._embeddings[: self._count]
        self._rows, self._embeddings = rows, embeddings


def _cosines(
    embeddings: NDArray[np.float32], places: NDArray[np.intp], example: NDArray[np.float32]
) -> NDArray[np.float32]:
    cosines = np.empty(len(places), np.float32)
    if len(places) == len(embeddings):
        np.matmul(embeddings, example, out=cosines)
    else:
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            np.matmul(embeddings[chunk], example, out=cosines[start : start + _CHUNK])
    return np.clip(cosines, -1.0, 1.0)


def _holds(rows: NDArray[np.void], filters: Filters, cameras: dict[str, int]) -> NDArray[np.bool_]:
    holds = rows["face_score"] >= filters.min_face_score  # [N]
    if filters.camera_ids:
        wanted = [cameras[name] for name in filters.camera_ids if name in cameras]
        holds &= np.isin(rows["camera"], wanted)
    if filters.captured_from is not None:
        holds &= rows["captured"] >= filters.captured_from
    if filters.captured_until is not None:
        holds &= rows["captured"] <= filters.captured_until
    for name in ("age", "gender", "smile"):
        bounds: Bounds = getattr(filters, name)
        if bounds.min is not None:
            holds &= rows[name] >= bounds.min
        if bounds.max is not None:
            holds &= rows[name] <= bounds.max
    return holds
