"""What the services carry, as ratios in one run: subscribers, cameras, faces kept, bytes a day.

    python -m benchmarks.load [--seconds 5] [--faces 1000 10000 100000 1000000]

Real edges as processes of their own, over gRPC on this machine; one server and one client at a
time. Every figure that depends on the machine stands beside another one of the same run:

subscribers  basic layers delivered a second, against a bare `grpc.aio` server that sends the same
             faces, from memory, one in a message; both are read by the same client
cameras      frames a second through an edge, against the codec alone in a loop
faces        time of one fetch with so many faces kept, against the same with the fewest
bytes        of a face on the wire, against two RTSP substreams of a recorder

Writes results/load.json and docs/figures/load.md with its plots. `--parts` measures some of it anew
and leaves the rest as it was; the file names the command of each part.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import grpc
import grpc.aio
import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks import analytics_throughput
from benchmarks.analytics_throughput import coded, processor_seconds, service
from benchmarks.load_page import write_page
from benchmarks.report import DOCS, RESULTS, command, write_result
from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import FaceStore, FrameKey, NewFace
from edge_encoder.ulid import new_ulid
from sfic.codec import Codec
from sfic.face import EncodedFace
from sfic.healthcheck import serves
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.processes import free_address
from sfic.service.client import open_channel
from sfic.v1 import common_pb2, edge_pb2, edge_pb2_grpc

SUBSCRIBERS = (1, 16, 64, 256)
CAMERAS = (1, 4, 16)
FACES = (1_000, 10_000, 100_000, 1_000_000)
FEED_FACES = 20_000
BATCH = 500
AT_ONCE = 128
FETCHES = 2_000
WARM_SECONDS = 1.0


# -- faces


def described(number: int, face: EncodedFace, bundle: str) -> common_pb2.FaceInfo:
    """What an edge says of a face; `number` makes it another one."""
    info = common_pb2.FaceInfo(
        face_id=new_ulid(time.time_ns() // 10**6),
        camera_id=f"camera-{number % 20}",
        frame_number=number,
        face_score=0.8,
        model_bundle=bundle,
        rate=face.rate,
        layer_bytes=[len(packet) for packet in face.layers.values()],
        edge_id="edge-1",
    )
    info.capture_time.FromNanoseconds(time.time_ns())
    if face.placement is not None:
        info.placement.crop_to_frame.extend(np.ravel(face.placement.matrix).tolist())
        info.placement.frame_width = face.placement.width
        info.placement.frame_height = face.placement.height
    return info


async def fill(folder: Path, faces: Sequence[EncodedFace], bundle: str, count: int) -> list[str]:
    """Add faces to an edge's store as its ingest does; returns their ids."""
    store = FaceStore(
        folder / "edge.sqlite",
        EdgeMetrics(CollectorRegistry()),
        retention_seconds=86_400,
        retention_bytes=2**40,
    )
    ids: list[str] = []
    try:
        for start in range(0, count, BATCH):
            new = [
                NewFace(
                    described(k, face, bundle),
                    (face.basic, face.middle, face.enhanced),
                )
                for k in range(start, min(start + BATCH, count))
                for face in [faces[k % len(faces)]]
            ]
            ids += [f.face_id for f in await store.add_frame(FrameKey("camera", None, 0), new)]
    finally:
        store.close()
    return ids


@contextmanager
def edge(folder: Path, *arguments: str) -> Iterator[tuple[str, Any]]:
    """An edge on a store, as a process; its address and itself."""
    address = free_address()
    with service(
        "edge_encoder",
        f"--listen={address}",
        "--metrics-listen=",
        f"--data-dir={folder}",
        "--min-face-score=0",
        *arguments,
    ) as process:
        while not serves(address, 1.0):
            if process.poll() is not None:
                raise SystemExit("the edge did not start")
        yield address, process


# -- subscribers


class PlainFeed(edge_pb2_grpc.BasicLayerFeedServicer):
    """The same faces from memory, for ever, one in a message: what `grpc.aio` alone can do."""

    def __init__(self, responses: Sequence[edge_pb2.SubscribeResponse]) -> None:
        self._responses = responses

    async def Subscribe(
        self, request: edge_pb2.SubscribeRequest, context: Any
    ) -> AsyncIterator[edge_pb2.SubscribeResponse]:
        """Stream without end."""
        for response in itertools.cycle(self._responses):
            yield response


async def serve_plain(address: str) -> None:
    """Run the plain server until it is killed."""
    codec = Codec.load(provider="cpu", threads=1)
    responses = [
        edge_pb2.SubscribeResponse(
            cursor=k, face=described(k, face, codec.model_bundle), basic=face.basic, key=bytes(16)
        )
        for k, face in enumerate(coded(codec), start=1)
    ]
    server = grpc.aio.server()
    edge_pb2_grpc.add_BasicLayerFeedServicer_to_server(PlainFeed(responses), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


@contextmanager
def plain() -> Iterator[tuple[str, Any]]:
    """The plain server as a process; its address and itself."""
    address = free_address()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.load", "--plain", address])
    try:
        yield address, process
    finally:
        process.kill()
        process.wait()


async def delivered(
    address: str, process: Any, subscribers: int, seconds: float, max_faces: int
) -> dict[str, float]:
    """Faces a second that reach so many subscribers, each from the log's start and then again."""
    counted, running = 0, True

    async def follow() -> None:
        nonlocal counted
        request = edge_pb2.SubscribeRequest(sealed=True, max_faces=max_faces)
        async with open_channel(address) as channel:
            stub = edge_pb2_grpc.BasicLayerFeedStub(channel)
            while running:
                call, seen = stub.Subscribe(request, wait_for_ready=True), 0
                async for response in call:
                    faces = len(response.batch) or 1
                    counted, seen = counted + faces, seen + faces
                    if seen >= FEED_FACES or not running:
                        break
                call.cancel()

    tasks = [asyncio.ensure_future(follow()) for _ in range(subscribers)]
    while not counted:
        await asyncio.sleep(0.05)
    await asyncio.sleep(WARM_SECONDS)
    before, used, begin = counted, processor_seconds(process), time.perf_counter()
    await asyncio.sleep(seconds)
    faces, took = counted - before, time.perf_counter() - begin
    used = processor_seconds(process) - used
    running = False
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "faces_a_second": round(faces / took, 1),
        "server_cpu_us_a_face": round(1e6 * used / max(faces, 1), 2),
    }


async def measure_subscribers(
    folder: Path, codec: Codec, counts: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Each number of subscribers at the plain server, then at the edge in its two ways."""
    await fill(folder, coded(codec), codec.model_bundle, FEED_FACES)
    rows: list[dict[str, Any]] = []
    for count in counts:
        with plain() as (address, process):
            bare = await delivered(address, process, count, seconds, 0)
        with edge(folder, f"--max-subscribers={count}") as (address, process):
            single = await delivered(address, process, count, seconds, 0)
            batched = await delivered(address, process, count, seconds, AT_ONCE)
        ratio = round(batched["faces_a_second"] / bare["faces_a_second"], 2)
        rows.append(
            {
                "subscribers": count,
                "plain": bare,
                "one_face_a_message": single,
                "batches": batched,
                "batches_over_plain": ratio,
            }
        )
        print(f"{count:5} subscribers: {batched['faces_a_second']:10,.0f} faces/s, {ratio}x plain")
    return rows


# -- cameras


async def measure_cameras(
    folder: Path, codec: Codec, counts: Sequence[int], seconds: float
) -> dict[str, Any]:
    """Frames a second with one face, and without any, through an edge of one worker."""
    empty = _jpeg(np.full((512, 512, 3), 128, np.uint8))
    photograph = _jpeg(read_picture(demo_photograph()))
    codec.warm_up("encode")
    begin, frames = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        codec.encode_picture(read_picture(photograph))
        frames += 1
    alone = frames / (time.perf_counter() - begin)
    found: dict[str, Any] = {"codec_alone_frames_a_second": round(alone, 2), "streams": []}
    for kind, picture in (("one face", photograph), ("no face", empty)):
        for count in counts:
            with edge(folder, "--workers=1", "--threads=1") as (address, process):
                row = await _frames(address, process, count, picture, seconds)
            if kind == "one face":
                row["of_codec_alone"] = round(row["frames_a_second"] / alone, 3)
            found["streams"].append({"frames": kind, "cameras": count, **row})
            print(f"{count:5} cameras, {kind}: {row['frames_a_second']:8.1f} frames/s")
    return found


async def _frames(
    address: str, process: Any, cameras: int, picture: bytes, seconds: float
) -> dict[str, Any]:
    done, running = 0, True

    async def send(number: int) -> None:
        nonlocal done

        async def frames() -> AsyncIterator[edge_pb2.StreamFramesRequest]:
            for k in itertools.count():
                if not running:
                    return
                request = edge_pb2.StreamFramesRequest(
                    camera_id=f"camera-{number}", frame_number=k, encoded=picture
                )
                request.capture_time.FromNanoseconds(time.time_ns())
                yield request

        async with open_channel(address) as channel:
            async for receipt in edge_pb2_grpc.EdgeIngestStub(channel).StreamFrames(frames()):
                if receipt.error.code:
                    raise SystemExit(f"frame refused: {receipt.error.message}")
                done += 1

    tasks = [asyncio.ensure_future(send(number)) for number in range(cameras)]
    await asyncio.sleep(WARM_SECONDS)
    before, used, begin = done, processor_seconds(process), time.perf_counter()
    await asyncio.sleep(seconds)
    frames, took = done - before, time.perf_counter() - begin
    used = processor_seconds(process) - used
    running = False
    await asyncio.gather(*tasks)
    return {
        "frames_a_second": round(frames / took, 2),
        "edge_cpu_ms_a_frame": round(1e3 * used / max(frames, 1), 2),
    }


def _jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
    done, packed = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return bytes(packed.tobytes())


# -- faces kept


async def measure_faces(
    folder: Path, codec: Codec, counts: Sequence[int], fetches: int
) -> list[dict[str, Any]]:
    """Time of fetching all layers of a face, sealed, at random, with more and more faces kept."""
    faces, ids, rows = coded(codec), [], []
    chance = random.Random(1)
    for count in sorted(counts):
        begin = time.perf_counter()
        added = count - len(ids)
        ids += await fill(folder, faces, codec.model_bundle, added)
        filling = time.perf_counter() - begin
        with edge(folder) as (address, process):
            async with open_channel(address) as channel:
                stub = edge_pb2_grpc.LayerStoreStub(channel)
                times = []
                for k in range(fetches + 200):
                    request = edge_pb2.FetchLayersRequest(
                        face_ids=[chance.choice(ids)], sealed=True
                    )
                    if k == 200:
                        used = processor_seconds(process)
                    begin = time.perf_counter()
                    answer = await stub.FetchLayers(request)
                    times.append(1e3 * (time.perf_counter() - begin))
                    assert answer.faces[0].found
                used = processor_seconds(process) - used
        times = sorted(times[200:])
        rows.append(
            {
                "faces": count,
                "fetch_p50_ms": round(statistics.median(times), 3),
                "fetch_p99_ms": round(times[int(0.99 * len(times))], 3),
                "edge_cpu_ms_a_fetch": round(1e3 * used / fetches, 3),
                "stored_a_second": round(added / filling, 1),
                "bytes_a_face_on_disk": round(
                    sum(path.stat().st_size for path in folder.glob("*.sqlite")) / count
                ),
            }
        )
        for name in ("p50", "p99"):
            least = rows[0][f"fetch_{name}_ms"]
            rows[-1][f"{name}_over_fewest"] = round(rows[-1][f"fetch_{name}_ms"] / least, 2)
        print(
            f"{count:9,} faces: p50 {rows[-1]['fetch_p50_ms']} ms, p99 {rows[-1]['fetch_p99_ms']}"
        )
    return rows


# -- bytes


class CountingProxy:
    """Passes TCP on to an address and counts the bytes that come back."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.address, self.received = "", 0

    async def __aenter__(self) -> CountingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(
            self._pass(reader, ours, counts=False), self._pass(theirs, writer, counts=True)
        )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool
    ) -> None:
        try:
            while data := await reader.read(65_536):
                self.received += len(data) * counts
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


async def measure_bytes(folder: Path, codec: Codec) -> dict[str, Any]:
    """Bytes of a face on the wire, without TLS: a subscriber's, in both ways, and a decoder's."""
    ids = await fill(folder, coded(codec), codec.model_bundle, 2_000)
    found: dict[str, Any] = {}
    with edge(folder) as (address, _):
        for name, max_faces in (("one_face_a_message", 0), ("batches", AT_ONCE)):
            async with CountingProxy(address) as proxy, open_channel(proxy.address) as channel:
                request = edge_pb2.SubscribeRequest(sealed=True, max_faces=max_faces)
                stub = edge_pb2_grpc.BasicLayerFeedStub(channel)
                call, seen = stub.Subscribe(request, wait_for_ready=True), 0
                while seen < len(ids):
                    seen += len((await call.read()).batch) or 1
                found[f"basic_{name}"] = round(proxy.received / seen, 1)
                call.cancel()
        async with CountingProxy(address) as proxy, open_channel(proxy.address) as channel:
            higher = [common_pb2.LAYER_MIDDLE, common_pb2.LAYER_ENHANCED]
            layers = edge_pb2_grpc.LayerStoreStub(channel)
            for face_id in ids[:200]:
                await layers.FetchLayers(
                    edge_pb2.FetchLayersRequest(face_ids=[face_id], layers=higher, sealed=True),
                    wait_for_ready=True,
                )
            found["higher_layers"] = round(proxy.received / 200, 1)
    print(f"bytes of a face on the wire: {found}")
    return found


# -- all


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The parts that were asked for, each with a folder of its own."""
    codec = Codec.load(provider="cpu", threads=1)
    figures: dict[str, Any] = {}
    for part in args.parts:
        place = folder / part
        place.mkdir()
        if part == "subscribers":
            figures[part] = await measure_subscribers(place, codec, args.subscribers, args.seconds)
        elif part == "cameras":
            figures[part] = await measure_cameras(place, codec, args.cameras, args.seconds)
        elif part == "faces":
            figures[part] = await measure_faces(place, codec, args.faces, args.fetches)
        elif part == "bytes":
            figures[part] = await measure_bytes(place, codec)
        else:
            figures[part] = await analytics_throughput.run(args.analytics_faces, place)
    return figures


def main() -> None:
    """Measure, write the result and the page with its plots."""
    parts = ("subscribers", "cameras", "faces", "bytes", "analytics")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--subscribers", type=int, nargs="+", default=SUBSCRIBERS)
    parser.add_argument("--cameras", type=int, nargs="+", default=CAMERAS)
    parser.add_argument("--faces", type=int, nargs="+", default=FACES)
    parser.add_argument("--fetches", type=int, default=FETCHES)
    parser.add_argument("--analytics-faces", type=int, default=20_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--plain", metavar="ADDRESS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        asyncio.run(serve_plain(args.plain))
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        measured = asyncio.run(run(args, Path(folder)))
    last = args.results / "load.json"
    known = json.loads(last.read_text())["figures"] if last.exists() else {}
    commands = {**known.pop("commands", {}), **dict.fromkeys(measured, command())}
    figures = {**known, **measured}
    print(write_result("load", {**figures, "commands": commands}, args.results))
    if set(figures) == set(parts):
        print(write_page(figures, args.docs))


if __name__ == "__main__":
    main()
