"""The edge's log and its feed, with many faces: real store, real gRPC, packets made up."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from edge_encoder.feed import BasicLayerFeed
from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import FaceStore, FrameKey, NewFace
from edge_encoder.ulid import new_ulid
from sfic.service.client import open_channel
from sfic.service.clock import SteadyClock
from sfic.service.server import ServiceServer
from sfic.service.settings import ServiceSettings
from sfic.v1 import common_pb2, control_pb2, edge_pb2, edge_pb2_grpc

FOREVER = {"retention_seconds": 1e9, "retention_bytes": 1 << 40}


def make_store(path: Path, **options: Any) -> FaceStore:
    metrics = EdgeMetrics(CollectorRegistry())
    if "clock" in options:
        options["clock"] = SteadyClock(options["clock"], ticks=lambda: 0.0)
    return FaceStore(path / "edge.sqlite", metrics, **{**FOREVER, **options})


async def add(store: FaceStore, number: int, camera_id: str = "door", score: float = 0.5) -> str:
    """Keep one face of a frame; returns its id."""
    face_id = new_ulid(number)
    info = common_pb2.FaceInfo(
        face_id=face_id, camera_id=camera_id, frame_number=number, face_score=score
    )
    face = NewFace(info, (b"b%d" % number, b"m%d" % number, None))
    await store.add_frame(FrameKey(camera_id, None, number), [face])
    return face_id


class FeedService:
    """A feed and nothing else around a store."""

    names = ("sfic.v1.BasicLayerFeed",)

    def __init__(self, store: FaceStore) -> None:
        self.registry = CollectorRegistry()
        self.stopping = asyncio.Event()
        self.feed = BasicLayerFeed(
            store,
            EdgeMetrics(self.registry),
            self.stopping,
            "edge-1",
            max_subscribers=100,
            live_backlog=200,
        )

    async def start(self) -> None: ...

    def register(self, server: grpc.aio.Server) -> None:
        edge_pb2_grpc.add_BasicLayerFeedServicer_to_server(self.feed, server)

    async def drain(self) -> None:
        self.stopping.set()

    async def close(self) -> None: ...


@asynccontextmanager
async def feed_of(store: FaceStore) -> AsyncIterator[edge_pb2_grpc.BasicLayerFeedStub]:
    async with (
        ServiceServer(FeedService(store), ServiceSettings.make()) as server,
        open_channel(server.address, retry=False) as channel,
    ):
        yield edge_pb2_grpc.BasicLayerFeedStub(channel)
    store.close()


async def test_subscribers_at_any_time_see_each_face_once_and_in_order(tmp_path: Path) -> None:
    total, store, chance = 400, make_store(tmp_path), random.Random(1)
    async with feed_of(store) as stub:

        async def subscriber(after: int, max_faces: int) -> list[int]:
            request = edge_pb2.SubscribeRequest(after_cursor=after, max_faces=max_faces)
            call = stub.Subscribe(request)
            cursors: list[int] = []
            while not cursors or cursors[-1] < total:
                message = await asyncio.wait_for(call.read(), 60)
                assert message.faces_missed == 0
                assert len(message.batch) <= max_faces and bool(message.batch) == (max_faces > 0)
                for each in message.batch or (message,):
                    assert each.basic == b"b%d" % each.face.frame_number
                    cursors.append(each.cursor)
            assert message.cursor == cursors[-1]
            call.cancel()
            return cursors

        readers = []
        for number in range(total):
            if number % 50 == 0:
                # As many as there are alike: they share what is read.
                after = chance.randint(0, number)
                for max_faces in (0, 0, 7, 128, 128):
                    reader = asyncio.ensure_future(subscriber(after, max_faces))
                    readers.append((after, reader))
            await add(store, number)
        for after, reader in readers:
            assert await reader == list(range(after + 1, total + 1))


async def test_a_slow_subscriber_learns_how_many_faces_it_missed(tmp_path: Path) -> None:
    total = 3000
    store = make_store(tmp_path, retention_bytes=100_000)
    async with feed_of(store) as stub:
        call = stub.Subscribe(edge_pb2.SubscribeRequest(live_only=True))
        await call.initial_metadata()
        key = FrameKey("door", None, 0)
        for number in range(0, total, 50):
            faces = [
                NewFace(
                    common_pb2.FaceInfo(face_id=new_ulid(n), frame_number=n, face_score=0.5),
                    (bytes(4000), None, None),
                )
                for n in range(number, number + 50)
            ]
            await store.add_frame(key, faces)
        received, missed, last = 0, 0, 0
        while last < total:
            message = await asyncio.wait_for(call.read(), 60)
            assert message.cursor == last + message.faces_missed + 1
            received, missed, last = received + 1, missed + message.faces_missed, message.cursor
        assert received + missed == total
        assert missed > total // 4
        call.cancel()


async def test_a_slow_live_subscriber_is_moved_on_and_one_with_a_cursor_is_not(
    tmp_path: Path,
) -> None:
    """2,500 faces while neither reads; a live one may lag 200 behind."""
    total, store = 2500, make_store(tmp_path)
    async with feed_of(store) as stub:
        live = stub.Subscribe(edge_pb2.SubscribeRequest(live_only=True))
        await live.initial_metadata()
        steady = stub.Subscribe(edge_pb2.SubscribeRequest(after_cursor=0))
        await steady.initial_metadata()
        for number in range(0, total, 50):
            infos = [common_pb2.FaceInfo(face_id=new_ulid(number + n)) for n in range(50)]
            faces = [NewFace(info, (bytes(4000), None, None)) for info in infos]
            await store.add_frame(FrameKey("door", None, 0), faces)
        received, missed, last = 0, 0, 0
        while last < total:
            message = await asyncio.wait_for(live.read(), 60)
            assert message.cursor == last + message.faces_missed + 1, "the gap says its size"
            received, missed, last = received + 1, missed + message.faces_missed, message.cursor
        assert received + missed == total
        assert missed >= 500
        cursors = []
        while len(cursors) < total:
            message = await asyncio.wait_for(steady.read(), 60)
            assert message.faces_missed == 0
            cursors.append(message.cursor)
        assert cursors == list(range(1, total + 1))
        live.cancel()
        steady.cancel()


async def test_a_batch_says_what_was_missed_before_it(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    async with feed_of(store) as stub:
        face_ids = [await add(store, number) for number in range(6)]
        await store._drop(face_ids[:3], evicted=True)
        call = stub.Subscribe(edge_pb2.SubscribeRequest(after_cursor=1, max_faces=2))
        first = await asyncio.wait_for(call.read(), 60)
        assert (first.cursor, first.faces_missed) == (5, 2)
        assert [each.cursor for each in first.batch] == [4, 5]
        second = await asyncio.wait_for(call.read(), 60)
        assert (second.cursor, second.faces_missed) == (6, 0)
        call.cancel()
        with pytest.raises(grpc.aio.AioRpcError, match="max_faces"):
            await stub.Subscribe(edge_pb2.SubscribeRequest(max_faces=129)).read()


async def test_what_is_forgotten_is_not_sent_from_pages_that_were_ready(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    async with feed_of(store) as stub:
        face_ids = [await add(store, number) for number in range(4)]
        for max_faces in (0, 128):

            async def read(count: int, max_faces: int = max_faces) -> list[str]:
                call = stub.Subscribe(edge_pb2.SubscribeRequest(max_faces=max_faces))
                found: list[str] = []
                while len(found) < count:
                    message = await asyncio.wait_for(call.read(), 60)
                    found += [each.face.face_id for each in message.batch or (message,)]
                call.cancel()
                return found

            assert await read(len(face_ids)) == face_ids
            await store.forget(control_pb2.ForgetScope(face_ids=[face_ids.pop(0)]))
            assert await read(len(face_ids)) == face_ids


async def test_pages_filter_and_go_on(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for number in range(30):
        await add(store, number, f"camera-{number % 3}", score=number % 5 / 4)
    cursors: list[int] = []
    cursor, more = 0, True
    while more:
        page = await store.page(cursor, camera_ids=["camera-1"], min_face_score=0.5, limit=2)
        cursors += [entry.cursor for entry in page.entries]
        cursor, more = page.next_cursor, page.more
    assert cursors == [n + 1 for n in range(30) if n % 3 == 1 and n % 5 / 4 >= 0.5]
    assert cursor == 30
    store.close()


async def test_cursors_are_never_used_again(tmp_path: Path) -> None:
    now = [1000.0]
    store = make_store(tmp_path, retention_seconds=10, clock=lambda: now[0])
    for number in range(3):
        await add(store, number)
    now[0] = 1011.0
    await store.evict()
    assert await store.last_cursor() == 3
    page = await store.page(0)
    assert (page.entries, page.next_cursor, page.evicted_cursor) == ([], 3, 3)
    store.close()
    store = make_store(tmp_path)
    await add(store, 3)
    assert [entry.cursor for entry in (await store.page(0)).entries] == [4]
    store.close()


async def test_age_drops_only_what_is_older(tmp_path: Path) -> None:
    now = [1000.0]
    store = make_store(tmp_path, retention_seconds=10, clock=lambda: now[0])
    ids = []
    for number in range(5):
        ids.append(await add(store, number))
        now[0] += 5
    # Now 1025: stored at 1000, 1005, 1010 are older than 10 s, 1015 is as old as may be.
    await store.evict()
    assert list(await store.fetch(ids)) == ids[3:]
    store.close()


async def test_a_frame_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    face = NewFace(common_pb2.FaceInfo(face_id=new_ulid(1)), (b"b", None, None))
    with pytest.raises(Exception, match="UNIQUE"):
        await store.add_frame(FrameKey("door", None, 0), [face, face])
    assert (await store.page(0)).entries == []
    store.close()


async def test_dropped_faces_are_overwritten_in_the_file(tmp_path: Path) -> None:
    now = [1000.0]
    store = make_store(tmp_path, retention_seconds=10, clock=lambda: now[0])
    secret = b"a face that must go" * 20
    info = common_pb2.FaceInfo(face_id=new_ulid(1))
    await store.add_frame(FrameKey("door", None, 0), [NewFace(info, (secret, secret, secret))])
    now[0] = 2000.0
    await store.evict()
    store.close()
    with sqlite3.connect(tmp_path / "edge.sqlite") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert b"must go" not in (tmp_path / "edge.sqlite").read_bytes()


def test_ulids_sort_by_time_and_do_not_repeat() -> None:
    ids = [new_ulid(time_ms) for time_ms in range(1_700_000_000_000, 1_700_000_000_500)]
    assert ids == sorted(ids)
    assert all(re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", face_id) for face_id in ids)
    assert len({new_ulid(5) for _ in range(1000)}) == 1000
    # The example of the specification: 01ARZ3NDEK stands for this time.
    assert new_ulid(1469922850259)[:10] == "01ARZ3NDEK"
    assert new_ulid(-1)[:10] == "0000000000"
    assert new_ulid(2**60)[:10] == "7ZZZZZZZZZ"
