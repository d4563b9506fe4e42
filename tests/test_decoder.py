"""The decoder: a picture for each level, nothing fetched twice, bounds kept, errors that name."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from service_rig import codec, encoded_faces, eventually, running_edge
from services_util import REPOSITORY, running

from cloud_decoder.cache import LayerCache
from cloud_decoder.service import DecoderService
from cloud_decoder.settings import DecoderSettings
from sfic.errors import (
    BundleMismatch,
    ConfigError,
    FaceNotKept,
    InvalidInput,
    LayerMissing,
    LimitExceeded,
    PacketError,
    SficError,
    Unavailable,
)
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.processes import free_address
from sfic.service.client import from_rpc_error, open_channel, sfic_errors
from sfic.v1 import common_pb2, decoder_pb2, decoder_pb2_grpc

BASIC, MIDDLE, ENHANCED = common_pb2.LAYER_BASIC, common_pb2.LAYER_MIDDLE, common_pb2.LAYER_ENHANCED
RAW = decoder_pb2.PICTURE_FORMAT_RAW_RGB8
JPEG = decoder_pb2.PICTURE_FORMAT_JPEG
UNKNOWN_FACE = "01JABCDEFGHJKMNPQRSTVWXYZ0"

Response = decoder_pb2.ReconstructResponse


class Decoder:
    """A running decoder with a client."""

    def __init__(self, service: DecoderService, channel: grpc.aio.Channel) -> None:
        self.service = service
        self.stub = decoder_pb2_grpc.CloudDecoderStub(channel)

    def call(self, face_id: str, size: int = 128, **request: object) -> grpc.aio.UnaryStreamCall:
        return self.stub.Reconstruct(
            decoder_pb2.ReconstructRequest(face_id=face_id, size=size, **request)
        )

    async def pictures(self, face_id: str, size: int = 128, **request: object) -> list[Response]:
        with sfic_errors():
            return [response async for response in self.call(face_id, size, **request)]

    async def until_error(
        self, face_id: str, **request: object
    ) -> tuple[list[Response], SficError]:
        """What came before the error, and the error."""
        came: list[Response] = []
        try:
            async for response in self.call(face_id, **request):
                came.append(response)
        except grpc.RpcError as error:
            return came, from_rpc_error(error)
        raise AssertionError("the call succeeded")

    def value(self, metric: str, **labels: str) -> float:
        return self.service.registry.get_sample_value(metric, labels) or 0.0


@asynccontextmanager
async def running_decoder(edge: str, **settings: object) -> AsyncIterator[Decoder]:
    usual = {"listen": "127.0.0.1:0", "metrics_listen": "", "edge": edge, "provider": "cpu"}
    made = DecoderSettings.make(**{**usual, **settings})
    service = DecoderService(made, codec())
    async with (
        running(service, made) as server,
        open_channel(server.address, retry=False) as channel,
    ):
        yield Decoder(service, channel)


def pixels(response: Response) -> np.ndarray:
    return read_picture(response.picture)


async def test_three_pictures_each_from_more_bytes(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with running_edge(tmp_path) as edge, running_decoder(edge.address) as decoder:
        (face_id,) = await edge.keep([face])
        answers = await decoder.pictures(face_id, purpose="a test")
        calls = edge.fetch_calls()
    sizes = [len(packet) for packet in face.layers.values()]
    assert [answer.level for answer in answers] == [BASIC, MIDDLE, ENHANCED]
    assert [answer.layer_bytes for answer in answers] == np.cumsum(sizes).tolist()
    assert [answer.fetched_bytes for answer in answers] == np.cumsum(sizes).tolist()
    assert calls == 3
    for answer, level in zip(answers, ("basic", "middle", "enhanced"), strict=True):
        expected = codec().decode(face, layers=level, size=128)
        np.testing.assert_array_equal(pixels(answer), expected)
        assert (answer.width, answer.height) == (128, 128)
        assert answer.face.face_id == face_id
        assert answer.provider == codec().provider
        assert answer.decode_ms > 0 and answer.synthesis_ms > 0
    assert not np.array_equal(pixels(answers[0]), pixels(answers[1]))
    assert not np.array_equal(pixels(answers[1]), pixels(answers[2]))


async def test_only_what_is_missing_is_fetched(tmp_path: Path) -> None:
    face, other = encoded_faces()[:2]
    async with running_edge(tmp_path) as edge, running_decoder(edge.address) as decoder:
        face_id, other_id = await edge.keep([face, other])

        def fetched(layer: str) -> float:
            return edge.value("sfic_edge_fetched_bytes_total", layer=layer)

        (basic,) = await decoder.pictures(face_id, highest=BASIC)
        assert (edge.fetch_calls(), basic.fetched_bytes) == (1, len(face.basic))
        assert fetched("middle") == fetched("enhanced") == 0
        answers = await decoder.pictures(face_id)
        assert edge.fetch_calls() == 3
        assert [a.fetched_bytes for a in answers] == [
            0,
            len(face.middle),
            len(face.middle) + len(face.enhanced),
        ]
        again = await decoder.pictures(face_id)
        assert edge.fetch_calls() == 3
        assert again[-1].fetched_bytes == 0
        assert again[-1].picture == answers[-1].picture
        (final,) = await decoder.pictures(other_id, final_only=True)
        assert edge.fetch_calls() == 4, "one call brings all layers when no level is shown before"
        assert final.level == ENHANCED
        assert final.fetched_bytes == final.layer_bytes == other.total_bytes
        for layer in ("basic", "middle", "enhanced"):
            assert fetched(layer) == len(face.layers[layer]) + len(other.layers[layer])
        assert decoder.value("sfic_decoder_fetch_calls_total") == 4


async def test_two_requests_at_once_fetch_each_layer_once(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as edge, running_decoder(edge.address) as decoder:
        (face_id,) = await edge.keep(encoded_faces()[:1])
        both = await asyncio.gather(*(decoder.pictures(face_id) for _ in range(2)))
        assert [len(answers) for answers in both] == [3, 3]
        assert edge.fetch_calls() == 3


async def test_without_a_cache_a_request_still_fetches_each_layer_once(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with (
        running_edge(tmp_path) as edge,
        running_decoder(edge.address, cache_bytes=0) as decoder,
    ):
        (face_id,) = await edge.keep([face])
        for _ in range(2):
            answers = await decoder.pictures(face_id)
            assert answers[-1].fetched_bytes == face.total_bytes
        assert decoder.value("sfic_decoder_cache_bytes") == 0


async def test_formats_and_sizes(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with running_edge(tmp_path) as edge, running_decoder(edge.address) as decoder:
        (face_id,) = await edge.keep([face])
        for size in (128, 256):
            expected = codec().decode(face, layers="basic", size=size)
            (raw,) = await decoder.pictures(face_id, size, highest=BASIC, format=RAW)
            assert raw.picture == expected.tobytes()
            (jpeg,) = await decoder.pictures(face_id, size, highest=BASIC, format=JPEG)
            assert jpeg.picture[:2] == b"\xff\xd8"
            difference = pixels(jpeg).astype(int) - expected
            assert pixels(jpeg).shape == (size, size, 3)
            assert np.abs(difference).mean() < 12
        (largest,) = await decoder.pictures(face_id, 0, highest=BASIC)
        assert (largest.width, pixels(largest).shape) == (1024, (1024, 1024, 3))


async def test_paste_back_into_a_frame_and_into_black(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    photograph = read_picture(demo_photograph())
    async with running_edge(tmp_path) as edge, running_decoder(edge.address) as decoder:
        (face_id,) = await edge.keep([face])
        (aligned,) = await edge.keep([face], with_placement=False)
        query = {"highest": BASIC, "paste_back": True}
        (black,) = await decoder.pictures(face_id, **query)
        (into,) = await decoder.pictures(face_id, frame=demo_photograph().read_bytes(), **query)
        with pytest.raises(InvalidInput, match="no frame"):
            await decoder.pictures(aligned, **query)
        strip = cv2.imencode(".png", np.zeros((64, 128, 3), np.uint8))[1].tobytes()
        with pytest.raises(InvalidInput, match="128x64"):
            await decoder.pictures(face_id, frame=strip, **query)
        with pytest.raises(InvalidInput, match="PICTURE|read"):
            await decoder.pictures(face_id, frame=b"not a picture", **query)
    assert (into.frame_width, into.frame_height) == photograph.shape[1::-1]
    pasted, bare = read_picture(into.frame), read_picture(black.frame)
    assert pasted.shape == bare.shape == photograph.shape
    changed = (pasted != photograph).any(axis=2)
    assert 0.02 < changed.mean() < 0.9, "the face changes, its surroundings do not"
    np.testing.assert_array_equal(pasted[-1], photograph[-1])
    assert bare.any()
    assert not bare[-1].any(), "black around the face"


async def test_a_brightened_face_goes_back_as_dark_as_it_was(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with running_edge(tmp_path) as edge, running_decoder(edge.address) as decoder:
        ids = await edge.keep([face, replace(face, brightened=2.0)])
        query = {"highest": BASIC, "paste_back": True}
        plain, dim = [(await decoder.pictures(face_id, **query))[0] for face_id in ids]
    assert dim.face.brightened == 2.0
    np.testing.assert_array_equal(read_picture(dim.picture), read_picture(plain.picture))
    wanted = read_picture(plain.frame).astype(float) / 2
    assert np.abs(read_picture(dim.frame) - wanted).max() <= 2.0


async def test_wrong_requests_are_refused_by_field(tmp_path: Path) -> None:
    async with running_decoder(free_address(), max_frame_pixels=4096) as decoder:
        for request, field in (
            ({"face_id": ""}, "face_id"),
            ({"face_id": "x" * 65}, "face_id"),
            ({"face_id": "x", "size": 100}, "size"),
            ({"face_id": "x", "highest": 9}, "highest"),
            ({"face_id": "x", "format": 9}, "format"),
            ({"face_id": "x", "purpose": "p" * 201}, "purpose"),
            ({"face_id": "x", "on_behalf_of": "p" * 101}, "on_behalf_of"),
            ({"face_id": "x", "frame": b"f"}, "frame"),
        ):
            with pytest.raises(InvalidInput, match=field):
                await decoder.pictures(**request)
        with pytest.raises(InvalidInput, match="limit"):
            frame = demo_photograph().read_bytes()
            await decoder.pictures("x", paste_back=True, frame=frame)


async def test_unknown_face_is_not_found(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as edge, running_decoder(edge.address) as decoder:
        call = decoder.call(UNKNOWN_FACE)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        error = from_rpc_error(refused.value)
        assert isinstance(error, FaceNotKept)
        assert UNKNOWN_FACE in error.message
        assert error.details["layer"] == "basic"


async def test_edge_away_is_unavailable_and_names_edge_and_layer() -> None:
    away = free_address()
    async with running_decoder(away) as decoder:
        call = decoder.call(UNKNOWN_FACE)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        message = from_rpc_error(refused.value).message
        assert "basic layer" in message
        assert away in message


async def test_pictures_sent_before_an_error_stay_valid(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with running_edge(tmp_path / "edge") as edge, running_decoder(edge.address) as decoder:
        broken = bytearray(face.middle or b"")
        broken[-1] ^= 1
        whole, without, spoilt = await edge.keep(
            [face, replace(face, enhanced=None), replace(face, middle=bytes(broken))]
        )
        foreign = (await edge.keep([face], model_bundle="0123456789abcdef"))[0]

        came, error = await decoder.until_error(without)
        assert [answer.level for answer in came] == [BASIC, MIDDLE]
        assert isinstance(error, LayerMissing)
        assert error.details["layer"] == "enhanced"

        came, error = await decoder.until_error(spoilt)
        assert [answer.level for answer in came] == [BASIC]
        np.testing.assert_array_equal(pixels(came[0]), codec().decode(face, "basic", 128))
        assert isinstance(error, PacketError)
        assert error.details["layer"] == "middle"
        assert "middle" in error.message

        came, error = await decoder.until_error(foreign)
        assert came == []
        assert isinstance(error, BundleMismatch)
        assert "0123456789abcdef" in error.message

        await decoder.pictures(whole, highest=BASIC)
        await edge.server.stop(0)
        came, error = await decoder.until_error(whole)
        assert came == [], "what is cached is sealed, and only the edge gives keys"
        assert isinstance(error, Unavailable)
        assert error.details["layer"] == "basic"


async def test_requests_over_the_bound_are_refused_and_those_under_it_wait(
    tmp_path: Path,
) -> None:
    async with (
        running_edge(tmp_path) as edge,
        running_decoder(edge.address, max_requests=3, synthesis_workers=1) as decoder,
    ):
        (face_id,) = await edge.keep(encoded_faces()[:1])
        running = [asyncio.ensure_future(decoder.pictures(face_id, 1024)) for _ in range(3)]
        await eventually(lambda: decoder.value("sfic_decoder_requests") == 3)
        with pytest.raises(LimitExceeded, match="3 requests"):
            await decoder.pictures(face_id)
        # The event loop stays free while pictures are made.
        info = await asyncio.wait_for(
            decoder.stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest()), 5
        )
        assert info.provider == codec().provider
        assert any(not task.done() for task in running)
        answers = await asyncio.gather(*running)
        assert [len(each) for each in answers] == [3, 3, 3]
        assert len(await decoder.pictures(face_id)) == 3


async def test_a_client_that_goes_away_cancels_the_work(tmp_path: Path) -> None:
    async with (
        running_edge(tmp_path) as edge,
        running_decoder(edge.address, synthesis_workers=1) as decoder,
    ):
        (face_id,) = await edge.keep(encoded_faces()[:1])
        calls = [decoder.call(face_id, 1024) for _ in range(4)]
        await calls[0].read()
        for call in calls:
            call.cancel()
        await eventually(lambda: decoder.value("sfic_decoder_requests") == 0)
        await decoder.pictures(face_id, 128)  # queued behind what was not cancelled
        made = {
            level: decoder.value("sfic_decoder_synthesis_seconds_count", level=level, size="1024")
            for level in ("basic", "middle", "enhanced")
        }
        assert made["basic"] >= 1
        assert made["enhanced"] == 0
        assert sum(made.values()) < 12 / 2, f"cancelled work went on: {made}"


async def test_decoder_info(tmp_path: Path) -> None:
    edge = free_address()
    async with running_decoder(edge, threads=3) as decoder:
        info = await decoder.stub.GetDecoderInfo(decoder_pb2.GetDecoderInfoRequest())
    assert info.model_bundle == codec().model_bundle
    assert len(info.model_bundle) == 16
    assert info.provider == codec().provider
    assert (info.threads, info.edge) == (3, edge)
    assert info.version


def test_a_gpu_that_is_asked_for_and_absent_stops_the_service() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("a GPU build of ONNX Runtime is here")
    ended = subprocess.run(
        [sys.executable, "-m", "cloud_decoder", "--provider=cuda", "--listen=127.0.0.1:0"]
        + ["--metrics-listen="],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=120,
    )
    lines = ended.stderr.decode().strip().splitlines()
    assert ended.returncode == 4
    assert len(lines) == 1, lines
    assert "cuda" in lines[0].lower()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"edge": "nowhere"}, "edge"),
        ({"provider": "tpu"}, "provider"),
        ({"jpeg_quality": 0}, "jpeg_quality"),
        ({"cach_bytes": 1}, "cach_bytes"),
    ],
)
def test_wrong_settings_name_the_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        DecoderSettings.make(**values)


def test_cache_is_bounded_by_bytes_and_forgets_the_least_used() -> None:
    now = 0.0
    cache = LayerCache(10_000, 60.0, clock=lambda: now)
    info = common_pb2.FaceInfo()
    for number in range(50):
        cache.put(str(number), info, {"basic": bytes(100)})
        cache.get("0")
        assert cache.bytes_used <= 10_000
    assert cache.get("0") is not None
    assert cache.get("1") is None
    assert cache.get("49") is not None
    grown = cache.put("49", info, {"middle": bytes(50)})
    assert set(grown.layers) == {"basic", "middle"}
    for name in [str(number) for number in range(50)]:
        cache.drop(name)
    assert (len(cache), cache.bytes_used) == (0, 0)
    huge = cache.put("huge", info, {"basic": bytes(20_000)})
    assert len(huge.layers["basic"]) == 20_000
    assert len(cache) == 0, "what does not fit is used and not kept"
    cache.put("old", info, {"basic": b"x"})
    now = 40.0
    cache.put("old", info, {"middle": b"y"})
    cache.put("young", info, {"basic": b"x"})
    now = 61.0
    assert cache.get("old") is None, "age counts from the first fetch"
    now = 101.0
    cache.expire()
    assert (len(cache), cache.bytes_used) == (0, 0)
