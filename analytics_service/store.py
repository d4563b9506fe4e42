"""What analytics keeps: results, their visits, failed faces, and the cursor of each edge.

Belongs here: their tables and every query on them. Does not belong here: analysis and messages;
watchlists and webhooks, which have tables of their own in the same database.

Results, the visits and alerts that come of them, and the cursors of the edges they came from are
committed in one transaction. After any stop, `kill -9` and power loss included, the feed goes on
exactly behind the last face that is kept: none is lost, none comes twice. A face that an edge sends
again all the same is known by its id.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from analytics_service.records import StoredResult, stored_vector, vector_bytes
from analytics_service.schema import MIGRATIONS
from analytics_service.visits import Visit, VisitTracker
from analytics_service.watchlists import Watchlists
from sfic.errors import BundleMismatch
from sfic.forgetting import is_meant
from sfic.service.sqlite import Database
from sfic.v1 import analytics_pb2, control_pb2

__all__ = ["Committed", "FailedFace", "Pruned", "ResultStore", "Retention", "VisitQuery"]

_COLUMNS = ", ".join(field.name for field in fields(StoredResult))
_MARKS = ", ".join("?" * len(fields(StoredResult)))
_FAILURE_COLUMNS = "face_id, edge, code, message, happened, model_bundle, edge_cursor"
_VISIT_COLUMNS = ", ".join(field.name for field in fields(Visit))
# SQLite takes a limited number of parameters in one statement.
_CHUNK = 500
# Visits that are looked at after a start, the newest; older ones have ended.
_RECENT_VISITS = 10_000


@dataclass(frozen=True)
class FailedFace:
    """A face whose basic layer could not be read; `code` is that of the error tree.

    `model_bundle` and `edge_cursor`: what it was coded with and its place in the edge's log.
    """

    face_id: str
    edge: str
    code: str
    message: str
    happened: int
    model_bundle: str
    edge_cursor: int


@dataclass(frozen=True)
class Retention:
    """What may stay: the newest `max_results`, and of them those made since `oldest` (Unix ns).

    The same holds for faces that could not be read, and the age for alerts. While the database
    holds more than `max_bytes`, the oldest results go.
    """

    oldest: int
    max_results: int
    max_bytes: int


@dataclass(frozen=True)
class Pruned:
    """What retention deleted: cursors of results, by reason; how many failures and alerts."""

    results: Mapping[str, list[int]]
    failures: int
    alerts: int

    @property
    def cursors(self) -> list[int]:
        """Cursors of all results deleted."""
        return sorted(cursor for each in self.results.values() for cursor in each)


@dataclass(frozen=True)
class Committed:
    """What a commit made: new results with their cursors, and how many alerts up to which one."""

    results: list[StoredResult]
    alerts: int
    newest_alert: int


@dataclass(frozen=True)
class VisitQuery:
    """Which visits, and where their page starts: behind the visit (first, id), latest first."""

    camera_ids: Sequence[str]
    seen_from: int | None
    seen_until: int | None
    min_faces: int
    after: tuple[int, str] | None
    limit: int


class ResultStore:
    """The database of analytics. Every method raises `StorageError` when the disk fails."""

    def __init__(self, path: Path, visits: VisitTracker, watchlists: Watchlists) -> None:
        """Opens or makes the database."""
        self.database = Database(path, MIGRATIONS, salvaged=self._read_again)
        self._visits = visits
        self._watchlists = watchlists
        self.database.write_now(self._resume_visits)

    def close(self) -> None:
        """Finishes what was asked for and closes; waits."""
        self.database.close()

    async def commit(
        self,
        results: Sequence[StoredResult],
        failures: Sequence[FailedFace],
        cursors: Mapping[str, int],
        logs: Mapping[str, str] | None = None,
    ) -> Committed:
        """Keeps it all or nothing, and moves the cursor of each edge in the same transaction.

        Results of faces already known are left out; the others get their cursors, in the order
        given, their visits and their alerts. `logs` names the logs of the edges that the cursors
        are of.
        """
        plan = self._visits.plan()

        def work(connection: sqlite3.Connection) -> Committed:
            plan.changed.clear()
            new: list[StoredResult] = []
            known = _known_faces(connection, [result.face_id for result in results])
            cursor = _newest(connection, "results")
            for result in results:
                if result.face_id in known:
                    continue
                known.add(result.face_id)
                cursor += 1
                visit = plan.place(result.sighting(), cursor) if result.embedding else None
                new.append(replace(result, cursor=cursor, visit_id=visit))
            connection.executemany(
                f"INSERT INTO results ({_COLUMNS}) VALUES ({_MARKS})", map(_row, new)
            )
            _put_visits(connection, plan.changed.values())
            alerts = self._watchlists.raise_alerts(connection, new)
            connection.executemany(
                # A face that was read before, perhaps with another model bundle, has not failed.
                f"INSERT OR REPLACE INTO failures ({_FAILURE_COLUMNS}) SELECT ?1, ?2, ?3, ?4, ?5,"
                " ?6, ?7 WHERE NOT EXISTS (SELECT 1 FROM results WHERE face_id = ?1)",
                [tuple(getattr(f, field.name) for field in fields(f)) for f in failures],
            )
            connection.executemany(
                "INSERT INTO feeds (edge, cursor) VALUES (?, ?)"
                " ON CONFLICT (edge) DO UPDATE SET cursor = excluded.cursor",
                cursors.items(),
            )
            connection.executemany(
                "UPDATE feeds SET log_id = ?2 WHERE edge = ?1", (logs or {}).items()
            )
            return Committed(new, alerts, _newest(connection, "alerts"))

        return await self.database.write(work, lambda _: self._visits.accept(plan.changed.values()))

    async def edge_cursor(self, edge: str) -> int:
        """The cursor to resume an edge's feed after; 0 when it was never read."""
        row = await self.database.read(
            lambda c: c.execute("SELECT cursor FROM feeds WHERE edge = ?", (edge,)).fetchone()
        )
        return int(row[0]) if row else 0

    async def edge_log(self, edge: str) -> str:
        """The name of the log that the edge's cursor is of; empty: not known."""
        row = await self.database.read(
            lambda c: c.execute("SELECT log_id FROM feeds WHERE edge = ?", (edge,)).fetchone()
        )
        return str(row[0]) if row else ""

    async def forget_place(self, edge: str) -> tuple[int, str]:
        """Cursor and log of the last order to forget that was carried out; 0 and "": none."""
        row = await self.database.read(
            lambda c: c.execute(
                "SELECT forget_cursor, forget_log_id FROM feeds WHERE edge = ?", (edge,)
            ).fetchone()
        )
        return (int(row[0]), str(row[1])) if row else (0, "")

    async def newest_time(self) -> int:
        """When the newest result was made, in Unix nanoseconds; 0 when there is none."""
        row = await self.database.read(
            lambda c: c.execute(
                "SELECT analysed FROM results ORDER BY cursor DESC LIMIT 1"
            ).fetchone()
        )
        return int(row[0]) if row else 0

    async def newest_cursor(self) -> int:
        """The highest cursor ever given, also when that result is gone; 0 before the first."""
        return await self.database.read(lambda c: _newest(c, "results"))

    async def page(self, after: int, limit: int) -> list[StoredResult]:
        """At most `limit` results behind a cursor, in order."""
        rows = await self.database.read(
            lambda c: c.execute(
                f"SELECT {_COLUMNS} FROM results WHERE cursor > ? ORDER BY cursor LIMIT ?",
                (after, limit),
            ).fetchall()
        )
        return [StoredResult(*row) for row in rows]

    async def by_face(self, face_id: str) -> StoredResult | None:
        """The result of a face, or None."""
        row = await self.database.read(
            lambda c: c.execute(
                f"SELECT {_COLUMNS} FROM results WHERE face_id = ?", (face_id,)
            ).fetchone()
        )
        return StoredResult(*row) if row else None

    async def by_cursors(self, cursors: Sequence[int]) -> dict[int, StoredResult]:
        """Results by cursor; those that are gone are left out."""

        def work(connection: sqlite3.Connection) -> dict[int, StoredResult]:
            query = f"SELECT {_COLUMNS} FROM results WHERE cursor IN "
            return {row[0]: StoredResult(*row) for row in _each(connection, query, cursors)}

        return await self.database.read(work)

    async def visits(self, query: VisitQuery) -> list[Visit]:
        """Visits, latest first face first."""
        where, values = ["faces >= ?"], [query.min_faces]
        given: list[object] = list(values)
        if query.camera_ids:
            where.append(f"camera_id IN ({', '.join('?' * len(query.camera_ids))})")
            given += query.camera_ids
        if query.seen_from is not None:
            where.append("last >= ?")
            given.append(query.seen_from)
        if query.seen_until is not None:
            where.append("first <= ?")
            given.append(query.seen_until)
        if query.after is not None:
            where.append("(first, visit_id) < (?, ?)")
            given += query.after
        sql = (
            f"SELECT {_VISIT_COLUMNS} FROM visits WHERE {' AND '.join(where)}"
            " ORDER BY first DESC, visit_id DESC LIMIT ?"
        )
        rows = await self.database.read(lambda c: c.execute(sql, (*given, query.limit)).fetchall())
        return [_visit(row) for row in rows]

    async def failures(self) -> list[FailedFace]:
        """Every face that could not be read, oldest first."""
        rows = await self.database.read(
            lambda c: c.execute(
                f"SELECT {_FAILURE_COLUMNS} FROM failures ORDER BY happened, face_id"
            ).fetchall()
        )
        return [FailedFace(*row) for row in rows]

    async def retry_failed(self, model_bundle: str) -> int:
        """Reads again the faces that only another model bundle than this one could not read.

        The feeds of their edges go back to before them; faces that are known are not kept twice.
        Returns how many they are.
        """
        where = "code = ? AND model_bundle = ? AND edge_cursor > 0"
        values = (BundleMismatch.code, model_bundle)

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(
                "UPDATE feeds SET cursor = min(cursor, coalesce((SELECT min(edge_cursor) - 1"
                f" FROM failures WHERE edge = feeds.edge AND {where}), cursor))",
                values,
            )
            return connection.execute(f"DELETE FROM failures WHERE {where}", values).rowcount

        return await self.database.write(work)

    async def prune(self, retention: Retention) -> Pruned:
        """Deletes what may not stay."""

        def work(connection: sqlite3.Connection) -> Pruned:
            failures = connection.execute(
                "DELETE FROM failures WHERE happened < ? OR rowid <="
                " (SELECT rowid FROM failures ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                (retention.oldest, retention.max_results),
            ).rowcount
            alerts = connection.execute(
                "DELETE FROM alerts WHERE raised < ?", (retention.oldest,)
            ).rowcount
            results = {
                "age": self._delete_results(connection, "analysed < ?", retention.oldest),
                "count": self._delete_results(
                    connection,
                    "cursor <= (SELECT cursor FROM results ORDER BY cursor DESC LIMIT 1 OFFSET ?)",
                    retention.max_results,
                ),
                "bytes": self._delete_results(
                    connection,
                    "cursor IN (SELECT cursor FROM results ORDER BY cursor LIMIT ?)",
                    _surplus(connection, retention.max_bytes),
                ),
            }
            return Pruned(results, failures, alerts)

        return await self.database.write(
            work, lambda pruned: self._follow_visits() if pruned.cursors else None
        )

    def _delete_results(self, connection: sqlite3.Connection, where: str, value: int) -> list[int]:
        rows = connection.execute(
            f"DELETE FROM results WHERE {where} RETURNING cursor, visit_id", (value,)
        ).fetchall()
        self._mend_visits(connection, {row[1] for row in rows if row[1]})
        return [int(row[0]) for row in rows]

    async def forget(self, edge: str, order: control_pb2.FollowForgottenResponse) -> list[int]:
        """Deletes what an edge's order to forget means, and all that came of those faces.

        Returns the cursors of the results deleted. Faces that are not kept are no error. What was
        deleted is overwritten in the database's files when this returns.
        """

        def work(connection: sqlite3.Connection) -> list[int]:
            named = list(order.scope.face_ids)
            query = "SELECT face_id, analysis FROM results"
            rows = _each(connection, f"{query} WHERE face_id IN ", named) if named else None
            meant = [
                str(face_id)
                for face_id, analysis in rows or connection.execute(query)
                if is_meant(order, analytics_pb2.FaceAnalysis.FromString(analysis).face)
            ]
            gone = self._delete_faces(connection, list({*named, *meant}))
            connection.execute(
                "INSERT INTO feeds (edge, cursor, forget_cursor, forget_log_id)"
                " VALUES (?, 0, ?, ?) ON CONFLICT (edge) DO UPDATE SET"
                " forget_cursor = excluded.forget_cursor, forget_log_id = excluded.forget_log_id",
                (edge, order.cursor, order.log_id),
            )
            return gone

        gone = await self.database.write(work, lambda _: self._follow_visits())
        await self.database.scrub()
        return gone

    def _delete_faces(self, connection: sqlite3.Connection, face_ids: Sequence[str]) -> list[int]:
        """Results, alerts, watchlist entries and failures of these faces; cursors of the first."""
        rows = list(
            _each(
                connection,
                "DELETE FROM results WHERE face_id IN ",
                face_ids,
                " RETURNING cursor, visit_id",
            )
        )
        for table in ("alerts", "entries", "failures"):
            list(_each(connection, f"DELETE FROM {table} WHERE face_id IN ", face_ids))
        self._watchlists.forget_loaded()
        self._mend_visits(connection, {row[1] for row in rows if row[1]})
        return sorted(int(row[0]) for row in rows)

    def _read_again(self, connection: sqlite3.Connection) -> None:
        """After damage: what was lost is read from the edges again, as far as they keep it."""
        connection.execute("UPDATE feeds SET cursor = 0")
        visits = connection.execute(
            "SELECT visit_id FROM visits UNION SELECT visit_id FROM results"
        ).fetchall()
        self._mend_visits(connection, {row[0] for row in visits if row[0]})

    def _mend_visits(self, connection: sqlite3.Connection, visit_ids: set[str]) -> None:
        """Makes visits say only what their results that are left say."""
        for visit_id in visit_ids:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM results WHERE visit_id = ? ORDER BY cursor", (visit_id,)
            ).fetchall()
            left = [StoredResult(*row) for row in rows]
            connection.execute("DELETE FROM visits WHERE visit_id = ?", (visit_id,))
            if not left:
                connection.execute("DELETE FROM alerts WHERE visit_id = ?", (visit_id,))
                continue
            visit = Visit.started_by(left[0].sighting(), left[0].cursor)
            for result in left[1:]:
                visit = visit.joined_by(result.sighting(), result.cursor)
            _put_visits(connection, [replace(visit, visit_id=visit_id)])

    def _follow_visits(self) -> None:
        self.database.write_now(self._resume_visits)

    def _resume_visits(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute(
            f"SELECT {_VISIT_COLUMNS} FROM visits ORDER BY newest DESC LIMIT ?", (_RECENT_VISITS,)
        ).fetchall()
        self._visits.replace_all([_visit(row) for row in reversed(rows)])


def _each(
    connection: sqlite3.Connection, query: str, values: Sequence[object], after: str = ""
) -> Iterable[tuple[Any, ...]]:
    """Rows of a query that ends in `IN (values)`, in as many pieces as SQLite needs."""
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        yield from connection.execute(f"{query}({', '.join('?' * len(chunk))}){after}", chunk)


def _known_faces(connection: sqlite3.Connection, face_ids: Sequence[str]) -> set[str]:
    query = "SELECT face_id FROM results WHERE face_id IN "
    return {str(row[0]) for row in _each(connection, query, face_ids)}


def _surplus(connection: sqlite3.Connection, max_bytes: int) -> int:
    """How many results have to go, all being as large as their mean, to be under `max_bytes`."""
    pages, free, page_bytes = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    used = (pages - free) * page_bytes
    if used <= max_bytes:
        return 0
    results = int(connection.execute("SELECT count(*) FROM results").fetchone()[0])
    return math.ceil(results * (used - max_bytes) / used)


def _newest(connection: sqlite3.Connection, table: str) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return int(row[0]) if row else 0


def _row(result: StoredResult) -> tuple[object, ...]:
    return tuple(getattr(result, field.name) for field in fields(StoredResult))


def _visit(row: Sequence[Any]) -> Visit:
    values = (*row[:-1], stored_vector(row[-1]))
    return Visit(*values)


def _put_visits(connection: sqlite3.Connection, visits: Iterable[Visit]) -> None:
    marks = ", ".join("?" * len(fields(Visit)))
    connection.executemany(
        f"INSERT OR REPLACE INTO visits ({_VISIT_COLUMNS}) VALUES ({marks})",
        [
            (
                *(getattr(visit, field.name) for field in fields(Visit)[:-1]),
                vector_bytes(visit.total),
            )
            for visit in visits
        ],
    )
