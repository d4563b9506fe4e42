"""The analytics service as a whole: its parts put together, and its gRPC methods.

Belongs here: wiring, start and stop, and the reading of requests. What the parts do belongs to
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import structlog
from google.protobuf import timestamp_pb2
from prometheus_client import CollectorRegistry

from analytics_service.metrics import AnalyticsMetrics
from analytics_service.records import StoredResult, index_entry
from analytics_service.results import Announcer, first_cursor, follow_results
from analytics_service.search import Bounds, FaceIndex, Filters
from analytics_service.settings import AnalyticsSettings
from analytics_service.store import ResultStore, Retention
from analytics_service.subscriber import Arrival, EdgeFeed, Worker
from sfic.codec import Codec
from sfic.errors import BundleMismatch, FaceNotKept, InvalidInput, StorageError
from sfic.service.server import serve
from sfic.v1 import analytics_pb2, analytics_pb2_grpc, edge_pb2

__all__ = ["AnalyticsService", "run"]

log = structlog.get_logger(__name__)

DEFAULT_LIMIT = 20
HIGHEST_LIMIT = 1000
_LOAD_PAGE = 2000
_DAY_NS = 86_400 * 10**9


class AnalyticsService(analytics_pb2_grpc.AnalyticsServicer):
    """Follows the edges, keeps results, answers `sfic.v1.Analytics`.

    `codec` may be one that is loaded already.
    """

    names: tuple[str, ...] = ("sfic.v1.Analytics",)

    def __init__(self, settings: AnalyticsSettings, codec: Codec | None = None) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self._metrics = AnalyticsMetrics(self.registry)
        self._announcer = Announcer()
        self._queue: asyncio.Queue[Arrival] = asyncio.Queue(settings.queue_faces)
        self._metrics.queue_faces.set_function(self._queue.qsize)
        # One thread analyses; another one searches, so that no search holds the feed up.
        self._analysis = ThreadPoolExecutor(1, thread_name_prefix="analyse")
        self._searching = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded = codec
        self._store: ResultStore

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer."""
        analytics_pb2_grpc.add_AnalyticsServicer_to_server(self, server)

    async def start(self) -> None:
        """Loads the codec and what is kept, then follows the edges, also those still away."""
        settings = self.settings
        loop = asyncio.get_running_loop()
        self._codec = await loop.run_in_executor(self._analysis, self._load_codec)
        log.info("codec loaded", model_bundle=self._codec.model_bundle)
        self._index = FaceIndex()
        path = settings.database.expanduser()
        self._store = store = await asyncio.to_thread(ResultStore, path)
        await self._prune()
        await self._load_index()
        self._announcer.announce(await store.newest_cursor())
        request = edge_pb2.SubscribeRequest(
            camera_ids=settings.camera_ids, min_face_score=settings.min_face_score
        )
        for edge in settings.edges:
            feed = EdgeFeed(
                edge,
                await store.edge_cursor(edge),
                request,
                self._queue,
                self._metrics,
                settings.reconnect_seconds,
                settings.edge_identity(),
            )
            self._keep_running(feed.run())
        worker = Worker(
            self._codec,
            self._analysis,
            store,
            self._queue,
            self._metrics,
            settings.batch_faces,
            self._kept,
        )
        self._keep_running(worker.run())
        self._keep_running(self._prune_for_ever())

    async def drain(self) -> None:
        """Stops reading and ends the streams of results; the commit under way is finished."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._announcer.close()

    async def close(self) -> None:
        """Closes threads and database."""
        await asyncio.to_thread(self._analysis.shutdown)
        await asyncio.to_thread(self._searching.shutdown)
        await asyncio.to_thread(self._store.close)

    async def SubscribeResults(  # noqa: N802
        self,
        request: analytics_pb2.SubscribeResultsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[analytics_pb2.SubscribeResultsResponse]:
        """Stream results; see the contract in `analytics.proto`.

        The headers of the answer are sent when the start is fixed: what is kept after they have
        arrived will be streamed.
        """
        _check_unit("min_face_score", request.min_face_score)
        at = first_cursor(request, self._announcer.newest)
        await context.send_initial_metadata(())
        with self._metrics.subscribers.track_inprogress():
            async for response in follow_results(self._store, self._announcer, request, at):
                yield response

    async def SearchFaces(  # noqa: N802
        self,
        request: analytics_pb2.SearchFacesRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> analytics_pb2.SearchFacesResponse:
        """Find faces; see the contract in `analytics.proto`."""
        filters, limit = _filters(request), request.limit or DEFAULT_LIMIT
        if limit > HIGHEST_LIMIT:
            raise InvalidInput(f"limit {limit}: at most {HIGHEST_LIMIT}")
        like = request.WhichOneof("like")
        min_similarity = None
        if request.HasField("min_similarity"):
            min_similarity = request.min_similarity
            if like is None:
                raise InvalidInput("min_similarity needs an example: face_id or basic")
            if not -1.0 <= min_similarity <= 1.0:
                raise InvalidInput(f"min_similarity {min_similarity}: must be -1..1")
        loop = asyncio.get_running_loop()
        with self._metrics.search_seconds.time():
            example = None
            if like == "basic":
                analysis = await loop.run_in_executor(
                    self._searching, self._codec.analyze, request.basic
                )
                example = analysis.embedding
            elif like == "face_id":
                example = (await self._known_face(request.face_id)).vector()
            matches = await loop.run_in_executor(
                self._searching, self._index.search, filters, limit, example, min_similarity
            )
            found = await self._store.by_cursors([match.cursor for match in matches])
        return analytics_pb2.SearchFacesResponse(
            hits=[
                analytics_pb2.SearchFacesResponse.Hit(
                    analysis=found[match.cursor].message(), similarity=match.similarity
                )
                for match in matches
                if match.cursor in found
            ]
        )

    async def _known_face(self, face_id: str) -> StoredResult:
        result = await self._store.by_face(face_id)
        if result is None:
            raise FaceNotKept(f"no result of face {face_id!r} is kept", face_id=face_id)
        bundle = analytics_pb2.FaceAnalysis.FromString(result.analysis).face.model_bundle
        if bundle != self._codec.model_bundle:
            raise BundleMismatch(
                f"face {face_id} was coded with model bundle {bundle}, which cannot be compared"
                f" with faces of {self._codec.model_bundle}"
            )
        return result

    def _load_codec(self) -> Codec:
        settings = self.settings
        codec = self._loaded or Codec.load(
            settings.bundle, provider=settings.provider, threads=settings.threads
        )
        codec.warm_up("analyze")
        if settings.provider == "cuda":
            # Asking loads the generator, which analytics does not need: only to find out.
            log.info("provider is there", provider=codec.provider)
        return codec

    async def _load_index(self) -> None:
        started, at = time.perf_counter(), 0
        while page := await self._store.page(at, _LOAD_PAGE):
            await asyncio.to_thread(self._add_to_index, page)
            at = page[-1].cursor
        log.info(
            "results loaded",
            faces=len(self._index),
            seconds=round(time.perf_counter() - started, 3),
        )

    def _add_to_index(self, results: Sequence[StoredResult]) -> None:
        self._index.add([index_entry(result, self._codec.model_bundle) for result in results])
        self._show_index()

    def _show_index(self) -> None:
        self._metrics.index_faces.set(len(self._index))
        self._metrics.index_bytes.set(self._index.bytes_used)

    def _kept(self, new: Sequence[StoredResult]) -> None:
        """Makes committed results known: searchable first, then announced."""
        if new:
            self._add_to_index(new)
            self._announcer.announce(new[-1].cursor)

    async def _prune(self) -> None:
        settings = self.settings
        gone = await self._store.prune(
            Retention(
                oldest=time.time_ns() - int(settings.retention_days * _DAY_NS),
                max_results=settings.max_results,
            )
        )
        if gone:
            await asyncio.to_thread(self._index.remove, gone)
            self._show_index()
            self._metrics.results_pruned.inc(len(gone))
            log.info("results pruned", results=len(gone))

    async def _prune_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.retention_check_seconds)
            with contextlib.suppress(StorageError):
                await self._prune()

    def _keep_running(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(_report)
        self._tasks.append(task)


def run(settings: AnalyticsSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises errors of the tree when it cannot start."""
    serve(lambda: AnalyticsService(settings), settings)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("background work died", exc_info=task.exception())


def _filters(request: analytics_pb2.SearchFacesRequest) -> Filters:
    _check_unit("min_face_score", request.min_face_score)
    captured_from = _nanoseconds(request, "captured_from")
    captured_until = _nanoseconds(request, "captured_until")
    if captured_from is not None and captured_until is not None and captured_from > captured_until:
        raise InvalidInput("captured_from lies behind captured_until")
    return Filters(
        camera_ids=tuple(request.camera_ids),
        captured_from=captured_from,
        captured_until=captured_until,
        age=_bounds(request, "age"),
        gender=_bounds(request, "gender"),
        smile=_bounds(request, "smile"),
        min_face_score=request.min_face_score,
    )


def _bounds(request: analytics_pb2.SearchFacesRequest, name: str) -> Bounds:
    field: analytics_pb2.Range = getattr(request, name)
    low = field.min if field.HasField("min") else None
    high = field.max if field.HasField("max") else None
    if any(side is not None and math.isnan(side) for side in (low, high)):
        raise InvalidInput(f"{name}: a side of the range is not a number")
    if low is not None and high is not None and low > high:
        raise InvalidInput(f"{name}: min {low:g} is over max {high:g}")
    return Bounds(low, high)


def _nanoseconds(request: analytics_pb2.SearchFacesRequest, name: str) -> int | None:
    if not request.HasField(name):
        return None
    time_field: timestamp_pb2.Timestamp = getattr(request, name)
    nanoseconds = int(time_field.seconds) * 10**9 + int(time_field.nanos)
    return max(-(2**63), min(nanoseconds, 2**63 - 1))


def _check_unit(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise InvalidInput(f"{name} {value:g}: must be 0..1")
