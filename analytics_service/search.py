"""The likeness index: cosine search over every kept face, in memory.

Belongs here: the numpy matrix of embeddings with the columns that filters read, and the search over
it. Does not belong here: the approximate graph (`analytics_service.nearest`), SQLite, gRPC
messages, and the reading of requests.

Every cosine that is returned is exact. Up to `exact_faces` candidates, all are compared; above, the
graph proposes candidates, and only faces that came since it was last added to are all compared.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from analytics_service.nearest import ADD_AT_ONCE, NearestIndex

__all__ = ["Bounds", "FaceIndex", "Filters", "IndexEntry", "Match", "Place"]

# Rows compared at a time, so that filters never copy the whole matrix.
_CHUNK: Final = 65_536
# Candidates that the graph is asked for at first, for each match wanted, and at most: a search that
# needs more compares all.
_MORE: Final = 4
_MOST_CANDIDATES: Final = 4096


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
    newest_cursor: int | None = None
    """Only results up to this one; None: all."""

    def up_to(self, newest_cursor: int) -> Filters:
        """The same filters, blind to newer results."""
        return replace(self, newest_cursor=newest_cursor)


@dataclass(frozen=True)
class IndexEntry:
    """One face as the index keeps it.

    `embedding`: float32 [D], unit length, or None when it was made by another model bundle or the
    face is unknown, and can not be compared. An attribute that is None is unknown and within no
    bounds. `captured`: Unix nanoseconds.
    """

    cursor: int
    camera_id: str
    captured: int
    face_score: float
    age: float | None
    gender: float | None
    smile: float | None
    embedding: NDArray[np.float32] | None


@dataclass(frozen=True)
class Match:
    """A found face: its result cursor and its cosine with the example (0 when there is none).

    `captured`: Unix nanoseconds.
    """

    cursor: int
    similarity: float
    captured: int


@dataclass(frozen=True)
class Place:
    """Where a page of matches starts: behind the match with these values.

    `rank` is the similarity of a search by example, the capture time of one without.
    """

    rank: float | int
    cursor: int
    passed: int
    """Matches on the pages before."""


_COLUMNS: Final = {
    "cursor": np.int64,
    "camera": np.int32,
    "captured": np.int64,
    "face_score": np.float32,
    "age": np.float32,
    "gender": np.float32,
    "smile": np.float32,
    "alive": np.bool_,
    "comparable": np.bool_,
}
_ATTRIBUTES: Final = ("age", "gender", "smile")


@dataclass(frozen=True)
class _View:
    """What a search looks at: the columns [N] and the embeddings [N, D], oldest first."""

    columns: dict[str, NDArray[Any]]
    embeddings: NDArray[np.float32]
    cameras: dict[str, int]
    graph: NearestIndex | None

    def __len__(self) -> int:
        return len(self.embeddings)


class FaceIndex:
    """Every kept face, searchable. Safe to search from one thread while another adds or removes.

    Rows are only ever appended after the ones that a running search looks at, and growth makes new
    arrays. A face that is removed is blanked in its row: a running search may still name it, and
    the database then says that it is gone.
    """

    def __init__(self, exact_faces: int) -> None:
        """Empty; the first embedding that is added says its length D."""
        self._lock = threading.Lock()
        self._exact_faces = exact_faces
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(0, kind) for name, kind in _COLUMNS.items()
        }  # each [capacity]
        self._embeddings = np.empty((0, 0), np.float32)  # [capacity, D]
        self._begin = self._end = 0
        self._alive = 0
        self._cameras: dict[str, int] = {}
        self._graph: NearestIndex | None = None

    def __len__(self) -> int:
        return self._alive

    @property
    def graph(self) -> NearestIndex | None:
        """The graph, once there are enough faces to need one."""
        return self._graph

    @property
    def bytes_used(self) -> int:
        """Memory of the index, in bytes."""
        columns = sum(column.nbytes for column in self._columns.values())
        graph = self._graph.bytes_used if self._graph else 0
        return columns + self._embeddings.nbytes + graph

    @property
    def waiting(self) -> int:
        """Faces that the graph does not hold yet; all are compared until it does."""
        view = self._view()
        if view.graph is None and self._alive <= self._exact_faces:
            return 0
        return len(view) - self._tail(view)

    def add(self, entries: Sequence[IndexEntry]) -> None:
        """Appends faces. Cursors have to increase from call to call."""
        if not entries:
            return
        with self._lock:
            given = (len(e.embedding) for e in entries if e.embedding is not None)
            self._reserve(len(entries), self._embeddings.shape[1] or next(given, 0))
            new = slice(self._end, self._end + len(entries))
            cameras, columns = self._cameras, self._columns
            columns["cursor"][new] = [e.cursor for e in entries]
            columns["camera"][new] = [
                cameras.setdefault(e.camera_id, len(cameras)) for e in entries
            ]
            columns["captured"][new] = [e.captured for e in entries]
            columns["face_score"][new] = [e.face_score for e in entries]
            for name in _ATTRIBUTES:
                values = (getattr(e, name) for e in entries)
                columns[name][new] = [np.nan if value is None else value for value in values]
            columns["alive"][new] = True
            columns["comparable"][new] = [e.embedding is not None for e in entries]
            if self._embeddings.shape[1]:
                blank = np.zeros(self._embeddings.shape[1], np.float32)
                self._embeddings[new] = [
                    blank if e.embedding is None else e.embedding for e in entries
                ]
            self._end = new.stop
            self._alive += len(entries)

    def remove(self, cursors: Sequence[int]) -> None:
        """Takes faces out and blanks their embeddings; those that are not there are ignored."""
        with self._lock:
            view = self._view()
            at = np.searchsorted(view.columns["cursor"], cursors)
            at = at[at < len(view)]
            at = np.unique(at[np.isin(view.columns["cursor"][at], cursors)])
            at = at[view.columns["alive"][at].astype(bool)]
            view.columns["alive"][at] = False
            view.columns["comparable"][at] = False
            view.embeddings[at] = 0.0
            self._alive -= len(at)
            living = np.flatnonzero(view.columns["alive"])
            self._begin = self._begin + int(living[0]) if len(living) else self._end
            graph = self._graph
        if graph is not None:
            graph.remove(np.asarray(cursors, np.int64))

    def search(
        self,
        filters: Filters,
        limit: int,
        example: NDArray[np.float32] | None = None,
        min_similarity: float = -1.0,
        after: Place | None = None,
    ) -> list[Match]:
        """Finds at most `limit` faces, best first; without an example newest capture first.

        `example`: float32 [D], unit length. Faces of another model bundle never match an example.
        `after`: where the page before ended.
        """
        with self._lock:
            view = self._view()
        holds = _holds(view, filters)
        if example is None:
            ranks = view.columns["captured"]
            places = np.flatnonzero(holds)  # [M]
            return _page(view, places, ranks[places], limit, after, by_time=True)
        if view.embeddings.shape[1] != len(example):
            return []
        holds &= view.columns["comparable"].astype(bool)
        if view.graph is not None and np.count_nonzero(holds) > self._exact_faces:
            found = self._search_graph(view, holds, limit, example, min_similarity, after)
            if found is not None:
                return found
        places = np.flatnonzero(holds)
        return _page(view, *_near(view, places, example, min_similarity), limit, after)

    # -- the graph

    def grow_graph(self) -> bool:
        """Adds a few faces to the graph, if there are enough to need one; whether more wait."""
        with self._lock:
            if self._graph is None:
                if self._alive <= self._exact_faces or not self._embeddings.shape[1]:
                    return False
                self._graph = NearestIndex(self._embeddings.shape[1])
            view = self._view()
        tail = self._tail(view)
        rows = np.flatnonzero(view.columns["comparable"][tail : tail + 64 * ADD_AT_ONCE]) + tail
        rows = rows[:ADD_AT_ONCE]
        if not len(rows):
            return False
        cursors = view.columns["cursor"][rows].astype(np.int64)
        self._graph.add(cursors, view.embeddings[rows])
        # What was removed meanwhile is not to stay in the graph.
        gone = cursors[~view.columns["comparable"][rows].astype(bool)]
        if len(gone):
            self._graph.remove(gone)
        return bool(rows[-1] + 1 < len(view))

    def load_graph(self, path: Path) -> bool:
        """Takes up the graph that `save_graph` left, if it is of these faces."""
        with self._lock:
            view = self._view()
            rows = np.flatnonzero(view.columns["comparable"])
            if len(rows) <= self._exact_faces or not path.is_file():
                return False
            cursors = view.columns["cursor"][rows].astype(np.int64)
            self._graph = NearestIndex.load(path, cursors, view.embeddings[rows])
            return self._graph is not None

    def save_graph(self, path: Path) -> None:
        """Leaves the graph for the next start; nothing when there is none."""
        if self._graph is not None:
            self._graph.save(path)

    def _tail(self, view: _View) -> int:
        """First row that the graph does not hold."""
        covered = view.graph.covered if view.graph else 0
        return int(np.searchsorted(view.columns["cursor"], covered, side="right"))

    def _search_graph(
        self,
        view: _View,
        holds: NDArray[np.bool_],
        limit: int,
        example: NDArray[np.float32],
        min_similarity: float,
        after: Place | None,
    ) -> list[Match] | None:
        """As `search`; None when the graph's candidates are not enough."""
        assert view.graph is not None
        tail = self._tail(view)
        newer = np.flatnonzero(holds[tail:]) + tail
        wanted = limit + (after.passed if after else 0)
        count = _MORE * wanted
        while count <= _MOST_CANDIDATES:
            cursors = view.graph.search(example, count)
            rows = np.minimum(np.searchsorted(view.columns["cursor"], cursors), len(view) - 1)
            rows = rows[view.columns["cursor"][rows] == cursors]
            # The last candidate bounds all that the graph left out.
            bound = float(view.embeddings[rows[-1]] @ example) if len(rows) else -1.0
            rows = np.sort(rows[(rows < tail) & holds[rows]])
            places, cosines = _near(view, np.concatenate((rows, newer)), example, min_similarity)
            found = _page(view, places, cosines, limit, after)
            if len(found) == limit or bound < min_similarity or count >= len(view.graph):
                return found
            count *= _MORE
        return None

    # -- rows

    def _view(self) -> _View:
        rows = slice(self._begin, self._end)
        return _View(
            columns={name: column[rows] for name, column in self._columns.items()},
            embeddings=self._embeddings[rows],
            cameras=dict(self._cameras),
            graph=self._graph,
        )

    def _reserve(self, more: int, dimensions: int) -> None:
        """Room for `more` rows; rows of removed faces are left behind when it has to be made."""
        capacity = len(self._embeddings)
        if self._end + more <= capacity and dimensions == self._embeddings.shape[1]:
            return
        view = self._view()
        keep = np.flatnonzero(view.columns["alive"])
        need = len(keep) + more
        # Half as much again, so that rows are copied rarely.
        capacity = max(1024, need + need // 2)
        for name, column in view.columns.items():
            grown = np.zeros(capacity, column.dtype)
            grown[: len(keep)] = column[keep]
            self._columns[name] = grown
        embeddings = np.zeros((capacity, dimensions), np.float32)
        if view.embeddings.shape[1]:
            embeddings[: len(keep)] = view.embeddings[keep]
        self._embeddings = embeddings
        self._begin, self._end = 0, len(keep)


def _page(
    view: _View,
    places: NDArray[np.intp],
    ranks: NDArray[Any],
    limit: int,
    after: Place | None,
    *,
    by_time: bool = False,
) -> list[Match]:
    """The `limit` best of the places behind `after`, by rank and then by cursor, highest first."""
    cursors = view.columns["cursor"][places]
    if after is not None:
        rank = ranks.dtype.type(after.rank)
        behind = (ranks < rank) | ((ranks == rank) & (cursors < after.cursor))
        places, ranks, cursors = places[behind], ranks[behind], cursors[behind]
    if len(places) > limit:
        # All that share the rank of the last stay in, for the cursors to decide.
        lowest = np.partition(ranks, len(ranks) - limit)[len(ranks) - limit]
        best = np.flatnonzero(ranks >= lowest)
        places, ranks, cursors = places[best], ranks[best], cursors[best]
    order = np.lexsort((-cursors, -ranks))[:limit]
    captured = view.columns["captured"]
    return [
        Match(
            cursor=int(cursors[k]),
            similarity=0.0 if by_time else float(ranks[k]),
            captured=int(captured[places[k]]),
        )
        for k in order
    ]


def _near(
    view: _View,
    places: NDArray[np.intp],
    example: NDArray[np.float32],
    min_similarity: float,
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Those of the places [M], rising, that are similar enough, and their cosines.

    A row's cosine has the same bits whichever rows are asked for with it (BLAS does not promise
    that), so that a page can start exactly behind the one before.
    """
    cosines = np.empty(len(places), np.float32)
    for start in range(0, len(places), _CHUNK):
        chunk = places[start : start + _CHUNK]
        gapless = chunk[-1] - chunk[0] + 1 == len(chunk)
        rows = view.embeddings[chunk[0] : chunk[-1] + 1] if gapless else view.embeddings[chunk]
        np.einsum("ij,j->i", rows, example, out=cosines[start : start + _CHUNK])
    np.clip(cosines, -1.0, 1.0, out=cosines)
    if min_similarity > -1.0:
        near = cosines >= np.float32(min_similarity)
        return places[near], cosines[near]
    return places, cosines


def _holds(view: _View, filters: Filters) -> NDArray[np.bool_]:
    """Which rows fulfil the filters, bool [N]. NaN, an unknown attribute, is within no bounds."""
    columns = view.columns
    holds: NDArray[np.bool_] = columns["alive"].astype(bool)  # a copy
    if filters.min_face_score > 0.0:
        holds &= columns["face_score"] >= np.float32(filters.min_face_score)
    if filters.camera_ids:
        wanted = [view.cameras[name] for name in filters.camera_ids if name in view.cameras]
        holds &= np.isin(columns["camera"], wanted)
    if filters.captured_from is not None:
        holds &= columns["captured"] >= np.int64(filters.captured_from)
    if filters.captured_until is not None:
        holds &= columns["captured"] <= np.int64(filters.captured_until)
    if filters.newest_cursor is not None:
        holds &= columns["cursor"] <= np.int64(filters.newest_cursor)
    for name in _ATTRIBUTES:
        bounds: Bounds = getattr(filters, name)
        if bounds.min is not None:
            holds &= columns[name] >= np.float32(bounds.min)
        if bounds.max is not None:
            holds &= columns[name] <= np.float32(bounds.max)
    return holds
