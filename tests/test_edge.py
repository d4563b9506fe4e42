"""The edge over real gRPC with the real codec: frames, limits, feed, layers, shutdown, kill -9."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from services_util import (
    astronaut_jpeg,
    astronaut_pixels,
    codec,
    edge_settings,
    empty_jpeg,
    encode_picture,
    frame,
    iter_async,
    running_edge,
    running_process,
    send_frames,
    wait_until,
)

from edge_encoder.settings import EdgeSettings
from sfic.errors import ConfigError, InvalidInput, LimitExceeded, Unavailable
from sfic.grants import grant_all_faces
from sfic.packet import parse_header
from sfic.service.client import open_channel, sfic_errors
from sfic.service.server import ServiceServer
from sfic.v1 import common_pb2, edge_pb2, edge_pb2_grpc

ALL_LAYERS = [common_pb2.LAYER_BASIC, common_pb2.LAYER_MIDDLE, common_pb2.LAYER_ENHANCED]


@asynccontextmanager
async def channel_to(server: ServiceServer) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(server.address, retry=False) as channel:
        yield channel


async def fetch(
    address: str, face_ids: list[str], layers: list[Any] | None = None
) -> edge_pb2.FetchLayersResponse:
    async with open_channel(address) as channel:
        with sfic_errors("edge"):
            return await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(
                edge_pb2.FetchLayersRequest(face_ids=face_ids, layers=layers or [])
            )


async def read_log(address: str, count: int, **request: Any) -> list[edge_pb2.SubscribeResponse]:
    """The first `count` messages of a subscription."""
    async with open_channel(address, retry=False) as channel:
        call = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(
            edge_pb2.SubscribeRequest(**request)
        )
        with sfic_errors("edge"):
            messages = [await asyncio.wait_for(call.read(), 90) for _ in range(count)]
        call.cancel()
        return messages


async def metric(server: ServiceServer, name: str) -> float:
    page = await asyncio.to_thread(
        lambda: urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
    )
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    assert found, f"{name} is not among the metrics"
    return float(found.group(1))


async def test_a_frame_becomes_a_receipt_a_log_entry_and_three_layers(tmp_path: Path) -> None:
    captured = Timestamp(seconds=1_700_000_000, nanos=123_456_789)
    async with running_edge(tmp_path, edge_id="site-7") as server:
        (receipt,) = await send_frames(server.address, [frame(5, capture_time=captured, rate=4)])
        assert not receipt.HasField("error")
        assert (receipt.frame_number, receipt.faces_below_gate) == (5, 0)
        assert receipt.edge_ms > 0
        (face,) = receipt.faces
        assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", face.face_id)
        assert (face.camera_id, face.edge_id, face.frame_number) == ("door", "site-7", 5)
        assert (face.capture_time, face.rate) == (captured, 4)
        assert face.model_bundle == codec().model_bundle
        assert 0 < face.face_score <= 1

        # The crop's centre lies on the astronaut's face, in a frame of the picture's size.
        place = face.placement
        a, b, c, d, e, f = place.crop_to_frame
        assert (place.frame_width, place.frame_height) == (512, 512)
        x, y = a / 2 + b / 2 + c, d / 2 + e / 2 + f
        assert 180 < x < 270
        assert 60 < y < 190

        stored = (await fetch(server.address, [face.face_id])).faces[0]
        assert stored.info == face
        assert [packet.layer for packet in stored.layers] == ALL_LAYERS
        assert [len(packet.data) for packet in stored.layers] == list(face.layer_bytes)
        headers = [parse_header(packet.data) for packet in stored.layers]
        assert [header.layer for header in headers] == ["basic", "middle", "enhanced"]
        assert {header.rate for header in headers} == {4}

        (entry,) = await read_log(server.address, 1)
        assert (entry.cursor, entry.face, entry.faces_missed) == (1, face, 0)
        assert entry.basic == stored.layers[0].data
        for index, layer in enumerate(("basic", "middle", "enhanced")):
            name = f'sfic_edge_layer_bytes_total{{layer="{layer}"}}'
            assert await metric(server, name) == face.layer_bytes[index]


async def test_every_form_of_picture_gives_the_face(tmp_path: Path) -> None:
    pixels = astronaut_pixels()
    grey = pixels.mean(2).astype(np.uint8)
    raw = edge_pb2.RawFrame
    size = {"width": 512, "height": 512}
    frames = [
        frame(0, encode_picture(pixels, "PNG")),
        frame(1, raw=raw(format=raw.FORMAT_RGB8, pixels=pixels.tobytes(), **size)),
        frame(2, raw=raw(format=raw.FORMAT_BGR8, pixels=pixels[..., ::-1].tobytes(), **size)),
        frame(3, raw=raw(format=raw.FORMAT_GRAY8, pixels=grey.tobytes(), **size)),
        frame(4, empty_jpeg()),
    ]
    async with running_edge(tmp_path) as server:
        receipts = await send_frames(server.address, frames)
        assert [len(receipt.faces) for receipt in receipts] == [1, 1, 1, 1, 0]
        assert not any(receipt.HasField("error") for receipt in receipts)
        layers = [
            [packet.data for packet in face.layers]
            for face in (
                await fetch(server.address, [r.faces[0].face_id for r in receipts[:3]])
            ).faces
        ]
        # The same pixels, whichever way they came.
        assert layers[0] == layers[1] == layers[2]


async def test_an_aligned_crop_is_coded_without_detection(tmp_path: Path) -> None:
    crop = np.ascontiguousarray(astronaut_pixels()[20:240, 110:330])
    async with running_edge(tmp_path) as server:
        (receipt,) = await send_frames(
            server.address, [frame(0, encode_picture(crop, "PNG"), aligned=True)]
        )
        (face,) = receipt.faces
        assert not face.HasField("placement")
        stored = (await fetch(server.address, [face.face_id])).faces[0]
        assert stored.layers[0].data == codec().encode(crop, rate=5).basic


@pytest.mark.parametrize(("brighten", "least", "most"), [(True, 2.0, 4.0), (False, 0.0, 0.0)])
async def test_a_face_in_too_little_light_is_marked(
    tmp_path: Path, brighten: bool, least: float, most: float
) -> None:
    dark = (astronaut_pixels() * 0.35).astype(np.uint8)
    crop = np.ascontiguousarray(dark[0:256, 100:356])
    frames = [
        frame(0, encode_picture(dark, "PNG")), frame(1, encode_picture(crop, "PNG"), aligned=True)
    ]  # fmt: skip
    async with running_edge(tmp_path, brighten=brighten) as server:
        receipts = await send_frames(server.address, frames)
        for receipt in receipts:
            (info,) = receipt.faces
            assert least <= info.brightened <= most
            (stored,) = (await fetch(server.address, [info.face_id])).faces
            assert stored.info.brightened == info.brightened


async def test_bad_frames_get_an_error_and_the_stream_goes_on(tmp_path: Path) -> None:
    good, raw = astronaut_jpeg(), edge_pb2.RawFrame
    rgb = raw.FORMAT_RGB8
    cases: list[tuple[edge_pb2.StreamFramesRequest, str]] = [
        (frame(0), ""),
        (frame(1, b"not a picture"), "PICTURE_UNREADABLE"),
        (frame(2, good[:1500]), "PICTURE_UNREADABLE"),
        (edge_pb2.StreamFramesRequest(frame_number=3), "INVALID_INPUT"),
        (frame(4, good, rate=10), "INVALID_INPUT"),
        (frame(5, raw=raw(format=rgb, width=9, height=9, pixels=b"abc")), "PICTURE_UNREADABLE"),
        (frame(6, raw=raw(width=1, height=1, pixels=b"abc")), "INVALID_INPUT"),
        (frame(7, good, camera_id="window"), "INVALID_INPUT"),
        (frame(8, good, capture_time=Timestamp(seconds=-5)), "INVALID_INPUT"),
        (frame(9, good, capture_time=Timestamp(seconds=2**62)), "INVALID_INPUT"),
        (frame(9, good), "INVALID_INPUT"),
        (frame(4, good), "INVALID_INPUT"),
        (frame(10, raw=raw(format=rgb, width=70_000, height=70_000)), "PICTURE_TOO_LARGE"),
        (frame(11, b""), "PICTURE_UNREADABLE"),
        (frame(12, good, camera_id=""), ""),
    ]
    async with running_edge(tmp_path) as server:
        receipts = await send_frames(server.address, [request for request, _ in cases])
        assert [receipt.error.code for receipt in receipts] == [code for _, code in cases]
        assert [r.frame_number for r in receipts] == [c.frame_number for c, _ in cases]
        assert [len(r.faces) for r in receipts] == [int(code == "") for _, code in cases]
        assert all(r.error.message for r in receipts if r.HasField("error"))
        assert receipts[-1].faces[0].camera_id == "door"
        assert len(await read_log(server.address, 2)) == 2
        name = 'sfic_edge_frames_total{outcome="PICTURE_UNREADABLE"}'
        assert await metric(server, name) == 4


@pytest.mark.parametrize("camera_id", ["", "a b", "ü", "x" * 65, "a/b", "a\n"])
async def test_a_stream_without_a_good_camera_name_is_refused(
    camera_id: str, tmp_path: Path
) -> None:
    async with running_edge(tmp_path) as server:
        with pytest.raises(InvalidInput, match="camera_id"):
            await send_frames(server.address, [frame(camera_id=camera_id)])


async def test_pictures_and_messages_at_their_limits(tmp_path: Path) -> None:
    jpeg, limit, message = astronaut_jpeg(), 100_000, 128 * 1024
    exact = jpeg + b"\0" * (limit - len(jpeg))
    limits = {"max_picture_bytes": limit, "max_message_bytes": message}
    async with running_edge(tmp_path, **limits) as server:
        receipts = await send_frames(
            server.address, [frame(0, exact), frame(1, exact + b"\0"), frame(2, jpeg)]
        )
        assert [r.error.code for r in receipts] == ["", "FRAME_TOO_LARGE", ""]
        assert len(receipts[0].faces) == 1

        request = frame(3, jpeg)
        request.encoded += b"\0" * (message - request.ByteSize() - 1)
        while request.ByteSize() < message:
            request.encoded += b"\0"
        assert request.ByteSize() == message
        (receipt,) = await send_frames(server.address, [request])
        assert receipt.error.code == "FRAME_TOO_LARGE"
        request.encoded += b"\0"
        with pytest.raises(LimitExceeded):
            await send_frames(server.address, [request])
        assert len(await send_frames(server.address, [frame(4)])) == 1


async def test_pixels_are_limited_before_they_are_decoded(tmp_path: Path) -> None:
    async with running_edge(tmp_path, max_picture_pixels=512 * 512) as server:
        large = encode_picture(np.zeros((512, 513, 3), np.uint8), "PNG")
        receipts = await send_frames(server.address, [frame(0), frame(1, large)])
        assert [r.error.code for r in receipts] == ["", "PICTURE_TOO_LARGE"]


async def test_at_most_max_faces_are_kept(tmp_path: Path) -> None:
    two = np.concatenate([astronaut_pixels(), astronaut_pixels()], axis=1)
    async with running_edge(tmp_path / "a") as server:
        (receipt,) = await send_frames(server.address, [frame(0, encode_picture(two, "PNG"))])
        assert len(receipt.faces) == 2
        assert len({face.face_id for face in receipt.faces}) == 2
    async with running_edge(tmp_path / "b", max_faces=1) as server:
        (receipt,) = await send_frames(server.address, [frame(0, encode_picture(two, "PNG"))])
        assert len(receipt.faces) == 1


async def test_faces_under_the_gate_are_counted_and_not_kept(tmp_path: Path) -> None:
    async with running_edge(tmp_path, min_face_score=1.0) as server:
        (receipt,) = await send_frames(server.address, [frame()])
        assert (len(receipt.faces), receipt.faces_below_gate) == (0, 1)
        assert not receipt.HasField("error")
        assert await metric(server, "sfic_edge_store_faces") == 0
        assert await metric(server, 'sfic_edge_faces_total{outcome="below_gate"}') == 1


async def test_cameras_over_the_limit_are_refused(tmp_path: Path) -> None:
    async with running_edge(tmp_path, max_cameras=1) as server, channel_to(server) as channel:
        stub = edge_pb2_grpc.EdgeIngestStub(channel)
        first = stub.StreamFrames()
        await first.write(frame(0, empty_jpeg()))
        await first.read()
        with pytest.raises(LimitExceeded, match="camera"):
            await send_frames(server.address, [frame(0, empty_jpeg(), camera_id="other")])
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF
        assert await send_frames(server.address, [frame(0, empty_jpeg(), camera_id="other")])


async def test_a_frame_sent_again_keeps_its_faces_once(tmp_path: Path) -> None:
    stamp = Timestamp(seconds=1_700_000_000)
    async with running_edge(tmp_path) as server:
        (first,) = await send_frames(server.address, [frame(3, capture_time=stamp)])
        (again,) = await send_frames(server.address, [frame(3, capture_time=stamp)])
        (other,) = await send_frames(server.address, [frame(4, capture_time=stamp)])
        assert again.faces == first.faces
        assert other.faces[0].face_id != first.faces[0].face_id
        assert await metric(server, "sfic_edge_store_faces") == 2


async def test_calls_are_answered_while_frames_are_encoded(tmp_path: Path) -> None:
    async with running_edge(tmp_path, workers=1, frames_in_flight=2) as server:
        receipts: list[edge_pb2.StreamFramesResponse] = []
        answered_after = []
        async with channel_to(server) as channel:
            call = edge_pb2_grpc.EdgeIngestStub(channel).StreamFrames(
                iter_async([frame(n) for n in range(4)])
            )

            async def collect() -> None:
                async for receipt in call:
                    receipts.append(receipt)

            collecting = asyncio.ensure_future(collect())
            while not collecting.done():
                await fetch(server.address, ["none"])
                answered_after.append(len(receipts))
                assert await metric(server, "sfic_edge_frames_in_flight") <= 2
            await collecting
    assert [r.frame_number for r in receipts] == list(range(4))
    # A blocked event loop would answer between receipts only, at most once for each.
    assert len(answered_after) > 4


async def test_receipts_keep_the_order_of_frames_that_take_unequal_time(tmp_path: Path) -> None:
    frames = [frame(n, None if n % 2 == 0 else b"bad") for n in range(8)]
    async with running_edge(tmp_path, workers=2, frames_in_flight=8) as server:
        receipts = await send_frames(server.address, frames)
    assert [r.frame_number for r in receipts] == list(range(8))


async def test_fetch_is_batched_idempotent_and_in_the_order_asked(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as server:
        receipts = await send_frames(server.address, [frame(n) for n in range(2)])
        a, b = (receipt.faces[0].face_id for receipt in receipts)
        layers = [common_pb2.LAYER_ENHANCED, common_pb2.LAYER_BASIC, common_pb2.LAYER_BASIC]
        asked = [b, "01HZZZZZZZZZZZZZZZZZZZZZZZ", a, b, "'; DROP TABLE faces; --"]
        answer = await fetch(server.address, asked, layers)
        assert [face.face_id for face in answer.faces] == asked
        assert [face.found for face in answer.faces] == [True, False, True, True, False]
        for face in answer.faces:
            wanted = [common_pb2.LAYER_BASIC, common_pb2.LAYER_ENHANCED] if face.found else []
            assert [packet.layer for packet in face.layers] == wanted
            assert face.HasField("info") == face.found
        assert await fetch(server.address, asked, layers) == answer

        assert len((await fetch(server.address, [a] * 256)).faces) == 256
        with pytest.raises(InvalidInput, match="256"):
            await fetch(server.address, [a] * 257)
        for wrong in (common_pb2.LAYER_UNSPECIFIED, 9):
            with pytest.raises(InvalidInput, match="layers"):
                await fetch(server.address, [a], [wrong])


async def test_feed_goes_from_kept_to_live_and_resumes_after_a_restart(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as server:
        await send_frames(server.address, [frame(n) for n in range(2)])
        async with channel_to(server) as channel:
            call = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(edge_pb2.SubscribeRequest())
            assert [(await call.read()).cursor for _ in range(2)] == [1, 2]
            live = asyncio.ensure_future(call.read())
            await send_frames(server.address, [frame(2)])
            message = await asyncio.wait_for(live, 90)
            assert (message.cursor, message.face.frame_number) == (3, 2)
            call.cancel()
    async with running_edge(tmp_path) as server:
        await send_frames(server.address, [frame(3)])
        messages = await read_log(server.address, 2, after_cursor=2)
        assert [(m.cursor, m.face.frame_number) for m in messages] == [(3, 2), (4, 3)]
        with pytest.raises(InvalidInput, match="after_cursor"):
            await read_log(server.address, 1, after_cursor=5)


async def test_feed_filters_and_live_only(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as server, channel_to(server) as channel:
        await send_frames(server.address, [frame(0)])
        stub = edge_pb2_grpc.BasicLayerFeedStub(channel)
        live = stub.Subscribe(edge_pb2.SubscribeRequest(live_only=True))
        await live.initial_metadata()
        await send_frames(server.address, [frame(0, camera_id="gate")])
        message = await asyncio.wait_for(live.read(), 90)
        assert (message.cursor, message.face.camera_id, message.faces_missed) == (2, "gate", 0)
        live.cancel()

        (message,) = await read_log(server.address, 1, camera_ids=["gate", "gate", "none"])
        assert message.cursor == 2
        usable = stub.Subscribe(edge_pb2.SubscribeRequest(min_face_score=1.0))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(usable.read(), 0.5)
        for wrong in (
            {"live_only": True, "after_cursor": 1},
            {"min_face_score": 1.5},
            {"min_face_score": float("nan")},
            {"camera_ids": ["c"] * 257},
        ):
            with pytest.raises(InvalidInput):
                await read_log(server.address, 1, **wrong)


async def test_subscribers_over_the_limit_are_refused(tmp_path: Path) -> None:
    async with running_edge(tmp_path, max_subscribers=1) as server, channel_to(server) as channel:
        first = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(edge_pb2.SubscribeRequest())
        await first.initial_metadata()
        with pytest.raises(LimitExceeded, match="subscribers"):
            await read_log(server.address, 1)
        first.cancel()
        for _ in wait_until(lambda: first.done()):
            await asyncio.sleep(0.02)


async def test_retention_by_bytes_drops_the_oldest_and_the_feed_says_so(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as server:
        await send_frames(server.address, [frame(0)])
        one_face = await metric(server, "sfic_edge_store_bytes")
    limit = int(one_face * 2.5)
    async with running_edge(tmp_path, retention_bytes=limit) as server:
        receipts = await send_frames(server.address, [frame(n) for n in range(4)])
        assert await metric(server, "sfic_edge_store_faces") == 2
        assert await metric(server, "sfic_edge_store_bytes") <= limit
        assert await metric(server, 'sfic_edge_evicted_faces_total{reason="bytes"}') == 3
        answer = await fetch(server.address, [r.faces[0].face_id for r in receipts])
        assert [face.found for face in answer.faces] == [False, False, True, True]
        (message,) = await read_log(server.address, 1, after_cursor=1)
        assert (message.cursor, message.faces_missed) == (4, 2)
        (message,) = await read_log(server.address, 1)
        assert (message.cursor, message.faces_missed) == (4, 0)


async def test_retention_by_age_drops_faces(tmp_path: Path) -> None:
    short = {"retention_hours": 1.5 / 3600, "retention_check_seconds": 0.1}
    async with running_edge(tmp_path, **short) as server:
        (receipt,) = await send_frames(server.address, [frame(0)])
        face_id = receipt.faces[0].face_id
        deadline = time.monotonic() + 15
        while (await fetch(server.address, [face_id])).faces[0].found:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert await metric(server, 'sfic_edge_evicted_faces_total{reason="age"}') == 1
        assert await metric(server, "sfic_edge_store_faces") == 0


async def test_shutdown_gives_receipts_for_frames_in_work_and_keeps_them(tmp_path: Path) -> None:
    settings = edge_settings(tmp_path, workers=1, frames_in_flight=3)
    from edge_encoder.service import EdgeService

    server = ServiceServer(EdgeService(settings, codec()), settings)
    await server.start()

    async def frames() -> AsyncIterator[edge_pb2.StreamFramesRequest]:
        for number in itertools.count():
            yield frame(number)

    receipts = []
    async with channel_to(server) as channel:
        feed = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(edge_pb2.SubscribeRequest())
        call = edge_pb2_grpc.EdgeIngestStub(channel).StreamFrames(frames())
        stopping = None
        with pytest.raises(Unavailable, match="shutting down"), sfic_errors():
            async for receipt in call:
                receipts.append(receipt)
                stopping = stopping or asyncio.ensure_future(server.stop())
        assert stopping is not None
        # Those in work when the stop came were finished, not cut off.
        assert len(receipts) >= 3
        with pytest.raises(Unavailable, match="shutting down"), sfic_errors():
            async for _ in feed:
                pass
        await asyncio.wait_for(stopping, 10)
    assert [r.frame_number for r in receipts] == list(range(len(receipts)))
    async with running_edge(tmp_path) as server:
        answer = await fetch(server.address, [r.faces[0].face_id for r in receipts])
        assert all(face.found and len(face.layers) == 3 for face in answer.faces)
        entries = await read_log(server.address, len(receipts))
        assert [e.face.frame_number for e in entries] == [r.frame_number for r in receipts]


async def test_a_client_that_leaves_costs_nothing(tmp_path: Path) -> None:
    async with running_edge(tmp_path, max_cameras=1) as server:
        for _ in range(3):
            async with channel_to(server) as channel:
                call = edge_pb2_grpc.EdgeIngestStub(channel).StreamFrames()
                for number in range(4):
                    await call.write(frame(number))
            deadline = time.monotonic() + 10
            while await metric(server, "sfic_edge_camera_streams"):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        assert await send_frames(server.address, [frame(0)])


async def test_health_and_reflection_name_the_services(tmp_path: Path) -> None:
    services = ("EdgeIngest", "BasicLayerFeed", "LayerStore", "EdgeControl")
    names = [f"sfic.v1.{service}" for service in services]
    async with running_edge(tmp_path) as server, channel_to(server) as channel:
        for name in names:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=name)
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await listing.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {s.name for s in (await listing.read()).list_services_response.service}
        assert listed >= set(names)
        listing.cancel()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("edge_id", "a b"),
        ("rate", 10),
        ("effort", 4),
        ("min_face_score", 1.1),
        ("provider", "tpu"),
        ("frames_in_flight", 0),
        ("max_picture_bytes", 32 * 1024 * 1024),
        ("retention_hours", 0),
    ],
)
def test_a_wrong_setting_is_named(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=setting):
        EdgeSettings.make(**{setting: value})


async def test_kill_9_loses_no_face_that_had_its_receipt(tmp_path: Path) -> None:
    rounds, acknowledged = 3, dict[str, list[int]]()
    log = tmp_path / "edge.log"
    arguments = [
        *("--listen", "127.0.0.1:0", "--metrics-listen", "", "--log-format", "json"),
        *("--data-dir", str(tmp_path / "data"), "--provider", "cpu", "--min-face-score", "0"),
    ]
    chance = random.Random(7)
    for number in range(rounds + 1):
        log.write_bytes(b"")
        async with running_process("edge_encoder", log, arguments) as process:
            address = await _address_in(log, process)
            await grant_all_faces(address, "a test", 1.0)
            for ids in _batches(list(acknowledged)):
                for face in (await fetch(address, ids)).faces:
                    assert face.found, f"{face.face_id} had a receipt and is gone"
                    assert [len(p.data) for p in face.layers] == acknowledged[face.face_id]
            if number == rounds:
                process.terminate()
                assert await asyncio.to_thread(process.wait, 90) == 0
                break
            wanted, got = chance.randint(2, 4), 0
            async with open_channel(address, retry=False) as channel:
                call = edge_pb2_grpc.EdgeIngestStub(channel).StreamFrames(
                    iter_async([frame(n) for n in range(200)])
                )
                with pytest.raises(Unavailable), sfic_errors():
                    async for receipt in call:
                        for face in receipt.faces:
                            acknowledged[face.face_id] = list(face.layer_bytes)
                        got += 1
                        if got == wanted:
                            # In the middle of the next frame's work, at a moment that varies.
                            asyncio.get_running_loop().call_later(
                                chance.uniform(0, receipt.edge_ms / 1000), process.kill
                            )
    assert len(acknowledged) >= 2 * rounds


def _batches(items: list[str]) -> Any:
    for start in range(0, len(items), 256):
        yield items[start : start + 256]


async def _address_in(log: Path, process: Any) -> str:
    """The address that a process has logged when it serves."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        for line in log.read_text().splitlines():
            if '"serving"' in line:
                return str(json.loads(line)["address"])
        await asyncio.sleep(0.1)
    raise AssertionError(f"the edge did not start: {log.read_text()}")
