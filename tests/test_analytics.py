"""Analytics: nothing lost and nothing twice over any restart, results streamed, faces found."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from service_rig import (
    encoded_faces,
    eventually,
    other_bundle,
    running_edge,
    spoilt,
    start_process,
)
from services_util import codec as shared_codec
from services_util import running, switched

from analytics_service.records import StoredResult
from analytics_service.search import Bounds, FaceIndex, Filters, IndexEntry
from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from analytics_service.store import FailedFace, ResultStore, Retention
from analytics_service.streams import Announcer, Start, follow
from analytics_service.visits import VisitTracker
from analytics_service.watchlists import Watchlists
from sfic.codec import Codec
from sfic.errors import ConfigError, FaceNotKept, InvalidInput, SficError, StorageError
from sfic.processes import free_address
from sfic.service.client import from_rpc_error, open_channel, sfic_errors
from sfic.v1 import analytics_pb2, analytics_pb2_grpc

Response = analytics_pb2.SubscribeResultsResponse


@asynccontextmanager
async def running_analytics(
    folder: Path, *edges: str, codec: Codec | None = None, **settings: object
) -> AsyncIterator[tuple[AnalyticsService, analytics_pb2_grpc.AnalyticsStub]]:
    """A real analytics service with a client. `codec`: None for that of all tests."""
    made = AnalyticsSettings.make(
        **{
            "listen": "127.0.0.1:0",
            "metrics_listen": "",
            "edges": edges,
            "database": folder / "analytics.sqlite",
            "reconnect_seconds": 0.3,
            **switched("analytics", folder),
            **settings,
        }
    )
    service = AnalyticsService(made, codec or shared_codec())
    async with (
        running(service, made) as server,
        open_channel(server.address, retry=False) as channel,
    ):
        yield service, analytics_pb2_grpc.AnalyticsStub(channel)


async def read_results(
    stub: analytics_pb2_grpc.AnalyticsStub, count: int, **request: object
) -> list[Response]:
    """The first `count` results of a subscription."""
    call = stub.SubscribeResults(analytics_pb2.SubscribeResultsRequest(**request))

    async def read() -> list[Response]:
        read: list[Response] = []
        async for response in call:
            read.append(response)
            if len(read) == count:
                break
        return read

    try:
        return await asyncio.wait_for(read(), 60)
    finally:
        call.cancel()


def count(service: AnalyticsService, name: str, **labels: str) -> float:
    return service.registry.get_sample_value(name, labels) or 0.0


def ids(results: list[Response]) -> list[str]:
    return [result.analysis.face.face_id for result in results]


async def test_result_is_what_the_codec_says_of_the_basic_layer(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (service, stub),
    ):
        (face_id,) = await edge.keep([face], camera_id="door", score=0.75)
        (result,) = await read_results(stub, 1)
        lag = count(service, "sfic_analytics_lag_seconds_sum")
    said = shared_codec().analyze(face.basic)
    analysis = result.analysis
    assert (result.cursor, result.results_missed) == (1, 0)
    assert (analysis.face.face_id, analysis.face.camera_id) == (face_id, "door")
    assert analysis.face.face_score == 0.75
    np.testing.assert_allclose(analysis.embedding, said.embedding, atol=1e-6)
    assert np.linalg.norm(analysis.embedding) == pytest.approx(1.0, abs=1e-4)
    assert analysis.age.value == pytest.approx(said.age.value, rel=1e-4)
    assert analysis.gender.value == pytest.approx(said.gender.value, rel=1e-4)
    assert analysis.smile.confidence == pytest.approx(said.smile.confidence, rel=1e-4)
    assert analysis.yaw.value == pytest.approx(said.pose.yaw, rel=1e-4)
    np.testing.assert_allclose(np.reshape(analysis.landmarks, (68, 2)), said.landmarks, atol=1e-6)
    assert 0 < lag < 60


async def test_resumes_after_a_restart_without_loss_or_repeat(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with running_edge(tmp_path / "edge") as edge:
        sent = await edge.keep(faces)
        async with running_analytics(tmp_path, edge.address) as (_, stub):
            before = await read_results(stub, 4)
        sent += await edge.keep(faces[:3])
        async with running_analytics(tmp_path, edge.address) as (service, stub):
            results = await read_results(stub, 7)
            behind = await read_results(stub, 3, after_cursor=before[-1].cursor)
            received = count(service, "sfic_analytics_faces_total", edge=edge.address, outcome="OK")
    assert ids(results) == sent
    assert [result.cursor for result in results] == list(range(1, 8))
    assert ids(behind) == sent[4:]
    assert received == 3, "faces that were kept already came again"


async def test_killed_at_any_moment_it_loses_and_repeats_nothing(tmp_path: Path) -> None:
    database, faces = tmp_path / "analytics.sqlite", encoded_faces()
    chance = random.Random(4)
    async with running_edge(tmp_path / "edge") as edge:
        sent: list[str] = []
        address = free_address()
        arguments = (
            f"--listen={address}",
            "--metrics-listen=",
            f'--edges=["{edge.address}"]',
            f"--database={database}",
            "--batch-faces=8",
            "--threads=1",
        )
        sent += await edge.keep([chance.choice(faces) for _ in range(240)])
        process = start_process("analytics_service", *arguments)
        try:
            await eventually(lambda: kept(database) >= 20, 60)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        kept_at_kill = kept(database)
        process = start_process("analytics_service", *arguments)
        try:
            async with open_channel(address) as channel:
                stub = analytics_pb2_grpc.AnalyticsStub(channel)
                await eventually(lambda: kept(database) >= len(sent), 60)
                results = await read_results(stub, len(sent))
                more = await edge.keep(faces[:1])
                (last,) = await read_results(stub, 1, after_cursor=results[-1].cursor)
        finally:
            process.terminate()
            process.wait(20)
    assert 0 < kept_at_kill < 240, "the kill did not come in the middle of the work"
    assert ids(results) == sent
    assert ids([last]) == more


def kept(database: Path) -> int:
    """Results committed, read as another process sees them."""
    import sqlite3

    if not database.exists():
        return 0
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)
    try:
        return int(connection.execute("SELECT count(*) FROM results").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


async def test_live_results_follow_the_kept_ones_without_a_seam(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, batch_faces=3, queue_faces=4) as (_, stub),
    ):
        reading = [asyncio.ensure_future(read_results(stub, 120)) for _ in range(3)]
        sent: list[str] = []
        for _ in range(30):
            sent += await edge.keep(faces)
            await asyncio.sleep(0)
        late = await read_results(stub, 120)
        for results in (late, *await asyncio.gather(*reading)):
            assert ids(results) == sent


async def test_a_slow_live_subscription_is_moved_on_and_one_with_a_cursor_is_not(
    tmp_path: Path,
) -> None:
    store, announcer = open_store(tmp_path / "a.sqlite"), Announcer()
    live = follow(announcer, Start(0, None, live=True), store.page, live_backlog=100)
    steady = follow(announcer, Start(0, None, live=False), store.page, live_backlog=100)
    try:
        await store.commit([stored(f"face {n}") for n in range(300)], [], {})
        announcer.announce(300)
        first, missed = await anext(live)
        assert (first.cursor, missed) == (201, 200)
        for cursor in range(1, 301):
            entry, missed = await anext(steady)
            assert (entry.cursor, missed) == (cursor, 0)
    finally:
        store.close()


async def test_several_edges_and_an_edge_that_comes_back(tmp_path: Path) -> None:
    faces, address = encoded_faces(), free_address()
    async with (
        running_edge(tmp_path / "edge-1") as first,
        running_analytics(tmp_path, first.address, address) as (service, stub),
    ):
        sent = await first.keep(faces[:2])
        await read_results(stub, 2)
        for _ in range(2):
            async with running_edge(tmp_path / "edge-2", listen=address) as second:
                sent += await second.keep(faces[:2])
                await read_results(stub, len(sent))
            connected = count(service, "sfic_analytics_feed_connected", edge=first.address)
            assert connected == 1
        results = await read_results(stub, 6)
    assert sorted(ids(results)) == sorted(sent)


async def test_an_edge_with_a_new_log_is_read_from_its_start(tmp_path: Path) -> None:
    faces, address = encoded_faces(), free_address()
    async with (
        running_edge(tmp_path / "old", listen=address) as edge,
        running_analytics(tmp_path, address) as (_, stub),
    ):
        sent = await edge.keep(faces)
        await read_results(stub, 4)
    async with (
        running_edge(tmp_path / "new", listen=address) as edge,
        running_analytics(tmp_path, address) as (_, stub),
    ):
        sent += await edge.keep(faces[:1])
        results = await read_results(stub, 5)
    assert ids(results) == sent


async def test_a_face_that_cannot_be_read_is_on_record_and_stops_nothing(tmp_path: Path) -> None:
    good = encoded_faces()[0]
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (service, stub),
    ):
        sent = await edge.keep([good, spoilt(good), other_bundle(good), good])
        sent += await edge.keep([replace(good, basic=b"\x41")])
        sent += await edge.keep([good], captured=1e10)
        await edge.keep([good], model_bundle=shared_codec().model_bundle[:4] + "0" * 12)
        sent += await edge.keep([good])
        results = await read_results(stub, 3)
        failures = await service._store.failures()
        counted = {
            code: count(service, "sfic_analytics_faces_total", edge=edge.address, outcome=code)
            for code in ("OK", "PACKET", "BUNDLE_MISMATCH", "INVALID_INPUT")
        }
    assert ids(results) == [sent[0], sent[3], sent[6]]
    assert {f.face_id: f.code for f in failures if f.face_id in sent} == {
        sent[1]: "PACKET",
        sent[2]: "BUNDLE_MISMATCH",
        sent[4]: "PACKET",
        sent[5]: "INVALID_INPUT",
    }
    assert counted == {"OK": 3, "PACKET": 2, "BUNDLE_MISMATCH": 2, "INVALID_INPUT": 1}


async def test_subscription_filters_and_refusals(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (_, stub),
    ):
        door = await edge.keep(faces[:1], camera_id="door", score=0.9)
        await edge.keep(faces[1:2], camera_id="door", score=0.3)
        gate = await edge.keep(faces[2:3], camera_id="gate", score=0.9)
        await read_results(stub, 3)
        assert ids(await read_results(stub, 1, camera_ids=["gate"])) == gate
        assert ids(await read_results(stub, 2, min_face_score=0.5)) == door + gate
        live = stub.SubscribeResults(analytics_pb2.SubscribeResultsRequest(live_only=True))
        await live.initial_metadata()
        new = await edge.keep(faces[:1])
        assert ids([await live.read()]) == new
        live.cancel()
        for request in (
            {"live_only": True, "after_cursor": 1},
            {"after_cursor": 999},
            {"min_face_score": 1.5},
        ):
            with pytest.raises(InvalidInput), sfic_errors():
                await read_results(stub, 1, **request)


async def test_feed_filters_are_the_edges(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, camera_ids=("door",), min_face_score=0.5) as (
            _,
            stub,
        ),
    ):
        await edge.keep(faces[:1], camera_id="gate", score=0.9)
        await edge.keep(faces[1:2], camera_id="door", score=0.3)
        wanted = await edge.keep(faces[2:3], camera_id="door", score=0.9)
        assert ids(await read_results(stub, 1)) == wanted
        assert edge.value("sfic_edge_feed_faces_total") == 1


async def test_search_by_face_and_by_packet_is_exact(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (service, stub),
    ):
        sent = await edge.keep(faces)
        vectors = np.array([r.analysis.embedding for r in await read_results(stub, 4)])
        for query in ({"face_id": sent[1]}, {"basic": faces[1].basic}):
            found = await stub.SearchFaces(analytics_pb2.SearchFacesRequest(**query))
            expected = vectors @ vectors[1]
            order = np.argsort(-expected)
            assert [hit.analysis.face.face_id for hit in found.hits] == [sent[k] for k in order]
            np.testing.assert_allclose(
                [hit.similarity for hit in found.hits], expected[order], atol=1e-5
            )
            assert found.hits[0].analysis.face.face_id == sent[1]
            assert found.hits[0].similarity == pytest.approx(1.0, abs=1e-5)
        between = (1.0 + sorted(expected)[-2]) / 2
        close = await stub.SearchFaces(
            analytics_pb2.SearchFacesRequest(face_id=sent[1], min_similarity=between)
        )
        assert [hit.analysis.face.face_id for hit in close.hits] == [sent[1]]
        with pytest.raises(FaceNotKept), sfic_errors():
            await stub.SearchFaces(analytics_pb2.SearchFacesRequest(face_id="nobody"))
        assert count(service, "sfic_analytics_search_seconds_count") >= 3
    # The index is made anew from the database.
    async with running_analytics(tmp_path, free_address()) as (_, stub):
        again = await stub.SearchFaces(analytics_pb2.SearchFacesRequest(face_id=sent[1]))
        assert [h.analysis.face.face_id for h in again.hits] == [sent[k] for k in order]


async def test_search_by_filters_newest_first(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (_, stub),
    ):
        old = await edge.keep(faces[:2], camera_id="door", captured=1_000_000, score=0.4)
        new = await edge.keep(faces[2:], camera_id="gate", captured=2_000_000, score=0.8)
        results = await read_results(stub, 4)
        ages = {r.analysis.face.face_id: r.analysis.age.value for r in results}

        async def search(**query: object) -> list[str]:
            found = await stub.SearchFaces(analytics_pb2.SearchFacesRequest(**query))
            return [hit.analysis.face.face_id for hit in found.hits]

        assert await search() == new[::-1] + old[::-1]
        assert await search(limit=1) == new[-1:]
        assert await search(camera_ids=["door", "unknown"]) == old[::-1]
        assert await search(camera_ids=["unknown"]) == []
        assert await search(min_face_score=0.5) == new[::-1]
        assert await search(captured_until={"seconds": 1_000_000}) == old[::-1]
        assert await search(captured_from={"seconds": 1_000_001}) == new[::-1]
        for limit in ages.values():
            young = [k for k in new[::-1] + old[::-1] if ages[k] <= limit]
            assert await search(age={"max": limit}) == young
        assert await search(age={"min": 200.0}) == []
        assert set(await search(gender={"min": 0.0, "max": 1.0})) == set(old + new)
        for query in (
            {"limit": 1001},
            {"age": {"min": 40.0, "max": 30.0}},
            {"smile": {"min": float("nan")}},
            {"min_similarity": 0.5},
            {"face_id": old[0], "min_similarity": 2.0},
            {"captured_from": {"seconds": 2}, "captured_until": {"seconds": 1}},
            {"min_face_score": -1.0},
        ):
            with pytest.raises(InvalidInput), sfic_errors():
                await search(**query)
        with pytest.raises(SficError, match="cut") as refused, sfic_errors():
            await search(basic=b"\x41")
        assert refused.value.code == "PACKET"


async def test_index_files_of_an_earlier_version_are_deleted(tmp_path: Path) -> None:
    """They hold embeddings, which forgetting would not reach."""
    names = ["0123abcd.usearch", "0123abcd.usearch.part", "4567cdef.usearch"]
    left = [tmp_path / f"analytics.sqlite.{name}" for name in names]
    others = [tmp_path / "other.sqlite.0123abcd.usearch", tmp_path / "analytics.sqlite.backup"]
    for path in left + others:
        path.write_bytes(b"embeddings")
    async with running_edge(tmp_path / "edge") as edge, running_analytics(tmp_path, edge.address):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in others)


async def test_retention_deletes_and_says_how_many_were_missed(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, max_results=2, retention_check_seconds=0.1) as (
            service,
            stub,
        ),
    ):
        sent = await edge.keep(faces)
        await eventually(
            lambda: count(service, "sfic_analytics_results_pruned_total", reason="count") == 2
        )
        results = await read_results(stub, 2)
        assert ids(results) == sent[2:]
        assert results[0].results_missed == 0, "who starts from nothing has missed nothing"
        (behind, *_) = await read_results(stub, 2, after_cursor=1)
        assert (behind.cursor, behind.results_missed) == (3, 1)
        with pytest.raises(FaceNotKept), sfic_errors():
            await stub.SearchFaces(analytics_pb2.SearchFacesRequest(face_id=sent[0]))
        assert count(service, "sfic_analytics_index_faces") == 2
        # Retention must not bring faces back through the feed, nor give a cursor twice.
        sent += await edge.keep(faces[:1])
        (new,) = await read_results(stub, 1, after_cursor=4)
        assert (new.cursor, ids([new])) == (5, sent[-1:])


async def test_subscribers_are_told_when_the_service_goes_away(tmp_path: Path) -> None:
    address = free_address()
    async with open_channel(address, retry=False) as channel:
        async with running_analytics(tmp_path, free_address(), listen=address):
            stub = analytics_pb2_grpc.AnalyticsStub(channel)
            call = stub.SubscribeResults(analytics_pb2.SubscribeResultsRequest())
            await call.initial_metadata()
            started = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in from_rpc_error(ended.value).message
    assert time.monotonic() - started < 5


async def test_store_keeps_all_or_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a.sqlite")
    try:
        result = stored("face")
        (first,) = (await store.commit([result], [], {"edge": 7})).results
        assert (first.cursor, await store.edge_cursor("edge")) == (1, 7)
        # A row that SQLite refuses takes the whole batch with it, the cursor included.
        broken = replace(result, face_id="other", analysis=None)  # type: ignore[arg-type]
        with pytest.raises(StorageError):
            await store.commit([stored("third"), broken], [], {"edge": 9})
        assert await store.edge_cursor("edge") == 7
        assert (await store.commit([result], [], {"edge": 8})).results == []
        (second,) = (await store.commit([stored("third")], [], {"edge": 9})).results
        assert second.cursor == 2, "refused rows must leave no gap"
        failed = [FailedFace(str(k), "edge", "PACKET", "", time.time_ns(), "", k) for k in range(5)]
        await store.commit([], failed, {})
        pruned = await store.prune(Retention(oldest=0, max_results=2, max_bytes=2**40))
        assert (pruned.cursors, pruned.failures) == ([], 3)
        assert [failure.face_id for failure in await store.failures()] == ["3", "4"]
        pruned = await store.prune(
            Retention(oldest=time.time_ns(), max_results=10, max_bytes=2**40)
        )
        assert pruned.cursors == [1, 2]
        assert await store.failures() == []
        assert await store.newest_cursor() == 2
    finally:
        store.close()
    newer = open_store(tmp_path / "a.sqlite")
    assert await newer.newest_cursor() == 2
    await newer.database.write(lambda c: c.execute("PRAGMA user_version = 99"))
    newer.close()
    with pytest.raises(StorageError, match="newer release"):
        open_store(tmp_path / "a.sqlite")


def open_store(path: Path) -> ResultStore:
    """A store as the service opens it."""
    return ResultStore(path, VisitTracker(30.0, 0.5), Watchlists("bundle", enabled=False))


def stored(face_id: str, **values: Any) -> StoredResult:
    """A result that a test keeps by itself."""
    fields = {
        "cursor": 0,
        "analysed": time.time_ns(),
        "analysis": b"",
        "embedding": b"",
        "camera_id": "c",
        "captured": 0,
        "face_score": 1.0,
        "model_bundle": "bundle",
        "age": None,
        "gender": None,
        "smile": None,
    }
    return StoredResult(**{**fields, "face_id": face_id, **values})


def entry(cursor: int, embedding: np.ndarray | None, **values: object) -> IndexEntry:
    fields = {
        "camera_id": "c",
        "captured": cursor,
        "face_score": 1.0,
        "age": 30.0,
        "gender": 0.5,
        "smile": 0.5,
    }
    return IndexEntry(cursor=cursor, embedding=embedding, **{**fields, **values})  # type: ignore[arg-type]


def test_index_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(3000, 48)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ages = rng.uniform(0, 100, 3000).astype(np.float32)
    index = FaceIndex()
    assert index.search(Filters(), 5, vectors[0]) == []
    for start in range(0, 3000, 700):
        block = range(start, min(start + 700, 3000))
        index.add([entry(k + 1, vectors[k], age=float(ages[k])) for k in block])
    gone = set(range(100, 2000, 7))
    index.remove([k + 1 for k in gone])
    assert len(index) == 3000 - len(gone)
    left = np.array([k for k in range(3000) if k not in gone])
    for bounds in (Bounds(), Bounds(20, 40), Bounds(99.9, None)):
        low = -1 if bounds.min is None else bounds.min
        high = 101 if bounds.max is None else bounds.max
        places = left[(ages[left] >= np.float32(low)) & (ages[left] <= np.float32(high))]
        best = places[np.argsort(-(vectors[places] @ vectors[17]))][:25]
        found = index.search(Filters(age=bounds), 25, vectors[17])
        assert [match.cursor - 1 for match in found] == best.tolist()
    index.add([entry(4000, vectors[17])])
    assert {match.cursor for match in index.search(Filters(), 2, vectors[17])} == {18, 4000}


def test_index_never_compares_faces_of_another_bundle() -> None:
    vector = np.eye(8, dtype=np.float32)[0]
    index = FaceIndex()
    index.add([entry(1, None), entry(2, None)])
    assert index.search(Filters(), 5, vector) == []
    index.add([entry(3, vector)])
    assert [match.cursor for match in index.search(Filters(), 5, vector)] == [3]
    assert [match.cursor for match in index.search(Filters(), 5)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"edges": ("nowhere",)}, "edges"),
        ({"edges": ()}, "edges"),
        ({"edges": ("a:1", "a:1")}, "edges"),
        ({"batch_faces": 65}, "batch_faces"),
        ({"retention_days": 0}, "retention_days"),
        ({"databse": "x"}, "databse"),
    ],
)
def test_wrong_settings_name_the_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        AnalyticsSettings.make(**values)


def test_only_the_feed_is_ever_called() -> None:
    """The service's own code names no other method of the edge (the wire test shows the rest)."""
    import analytics_service.subscriber as subscriber

    source = Path(subscriber.__file__).read_text()
    assert "BasicLayerFeedStub" in source
    for module in Path(subscriber.__file__).parent.glob("*.py"):
        assert "LayerStore" not in module.read_text()
        assert "EdgeIngest" not in module.read_text()
