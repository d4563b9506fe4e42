"""The likeness index: cosine search over every kept face, in memory.

Belongs here: the numpy matrix of embeddings with the columns that filters read, and the search over
it. Does not belong here: the int8 copy (`analytics_service.rough`), SQLite, gRPC messages, and the
reading of requests.

A search gives what comparing all gives. Where many rows are wanted, it scans an int8 copy of them
first, and compares only those that its bound leaves in question; others it compares straight away.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from analytics_service.rough import RoughBlock, Shortlist

__all__ = ["Bounds", "FaceIndex", "Filters", "IndexEntry", "Match", "Place"]

# Rows compared at a time, so that filters never copy the whole matrix.
_CHUNK: Final = 65_536
# Rows of a block of the int8 copy.
_BLOCK_ROWS: Final = 16_384
# A block of which less than this part is wanted is compared straight away: that is quicker.
_DENSE: Final = 0.08


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
    """What a search looks at: the columns [N] and the embeddings [N, D], oldest first.

    `begin` is where the first row lies in the index's arrays, of which `blocks` are copies by their
    number. `changes` counts what made copies outdated.
    """

    columns: dict[str, NDArray[Any]]
    embeddings: NDArray[np.float32]
    cameras: dict[str, int]
    begin: int
    blocks: dict[int, RoughBlock]
    changes: int

    def __len__(self) -> int:
        return len(self.embeddings)


class FaceIndex:
    """Every kept face, searchable. Safe to search from one thread while another adds or removes.

    Rows are only ever appended after the ones that a running search looks at, and growth makes new
    arrays. A face that is removed is blanked in its row: a running search may still name it, and
    the database then says that it is gone.
    """

    def __init__(self, block_rows: int = _BLOCK_ROWS) -> None:
        """Empty; the first embedding that is added says its length D."""
        self._lock = threading.Lock()
        self._block_rows = block_rows
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(0, kind) for name, kind in _COLUMNS.items()
        }  # each [capacity]
        self._embeddings = np.empty((0, 0), np.float32)  # [capacity, D]
        self._begin = self._end = 0
        self._alive = 0
        self._cameras: dict[str, int] = {}
        # Copies of whole blocks of rows; without those that changed since, until they are needed.
        self._blocks: dict[int, RoughBlock] = {}
        self._changes = 0

    def __len__(self) -> int:
        return self._alive

    @property
    def bytes_used(self) -> int:
        """Memory of the index, in bytes."""
        columns = sum(column.nbytes for column in self._columns.values())
        blocks = sum(block.nbytes for block in list(self._blocks.values()))
        return columns + self._embeddings.nbytes + blocks

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
                # One broken embedding would spoil the bound of its whole block.
                broken = np.flatnonzero(~np.isfinite(self._embeddings[new]).all(axis=1))
                columns["comparable"][new.start + broken] = False
                self._embeddings[new.start + broken] = 0.0
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
            outdated = set(((view.begin + at) // self._block_rows).tolist())
            if self._begin > view.begin:
                # Nothing before the first row is shown, so no copy of it either.
                outdated.update(
                    range(view.begin // self._block_rows, self._begin // self._block_rows + 1)
                )
            for number in outdated:
                self._blocks.pop(number, None)
            self._changes += 1

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
        places = self._in_question(view, holds, limit, example, min_similarity, after)
        found = _near(view, places, example, min_similarity)
        if not view.columns["comparable"][places].all():
            # One was removed meanwhile, and may have kept others out.
            found = _near(view, np.flatnonzero(holds), example, min_similarity)
        return _page(view, *found, limit, after)

    def prepare(self) -> None:
        """Makes all missing copies of whole blocks, so that the next search need not."""
        with self._lock:
            view = self._view()
        for number in self._whole_blocks(view):
            self._block(view, number)

    # -- the int8 copy

    def _in_question(
        self,
        view: _View,
        holds: NDArray[np.bool_],
        limit: int,
        example: NDArray[np.float32],
        min_similarity: float,
        after: Place | None,
    ) -> NDArray[np.intp]:
        """Rows, rising, among which all of the page are; `holds` [N] says which are wanted."""
        lowest = float(np.float32(min_similarity))
        shortlist = Shortlist(
            example, limit, lowest, None if after is None else float(np.float32(after.rank))
        )
        places, done = [], 0
        for number in self._whole_blocks(view):
            rows = self._rows_of(view, number)
            wanted = holds[rows]
            if np.count_nonzero(wanted) < _DENSE * self._block_rows:
                places.append(np.flatnonzero(wanted) + rows.start)
            else:
                shortlist.scan(self._block(view, number), rows.start, wanted)
            done = rows.stop
        places += [np.flatnonzero(holds[done:]) + done, shortlist.rows()]
        return np.sort(np.concatenate(places))

    def _whole_blocks(self, view: _View) -> range:
        """Numbers of the blocks that no row will be added to."""
        end = view.begin + len(view) if view.embeddings.shape[1] else 0
        return range(view.begin // self._block_rows, end // self._block_rows)

    def _rows_of(self, view: _View, number: int) -> slice:
        """The rows of a block that the view shows."""
        first = number * self._block_rows - view.begin
        return slice(max(first, 0), first + self._block_rows)

    def _block(self, view: _View, number: int) -> RoughBlock:
        """The copy of the view's rows of a block."""
        block = view.blocks.get(number)
        if block is None:
            block = RoughBlock.of(view.embeddings[self._rows_of(view, number)])
            with self._lock:
                # Not kept if it may show a face that was removed since.
                if self._changes == view.changes:
                    self._blocks[number] = block
        return block

    # -- rows

    def _view(self) -> _View:
        rows = slice(self._begin, self._end)
        return _View(
            columns={name: column[rows] for name, column in self._columns.items()},
            embeddings=self._embeddings[rows],
            cameras=dict(self._cameras),
            begin=self._begin,
            blocks=dict(self._blocks),
            changes=self._changes,
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
        self._blocks = {}
        self._changes += 1


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
