"""BasicLayerFeed: the log of faces for subscribers, with their basic layers and no other; and the
keys of basic layers that subscribers have by way of NATS (`edge_encoder.outbox`).

A subscriber holds one page of the log in memory and no queue: it reads the store, and waits for
news when it has read all. A slow one reads later and costs nothing meanwhile. One that wants what
is live is moved on when it lags too far, and told how many faces it missed; one with a cursor is
never. Pages lately read are kept ready to be sent, so that many subscribers at one place in the log
cost one reading.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc.aio
import structlog

from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import FaceStore, LogEntry
from edge_encoder.waiting import first_set, until_set
from sfic.errors import InvalidInput, LimitExceeded, PacketError, Unavailable
from sfic.sealing import open_layer
from sfic.v1 import edge_pb2, edge_pb2_grpc

__all__ = ["BasicLayerFeed"]

log = structlog.get_logger(__name__)

_PAGE_FACES = 128
_MAX_CAMERAS = 256
_MAX_KEYS = 256
_PAGES_READY = 32

_PageKey: TypeAlias = tuple[int, tuple[str, ...], float, bool, int]


@dataclass(frozen=True)
class _ReadyPage:
    """A page of the log as messages, which several subscribers send and nobody changes."""

    responses: list[edge_pb2.SubscribeResponse]
    batch: edge_pb2.SubscribeResponse
    basic_bytes: int
    next_cursor: int
    more: bool
    evicted_cursor: int
    missed_after: int  # faces behind the last message that could not be read


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
        live_backlog: int,
    ) -> None:
        """`live_backlog`: faces that a live subscriber may lag behind before the oldest of them are
        dropped for it."""
        self._store = store
        self._metrics = metrics
        self._stopping = stopping
        self._edge_id = edge_id
        self._max_subscribers = max_subscribers
        self._live_backlog = live_backlog
        self._subscribers = 0
        # With the event that the next new face sets: a page that ends the log is good until then.
        self._pages: OrderedDict[_PageKey, tuple[asyncio.Event, asyncio.Task[_ReadyPage]]] = (
            OrderedDict()
        )
        # They hold keys: nothing of a face that was dropped stays.
        store.when_dropped(self._pages.clear)

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
            if request.live_only:
                dropped = await self._store.last_cursor() - self._live_backlog - cursor
                if dropped > 0:
                    cursor, missed = cursor + dropped, missed + dropped
                    self._metrics.feed_dropped.inc(dropped)
                    log.info("faces dropped for a slow live subscriber", faces=dropped)
            page = await self._page(request, cursor, log_id, grown)
            if counting and page.evicted_cursor > cursor:
                missed += page.evicted_cursor - cursor
                self._metrics.feed_missed.inc(page.evicted_cursor - cursor)
            counting = True
            for response in _messages(page, batched=request.max_faces > 0):
                if missed:
                    told = edge_pb2.SubscribeResponse()
                    told.CopyFrom(response)
                    told.faces_missed += missed
                    response, missed = told, 0
                yield response
                if self._stopping.is_set():
                    return
            self._metrics.feed_faces.inc(len(page.responses))
            self._metrics.feed_bytes.inc(page.basic_bytes)
            missed += page.missed_after
            cursor = page.next_cursor
            if not page.more:
                await first_set(grown, self._stopping)

    async def _page(
        self, request: edge_pb2.SubscribeRequest, cursor: int, log_id: str, grown: asyncio.Event
    ) -> _ReadyPage:
        """The page behind a cursor, read and made ready once for all who ask for the same."""
        cameras = tuple(dict.fromkeys(request.camera_ids))
        limit = request.max_faces or _PAGE_FACES
        key = cursor, cameras, request.min_face_score, request.sealed, limit
        found = self._pages.get(key)
        if found is not None:
            as_of, task = found
            full = task.done() and not task.exception() and task.result().more
            if as_of is grown or full:
                return await asyncio.shield(task)
        task = asyncio.ensure_future(self._read_page(key, log_id))
        self._pages[key] = grown, task
        self._pages.move_to_end(key)
        while len(self._pages) > _PAGES_READY:
            self._pages.popitem(last=False)
        try:
            return await asyncio.shield(task)
        except Exception:
            self._pages.pop(key, None)
            raise

    async def _read_page(self, key: _PageKey, log_id: str) -> _ReadyPage:
        cursor, cameras, min_face_score, sealed, limit = key
        page = await self._store.page(
            cursor, camera_ids=cameras, min_face_score=min_face_score, limit=limit
        )
        responses: list[edge_pb2.SubscribeResponse] = []
        missed = 0
        for entry in page.entries:
            missed += entry.unreadable_before
            try:
                response = _response(entry, log_id, sealed)
            except PacketError as error:
                missed += 1
                log.error("face left out of the feed", reason=error.message)
                continue
            response.faces_missed, missed = missed, 0
            responses.append(response)
        batch = edge_pb2.SubscribeResponse(cursor=page.next_cursor, log_id=log_id, batch=responses)
        batch.faces_missed = sum(response.faces_missed for response in responses)
        for each in batch.batch:
            each.faces_missed = 0
        return _ReadyPage(
            responses,
            batch,
            sum(len(response.basic) for response in responses),
            page.next_cursor,
            page.more,
            page.evicted_cursor,
            missed + page.unreadable,
        )


def _response(entry: LogEntry, log_id: str, sealed: bool) -> edge_pb2.SubscribeResponse:
    """A face of the log, its layer sealed with its key or opened.

    Raises `PacketError` when its layer is damaged.
    """
    response = edge_pb2.SubscribeResponse(cursor=entry.cursor, face=entry.info, log_id=log_id)
    if sealed:
        response.basic, response.key = entry.sealed, entry.key
    else:
        response.basic = open_layer(entry.key, entry.sealed, entry.info.face_id, "basic")
    return response


def _messages(page: _ReadyPage, *, batched: bool) -> list[edge_pb2.SubscribeResponse]:
    if not batched:
        return page.responses
    return [page.batch] if page.responses else []


def _check(request: edge_pb2.SubscribeRequest) -> None:
    if request.live_only and request.after_cursor:
        raise InvalidInput("after_cursor: must be 0 with live_only", field="after_cursor")
    if len(request.camera_ids) > _MAX_CAMERAS:
        raise InvalidInput(f"camera_ids: at most {_MAX_CAMERAS}", field="camera_ids")
    if request.max_faces > _PAGE_FACES:
        raise InvalidInput(f"max_faces: at most {_PAGE_FACES}", field="max_faces")
    if not 0.0 <= request.min_face_score <= 1.0:
        raise InvalidInput("min_face_score: must be 0..1", field="min_face_score")
