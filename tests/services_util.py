"""What the tests of services share: a real server in this process, and frames for an edge."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfic.grants import grant_all_faces
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.service.client import open_channel, sfic_errors
from sfic.service.server import Service, ServiceServer
from sfic.service.settings import ServiceSettings
from sfic.v1 import edge_pb2, edge_pb2_grpc

if TYPE_CHECKING:
    from edge_encoder.settings import EdgeSettings
    from sfic.codec import Codec

REPOSITORY = Path(__file__).resolve().parents[1]

SWITCHED: dict[str, Callable[[Path], dict[str, Any]]] = {}
"""Settings that every edge or analytics of a test gets, by service and of its folder: empty but for
test_nats.py, which runs tests of other files over NATS."""


def switched(service: str, folder: Path) -> dict[str, Any]:
    """What `SWITCHED` says for a service."""
    return SWITCHED[service](folder) if service in SWITCHED else {}


@functools.cache
def codec() -> Codec:
    """The real codec of the package, loaded once for all tests."""
    from sfic.codec import Codec

    return Codec.load(provider="cpu", threads=1)


@asynccontextmanager
async def running(service: Service, settings: ServiceSettings) -> AsyncIterator[ServiceServer]:
    """A service on a free port, stopped in good order at the end."""
    async with ServiceServer(service, settings) as server:
        yield server


def edge_settings(data_dir: Path, **values: Any) -> EdgeSettings:
    """Settings of an edge on free ports, with its store in `data_dir`."""
    from edge_encoder.settings import EdgeSettings

    given = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "data_dir": data_dir,
        "provider": "cpu",
        "min_face_score": 0.0,
        "shutdown_grace_seconds": 10.0,
        **switched("edge", data_dir),
        **values,
    }
    return EdgeSettings.make(**given)


@asynccontextmanager
async def running_edge(data_dir: Path, **values: Any) -> AsyncIterator[ServiceServer]:
    """A real edge with the real codec; `values` are settings."""
    from edge_encoder.service import EdgeService

    settings = edge_settings(data_dir, **values)
    async with running(EdgeService(settings, codec()), settings) as server:
        if not settings.knows_callers:
            await grant_all_faces(server.address, "a test", 1.0)
        yield server


@asynccontextmanager
async def running_process(
    module: str, log: Path, arguments: Sequence[str]
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """`python -m module arguments` in its own process, killed at the end if it still runs."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def send_frames(
    address: str, frames: Iterable[edge_pb2.StreamFramesRequest]
) -> list[edge_pb2.StreamFramesResponse]:
    """Stream frames to an edge and return all receipts; errors come out of the tree."""
    async with open_channel(address, retry=False) as channel:
        with sfic_errors("edge"):
            call = edge_pb2_grpc.EdgeIngestStub(channel).StreamFrames(iter_async(frames))
            return [receipt async for receipt in call]


async def iter_async(items: Iterable[Any]) -> AsyncIterator[Any]:
    """The items, as gRPC wants a stream."""
    for item in items:
        yield item


def frame(
    number: int = 0, picture: bytes | None = None, camera_id: str = "door", **fields: Any
) -> edge_pb2.StreamFramesRequest:
    """A frame with the astronaut on it, or another picture."""
    request = edge_pb2.StreamFramesRequest(camera_id=camera_id, frame_number=number, **fields)
    if request.WhichOneof("picture") is None:
        request.encoded = astronaut_jpeg() if picture is None else picture
    return request


@functools.cache
def astronaut_pixels() -> NDArray[np.uint8]:
    """One face, uint8 RGB [512, 512, 3]."""
    return read_picture(demo_photograph())


@functools.cache
def astronaut_jpeg() -> bytes:
    """The same as a JPEG of some 60 KB."""
    return encode_picture(astronaut_pixels(), "JPEG", quality=90)


@functools.cache
def empty_jpeg() -> bytes:
    """A picture without a face."""
    return encode_picture(np.full((240, 320, 3), 128, np.uint8), "JPEG")


def encode_picture(pixels: NDArray[np.uint8], format: str, **options: Any) -> bytes:
    """Pixels as a picture file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def wait_until(condition: Any, timeout_seconds: float = 10.0) -> Iterator[None]:
    """Loop body for waiting: `for _ in wait_until(lambda: ...): await asyncio.sleep(0.02)`."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come true in time")
        yield
