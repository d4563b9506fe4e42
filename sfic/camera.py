"""The camera client: frames from a source to an edge, receipts back, across lost connections.

Where frames come from: `sfic.sources`. What the edge does with them: its own business. A frame is
held until its receipt has come, and sent again on the next connection when it has not; the edge
knows a repeated frame by its camera, number and time, and keeps its faces once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import grpc.aio
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from sfic.errors import SficError, Unavailable
from sfic.service.client import Backoff, from_rpc_error, open_channel
from sfic.service.identity import Identity
from sfic.sources import Source, SourceFrame
from sfic.v1 import common_pb2, edge_pb2, edge_pb2_grpc

__all__ = ["Camera", "CameraReceipt"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class CameraReceipt:
    """What the edge said of one frame."""

    frame_number: int
    label: str
    """Where the frame came from: a file's name, or "video.mp4 @ 1.200 s"."""
    picture_bytes: int
    """Bytes of the picture as sent."""
    faces: tuple[common_pb2.FaceInfo, ...]
    faces_below_gate: int
    error_code: str
    """Stable code of the error tree; empty when the frame was taken."""
    error_message: str
    edge_ms: float
    """Time the edge spent on the frame, in milliseconds."""


@dataclass(frozen=True)
class _Sent:
    frame: SourceFrame
    request: edge_pb2.StreamFramesRequest


class Camera:
    """Streams one source to one edge.

    `fps`: at most this many frames a second (see `Source`). `rate`: 1..9, 0 for the edge's own.
    `aligned`: the pictures are FFHQ-aligned crops. `frames_in_flight`: frames sent or read ahead
    and without a receipt, which bounds memory; fewer are sent when the edge asks for it in its
    receipts. `patience_seconds`: how long the edge may be out of reach before `receipts` raises
    `Unavailable`; None: for ever. `longest_wait_seconds`: between two tries to connect again.
    `identity`: as whom we call.
    """

    def __init__(
        self,
        source: Source,
        edge: str,
        *,
        camera_id: str = "camera-1",
        fps: float | None = None,
        rate: int = 0,
        aligned: bool = False,
        frames_in_flight: int = 8,
        patience_seconds: float | None = 30.0,
        longest_wait_seconds: float = 10.0,
        identity: Identity | None = None,
    ) -> None:
        self.frames_dropped = 0
        """Frames of a live source that found no room."""
        self.frames_resent = 0
        self.reconnects = 0
        self._source = source
        self._edge = edge
        self._camera_id = camera_id
        self._fps = fps
        self._rate = rate
        self._aligned = aligned
        self._limit = frames_in_flight
        self._credit = frames_in_flight
        self._patience = patience_seconds
        self._longest_wait = longest_wait_seconds
        self._identity = identity
        self._waiting: deque[_Sent] = deque()
        self._unacknowledged: deque[_Sent] = deque()
        self._sessions = 0
        self._ended = False
        self._failure: Exception | None = None
        self._changed = asyncio.Condition()

    async def receipts(self) -> AsyncIterator[CameraReceipt]:
        """Send the source's frames; yield one receipt for each, in order.

        Raises what the edge refused the stream with, `Unavailable` when it stayed away for too
        long, and what the source fails with, after the receipts of the frames before.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="camera")
        pump = asyncio.ensure_future(self._pump(thread))
        try:
            async with open_channel(self._edge, identity=self._identity, retry=False) as channel:
                stub = edge_pb2_grpc.EdgeIngestStub(channel)
                async for receipt in self._stay_connected(stub):
                    yield receipt
            if self._failure is not None:
                raise self._failure
        finally:
            pump.cancel()
            self._source.close()
            await asyncio.gather(pump, return_exceptions=True)
            thread.shutdown(wait=False)

    async def _stay_connected(
        self, stub: edge_pb2_grpc.EdgeIngestStub
    ) -> AsyncIterator[CameraReceipt]:
        backoff = Backoff(longest=self._longest_wait)
        away_since: float | None = None
        while not (self._ended and self._held == 0):
            try:
                async for receipt in self._session(stub):
                    backoff.reset()
                    away_since = None
                    yield receipt
                problem: SficError = Unavailable(f"{self._edge} ended the stream")
                if self._ended and self._held == 0:
                    return
            except grpc.RpcError as error:
                problem = from_rpc_error(error, self._edge)
                if not isinstance(problem, Unavailable):
                    raise problem from error
            now = time.monotonic()
            away_since = now if away_since is None else away_since
            if self._patience is not None and now - away_since > self._patience:
                raise Unavailable(
                    f"edge at {self._edge} not reached for {self._patience:g} s: {problem.message}"
                )
            wait = backoff.next_seconds()
            log.info("connecting again", edge=self._edge, seconds=wait, reason=problem.message)
            await asyncio.sleep(wait)
            self.reconnects += 1

    async def _session(self, stub: edge_pb2_grpc.EdgeIngestStub) -> AsyncIterator[CameraReceipt]:
        """Stream on one connection until the source has ended or the connection has."""
        self._sessions += 1
        call = stub.StreamFrames(self._requests(self._sessions))
        try:
            async for response in call:
                if not self._unacknowledged:
                    raise SficError(f"{self._edge} sent a receipt for no frame")
                sent = self._unacknowledged[0]
                if response.frame_number != sent.frame.number:
                    raise SficError(
                        f"{self._edge} sent a receipt for frame {response.frame_number} instead of "
                        f"{sent.frame.number}"
                    )
                async with self._changed:
                    self._unacknowledged.popleft()
                    self._credit = response.frames_in_flight or self._limit
                    self._changed.notify_all()
                yield _receipt(sent.frame, response)
        finally:
            call.cancel()
            # gRPC may leave the old call's `_requests` waiting: it must not take another frame.
            async with self._changed:
                self._sessions += 1
                self._changed.notify_all()

    async def _requests(self, session: int) -> AsyncIterator[edge_pb2.StreamFramesRequest]:
        again = list(self._unacknowledged)
        self.frames_resent += len(again)
        for sent in again:
            yield sent.request
        while True:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._may_send or self._is_done or session != self._sessions
                )
                if not self._waiting or session != self._sessions:
                    return
                sent = self._waiting.popleft()
                self._unacknowledged.append(sent)
            yield sent.request

    async def _pump(self, thread: ThreadPoolExecutor) -> None:
        """Read the source on its thread, at most `frames_in_flight` frames ahead of receipts."""
        loop = asyncio.get_running_loop()
        frames: Iterator[SourceFrame] = iter(self._source.frames(self._fps))
        try:
            while (frame := await loop.run_in_executor(thread, next, frames, None)) is not None:
                await self._offer(_Sent(frame, self._request(frame)))
        except Exception as error:
            self._failure = error
        finally:
            with contextlib.suppress(RuntimeError):
                async with self._changed:
                    self._ended = True
                    self._changed.notify_all()

    async def _offer(self, sent: _Sent) -> None:
        async with self._changed:
            if not self._source.live:
                await self._changed.wait_for(lambda: self._held < self._limit)
            elif self._held >= self._limit:
                # A live picture is worth more than an old one that was not sent.
                self.frames_dropped += 1
                if not self._waiting:
                    return
                self._waiting.popleft()
            self._waiting.append(sent)
            self._changed.notify_all()

    @property
    def _may_send(self) -> bool:
        return bool(self._waiting) and len(self._unacknowledged) < self._credit

    @property
    def _is_done(self) -> bool:
        return self._ended and not self._waiting

    @property
    def _held(self) -> int:
        return len(self._waiting) + len(self._unacknowledged)

    def _request(self, frame: SourceFrame) -> edge_pb2.StreamFramesRequest:
        seconds, nanos = divmod(frame.capture_ns, 1_000_000_000)
        return edge_pb2.StreamFramesRequest(
            camera_id=self._camera_id,
            frame_number=frame.number,
            capture_time=Timestamp(seconds=seconds, nanos=nanos),
            encoded=frame.encoded,
            rate=self._rate,
            aligned=self._aligned,
        )


def _receipt(frame: SourceFrame, response: edge_pb2.StreamFramesResponse) -> CameraReceipt:
    return CameraReceipt(
        frame_number=frame.number,
        label=frame.label,
        picture_bytes=len(frame.encoded),
        faces=tuple(response.faces),
        faces_below_gate=response.faces_below_gate,
        error_code=response.error.code,
        error_message=response.error.message,
        edge_ms=response.edge_ms,
    )
