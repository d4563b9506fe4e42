"""Disks that are full, read-only or damaged, clocks that jump back: what services make of them."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from disks import FullDisk, limited_files, read_only, small_disk
from service_rig import Edge, encoded_faces, eventually, running_edge
from services_util import frame, send_frames
from test_analytics import count, ids, read_results, running_analytics
from test_edge_log import add, make_store
from test_forget import read_wrapped

from edge_encoder.store import FrameKey, NewFace
from edge_encoder.ulid import new_ulid
from sfic.audit import AuditLog, read_log, verify_lines
from sfic.errors import StorageDamaged, StorageError
from sfic.service import sqlite
from sfic.service.client import open_channel
from sfic.service.clock import SteadyClock
from sfic.service.sqlite import Database
from sfic.v1 import common_pb2, control_pb2, edge_pb2, edge_pb2_grpc

PAGE = 4096
Disk = Callable[[Path], AbstractContextManager[FullDisk]]
disks = pytest.mark.parametrize("disk", [limited_files, small_disk], ids=["limit", "file system"])


async def log_of(edge: Edge, faces: int) -> list[edge_pb2.SubscribeResponse]:
    """The first faces of an edge's log."""
    async with open_channel(edge.address) as channel:
        call = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(edge_pb2.SubscribeRequest())
        read = [await call.read() for _ in range(faces)]
        call.cancel()
    return read


# -- full


@disks
async def test_an_edge_with_a_full_disk_says_so_and_goes_on_when_there_is_room(
    tmp_path: Path, disk: Disk
) -> None:
    with disk(tmp_path / "disk") as full:
        full.folder.mkdir(exist_ok=True)
        async with running_edge(full.folder) as edge:
            (before,) = await send_frames(edge.address, [frame(0)])
            assert not before.error.code
            full.fill()
            refused = await send_frames(edge.address, [frame(n) for n in range(1, 4)])
            assert {receipt.error.code for receipt in refused} == {"STORAGE"}
            assert all("edge" in receipt.error.message for receipt in refused)
            # What is there can be read meanwhile.
            assert [m.face for m in await log_of(edge, 1)] == list(before.faces)
            full.free()
            (after,) = await send_frames(edge.address, [frame(4)])
            assert not after.error.code
            kept = [*before.faces, *after.faces]
            assert [message.face for message in await log_of(edge, 2)] == kept
        async with running_edge(full.folder) as edge:
            assert [message.face for message in await log_of(edge, 2)] == kept
        assert keys_alone(full.folder) == set()


def keys_alone(folder: Path) -> set[str]:
    """Faces that have keys and are not in the log."""
    faces = rows_of(folder / "edge.sqlite", "SELECT face_id FROM faces")
    keys = rows_of(folder / "keys.sqlite", "SELECT face_id FROM layer_keys")
    return {row[0] for row in keys} - {row[0] for row in faces}


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@disks
async def test_analytics_with_a_full_disk_waits_and_loses_nothing(
    tmp_path: Path, disk: Disk
) -> None:
    faces = encoded_faces()
    async with running_edge(tmp_path / "edge") as edge:
        with disk(tmp_path / "disk") as full:
            full.folder.mkdir(exist_ok=True)
            async with running_analytics(full.folder, edge.address) as (service, stub):
                sent = await edge.keep(faces[:2])
                await read_results(stub, 2)
                # The edge's faces are stored before the disk is full, the results are not.
                go_on = threading.Event()
                asyncio.get_running_loop().run_in_executor(service._analysis, go_on.wait)
                sent += await edge.keep(faces[2:])
                full.fill()
                go_on.set()
                await eventually(
                    lambda: count(service, "sfic_analytics_commit_failures_total") >= 2
                )
                assert ids(await read_results(stub, 2)) == sent[:2]
                full.free()
                assert ids(await read_results(stub, 4)) == sent
                sent += await edge.keep(faces[:1])
                assert ids(await read_results(stub, 5)) == sent


@disks
def test_an_audit_log_on_a_full_disk_stays_whole(tmp_path: Path, disk: Disk) -> None:
    with disk(tmp_path / "disk") as full:
        full.folder.mkdir(exist_ok=True)
        path = full.folder / "audit.jsonl"
        audit = AuditLog(path)

        def note(number: int) -> None:
            audit.append("reconstruct", who="a test", why="x" * 150, what={"number": number})

        written = [0]
        note(0)
        full.fill()
        with pytest.raises(StorageError, match="audit"):
            for number in range(1, 100):
                note(number)
                written.append(number)
        with pytest.raises(StorageError):
            note(1000)
        full.free()
        note(100)
        audit.close()
        audit = AuditLog(path)
        note(101)
        audit.close()
        lines, head = read_log(path)
        told = list(lines)
    assert verify_lines(told, head).problems == []
    assert [json.loads(line)["what"]["number"] for line in told] == [*written, 100, 101]


async def test_a_log_torn_by_a_loss_of_power_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """The disk has what was synced for sure; of the rest any part, or something else."""
    chance = random.Random(8)
    database = Database(tmp_path / "a.sqlite", ["CREATE TABLE t (x INTEGER, y BLOB)"])
    log = tmp_path / "a.sqlite-wal"
    synced = []
    for number in range(40):
        row = (number, chance.randbytes(chance.randrange(3000)))
        await database.write(lambda c, row=row: c.execute("INSERT INTO t VALUES (?, ?)", row))
        synced.append(log.stat().st_size)
    whole = log.read_bytes()
    for trial in range(20):
        acknowledged = chance.randrange(1, 40)
        folder = tmp_path / str(trial)
        folder.mkdir()
        shutil.copy(tmp_path / "a.sqlite", folder)
        torn = chance.randint(synced[acknowledged - 1], len(whole))
        rest = chance.choice([b"", chance.randbytes(5000), bytes(5000)])
        (folder / "a.sqlite-wal").write_bytes(whole[:torn] + rest)
        again = Database(folder / "a.sqlite", ["CREATE TABLE t (x INTEGER, y BLOB)"])
        rows = await again.read(lambda c: c.execute("SELECT x FROM t ORDER BY rowid").fetchall())
        again.close()
        assert len(rows) >= acknowledged
        assert [row[0] for row in rows] == list(range(len(rows)))
    database.close()


# -- read-only


async def test_a_read_only_disk_is_one_clear_error_and_then_none(tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    store = make_store(folder)
    face_id = await add(store, 1)
    store.close()
    with read_only(folder):
        with pytest.raises(StorageError, match="edge") as told:
            make_store(folder)
        assert "read" in told.value.message.lower()
        with pytest.raises(StorageError, match="analytics"):
            async with running_analytics(folder, "127.0.0.1:1"):
                pass
    store = make_store(folder)
    await store.recover()
    assert list(await store.fetch([face_id])) == [face_id]
    await add(store, 2)
    store.close()


# -- damaged


def spoil(path: Path, page: int, chance: random.Random) -> None:
    """Write noise over a page, numbered from 1."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(chance.randbytes(PAGE))


TABLES = [
    "CREATE TABLE a (x INTEGER PRIMARY KEY AUTOINCREMENT, y TEXT UNIQUE, z BLOB);"
    "CREATE TABLE b (k TEXT, l TEXT, v BLOB, PRIMARY KEY (k, l)) WITHOUT ROWID;"
    "CREATE INDEX b_v ON b (v)"
]


async def test_a_damaged_page_takes_no_more_than_what_lay_on_it(tmp_path: Path) -> None:
    """Each page of a database but the first, whose damage is the next test."""
    chance = random.Random(3)
    whole = tmp_path / "whole.sqlite"
    database = Database(whole, TABLES)
    rows_a = [(n, f"name {n}", chance.randbytes(200)) for n in range(1, 301)]
    rows_b = [(f"key {n:04}", "l", chance.randbytes(60)) for n in range(300)]

    def fill(connection: sqlite3.Connection) -> None:
        connection.executemany("INSERT INTO a VALUES (?, ?, ?)", rows_a)
        connection.executemany("INSERT INTO b VALUES (?, ?, ?)", rows_b)

    await database.write(fill)
    database.close()
    pages = whole.stat().st_size // PAGE
    assert pages > 30
    repaired = 0
    for page in range(2, pages + 1):
        path = tmp_path / f"{page}.sqlite"
        shutil.copy(whole, path)
        spoil(path, page, chance)
        database = Database(path, TABLES)
        assert database.is_salvaged
        a = await database.read(lambda c: c.execute("SELECT * FROM a ORDER BY x").fetchall())
        b = await database.read(lambda c: c.execute("SELECT * FROM b ORDER BY k").fetchall())
        assert set(a) <= set(rows_a) and set(b) <= set(rows_b), "what is read is what was written"
        # A leaf holds 50 rows at most; the one page above the leaves of a table leads to them all.
        repaired += len(a) + len(b) >= 540
        new = await database.write(
            lambda c: c.execute("INSERT INTO a (y) VALUES ('new')").lastrowid
        )
        assert new is not None and new > 300, "a number must not be given twice"
        await database.scrub()
        assert not database.is_salvaged
        database.close()
    assert repaired == pages - 3, "all but the first and the two that lead to all leaves"


async def test_damage_is_met_at_a_read_and_repaired_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a database too large to be looked at as a whole whenever a service starts."""
    monkeypatch.setattr(sqlite, "_CHECKED_AT_START_BYTES", 0)
    store = make_store(tmp_path)
    sent = [await add_large(store, number) for number in range(60)]
    store.close()
    path = tmp_path / "edge.sqlite"
    pages = path.stat().st_size // PAGE
    spoil(path, pages // 2, random.Random(1))
    store = make_store(tmp_path)
    await store.recover()
    with pytest.raises(StorageDamaged, match="next start"):
        for face_id in sent:
            await store.fetch([face_id])
    store.close()
    store = make_store(tmp_path)
    await store.recover()
    left = [face_id for face_id in sent if await store.fetch([face_id])]
    assert len(sent) - 6 <= len(left) < len(sent)
    assert [entry.info.face_id for entry in (await store.page(0)).entries] == left
    faces, _ = await store._database.read(
        lambda c: c.execute("SELECT faces, bytes FROM log_state").fetchone()
    )
    assert faces == len(left)
    (after,) = [await add_large(store, 100)]
    entry = (await store.page(0)).entries[-1]
    assert (entry.cursor, entry.info.face_id) == (61, after)
    store.close()


async def add_large(store: Any, number: int) -> str:
    face_id = new_ulid(number)
    info = common_pb2.FaceInfo(face_id=face_id, frame_number=number, face_score=0.5)
    layers = (bytes(150), bytes(400), bytes(700))
    await store.add_frame(FrameKey("door", None, number), [NewFace(info, layers)])
    return face_id


async def test_lost_keys_take_their_faces_along_and_no_others(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    sent = [await add(store, number) for number in range(200)]
    store.close()
    path = tmp_path / "keys.sqlite"
    wrapped = read_wrapped(tmp_path)[sent[100]][0]
    spoil(path, path.read_bytes().index(wrapped) // PAGE + 1, random.Random(2))
    store = make_store(tmp_path)
    await store.recover()
    left = [entry.info.face_id for entry in (await store.page(0, limit=300)).entries]
    assert len(sent) // 2 < len(left) < len(sent)
    assert set(await store.fetch(sent)) == set(left), "a face that nothing opens is gone"
    # The damaged copy holds keys: an order to forget has to reach them too.
    assert (tmp_path / "keys.sqlite.damaged").exists()
    await store.forget(control_pb2.ForgetScope(face_ids=left[:1]))
    assert not list(tmp_path.glob("*.damaged"))
    store.close()


async def test_results_lost_with_a_page_are_made_again(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with running_edge(tmp_path / "edge") as edge:
        sent = await edge.keep([faces[n % 4] for n in range(60)])
        async with running_analytics(tmp_path, edge.address) as (_, stub):
            await read_results(stub, 60)
        path = tmp_path / "analytics.sqlite"
        (page,) = rows_of(path, "SELECT rootpage + 30 FROM sqlite_master WHERE name = 'results'")[0]
        spoil(path, page, random.Random(1))
        async with running_analytics(tmp_path, edge.address) as (service, stub):
            await eventually(lambda: len(service._index) == 60)
            results = await read_results(stub, 60)
        assert sorted(ids(results)) == sorted(sent)
        assert results[-1].cursor > 60, "none was lost: another page has to be damaged"


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(b"not a database, " * 1000)
    with pytest.raises(StorageDamaged, match="thesis"):
        Database(path, TABLES)
    assert path.read_bytes() == b"not a database, " * 1000


async def test_one_unreadable_face_is_a_gap_in_the_feed_and_not_its_end(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as edge:
        sent = await edge.keep(encoded_faces())
        store = edge.service._store
        assert store is not None
        for damage in (
            "UPDATE faces SET info = x'ff' WHERE cursor = 2",
            "UPDATE faces SET basic = zeroblob(length(basic)) WHERE cursor = 3",
        ):
            await store.database.write(lambda c, d=damage: c.execute(d))
        first, last = await log_of(edge, 2)
        assert [first.face.face_id, last.face.face_id] == [sent[0], sent[3]]
        assert (first.faces_missed, last.faces_missed) == (0, 2)
        with pytest.raises(StorageDamaged, match=sent[1]):
            await store.fetch([sent[1]])


# -- clocks


def test_a_steady_clock_goes_on_where_the_systems_jumps_back() -> None:
    now, ticks = [1000.0], [5.0]
    clock = SteadyClock(lambda: now[0], lambda: ticks[0])
    now[0], ticks[0] = 1010.0, 15.0
    assert clock() == 1010.0
    now[0], ticks[0] = 10.0, 25.0  # back to 1970
    assert clock() == 1020.0
    now[0], ticks[0] = 1500.0, 26.0
    assert clock() == 1500.0
    clock.not_before(2000.0)
    ticks[0] = 27.0
    assert clock() == 2001.0


async def test_a_clock_that_jumps_back_drops_no_face_early_and_keeps_the_order(
    tmp_path: Path,
) -> None:
    now, ticks = [1_700_000_000.0], [0.0]

    def clock() -> SteadyClock:
        return SteadyClock(lambda: now[0], lambda: ticks[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds
        ticks[0] += seconds

    async with running_edge(tmp_path, retention_hours=1.0) as edge:
        store = edge.service._store
        assert store is not None
        store.clock = clock()
        receipts = await send_frames(edge.address, [frame(0)])
        pass_by(1000)
        receipts += await send_frames(edge.address, [frame(1)])
        now[0] = 0.0  # the battery died
        pass_by(1000)
        receipts += await send_frames(edge.address, [frame(2)])
        now[0] = 1_700_002_000.0  # the time server was asked
        await store.evict()
    sent = [face.face_id for receipt in receipts for face in receipt.faces]
    assert len(sent) == 3
    assert sent == sorted(sent), "ids follow the time of capture"
    now[0] = 0.0  # and died again while the edge was off
    store = make_store(tmp_path, retention_seconds=3600)
    store.clock = clock()
    await store.recover()
    assert [entry.info.face_id for entry in (await store.page(0)).entries] == sent
    pass_by(2601)  # 3601 after the second face, by the time that has passed
    await store.evict()
    assert [entry.info.face_id for entry in (await store.page(0)).entries] == sent[2:]
    store.close()
