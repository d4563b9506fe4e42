"""What clients of analytics get beyond the stream: pages, visits, watchlists, webhooks."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from service_rig import codec, encoded_faces, eventually, running_edge
from services_util import astronaut_jpeg, empty_jpeg
from test_analytics import count, ids, read_results, running_analytics

from analytics_service.webhooks import HookStore
from sfic.errors import (
    BundleMismatch,
    ConfigError,
    FaceNotKept,
    FaceTooPoor,
    InvalidInput,
    LimitExceeded,
    NoFaceFound,
    PictureTooLarge,
    WatchlistsOff,
)
from sfic.processes import free_address
from sfic.service.client import sfic_errors
from sfic.v1 import analytics_pb2 as pb
from sfic.v1 import control_pb2
from sfic.webhook import WebhookSecret

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


async def search(stub: Any, **query: Any) -> pb.SearchFacesResponse:
    with sfic_errors():
        found: pb.SearchFacesResponse = await stub.SearchFaces(pb.SearchFacesRequest(**query))
    return found


def hit_ids(found: pb.SearchFacesResponse) -> list[str]:
    return [hit.analysis.face.face_id for hit in found.hits]


async def test_search_by_picture_and_embedding_finds_the_face(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, max_picture_bytes=300_000) as (_, stub),
    ):
        sent = await edge.keep(faces)
        results = await read_results(stub, 4)
        by_picture = await search(stub, picture=astronaut_jpeg())
        assert hit_ids(by_picture)[0] == sent[0]
        assert by_picture.hits[0].similarity > 0.9
        embedding = {
            "values": results[2].analysis.embedding,
            "model_bundle": results[2].analysis.face.model_bundle,
        }
        by_embedding = await search(stub, embedding=embedding)
        by_face = await search(stub, face_id=sent[2])
        assert by_embedding == by_face
        # Of the picture nothing is kept.
        assert ids(await read_results(stub, 4, kept_only=True)) == sent
        with pytest.raises(NoFaceFound):
            await search(stub, picture=empty_jpeg())
        with pytest.raises(PictureTooLarge):
            await search(stub, picture=bytes(300_001))
        with pytest.raises(BundleMismatch):
            await search(stub, embedding={**embedding, "model_bundle": "0" * 16})
        with pytest.raises(InvalidInput, match="unit"):
            await search(stub, embedding={**embedding, "values": [1.0, 1.0]})


async def test_search_comes_in_pages(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (service, stub),
    ):
        sent = [(await edge.keep([faces[k % 4]], captured=1000.0 + k))[0] for k in range(7)]
        await read_results(stub, 7)
        for query in ({}, {"face_id": sent[1]}, {"face_id": sent[1], "min_similarity": 0.1}):
            whole = hit_ids(await search(stub, **query))
            assert len(whole) == 7
            read, token, late = [], "", 0
            while True:
                page = await search(stub, **query, limit=3, page_token=token)
                read += hit_ids(page)
                token = page.next_page_token
                if not token:
                    break
                # What comes between two pages does not shift them.
                late += 1
                await edge.keep([faces[1]], captured=5000.0)
                await eventually(
                    lambda late=late: count(service, "sfic_analytics_index_faces") == 7 + late
                )
            assert read == whole
            assert late == 2
            new = [face_id for face_id in hit_ids(await search(stub)) if face_id not in sent]
            await service.forget(edge.address, forget_order(*new))
        assert (await search(stub, limit=7)).next_page_token == ""
        first = await search(stub, limit=3)
        for query in (
            {"page_token": "nonsense"},
            {"page_token": base64.urlsafe_b64encode(b'["x", 1]').decode()},
            {"page_token": first.next_page_token, "camera_ids": ["door"]},
        ):
            with pytest.raises(InvalidInput, match="page_token"):
                await search(stub, **query)
        assert len((await search(stub, page_token=first.next_page_token, limit=1)).hits) == 1


async def test_a_poor_face_is_unknown_and_not_guessed(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (service, stub),
    ):
        poor, good = await edge.keep([faces[0]], score=0.2), await edge.keep([faces[0]], score=0.3)
        unknown, known = (r.analysis for r in await read_results(stub, 2))
        assert (ids_of(unknown), ids_of(known)) == (poor, good)
        assert known.status == pb.RESULT_STATUS_KNOWN
        assert known.visit_id == good[0]
        assert known.face_score.value == pytest.approx(
            codec().analyze(faces[0].basic).face_score.value, rel=1e-4
        )
        assert unknown.status == pb.RESULT_STATUS_UNKNOWN
        for name in ("embedding", "embedding_confidence", "landmarks", "visit_id"):
            assert not getattr(unknown, name), name
        for name in ("age", "gender", "smile", "yaw", "pitch", "roll"):
            assert not unknown.HasField(name), name
        assert hit_ids(await search(stub)) == good + poor
        assert hit_ids(await search(stub, age={"min": 0.0})) == good
        assert hit_ids(await search(stub, face_id=good[0])) == good
        with pytest.raises(FaceTooPoor):
            await search(stub, face_id=poor[0])
        assert count(service, "sfic_analytics_faces_unknown_total", edge=edge.address) == 1
    async with running_analytics(tmp_path, free_address(), min_trusted_score=1.0) as (_, stub):
        with pytest.raises(FaceTooPoor):
            await search(stub, picture=astronaut_jpeg())
        with pytest.raises(FaceTooPoor):
            await search(stub, basic=faces[0].basic)


def ids_of(analysis: pb.FaceAnalysis) -> list[str]:
    return [analysis.face.face_id]


async def test_kept_only_ends_and_times_filter(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (_, stub),
    ):
        sent = [(await edge.keep([face], captured=1000.0 + k))[0] for k, face in enumerate(faces)]
        await read_results(stub, 4)

        async def kept(**query: Any) -> list[str]:
            request = pb.SubscribeResultsRequest(kept_only=True, **query)
            with sfic_errors():
                call = stub.SubscribeResults(request, timeout=30)
                return [result.analysis.face.face_id async for result in call]

        assert await kept() == sent
        assert await kept(after_cursor=3) == sent[3:]
        assert await kept(after_cursor=4) == []
        assert await kept(captured_from={"seconds": 1001}) == sent[1:]
        assert await kept(captured_until={"seconds": 1001}) == sent[:2]
        with pytest.raises(InvalidInput, match="captured_from"):
            await kept(captured_from={"seconds": 2}, captured_until={"seconds": 1})
        with pytest.raises(InvalidInput, match="live_only"):
            await kept(live_only=True)


async def test_visits_over_the_wire(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (_, stub),
    ):
        first = [(await edge.keep([faces[0]], captured=1000.0 + k))[0] for k in range(5)]
        later = await edge.keep([faces[0]], captured=1100.0)
        gate = await edge.keep([faces[0]], captured=1100.0, camera_id="gate")
        results = await read_results(stub, 7)
        assert [r.analysis.visit_id for r in results] == [first[0]] * 5 + later + gate

        async def visits(**query: Any) -> pb.ListVisitsResponse:
            with sfic_errors():
                listed: pb.ListVisitsResponse = await stub.ListVisits(pb.ListVisitsRequest(**query))
            return listed

        found = await visits()
        assert {visit.visit_id for visit in found.visits[:2]} == {later[0], gate[0]}
        last = found.visits[2]
        assert (last.visit_id, last.camera_id, last.faces) == (first[0], "camera-1", 5)
        assert (last.first_time.seconds, last.last_time.seconds) == (1000, 1004)
        assert last.best_face_id == first[0]
        read, token = [], ""
        for _page in range(3):
            page = await visits(limit=1, page_token=token)
            read += [visit.visit_id for visit in page.visits]
            token = page.next_page_token
        assert (read, token) == ([visit.visit_id for visit in found.visits], "")
        (only,) = (await visits(min_faces=2, camera_ids=["camera-1"])).visits
        assert only == last
        assert not (await visits(seen_from={"seconds": 2000})).visits
        with pytest.raises(InvalidInput, match="limit"):
            await visits(limit=1001)


async def test_watchlists_are_off_unless_switched_on(tmp_path: Path) -> None:
    async with running_analytics(tmp_path, free_address()) as (_, stub):
        for call, request in (
            (stub.PutWatchlist, pb.PutWatchlistRequest(watchlist=watchlist())),
            (stub.ListWatchlists, pb.ListWatchlistsRequest()),
            (stub.RemoveWatchlist, pb.RemoveWatchlistRequest(watchlist_id="missing")),
            (stub.PutWatchlistEntry, pb.PutWatchlistEntryRequest(face_id="X")),
            (stub.ListWatchlistEntries, pb.ListWatchlistEntriesRequest(watchlist_id="x")),
            (stub.RemoveWatchlistEntry, pb.RemoveWatchlistEntryRequest(watchlist_id="x")),
        ):
            with pytest.raises(WatchlistsOff), sfic_errors():
                await call(request)
        with pytest.raises(WatchlistsOff), sfic_errors():
            await stub.SubscribeAlerts(pb.SubscribeAlertsRequest()).read()


def watchlist(**values: Any) -> pb.Watchlist:
    fields = {"watchlist_id": "missing", "purpose": "ordered by a court", "threshold": 0.95}
    return pb.Watchlist(**{**fields, **values})


async def put_entry(stub: Any, entry: dict[str, Any], **like: Any) -> pb.WatchlistEntry:
    request = pb.PutWatchlistEntryRequest(entry={"watchlist_id": "missing", **entry}, **like)
    with sfic_errors():
        return (await stub.PutWatchlistEntry(request)).entry


async def test_watchlist_raises_one_alert_for_a_visit(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with running_edge(tmp_path / "edge") as edge:
        async with running_analytics(tmp_path, edge.address, watchlists=True) as (service, stub):
            kept = (
                await stub.PutWatchlist(pb.PutWatchlistRequest(watchlist=watchlist()))
            ).watchlist
            assert (kept.watchlist_id, kept.entries) == ("missing", 0)
            assert abs(kept.created_time.seconds - time.time()) < 60
            means = codec().same_person
            assert means is not None
            rates = (kept.false_match_rate, kept.false_non_match_rate)
            assert rates == pytest.approx(means.errors(kept.threshold), abs=1e-6)
            (known,) = await edge.keep(faces[:1], captured=1000.0)
            await read_results(stub, 1)
            entry = await put_entry(stub, {"entry_id": "one", "label": "Ann"}, face_id=known)
            days = (entry.expires_time.seconds - entry.created_time.seconds) / 86_400
            assert days == pytest.approx(30, abs=0.01)
            assert not entry.outdated
            # What was seen before the entry raises nothing; three faces of a visit raise one alert.
            sent = [(await edge.keep(faces[:1], captured=2000.0 + k))[0] for k in range(3)]
            await edge.keep(faces[3:], captured=2002.5)
            await read_results(stub, 5)
            (first,) = await alerts(stub)
            assert (first.alert.entry_id, first.alert.label) == ("one", "Ann")
            assert (first.alert.face.face_id, first.alert.visit_id) == (sent[0], sent[0])
            assert first.alert.similarity == pytest.approx(1.0, abs=1e-4)
            assert count(service, "sfic_analytics_alerts_total") == 1
        # Alerts outlive a restart, and live ones follow.
        async with running_analytics(tmp_path, edge.address, watchlists=True) as (_, stub):
            assert await alerts(stub) == [first]
            live = stub.SubscribeAlerts(pb.SubscribeAlertsRequest(live_only=True))
            await live.initial_metadata()
            (again,) = await edge.keep(faces[:1], captured=3000.0)
            second = await asyncio.wait_for(live.read(), 30)
            assert (second.cursor, second.alert.face.face_id) == (2, again)
            assert await alerts(stub, after_cursor=1) == [second]
            assert await alerts(stub, watchlist_ids=["others"]) == []
            live.cancel()
            removed = await stub.RemoveWatchlistEntry(
                pb.RemoveWatchlistEntryRequest(watchlist_id="missing", entry_id="one")
            )
            assert removed.removed
            assert await alerts(stub) == []


async def alerts(stub: Any, **query: Any) -> list[pb.SubscribeAlertsResponse]:
    request = pb.SubscribeAlertsRequest(kept_only=True, **query)
    return [alert async for alert in stub.SubscribeAlerts(request, timeout=30)]


async def test_watchlists_are_kept_listed_and_checked(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, watchlists=True, watchlist_entries=2) as (
            _,
            stub,
        ),
    ):

        async def put(**values: Any) -> pb.Watchlist:
            with sfic_errors():
                request = pb.PutWatchlistRequest(watchlist=watchlist(**values))
                return (await stub.PutWatchlist(request)).watchlist

        with pytest.raises(InvalidInput, match="no watchlist"):
            await put_entry(stub, {"entry_id": "one"}, picture=astronaut_jpeg())
        await put(camera_ids=["gate"])
        await put(watchlist_id="a", threshold=0.5)
        for values, word in (
            ({"watchlist_id": "no spaces"}, "watchlist_id"),
            ({"purpose": "  "}, "purpose"),
            ({"purpose": "x" * 201}, "purpose"),
            ({"threshold": 0.0}, "threshold"),
            ({"threshold": 1.5}, "threshold"),
        ):
            with pytest.raises(InvalidInput, match=word):
                await put(**values)
        await put_entry(stub, {"entry_id": "p"}, picture=astronaut_jpeg())
        soon = time.time() + 3600
        entry = await put_entry(
            stub,
            {"entry_id": "b", "threshold": 1.0, "expires_time": {"seconds": int(soon)}},
            basic=faces[0].basic,
        )
        assert (entry.threshold, entry.expires_time.seconds) == (1.0, int(soon))
        with pytest.raises(LimitExceeded):
            await put_entry(stub, {"entry_id": "c"}, basic=faces[0].basic)
        await put_entry(stub, {"entry_id": "p", "label": "new"}, basic=faces[0].basic)
        for entry_fields, like, error in (
            ({"entry_id": "x"}, {}, InvalidInput),
            ({"entry_id": ""}, {"basic": faces[0].basic}, InvalidInput),
            ({"entry_id": "x"}, {"face_id": "nobody"}, FaceNotKept),
            ({"entry_id": "x", "expires_time": {"seconds": 1}}, {"face_id": "x"}, InvalidInput),
        ):
            with pytest.raises(error):
                await put_entry(stub, entry_fields, **like)
        listed = (await stub.ListWatchlists(pb.ListWatchlistsRequest())).watchlists
        assert [(w.watchlist_id, w.entries) for w in listed] == [("a", 0), ("missing", 2)]
        assert list(listed[1].camera_ids) == ["gate"]
        request = pb.ListWatchlistEntriesRequest(watchlist_id="missing")
        entries = (await stub.ListWatchlistEntries(request)).entries
        assert [(e.entry_id, e.label) for e in entries] == [("p", "new"), ("b", "")]
        # The list's cameras and the entry's own threshold decide.
        await edge.keep(faces[:1], captured=1000.0)
        await edge.keep(faces[1:2], captured=1000.0, camera_id="gate")
        await read_results(stub, 2)
        await put(camera_ids=["gate"], threshold=0.995)
        await edge.keep(faces[1:2], captured=2000.0, camera_id="gate")
        await read_results(stub, 3)
        assert [alert.alert.entry_id for alert in await alerts(stub)] == ["p"]
        removed = await stub.RemoveWatchlist(pb.RemoveWatchlistRequest(watchlist_id="missing"))
        assert removed.removed and await alerts(stub) == []
        removed = await stub.RemoveWatchlist(pb.RemoveWatchlistRequest(watchlist_id="missing"))
        assert not removed.removed


async def test_entries_expire(tmp_path: Path) -> None:
    async with running_analytics(
        tmp_path,
        free_address(),
        watchlists=True,
        watchlist_entry_days=1e-5,
        retention_check_seconds=0.2,
    ) as (_, stub):
        await stub.PutWatchlist(pb.PutWatchlistRequest(watchlist=watchlist()))
        await put_entry(stub, {"entry_id": "one"}, basic=encoded_faces()[0].basic)

        async def gone() -> bool:
            request = pb.ListWatchlistEntriesRequest(watchlist_id="missing")
            return not (await stub.ListWatchlistEntries(request)).entries

        await eventually(gone)


def forget_order(*face_ids: str) -> control_pb2.FollowForgottenResponse:
    """An edge's order, as it comes from `sfic forget`."""
    return control_pb2.FollowForgottenResponse(scope={"face_ids": face_ids})


async def test_forget_reaches_search_and_stream(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address) as (service, stub),
    ):
        sent = await edge.keep(faces)
        await read_results(stub, 4)
        order = forget_order(sent[0], sent[2], "nobody")
        await service.forget(edge.address, order)
        assert sorted(hit_ids(await search(stub, face_id=sent[1]))) == sorted([sent[1], sent[3]])
        assert sorted(hit_ids(await search(stub))) == sorted([sent[1], sent[3]])
        assert ids(await read_results(stub, 2)) == [sent[1], sent[3]]
        assert count(service, "sfic_analytics_index_faces") == 2
        assert count(service, "sfic_analytics_results_forgotten_total") == 2


# -- webhooks


@dataclass
class Receiver:
    """A real HTTP server that answers with the statuses it is told, 200 after them."""

    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["Content-Length"]))
        self.requests.append((headers, body))
        status = self.statuses.pop(0) if self.statuses else 200
        if status:
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()

    def items(self, kind: str) -> list[dict[str, Any]]:
        return [item for _, body in self.requests for item in json.loads(body)[kind]]


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(statuses))
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    try:
        yield receiver
    finally:
        server.close()


def hook(folder: Path, url: str, **values: Any) -> dict[str, Any]:
    secret = folder / "secret"
    secret.write_text(SECRET + "\n")
    return {"name": "shop", "url": url, "secret_file": secret, "sends": "results", **values}


async def test_webhook_delivers_signed_results_after_failures(tmp_path: Path) -> None:
    faces = encoded_faces()
    # A refusal, a redirect that is not followed, a connection cut: the same delivery comes again.
    async with receiving(500, 302, 0) as receiver, running_edge(tmp_path / "edge") as edge:
        settings = {"webhooks": [hook(tmp_path, receiver.url)]}
        async with running_analytics(tmp_path, edge.address, **settings) as (service, stub):
            sent = await edge.keep(faces[:2])
            await eventually(lambda: len(receiver.requests) >= 4)
            sent += await edge.keep(faces[2:])
            await read_results(stub, 4)
            hooks = HookStore(service._store.database)

            async def booked() -> bool:
                return await hooks.place("shop:results") == (4, None)

            await eventually(booked)
            assert set(delivered_ids(receiver)) == set(sent)
            outcomes = {
                outcome: count(
                    service,
                    "sfic_analytics_webhook_deliveries_total",
                    hook="shop",
                    outcome=outcome,
                )
                for outcome in ("500", "302", "ERROR")
            }
        assert outcomes == {"500": 1, "302": 1, "ERROR": 1}
        first = receiver.requests[:4]
        assert len({headers["webhook-id"] for headers, _ in first}) == 1
        assert len({body for _, body in first}) == 1
        secret = WebhookSecret(SECRET)
        for headers, body in receiver.requests:
            assert secret.check(headers, body) == headers["webhook-id"]
        assert list(dict.fromkeys(delivered_ids(receiver))) == sent
        item = receiver.items("results")[0]
        assert item["status"] == "RESULT_STATUS_KNOWN" and "age" in item
        assert "embedding" not in item and "landmarks" not in item
        # What was delivered does not come again after a restart, the next face does.
        received = len(receiver.requests)
        async with running_analytics(tmp_path, edge.address, **settings) as (_, stub):
            sent += await edge.keep(faces[:1])
            await eventually(lambda: len(receiver.requests) > received)
        late = json.loads(receiver.requests[received][1])["results"]
        assert [item["face"]["face_id"] for item in late] == sent[-1:]


async def test_webhook_goes_on_with_its_delivery_after_a_stop(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with running_edge(tmp_path / "edge") as edge, receiving(*[503] * 100) as receiver:
        settings = {"webhooks": [hook(tmp_path, receiver.url)]}
        async with running_analytics(tmp_path, edge.address, **settings):
            sent = await edge.keep(faces[:1])
            await eventually(lambda: len(receiver.requests) > 0)
        tried = receiver.requests[0]
        # Stopped before the receiver took it; more has come meanwhile.
        sent += await edge.keep(faces[1:3])
        receiver.statuses.clear()
        async with running_analytics(tmp_path, edge.address, **settings):
            await eventually(lambda: len(set(delivered_ids(receiver))) == 3)
    again = next(r for r in receiver.requests[1:] if r[1] == tried[1])
    assert again[0]["webhook-id"] == tried[0]["webhook-id"]
    assert list(dict.fromkeys(delivered_ids(receiver))) == sent


def delivered_ids(receiver: Receiver) -> list[str]:
    return [item["face"]["face_id"] for item in receiver.items("results")]


async def test_webhook_of_alerts_and_cameras(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with receiving() as receiver, running_edge(tmp_path / "edge") as edge:
        async with running_analytics(
            tmp_path,
            edge.address,
            watchlists=True,
            webhooks=[hook(tmp_path, receiver.url, sends="alerts", camera_ids=["gate"])],
        ) as (_, stub):
            await stub.PutWatchlist(pb.PutWatchlistRequest(watchlist=watchlist()))
            await put_entry(stub, {"entry_id": "one", "label": "Ann"}, basic=faces[0].basic)
            await edge.keep(faces[:1], camera_id="door")
            (seen,) = await edge.keep(faces[:1], camera_id="gate")
            await eventually(lambda: len(receiver.requests) == 1)
        (alert,) = receiver.items("alerts")
        assert (alert["label"], alert["face"]["face_id"]) == ("Ann", seen)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"url": "http://example.org/x"}, "https"),
        ({"url": "ftp://example.org/x"}, "https"),
        ({"name": "a b"}, "name"),
        ({"secret": "x"}, "secret"),
        ({"sends": "alerts"}, "watchlists = true"),
    ],
)
def test_unsafe_webhooks_are_refused(tmp_path: Path, values: dict[str, Any], word: str) -> None:
    from analytics_service.settings import AnalyticsSettings

    with pytest.raises(ConfigError, match=word):
        AnalyticsSettings.make(
            webhooks=[hook(tmp_path, **{"url": "https://example.org/x", **values})]
        )


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "plain text that is long enough"])
async def test_a_webhook_needs_a_secret(tmp_path: Path, secret: str) -> None:
    made = hook(tmp_path, "https://example.org/x")
    made["secret_file"].write_text(secret)
    with pytest.raises(ConfigError, match="secret"):
        async with running_analytics(tmp_path, free_address(), webhooks=[made]):
            pass


def test_a_receiver_refuses_what_is_not_signed() -> None:
    secret, body = WebhookSecret(SECRET), b'{"type": "alerts"}'
    now = int(time.time())
    headers = secret.headers("id-1", body, now)
    assert secret.check({key.title(): value for key, value in headers.items()}, body) == "id-1"
    several = {**headers, "webhook-signature": "v1,AAAA " + headers["webhook-signature"]}
    assert secret.check(several, body) == "id-1"
    for wrong, content in (
        ({}, body),
        (headers, body + b" "),
        ({**headers, "webhook-id": "id-2"}, body),
        ({**headers, "webhook-timestamp": str(now + 1)}, body),
        (secret.headers("id-1", body, now - 600), body),
        (WebhookSecret("whsec_" + "QUJD" * 10).headers("id-1", body, now), body),
    ):
        with pytest.raises(InvalidInput):
            secret.check(wrong, content)


def test_signature_is_that_of_standard_webhooks() -> None:
    """The example of the specification's reference libraries."""
    secret = WebhookSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = secret.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1614265330)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
