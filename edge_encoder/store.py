"""The edge's store: a log of faces with their layers, in SQLite.

A face has a cursor, its place in the log: cursors grow in the order of commits, so that a reader
who has seen one has seen all before it. Retention drops the oldest faces. Nothing here speaks gRPC.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge_encoder.metrics import EdgeMetrics
from sfic.service.sqlite import Database
from sfic.v1 import common_pb2

__all__ = ["FaceStore", "FrameKey", "KeptFace", "LogEntry", "NewFace", "Page"]

log = structlog.get_logger(__name__)

LAYER_COLUMNS = ("basic", "middle", "enhanced")
_ROW_OVERHEAD_BYTES = 128
_EVICT_AT_ONCE = 10_000

_MIGRATIONS = (
    """
    CREATE TABLE faces (
        cursor INTEGER PRIMARY KEY AUTOINCREMENT,
        face_id TEXT NOT NULL UNIQUE,
        camera_id TEXT NOT NULL,
        capture_ns INTEGER,
        frame_number INTEGER NOT NULL,
        stored_ms INTEGER NOT NULL,
        face_score REAL NOT NULL,
        info BLOB NOT NULL,
        size INTEGER NOT NULL,
        basic BLOB NOT NULL,
        middle BLOB,
        enhanced BLOB
    );
    CREATE INDEX faces_by_frame ON faces (camera_id, capture_ns, frame_number);
    CREATE TABLE log_state (
        only INTEGER PRIMARY KEY CHECK (only = 0),
        evicted_cursor INTEGER NOT NULL,
        faces INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    );
    INSERT INTO log_state VALUES (0, 0, 0, 0)
    """,
)


@dataclass(frozen=True)
class FrameKey:
    """Names a frame that may be sent twice; `capture_ns` is None when the camera gave no time."""

    camera_id: str
    capture_ns: int | None
    frame_number: int


@dataclass(frozen=True)
class NewFace:
    """A face to keep. `layers` holds basic, middle, enhanced; the higher two may be None."""

    info: common_pb2.FaceInfo
    layers: tuple[bytes, bytes | None, bytes | None]


@dataclass(frozen=True)
class LogEntry:
    """A face as the feed sends it."""

    cursor: int
    info: common_pb2.FaceInfo
    basic: bytes


@dataclass(frozen=True)
class KeptFace:
    """A face as a decoder fetches it; only the layers asked for, None where the edge has none."""

    info: common_pb2.FaceInfo
    layers: dict[str, bytes | None]


@dataclass(frozen=True)
class Page:
    """A piece of the log. Read on from `next_cursor`; `more` when there is something already."""

    entries: list[LogEntry]
    next_cursor: int
    more: bool
    evicted_cursor: int
    """Highest cursor that retention dropped; 0: none."""


@dataclass(frozen=True)
class _Retention:
    """What was dropped, and what is left."""

    by_age: int
    by_bytes: int
    faces: int
    size: int


class FaceStore:
    """Faces of one edge; opened when made, used from one event loop, then closed."""

    def __init__(
        self,
        path: Path,
        metrics: EdgeMetrics,
        *,
        retention_seconds: float,
        retention_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = Database(path, _MIGRATIONS)
        self._metrics = metrics
        self._retention_seconds = retention_seconds
        self._retention_bytes = retention_bytes
        self._clock = clock
        self._grown = asyncio.Event()

    def close(self) -> None:
        """Finish writes, then close."""
        self._database.close()

    async def add_frame(self, key: FrameKey, faces: Sequence[NewFace]) -> list[common_pb2.FaceInfo]:
        """Keep the faces of a frame, all or none; synced to disk when this returns.

        A frame whose faces are kept already (same camera, capture time and number) is not kept
        again: the faces kept before are returned.
        """
        if not faces:
            return []
        stored_ms = int(self._clock() * 1000)

        def work(
            connection: sqlite3.Connection,
        ) -> tuple[list[common_pb2.FaceInfo], _Retention | None]:
            if before := _faces_of_frame(connection, key):
                return before, None
            total = 0
            for face in faces:
                info = face.info.SerializeToString()
                size = len(info) + sum(len(layer or b"") for layer in face.layers)
                size += _ROW_OVERHEAD_BYTES
                total += size
                connection.execute(
                    "INSERT INTO faces (face_id, camera_id, capture_ns, frame_number, stored_ms,"
                    " face_score, info, size, basic, middle, enhanced)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        face.info.face_id,
                        key.camera_id,
                        key.capture_ns,
                        key.frame_number,
                        stored_ms,
                        face.info.face_score,
                        info,
                        size,
                        *face.layers,
                    ),
                )
            connection.execute(
                "UPDATE log_state SET faces = faces + ?, bytes = bytes + ?", (len(faces), total)
            )
            return [face.info for face in faces], self._drop_old(connection)

        with self._metrics.commit_seconds.time():
            kept, retention = await self._database.write(work)
        if retention is not None:
            for face in faces:
                for name, layer in zip(LAYER_COLUMNS, face.layers, strict=True):
                    self._metrics.layer_bytes.labels(name).inc(len(layer or b""))
            self._report(retention)
            self._wake_readers()
        return kept

    async def find_frame(self, key: FrameKey) -> list[common_pb2.FaceInfo]:
        """Return the faces kept of a frame that was sent before; empty when there are none."""
        if key.capture_ns is None:
            return []
        return await self._database.read(lambda connection: _faces_of_frame(connection, key))

    async def page(
        self,
        after_cursor: int,
        *,
        camera_ids: Sequence[str] = (),
        min_face_score: float = 0.0,
        limit: int = 128,
    ) -> Page:
        """Read at most `limit` faces of the log after a cursor (exclusive), oldest first."""
        where, values = "cursor > ? AND face_score >= ?", [after_cursor, min_face_score]
        if camera_ids:
            where += f" AND camera_id IN ({','.join('?' * len(camera_ids))})"
        query = f"SELECT cursor, info, basic FROM faces WHERE {where} ORDER BY cursor LIMIT ?"

        def work(connection: sqlite3.Connection) -> Page:
            rows = connection.execute(query, (*values, *camera_ids, limit)).fetchall()
            entries = [
                LogEntry(cursor, common_pb2.FaceInfo.FromString(info), basic)
                for cursor, info, basic in rows
            ]
            more = len(entries) == limit
            return Page(
                entries,
                entries[-1].cursor if more else max(_last_cursor(connection), after_cursor),
                more,
                connection.execute("SELECT evicted_cursor FROM log_state").fetchone()[0],
            )

        return await self._database.read(work)

    async def last_cursor(self) -> int:
        """Return the cursor of the newest face ever kept; 0: none."""
        return await self._database.read(_last_cursor)

    def grown(self) -> asyncio.Event:
        """Return an event that the next new face sets. Take it before reading, wait after."""
        return self._grown

    async def fetch(
        self, face_ids: Sequence[str], layers: Sequence[str] = LAYER_COLUMNS
    ) -> dict[str, KeptFace]:
        """Return the faces that are kept, with the layers asked for, by face id."""
        names = [name for name in LAYER_COLUMNS if name in layers]
        query = (
            f"SELECT {', '.join(('face_id', 'info', *names))} FROM faces"
            f" WHERE face_id IN ({','.join('?' * len(face_ids))})"
        )

        def work(connection: sqlite3.Connection) -> dict[str, KeptFace]:
            return {
                face_id: KeptFace(
                    common_pb2.FaceInfo.FromString(info), dict(zip(names, blobs, strict=True))
                )
                for face_id, info, *blobs in connection.execute(query, list(face_ids))
            }

        return await self._database.read(work)

    async def evict(self) -> None:
        """Drop the oldest faces that are over the retention by age or by bytes."""
        more = True
        while more:
            retention = await self._database.write(self._drop_old)
            self._report(retention)
            more = retention.by_age + retention.by_bytes == _EVICT_AT_ONCE

    def _drop_old(self, connection: sqlite3.Connection) -> _Retention:
        """Do the work of `evict` inside a transaction, `_EVICT_AT_ONCE` faces at most."""
        oldest_ms = int((self._clock() - self._retention_seconds) * 1000)
        faces, size = connection.execute("SELECT faces, bytes FROM log_state").fetchone()
        by_age, by_bytes, last = 0, 0, 0
        for cursor, stored_ms, row_size in connection.execute(
            "SELECT cursor, stored_ms, size FROM faces ORDER BY cursor LIMIT ?", (_EVICT_AT_ONCE,)
        ):
            if stored_ms < oldest_ms:
                by_age += 1
            elif size > self._retention_bytes:
                by_bytes += 1
            else:
                break
            last, size = cursor, size - row_size
        faces -= by_age + by_bytes
        if last:
            connection.execute("DELETE FROM faces WHERE cursor <= ?", (last,))
            connection.execute(
                "UPDATE log_state SET evicted_cursor = ?, faces = ?, bytes = ?", (last, faces, size)
            )
        return _Retention(by_age, by_bytes, faces, size)

    def _report(self, retention: _Retention) -> None:
        self._metrics.store_faces.set(retention.faces)
        self._metrics.store_bytes.set(retention.size)
        for reason, count in (("age", retention.by_age), ("bytes", retention.by_bytes)):
            if count:
                self._metrics.evicted.labels(reason).inc(count)
                log.info("faces dropped by retention", reason=reason, faces=count)

    def _wake_readers(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


def _faces_of_frame(connection: sqlite3.Connection, key: FrameKey) -> list[common_pb2.FaceInfo]:
    if key.capture_ns is None:
        return []
    rows = connection.execute(
        "SELECT info FROM faces WHERE camera_id = ? AND capture_ns = ? AND frame_number = ?"
        " ORDER BY cursor",
        (key.camera_id, key.capture_ns, key.frame_number),
    )
    return [common_pb2.FaceInfo.FromString(info) for (info,) in rows]


def _last_cursor(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'faces'").fetchone()
    return int(row[0]) if row else 0
