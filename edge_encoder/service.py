"""The edge as a service: its parts put together, started, drained and closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

import grpc.aio
import numpy as np
import structlog
from prometheus_client import CollectorRegistry

from edge_encoder.control import EdgeControl
from edge_encoder.feed import BasicLayerFeed
from edge_encoder.grants import GrantBook
from edge_encoder.ingest import EdgeIngest
from edge_encoder.layers import LayerStore
from edge_encoder.metrics import EdgeMetrics
from edge_encoder.outbox import Outbox
from edge_encoder.settings import EdgeSettings
from edge_encoder.store import FaceStore
from sfic.audit import AuditLog
from sfic.codec import Codec
from sfic.memory import keep_little_memory, release_memory
from sfic.service.server import serve
from sfic.v1 import control_pb2_grpc, edge_pb2_grpc

__all__ = ["EdgeService", "run"]

log = structlog.get_logger(__name__)


class EdgeService:
    """An edge; `codec` may be one that is loaded already."""

    names = (
        "sfic.v1.EdgeIngest",
        "sfic.v1.BasicLayerFeed",
        "sfic.v1.LayerStore",
        "sfic.v1.EdgeControl",
    )

    def __init__(self, settings: EdgeSettings, codec: Codec | None = None) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self._metrics = EdgeMetrics(self.registry)
        self._codec = codec
        self._stopping = asyncio.Event()
        self._pool = ThreadPoolExecutor(
            settings.workers or os.cpu_count() or 1, thread_name_prefix="encode"
        )
        self._store: FaceStore | None = None
        self._audit: AuditLog | None = None
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the store, load the codec and warm it up; drop what an earlier run left too long."""
        settings = self.settings
        folder = settings.data_dir.expanduser()
        self._store = store = await asyncio.to_thread(
            FaceStore,
            folder / "edge.sqlite",
            self._metrics,
            retention_seconds=settings.retention_hours * 3600,
            retention_bytes=settings.retention_bytes,
            key_file=settings.key_file,
        )
        await store.recover()
        codec = self._codec
        if codec is None:
            codec = await asyncio.to_thread(
                Codec.load, settings.bundle, provider=settings.provider, threads=settings.threads
            )
        await asyncio.to_thread(codec.warm_up, "encode")
        release_memory()
        if settings.effort:
            # A bundle that cannot do it must say so now, not with every frame.
            blank = np.zeros((256, 256, 3), np.uint8)
            await asyncio.to_thread(codec.encode, blank, settings.rate, settings.effort)
        self._ingest = EdgeIngest(codec, store, settings, self._metrics, self._pool, self._stopping)
        self._feed = BasicLayerFeed(
            store,
            self._metrics,
            self._stopping,
            settings.edge_id,
            max_subscribers=settings.max_subscribers,
            live_backlog=settings.live_backlog_faces,
        )
        self._audit = audit = await asyncio.to_thread(AuditLog, folder / "audit.jsonl")
        grants = GrantBook(store.database, store.clock)
        await grants.load()
        self._layers = LayerStore(store, grants, audit, self._metrics)
        self._control = EdgeControl(store, grants, audit, settings.edge_id, self._stopping)
        self._background.append(asyncio.ensure_future(self._retain(store)))
        if settings.nats:
            outbox = Outbox(store, self._metrics, settings.edge_id, settings.nats_access())
            self._background.append(asyncio.ensure_future(outbox.run()))
        facts = {
            "edge_id": settings.edge_id,
            "model_bundle": codec.model_bundle,
            "provider": codec.provider,
        }
        self._metrics.info.info(
            {
                **facts,
                "retention_seconds": f"{3600 * settings.retention_hours:.0f}",
                "retention_bytes": str(settings.retention_bytes),
            }
        )
        # The head in the log of the machine is one more witness of the audit log.
        log.info("edge is warm", **facts, audit_head=audit.head)

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicers."""
        edge_pb2_grpc.add_EdgeIngestServicer_to_server(self._ingest, server)
        edge_pb2_grpc.add_BasicLayerFeedServicer_to_server(self._feed, server)
        edge_pb2_grpc.add_LayerStoreServicer_to_server(self._layers, server)
        control_pb2_grpc.add_EdgeControlServicer_to_server(self._control, server)

    async def drain(self) -> None:
        """Let streams finish the frames they have in work, then end."""
        self._stopping.set()

    async def close(self) -> None:
        """Stop the workers and close the store."""
        for task in self._background:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.to_thread(self._pool.shutdown)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
        if self._audit is not None:
            self._audit.close()

    async def _retain(self, store: FaceStore) -> None:
        while True:
            await asyncio.sleep(self.settings.retention_check_seconds)
            try:
                await store.evict()
            except Exception:
                log.exception("retention failed")


def run(settings: EdgeSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    keep_little_memory()
    serve(lambda: EdgeService(settings), settings)
