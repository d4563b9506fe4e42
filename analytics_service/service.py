"""The analytics service as a whole: its parts put together, started and stopped.

Belongs here: wiring, and the work that goes on in the background. What the parts do belongs to
them, the gRPC methods to `analytics_service.api`.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import structlog
from prometheus_client import CollectorRegistry

from analytics_service.api import AnalyticsApi
from analytics_service.examples import ExampleReader
from analytics_service.group import Group
from analytics_service.metrics import AnalyticsMetrics
from analytics_service.records import StoredResult
from analytics_service.search import FaceIndex
from analytics_service.settings import AnalyticsSettings
from analytics_service.store import Committed, ResultStore, Retention
from analytics_service.streams import Announcer
from analytics_service.subscriber import Arrival, EdgeFeed, Keep, Keeper, Worker
from analytics_service.visits import VisitTracker
from analytics_service.watchlists import Watchlists, WatchlistStore
from analytics_service.webhooks import HookStore, Page, Webhook, load_secret
from sfic.bundles import Codecs
from sfic.codec import Codec
from sfic.errors import StorageError
from sfic.forgetting import follow_forgotten
from sfic.pictures import PictureLimits
from sfic.service.clock import SteadyClock
from sfic.service.server import serve
from sfic.v1 import analytics_pb2_grpc, control_pb2, edge_pb2

__all__ = ["AnalyticsService", "run"]

log = structlog.get_logger(__name__)

_LOAD_PAGE = 2000
_DAY_NS = 86_400 * 10**9
# Of the faces of a visit, where the bundle does not say better.
_UNCALIBRATED_SIMILARITY = 0.5


class AnalyticsService:
    """Follows the edges, keeps results, answers `sfic.v1.Analytics`.

    `codec` may be one that is loaded already.
    """

    names: tuple[str, ...] = ("sfic.v1.Analytics",)

    def __init__(self, settings: AnalyticsSettings, codec: Codec | None = None) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self._metrics = AnalyticsMetrics(self.registry)
        self._results = Announcer()
        self._alerts = Announcer()
        self._queue: asyncio.Queue[Arrival] = asyncio.Queue(settings.queue_faces)
        self._metrics.queue_faces.set_function(self._queue.qsize)
        # One thread analyses; another one searches, so that no search holds the feed up.
        self._analysis = ThreadPoolExecutor(1, thread_name_prefix="analyse")
        self._searching = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded = codec
        self._clock = SteadyClock()
        self._store: ResultStore

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer."""
        analytics_pb2_grpc.add_AnalyticsServicer_to_server(self._api, server)

    async def start(self) -> None:
        """Loads the codec and what is kept, then follows the edges, also those still away."""
        settings = self.settings
        loop = asyncio.get_running_loop()
        codecs = await loop.run_in_executor(self._analysis, self._load_codecs)
        self._codecs, self._codec = codecs, codecs.own
        log.info("codecs loaded", model_bundles=codecs.bundles)
        self._metrics.info.info(
            {
                "model_bundle": self._codec.model_bundle,
                "provider": self._codec.provider,
                "retention_seconds": f"{86_400 * settings.retention_days:.0f}",
                "retention_results": str(settings.max_results),
            }
        )
        self._index = FaceIndex()
        visits = VisitTracker(settings.visit_gap_seconds, self._visit_similarity())
        watchlists = Watchlists(self._codec.model_bundle, enabled=settings.watchlists)
        path = settings.database.expanduser()
        started = time.perf_counter()
        self._store = store = await asyncio.to_thread(ResultStore, path, visits, watchlists)
        self._watchlists = WatchlistStore(
            store.database,
            watchlists,
            entry_days=settings.watchlist_entry_days,
            max_entries=settings.watchlist_entries,
        )
        for left in path.parent.glob(f"{path.name}.*.usearch*"):
            # Embeddings in the index file of an earlier version: forgetting would not reach them.
            left.unlink()
            log.info("index file of an earlier version deleted", file=left.name)
        self._clock.not_before(await store.newest_time() / 1e9)
        failed = sum([await store.retry_failed(bundle) for bundle in codecs.bundles])
        if failed:
            log.info("faces of this model bundle are read again", faces=failed)
        log.info("store repaired", seconds=round(time.perf_counter() - started, 3))
        await self._prune()
        await self._load_index()
        self._results.announce(await store.newest_cursor())
        self._alerts.announce(await self._watchlists.newest_alert())
        self._api = self._make_api()
        await self._start_webhooks()
        await self._follow_edges()
        self._keep_running(self._prune_for_ever())

    async def drain(self) -> None:
        """Stops reading and ends the streams of results; the commit under way is finished."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._results.close()
        self._alerts.close()

    async def close(self) -> None:
        """Closes threads and database."""
        await asyncio.to_thread(self._analysis.shutdown)
        await asyncio.to_thread(self._searching.shutdown)
        await asyncio.to_thread(self._store.close)

    async def forget(self, edge: str, order: control_pb2.FollowForgottenResponse) -> None:
        """Carries out an edge's order to forget: what is under way, kept, and searchable."""
        self._keeper.forget(edge, order)
        gone = await self._store.forget(edge, order)
        await self._take_from_index(gone)
        self._metrics.results_forgotten.inc(len(gone))
        log.info("results forgotten", edge=edge, order=order.cursor, results=len(gone))

    def _visit_similarity(self) -> float:
        if self.settings.visit_similarity is not None:
            return self.settings.visit_similarity
        calibrated = self._codec.same_person
        return _UNCALIBRATED_SIMILARITY if calibrated is None else calibrated.even

    def _make_api(self) -> AnalyticsApi:
        settings = self.settings
        examples = ExampleReader(
            self._codec,
            self._store,
            self._searching,
            PictureLimits(max_bytes=settings.max_picture_bytes),
            settings.min_trusted_score,
        )
        return AnalyticsApi(
            self._codec.model_bundle,
            self._codec.same_person,
            self._store,
            self._index,
            self._watchlists,
            examples,
            self._results,
            self._alerts,
            self._metrics,
            self._searching,
            settings.live_backlog_results,
        )

    async def _follow_edges(self) -> None:
        settings = self.settings
        request = edge_pb2.SubscribeRequest(
            camera_ids=settings.camera_ids, min_face_score=settings.min_face_score
        )
        self._keeper = keeper = Keeper(self._store, self._metrics, self._kept)
        keep: Keep = keeper.keep_batch
        if settings.nats:
            group = Group(settings, request, self._store, keeper, self._queue, self._metrics)
            self._keep_running(group.run())
            keep = group.publish
        else:
            for edge in settings.edges:
                feed = EdgeFeed(
                    edge,
                    await self._store.edge_cursor(edge),
                    await self._store.edge_log(edge),
                    request,
                    self._queue,
                    self._metrics,
                    settings.reconnect_seconds,
                    settings.edge_identity(),
                )
                self._keep_running(feed.run())
        self._worker = worker = Worker(
            self._codecs,
            self._analysis,
            keep,
            self._queue,
            self._metrics,
            settings.batch_faces,
            settings.min_trusted_score,
            settings.keep_parsing,
            self._clock,
        )
        self._keep_running(worker.run())
        for edge in settings.edges:
            self._keep_running(
                follow_forgotten(
                    edge,
                    settings.edge_identity(),
                    await self._store.forget_place(edge),
                    functools.partial(self.forget, edge),
                    settings.reconnect_seconds,
                )
            )

    async def _start_webhooks(self) -> None:
        store = HookStore(self._store.database)
        hooks: dict[Webhook, int] = {}
        for settings in self.settings.webhooks:
            followed: tuple[Announcer, Page] = (self._alerts, self._watchlists.alerts)
            if settings.sends == "results":
                followed = (self._results, self._store.page)
            hook = Webhook(settings, load_secret(settings), store, *followed, self._metrics)
            hooks[hook] = followed[0].newest
        await store.open({hook.key: newest for hook, newest in hooks.items()})
        for hook in hooks:
            self._keep_running(hook.run())

    def _load_codecs(self) -> Codecs:
        settings = self.settings
        codecs = Codecs.load(
            self._loaded or settings.bundle,
            settings.second_bundle,
            provider=settings.provider,
            threads=settings.threads,
        )
        codecs.warm_up("analyze")
        if settings.provider == "cuda":
            # Asking loads the generator, which analytics does not need: only to find out.
            log.info("provider is there", provider=codecs.own.provider)
        return codecs

    async def _load_index(self) -> None:
        started, at = time.perf_counter(), 0
        while page := await self._store.page(at, _LOAD_PAGE):
            await asyncio.to_thread(self._add_to_index, page)
            at = page[-1].cursor
        await asyncio.to_thread(self._index.prepare)
        self._show_index()
        log.info(
            "results loaded",
            faces=len(self._index),
            seconds=round(time.perf_counter() - started, 3),
        )

    def _add_to_index(self, results: Sequence[StoredResult]) -> None:
        self._index.add([result.index_entry(self._codec.model_bundle) for result in results])
        self._show_index()

    async def _take_from_index(self, cursors: Sequence[int]) -> None:
        if cursors:
            await asyncio.to_thread(self._index.remove, cursors)
            self._show_index()

    def _show_index(self) -> None:
        self._metrics.index_faces.set(len(self._index))
        self._metrics.index_bytes.set(self._index.bytes_used)

    def _kept(self, made: Committed) -> None:
        """Makes what is committed known: searchable first, then announced."""
        if made.results:
            self._add_to_index(made.results)
            self._results.announce(made.results[-1].cursor)
        if made.alerts:
            self._metrics.alerts.inc(made.alerts)
            self._alerts.announce(made.newest_alert)

    async def _prune(self) -> None:
        settings = self.settings
        pruned = await self._store.prune(
            Retention(
                oldest=int(self._clock() * 1e9) - int(settings.retention_days * _DAY_NS),
                max_results=settings.max_results,
                max_bytes=settings.retention_bytes,
            )
        )
        expired = await self._watchlists.drop_expired()
        if expired:
            log.info("watchlist entries expired", entries=expired)
        await self._take_from_index(pruned.cursors)
        for reason, cursors in pruned.results.items():
            if cursors:
                self._metrics.results_pruned.labels(reason).inc(len(cursors))
                log.info("results dropped by retention", reason=reason, results=len(cursors))
        for kind, count in (("failures", pruned.failures), ("alerts", pruned.alerts)):
            if count:
                self._metrics.records_pruned.labels(kind).inc(count)
                log.info(f"{kind} dropped by retention", count=count)

    async def _prune_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.retention_check_seconds)
            try:
                await self._prune()
            except StorageError as error:
                log.error("retention waits", reason=error.message)

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
