"""What analytics keeps: results, faces that could not be read, and the cursor of each edge.

Belongs here: the tables and every query on them. Does not belong here: analysis and messages.

Results and the cursors of the edges they came from are committed in one transaction. After any
stop, `kill -9` and power loss included, the feed goes on exactly behind the last face that is kept:
none is lost, none comes twice. A face that an edge sends again all the same is known by its id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analytics_service.records import StoredResult
from sfic.forgetting import is_meant
from sfic.service.sqlite import Database
from sfic.v1 import analytics_pb2, control_pb2

__all__ = ["FailedFace", "ResultStore", "Retention"]

_MIGRATIONS = (
    """
    CREATE TABLE results (
        cursor INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, without gaps when given
        face_id TEXT NOT NULL UNIQUE,
        analysed INTEGER NOT NULL,                 -- Unix nanoseconds
        analysis BLOB NOT NULL,                    -- sfic.v1.FaceAnalysis without its embedding
        embedding BLOB NOT NULL                    -- float32, little-endian
    );
    CREATE INDEX results_analysed ON results (analysed);
    CREATE TABLE failures (
        face_id TEXT PRIMARY KEY,
        edge TEXT NOT NULL,
        code TEXT NOT NULL,
        message TEXT NOT NULL,
        happened INTEGER NOT NULL
    );
    CREATE TABLE feeds (
        edge TEXT PRIMARY KEY,
        cursor INTEGER NOT NULL
    );
    """,
    """
    ALTER TABLE feeds ADD COLUMN log_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE feeds ADD COLUMN forget_cursor INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE feeds ADD COLUMN forget_log_id TEXT NOT NULL DEFAULT '';
    """,
)

_COLUMNS = "cursor, face_id, analysed, analysis, embedding"
# SQLite takes a limited number of parameters in one statement.
_CHUNK = 500


@dataclass(frozen=True)
class FailedFace:
    """A face whose basic layer could not be read; `code` is that of the error tree."""

    face_id: str
    edge: str
    code: str
    message: str
    happened: int


@dataclass(frozen=True)
class Retention:
    """What may stay: the newest `max_results`, and of them those made since `oldest` (Unix ns).

    The same holds for faces that could not be read.
    """

    oldest: int
    max_results: int


class ResultStore:
    """The database of analytics. Every method raises `StorageError` when the disk fails."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the database."""
        self._database = Database(path, _MIGRATIONS)

    def close(self) -> None:
        """Finishes what was asked for and closes; waits."""
        self._database.close()

    async def commit(
        self,
        results: Sequence[StoredResult],
        failures: Sequence[FailedFace],
        cursors: Mapping[str, int],
        logs: Mapping[str, str] | None = None,
    ) -> list[StoredResult]:
        """Keeps it all or nothing, and moves the cursor of each edge in the same transaction.

        Returns the results that are new, with their cursors, in the order given; results of faces
        already known are left out. `logs` names the logs of the edges that the cursors are of.
        """

        def work(connection: sqlite3.Connection) -> list[StoredResult]:
            new: list[StoredResult] = []
            for result in results:
                # Looked up first because a refused insert would leave a gap in the cursors.
                if connection.execute(
                    "SELECT 1 FROM results WHERE face_id = ?", (result.face_id,)
                ).fetchone():
                    continue
                row = connection.execute(
                    "INSERT INTO results (face_id, analysed, analysis, embedding)"
                    " VALUES (?, ?, ?, ?)",
                    (result.face_id, result.analysed, result.analysis, result.embedding),
                )
                new.append(replace(result, cursor=row.lastrowid or 0))
            connection.executemany(
                "INSERT OR REPLACE INTO failures (face_id, edge, code, message, happened)"
                " VALUES (?, ?, ?, ?, ?)",
                [(f.face_id, f.edge, f.code, f.message, f.happened) for f in failures],
            )
            connection.executemany(
                "INSERT INTO feeds (edge, cursor) VALUES (?, ?)"
                " ON CONFLICT (edge) DO UPDATE SET cursor = excluded.cursor",
                cursors.items(),
            )
            connection.executemany(
                "UPDATE feeds SET log_id = ?2 WHERE edge = ?1", (logs or {}).items()
            )
            return new

        return await self._database.write(work)

    async def edge_cursor(self, edge: str) -> int:
        """The cursor to resume an edge's feed after; 0 when it was never read."""
        row = await self._database.read(
            lambda c: c.execute("SELECT cursor FROM feeds WHERE edge = ?", (edge,)).fetchone()
        )
        return int(row[0]) if row else 0

    async def edge_log(self, edge: str) -> str:
        """The name of the log that the edge's cursor is of; empty: not known."""
        row = await self._database.read(
            lambda c: c.execute("SELECT log_id FROM feeds WHERE edge = ?", (edge,)).fetchone()
        )
        return str(row[0]) if row else ""

    async def forget_place(self, edge: str) -> tuple[int, str]:
        """Cursor and log of the last order to forget that was carried out; 0 and "": none."""
        row = await self._database.read(
            lambda c: c.execute(
                "SELECT forget_cursor, forget_log_id FROM feeds WHERE edge = ?", (edge,)
            ).fetchone()
        )
        return (int(row[0]), str(row[1])) if row else (0, "")

    async def forget(self, edge: str, order: control_pb2.FollowForgottenResponse) -> list[int]:
        """Deletes what an edge's order to forget means; returns the cursors of the results.

        What was deleted is overwritten in the database's files when this returns.
        """
        named = set(order.scope.face_ids)

        def work(connection: sqlite3.Connection) -> list[int]:
            if named:
                marks = ", ".join("?" * len(named))
                rows = connection.execute(
                    f"SELECT cursor, face_id, analysis FROM results WHERE face_id IN ({marks})",
                    list(named),
                )
            else:
                rows = connection.execute("SELECT cursor, face_id, analysis FROM results")
            gone = []
            for cursor, face_id, analysis in rows:
                face = analytics_pb2.FaceAnalysis.FromString(analysis).face
                if is_meant(order, face):
                    gone.append((cursor, face_id))
            connection.executemany("DELETE FROM results WHERE cursor = ?", [(c,) for c, _ in gone])
            connection.executemany(
                "DELETE FROM failures WHERE face_id = ?", [(face_id,) for face_id in named]
            )
            connection.execute(
                "INSERT INTO feeds (edge, cursor, forget_cursor, forget_log_id)"
                " VALUES (?, 0, ?, ?) ON CONFLICT (edge) DO UPDATE SET"
                " forget_cursor = excluded.forget_cursor, forget_log_id = excluded.forget_log_id",
                (edge, order.cursor, order.log_id),
            )
            return [cursor for cursor, _ in gone]

        gone = await self._database.write(work)
        await self._database.scrub()
        return gone

    async def newest_cursor(self) -> int:
        """The highest cursor ever given, also when that result is gone; 0 before the first."""
        row = await self._database.read(
            lambda c: c.execute("SELECT seq FROM sqlite_sequence WHERE name = 'results'").fetchone()
        )
        return int(row[0]) if row else 0

    async def page(self, after: int, limit: int) -> list[StoredResult]:
        """At most `limit` results behind a cursor, in order."""
        rows = await self._database.read(
            lambda c: c.execute(
                f"SELECT {_COLUMNS} FROM results WHERE cursor > ? ORDER BY cursor LIMIT ?",
                (after, limit),
            ).fetchall()
        )
        return [StoredResult(*row) for row in rows]

    async def by_face(self, face_id: str) -> StoredResult | None:
        """The result of a face, or None."""
        row = await self._database.read(
            lambda c: c.execute(
                f"SELECT {_COLUMNS} FROM results WHERE face_id = ?", (face_id,)
            ).fetchone()
        )
        return StoredResult(*row) if row else None

    async def by_cursors(self, cursors: Sequence[int]) -> dict[int, StoredResult]:
        """Results by cursor; those that are gone are left out."""

        def work(connection: sqlite3.Connection) -> dict[int, StoredResult]:
            found: dict[int, StoredResult] = {}
            for start in range(0, len(cursors), _CHUNK):
                chunk = cursors[start : start + _CHUNK]
                marks = ", ".join("?" * len(chunk))
                for row in connection.execute(
                    f"SELECT {_COLUMNS} FROM results WHERE cursor IN ({marks})", chunk
                ):
                    found[row[0]] = StoredResult(*row)
            return found

        return await self._database.read(work)

    async def failures(self) -> list[FailedFace]:
        """Every face that could not be read, oldest first."""
        rows = await self._database.read(
            lambda c: c.execute(
                "SELECT face_id, edge, code, message, happened FROM failures"
                " ORDER BY happened, face_id"
            ).fetchall()
        )
        return [FailedFace(*row) for row in rows]

    async def prune(self, retention: Retention) -> list[int]:
        """Deletes what may not stay; returns the cursors of the results deleted."""

        def work(connection: sqlite3.Connection) -> list[int]:
            connection.execute(
                "DELETE FROM failures WHERE happened < ? OR rowid <="
                " (SELECT rowid FROM failures ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                (retention.oldest, retention.max_results),
            )
            rows = connection.execute(
                "DELETE FROM results WHERE analysed < ? OR cursor <="
                " (SELECT cursor FROM results ORDER BY cursor DESC LIMIT 1 OFFSET ?)"
                " RETURNING cursor",
                (retention.oldest, retention.max_results),
            ).fetchall()
            return sorted(int(row[0]) for row in rows)

        return await self._database.write(work)
