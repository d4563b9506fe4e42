"""Replicas of analytics as one group, over NATS JetStream (`sfic.service.streams`).

    stream of faces --> one of the replicas: queue, worker --> stream of results
    stream of results --> every replica: keeper

Belongs here: what goes between the streams at the hub and this replica. Does not belong here:
reading a face, and keeping a result.

A face goes to one replica, and its result to all: each keeps them in its own database and answers
for all faces. A replica that dies with a face in work leaves it to another. A face that is read
twice for that has two results in the stream; a replica keeps one, because it knows faces by id, and
its place in the stream is committed with the results.

Faces and results are sealed. Their keys come from the edge alone, over its authenticated port: what
an edge has forgotten stays closed wherever it lies, and faces of an edge that cannot be reached
wait, without holding up those of others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from analytics_service.metrics import AnalyticsMetrics
from analytics_service.records import StoredResult, read_result
from analytics_service.settings import AnalyticsSettings
from analytics_service.store import FailedFace, ResultStore
from analytics_service.subscriber import Arrival, Keeper, Place, opened
from sfic.errors import FaceNotKept, PacketError, SficError, Unavailable
from sfic.sealing import open_result, seal_result
from sfic.service.client import Backoff, from_rpc_error, open_channel
from sfic.service.nats import connected, nats_errors
from sfic.service.streams import (
    FACES,
    ID_HEADER,
    READERS,
    RESULTS,
    edge_token,
    faces_of_edge,
    results_of_edge,
    stream_info,
)
from sfic.v1 import analytics_pb2, edge_pb2, edge_pb2_grpc

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

__all__ = ["Group"]

log = structlog.get_logger(__name__)

# Faces of one edge that all replicas together have taken and not answered for.
_UNANSWERED_FACES = 2048
_FETCH_MESSAGES = 64
_FETCH_SECONDS = 5.0
_PUBLISH_SECONDS = 10.0
# A replica that is away longer starts again behind what it has kept.
_READER_IDLE_SECONDS = 60.0


class Group:
    """This replica's part in the group."""

    def __init__(
        self,
        settings: AnalyticsSettings,
        wanted: edge_pb2.SubscribeRequest,
        store: ResultStore,
        keeper: Keeper,
        queue: asyncio.Queue[Arrival],
        metrics: AnalyticsMetrics,
    ) -> None:
        """`wanted` holds the filters, the same for all replicas."""
        self._settings = settings
        self._access = settings.nats_access()
        self._wanted = wanted
        self._store = store
        self._keeper = keeper
        self._queue = queue
        self._metrics = metrics
        self._jetstream: JetStreamContext
        # Names of the edges by their addresses, once they have said them.
        self._edge_ids: dict[str, str] = {}
        self._unanswered: dict[str, Msg] = {}

    async def run(self) -> None:
        """Reads all edges' faces and results until cancelled."""
        backoff = Backoff(longest=self._settings.reconnect_seconds)
        while True:
            try:
                await self._follow_edges(backoff)
            except SficError as error:
                wait = backoff.next_seconds()
                log.warning("no NATS", reason=error.message, retry_seconds=round(wait, 2))
                await asyncio.sleep(wait)

    async def publish(
        self,
        results: Sequence[StoredResult],
        failures: Sequence[FailedFace],
        batch: Sequence[Arrival],
    ) -> set[str]:
        """Gives results to all replicas, trying until it succeeds; a `Keep`."""
        outcomes = [*map(_shared_result, results), *_shared_failures(failures, batch)]
        arrivals = {arrival.face.face_id: arrival for arrival in batch}
        backoff = Backoff()
        while True:
            try:
                with nats_errors(self._access):
                    new = await self._publish(outcomes, arrivals)
                    for face_id in arrivals:
                        if (message := self._unanswered.pop(face_id, None)) is not None:
                            await message.ack()
                return new
            except Unavailable as error:
                log.error("results not published, trying again", reason=error.message)
                await asyncio.sleep(backoff.next_seconds())

    async def _publish(
        self,
        outcomes: Sequence[tuple[str, analytics_pb2.SharedResult]],
        arrivals: Mapping[str, Arrival],
    ) -> set[str]:
        """Ids of the faces that the stream had no result of, as far back as it looks."""
        sent = []
        for face_id, outcome in outcomes:
            arrival = arrivals[face_id]
            outcome.edge_cursor = arrival.cursor
            sent.append(
                await self._jetstream.publish_async(
                    results_of_edge(self._edge_ids[arrival.edge]),
                    seal_result(arrival.key, outcome.SerializeToString(), face_id),
                    stream=RESULTS,
                    headers={ID_HEADER: face_id},
                )
            )
        answers = await asyncio.wait_for(asyncio.gather(*sent), _PUBLISH_SECONDS)
        return {
            face_id
            for (face_id, _), answer in zip(outcomes, answers, strict=True)
            if not answer.duplicate
        }

    async def _follow_edges(self, backoff: Backoff) -> None:
        async with connected(self._access, self._settings.service) as (connection, lost):
            self._jetstream = connection.jetstream()

            async def until_lost() -> None:
                await lost.wait()
                raise Unavailable(f"the connection to {self._access.server} was lost")

            backoff.reset()
            try:
                follow = (self._follow(edge) for edge in self._settings.edges)
                await _all_of(until_lost(), *follow)
            finally:
                # What we leave unread goes to another replica now, not after a time.
                with contextlib.suppress(Exception):
                    for message in self._unanswered.values():
                        await message.nak()
                    await connection.flush(2)
                self._unanswered.clear()

    async def _follow(self, edge: str) -> None:
        """Reads one edge's, and starts again after every failure."""
        connected_metric = self._metrics.feed_connected.labels(edge)
        self._metrics.know(edge)
        backoff = Backoff(longest=self._settings.reconnect_seconds)
        while True:
            try:
                await self._read(edge, backoff)
            except grpc.RpcError as rpc_error:
                reason = from_rpc_error(rpc_error, f"edge {edge}").message
            except SficError as error:
                reason = error.message
            finally:
                connected_metric.set(0)
            wait = backoff.next_seconds()
            log.info("feed lost", edge=edge, reason=reason, retry_seconds=round(wait, 2))
            await asyncio.sleep(wait)

    async def _read(self, edge: str, backoff: Backoff) -> None:
        identity = self._settings.edge_identity()
        async with open_channel(edge, identity=identity, retry=False) as channel:
            keys = _BasicKeys(edge_pb2_grpc.BasicLayerFeedStub(channel))
            edge_id = await keys.edge_id()
            self._edge_ids[edge] = edge_id
            with nats_errors(self._access):
                faces = await self._open_faces(edge_id)
                results = await self._open_results(edge, edge_id)
                log.info("feed open", edge=edge, edge_id=edge_id, over=self._access.server)
                self._metrics.feed_connected.labels(edge).set(1)
                backoff.reset()
                await _all_of(
                    self._read_faces(edge, keys, faces),
                    self._read_results(edge, keys, *results),
                    keys.until_lost(),
                )

    # -- faces, each to one replica

    async def _open_faces(self, edge_id: str) -> Any:
        from nats.js.api import ConsumerConfig

        await stream_info(self._jetstream, FACES)
        name = f"{READERS}-{edge_token(edge_id)}"
        await self._jetstream.add_consumer(
            FACES,
            ConsumerConfig(
                durable_name=name,
                filter_subject=faces_of_edge(edge_id),
                ack_wait=self._settings.nats_ack_seconds,
                max_ack_pending=_UNANSWERED_FACES,
            ),
        )
        return await self._jetstream.pull_subscribe_bind(name, FACES)

    async def _read_faces(self, edge: str, keys: _BasicKeys, faces: Any) -> None:
        while True:
            messages = await _fetch(faces)
            try:
                arrivals = await self._open(edge, keys, messages)
            except (grpc.RpcError, Unavailable):
                for message in messages:
                    await message.nak()
                raise
            for arrival, message in arrivals:
                self._unanswered[arrival.face.face_id] = message
                await self._queue.put(arrival)

    async def _open(
        self, edge: str, keys: _BasicKeys, messages: Sequence[Msg]
    ) -> list[tuple[Arrival, Msg]]:
        """Faces that can be read; the others are answered for."""
        sent: list[tuple[edge_pb2.SubscribeResponse, Msg]] = []
        for message in messages:
            try:
                sent.append((edge_pb2.SubscribeResponse.FromString(message.data), message))
            except DecodeError:
                log.error("not a face in the stream", edge=edge, subject=message.subject)
                await message.term()
        found = await keys.find([response.face.face_id for response, _ in sent])
        arrivals = []
        for response, message in sent:
            if response.faces_missed:
                self._metrics.faces_missed.labels(edge).inc(response.faces_missed)
                log.warning("faces missed", edge=edge, faces=response.faces_missed)
            face = response.face
            key = found.get(face.face_id)
            if key is None:
                self._metrics.faces.labels(edge, FaceNotKept.code).inc()
            elif face.face_score >= self._wanted.min_face_score and (
                not self._wanted.camera_ids or face.camera_id in self._wanted.camera_ids
            ):
                basic = opened(response, key)
                arrival = Arrival(edge, response.cursor, face, basic, response.log_id, key=key)
                arrivals.append((arrival, message))
                continue
            await message.ack()
        return arrivals

    # -- results, each to every replica

    async def _open_results(self, edge: str, edge_id: str) -> tuple[Any, str]:
        """What reads on behind the results that are kept, and the name of the stream's log."""
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        info = await stream_info(self._jetstream, RESULTS)
        assert info.created is not None
        log_id = f"nats:{info.created.isoformat()}"
        known = await self._store.edge_log(edge) == log_id
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=1 + (await self._store.edge_cursor(edge) if known else 0),
            ack_policy=AckPolicy.NONE,
            inactive_threshold=_READER_IDLE_SECONDS,
            mem_storage=True,
        )
        subject = results_of_edge(edge_id)
        return await self._jetstream.pull_subscribe(subject, stream=RESULTS, config=config), log_id

    async def _read_results(
        self, edge: str, keys: _BasicKeys, subscription: Any, log_id: str
    ) -> None:
        delivered = 0
        while True:
            messages = await _fetch(subscription)
            for message in messages:
                delivered += 1
                if message.metadata.sequence.consumer != delivered:
                    raise Unavailable("results were lost on their way; reading them again")
            face_ids = [(message.headers or {}).get(ID_HEADER, "") for message in messages]
            found = await keys.find(face_ids)
            results: list[StoredResult] = []
            failures: list[FailedFace] = []
            arrivals: list[Arrival] = []
            for face_id, message in zip(face_ids, messages, strict=True):
                if (key := found.get(face_id)) is None:
                    self._metrics.faces.labels(edge, FaceNotKept.code).inc()
                    continue
                try:
                    shared = analytics_pb2.SharedResult.FromString(
                        open_result(key, message.data, face_id)
                    )
                except (PacketError, DecodeError) as error:
                    log.error("sealed result not opened", edge=edge, reason=str(error))
                    continue
                if shared.HasField("failure"):
                    face = shared.failure.face
                    failures.append(_failed_face(edge, shared.failure))
                else:
                    face = shared.analysis.face
                    results.append(read_result(shared.analysis))
                arrivals.append(Arrival(edge, shared.edge_cursor, face, b""))
            place = Place(messages[-1].metadata.sequence.stream, log_id)
            await self._keeper.keep(results, failures, arrivals, {edge: place})


class _BasicKeys:
    """Keys of an edge's basic layers, asked for in one call."""

    def __init__(self, stub: edge_pb2_grpc.BasicLayerFeedStub) -> None:
        self._call = stub.FetchBasicKeys()
        self._asking = asyncio.Lock()

    async def edge_id(self) -> str:
        """The name of the edge that answers."""
        return str((await self._ask([])).edge_id)

    async def find(self, face_ids: Sequence[str]) -> dict[str, bytes]:
        """The keys that the edge has still, by face id."""
        answer = await self._ask(face_ids)
        return {face_id: key for face_id, key in zip(face_ids, answer.keys, strict=True) if key}

    async def until_lost(self) -> None:
        """Raises `Unavailable` when the edge ends the call or is gone, also while nobody asks."""
        await self._call.code()
        raise Unavailable(await self._call.details() or "the edge ended the stream")

    async def _ask(self, face_ids: Sequence[str]) -> edge_pb2.FetchBasicKeysResponse:
        async with self._asking:
            try:
                await self._call.write(edge_pb2.FetchBasicKeysRequest(face_ids=face_ids))
            except asyncio.InvalidStateError as error:
                raise Unavailable("the edge ended the stream") from error
            answer: edge_pb2.FetchBasicKeysResponse = await self._call.read()
        if answer is grpc.aio.EOF:
            raise Unavailable("the edge ended the stream")
        return answer


async def _fetch(subscription: Any) -> list[Msg]:
    """The next messages, at least one. Raises errors of NATS, also when the consumer is gone."""
    while True:
        with contextlib.suppress(asyncio.TimeoutError):
            messages: list[Msg] = await subscription.fetch(_FETCH_MESSAGES, _FETCH_SECONDS)
            if messages:
                return messages
        # A server that was started again says nothing of a consumer that it does not know.
        await subscription.consumer_info()


async def _all_of(*work: Any) -> None:
    """Runs all until one fails, and ends the others then."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _shared_result(result: StoredResult) -> tuple[str, analytics_pb2.SharedResult]:
    return result.face_id, analytics_pb2.SharedResult(analysis=result.message())


def _shared_failures(
    failures: Sequence[FailedFace], batch: Sequence[Arrival]
) -> list[tuple[str, analytics_pb2.SharedResult]]:
    faces = {arrival.face.face_id: arrival.face for arrival in batch}
    made = []
    for failed in failures:
        failure = analytics_pb2.FaceFailure(
            face=faces[failed.face_id], code=failed.code, message=failed.message
        )
        failure.happened_time.FromNanoseconds(failed.happened)
        made.append((failed.face_id, analytics_pb2.SharedResult(failure=failure)))
    return made


def _failed_face(edge: str, failure: analytics_pb2.FaceFailure) -> FailedFace:
    happened = failure.happened_time.ToNanoseconds()
    # Without a place in the edge's log: a stream is not read again, as a feed is.
    face = failure.face
    return FailedFace(
        face.face_id, edge, failure.code, failure.message, happened, face.model_bundle, 0
    )
