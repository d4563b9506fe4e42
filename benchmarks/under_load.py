"""The three services as processes under load, `kill -9` at random moments, and what has to hold.

    cameras --> edge --> feed reader, analytics --> result reader
                  `----> decoder --> viewer

Belongs here: the processes, the load, the killing, and the check of everything that was promised.
Does not belong here: how long and how often, which is `tests/test_kill.py`'s and
`benchmarks.soak`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import grpc
import grpc.aio
from PIL import Image

from sfic.audit import read_log, verify_lines
from sfic.camera import Camera
from sfic.client import AnalyticsClient
from sfic.grants import grant_all_faces
from sfic.locations import demo_photograph
from sfic.pictures import read_picture
from sfic.service.client import Backoff, open_channel, sfic_errors
from sfic.sources import Source, SourceFrame
from sfic.v1 import (
    analytics_pb2,
    analytics_pb2_grpc,
    decoder_pb2,
    decoder_pb2_grpc,
    edge_pb2,
    edge_pb2_grpc,
)

__all__ = ["Counts", "Load", "Process", "Services", "kill_at_random", "read_log_of_edge"]

CROPS = 6
CROP_SIDE = 256
PICTURE_SIDE = 128
_START_SECONDS = 120.0
_SETTLE_SECONDS = 180.0
_FETCH_FACES = 256
_LONGEST_WAIT_SECONDS = 0.5


# -- processes


class Process:
    """One service that is started again on the same port after each kill."""

    def __init__(self, name: str, module: str, folder: Path, arguments: Sequence[str]) -> None:
        self.name = name
        self.address = _quiet_address()
        self.starts = 0
        self.is_serving = False
        self.repair_seconds: list[float] = []
        """What each start took to bring its store in order."""
        self.serving_seconds: list[float] = []
        """From the start of the process until it took calls."""
        self.faults: list[str] = []
        """Errors that it logged and did not expect."""
        self._module = module
        self._folder = folder
        self.arguments = list(arguments)
        """Of the next start."""
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The log of the newest start."""
        return self._folder / f"{self.name}-{self.starts}.log"

    def start(self) -> None:
        """Start it as an operator does."""
        self.is_serving = False
        self.log.unlink(missing_ok=True)  # of the start before: enough of them would fill a disk
        self.starts += 1
        self._started = time.perf_counter()
        with self.log.open("wb") as sink:
            self._running = subprocess.Popen(
                [
                    *(sys.executable, "-m", self._module),
                    *(f"--listen={self.address}", "--metrics-listen=", "--log-format=json"),
                    *self.arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )

    async def serving(self) -> None:
        """Return when it takes calls. Raises `RuntimeError` when it ends instead."""
        deadline = time.perf_counter() + _START_SECONDS
        while not any(event.get("event") == "serving" for event in self.events()):
            if self.pid is None or time.perf_counter() > deadline:
                raise RuntimeError(f"{self.name} did not start: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.02)
        self.is_serving = True
        self.serving_seconds.append(time.perf_counter() - self._started)
        self.repair_seconds += [
            float(event["seconds"])
            for event in self.events()
            if event.get("event") == "store repaired"
        ]

    def events(self) -> Iterator[dict[str, Any]]:
        """What the newest start has logged; a line that is still being written is left out."""
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    @property
    def pid(self) -> int | None:
        """Of the running process; None when it has ended."""
        running = self._running
        return running.pid if running is not None and running.poll() is None else None

    @property
    def resident_bytes(self) -> int:
        """Memory of the process that is in use."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        """`kill -9`."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to stop; wait."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._running is None:
            return
        self._running.send_signal(number)
        self._running.wait(60)
        self.faults += [
            f"{self.name} logged: {event.get('event')}: {str(event['exception'])[-500:]}"
            for event in self.events()
            # gRPC's own word for a reader that went away in the middle of a message.
            if "exception" in event and "ExecuteBatchError" not in str(event["exception"])
        ]


class Services:
    """Edge, analytics and decoder over one folder."""

    def __init__(self, folder: Path, **settings: dict[str, Any]) -> None:
        """`settings`: further settings by service, e.g. edge={"retention_bytes": 1000}."""
        self.folder = folder

        def flags(name: str) -> list[str]:
            given = settings.get(name, {})
            return [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]

        self.edge = Process(
            "edge",
            "benchmarks.known_faces_edge",
            folder,
            [f"--data-dir={folder / 'edge'}", "--workers=1", "--min-face-score=0", *flags("edge")],
        )
        self.analytics = Process(
            "analytics",
            "analytics_service",
            folder,
            [
                f'--edges=["{self.edge.address}"]',
                f"--database={folder / 'analytics.sqlite'}",
                *("--provider=cpu", "--threads=1", "--reconnect-seconds=0.5"),
                *flags("analytics"),
            ],
        )
        self.decoder = Process(
            "decoder",
            "cloud_decoder",
            folder,
            [f"--edge={self.edge.address}", "--provider=cpu", "--threads=1", *flags("decoder")],
        )

    @property
    def all(self) -> list[Process]:
        """The three, in the order they are started in."""
        return [self.edge, self.analytics, self.decoder]

    async def start(self) -> None:
        """Start them; return when all take calls and decoders may see every face."""
        for process in self.all:
            process.start()
        for process in self.all:
            await process.serving()
        await grant_all_faces(self.edge.address, "a test under load", 24.0)

    def kill(self) -> None:
        """End them all, also those that hang."""
        for process in self.all:
            process.kill()


def _quiet_address() -> str:
    """A free loopback address below the ports that the system gives to clients.

    A client that tries to reach a service which is down can be given that very port as its own.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return f"127.0.0.1:{port}"


async def kill_at_random(
    process: Process,
    kills: int,
    chance: random.Random,
    done: Callable[[], int],
    longest_seconds: float = 1.0,
) -> None:
    """Kill and start a service so many times: in the middle of its work, or while it starts.

    `done()` counts its work: it is killed up to `longest_seconds` after there was some.
    """
    for _ in range(kills):
        if process.is_serving:
            await _grows(done)
        await asyncio.sleep(chance.uniform(0.0, longest_seconds))
        process.kill()
        process.start()
        if chance.random() < 0.75:
            await process.serving()
    if not process.is_serving:
        await process.serving()


async def _grows(done: Callable[[], int]) -> None:
    before, deadline = done(), time.perf_counter() + _SETTLE_SECONDS
    while done() == before:
        if time.perf_counter() > deadline:
            raise RuntimeError("the load does not go on")
        await asyncio.sleep(0.01)


# -- load


class _Crops(Source):
    """Aligned crops as JPEG, over and over, until closed."""

    def __init__(self, crops: Sequence[bytes], first: int, pause: float) -> None:
        super().__init__("crops")
        self._crops, self._first, self._pause = crops, first, pause

    def frames(self, fps: float | None = None) -> Iterator[SourceFrame]:
        """One for each number, all captured at times of their own."""
        number = 0
        while not self._closed.wait(self._pause):
            crop = self._crops[(self._first + number) % len(self._crops)]
            yield SourceFrame(number, time.time_ns(), crop, str(number))
            number += 1


def crops() -> list[bytes]:
    """One face under some lights, as small aligned crops."""
    picture = read_picture(demo_photograph())[0:256, 100:356]
    made = []
    for number in range(CROPS):
        light = cv2.convertScaleAbs(picture, alpha=0.7 + 0.1 * number, beta=0)
        buffer = io.BytesIO()
        Image.fromarray(cv2.resize(light, (CROP_SIDE, CROP_SIDE))).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


@dataclass
class Counts:
    """What was sent, promised and delivered."""

    frames_refused: int = 0
    acknowledged: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Face id: camera and frame of its receipt."""
    fed: list[tuple[int, str]] = field(default_factory=list)
    """Cursor and face id, as a reader of the edge's feed had them over all kills."""
    results: list[tuple[int, str]] = field(default_factory=list)
    """The same of a reader of analytics."""
    missed: int = 0
    """Faces and results that those two readers were told they had missed."""
    pictures: int = 0
    """Complete reconstructions."""
    slow_read: int = 0
    slow_missed: int = 0
    """What the slowest of readers got, and what it was told that it missed."""


class Load:
    """Cameras, readers and a viewer on the services, until stopped."""

    def __init__(
        self,
        services: Services,
        *,
        cameras: int = 2,
        pause_seconds: float = 0.02,
        slow_seconds: float | None = None,
    ) -> None:
        """`pause_seconds`: between two frames of a camera. `slow_seconds`: between two messages
        that live readers of edge and analytics take, without kills; None: there are none."""
        self.counts = Counts()
        self._services = services
        self._frames = crops()
        self._sources = [_Crops(self._frames, first, pause_seconds) for first in range(cameras)]
        self._slow_seconds = slow_seconds
        self._chance = random.Random(1)
        self._readers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin all of it."""
        self._cameras = [
            asyncio.ensure_future(self._run_camera(f"camera-{number}", source))
            for number, source in enumerate(self._sources)
        ]
        work = [self._read_feed(), self._read_results(), self._view()]
        if self._slow_seconds is not None:
            edge, analytics = self._services.edge.address, self._services.analytics.address
            work += [
                self._read_slowly(edge, _live_faces),
                self._read_slowly(analytics, _live_results),
            ]
        self._readers = [asyncio.ensure_future(each) for each in work]

    async def stop_cameras(self) -> None:
        """Send no more; return when each frame that was sent has its receipt."""
        for source in self._sources:
            source.close()
        await asyncio.wait_for(asyncio.gather(*self._cameras), _SETTLE_SECONDS)

    def done_by(self, name: str) -> int:
        """Counts what a service, by its name, has done."""
        counts = self.counts
        done = {
            "edge": len(counts.acknowledged),
            "analytics": len(counts.results),
            "decoder": counts.pictures,
        }
        return done[name]

    async def settle(self, last_cursor: int) -> None:
        """Return when both readers have all up to the edge's last face. Raises `TimeoutError`."""

        async def read() -> None:
            while not self.counts.fed or self.counts.fed[-1][0] < last_cursor:
                self.check()
                await asyncio.sleep(0.05)
            while not self.counts.results or self.counts.results[-1][1] != self.counts.fed[-1][1]:
                self.check()
                await asyncio.sleep(0.05)

        await asyncio.wait_for(read(), _SETTLE_SECONDS)

    async def stop(self) -> None:
        """End the readers."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    def check(self) -> None:
        """Raise what ended a reader, if one has ended."""
        for reader in self._readers:
            if reader.done():
                reader.result()
                raise RuntimeError("a reader ended by itself")

    async def _run_camera(self, camera_id: str, source: Source) -> None:
        camera = Camera(
            source,
            self._services.edge.address,
            camera_id=camera_id,
            aligned=True,
            patience_seconds=None,
            longest_wait_seconds=_LONGEST_WAIT_SECONDS,
        )
        async for receipt in camera.receipts():
            self.counts.frames_refused += bool(receipt.error_code)
            for face in receipt.faces:
                self.counts.acknowledged[face.face_id] = camera_id, receipt.frame_number

    async def _read_feed(self) -> None:
        async for message in _feed(self._services.edge.address):
            self.counts.missed += message.faces_missed
            self.counts.fed.append((message.cursor, message.face.face_id))

    async def _read_results(self) -> None:
        address = self._services.analytics.address
        async with AnalyticsClient(address, longest_wait_seconds=_LONGEST_WAIT_SECONDS) as client:
            async for result in client.results():
                self.counts.missed += result.missed
                self.counts.results.append((result.cursor, result.face_id))

    async def _read_slowly(
        self, address: str, subscribe: Callable[[grpc.aio.Channel], Any]
    ) -> None:
        """Take a message now and then, with no more room for others than HTTP/2 starts with."""
        narrow = [("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(address, options=narrow) as channel:
            async for message in subscribe(channel):
                self.counts.slow_read += 1
                for name in ("faces_missed", "results_missed"):
                    self.counts.slow_missed += getattr(message, name, 0)
                await asyncio.sleep(self._slow_seconds or 0.0)

    async def _view(self) -> None:
        """Ask for faces that were acknowledged, each until it is all there."""
        async with open_channel(self._services.decoder.address, retry=False) as channel:
            stub = decoder_pb2_grpc.CloudDecoderStub(channel)
            while True:
                await asyncio.sleep(0.05)
                if not self.counts.fed:
                    continue
                _, face_id = self._chance.choice(self.counts.fed[-100:])
                request = decoder_pb2.ReconstructRequest(
                    face_id=face_id, size=PICTURE_SIDE, purpose="load"
                )
                backoff = Backoff(longest=_LONGEST_WAIT_SECONDS)
                while True:
                    levels = []
                    try:
                        async for answer in stub.Reconstruct(request):
                            levels.append(answer.level)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is grpc.StatusCode.NOT_FOUND:
                            break  # Retention took it.
                        if error.code() not in _RETRIED:
                            raise
                        await asyncio.sleep(backoff.next_seconds())
                        continue
                    if levels != [1, 2, 3]:
                        raise RuntimeError(f"reconstruction of {face_id} had levels {levels}")
                    self.counts.pictures += 1
                    break


# A lost connection comes as UNAVAILABLE, or as what grpc.aio makes of it (see sfic.service.client).
_RETRIED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


def _live_faces(channel: grpc.aio.Channel) -> Any:
    stub = edge_pb2_grpc.BasicLayerFeedStub(channel)
    return stub.Subscribe(edge_pb2.SubscribeRequest(live_only=True))


def _live_results(channel: grpc.aio.Channel) -> Any:
    stub = analytics_pb2_grpc.AnalyticsStub(channel)
    return stub.SubscribeResults(analytics_pb2.SubscribeResultsRequest(live_only=True))


async def _feed(address: str) -> AsyncIterator[edge_pb2.SubscribeResponse]:
    """The feed from its start, for ever; over lost connections."""
    backoff = Backoff(longest=_LONGEST_WAIT_SECONDS)
    request = edge_pb2.SubscribeRequest()
    async with open_channel(address, retry=False) as channel:
        stub = edge_pb2_grpc.BasicLayerFeedStub(channel)
        while True:
            try:
                async for message in stub.Subscribe(request):
                    backoff.reset()
                    request.after_cursor, request.log_id = message.cursor, message.log_id
                    yield message
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRIED:
                    raise
            await asyncio.sleep(backoff.next_seconds())


# -- what has to hold


def last_cursor_of_edge(folder: Path) -> int:
    """The cursor of the newest face that the edge has committed, as another process sees it."""
    with contextlib.closing(_open(folder / "edge" / "edge.sqlite")) as connection:
        return int(connection.execute("SELECT coalesce(max(cursor), 0) FROM faces").fetchone()[0])


async def read_log_of_edge(address: str, last_cursor: int) -> list[edge_pb2.SubscribeResponse]:
    """All that the edge's feed has up to a cursor, each layer opened by the edge."""
    read: list[edge_pb2.SubscribeResponse] = []
    async with open_channel(address) as channel:
        call = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(edge_pb2.SubscribeRequest())
        with sfic_errors("edge"):
            while last_cursor and (not read or read[-1].cursor < last_cursor):
                read.append(await asyncio.wait_for(call.read(), _SETTLE_SECONDS))
        call.cancel()
    return read


@asynccontextmanager
async def running(services: Services, load: Load) -> AsyncIterator[None]:
    """Services under load; ended at the end, whatever happened."""
    try:
        await services.start()
        load.start()
        yield
    finally:
        await load.stop()
        services.kill()


async def broken_promises(services: Services, counts: Counts) -> list[str]:
    """What does not hold of services that keep all they were sent, and are quiet now."""
    problems: list[str] = []

    def check(holds: bool, problem: str) -> None:
        if not holds:
            problems.append(problem)

    last = last_cursor_of_edge(services.folder)
    log = await read_log_of_edge(services.edge.address, last)
    kept = [message.face.face_id for message in log]
    frames = [
        (m.face.camera_id, m.face.frame_number, m.face.capture_time.ToNanoseconds()) for m in log
    ]
    lost = set(counts.acknowledged) - set(kept)
    check(not lost, f"{len(lost)} acknowledged faces lost")
    check(len(set(kept)) == len(kept), "a face is in the edge's log twice")
    check(len(set(frames)) == len(frames), "a frame's face was kept twice")
    check(all(message.basic for message in log), "a basic layer is empty")
    check(await _fetchable(services.edge.address, kept) == len(kept), "layers are gone")
    check(counts.missed == 0, f"readers were told of {counts.missed} missed")
    fed = [face_id for _, face_id in counts.fed]
    check(
        fed == kept, f"the feed's reader had {len(fed)} faces, not the log's {len(kept)} in order"
    )
    async with AnalyticsClient(services.analytics.address) as client:
        results = [(r.cursor, r.face_id) async for r in client.results(follow=False)]
    names = [face_id for _, face_id in results]
    check(len(set(names)) == len(names), "a result is repeated")
    check(set(names) == set(kept), f"{len(set(kept) ^ set(names))} results missing or too many")
    check(names == kept, "results are out of order")
    cursors = [cursor for cursor, _ in results]
    check(cursors == list(range(1, len(results) + 1)), "cursors of results have gaps")
    check(counts.results == results, "the results' reader had others than are kept")
    lines, head = read_log(services.folder / "edge" / "audit.jsonl")
    problems += verify_lines(lines, head).problems
    problems += [f"{name}: {what}" for name, what in _broken_databases(services.folder)]
    return problems


async def _fetchable(address: str, face_ids: Sequence[str]) -> int:
    """How many of the faces have all three layers."""
    whole = 0
    async with open_channel(address) as channel:
        stub = edge_pb2_grpc.LayerStoreStub(channel)
        for start in range(0, len(face_ids), _FETCH_FACES):
            chunk = face_ids[start : start + _FETCH_FACES]
            answer = await stub.FetchLayers(
                edge_pb2.FetchLayersRequest(face_ids=chunk, sealed=True)
            )
            whole += sum(len(face.layers) == 3 for face in answer.faces)
    return whole


def _broken_databases(folder: Path) -> Iterator[tuple[str, str]]:
    edge = folder / "edge"
    for path in (edge / "edge.sqlite", edge / "keys.sqlite", folder / "analytics.sqlite"):
        with contextlib.closing(_open(path)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                yield path.name, verdict
    with contextlib.closing(_open(edge / "keys.sqlite")) as keys:
        keys.execute("ATTACH ? AS log", (f"file:{edge / 'edge.sqlite'}?mode=ro",))
        for what, query in (
            (
                "keys without a face",
                "SELECT face_id FROM layer_keys EXCEPT SELECT face_id FROM faces",
            ),
            (
                "faces without a key",
                "SELECT face_id FROM faces EXCEPT SELECT face_id FROM layer_keys",
            ),
        ):
            (number,) = keys.execute(f"SELECT count(*) FROM ({query})").fetchone()
            if number:
                yield "keys.sqlite", f"{number} {what}"


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
