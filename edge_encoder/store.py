"""The edge's store: a log of faces with their layers, in SQLite.

A face has a cursor, its place in the log: cursors grow in the order of commits, so that a reader
who has seen one has seen all before it. Layers are sealed before they are kept; their keys lie in
`edge_encoder.keys`, written before a face and destroyed before it goes, so that a face without its
keys is one that is going. Retention drops the oldest faces; an order to forget drops the ones that
it names, and stays for the services that have to follow it. Nothing here speaks gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from edge_encoder.keys import KeyStore
from edge_encoder.metrics import EdgeMetrics
from sfic.errors import StorageDamaged, StorageError
from sfic.sealing import seal_layer
from sfic.service.clock import SteadyClock
from sfic.service.sqlite import Database
from sfic.v1 import common_pb2, control_pb2

__all__ = ["FaceStore", "ForgetOrder", "FrameKey", "KeptFace", "LogEntry", "NewFace", "Page"]

log = structlog.get_logger(__name__)

LAYER_COLUMNS = ("basic", "middle", "enhanced")
# What a row and its keys take beside the layers and what is known of the face.
_ROW_OVERHEAD_BYTES = 384
_SIZE_COLUMN = 7
# A face goes some milliseconds after its keys.
_KEY_TRIES = 100
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
    """
    ALTER TABLE faces ADD COLUMN sealed INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX faces_unsealed ON faces (cursor) WHERE sealed = 0;
    ALTER TABLE log_state ADD COLUMN log_id TEXT NOT NULL DEFAULT '';
    UPDATE log_state SET log_id = lower(hex(randomblob(8)));
    CREATE TABLE forget_orders (
        cursor INTEGER PRIMARY KEY AUTOINCREMENT,
        scope BLOB NOT NULL,
        last_face_cursor INTEGER NOT NULL,
        done INTEGER NOT NULL
    );
    CREATE TABLE grants (
        grant_id TEXT PRIMARY KEY,
        message BLOB NOT NULL
    )
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
    """A face as the feed sends it: its sealed basic layer and the key that opens it."""

    cursor: int
    info: common_pb2.FaceInfo
    sealed: bytes
    key: bytes
    unreadable_before: int
    """Faces between this one and the one before that a damaged page of the disk holds."""


@dataclass(frozen=True)
class KeptFace:
    """A face as a decoder fetches it: the layers asked for, sealed, None where there is none."""

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
    unreadable: int
    """The same behind the last entry."""


@dataclass(frozen=True)
class ForgetOrder:
    """An order to forget, for those who follow. Faces behind `last_face_cursor` are not meant."""

    cursor: int
    scope: control_pb2.ForgetScope
    last_face_cursor: int


@dataclass(frozen=True)
class _Doomed:
    """The oldest faces that retention drops next."""

    face_ids: list[str]
    by_age: int
    by_bytes: int


class FaceStore:
    """Faces of one edge; opened when made, used from one event loop, then closed."""

    def __init__(
        self,
        path: Path,
        metrics: EdgeMetrics,
        *,
        retention_seconds: float,
        retention_bytes: int,
        key_file: Path | None = None,
        clock: SteadyClock | None = None,
    ) -> None:
        """`key_file`: master key of the layers' keys; None: master.key beside the database.

        Age is counted by `clock`, from the time of the newest face on if it lags behind that.
        """
        self._opened = time.perf_counter()
        self._keys = KeyStore(
            path.with_name("keys.sqlite"), key_file or path.with_name("master.key")
        )
        try:
            self._database = Database(path, _MIGRATIONS, salvaged=_recount)
        except BaseException:
            self._keys.close()
            raise
        self._metrics = metrics
        self._retention_seconds = retention_seconds
        self._retention_bytes = retention_bytes
        self.clock = clock or SteadyClock()
        """The edge's time of day, never before that of the newest face."""
        self._grown = asyncio.Event()
        self._ordered = asyncio.Event()
        # One at a time takes faces out of the log.
        self._dropping = asyncio.Lock()
        self._dropped: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Finish writes, then close."""
        self._database.close()
        self._keys.close()

    @property
    def database(self) -> Database:
        """The database, for the edge's other tables in it."""
        return self._database

    async def recover(self) -> None:
        """Finish what an earlier run was stopped in, and seal what an earlier release kept open."""
        newest_ms = await self._database.read(
            lambda c: c.execute(
                "SELECT stored_ms FROM faces ORDER BY cursor DESC LIMIT 1"
            ).fetchone()
        )
        if newest_ms is not None:
            self.clock.not_before(newest_ms[0] / 1000)
        await self._drop_keys_without_faces()
        if self._keys.is_salvaged:
            await self._drop_faces_without_keys()
        await self._seal_old()
        pending = await self._database.read(
            lambda c: c.execute("SELECT cursor FROM forget_orders WHERE done = 0").fetchall()
        )
        for (cursor,) in pending:
            await self._carry_out(cursor)
        await self.evict()
        log.info("store repaired", seconds=round(time.perf_counter() - self._opened, 3))

    async def add_frame(self, key: FrameKey, faces: Sequence[NewFace]) -> list[common_pb2.FaceInfo]:
        """Keep the faces of a frame, all or none; synced to disk when this returns.

        A frame whose faces are kept already (same camera, capture time and number) is not kept
        again: the faces kept before are returned.
        """
        if not faces:
            return []
        stored_ms = int(self.clock() * 1000)
        face_ids = [face.info.face_id for face in faces]
        layers = [_without_none(face.layers) for face in faces]

        with self._metrics.commit_seconds.time():
            keys = await self._keys.make(
                [
                    (face_id, key.camera_id, list(named))
                    for face_id, named in zip(face_ids, layers, strict=True)
                ]
            )
            rows = [
                _row(face, key, stored_ms, _seal(face.info.face_id, named, keys))
                for face, named in zip(faces, layers, strict=True)
            ]

            def work(connection: sqlite3.Connection) -> list[common_pb2.FaceInfo]:
                if before := _faces_of_frame(connection, key):
                    return before
                connection.executemany(
                    "INSERT INTO faces (face_id, camera_id, capture_ns, frame_number, stored_ms,"
                    " face_score, info, size, sealed, basic, middle, enhanced)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)",
                    rows,
                )
                connection.execute(
                    "UPDATE log_state SET faces = faces + ?, bytes = bytes + ?",
                    (len(rows), sum(row[_SIZE_COLUMN] for row in rows)),
                )
                return [face.info for face in faces]

            try:
                kept = await self._database.write(work)
            except StorageError:
                with contextlib.suppress(StorageError):
                    await self._keys.destroy(face_ids)
                raise
        if kept[0].face_id != face_ids[0]:
            await self._keys.destroy(face_ids)
            return kept
        self._keys.confirm(face_ids)
        for named in layers:
            for name, layer in named.items():
                self._metrics.layer_bytes.labels(name).inc(len(layer))
        self._wake_readers()
        await self.evict()
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
        query = (
            "SELECT cursor, face_id, info, basic FROM faces"
            f" WHERE sealed = 1 AND {where} ORDER BY cursor LIMIT ?"
        )

        def work(connection: sqlite3.Connection) -> tuple[list[Any], int, int]:
            rows = connection.execute(query, (*values, *camera_ids, limit)).fetchall()
            last = rows[-1][0] if len(rows) == limit else _last_cursor(connection)
            state = connection.execute("SELECT evicted_cursor FROM log_state").fetchone()
            return rows, max(last, after_cursor), state[0]

        for _ in range(_KEY_TRIES):
            rows, next_cursor, evicted_cursor = await self._database.read(work)
            # Read after the faces: a key that is not there is of a face that goes just now.
            keys = await self._keys.find([face_id for _, face_id, _, _ in rows], ["basic"])
            if len(keys) == len(rows):
                break
            await asyncio.sleep(0.01)
        else:
            log.error("faces without their keys left out", faces=len(rows) - len(keys))
        entries: list[LogEntry] = []
        unreadable = 0
        for cursor, face_id, message, sealed in rows:
            if (key := keys.get((face_id, "basic"))) is None:
                continue
            try:
                info = _face_info(face_id, message)
            except StorageDamaged as error:
                # One such face must not end the log for all who read it.
                unreadable += 1
                log.error("face left out of the feed", reason=error.message)
                continue
            entries.append(LogEntry(cursor, info, sealed, key, unreadable))
            unreadable = 0
        return Page(entries, next_cursor, len(rows) == limit, evicted_cursor, unreadable)

    async def log_id(self) -> str:
        """Return the name of this log, which a new database gives itself."""
        row = await self._database.read(
            lambda c: c.execute("SELECT log_id FROM log_state").fetchone()
        )
        return str(row[0])

    async def last_cursor(self) -> int:
        """Return the cursor of the newest face ever kept; 0: none."""
        return await self._database.read(_last_cursor)

    def when_dropped(self, call: Callable[[], None]) -> None:
        """Have a function called, in the event loop, after faces were taken out of the log."""
        self._dropped = call

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
                face_id: KeptFace(_face_info(face_id, info), dict(zip(names, blobs, strict=True)))
                for face_id, info, *blobs in connection.execute(query, list(face_ids))
            }

        return await self._database.read(work)

    async def keys(self, face_ids: Sequence[str], layers: Sequence[str]) -> dict[Any, bytes]:
        """Return the keys of layers, by face id and layer; those that are gone are left out."""
        return await self._keys.find(face_ids, layers)

    async def evict(self) -> None:
        """Drop the oldest faces that are over the retention by age or by bytes."""
        async with self._dropping:
            while True:
                doomed, faces, size = await self._database.read(self._find_old)
                if doomed.face_ids:
                    faces, size = await self._drop(doomed.face_ids, evicted=True)
                self._metrics.store_faces.set(faces)
                self._metrics.store_bytes.set(size)
                for reason, count in (("age", doomed.by_age), ("bytes", doomed.by_bytes)):
                    if count:
                        self._metrics.evicted.labels(reason).inc(count)
                        log.info("faces dropped by retention", reason=reason, faces=count)
                if len(doomed.face_ids) < _EVICT_AT_ONCE:
                    return

    def _find_old(self, connection: sqlite3.Connection) -> tuple[_Doomed, int, int]:
        """What `evict` drops next, and how many faces and bytes there are before it."""
        oldest_ms = int((self.clock() - self._retention_seconds) * 1000)
        faces, size = connection.execute("SELECT faces, bytes FROM log_state").fetchone()
        by_age, by_bytes, left, face_ids = 0, 0, size, []
        for face_id, stored_ms, row_size in connection.execute(
            "SELECT face_id, stored_ms, size FROM faces ORDER BY cursor LIMIT ?", (_EVICT_AT_ONCE,)
        ):
            if stored_ms < oldest_ms:
                by_age += 1
            elif left > self._retention_bytes:
                by_bytes += 1
            else:
                break
            face_ids.append(face_id)
            left -= row_size
        return _Doomed(face_ids, by_age, by_bytes), faces, size

    async def _drop(self, face_ids: Sequence[str], *, evicted: bool) -> tuple[int, int]:
        """Take faces out of the log, their keys first; returns how many and how large the rest."""
        await self._keys.destroy(face_ids)

        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            gone = [
                row
                for face_id in face_ids
                for row in connection.execute(
                    "DELETE FROM faces WHERE face_id = ? RETURNING cursor, size", (face_id,)
                ).fetchall()
            ]
            connection.execute(
                "UPDATE log_state SET faces = faces - ?, bytes = bytes - ?",
                (len(gone), sum(size for _, size in gone)),
            )
            if evicted and gone:
                connection.execute("UPDATE log_state SET evicted_cursor = ?", (max(gone)[0],))
            return tuple(connection.execute("SELECT faces, bytes FROM log_state").fetchone())

        try:
            return await self._database.write(work)
        finally:
            self._dropped()

    async def forget(self, scope: control_pb2.ForgetScope) -> tuple[ForgetOrder, int]:
        """Destroy the keys of the faces meant, and the faces; returns the order and their number.

        Once the order is written it is carried out, if need be by the next start. What was deleted
        is overwritten in the files when this returns.
        """

        def work(connection: sqlite3.Connection) -> int:
            row = connection.execute(
                "INSERT INTO forget_orders (scope, last_face_cursor, done) VALUES (?, ?, 0)",
                (scope.SerializeToString(), _last_cursor(connection)),
            )
            return row.lastrowid or 0

        cursor = await self._database.write(work)
        return await self._carry_out(cursor)

    async def _carry_out(self, cursor: int) -> tuple[ForgetOrder, int]:
        async with self._dropping:
            order = (await self._orders(cursor - 1, 1, done=0))[0]
            face_ids = await self._database.read(lambda c: _faces_meant(c, order))
            faces, size = await self._drop(face_ids, evicted=False)
            await self._database.write(
                lambda c: c.execute("UPDATE forget_orders SET done = 1 WHERE cursor = ?", (cursor,))
            )
            await self._keys.scrub()
            await self._database.scrub()
        self._metrics.store_faces.set(faces)
        self._metrics.store_bytes.set(size)
        self._ordered.set()
        self._ordered = asyncio.Event()
        return order, len(face_ids)

    async def forget_orders(self, after_cursor: int, limit: int = 100) -> list[ForgetOrder]:
        """Return the orders carried out after a cursor (exclusive), oldest first."""
        return await self._orders(after_cursor, limit, done=1)

    def ordered(self) -> asyncio.Event:
        """Return an event that the next order sets. Take it before reading, wait after."""
        return self._ordered

    async def _orders(self, after_cursor: int, limit: int, *, done: int) -> list[ForgetOrder]:
        rows = await self._database.read(
            lambda c: c.execute(
                "SELECT cursor, scope, last_face_cursor FROM forget_orders"
                " WHERE cursor > ? AND done = ? ORDER BY cursor LIMIT ?",
                (after_cursor, done, limit),
            ).fetchall()
        )
        return [
            ForgetOrder(cursor, control_pb2.ForgetScope.FromString(scope), last)
            for cursor, scope, last in rows
        ]

    async def _drop_keys_without_faces(self) -> None:
        """Keys are made before their face is stored: a stop between the two leaves them alone."""
        if not (made := await self._keys.unconfirmed()):
            return
        stored = await self.fetch(made, ())
        self._keys.confirm(list(stored))
        if left := [face_id for face_id in made if face_id not in stored]:
            await self._keys.destroy(left)
            log.info("keys of faces that were never stored destroyed", faces=len(left))

    async def _drop_faces_without_keys(self) -> None:
        """After keys were lost with a damaged page: what nothing opens any more."""
        rows = await self._database.read(
            lambda c: c.execute("SELECT face_id FROM faces WHERE sealed = 1").fetchall()
        )
        face_ids = [row[0] for row in rows]
        keys = await self._keys.find(face_ids, ["basic"])
        if lost := [face_id for face_id in face_ids if (face_id, "basic") not in keys]:
            await self._drop(lost, evicted=False)
            log.error("faces dropped: a damaged page held their keys", faces=len(lost))

    async def _seal_old(self) -> None:
        """Seal the faces that a release before sealed layers has kept."""
        columns = ", ".join(LAYER_COLUMNS)

        def find(connection: sqlite3.Connection) -> list[Any]:
            return connection.execute(
                f"SELECT face_id, camera_id, {columns} FROM faces WHERE sealed = 0"
                " ORDER BY cursor LIMIT 500"
            ).fetchall()

        sealed = 0
        while rows := await self._database.read(find):
            named = {face_id: _without_none(packets) for face_id, _, *packets in rows}
            await self._keys.destroy(list(named))  # Of a run that was stopped in this place.
            keys = await self._keys.make([(f, camera, list(named[f])) for f, camera, *_ in rows])
            changed = [(*_seal(f, layers, keys), f) for f, layers in named.items()]
            await self._database.write(functools.partial(_keep_sealed, changed))
            sealed += len(rows)
        if sealed:
            await self._database.scrub()
            log.info("faces of an earlier release sealed", faces=sealed)

    def _wake_readers(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


def _recount(connection: sqlite3.Connection) -> None:
    """Make the state of the log that of the faces that were saved of a damaged file."""
    connection.execute(
        "UPDATE log_state SET faces = (SELECT count(*) FROM faces),"
        " bytes = (SELECT coalesce(sum(size), 0) FROM faces)"
    )


def _face_info(face_id: str, message: bytes) -> common_pb2.FaceInfo:
    """What is known of a face. Raises `StorageDamaged`."""
    try:
        info: common_pb2.FaceInfo = common_pb2.FaceInfo.FromString(message)
    except DecodeError as error:
        raise StorageDamaged(
            f"what is stored of face {face_id} cannot be read: a page on the disk is damaged",
            face_id=face_id,
        ) from error
    return info


def _without_none(packets: Sequence[bytes | None]) -> dict[str, bytes]:
    named = zip(LAYER_COLUMNS, packets, strict=True)
    return {name: packet for name, packet in named if packet is not None}


def _keep_sealed(changed: Sequence[tuple[Any, ...]], connection: sqlite3.Connection) -> None:
    connection.executemany(
        "UPDATE faces SET sealed = 1, basic = ?, middle = ?, enhanced = ? WHERE face_id = ?",
        changed,
    )


def _seal(
    face_id: str, packets: Mapping[str, bytes], keys: Mapping[tuple[str, str], bytes]
) -> list[bytes | None]:
    """The sealed layers in the order of the columns."""
    return [
        seal_layer(keys[face_id, name], packets[name], face_id, name) if name in packets else None
        for name in LAYER_COLUMNS
    ]


def _row(
    face: NewFace, key: FrameKey, stored_ms: int, sealed: Sequence[bytes | None]
) -> tuple[Any, ...]:
    info = face.info.SerializeToString()
    size = len(info) + sum(len(layer or b"") for layer in sealed) + _ROW_OVERHEAD_BYTES
    return (
        face.info.face_id,
        key.camera_id,
        key.capture_ns,
        key.frame_number,
        stored_ms,
        face.info.face_score,
        info,
        size,
        *sealed,
    )


def _faces_meant(connection: sqlite3.Connection, order: ForgetOrder) -> list[str]:
    """Ids of the faces kept that an order to forget means."""
    scope = order.scope
    where = "cursor <= ?"
    values: list[Any] = [order.last_face_cursor]
    if scope.face_ids:
        where += f" AND face_id IN ({','.join('?' * len(scope.face_ids))})"
        values += scope.face_ids
    if scope.camera_id:
        where += " AND camera_id = ?"
        values.append(scope.camera_id)
    if scope.HasField("captured_before"):
        where += " AND coalesce(capture_ns, stored_ms * 1000000) < ?"
        values.append(scope.captured_before.ToNanoseconds())
    rows = connection.execute(f"SELECT face_id FROM faces WHERE {where} ORDER BY cursor", values)
    return [row[0] for row in rows]


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
