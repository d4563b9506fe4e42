"""BasicLayerFeed: the log of faces for subscribers, with their basic layers and no other; and the
keys of basic layers that subscribers have by way of NATS (`edge_encoder.outbox`).

A subscriber holds one page of the log in memory and no queue: it reads the store, and waits for
news when it has read all. A slow one reads later and costs nothing meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import FaceStore
from edge_encoder.waiting import first_set, until_set
from sfic.errors import InvalidInput, LimitExceeded, Unavailable
from sfic.sealing import open_layer
from sfic.v1 import edge_pb2, edge_pb2_grpc

__all__ = ["BasicLayerFeed"]

_PAGE_FACES = 128
_MAX_CAMERAS = 256
_MAX_KEYS = 256


class BasicLayerFeed(edge_pb2_grpc.BasicLayerFeedServicer):
    """Serves `sfic.v1.BasicLayerFeed` from a store until `stopping` is set."""

    def __init__(
        self,
        store: FaceStore,
        metrics: EdgeMetrics,
        stopping: asyncio.Event,
        edge_id: str,
        *,
        max_subscribers: int,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._stopping = stopping
        self._edge_id = edge_id
        self._max_subscribers = max_subscribers
        self._subscribers = 0

    async def Subscribe(
        self,
        request: edge_pb2.SubscribeRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[edge_pb2.SubscribeResponse]:
        """Stream the log from a cursor, then live, each face once and in order.

        The headers of the answer are sent when the place in the log is fixed: a face stored after
        they have arrived will be streamed.
        """
        _check(request)
        if self._subscribers >= self._max_subscribers:
            raise LimitExceeded(
                f"the edge has its {self._max_subscribers} subscribers already",
                limit=str(self._max_subscribers),
            )
        self._subscribers += 1
        self._metrics.subscribers.set(self._subscribers)
        try:
            log_id = await self._store.log_id()
            cursor = await self._start(request, log_id)
            await context.send_initial_metadata(())
            async for response in self._follow(request, cursor, log_id):
                yield response
        finally:
            self._subscribers -= 1
            self._metrics.subscribers.set(self._subscribers)
        raise Unavailable("the edge is shutting down")

    async def FetchBasicKeys(
        self,
        requests: AsyncIterator[edge_pb2.FetchBasicKeysRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[edge_pb2.FetchBasicKeysResponse]:
        """Answer each request with the keys that are kept."""
        await context.send_initial_metadata(())
        async for request in until_set(self._stopping, requests):
            if len(request.face_ids) > _MAX_KEYS:
                raise InvalidInput(f"face_ids: at most {_MAX_KEYS}", field="face_ids")
            found = await self._store.keys(request.face_ids, ["basic"])
            yield edge_pb2.FetchBasicKeysResponse(
                keys=[found.get((face_id, "basic"), b"") for face_id in request.face_ids],
                edge_id=self._edge_id,
            )
        if self._stopping.is_set():
            raise Unavailable("the edge is shutting down")

    async def _start(self, request: edge_pb2.SubscribeRequest, log_id: str) -> int:
        if request.log_id not in ("", log_id):
            raise InvalidInput(
                f"log_id: {request.log_id[:64]} is another log than this edge's, {log_id}",
                field="log_id",
            )
        last = await self._store.last_cursor()
        if request.live_only:
            return last
        if request.after_cursor > last:
            raise InvalidInput(
                f"after_cursor: {request.after_cursor} is past the end of this edge's log, {last}; "
                "it is the cursor of another log",
                field="after_cursor",
            )
        return request.after_cursor

    async def _follow(
        self, request: edge_pb2.SubscribeRequest, cursor: int, log_id: str
    ) -> AsyncIterator[edge_pb2.SubscribeResponse]:
        # A subscriber who has no place in the log yet cannot have missed anything before it.
        missed, counting = 0, request.live_only or cursor > 0
        while not self._stopping.is_set():
            grown = self._store.grown()
            page = await self._store.page(
                cursor,
                camera_ids=list(dict.fromkeys(request.camera_ids)),
                min_face_score=request.min_face_score,
                limit=_PAGE_FACES,
            )
            if counting and page.evicted_cursor > cursor:
                missed += page.evicted_cursor - cursor
                self._metrics.feed_missed.inc(page.evicted_cursor - cursor)
            counting = True
            for entry in page.entries:
                response = edge_pb2.SubscribeResponse(
                    cursor=entry.cursor, face=entry.info, faces_missed=missed, log_id=log_id
                )
                if request.sealed:
                    response.basic, response.key = entry.sealed, entry.key
                else:
                    response.basic = open_layer(
                        entry.key, entry.sealed, entry.info.face_id, "basic"
                    )
                yield response
                missed = 0
                self._metrics.feed_faces.inc()
                self._metrics.feed_bytes.inc(len(response.basic))
                if self._stopping.is_set():
                    return
            cursor = page.next_cursor
            if not page.more:
                await first_set(grown, self._stopping)


def _check(request: edge_pb2.SubscribeRequest) -> None:
    if request.live_only and request.after_cursor:
        raise InvalidInput("after_cursor: must be 0 with live_only", field="after_cursor")
    if len(request.camera_ids) > _MAX_CAMERAS:
        raise InvalidInput(f"camera_ids: at most {_MAX_CAMERAS}", field="camera_ids")
    if not 0.0 <= request.min_face_score <= 1.0:
        raise InvalidInput("min_face_score: must be 0..1", field="min_face_score")
