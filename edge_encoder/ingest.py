"""EdgeIngest: frames from cameras, receipts back.

The event loop only moves messages: pictures are decoded and encoded on a pool of threads, faces are
stored on the store's thread. What a frame must look like is checked here; how a face is found and
coded is the codec's.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from edge_encoder.metrics import EdgeMetrics
from edge_encoder.settings import NAME_PATTERN, EdgeSettings
from edge_encoder.store import FaceStore, FrameKey, NewFace
from edge_encoder.ulid import new_ulid
from sfic.codec import Codec
from sfic.errors import FrameTooLarge, InvalidInput, LimitExceeded, SficError, Unavailable
from sfic.face import EncodedFace
from sfic.pictures import PictureLimits, RawFormat, from_raw, read_picture
from sfic.service.tracing import called_in, span
from sfic.v1 import common_pb2, edge_pb2, edge_pb2_grpc

__all__ = ["EdgeIngest"]

log = structlog.get_logger(__name__)

_NAME = re.compile(NAME_PATTERN)
_RAW_FORMATS: dict[int, RawFormat] = {
    edge_pb2.RawFrame.FORMAT_RGB8: "rgb",
    edge_pb2.RawFrame.FORMAT_BGR8: "bgr",
    edge_pb2.RawFrame.FORMAT_GRAY8: "grey",
}
# Timestamps of protobuf end with the year 9999.
_LAST_SECOND = 253_402_300_799

Frame = edge_pb2.StreamFramesRequest
Receipt = edge_pb2.StreamFramesResponse


class EdgeIngest(edge_pb2_grpc.EdgeIngestServicer):
    """Serves `sfic.v1.EdgeIngest` until `stopping` is set."""

    def __init__(
        self,
        codec: Codec,
        store: FaceStore,
        settings: EdgeSettings,
        metrics: EdgeMetrics,
        pool: ThreadPoolExecutor,
        stopping: asyncio.Event,
    ) -> None:
        self._codec = codec
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._pool = pool
        self._stopping = stopping
        self._in_flight = asyncio.Semaphore(settings.total_frames_in_flight)
        self._cameras = 0
        self._limits = PictureLimits(
            max_bytes=settings.max_picture_bytes, max_pixels=settings.max_picture_pixels
        )

    async def StreamFrames(
        self,
        request_iterator: AsyncIterator[Frame],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[Receipt]:
        """Take frames and give receipts, in order; see the contract in `edge.proto`.

        At shutdown no more frames are read, those in work get their receipts, and the stream ends
        with UNAVAILABLE.
        """
        if self._cameras >= self._settings.max_cameras:
            raise LimitExceeded(
                f"the edge has its {self._settings.max_cameras} camera streams already",
                limit=str(self._settings.max_cameras),
            )
        self._cameras += 1
        self._metrics.cameras.set(self._cameras)
        receipts: asyncio.Queue[asyncio.Task[Receipt] | None] = asyncio.Queue()
        room = asyncio.Semaphore(self._settings.frames_in_flight)
        reader = asyncio.ensure_future(
            self._read(request_iterator, receipts, room, called_in(context))
        )
        current: asyncio.Task[Receipt] | None = None
        try:
            while (current := await receipts.get()) is not None:
                receipt = await current
                receipt.frames_in_flight = self._credit()
                yield receipt
                room.release()
            await reader
        finally:
            self._cameras -= 1
            self._metrics.cameras.set(self._cameras)
            reader.cancel()
            for task in (current, *_left(receipts)):
                if task is not None:
                    task.cancel()
        if self._stopping.is_set():
            raise Unavailable("the edge is shutting down")

    def _credit(self) -> int:
        """Frames that each camera may have on their way: its share, at least one."""
        share = self._settings.total_frames_in_flight // max(1, self._cameras)
        return max(1, min(self._settings.frames_in_flight, share))

    async def _read(
        self,
        requests: AsyncIterator[Frame],
        receipts: asyncio.Queue[asyncio.Task[Receipt] | None],
        room: asyncio.Semaphore,
        trace: str,
    ) -> None:
        camera_id, last_number = "", -1
        receipt: asyncio.Task[Receipt] | None = None
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            while True:
                await room.acquire()
                following = asyncio.ensure_future(_next_or_none(requests))
                await asyncio.wait((following, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not following.done() or (frame := following.result()) is None:
                    break
                received = time.perf_counter()
                camera_id = camera_id or _check_camera_id(frame.camera_id)
                fault = _stream_fault(frame, camera_id, last_number)
                last_number = max(last_number, frame.frame_number)
                receipt = asyncio.ensure_future(
                    self._receipt(frame, camera_id, received, fault, receipt, trace)
                )
                receipts.put_nowait(receipt)
        finally:
            stopped.cancel()
            receipts.put_nowait(None)

    async def _receipt(
        self,
        frame: Frame,
        camera_id: str,
        received: float,
        fault: SficError | None,
        before: asyncio.Task[Receipt] | None,
        trace: str,
    ) -> Receipt:
        receipt = Receipt(frame_number=frame.frame_number)
        try:
            if fault is not None:
                raise fault
            async with self._in_flight:
                with (
                    self._metrics.frames_in_flight.track_inprogress(),
                    span(
                        "edge.frame", trace, camera_id=camera_id, frame_number=frame.frame_number
                    ) as named,
                ):
                    outcome = await self._keep(frame, camera_id, receipt, before, named)
                    log.debug(
                        "frame done",
                        camera_id=camera_id,
                        frame_number=frame.frame_number,
                        outcome=outcome,
                        face_ids=[face.face_id for face in receipt.faces],
                    )
        except Exception as error:
            if not isinstance(error, SficError):
                log.error("frame failed", camera_id=camera_id, exc_info=error)
                error = SficError("internal error; the edge's log has it")
            receipt.error.code, receipt.error.message = error.code, error.message[:500]
            outcome = error.code
        seconds = time.perf_counter() - received
        self._metrics.frames.labels(outcome).inc()
        self._metrics.frame_seconds.observe(seconds)
        receipt.edge_ms = seconds * 1000
        return receipt

    async def _keep(
        self,
        frame: Frame,
        camera_id: str,
        receipt: Receipt,
        before: asyncio.Task[Receipt] | None,
        trace: str,
    ) -> str:
        """Encode and store one frame, fill its receipt, and return what became of it.

        Storing waits for the frame `before`, so that the log has a camera's faces in order.
        """
        self._check_frame(frame)
        captured_ns, key = self._capture_time(frame, camera_id)
        if known := await self._store.find_frame(key):
            receipt.faces.extend(known)
            return "repeated"
        with span("edge.encode"):
            found = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._encode, frame
            )
        kept = [face for face in found if face.face_score >= self._settings.min_face_score]
        receipt.faces_below_gate = len(found) - len(kept)
        self._metrics.faces.labels("below_gate").inc(receipt.faces_below_gate)
        if before is not None:
            await asyncio.wait([before])
        new = []
        for face in kept:
            info = self._info(face, camera_id, captured_ns, frame.frame_number)
            info.trace_context = trace
            new.append(NewFace(info, (face.basic, face.middle, face.enhanced)))
        with span("edge.store", faces=len(new)):
            infos = await self._store.add_frame(key, new)
        receipt.faces.extend(infos)
        self._metrics.faces.labels("kept").inc(len(infos))
        return "kept" if infos else "empty"

    def _check_frame(self, frame: Frame) -> None:
        if frame.rate > 9:
            raise InvalidInput("rate: must be 1..9, or 0 for the edge's own", field="rate")
        kind = frame.WhichOneof("picture")
        if kind is None:
            raise InvalidInput("the frame carries no picture", field="picture")
        size = len(frame.encoded) if kind == "encoded" else len(frame.raw.pixels)
        self._metrics.picture_bytes.inc(size)
        if size > self._settings.max_picture_bytes:
            raise FrameTooLarge(
                f"picture of {size} bytes, the edge takes {self._settings.max_picture_bytes}",
                limit=str(self._settings.max_picture_bytes),
            )

    def _capture_time(self, frame: Frame, camera_id: str) -> tuple[int, FrameKey]:
        """Return the time of capture in nanoseconds since 1970, and the key of the frame."""
        if not frame.HasField("capture_time"):
            now_ns = int(self._store.clock() * 1e9)
            return now_ns, FrameKey(camera_id, None, frame.frame_number)
        stamp = frame.capture_time
        if not (0 <= stamp.seconds <= _LAST_SECOND and 0 <= stamp.nanos < 1_000_000_000):
            raise InvalidInput("capture_time: must lie in 1970..9999", field="capture_time")
        captured_ns = stamp.seconds * 1_000_000_000 + stamp.nanos
        # SQLite's integers end in the year 2262.
        if captured_ns >= 2**63:
            raise InvalidInput("capture_time: must lie before 2262", field="capture_time")
        return captured_ns, FrameKey(camera_id, captured_ns, frame.frame_number)

    def _encode(self, frame: Frame) -> list[EncodedFace]:
        """Decode and encode, on a worker thread."""
        with self._metrics.encode_seconds.time():
            if frame.WhichOneof("picture") == "raw":
                raw = frame.raw
                if raw.format not in _RAW_FORMATS:
                    raise InvalidInput("raw.format: unknown pixel layout", field="raw.format")
                picture = from_raw(
                    raw.pixels, raw.width, raw.height, _RAW_FORMATS[raw.format], self._limits
                )
            else:
                picture = read_picture(frame.encoded, self._limits)
            settings, rate = self._settings, frame.rate or self._settings.rate
            if frame.aligned:
                return [
                    self._codec.encode(
                        picture, rate, settings.effort, brighten=settings.brighten
                    )
                ]
            return self._codec.encode_picture(
                picture,
                rate,
                settings.effort,
                max_faces=settings.max_faces,
                brighten=settings.brighten,
            )

    def _info(
        self, face: EncodedFace, camera_id: str, captured_ns: int, frame_number: int
    ) -> common_pb2.FaceInfo:
        layers = (face.basic, face.middle, face.enhanced)
        info = common_pb2.FaceInfo(
            face_id=new_ulid(captured_ns // 1_000_000),
            camera_id=camera_id,
            capture_time=_timestamp(captured_ns),
            frame_number=frame_number,
            face_score=face.face_score,
            model_bundle=self._codec.model_bundle,
            rate=face.rate,
            layer_bytes=[len(layer or b"") for layer in layers],
            edge_id=self._settings.edge_id,
            brightened=face.brightened if face.brightened > 1.0 else 0.0,
        )
        if face.placement is not None:
            place = face.placement
            info.placement.crop_to_frame.extend(float(v) for row in place.matrix for v in row)
            info.placement.frame_width = place.width
            info.placement.frame_height = place.height
        return info


def _left(
    receipts: asyncio.Queue[asyncio.Task[Receipt] | None],
) -> list[asyncio.Task[Receipt] | None]:
    return [receipts.get_nowait() for _ in range(receipts.qsize())]


async def _next_or_none(requests: AsyncIterator[Frame]) -> Frame | None:
    # grpc's iterator has no default for its end, and a task may not end with StopAsyncIteration.
    async for frame in requests:
        return frame
    return None


def _check_camera_id(camera_id: str) -> str:
    if not camera_id:
        raise InvalidInput(
            "camera_id: required in the first message of a stream", field="camera_id"
        )
    if not _NAME.fullmatch(camera_id):
        raise InvalidInput("camera_id: must be 1..64 of A-Z a-z 0-9 . _ -", field="camera_id")
    return camera_id


def _stream_fault(frame: Frame, camera_id: str, last_number: int) -> SficError | None:
    """Return what is wrong with a frame's place in its stream."""
    if frame.camera_id not in ("", camera_id):
        return InvalidInput(
            f"camera_id: this stream is of camera {camera_id}; open another", field="camera_id"
        )
    if frame.frame_number <= last_number:
        return InvalidInput(
            f"frame_number: {frame.frame_number} does not come after {last_number}",
            field="frame_number",
        )
    return None


def _timestamp(time_ns: int) -> Timestamp:
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
