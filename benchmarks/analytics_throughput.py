"""Faces a second from an edge's log to kept results, with the lag and the processor time.

    python -m benchmarks.analytics_throughput [--faces 60000] [--cores 2]

An edge and an analytics service as processes of their own, over gRPC on this machine, on `--cores`
cores together. The edge's log is filled first with basic layers of the demo's photograph, changed
so that their packets differ; then analytics starts and catches up. What is measured starts with the
first result and ends with the last, which so long lagged behind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.report import write_result
from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import FaceStore, FrameKey, NewFace
from edge_encoder.ulid import new_ulid
from sfic.client import AnalyticsClient
from sfic.codec import Codec
from sfic.face import EncodedFace
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.processes import free_address
from sfic.v1 import common_pb2

VARIANTS = 16
CAMERAS = 20
BATCH = 500


def coded(codec: Codec) -> list[EncodedFace]:
    """One face under many lights and in two mirrorings, so that packets differ."""
    picture = read_picture(demo_photograph())
    made = []
    for k in range(VARIANTS):
        changed = np.clip(picture * (0.5 + 0.03 * k), 0, 255).astype(np.uint8)
        changed = np.ascontiguousarray(changed[:, ::-1] if k % 2 else changed)
        made.append(codec.encode_picture(changed, max_faces=1)[0])
    return made


def packets(codec: Codec) -> list[bytes]:
    """Basic layers of `coded`."""
    return [face.basic for face in coded(codec)]


async def fill(folder: Path, codec: Codec, faces: int) -> None:
    """Write an edge's log of so many faces, as its ingest would."""
    store = FaceStore(
        folder / "edge.sqlite",
        EdgeMetrics(CollectorRegistry()),
        retention_seconds=86_400,
        retention_bytes=2**40,
    )
    basics = packets(codec)
    try:
        for start in range(0, faces, BATCH):
            new = []
            for k in range(start, min(start + BATCH, faces)):
                info = common_pb2.FaceInfo(
                    face_id=new_ulid(time.time_ns() // 10**6),
                    camera_id=f"camera-{k % CAMERAS}",
                    frame_number=k // CAMERAS,
                    face_score=0.8,
                    model_bundle=codec.model_bundle,
                    rate=5,
                    edge_id="edge-1",
                )
                info.capture_time.FromNanoseconds(time.time_ns())
                new.append(NewFace(info, (basics[k % VARIANTS], None, None)))
            await store.add_frame(FrameKey("camera", None, 0), new)
    finally:
        store.close()


@contextmanager
def service(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module`, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--log-level=error", *arguments], stdin=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time that a process has used, user and system."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metrics(address: str) -> str:
    """The page of metrics; empty while it is not there."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def kept_faces(page: str) -> int:
    """Faces that were analysed and committed."""
    found = re.search(r'^sfic_analytics_faces_total\{.*outcome="OK"\} (\S+)', page, re.M)
    return int(float(found[1])) if found else 0


def largest(page: str, name: str) -> float:
    """Value of a gauge."""
    found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)", page, re.M)
    return max(map(float, found), default=0.0)


async def run(faces: int, folder: Path) -> dict[str, Any]:
    """Fill the log, let analytics catch up, then read all results back."""
    codec = Codec.load(provider="cpu", threads=1)
    await fill(folder, codec, faces)
    edge, analytics, page_at = free_address(), free_address(), free_address()
    edge_arguments = (f"--listen={edge}", "--metrics-listen=", f"--data-dir={folder}")
    analytics_arguments = (
        f"--listen={analytics}",
        f"--metrics-listen={page_at}",
        f'--edges=["{edge}"]',
        f"--database={folder / 'analytics.sqlite'}",
        "--threads=1",
    )
    with (
        service("edge_encoder", *edge_arguments, "--workers=1") as edge_process,
        service("analytics_service", *analytics_arguments) as process,
    ):
        queue = 0.0
        while not (done := kept_faces(metrics(page_at))):
            await asyncio.sleep(0.05)
        first, begin, used = done, time.perf_counter(), processor_seconds(process)
        used_edge = processor_seconds(edge_process)
        while done < faces:
            await asyncio.sleep(0.25)
            page = metrics(page_at)
            done = kept_faces(page)
            queue = max(queue, largest(page, "sfic_analytics_queue_faces"))
        seconds = time.perf_counter() - begin
        used = processor_seconds(process) - used
        used_edge = processor_seconds(edge_process) - used_edge
        async with AnalyticsClient(analytics) as client:
            begin = time.perf_counter()
            read = [result.cursor async for result in client.results(follow=False)]
            reading = time.perf_counter() - begin
    counted = done - first
    return {
        "faces": faces,
        "faces_a_second": round(counted / seconds, 1),
        "lag_seconds_of_the_last": round(seconds, 2),
        "analytics_cpu_ms_a_face": round(1000 * used / counted, 3),
        "edge_cpu_ms_a_face": round(1000 * used_edge / counted, 3),
        "most_in_queue": int(queue),
        "without_loss_or_repeat": read == list(range(1, faces + 1)),
        "results_streamed_a_second": round(faces / reading, 1),
    }


def main() -> None:
    """Measure, print, write results/analytics_throughput.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=60_000)
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    # Children inherit it: the services share these cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        figures = {"cores": args.cores, **asyncio.run(run(args.faces, Path(folder)))}
    for name, value in figures.items():
        print(f"{name}: {value}", flush=True)
    print(write_result("analytics_throughput", figures))


if __name__ == "__main__":
    main()
