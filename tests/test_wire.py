"""What really goes over the wire from an edge: basic layers to analytics, and everything sealed.

A proxy between the two keeps every byte. The same proxy in front of a decoder sees the sealed
higher layers, which shows that they would have been found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from service_rig import Edge, RecordingProxy, codec, encoded_faces, running_edge
from test_analytics import read_results, running_analytics
from test_decoder import running_decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS = 0, 1
SUBSCRIBE = b"/sfic.v1.BasicLayerFeed/Subscribe"
FETCH = b"/sfic.v1.LayerStore/FetchLayers"
KEYS = b"/sfic.v1.LayerStore/FetchKeys"
FORGOTTEN = b"/sfic.v1.EdgeControl/FollowForgotten"
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


def messages(records: Sequence[bytes]) -> bytes:
    """All message bytes of a direction, without the framing between them."""
    return b"".join(
        payload for record in records for kind, _, payload in frames(record) if kind == DATA
    )


def paths(records: Sequence[bytes]) -> list[bytes]:
    """Method paths in the headers that a client sent; gRPC writes them as plain text."""
    headers = [
        payload for record in records for kind, _, payload in frames(record) if kind == HEADERS
    ]
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


def recorded(proxy: RecordingProxy) -> tuple[list[bytes], list[bytes]]:
    """What came from the edge and what was sent to it, by connection."""
    return [bytes(r) for r in proxy.from_target], [bytes(r) for r in proxy.to_target]


async def sealed_layers(edge: Edge, face_ids: list[str]) -> list[dict[str, bytes]]:
    """The layers as the edge keeps them."""
    store = edge.service._store
    assert store is not None
    kept = await store.fetch(face_ids)
    return [{n: p for n, p in kept[i].layers.items() if p is not None} for i in face_ids]


async def test_analytics_gets_basic_layers_and_nothing_else(tmp_path: Path) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        RecordingProxy(edge.address) as proxy,
        running_analytics(tmp_path, proxy.address) as (_, stub),
    ):
        kept = await sealed_layers(edge, await edge.keep(faces))
        await read_results(stub, len(faces))
    received, sent = recorded(proxy)
    assert all(record.startswith(PREFACE) for record in sent)
    for face, sealed in zip(faces, kept, strict=True):
        assert sealed["basic"] in messages(received)
        assert [len(each) for each in sealed.values()] == [len(p) + 8 for p in face.layers.values()]
        # A layer with few symbols may be shorter than a window; sealed, none is.
        long = [packet for packet in face.layers.values() if len(packet) > WINDOW]
        assert face.basic in long and face.middle in long
        for packet in (*long, sealed["middle"], sealed["enhanced"]):
            assert len(packet) > WINDOW
            for record in (*received, *sent, messages(received)):
                assert windows_in(packet, record) == 0
    assert sorted(paths(sent)) == [SUBSCRIBE, FORGOTTEN]
    # Nothing but the stream of faces: as many bytes as faces with their description, and framing.
    described = sum(len(face.basic) + 440 for face in faces)
    assert len(messages(received)) < described


async def test_the_recorder_would_have_seen_higher_layers(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with (
        running_edge(tmp_path) as edge,
        RecordingProxy(edge.address) as proxy,
        running_decoder(proxy.address) as decoder,
    ):
        (face_id,) = await edge.keep([face])
        (kept,) = await sealed_layers(edge, [face_id])
        await decoder.pictures(face_id, final_only=True)
    received, sent = recorded(proxy)
    for name, packet in face.layers.items():
        assert kept[name] in messages(received)
        assert windows_in(kept[name], messages(received)) == len(kept[name]) - WINDOW + 1
        assert windows_in(packet, messages(received)) == 0
    assert sorted(paths(sent)) == [FORGOTTEN, KEYS, FETCH]


async def test_a_decoder_fetches_no_layer_that_was_not_asked_for(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with (
        running_edge(tmp_path) as edge,
        RecordingProxy(edge.address) as proxy,
        running_decoder(proxy.address) as decoder,
    ):
        (face_id,) = await edge.keep([face])
        (kept,) = await sealed_layers(edge, [face_id])
        (answer,) = await decoder.pictures(face_id, highest=1)
    received, _ = recorded(proxy)
    assert answer.layer_bytes == len(face.basic)
    assert kept["basic"] in messages(received)
    for name in ("middle", "enhanced"):
        assert windows_in(kept[name], messages(received)) == 0
    assert codec().provider == answer.provider
