"""Watchlists: faces to be told of, and the alerts that say that one was seen.

Belongs here: their tables and the comparison with new results. Does not belong here: the reading
of requests (`analytics_service.api`), and how alerts leave (`analytics_service.streams`,
`analytics_service.webhooks`).

An entry and a visit raise one alert, however many faces the visit has. Alerts are committed with
the results they come from, so that a stop loses none and repeats none. Without `watchlists = true`
nothing is compared and every method says `WatchlistsOff`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from analytics_service.records import StoredResult, stored_vector, vector_bytes
from sfic.errors import InvalidInput, LimitExceeded, WatchlistsOff
from sfic.service.sqlite import Database
from sfic.v1 import analytics_pb2

__all__ = ["Entry", "StoredAlert", "Watchlist", "WatchlistStore", "Watchlists"]

T = TypeVar("T")

_DAY_NS = 86_400 * 10**9


@dataclass(frozen=True)
class Watchlist:
    """A watchlist; see the message of the same name. `created`: Unix nanoseconds."""

    watchlist_id: str
    purpose: str
    threshold: float
    camera_ids: tuple[str, ...]
    created: int = 0
    entries: int = 0


@dataclass(frozen=True)
class Entry:
    """A face of a watchlist. Times: Unix nanoseconds; `expires` 0: as the service is set.

    `embedding`: float32 [D], unit; `face_id`: the kept face it was made from, empty for none.
    """

    watchlist_id: str
    entry_id: str
    label: str
    threshold: float | None
    model_bundle: str
    embedding: NDArray[np.float32]
    face_id: str = ""
    created: int = 0
    expires: int = 0


@dataclass(frozen=True)
class StoredAlert:
    """An alert as it is kept; `alert` is a serialised `sfic.v1.Alert`."""

    cursor: int
    watchlist_id: str
    alert: bytes

    def message(self) -> analytics_pb2.Alert:
        """The alert as it is sent."""
        message: analytics_pb2.Alert = analytics_pb2.Alert.FromString(self.alert)
        return message


@dataclass(frozen=True)
class _Loaded:
    """The entries that can match, ready to be compared: [E, D], and what each asks for."""

    embeddings: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    entries: list[tuple[str, str, str, int, frozenset[str]]]
    """watchlist, entry, label, expires, cameras."""


class Watchlists:
    """Compares new results with the entries. Used from the thread that writes the database."""

    def __init__(self, model_bundle: str, *, enabled: bool) -> None:
        self.model_bundle = model_bundle
        self.enabled = enabled
        self._loaded: _Loaded | None = None

    def forget_loaded(self) -> None:
        """The tables have changed: read them again before the next comparison."""
        self._loaded = None

    def raise_alerts(self, connection: sqlite3.Connection, results: Sequence[StoredResult]) -> int:
        """Keeps an alert for each new pair of entry and visit; how many."""
        comparable = [r for r in results if r.embedding and r.model_bundle == self.model_bundle]
        if not self.enabled or not comparable:
            return 0
        if self._loaded is None:
            self._loaded = self._load(connection)
        loaded = self._loaded
        if not loaded.entries:
            return 0
        vectors = np.stack([result.vector() for result in comparable])  # [N, D]
        cosines = vectors @ loaded.embeddings.T  # [N, E]
        now, raised = time.time_ns(), 0
        seen: set[tuple[str, str, str]] = set()
        for row, column in np.argwhere(cosines >= loaded.thresholds):
            result = comparable[row]
            watchlist_id, entry_id, label, expires, cameras = loaded.entries[column]
            key = (watchlist_id, entry_id, result.visit_id or "")
            if expires <= now or (cameras and result.camera_id not in cameras) or key in seen:
                continue
            seen.add(key)
            alert = analytics_pb2.Alert(
                watchlist_id=watchlist_id,
                entry_id=entry_id,
                label=label,
                face=result.face(),
                visit_id=result.visit_id or "",
                similarity=float(cosines[row, column]),
            )
            alert.raised_time.FromNanoseconds(now)
            # Looked up first because a refused insert would leave a gap in the cursors.
            if connection.execute(
                "SELECT 1 FROM alerts WHERE watchlist_id = ? AND entry_id = ? AND visit_id = ?", key
            ).fetchone():
                continue
            connection.execute(
                "INSERT INTO alerts (watchlist_id, entry_id, visit_id, face_id, raised, alert)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (*key, result.face_id, now, alert.SerializeToString()),
            )
            raised += 1
        return raised

    def _load(self, connection: sqlite3.Connection) -> _Loaded:
        rows = connection.execute(
            "SELECT watchlist_id, entry_id, label, expires, camera_ids,"
            " coalesce(entries.threshold, watchlists.threshold), embedding"
            " FROM entries JOIN watchlists USING (watchlist_id) WHERE model_bundle = ?"
            " ORDER BY watchlist_id, entry_id",
            (self.model_bundle,),
        ).fetchall()
        return _Loaded(
            embeddings=np.array([stored_vector(row[6]) for row in rows], np.float32),
            thresholds=np.array([row[5] for row in rows], np.float32),
            entries=[(*row[:4], frozenset(json.loads(row[4]))) for row in rows],
        )


class WatchlistStore:
    """The tables of watchlists, entries and alerts."""

    def __init__(
        self, database: Database, watchlists: Watchlists, *, entry_days: float, max_entries: int
    ) -> None:
        self._database = database
        self._watchlists = watchlists
        self._entry_ns = int(entry_days * _DAY_NS)
        self._max_entries = max_entries

    async def put(self, watchlist: Watchlist) -> Watchlist:
        """Makes a list or changes one; returns it as it is kept."""

        def work(connection: sqlite3.Connection) -> Watchlist:
            connection.execute(
                "INSERT INTO watchlists (watchlist_id, purpose, threshold, camera_ids, created)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (watchlist_id) DO UPDATE SET"
                " purpose = excluded.purpose, threshold = excluded.threshold,"
                " camera_ids = excluded.camera_ids",
                (
                    watchlist.watchlist_id,
                    watchlist.purpose,
                    watchlist.threshold,
                    json.dumps(watchlist.camera_ids),
                    time.time_ns(),
                ),
            )
            return _watchlists(connection, watchlist.watchlist_id)[0]

        return await self._change(work)

    async def all(self) -> list[Watchlist]:
        """Every list, by name."""
        self.check_on()
        return await self._database.read(lambda c: _watchlists(c))

    async def remove(self, watchlist_id: str) -> bool:
        """Removes a list with its entries and alerts; whether there was one."""
        return await self._change(
            lambda c: bool(
                c.execute("DELETE FROM watchlists WHERE watchlist_id = ?", (watchlist_id,)).rowcount
            )
        )

    async def put_entry(self, entry: Entry) -> Entry:
        """Adds an entry or replaces it; returns it as it is kept.

        Raises `InvalidInput` when there is no such list, `LimitExceeded` for an entry too many.
        """
        now = time.time_ns()
        entry = replace(entry, created=now, expires=entry.expires or now + self._entry_ns)

        def work(connection: sqlite3.Connection) -> Entry:
            if not _watchlists(connection, entry.watchlist_id):
                raise InvalidInput(f"there is no watchlist {entry.watchlist_id!r}")
            others = connection.execute(
                "SELECT count(*) FROM entries WHERE (watchlist_id, entry_id) <> (?, ?)",
                (entry.watchlist_id, entry.entry_id),
            ).fetchone()[0]
            if others >= self._max_entries:
                raise LimitExceeded(f"{others} entries are kept: watchlist_entries is reached")
            connection.execute(
                "INSERT INTO entries (watchlist_id, entry_id, label, threshold, created, expires,"
                " model_bundle, embedding, face_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (watchlist_id, entry_id) DO UPDATE SET label = excluded.label,"
                " threshold = excluded.threshold, expires = excluded.expires,"
                " model_bundle = excluded.model_bundle, embedding = excluded.embedding,"
                " face_id = excluded.face_id",
                (
                    entry.watchlist_id,
                    entry.entry_id,
                    entry.label,
                    entry.threshold,
                    entry.created,
                    entry.expires,
                    entry.model_bundle,
                    vector_bytes(entry.embedding),
                    entry.face_id,
                ),
            )
            return _entries(connection, entry.watchlist_id, entry.entry_id)[0]

        return await self._change(work)

    async def entries(self, watchlist_id: str) -> list[Entry]:
        """The entries of a list, oldest first."""
        self.check_on()
        return await self._database.read(lambda c: _entries(c, watchlist_id))

    async def remove_entry(self, watchlist_id: str, entry_id: str) -> bool:
        """Removes an entry with its alerts; whether there was one."""
        return await self._change(
            lambda c: bool(
                c.execute(
                    "DELETE FROM entries WHERE watchlist_id = ? AND entry_id = ?",
                    (watchlist_id, entry_id),
                ).rowcount
            )
        )

    async def drop_expired(self) -> int:
        """Removes the entries whose time is over; how many. Also when watchlists are off."""

        def work(connection: sqlite3.Connection) -> int:
            self._watchlists.forget_loaded()
            return connection.execute(
                "DELETE FROM entries WHERE expires <= ?", (time.time_ns(),)
            ).rowcount

        expired = await self._database.read(
            lambda c: c.execute(
                "SELECT count(*) FROM entries WHERE expires <= ?", (time.time_ns(),)
            ).fetchone()[0]
        )
        return await self._database.write(work) if expired else 0

    async def newest_alert(self) -> int:
        """The highest cursor of an alert ever given."""
        row = await self._database.read(
            lambda c: c.execute("SELECT seq FROM sqlite_sequence WHERE name = 'alerts'").fetchone()
        )
        return int(row[0]) if row else 0

    async def alerts(self, after: int, limit: int) -> list[StoredAlert]:
        """At most `limit` alerts behind a cursor, in order."""
        rows = await self._database.read(
            lambda c: c.execute(
                "SELECT cursor, watchlist_id, alert FROM alerts WHERE cursor > ?"
                " ORDER BY cursor LIMIT ?",
                (after, limit),
            ).fetchall()
        )
        return [StoredAlert(*row) for row in rows]

    async def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.check_on()

        def change(connection: sqlite3.Connection) -> T:
            self._watchlists.forget_loaded()
            return work(connection)

        return await self._database.write(change)

    def check_on(self) -> None:
        """Raises `WatchlistsOff` unless the service is set to look for faces."""
        if not self._watchlists.enabled:
            raise WatchlistsOff(
                "watchlists are off at this service: set `watchlists = true` in [analytics] where"
                " looking for persons is allowed"
            )


def _watchlists(connection: sqlite3.Connection, only: str | None = None) -> list[Watchlist]:
    rows = connection.execute(
        "SELECT watchlist_id, purpose, threshold, camera_ids, created,"
        " (SELECT count(*) FROM entries WHERE entries.watchlist_id = watchlists.watchlist_id)"
        " FROM watchlists WHERE watchlist_id = coalesce(?, watchlist_id) ORDER BY watchlist_id",
        (only,),
    )
    return [
        Watchlist(name, purpose, threshold, tuple(json.loads(cameras)), created, entries)
        for name, purpose, threshold, cameras, created, entries in rows
    ]


def _entries(
    connection: sqlite3.Connection, watchlist_id: str, only: str | None = None
) -> list[Entry]:
    rows = connection.execute(
        "SELECT watchlist_id, entry_id, label, threshold, model_bundle, embedding, face_id,"
        " created, expires FROM entries WHERE watchlist_id = ?"
        " AND entry_id = coalesce(?, entry_id) ORDER BY created, entry_id",
        (watchlist_id, only),
    )
    return [
        Entry(
            watchlist_id=row[0],
            entry_id=row[1],
            label=row[2],
            threshold=row[3],
            model_bundle=row[4],
            embedding=stored_vector(row[5]),
            face_id=row[6],
            created=row[7],
            expires=row[8],
        )
        for row in rows
    ]
