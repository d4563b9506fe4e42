"""What tests of analytics and decoder share: a real edge with faces in it, a proxy that records.

Everything runs over real gRPC on loopback with the real codec; nothing here stands in for a part of
the product.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from services_util import REPOSITORY, codec, edge_settings, running

from edge_encoder.service import EdgeService
from edge_encoder.store import FrameKey, NewFace
from edge_encoder.ulid import new_ulid
from sfic.face import EncodedFace
from sfic.grants import grant_all_faces
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.service.server import ServiceServer
from sfic.v1 import common_pb2

__all__ = [
    "Edge",
    "RecordingProxy",
    "codec",
    "encoded_faces",
    "eventually",
    "other_bundle",
    "running_edge",
    "spoilt",
    "start_process",
]


@functools.cache
def encoded_faces() -> tuple[EncodedFace, ...]:
    """The astronaut's face four times, changed so that each has packets of its own."""
    picture = read_picture(demo_photograph())
    changed: list[NDArray[np.uint8]] = [
        picture,
        np.ascontiguousarray(picture[:, ::-1]),
        (picture // 2 + 20).astype(np.uint8),
        np.ascontiguousarray(picture[:, :, ::-1]),
    ]
    return tuple(codec().encode_picture(each)[0] for each in changed)


@dataclass
class Edge:
    """A running edge, reachable as cameras, analytics and decoders reach it."""

    service: EdgeService
    server: ServiceServer

    @property
    def address(self) -> str:
        return self.server.address

    async def keep(
        self,
        faces: Sequence[EncodedFace],
        *,
        camera_id: str = "camera-1",
        score: float | None = None,
        captured: float | None = None,
        with_placement: bool = True,
        model_bundle: str | None = None,
    ) -> list[str]:
        """Commits faces to the edge's store as its ingest does, without encoding; returns ids."""
        captured = time.time() if captured is None else captured
        new: list[NewFace] = []
        for face in faces:
            info = common_pb2.FaceInfo(
                face_id=new_ulid(int(captured * 1000)),
                camera_id=camera_id,
                face_score=face.face_score if score is None else score,
                model_bundle=codec().model_bundle if model_bundle is None else model_bundle,
                rate=5,
                layer_bytes=[len(packet) for packet in face.layers.values()],
                edge_id=self.service.settings.edge_id,
                brightened=face.brightened if face.brightened > 1.0 else 0.0,
            )
            info.capture_time.FromNanoseconds(int(captured * 1e9))
            if with_placement and face.placement is not None:
                info.placement.crop_to_frame.extend(np.ravel(face.placement.matrix).tolist())
                info.placement.frame_width = face.placement.width
                info.placement.frame_height = face.placement.height
            new.append(NewFace(info, (face.basic, face.middle, face.enhanced)))
        store = self.service._store
        assert store is not None
        kept = await store.add_frame(FrameKey(camera_id, None, 0), new)
        return [info.face_id for info in kept]

    def value(self, metric: str, **labels: str) -> float:
        """A metric of the edge; 0 when nothing was counted yet."""
        return self.service.registry.get_sample_value(metric, labels) or 0.0

    def fetch_calls(self) -> float:
        """FetchLayers calls that the edge has answered."""
        return self.value(
            "sfic_grpc_calls_total", method="/sfic.v1.LayerStore/FetchLayers", code="OK"
        )


@asynccontextmanager
async def running_edge(
    folder: Path, *, granted: bool = True, **settings: object
) -> AsyncIterator[Edge]:
    """A real edge on a free port. `granted`: any decoder may see all its faces."""
    made = edge_settings(folder, **{"workers": 1, **settings})
    service = EdgeService(made, codec())
    async with running(service, made) as server:
        if granted:
            await grant_all_faces(server.address, "a test", 1.0)
        yield Edge(service, server)


def spoilt(face: EncodedFace) -> EncodedFace:
    """The face with one bit of its basic payload flipped, which the check notices."""
    broken = bytearray(face.basic)
    broken[-1] ^= 1
    return replace(face, basic=bytes(broken))


def other_bundle(face: EncodedFace) -> EncodedFace:
    """The face as another model bundle would name itself in its basic packet."""
    foreign = bytearray(face.basic)
    foreign[1] ^= 0xFF
    return replace(face, basic=bytes(foreign))


async def eventually(
    holds: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 30.0
) -> None:
    """Returns once the condition holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        answer = holds()
        if await answer if isinstance(answer, Awaitable) else answer:
            return
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)


def start_process(module: str, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Starts `python -m module` as an operator does; its log goes to a file or to nowhere."""
    with open(log or os.devnull, "ab") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", module, "--log-format=json", *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )


class RecordingProxy:
    """Passes TCP on to an address and keeps every byte of either direction of each connection."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.address = ""
        self.to_target: list[bytearray] = []
        self.from_target: list[bytearray] = []

    async def __aenter__(self) -> RecordingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(self._host, self._port)
        for records in (self.to_target, self.from_target):
            records.append(bytearray())
        number = len(self.to_target) - 1
        await asyncio.gather(
            self._pass_on(reader, target_writer, self.to_target[number]),
            self._pass_on(target_reader, writer, self.from_target[number]),
        )

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray
    ) -> None:
        try:
            while data := await reader.read(65_536):
                record += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
