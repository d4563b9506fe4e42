"""Forgetting: keys destroyed, sealed copies noise, and what was derived gone everywhere."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_rig import encoded_faces, eventually, running_edge
from test_analytics import read_results, running_analytics
from test_decoder import running_decoder
from test_edge_log import add, make_store

from edge_encoder.store import FaceStore, FrameKey, NewFace
from edge_encoder.ulid import new_ulid
from sfic.errors import FaceNotKept, InvalidInput, PacketError
from sfic.forgetting import is_meant
from sfic.grants import timestamp
from sfic.sealing import open_layer
from sfic.service.client import open_channel, sfic_errors
from sfic.v1 import (
    analytics_pb2,
    common_pb2,
    control_pb2,
    control_pb2_grpc,
    edge_pb2,
    edge_pb2_grpc,
)

Scope = control_pb2.ForgetScope
LAYERS = ["basic", "middle", "enhanced"]


async def forget(address: str, reason: str = "asked to", **scope: Any) -> int:
    """Order an edge to forget; returns how many faces it kept."""
    async with open_channel(address) as channel:
        with sfic_errors():
            answer = await control_pb2_grpc.EdgeControlStub(channel).Forget(
                control_pb2.ForgetRequest(scope=Scope(**scope), reason=reason)
            )
    return int(answer.faces)


def bytes_of(folder: Path) -> bytes:
    """All that lies in the files of a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_a_sealed_copy_never_opens_again(tmp_path: Path) -> None:
    """Copies made before of all databases, with the master key, do not help against a file later.

    What was copied before is shown to open then: the copy of the layers alone is noise afterwards.
    """
    faces = encoded_faces()[:2]
    async with running_edge(tmp_path) as edge, open_channel(edge.address) as channel:
        stub = edge_pb2_grpc.LayerStoreStub(channel)
        gone, stays = await edge.keep(faces)
        copy = await stub.FetchLayers(
            edge_pb2.FetchLayersRequest(face_ids=[gone, stays], sealed=True)
        )
        store = edge.service._store
        assert store is not None
        before = await store.keys([gone, stays], LAYERS)
        wrapped = read_wrapped(tmp_path)[gone]
        assert len(wrapped) == 3
        assert all(each in bytes_of(tmp_path) for each in wrapped)

        assert await forget(edge.address, face_ids=[gone]) == 1
        with pytest.raises(FaceNotKept), sfic_errors():
            await stub.FetchKeys(edge_pb2.FetchKeysRequest(face_id=gone))
        answer = await stub.FetchKeys(edge_pb2.FetchKeysRequest(face_id=stays))
        assert len(answer.keys) == 3
        # Neither keys nor sealed layers are in any file, the log of SQLite included.
        on_disk = bytes_of(tmp_path)
        left = [*wrapped, *before.values()]
        left += [packet.data for packet in copy.faces[0].layers]
        assert not any(each in on_disk for each in left if len(each) > 8)
        # With every key that the edge still has, the copy stays closed.
        for packet, name in zip(copy.faces[0].layers, LAYERS, strict=True):
            for key in answer.keys:
                with pytest.raises(PacketError):
                    open_layer(key.key, packet.data, gone, name)
    assert open_layer(before[gone, "basic"], copy.faces[0].layers[0].data, gone, "basic")


def read_wrapped(folder: Path) -> dict[str, list[bytes]]:
    """The wrapped keys of each face, as another process sees them."""
    found: dict[str, list[bytes]] = {}
    with sqlite3.connect(f"file:{folder / 'keys.sqlite'}?mode=ro", uri=True) as connection:
        for face_id, wrapped in connection.execute("SELECT face_id, wrapped FROM layer_keys"):
            found.setdefault(face_id, []).append(wrapped)
    connection.close()
    return found


async def test_nothing_is_left_in_the_files_after_many_faces(tmp_path: Path) -> None:
    """Many small rows move between pages as they come and go: none may stay behind in one."""
    store = make_store(tmp_path)
    gone: list[str] = []
    stays: list[str] = []
    for number in range(60):
        camera = "gate" if number % 3 else "door"
        infos = [common_pb2.FaceInfo(face_id=new_ulid(number)) for _ in range(20)]
        faces = [NewFace(info, (b"basic", b"middle", b"enhanced")) for info in infos]
        await store.add_frame(FrameKey(camera, None, number), faces)
        (gone if camera == "gate" else stays).extend(info.face_id for info in infos)
    wrapped = read_wrapped(tmp_path)
    order, count = await store.forget(Scope(camera_id="gate"))
    assert (count, order.last_face_cursor) == (len(gone), 1200)
    on_disk = bytes_of(tmp_path)
    assert not [f for f in gone if any(each in on_disk for each in wrapped[f])]
    assert all(each in on_disk for f in stays for each in wrapped[f])
    assert set(await store.fetch([*gone, *stays])) == set(stays)
    assert {f for f, _ in await store.keys([*gone, *stays], LAYERS)} == set(stays)
    page = await store.page(0, limit=2000)
    assert [entry.info.face_id for entry in page.entries] == stays
    assert page.evicted_cursor == 0, "forgotten is not missed"
    store.close()
    with sqlite3.connect(tmp_path / "keys.sqlite") as connection:
        cameras = {row[0] for row in connection.execute("SELECT camera_id FROM camera_keys")}
        assert cameras == {"door"}
    connection.close()


async def test_scopes_mean_faces_cameras_and_times(tmp_path: Path) -> None:
    now = [1_000.0]
    store = make_store(tmp_path, clock=lambda: now[0])
    ids = {}
    for number in range(12):
        now[0] = 1_000.0 + number
        ids[number] = await add(store, number, f"camera-{number % 2}")

    async def kept() -> list[int]:
        found = await store.fetch(list(ids.values()))
        return [number for number, face_id in ids.items() if face_id in found]

    await store.forget(Scope(face_ids=[ids[0], ids[5], "unknown"]))
    assert await kept() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    await store.forget(Scope(captured_before=timestamp(1_003.0)))
    assert await kept() == [3, 4, 6, 7, 8, 9, 10, 11]
    await store.forget(Scope(camera_id="camera-1", captured_before=timestamp(1_008.0)))
    assert await kept() == [4, 6, 8, 9, 10, 11]
    await store.forget(Scope(camera_id="camera-0"))
    assert await kept() == [9, 11]
    assert [order.cursor for order in await store.forget_orders(0)] == [1, 2, 3, 4]
    assert [order.cursor for order in await store.forget_orders(2)] == [3, 4]
    # The camera goes on under fresh keys.
    again = await add(store, 20, "camera-0")
    assert (again, "basic") in await store.keys([again], ["basic"])
    store.close()


async def test_an_order_that_a_crash_interrupted_is_carried_out_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    face_id, other = await add(store, 1), await add(store, 2)

    async def crash(self: FaceStore, *_: object, **__: object) -> None:
        raise RuntimeError("power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(FaceStore, "_drop", crash)
        with pytest.raises(RuntimeError):
            await store.forget(Scope(face_ids=[face_id]))
    store.close()
    store = make_store(tmp_path)
    assert await store.forget_orders(0) == [], "nobody follows an order before it is carried out"
    await store.recover()
    assert list(await store.fetch([face_id, other])) == [other]
    assert len(await store.forget_orders(0)) == 1
    store.close()


async def test_analytics_and_decoder_forget_at_once(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path / "analytics", edge.address) as (service, stub),
        running_decoder(edge.address) as decoder,
    ):
        gone, stays = await edge.keep(faces[:2])
        await edge.keep(faces[2:], camera_id="gate")
        results = await read_results(stub, 4)
        for face_id in (gone, stays):
            await decoder.pictures(face_id, highest=1)
        embedding = np.asarray(results[0].analysis.embedding, "<f4").tobytes()
        assert embedding in bytes_of(tmp_path / "analytics")
        assert decoder.value("sfic_decoder_cache_faces") == 2

        assert await forget(edge.address, face_ids=[gone]) == 1
        await eventually(lambda: decoder.value("sfic_decoder_cache_faces") == 1)
        await eventually(lambda: len(service._index) == 3)
        with pytest.raises(FaceNotKept):
            await decoder.pictures(gone, highest=1)
        with pytest.raises(FaceNotKept), sfic_errors():
            await stub.SearchFaces(analytics_pb2.SearchFacesRequest(face_id=gone))
        assert gone not in [r.analysis.face.face_id for r in await read_results(stub, 3)]
        on_disk = bytes_of(tmp_path / "analytics")
        assert embedding not in on_disk and embedding[:64] not in on_disk
        assert gone.encode() not in on_disk

        assert await forget(edge.address, camera_id="gate") == 2
        await eventually(lambda: len(service._index) == 1)
        (left,) = await read_results(stub, 1)
        assert left.analysis.face.face_id == stays


async def test_analytics_that_was_away_forgets_at_its_next_contact(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with running_edge(tmp_path / "edge") as edge:
        async with running_analytics(tmp_path, edge.address) as (_, stub):
            ids = await edge.keep(faces)
            await read_results(stub, 4)
        await forget(edge.address, face_ids=ids[:1])
        # The edge itself dropped this one long ago; analytics still has what came of it.
        store = edge.service._store
        assert store is not None
        await store._drop(ids[1:2], evicted=False)
        assert await forget(edge.address, face_ids=ids[1:2]) == 0
        async with running_analytics(tmp_path, edge.address) as (service, stub):
            await eventually(lambda: len(service._index) == 2)
            assert [r.analysis.face.face_id for r in await read_results(stub, 2)] == ids[2:]
            place = await service._store.forget_place(edge.address)
            assert place == (2, await store.log_id())
        async with running_analytics(tmp_path, edge.address) as (service, stub):
            (new,) = await edge.keep(faces[:1])
            read = await read_results(stub, 3)
            assert [r.analysis.face.face_id for r in read] == [*ids[2:], new]


async def test_a_face_under_way_to_analytics_is_forgotten_too(tmp_path: Path) -> None:
    """It left the edge before the order and comes out of the queue after it."""
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (service, stub),
    ):
        hold = asyncio.get_running_loop().run_in_executor(service._analysis, time.sleep, 2.0)
        (gone,) = await edge.keep(encoded_faces()[:1])
        await eventually(lambda: edge.value("sfic_edge_feed_faces_total") == 1)
        await asyncio.sleep(0.3)
        await forget(edge.address, face_ids=[gone])
        await eventually(lambda: feeds_place(tmp_path) == 1)
        assert not hold.done(), "the order has to come before the face is analysed"
        (stays,) = await edge.keep(encoded_faces()[1:2])
        (only,) = await read_results(stub, 1)
        assert only.analysis.face.face_id == stays
        assert len(service._index) == 1


def feeds_place(folder: Path) -> int:
    connection = sqlite3.connect(f"file:{folder / 'analytics.sqlite'}?mode=ro", uri=True)
    try:
        row = connection.execute("SELECT max(forget_cursor) FROM feeds").fetchone()
        return int(row[0] or 0)
    finally:
        connection.close()


async def test_orders_say_what_and_why_and_are_on_the_audit_log(tmp_path: Path) -> None:
    async with running_edge(tmp_path, granted=False) as edge:
        (face_id,) = await edge.keep(encoded_faces()[:1])
        for scope, reason, named in (
            ({}, "why not", "scope"),
            ({"face_ids": ["x"], "camera_id": "y"}, "why not", "scope"),
            ({"face_ids": ["x"] * 1001}, "why not", "face_ids"),
            ({"camera_id": "y"}, " ", "reason"),
            ({"camera_id": "y"}, "x" * 201, "reason"),
        ):
            with pytest.raises(InvalidInput, match=named):
                await forget(edge.address, reason, **scope)
        await forget(edge.address, "the visitor asked", face_ids=[face_id])
        async with open_channel(edge.address) as channel:
            call = control_pb2_grpc.EdgeControlStub(channel).ReadAudit(
                control_pb2.ReadAuditRequest()
            )
            parts = [part async for part in call]
        from sfic.audit import verify_lines

        assert verify_lines([p.line for p in parts[:-1]], parts[-1].head).problems == []
        assert [("forgotten" in p.line, "the visitor asked" in p.line) for p in parts[:-1]] == [
            (False, True),
            (True, True),
        ]


def test_an_order_means_only_faces_of_its_edge() -> None:
    face = common_pb2.FaceInfo(face_id="f", camera_id="door", edge_id="edge-1")
    face.capture_time.CopyFrom(timestamp(100.0))

    def order(edge_id: str = "edge-1", **scope: Any) -> control_pb2.FollowForgottenResponse:
        return control_pb2.FollowForgottenResponse(edge_id=edge_id, scope=Scope(**scope))

    assert is_meant(order(camera_id="door"), face)
    assert not is_meant(order("edge-2", camera_id="door"), face)
    assert is_meant(order("edge-2", face_ids=["e", "f"]), face)
    assert not is_meant(order(face_ids=["e"]), face)
    assert is_meant(order(captured_before=timestamp(100.1)), face)
    assert not is_meant(order(captured_before=timestamp(100.0)), face)
    assert not is_meant(order(camera_id="gate", captured_before=timestamp(200.0)), face)


async def test_a_replaced_log_of_an_edge_is_noticed(tmp_path: Path) -> None:
    """The new log already reaches past the old cursor: only its name tells them apart."""
    faces = encoded_faces()
    async with running_edge(tmp_path / "old") as edge:
        address = edge.address
        async with running_analytics(tmp_path, address) as (_, stub):
            await edge.keep(faces[:2])
            await read_results(stub, 2)
    async with running_edge(tmp_path / "new", listen=address) as edge:
        new = await edge.keep(faces)
        async with running_analytics(tmp_path, address) as (_, stub):
            read = await read_results(stub, 6)
            assert [r.analysis.face.face_id for r in read][2:] == new
        async with open_channel(address) as channel:
            with pytest.raises(InvalidInput, match="another log"), sfic_errors():
                await (
                    edge_pb2_grpc.BasicLayerFeedStub(channel)
                    .Subscribe(edge_pb2.SubscribeRequest(after_cursor=1, log_id="other"))
                    .read()
                )
