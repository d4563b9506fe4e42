"""Where a camera's frames come from: a picture, a folder, a video file, rtsp:// or a webcam.

Pictures are passed on as the bytes of their files; video frames become JPEG. Sending belongs to
`sfic.camera`.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import structlog

from sfic.errors import InvalidInput, Unavailable
from sfic.service.client import Backoff

__all__ = ["PICTURE_SUFFIXES", "Source", "SourceFrame", "open_source"]

log = structlog.get_logger(__name__)

PICTURE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif"),
        *(".jp2", ".ppm", ".pgm", ".tga"),
    )
)
_STREAM_SCHEMES = ("rtsp://", "rtsps://")
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class SourceFrame:
    """One frame. `capture_ns`: nanoseconds since 1970 by this machine's clock."""

    number: int
    capture_ns: int
    encoded: bytes
    label: str


class Source:
    """A source of frames; subclasses read pictures or video.

    `live`: frames come at their own time and are lost when not taken. `loop`: start again at the
    end. A source is read once, by one thread; `close`, from any, ends the reading.
    """

    live = False

    def __init__(self, name: str, *, loop: bool = False) -> None:
        self.name = name
        self._loop = loop
        self._closed = threading.Event()

    def frames(self, fps: float | None = None) -> Iterator[SourceFrame]:
        """Yield frames, at most `fps` a second.

        With `fps`, a folder or video keeps wall-clock time, and a video skips what lies between;
        without, all frames come as fast as they are taken (a live source: as they come).
        Raises `InvalidInput` when there is nothing to read.
        """
        if fps is not None and not 0.001 <= fps <= 1000:
            raise InvalidInput("fps: must be 0.001..1000", field="fps")
        number = 0
        while not self._closed.is_set():
            first = number
            for encoded, label in self._read(fps):
                yield SourceFrame(number, time.time_ns(), encoded, label)
                number += 1
            if number == first and not self._closed.is_set():
                raise InvalidInput(f"{self.name}: no frame in it")
            if not self._loop:
                return

    def close(self) -> None:
        """End the reading soon: at the next frame, or when a read times out."""
        self._closed.set()

    def _read(self, fps: float | None) -> Iterator[tuple[bytes, str]]:
        """Yield each frame once through, as compressed bytes with a label."""
        raise NotImplementedError


class _Pictures(Source):
    def __init__(self, name: str, paths: list[Path], *, loop: bool) -> None:
        super().__init__(name, loop=loop)
        self._paths = paths
        self._next_at = 0.0

    def _read(self, fps: float | None) -> Iterator[tuple[bytes, str]]:
        for path in self._paths:
            if fps is not None:
                # Kept over loops, so that a single picture is paced too.
                self._next_at = max(self._next_at, time.monotonic())
                self._closed.wait(self._next_at - time.monotonic())
                self._next_at += 1.0 / fps
            if self._closed.is_set():
                return
            try:
                yield path.read_bytes(), path.name
            except OSError as error:
                raise InvalidInput(f"{path}: {error.strerror or error}") from error


class _Video(Source):
    def __init__(
        self,
        name: str,
        address: str,
        *,
        jpeg_quality: int,
        loop: bool = False,
        live: bool = False,
        format: str | None = None,
    ) -> None:
        super().__init__(name, loop=loop)
        self.live = live
        self._address = address
        self._format = format
        self._quality = jpeg_quality

    def _read(self, fps: float | None) -> Iterator[tuple[bytes, str]]:
        if not self.live:
            with self._open() as container:
                yield from self._decode(container, fps)
            return
        backoff = Backoff(first=0.5, longest=10.0)
        opened_once = False
        while not self._closed.is_set():
            try:
                with self._open() as container:
                    opened_once = True
                    for frame in self._decode(container, fps):
                        backoff.reset()
                        yield frame
                reason = "it ended"
            except (Unavailable, av.FFmpegError) as error:
                if not opened_once:
                    raise
                reason = str(error)
            wait = backoff.next_seconds()
            log.info("source lost, opening again", source=self.name, seconds=wait, reason=reason)
            self._closed.wait(wait)

    def _open(self) -> Any:
        options = {"rtsp_transport": "tcp"} if self._address.startswith(_STREAM_SCHEMES) else {}
        timeout = (_TIMEOUT_SECONDS, _TIMEOUT_SECONDS) if self.live else None
        try:
            return av.open(self._address, format=self._format, options=options, timeout=timeout)
        except av.FFmpegError as error:
            kind = Unavailable if self.live else InvalidInput
            raise kind(f"{self.name}: cannot read it as video: {error.strerror}") from error

    def _decode(self, container: Any, fps: float | None) -> Iterator[tuple[bytes, str]]:
        if not container.streams.video:
            raise InvalidInput(f"{self.name}: no video in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        started, next_at, first_time = time.monotonic(), 0.0, None
        frames = container.decode(stream)
        index = -1
        while not self._closed.is_set():
            try:
                frame = next(frames, None)
            except av.FFmpegError as error:
                if self.live:
                    raise
                # What came before is good; a cut file is common.
                log.warning("video is damaged", source=self.name, reason=error.strerror)
                return
            if frame is None:
                return
            index += 1
            at = frame.time if frame.time is not None else index / float(stream.average_rate or 25)
            first_time = at if first_time is None else first_time
            position = time.monotonic() - started if self.live else at - first_time
            if fps is not None:
                if position + 1e-6 < next_at:
                    continue
                step = 1.0 / fps
                next_at = (position if position - next_at > step else next_at) + step
                if not self.live:
                    self._closed.wait(max(0.0, started + position - time.monotonic()))
            yield self._to_jpeg(frame), f"{self.name} @ {at - first_time:.3f} s"

    def _to_jpeg(self, frame: Any) -> bytes:
        buffer = io.BytesIO()
        frame.to_image().save(buffer, "JPEG", quality=self._quality)
        return buffer.getvalue()


def open_source(source: str, *, loop: bool = False, jpeg_quality: int = 90) -> Source:
    """Return the source that a text names: picture, folder, video, rtsp:// address, webcam number.

    A folder gives its pictures in the order of their names. `jpeg_quality` 1..100 is for video
    frames. Raises `InvalidInput` when it is none of these; a stream is opened when it is read.
    """
    if not 1 <= jpeg_quality <= 100:
        raise InvalidInput("jpeg_quality: must be 1..100", field="jpeg_quality")
    if source.startswith(_STREAM_SCHEMES):
        return _Video(_without_password(source), source, jpeg_quality=jpeg_quality, live=True)
    if source.isascii() and source.isdigit():
        address, format = _webcam(int(source))
        return _Video(
            f"webcam {source}", address, format=format, jpeg_quality=jpeg_quality, live=True
        )
    path = Path(source)
    if path.is_dir():
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
        if not pictures:
            raise InvalidInput(f"{source}: no picture in this folder")
        return _Pictures(path.name, pictures, loop=loop)
    if not path.is_file():
        raise InvalidInput(f"{source}: no such file, folder, rtsp:// address or webcam number")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return _Pictures(path.name, [path], loop=loop)
    return _Video(path.name, str(path), jpeg_quality=jpeg_quality, loop=loop)


def _webcam(number: int) -> tuple[str, str]:
    if sys.platform == "linux":
        return f"/dev/video{number}", "v4l2"
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    raise InvalidInput(f"webcams are not read on {sys.platform}; give an rtsp:// address")


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
