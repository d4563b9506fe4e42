"""The live stream: results of analytics as server-sent events, for one page.

    analytics --SubscribeResults--> bounded queue --> events --> browser

Belongs here: batching, lag, and what happens when analytics is away. A slow browser fills the
queue, gRPC's flow control then holds analytics back, and the page is told how far it is behind:
nothing is dropped here. What retention dropped before it could be sent is told as `missed`.

Events: `ready` (the stream stands; `resumed` says whether from the browser's cursor), `faces` (a
batch, its id the cursor to resume after), `pulse` (nothing new), `away` (analytics cannot be
reached, or refuses).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio

from console.messages import face_json
from console.peers import Caller, Peers
from sfic.errors import InvalidInput, SficError
from sfic.service.client import Backoff, from_rpc_error
from sfic.v1 import analytics_pb2

__all__ = ["follow"]

_QUEUE_RESULTS = 1024
_BATCH_RESULTS = 128
_BATCH_SECONDS = 0.1
_PULSE_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 5.0

Response = analytics_pb2.SubscribeResultsResponse


@dataclass(frozen=True)
class _Opened:
    resumed: bool


async def follow(
    peers: Peers, caller: Caller, cursor: int, stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    """Events for ever, from behind `cursor`, or live when it is 0; ends when `stopping` is set."""
    queue: asyncio.Queue[Response | _Opened | SficError] = asyncio.Queue(_QUEUE_RESULTS)
    reading = asyncio.ensure_future(_read_for_ever(peers, caller, cursor, queue))
    try:
        yield b"retry: 1000\n\n"
        while not stopping.is_set():
            batch = await _next_batch(queue, stopping)
            if not batch:
                yield _event("pulse", {"now": _now()})
            for event in _events(batch):
                yield event
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


async def _read_for_ever(
    peers: Peers,
    caller: Caller,
    cursor: int,
    queue: asyncio.Queue[Response | _Opened | SficError],
) -> None:
    backoff = Backoff(longest=_LONGEST_WAIT_SECONDS)
    while True:
        asked = analytics_pb2.SubscribeResultsRequest(after_cursor=cursor, live_only=not cursor)
        call = peers.analytics.SubscribeResults(asked, metadata=caller.metadata)
        try:
            await call.wait_for_connection()
            await queue.put(_Opened(bool(cursor)))
            async for response in call:
                backoff.reset()
                cursor = response.cursor
                await queue.put(response)
            error = SficError("analytics ended the stream")
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error, "analytics")
            if isinstance(error, InvalidInput):
                # The cursor is of results that are gone altogether: the page starts anew.
                cursor = 0
        finally:
            call.cancel()
        await queue.put(error)
        await asyncio.sleep(backoff.next_seconds())


async def _next_batch(
    queue: asyncio.Queue[Response | _Opened | SficError], stopping: asyncio.Event
) -> list[Response | _Opened | SficError]:
    """What has come by now, after a wait for the first; empty when nothing came for a while."""
    first = asyncio.ensure_future(queue.get())
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait(
            (first, stopped), timeout=_PULSE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if not first.done():
            return []
    finally:
        stopped.cancel()
        if not first.done():
            first.cancel()
    if queue.empty():
        # Company is on its way when a frame has several faces.
        await asyncio.sleep(_BATCH_SECONDS)
    batch = [first.result()]
    while len(batch) < _BATCH_RESULTS and not queue.empty():
        batch.append(queue.get_nowait())
    return batch


def _events(batch: list[Response | _Opened | SficError]) -> list[bytes]:
    events: list[bytes] = []
    results: list[Response] = []

    def flush() -> None:
        if results:
            newest = results[-1]
            lag = _now() - int(newest.analysis.analysed_time.ToMilliseconds())
            content = {
                "faces": [face_json(result.analysis) for result in results],
                "missed": sum(result.results_missed for result in results),
                "lag_ms": max(0, lag),
                "now": _now(),
            }
            events.append(_event("faces", content, identifier=newest.cursor))
            results.clear()

    for item in batch:
        if isinstance(item, Response):
            results.append(item)
            continue
        flush()
        if isinstance(item, _Opened):
            events.append(_event("ready", {"resumed": item.resumed, "now": _now()}))
        else:
            events.append(_event("away", {"code": item.code, "message": item.message}))
    flush()
    return events


def _now() -> int:
    return time.time_ns() // 1_000_000


def _event(name: str, content: Any, identifier: int | None = None) -> bytes:
    """One event in the format of the HTML standard, section 9.2.5."""
    head = f"id: {identifier}\n" if identifier is not None else ""
    return f"{head}event: {name}\ndata: {json.dumps(content)}\n\n".encode()
