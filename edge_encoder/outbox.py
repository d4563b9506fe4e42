"""The outbox: the log of faces to the NATS JetStream of the site, each face once and in order.

Belongs here: publishing. Does not belong here: the log, which is the store's and stays the one
truth, and how the hub and analytics go on (`sfic.service.streams`).

Where the outbox is in the log is not kept at the edge: the last message of this edge in the stream
says it. So there is nothing that could disagree after a crash, however long it lasted, and an edge
whose log was replaced starts over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError

from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import FaceStore, Page
from edge_encoder.waiting import first_set
from sfic.errors import SficError
from sfic.service.client import Backoff
from sfic.service.nats import NatsAccess, connected, nats_errors
from sfic.service.streams import FACES, ID_HEADER, edge_token, stream_info
from sfic.v1 import edge_pb2

if TYPE_CHECKING:
    from nats.js import JetStreamContext

__all__ = ["Outbox"]

log = structlog.get_logger(__name__)

_PAGE_FACES = 128


class Outbox:
    """Publishes the sealed basic layers of a store, for ever."""

    def __init__(
        self, store: FaceStore, metrics: EdgeMetrics, edge_id: str, access: NatsAccess
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._edge_id = edge_id
        self._access = access
        # Up to where the stream is known to have the log.
        self._cursor = 0
        # Faces that retention dropped since the last one published.
        self._missed = 0

    async def run(self) -> None:
        """Publishes, and connects again after every failure, until cancelled."""
        backoff = Backoff()
        try:
            while True:
                try:
                    await self._publish(backoff)
                    reason = "the connection was lost"
                except SficError as error:
                    reason = error.message
                finally:
                    self._metrics.outbox_connected.set(0)
                await self._show_waiting()
                wait = backoff.next_seconds()
                log.info("outbox stopped", reason=reason, retry_seconds=round(wait, 2))
                await asyncio.sleep(wait)
        finally:
            self._metrics.outbox_connected.set(0)

    async def _publish(self, backoff: Backoff) -> None:
        """Publishes until the connection ends.

        One face after another: one that is refused must not be passed by the next, because the
        last one in the stream stands for all before it.
        """
        async with connected(self._access, self._edge_id) as (connection, lost):
            jetstream = connection.jetstream()
            log_id = await self._store.log_id()
            with nats_errors(self._access):
                info = await stream_info(jetstream, FACES)
                # sfic.faces.SITE.*
                subject = (info.config.subjects or [""])[0].replace("*", edge_token(self._edge_id))
                self._cursor = await _last_cursor(jetstream, subject, log_id)
            log.info("outbox open", server=self._access.server, after_cursor=self._cursor)
            self._metrics.outbox_connected.set(1)
            while not lost.is_set():
                grown = self._store.grown()
                page = await self._store.page(self._cursor, limit=_PAGE_FACES)
                await self._publish_page(jetstream, subject, page, log_id)
                backoff.reset()
                await self._show_waiting()
                if not page.more:
                    await first_set(grown, lost)

    async def _publish_page(
        self, jetstream: JetStreamContext, subject: str, page: Page, log_id: str
    ) -> None:
        if 0 < self._cursor < page.evicted_cursor:
            missed = page.evicted_cursor - self._cursor
            self._missed += missed
            self._metrics.feed_missed.inc(missed)
            log.warning("faces dropped by retention before they were published", faces=missed)
        for entry in page.entries:
            message = edge_pb2.SubscribeResponse(
                cursor=entry.cursor,
                face=entry.info,
                basic=entry.sealed,
                faces_missed=self._missed,
                log_id=log_id,
            )
            with nats_errors(self._access):
                await jetstream.publish(
                    subject,
                    message.SerializeToString(),
                    stream=FACES,
                    headers={ID_HEADER: entry.info.face_id},
                )
            self._missed, self._cursor = 0, entry.cursor
            self._metrics.outbox_faces.inc()
        self._cursor = page.next_cursor

    async def _show_waiting(self) -> None:
        last = await self._store.last_cursor()
        self._metrics.outbox_waiting.set(max(0, last - self._cursor))


async def _last_cursor(jetstream: JetStreamContext, subject: str, log_id: str) -> int:
    """Cursor of the last face of this log in the stream; 0: none."""
    from nats.js.errors import NotFoundError

    try:
        last = await jetstream.get_last_msg(FACES, subject)
        message = edge_pb2.SubscribeResponse.FromString(last.data or b"")
    except (NotFoundError, DecodeError):
        return 0
    return int(message.cursor) if message.log_id == log_id else 0
