"""Hostile clients: connections that never speak, thousands of them, streams that lie or never end.

Hostile pictures are in `test_pictures`, messages at their limits in `test_edge`, mutated input of
every kind in `test_corpus`.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from services_util import empty_jpeg, frame, iter_async, running_edge, send_frames
from test_service_base import ToyService, toy_settings

from sfic.errors import InvalidInput, LimitExceeded
from sfic.service.client import open_channel, sfic_errors
from sfic.service.server import ServiceServer
from sfic.v1 import edge_pb2, edge_pb2_grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    """Let this process have so many files open, or skip."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < count:
        pytest.skip(f"only {before[1]} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], count), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def fetch(address: str) -> None:
    async with open_channel(address, retry=False) as channel:
        with sfic_errors():
            await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(
                edge_pb2.FetchLayersRequest(), timeout=20
            )


def connect(address: str, said: bytes = b"") -> socket.socket:
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=20)
    made.sendall(said)
    return made


@pytest.mark.parametrize("said", [b"", b"PRI * HT", b"GET / HTTP/1.1\r\n", bytes(9), b"\xff" * 400])
async def test_a_connection_that_does_not_speak_grpc_is_closed(said: bytes) -> None:
    async with ServiceServer(ToyService(), toy_settings(handshake_seconds=0.5)) as server:
        slow = [connect(server.address, said) for _ in range(5)]
        await fetch(server.address)
        for each in slow:
            # Whatever the server says to it, it ends.
            await asyncio.wait_for(asyncio.to_thread(read_to_end, each), 15)


def read_to_end(connection: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError), connection:
        while connection.recv(65_536):
            pass


async def test_two_thousand_connections_do_not_keep_others_out() -> None:
    with many_files(6000), contextlib.ExitStack() as stack:
        async with ServiceServer(ToyService(), toy_settings()) as server:
            for _ in range(2000):
                stack.enter_context(connect(server.address, PREFACE))
            started = time.monotonic()
            await fetch(server.address)
            assert time.monotonic() - started < 10
            stack.close()
            await fetch(server.address)


async def test_headers_without_end_are_refused() -> None:
    async with (
        ServiceServer(ToyService(), toy_settings()) as server,
        open_channel(server.address, retry=False) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(
                edge_pb2.FetchLayersRequest(), metadata=(("x-long", "x" * 100_000),)
            )
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with ServiceServer(ToyService(), toy_settings()) as server:
        await fetch(server.address)


@pytest.mark.parametrize(
    "junk",
    [b"\xff" * 64, b"\x0a\xff\xff\xff\xff\x0f", b"\x08\x01", b"\x0a\x02\xff\xfe", b"\x0b" * 99],
)
async def test_bytes_of_another_type_end_their_call_and_nothing_else(junk: bytes) -> None:
    """Wrong wire types, lengths past the end, text that is no UTF-8, groups without end."""
    async with (
        ServiceServer(ToyService(), toy_settings()) as server,
        open_channel(server.address, retry=False) as channel,
    ):
        call = channel.unary_unary("/sfic.v1.LayerStore/FetchLayers")
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call(junk, timeout=20)
        await fetch(server.address)


async def test_a_stream_cut_in_the_middle_and_one_without_end(tmp_path: Path) -> None:
    async with running_edge(tmp_path, frames_in_flight=2, total_frames_in_flight=2) as server:
        # A picture that breaks off, and one that goes on for ever within its limit.
        cut = frame(0, empty_jpeg()[:200])
        endless = frame(1, empty_jpeg() + bytes(500_000))
        receipts = await send_frames(server.address, [cut, endless, frame(2, empty_jpeg())])
        assert [receipt.error.code for receipt in receipts][0] == "PICTURE_UNREADABLE"
        assert [receipt.error.code for receipt in receipts][2] == ""

        async with open_channel(server.address, retry=False) as channel:
            stub = edge_pb2_grpc.EdgeIngestStub(channel)
            silent = stub.StreamFrames()
            await silent.write(frame(0, empty_jpeg(), camera_id="silent"))
            await silent.read()
            # Nobody waits for a camera that has gone quiet.
            assert len(await send_frames(server.address, [frame(3, empty_jpeg())])) == 1
            silent.cancel()

            def flood() -> Iterator[edge_pb2.StreamFramesRequest]:
                number = 0
                while True:
                    yield frame(number, b"x" * 1000, camera_id="flood")
                    number += 1

            call = stub.StreamFrames(iter_async(flood()))
            read = [await call.read() for _ in range(50)]
            assert {receipt.error.code for receipt in read} == {"PICTURE_UNREADABLE"}
            call.cancel()
        assert len(await send_frames(server.address, [frame(4, empty_jpeg())])) == 1


async def test_a_fetch_of_a_message_full_of_names_is_refused(tmp_path: Path) -> None:
    """Requests just under and over the size limit, of as many names as fit."""
    many = edge_pb2.FetchLayersRequest(face_ids=["x"] * 21_000)
    too_many = edge_pb2.FetchLayersRequest(face_ids=["x"] * 30_000)
    async with (
        running_edge(tmp_path, max_picture_bytes=10_000, max_message_bytes=65_536) as server,
        open_channel(server.address, retry=False) as channel,
    ):
        stub = edge_pb2_grpc.LayerStoreStub(channel)
        with pytest.raises(InvalidInput, match="256"), sfic_errors():
            await stub.FetchLayers(many)
        with pytest.raises(LimitExceeded), sfic_errors():
            await stub.FetchLayers(too_many)
        repeated = edge_pb2.FetchLayersRequest(face_ids=["x"], layers=[1] * 60_000)
        assert not (await stub.FetchLayers(repeated)).faces[0].found
