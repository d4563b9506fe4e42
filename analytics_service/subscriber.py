"""Basic layers in: one feed for each edge, one worker that analyses and keeps what they bring.

Belongs here: the order of things between an edge's feed and the committed result. Does not belong
here: the tables, the messages, and who reads the results.

    feed of edge A --\\
    feed of edge B ---+-> bounded queue -> worker: analyse a batch -> keeper: one commit -> announce
    feed of edge C --/

A full queue stops the feeds, and gRPC's flow control then stops the edges. A failed analysis is the
face's own record; a failed commit is tried again until it succeeds, because going on without it
would lose faces. Over NATS the feeds are others, and between worker and keeper is the stream that
all replicas read: `analytics_service.group`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
import grpc.aio
import structlog

from analytics_service.metrics import AnalyticsMetrics
from analytics_service.records import StoredResult, make_result
from analytics_service.store import Committed, FailedFace, ResultStore
from sfic.analysis import Analysis
from sfic.bundles import Codecs
from sfic.errors import ConfigError, InvalidInput, PacketError, SficError, StorageError
from sfic.forgetting import is_meant
from sfic.sealing import open_layer
from sfic.service.client import Backoff, from_rpc_error, open_channel
from sfic.service.clock import SteadyClock
from sfic.service.identity import Identity
from sfic.service.tracing import note_span
from sfic.v1 import common_pb2, control_pb2, edge_pb2, edge_pb2_grpc

__all__ = ["Arrival", "EdgeFeed", "Keep", "Keeper", "Place", "Worker", "opened"]

log = structlog.get_logger(__name__)

_FACES_AT_ONCE = 128


@dataclass(frozen=True)
class Arrival:
    """One face as it came from an edge. `cursor` is the edge's, in its log `log_id`.

    `key` is the one of its sealed basic layer, where what is read goes on to other replicas.
    """

    edge: str
    cursor: int
    face: common_pb2.FaceInfo
    basic: bytes = field(repr=False)
    log_id: str = ""
    received: int = field(default_factory=time.time_ns)
    """Unix nanoseconds."""
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Place:
    """How far an edge was read: up to a cursor, in the log of that name."""

    cursor: int
    log_id: str


Keep: TypeAlias = Callable[
    [Sequence[StoredResult], Sequence[FailedFace], Sequence[Arrival]], Awaitable[set[str]]
]
"""Keeps what was read from a batch; returns the ids of the faces that were new."""


class EdgeFeed:
    """Follows the basic layers of one edge for ever, from the cursor that is kept."""

    def __init__(
        self,
        edge: str,
        cursor: int,
        log_id: str,
        request: edge_pb2.SubscribeRequest,
        queue: asyncio.Queue[Arrival],
        metrics: AnalyticsMetrics,
        longest_wait: float,
        identity: Identity | None = None,
    ) -> None:
        """`request` holds the filters; its cursor is set here. `identity`: as whom we call."""
        self._edge = edge
        self._cursor = cursor
        self._log_id = log_id
        self._request = request
        self._queue = queue
        self._metrics = metrics
        self._backoff = Backoff(longest=longest_wait)
        self._identity = identity

    async def run(self) -> None:
        """Reads, and connects again after every failure, until cancelled."""
        connected = self._metrics.feed_connected.labels(self._edge)
        self._metrics.know(self._edge)
        try:
            while True:
                try:
                    await self._read()
                    reason = "the edge ended the stream"
                except ConfigError as problem:
                    reason = problem.message  # A certificate or token, perhaps being renewed.
                except grpc.RpcError as rpc_error:
                    error = from_rpc_error(rpc_error, f"edge {self._edge}")
                    reason = error.message
                    if error.code == InvalidInput.code and self._cursor:
                        # The edge's log does not reach as far as our cursor: it was replaced.
                        # Read it from its start; faces that are known are not kept twice.
                        log.warning("feed starts over", edge=self._edge, cursor=self._cursor)
                        self._cursor, self._log_id = 0, ""
                finally:
                    connected.set(0)
                wait = self._backoff.next_seconds()
                log.info("feed lost", edge=self._edge, reason=reason, retry_seconds=round(wait, 2))
                await asyncio.sleep(wait)
        finally:
            connected.set(0)

    async def _read(self) -> None:
        async with open_channel(self._edge, identity=self._identity, retry=False) as channel:
            request = edge_pb2.SubscribeRequest()
            request.CopyFrom(self._request)
            request.after_cursor, request.log_id = self._cursor, self._log_id
            request.sealed, request.max_faces = True, _FACES_AT_ONCE
            call = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(request)
            await call.wait_for_connection()
            log.info("feed open", edge=self._edge, after_cursor=self._cursor)
            self._metrics.feed_connected.labels(self._edge).set(1)
            async for response in call:
                self._backoff.reset()
                if response.faces_missed:
                    self._metrics.faces_missed.labels(self._edge).inc(response.faces_missed)
                    log.warning("faces missed", edge=self._edge, faces=response.faces_missed)
                # An edge of the release before batches sends each face in a message of its own.
                for each in response.batch or (response,):
                    basic = opened(each, each.key)
                    await self._queue.put(
                        Arrival(self._edge, each.cursor, each.face, basic, response.log_id)
                    )
                self._cursor, self._log_id = response.cursor, response.log_id


def opened(response: edge_pb2.SubscribeResponse, key: bytes) -> bytes:
    """The basic layer's packet; empty, which no analysis takes, when the key does not open it."""
    if not key:
        return bytes(response.basic)  # An edge of the release before sealed layers.
    try:
        return open_layer(key, response.basic, response.face.face_id, "basic")
    except PacketError as error:
        log.error("sealed layer not opened", reason=error.message)
        return b""


class Keeper:
    """Commits results, but none of faces that are to be forgotten, and makes them known."""

    def __init__(
        self, store: ResultStore, metrics: AnalyticsMetrics, kept: Callable[[Committed], None]
    ) -> None:
        """`kept` is called in the event loop with what each commit made."""
        self._store = store
        self._metrics = metrics
        self._kept = kept
        # An edge sends nothing more of what it has forgotten: only what is under way is looked at,
        # and no more than the queue holds can be.
        self._orders: deque[tuple[str, control_pb2.FollowForgottenResponse]] = deque(maxlen=1000)

    def forget(self, edge: str, order: control_pb2.FollowForgottenResponse) -> None:
        """Keeps nothing of what an order means and an edge had sent before it was given."""
        self._orders.append((edge, order))

    async def keep_batch(
        self,
        results: Sequence[StoredResult],
        failures: Sequence[FailedFace],
        batch: Sequence[Arrival],
    ) -> set[str]:
        """Keeps what the edges sent themselves, and up to where they are read; a `Keep`."""
        # A later face of the same edge comes later in the batch, so the last cursor wins.
        places = {arrival.edge: Place(arrival.cursor, arrival.log_id) for arrival in batch}
        return await self.keep(results, failures, batch, places)

    async def keep(
        self,
        results: Sequence[StoredResult],
        failures: Sequence[FailedFace],
        batch: Sequence[Arrival],
        places: Mapping[str, Place],
    ) -> set[str]:
        """Commits in one transaction, trying until it succeeds; returns ids of faces not known."""
        backoff = Backoff()
        cursors = {edge: place.cursor for edge, place in places.items()}
        logs = {edge: place.log_id for edge, place in places.items()}
        while True:
            # Looked at right before each write: the order's own write comes before it or after it.
            unwanted = {a.face.face_id for a in batch if self._is_forgotten(a)}
            wanted = [result for result in results if result.face_id not in unwanted]
            told = [failure for failure in failures if failure.face_id not in unwanted]
            try:
                made = await self._store.commit(wanted, told, cursors, logs)
                break
            except StorageError as error:
                self._metrics.commit_failures.inc()
                log.error("results not kept, trying again", reason=error.message)
                await asyncio.sleep(backoff.next_seconds())
        self._kept(made)
        return {result.face_id for result in made.results}

    def _is_forgotten(self, arrival: Arrival) -> bool:
        return any(
            edge == arrival.edge
            and arrival.cursor <= order.last_face_cursor
            and is_meant(order, arrival.face)
            for edge, order in self._orders
        )


class Worker:
    """Takes faces from the queue, a batch at a time, and keeps what they say."""

    def __init__(
        self,
        codecs: Codecs,
        executor: Executor,
        keep: Keep,
        queue: asyncio.Queue[Arrival],
        metrics: AnalyticsMetrics,
        batch_faces: int,
        min_trusted_score: float,
        keep_parsing: bool,
        clock: SteadyClock,
    ) -> None:
        """`clock` dates results."""
        self._codecs = codecs
        self._executor = executor
        self._keep_batch = keep
        self._queue = queue
        self._metrics = metrics
        self._batch_faces = batch_faces
        self._min_trusted_score = min_trusted_score
        self._keep_parsing = keep_parsing
        self._clock = clock

    async def run(self) -> None:
        """Works until cancelled. What is in the queue then comes again with the next start."""
        keeping: asyncio.Future[None] | None = None
        try:
            async for batch in self._batches():
                with self._metrics.batch_seconds.time():
                    outcomes = await asyncio.get_running_loop().run_in_executor(
                        self._executor,
                        self._analyse,
                        [(arrival.face.model_bundle, arrival.basic) for arrival in batch],
                    )
                    # One batch is analysed while the one before it is written.
                    if keeping is not None:
                        await keeping
                keeping = asyncio.ensure_future(self._keep(batch, outcomes))
        finally:
            if keeping is not None:
                keeping.cancel()

    async def _batches(self) -> AsyncIterator[list[Arrival]]:
        """What waits, up to the limit, as soon as there is anything: under load batches fill up
        by themselves, and otherwise no face waits for company."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._batch_faces and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            yield batch

    def _analyse(self, faces: Sequence[tuple[str, bytes]]) -> Sequence[Analysis | SficError]:
        try:
            return self._codecs.analyze_batch(faces)
        except Exception as error:
            if len(faces) > 1:
                # One face must not take its neighbours along.
                return [outcome for face in faces for outcome in self._analyse([face])]
            log.exception("analysis failed")
            return [error if isinstance(error, SficError) else SficError(repr(error))]

    async def _keep(
        self, batch: Sequence[Arrival], outcomes: Sequence[Analysis | SficError]
    ) -> None:
        results: list[StoredResult] = []
        failures: list[FailedFace] = []
        now = int(self._clock() * 1e9)
        for arrival, outcome in zip(batch, outcomes, strict=True):
            try:
                if isinstance(outcome, SficError):
                    raise outcome
                made = make_result(
                    arrival.face, outcome, self._min_trusted_score, now, self._keep_parsing
                )
                results.append(made)
            except SficError as error:
                failures.append(
                    FailedFace(
                        face_id=arrival.face.face_id,
                        edge=arrival.edge,
                        code=error.code,
                        message=error.message,
                        happened=now,
                        model_bundle=arrival.face.model_bundle,
                        edge_cursor=arrival.cursor,
                    )
                )
        _log_failures(failures)
        new = await self._keep_batch(results, failures, batch)
        self._count(batch, failures, [result for result in results if result.face_id in new])

    def _count(
        self,
        batch: Sequence[Arrival],
        failures: Sequence[FailedFace],
        new: Sequence[StoredResult],
    ) -> None:
        failed = {failure.face_id: failure.code for failure in failures}
        fresh = {result.face_id: bool(result.embedding) for result in new}
        now = time.time()
        for arrival in batch:
            face_id = arrival.face.face_id
            outcome = failed.get(face_id) or ("OK" if face_id in fresh else "REPEATED")
            self._metrics.faces.labels(arrival.edge, outcome).inc()
            note_span(
                "analytics.face",
                arrival.face.trace_context,
                arrival.received,
                time.time_ns(),
                face_id=face_id,
                camera_id=arrival.face.camera_id,
                outcome=outcome,
            )
            if outcome == "OK":
                if not fresh[face_id]:
                    self._metrics.faces_unknown.labels(arrival.edge).inc()
                lag = max(0.0, now - arrival.face.capture_time.ToNanoseconds() / 1e9)
                self._metrics.lag_seconds.observe(lag)
                self._metrics.newest_lag_seconds.labels(arrival.edge).set(lag)


def _log_failures(failures: Sequence[FailedFace]) -> None:
    """One line for each kind of failure in a batch: an edge with another bundle fails for ever."""
    kinds = Counter((failure.edge, failure.code) for failure in failures)
    for (edge, code), faces in kinds.items():
        example = next(f for f in failures if (f.edge, f.code) == (edge, code))
        log.warning(
            "faces not readable",
            edge=edge,
            code=code,
            faces=faces,
            first_face_id=example.face_id,
            reason=example.message,
        )
