"""A Python client of analytics: results, search, visits and watchlists without gRPC in sight.

    async with AnalyticsClient("127.0.0.1:50052") as client:
        async for result in client.results(camera="door"):
            print(result.captured, result.age)

Belongs here: calls of `sfic.v1.Analytics` and their answers as plain data. Does not belong here:
anything of the service, and files (`sfic.export`). docs/how-to/analytics-client.md shows all of it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from typing_extensions import Self

from sfic.analysis import PARSING_CLASSES, PARSING_SIZE, Estimate
from sfic.errors import InvalidInput, Unavailable
from sfic.face import brightened
from sfic.service.client import Backoff, from_rpc_error, open_channel, sfic_errors
from sfic.service.identity import Identity
from sfic.v1 import analytics_pb2 as pb
from sfic.v1 import analytics_pb2_grpc

__all__ = [
    "Alert",
    "AnalyticsClient",
    "Entry",
    "Example",
    "FaceResult",
    "Hit",
    "Visit",
    "Watchlist",
]

T = TypeVar("T")

_PAGE = 1000  # the most that the service puts on a page


@dataclass(frozen=True)
class FaceResult:
    """What the basic layer says of a face; each estimate with its confidence 0..1.

    An unknown face (`known` is False) is too poor to be read: its estimates are None, `embedding`
    and `landmarks` empty. `embedding`: unit float32 [D], comparable within one `model_bundle`.
    `gender`: presentation, 0 female .. 1 male. `yaw`, `pitch`, `roll`: degrees. `landmarks`:
    float32 [68, 2], parts of the crop. `face_score`: as the edge measured it. `brightened`: what
    the edge multiplied a face in too little light by, 1 for others. `cursor`: place in
    the log of results; 0 for one that a search found.
    """

    cursor: int
    face_id: str
    camera_id: str
    edge_id: str
    captured: datetime
    analysed: datetime
    known: bool
    face_score: float
    brightened: float
    model_bundle: str
    visit_id: str
    embedding: NDArray[np.float32]
    embedding_confidence: float
    age: Estimate | None
    gender: Estimate | None
    smile: Estimate | None
    yaw: Estimate | None
    pitch: Estimate | None
    roll: Estimate | None
    landmarks: NDArray[np.float32]
    landmarks_confidence: float
    expression: str
    """What the face looks like, of `sfic.analysis.EXPRESSIONS`; empty when unknown."""
    expression_confidence: float
    glasses: Estimate | None
    eyes_open: Estimate | None
    mouth_open: Estimate | None
    facial_hair: Estimate | None
    areas: dict[str, float]
    """Part of the crop that each of `sfic.analysis.PARSING_CLASSES` covers; empty when unknown."""
    parsing: NDArray[np.uint8] | None
    """The map itself, uint8 [64, 64]; None unless the service keeps it (`keep_parsing`)."""
    missed: int
    """Results before this one that retention dropped before they were read."""

    @staticmethod
    def of(message: pb.FaceAnalysis, cursor: int = 0, missed: int = 0) -> FaceResult:
        """The result that a message carries."""

        def estimate(name: str) -> Estimate | None:
            if not known or not message.HasField(name):
                return None
            field = getattr(message, name)
            return Estimate(field.value, field.confidence)

        face = message.face
        known = message.status != pb.RESULT_STATUS_UNKNOWN
        return FaceResult(
            cursor=cursor,
            face_id=face.face_id,
            camera_id=face.camera_id,
            edge_id=face.edge_id,
            captured=_datetime(face.capture_time),
            analysed=_datetime(message.analysed_time),
            known=known,
            face_score=face.face_score,
            brightened=brightened(face),
            model_bundle=face.model_bundle,
            visit_id=message.visit_id,
            embedding=np.array(message.embedding, np.float32),
            embedding_confidence=message.embedding_confidence,
            age=estimate("age"),
            gender=estimate("gender"),
            smile=estimate("smile"),
            yaw=estimate("yaw"),
            pitch=estimate("pitch"),
            roll=estimate("roll"),
            landmarks=np.array(message.landmarks, np.float32).reshape(-1, 2),
            landmarks_confidence=message.landmarks_confidence,
            expression=message.expression.name if known else "",
            expression_confidence=message.expression.confidence if known else 0.0,
            glasses=estimate("glasses"),
            eyes_open=estimate("eyes_open"),
            mouth_open=estimate("mouth_open"),
            facial_hair=estimate("facial_hair"),
            areas=dict(zip(PARSING_CLASSES, message.areas, strict=False)),
            parsing=_parsing(message.parsing),
            missed=missed,
        )


Example: TypeAlias = str | bytes | Path | NDArray[np.float32] | FaceResult
"""What to look for: a face id; a picture, as the bytes of its file or its path; a result; or an
embedding float32 [D], which needs the model bundle it came with beside it."""


@dataclass(frozen=True)
class Hit:
    """A face that a search found.

    `similarity`: cosine with the example, 0 without one; `same_person`: the probability that goes
    with it (`sfic.analysis.SamePerson`).
    """

    result: FaceResult
    similarity: float
    same_person: float


@dataclass(frozen=True)
class Visit:
    """One person in front of one camera, from the first face to the last."""

    visit_id: str
    camera_id: str
    first: datetime
    last: datetime
    faces: int
    best_face_id: str
    best_face_score: float


@dataclass(frozen=True)
class Watchlist:
    """Faces to be told of; `threshold`: cosine from which a face is an entry's.

    What it is worth on real pairs: `false_match_rate` of pairs of two people are matches,
    `false_non_match_rate` of pairs of one person are not; None: the bundle was not calibrated.
    """

    watchlist_id: str
    purpose: str
    threshold: float
    camera_ids: tuple[str, ...]
    entries: int
    false_match_rate: float | None
    false_non_match_rate: float | None


@dataclass(frozen=True)
class Entry:
    """A face of a watchlist; `threshold` None: the list's."""

    watchlist_id: str
    entry_id: str
    label: str
    threshold: float | None
    expires: datetime
    outdated: bool


@dataclass(frozen=True)
class Alert:
    """A face of a watchlist was seen; one for an entry and a visit."""

    cursor: int
    watchlist_id: str
    entry_id: str
    label: str
    face_id: str
    camera_id: str
    captured: datetime
    visit_id: str
    similarity: float


class AnalyticsClient:
    """A connection to an analytics service; an async context manager.

    Calls raise errors of `sfic.errors`. Streams outlive the service's restarts: they connect again
    and go on behind the last entry that was read, without a gap and without a repeat.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50052",
        *,
        identity: Identity | None = None,
        longest_wait_seconds: float = 10.0,
    ) -> None:
        """`identity`: who calls, and whether over TLS. `longest_wait_seconds`: between two tries to
        connect again."""
        self._address = address
        self._longest_wait = longest_wait_seconds
        self._channel = open_channel(address, identity=identity)
        self._stub = analytics_pb2_grpc.AnalyticsStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call and closes the connection."""
        await self._channel.close()

    # -- streams

    async def results(
        self,
        *,
        camera: str | Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        min_face_score: float = 0.0,
        after_cursor: int = 0,
        live_only: bool = False,
        follow: bool = True,
    ) -> AsyncIterator[FaceResult]:
        """Results, oldest first: those kept, then live ones, for ever.

        `camera`: one or several; `since` and `until`: capture times, both included, with a time
        zone. Pass the `cursor` of the last result that was dealt with as `after_cursor` to go on
        behind it, also in another process. `live_only`: only what comes from now on. `follow`
        False: end after what is kept now.
        """
        request = pb.SubscribeResultsRequest(
            camera_ids=_names(camera),
            min_face_score=min_face_score,
            after_cursor=after_cursor,
            live_only=live_only,
            kept_only=not follow,
            captured_from=_timestamp(since),
            captured_until=_timestamp(until),
        )
        async for answer in self._follow(self._stub.SubscribeResults, request):
            yield FaceResult.of(answer.analysis, answer.cursor, answer.results_missed)

    async def alerts(
        self,
        *,
        watchlist: str | Iterable[str] = (),
        after_cursor: int = 0,
        live_only: bool = False,
        follow: bool = True,
    ) -> AsyncIterator[Alert]:
        """Alerts, oldest first; arguments as in `results`."""
        request = pb.SubscribeAlertsRequest(
            watchlist_ids=_names(watchlist),
            after_cursor=after_cursor,
            live_only=live_only,
            kept_only=not follow,
        )
        async for answer in self._follow(self._stub.SubscribeAlerts, request):
            alert = answer.alert
            yield Alert(
                cursor=answer.cursor,
                watchlist_id=alert.watchlist_id,
                entry_id=alert.entry_id,
                label=alert.label,
                face_id=alert.face.face_id,
                camera_id=alert.face.camera_id,
                captured=_datetime(alert.face.capture_time),
                visit_id=alert.visit_id,
                similarity=alert.similarity,
            )

    async def _follow(self, method: Callable[..., Any], request: Any) -> AsyncIterator[Any]:
        """The answers of a stream, over as many connections as it takes.

        A lost connection is tried again; a first one that cannot be made is an error.
        """
        backoff, connected = Backoff(longest=self._longest_wait), False
        while True:
            call = method(request)
            try:
                await call.wait_for_connection()
                connected = True
                async for answer in call:
                    backoff.reset()
                    yield answer
                    # Not before the caller came back for more: the entry is dealt with now.
                    request.after_cursor = answer.cursor
                    request.live_only = False
                return
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error, f"analytics at {self._address}")
                if not connected or not isinstance(error, Unavailable):
                    raise error from rpc_error
                await asyncio.sleep(backoff.next_seconds())
            finally:
                call.cancel()

    # -- questions

    async def search(
        self,
        like: Example | None = None,
        *,
        model_bundle: str = "",
        camera: str | Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        age: tuple[float | None, float | None] | None = None,
        gender: tuple[float | None, float | None] | None = None,
        smile: tuple[float | None, float | None] | None = None,
        min_face_score: float = 0.0,
        min_similarity: float | None = None,
        limit: int = 20,
    ) -> list[Hit]:
        """At most `limit` faces, most similar first; without `like` the newest capture first.

        `like`: see `Example`. Ranges are (from, to), None is open. A limit over 1000 is read in
        pages.
        """
        request = pb.SearchFacesRequest(
            camera_ids=_names(camera),
            captured_from=_timestamp(since),
            captured_until=_timestamp(until),
            min_face_score=min_face_score,
            min_similarity=min_similarity,
            **_example(like, model_bundle),
        )
        for name, bounds in (("age", age), ("gender", gender), ("smile", smile)):
            if bounds is not None:
                getattr(request, name).CopyFrom(pb.Range(min=bounds[0], max=bounds[1]))
        return [
            Hit(FaceResult.of(hit.analysis), hit.similarity, hit.same_person)
            async for answer in self._pages(self._stub.SearchFaces, request, limit)
            for hit in answer.hits
        ]

    async def visits(
        self,
        *,
        camera: str | Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        min_faces: int = 1,
        limit: int = 100,
    ) -> list[Visit]:
        """At most `limit` visits that touch the time, latest first."""
        request = pb.ListVisitsRequest(
            camera_ids=_names(camera),
            seen_from=_timestamp(since),
            seen_until=_timestamp(until),
            min_faces=min_faces,
        )
        return [
            Visit(
                visit_id=visit.visit_id,
                camera_id=visit.camera_id,
                first=_datetime(visit.first_time),
                last=_datetime(visit.last_time),
                faces=visit.faces,
                best_face_id=visit.best_face_id,
                best_face_score=visit.best_face_score,
            )
            async for answer in self._pages(self._stub.ListVisits, request, limit)
            for visit in answer.visits
        ]

    async def _pages(self, method: Any, request: Any, limit: int) -> AsyncIterator[Any]:
        left = limit
        while left > 0:
            request.limit = min(left, _PAGE)
            answer = await self._ask(method(request))
            yield answer
            left -= request.limit
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    # -- watchlists

    async def put_watchlist(
        self,
        watchlist_id: str,
        *,
        purpose: str,
        threshold: float,
        camera: str | Iterable[str] = (),
    ) -> Watchlist:
        """Makes a watchlist, or changes one; its entries stay."""
        watchlist = pb.Watchlist(
            watchlist_id=watchlist_id,
            purpose=purpose,
            threshold=threshold,
            camera_ids=_names(camera),
        )
        answer = await self._ask(
            self._stub.PutWatchlist(pb.PutWatchlistRequest(watchlist=watchlist))
        )
        return _watchlist(answer.watchlist)

    async def watchlists(self) -> list[Watchlist]:
        """Every watchlist, by name."""
        answer = await self._ask(self._stub.ListWatchlists(pb.ListWatchlistsRequest()))
        return [_watchlist(watchlist) for watchlist in answer.watchlists]

    async def remove_watchlist(self, watchlist_id: str) -> bool:
        """Removes a list with its entries and alerts; whether there was one."""
        request = pb.RemoveWatchlistRequest(watchlist_id=watchlist_id)
        return bool((await self._ask(self._stub.RemoveWatchlist(request))).removed)

    async def put_entry(
        self,
        watchlist_id: str,
        entry_id: str,
        like: Example,
        *,
        model_bundle: str = "",
        label: str = "",
        threshold: float | None = None,
        expires: datetime | None = None,
    ) -> Entry:
        """Adds a face to a watchlist, or replaces it; `like` as in `search`."""
        request = pb.PutWatchlistEntryRequest(
            entry=pb.WatchlistEntry(
                watchlist_id=watchlist_id,
                entry_id=entry_id,
                label=label,
                threshold=threshold,
                expires_time=_timestamp(expires),
            ),
            **_example(like, model_bundle),
        )
        return _entry((await self._ask(self._stub.PutWatchlistEntry(request))).entry)

    async def entries(self, watchlist_id: str) -> list[Entry]:
        """The entries of a watchlist, oldest first."""
        request = pb.ListWatchlistEntriesRequest(watchlist_id=watchlist_id)
        answer = await self._ask(self._stub.ListWatchlistEntries(request))
        return [_entry(entry) for entry in answer.entries]

    async def remove_entry(self, watchlist_id: str, entry_id: str) -> bool:
        """Removes an entry with its alerts; whether there was one."""
        request = pb.RemoveWatchlistEntryRequest(watchlist_id=watchlist_id, entry_id=entry_id)
        return bool((await self._ask(self._stub.RemoveWatchlistEntry(request))).removed)

    async def _ask(self, call: Awaitable[T]) -> T:
        with sfic_errors(f"analytics at {self._address}"):
            return await call


def _example(like: Example | None, model_bundle: str) -> dict[str, Any]:
    """The field of a request that holds the example."""
    if like is None:
        return {}
    if isinstance(like, str):
        return {"face_id": like}
    if isinstance(like, Path):
        return {"picture": like.read_bytes()}
    if isinstance(like, bytes):
        return {"picture": like}
    if isinstance(like, FaceResult):
        return _example(like.embedding, like.model_bundle)
    if not model_bundle:
        raise InvalidInput("an embedding needs the model_bundle it came with")
    return {"embedding": pb.Embedding(values=np.ravel(like).tolist(), model_bundle=model_bundle)}


def _names(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise InvalidInput(f"{time} has no time zone")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _datetime(stamp: Timestamp) -> datetime:
    """To the microsecond, in UTC."""
    made: datetime = stamp.ToDatetime(tzinfo=timezone.utc)
    return made


def _parsing(packed: bytes) -> NDArray[np.uint8] | None:
    """The map in a result, uint8 [64, 64]; None when there is none."""
    if not packed:
        return None
    flat = np.frombuffer(zlib.decompress(packed), np.uint8)
    return flat.reshape(PARSING_SIZE, PARSING_SIZE)


def _watchlist(message: pb.Watchlist) -> Watchlist:
    def rate(name: str) -> float | None:
        return getattr(message, name) if message.HasField(name) else None

    return Watchlist(
        watchlist_id=message.watchlist_id,
        purpose=message.purpose,
        threshold=message.threshold,
        camera_ids=tuple(message.camera_ids),
        entries=message.entries,
        false_match_rate=rate("false_match_rate"),
        false_non_match_rate=rate("false_non_match_rate"),
    )


def _entry(message: pb.WatchlistEntry) -> Entry:
    return Entry(
        watchlist_id=message.watchlist_id,
        entry_id=message.entry_id,
        label=message.label,
        threshold=message.threshold if message.HasField("threshold") else None,
        expires=_datetime(message.expires_time),
        outdated=message.outdated,
    )
