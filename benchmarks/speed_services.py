"""What the services do on this machine: start, memory, frames a second, requests at once.

    python -m benchmarks.speed_services [--cores 2]

An edge and a decoder as processes of their own, started as a user starts them, over gRPC on this
machine; they and the client share the cores. Start: from the start of the process to the first
face's answer; the first start finds no compiled networks (`sfic.compiled`), the second those of the
first. Memory: the most that was resident, read when all is done.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cv2

from benchmarks.report import write_result
from benchmarks.speed import frame_of
from sfic.compiled import FOLDER_VARIABLE
from sfic.grants import grant_all_faces
from sfic.processes import ServiceGroup, free_address
from sfic.service.client import open_channel
from sfic.v1 import decoder_pb2, decoder_pb2_grpc, edge_pb2, edge_pb2_grpc

CAMERAS = (1, 4, 16, 64)
FRAMES = 64  # of all cameras together
REQUESTS = 16
READY_SECONDS = 60.0


def most_memory(service: ServiceGroup) -> float:
    """The most memory a lone service had resident, in MB."""
    process = service._children[0].process
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) * 1024 / 1e6, 1)


async def send(address: str, camera: str, picture: bytes, frames: int) -> list[str]:
    """Stream frames as one camera; ids of the faces that were stored."""

    async def requests() -> AsyncIterator[edge_pb2.StreamFramesRequest]:
        for number in range(frames):
            yield edge_pb2.StreamFramesRequest(
                camera_id=camera, frame_number=number, encoded=picture
            )

    async with open_channel(address) as channel:
        stub = edge_pb2_grpc.EdgeIngestStub(channel)
        receipts = [receipt async for receipt in stub.StreamFrames(requests())]
    return [face.face_id for receipt in receipts for face in receipt.faces]


async def ask(stub: decoder_pb2_grpc.CloudDecoderStub, face_id: str) -> float:
    """One reconstruction of all layers; seconds."""
    begin = time.perf_counter()
    request = decoder_pb2.ReconstructRequest(face_id=face_id, purpose="speed", final_only=True)
    async for _ in stub.Reconstruct(request):
        pass
    return time.perf_counter() - begin


async def start(
    services: tuple[ServiceGroup, ServiceGroup], folder: Path, picture: bytes
) -> tuple[tuple[str, str], list[str], tuple[float, float]]:
    """Start an edge and a decoder; addresses, ids of faces, seconds to the first face of each."""
    edge, decoder = free_address(), free_address()
    begin = time.perf_counter()
    services[0].start(
        "edge", edge, [f"--listen={edge}", "--metrics-listen=", f"--data-dir={folder / 'edge'}"]
    )
    services[0].wait_ready(READY_SECONDS)
    ids = await send(edge, "first", picture, 1)
    edge_seconds = time.perf_counter() - begin
    ids += await send(edge, "more", picture, REQUESTS)
    await grant_all_faces(edge, "speed", hours=1.0)
    begin = time.perf_counter()
    services[1].start(
        "decoder", decoder, [f"--listen={decoder}", "--metrics-listen=", f"--edge={edge}"]
    )
    services[1].wait_ready(READY_SECONDS)
    async with open_channel(decoder) as channel:
        await ask(decoder_pb2_grpc.CloudDecoderStub(channel), ids[0])
    return (edge, decoder), ids, (edge_seconds, time.perf_counter() - begin)


async def run(folder: Path) -> dict[str, Any]:
    """Start both services, twice, and measure them."""
    _, packed = cv2.imencode(".jpg", cv2.cvtColor(frame_of(1), cv2.COLOR_RGB2BGR))
    picture = packed.tobytes()
    figures: dict[str, Any] = {}
    with ServiceGroup(folder) as edge_service, ServiceGroup(folder) as decoder_service:
        services = edge_service, decoder_service
        _, _, seconds = await start(services, folder / "first", picture)
        for name, value in zip(("edge", "decoder"), seconds, strict=True):
            figures[f"{name}_first_start_seconds"] = round(value, 2)
    with ServiceGroup(folder) as edge_service, ServiceGroup(folder) as decoder_service:
        services = edge_service, decoder_service
        (edge, decoder), ids, seconds = await start(services, folder / "second", picture)
        for name, value in zip(("edge", "decoder"), seconds, strict=True):
            figures[f"{name}_start_seconds"] = round(value, 2)
        async with open_channel(decoder) as channel:
            stub = decoder_pb2_grpc.CloudDecoderStub(channel)
            wanted = ids[1 : REQUESTS + 1]
            begin = time.perf_counter()
            for face_id in wanted:
                await ask(stub, face_id)
            figures["one_after_another_seconds"] = round(time.perf_counter() - begin, 3)
            begin = time.perf_counter()
            took = await asyncio.gather(*(ask(stub, face_id) for face_id in wanted))
            figures["at_once_seconds"] = round(time.perf_counter() - begin, 3)
        figures["at_once_mean_seconds"] = round(statistics.mean(took), 3)
        figures["at_once_p99_seconds"] = round(max(took), 3)
        figures["decoder_memory_mb"] = most_memory(decoder_service)
        print(figures, flush=True)
        figures["cameras_frames_a_second"] = {}
        for cameras in CAMERAS:
            begin = time.perf_counter()
            each = max(1, FRAMES // cameras)
            await asyncio.gather(
                *(send(edge, f"c{cameras}-{i}", picture, each) for i in range(cameras))
            )
            rate = cameras * each / (time.perf_counter() - begin)
            figures["cameras_frames_a_second"][str(cameras)] = round(rate, 2)
            print(cameras, "cameras:", round(rate, 2), "frames a second", flush=True)
        figures["edge_memory_mb"] = most_memory(edge_service)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER_VARIABLE] = str(Path(folder) / "compiled")
        figures = {"cores": args.cores, **asyncio.run(run(Path(folder)))}
    print(write_result("speed_services", figures))


if __name__ == "__main__":
    main()
