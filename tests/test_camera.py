"""The camera client against a real edge: every kind of source, lost connections, limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from services_util import astronaut_jpeg, astronaut_pixels, encode_picture, running_edge

from sfic.camera import Camera, CameraReceipt
from sfic.errors import InvalidInput, SficError, Unavailable
from sfic.service.client import open_channel
from sfic.sources import Source, SourceFrame, open_source
from sfic.v1 import edge_pb2, edge_pb2_grpc

FPS = 20


def write_video(path: Path, frames: int, format: str | None = None) -> Path:
    """The astronaut, moved a little from frame to frame, as MPEG-4 video of 20 frames a second."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 320, 320, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.gop_size = 5
        for number in range(frames):
            pixels = np.ascontiguousarray(astronaut_pixels()[:320, 60 + number : 380 + number])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


async def run(camera: Camera, at_most: int | None = None) -> list[CameraReceipt]:
    receipts = []
    async with contextlib.aclosing(camera.receipts()) as stream:
        async for receipt in stream:
            receipts.append(receipt)
            if len(receipts) == at_most:
                break
    return receipts


async def kept_frames(address: str) -> list[int]:
    """Frame numbers of all faces in the edge's log."""
    async with open_channel(address) as channel:
        call = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(edge_pb2.SubscribeRequest())
        numbers: list[int] = []
        with contextlib.suppress(asyncio.TimeoutError):
            while True:
                message = await asyncio.wait_for(call.read(), 0.7)
                numbers.append(message.face.frame_number)
        call.cancel()
        return numbers


class Proxy:
    """TCP between a camera and an edge. `cut` drops connections, `mute` swallows answers."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self.mute = False

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers |= {writer, far_writer}

        async def pass_on(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool
        ) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if not (answers and self.mute):
                        sink.write(data)
                        await sink.drain()
            sink.close()

        await asyncio.gather(pass_on(reader, far_writer, False), pass_on(far_reader, writer, True))


async def test_a_picture_and_a_folder_are_sent_as_their_own_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "b.jpg").write_bytes(astronaut_jpeg())
    (folder / "a.PNG").write_bytes(encode_picture(astronaut_pixels()[:360], "PNG"))
    (folder / "c.jpg").write_bytes(b"broken")
    (folder / "notes.txt").write_text("not a picture")
    async with running_edge(tmp_path / "edge") as server:
        receipts = await run(Camera(open_source(str(folder)), server.address, camera_id="hall"))
        assert [r.label for r in receipts] == ["a.PNG", "b.jpg", "c.jpg"]
        assert [len(r.faces) for r in receipts] == [1, 1, 0]
        assert [r.error_code for r in receipts] == ["", "", "PICTURE_UNREADABLE"]
        assert receipts[1].picture_bytes == len(astronaut_jpeg())
        assert {face.camera_id for r in receipts for face in r.faces} == {"hall"}
        (receipt,) = await run(Camera(open_source(str(folder / "b.jpg")), server.address, rate=2))
        assert receipt.faces[0].rate == 2
        assert abs(receipt.faces[0].capture_time.ToNanoseconds() - time.time_ns()) < 60e9


async def test_a_video_is_sent_frame_by_frame(tmp_path: Path) -> None:
    video = write_video(tmp_path / "walk.mp4", 5)
    async with running_edge(tmp_path / "edge") as server:
        receipts = await run(Camera(open_source(str(video)), server.address))
        assert [r.frame_number for r in receipts] == list(range(5))
        assert [len(r.faces) for r in receipts] == [1] * 5
        assert receipts[3].label == "walk.mp4 @ 0.150 s"
        assert await kept_frames(server.address) == list(range(5))


def test_fps_keeps_a_videos_own_time_and_skips_between(tmp_path: Path) -> None:
    video = write_video(tmp_path / "walk.mp4", 20)
    start = time.monotonic()
    frames = list(open_source(str(video)).frames(fps=5))
    assert [frame.label for frame in frames] == [
        f"walk.mp4 @ 0.{n}00 s" for n in ("0", "2", "4", "6", "8")
    ]
    assert time.monotonic() - start >= 0.75
    assert [frame.number for frame in frames] == list(range(5))
    assert all(a.capture_ns < b.capture_ns for a, b in zip(frames, frames[1:], strict=False))


def test_fps_paces_pictures_and_loop_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(astronaut_jpeg())
    source = open_source(str(tmp_path), loop=True)
    start, numbers = time.monotonic(), []
    for frame in source.frames(fps=20):
        numbers.append(frame.number)
        if frame.number == 5:
            source.close()
    assert numbers == list(range(6))
    assert time.monotonic() - start >= 0.25


def test_jpeg_quality_is_what_was_asked(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "v.mp4", 2))
    small, large = (
        len(next(iter(open_source(video, jpeg_quality=q).frames())).encoded) for q in (30, 95)
    )
    assert small * 2 < large


def test_a_cut_video_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.ts", 20, "mpegts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(whole[: len(whole) // 2])
    frames = list(open_source(str(tmp_path / "cut.ts")).frames())
    assert 5 <= len(frames) < 20


@pytest.mark.parametrize(
    "source", ["nothere.mp4", "empty", "text.mp4", "rtmp://x/y", "-1", "sound.wav"]
)
def test_a_source_that_cannot_be_read_is_named(source: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("no video at all")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    with pytest.raises(InvalidInput, match=source.split("/")[-1]):
        list(open_source(str(tmp_path / source)).frames())


async def test_source_errors_come_after_the_receipts_before_them(tmp_path: Path) -> None:
    class Failing(Source):
        def _read(self, fps: float | None) -> Iterator[tuple[bytes, str]]:
            yield astronaut_jpeg(), "one"
            raise InvalidInput("the lens is dirty")

    async with running_edge(tmp_path) as server:
        receipts = []
        with pytest.raises(InvalidInput, match="lens"):
            async for receipt in Camera(Failing("test"), server.address).receipts():
                receipts.append(receipt.label)
    assert receipts == ["one"]


async def test_an_edge_that_is_not_there_is_unavailable_after_patience(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(astronaut_jpeg())
    camera = Camera(open_source(str(tmp_path / "a.jpg")), "127.0.0.1:1", patience_seconds=0.5)
    with pytest.raises(Unavailable, match="127.0.0.1:1"):
        await asyncio.wait_for(run(camera), 20)


async def test_what_the_edge_refuses_is_raised_and_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(astronaut_jpeg())
    async with running_edge(tmp_path / "edge") as server:
        camera = Camera(open_source(str(tmp_path / "a.jpg")), server.address, camera_id="a b")
        with pytest.raises(InvalidInput, match="camera_id"):
            await run(camera)
        assert camera.reconnects == 0


async def test_frames_whose_receipts_were_lost_are_sent_again_and_kept_once(
    tmp_path: Path,
) -> None:
    video = write_video(tmp_path / "v.mp4", 9)
    async with running_edge(tmp_path / "edge") as server, Proxy(server.address) as proxy:
        camera = Camera(open_source(str(video)), proxy.address, frames_in_flight=4)
        receipts = []
        async for receipt in camera.receipts():
            receipts.append(receipt)
            if len(receipts) == 3:
                # The edge goes on storing, but its receipts do not arrive any more.
                proxy.mute = True
                await asyncio.sleep(1.0)
                proxy.cut()
                proxy.mute = False
            if len(receipts) == 6:
                proxy.cut()
        assert [r.frame_number for r in receipts] == list(range(9))
        assert camera.reconnects >= 2
        assert camera.frames_resent >= 1
        assert await kept_frames(server.address) == list(range(9))


async def test_an_edge_restarted_in_the_middle_loses_no_frame(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", 9)
    async with contextlib.AsyncExitStack() as first, contextlib.AsyncExitStack() as second:
        server = await first.enter_async_context(running_edge(tmp_path / "edge", workers=1))
        camera = Camera(open_source(str(video)), server.address, frames_in_flight=6)
        receipts = []
        async for receipt in camera.receipts():
            receipts.append(receipt)
            if len(receipts) == 3:
                await server.stop(grace_seconds=0)
                first.pop_all()
                await asyncio.sleep(0.5)
                again = running_edge(tmp_path / "edge", listen=server.address)
                await second.enter_async_context(again)
        assert await kept_frames(server.address) == list(range(9))
    assert [r.frame_number for r in receipts] == list(range(9))
    assert all(len(r.faces) == 1 for r in receipts)
    assert camera.reconnects >= 1
    assert camera.frames_resent >= 1


async def test_no_more_frames_are_on_their_way_than_the_edge_gives_credit_for(
    tmp_path: Path,
) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.png").write_bytes(encode_picture(grey(number), "PNG"))
    settings = {"frames_in_flight": 4, "total_frames_in_flight": 2}
    async with running_edge(tmp_path / "edge", **settings) as server:
        camera = Camera(open_source(str(tmp_path)), server.address, frames_in_flight=8)
        on_the_way = [len(camera._unacknowledged) async for _ in camera.receipts()]
    assert len(on_the_way) == 12
    assert max(on_the_way[8:]) <= 2, "those sent before the first receipt have theirs by then"


def grey(level: int) -> np.ndarray:
    return np.full((64, 64, 3), 20 * level, np.uint8)


async def test_a_live_source_drops_what_finds_no_room(tmp_path: Path) -> None:
    class Live(Source):
        live = True
        read = 0

        def _read(self, fps: float | None) -> Iterator[tuple[bytes, str]]:
            for number in range(60):
                time.sleep(0.01)
                self.read += 1
                yield astronaut_jpeg(), str(number)

    async with running_edge(tmp_path, workers=1) as server:
        source = Live("fast")
        camera = Camera(source, server.address, frames_in_flight=2)
        receipts = await run(camera)
    numbers = [r.frame_number for r in receipts]
    assert numbers == sorted(numbers)
    assert camera.frames_dropped > 0
    assert len(receipts) + camera.frames_dropped == source.read == 60


class RtspServer:
    """Serves a video as RTSP, its MPEG transport stream in RTP over the same TCP connection.

    Each viewer gets the whole video once; then the connection is closed, as by a camera that
    restarts. RFC 2326 and RFC 2250, as much of them as a player asks for.
    """

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.viewers = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection, contextlib.suppress(OSError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        requests = connection.makefile("rb")
        while line := requests.readline().decode():
            method = line.split()[0]
            headers = {}
            while (header := requests.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            answer, body = f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\nSession: 7\r\n", ""
            if method == "DESCRIBE":
                body = "v=0\r\no=- 0 0 IN IP4 0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\n"
                answer += f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            if method == "SETUP":
                answer += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            connection.sendall((answer + "\r\n" + body).encode())
            if method == "PLAY":
                self.viewers += 1
                self._play(connection)
                return

    def _play(self, connection: socket.socket) -> None:
        size = 7 * 188
        for number, start in enumerate(range(0, len(self._stream), size)):
            head = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number * 900, 1)
            packet = head + self._stream[start : start + size]
            connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
            time.sleep(0.002)
        time.sleep(0.3)


async def test_rtsp_is_read_and_opened_again_when_it_ends(tmp_path: Path) -> None:
    stream = write_video(tmp_path / "v.ts", 30, "mpegts").read_bytes()
    rtsp = RtspServer(stream)
    source = open_source(f"rtsp://user:secret@{rtsp.address}/live")
    assert "secret" not in source.name
    frames: list[SourceFrame] = []
    try:
        for frame in source.frames():
            frames.append(frame)
            if rtsp.viewers == 2 and len(frames) > 20:
                break
    finally:
        source.close()
        rtsp.close()
    assert len(frames) > 20
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert frames[0].encoded.startswith(b"\xff\xd8")
    assert "secret" not in frames[0].label


@pytest.mark.parametrize("address", ["rtsp://127.0.0.1:1/x", "63"])
def test_a_live_source_that_never_was_there_is_unavailable(address: str) -> None:
    with pytest.raises(Unavailable):
        list(open_source(address).frames())


def test_wrong_options_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(astronaut_jpeg())
    picture = str(tmp_path / "a.jpg")
    with pytest.raises(SficError, match="jpeg_quality"):
        open_source(picture, jpeg_quality=0)
    with pytest.raises(SficError, match="fps"):
        list(open_source(picture).frames(fps=-1))
