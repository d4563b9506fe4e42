"""Traces from a frame to its picture, and logs that name faces but never show one."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_rig import eventually, running_edge
from services_util import frame, iter_async
from test_upgrade import results, running_analytics, running_decoder

from sfic.errors import MissingExtra
from sfic.service.client import open_channel
from sfic.service.server import configure_logs
from sfic.service.settings import ServiceSettings
from sfic.service.tracing import call_metadata, span, start_tracing, use_tracer
from sfic.v1 import common_pb2, decoder_pb2, decoder_pb2_grpc, edge_pb2, edge_pb2_grpc

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CAMERA_TRACE, ASKER = CALLER.split("-")[1], "00-" + "5" * 32 + "-" + "6" * 16 + "-01"


@pytest.fixture
def spans() -> Iterator[Any]:
    """Spans of this process, in memory."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="OpenTelemetry is not installed")
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    processors = pytest.importorskip("opentelemetry.sdk.trace.export")
    kept = export.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(processors.SimpleSpanProcessor(kept))
    use_tracer(provider.get_tracer("tests"))
    yield kept
    use_tracer(None)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """All that is logged, at every level, as services log it: a list of lines when called."""
    root, written = logging.getLogger(), io.StringIO()
    before = root.handlers[:], root.level
    monkeypatch.setattr(sys, "stderr", written)
    configure_logs(ServiceSettings.make(log_format="json", log_level="debug"))
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.handlers[:], root.level = before


async def send(edge: str) -> common_pb2.FaceInfo:
    """One frame, in a call that is part of the camera's trace."""
    async with open_channel(edge) as channel:
        call = edge_pb2_grpc.EdgeIngestStub(channel).StreamFrames(
            iter_async([frame(0)]), metadata=(("traceparent", CALLER),)
        )
        (receipt,) = [each async for each in call]
    return receipt.faces[0]


async def ask(decoder: str, face_id: str) -> bytes:
    async with open_channel(decoder) as channel:
        request = decoder_pb2.ReconstructRequest(face_id=face_id, final_only=True, size=128)
        call = decoder_pb2_grpc.CloudDecoderStub(channel).Reconstruct(
            request, metadata=(("traceparent", ASKER),)
        )
        return [bytes(each.picture) async for each in call][-1]


async def test_one_trace_from_frame_to_picture_and_no_face_in_any_log(
    tmp_path: Path, spans: Any, logged: Any
) -> None:
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(edge.address, tmp_path) as (_, analytics),
        running_decoder(edge.address) as decoder,
    ):
        info = await send(edge.address)

        async def analysed() -> bool:
            return bool(await results(analytics))

        await eventually(analysed)
        (result,) = await results(analytics)
        picture = await ask(decoder, info.face_id)
        await eventually(lambda: "decoder.reconstruct" in {s.name for s in made(spans)})
        async with open_channel(edge.address) as channel:
            answer = await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(
                edge_pb2.FetchLayersRequest(face_ids=[info.face_id])
            )
    packets = [packet.data for packet in answer.faces[0].layers]
    found = {each.name: each for each in made(spans)}
    of_face = ("edge.frame", "edge.encode", "edge.store", "analytics.face", "decoder.picture")
    for name in of_face:
        assert f"{found[name].context.trace_id:032x}" == CAMERA_TRACE, name
    # The picture is linked to who asked for it, whose own trace has the calls to the edge.
    (link,) = found["decoder.picture"].links
    assert link.context.span_id == found["decoder.reconstruct"].context.span_id
    for name in ("decoder.reconstruct", "sfic.v1.LayerStore/FetchKeys"):
        assert f"{found[name].context.trace_id:032x}" == "5" * 32, name
    facts = {name: dict(found[name].attributes) for name in of_face}
    assert facts["analytics.face"]["sfic.face_id"] == info.face_id
    assert facts["edge.frame"]["sfic.camera_id"] == info.camera_id

    lines = logged()
    done = {line["event"]: line for line in lines}
    assert done["frame done"]["face_ids"] == [info.face_id]
    assert done["picture made"]["face_id"] == info.face_id
    for event in ("frame done", "picture made"):
        assert done[event]["camera_id"] == info.camera_id
        assert done[event]["trace_id"] == CAMERA_TRACE
    assert done["reconstruction asked for"]["trace_id"] == "5" * 32
    written = "\n".join(map(json.dumps, lines)) + repr(facts)
    secrets = [each for each in (*packets, picture) if len(each) >= 18]
    assert len(secrets) >= 3
    assert not [each for each in secrets if shown(each, written)]
    # Two numbers of the embedding beside each other would be no accident.
    numbers = set(re.findall(r"-?\d\.\d{4,}", written))
    assert not {f"{v:.4f}" for v in np.asarray(result.embedding)} & {n[:7] for n in numbers}
    assert max(map(len, map(json.dumps, lines))) < 2000


def made(spans: Any) -> list[Any]:
    return list(spans.get_finished_spans())


def shown(secret: bytes, text: str) -> bool:
    """Whether some bytes of it can be read from a text, in a usual way of writing bytes."""
    piece = secret[6:18]
    forms = (piece.hex(), base64.b64encode(piece).decode(), repr(piece)[2:-1])
    return any(form in text for form in forms)


def test_what_would_show_is_noticed() -> None:
    secret = bytes(range(100, 140))
    for text in (secret.hex(), base64.b64encode(secret[6:30]).decode(), repr(secret)):
        assert shown(secret, text)


def test_without_a_tracer_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with span("a", CALLER, face_id="b") as named:
        assert named == "" and call_metadata() == ()
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtra, match=r"sfic\[otel\]"):
        start_tracing("edge", "http://127.0.0.1:4317")


def test_a_trace_that_is_malformed_is_left_behind(spans: Any) -> None:
    with span("a", "00-zz-1-01") as named:
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", named)
        with span("b"):
            assert call_metadata() != (("traceparent", named),)
        assert call_metadata() == (("traceparent", named),)
    inner, outer = made(spans)
    assert inner.parent.span_id == outer.context.span_id and outer.parent is None
