"""What really goes over the wire from an edge to analytics: basic layers and nothing higher.

A proxy between the two keeps every byte. The same proxy in front of a decoder sees the higher
layers, which shows that they would have been found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from service_rig import RecordingProxy, codec, encoded_faces, running_edge
from test_analytics import read_results, running_analytics
from test_decoder import running_decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS = 0, 1
SUBSCRIBE = b"/sfic.v1.BasicLayerFeed/Subscribe"
FETCH = b"/sfic.v1.LayerStore/FetchLayers"
# Two packets agree in a window of this many bytes by chance once in 2**64.
WINDOW = 8


def frames(record: bytes) -> Iterator[tuple[int, int, bytes]]:
    """HTTP/2 frames of one direction of one connection: type, stream, payload (RFC 9113, 4.1)."""
    at = len(PREFACE) if record.startswith(PREFACE) else 0
    while at + 9 <= len(record):
        length = int.from_bytes(record[at : at + 3], "big")
        stream = int.from_bytes(record[at + 5 : at + 9], "big") & 0x7FFF_FFFF
        yield record[at + 3], stream, record[at + 9 : at + 9 + length]
        at += 9 + length


def messages(record: bytes) -> bytes:
    """All message bytes of a direction, without the framing between them."""
    return b"".join(payload for kind, _, payload in frames(record) if kind == DATA)


def paths(record: bytes) -> list[bytes]:
    """Method paths in the headers that a client sent; gRPC writes them as plain text."""
    headers = [payload for kind, _, payload in frames(record) if kind == HEADERS]
    found = []
    for header in headers:
        assert header.count(b"/sfic.v1.") + header.count(b"/grpc.") == 1, header
        start = max(header.find(b"/sfic.v1."), header.find(b"/grpc."))
        end = start
        while header[end : end + 1].isalnum() or header[end : end + 1] in (b"/", b"."):
            end += 1
        found.append(header[start:end])
    return found


def windows_in(packet: bytes, record: bytes) -> int:
    """How many windows of the packet occur in the record."""
    return sum(packet[k : k + WINDOW] in record for k in range(len(packet) - WINDOW + 1))


async def test_analytics_gets_basic_layers_and_nothing_else(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        RecordingProxy(edge.address) as proxy,
        running_analytics(tmp_path, proxy.address) as (_, stub),
    ):
        await edge.keep(faces)
        await read_results(stub, len(faces))
    received, sent = bytes(proxy.from_target), bytes(proxy.to_target)
    assert sent.startswith(PREFACE)
    for face in faces:
        assert face.middle and face.enhanced
        assert len(face.middle) > WINDOW
        assert len(face.enhanced) > WINDOW
        assert face.basic in messages(received)
        for packet in (face.middle, face.enhanced):
            for record in (received, sent, messages(received)):
                assert packet not in record
                assert windows_in(packet, record) == 0
    assert paths(sent) == [SUBSCRIBE]
    # Nothing but the stream of faces: as many bytes as faces with their description, and framing.
    described = sum(len(face.basic) + 400 for face in faces)
    assert len(messages(received)) < described


async def test_the_recorder_would_have_seen_higher_layers(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with (
        running_edge(tmp_path) as edge,
        RecordingProxy(edge.address) as proxy,
        running_decoder(proxy.address) as decoder,
    ):
        (face_id,) = await edge.keep([face])
        await decoder.pictures(face_id, final_only=True)
    received, sent = bytes(proxy.from_target), bytes(proxy.to_target)
    for packet in face.layers.values():
        assert packet in messages(received)
        assert windows_in(packet, received) == len(packet) - WINDOW + 1
    assert paths(sent) == [FETCH]


async def test_a_decoder_fetches_no_layer_that_was_not_asked_for(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with (
        running_edge(tmp_path) as edge,
        RecordingProxy(edge.address) as proxy,
        running_decoder(proxy.address) as decoder,
    ):
        (face_id,) = await edge.keep([face])
        (answer,) = await decoder.pictures(face_id, highest=1)
    received = bytes(proxy.from_target)
    assert answer.layer_bytes == len(face.basic)
    assert face.basic in messages(received)
    for packet in (face.middle, face.enhanced):
        assert packet
        assert windows_in(packet, received) == 0
    assert codec().provider == answer.provider
