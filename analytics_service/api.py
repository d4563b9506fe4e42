"""The gRPC methods of analytics: requests in, answers out.

Belongs here: which parts answer which method. Does not belong here: the reading of requests
(`analytics_service.requests`) and what the parts do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any, TypeAlias

import grpc.aio
import structlog

from analytics_service.examples import ExampleReader
from analytics_service.metrics import AnalyticsMetrics
from analytics_service.requests import (
    check_name,
    check_text,
    check_unit,
    filters_of,
    future_time,
    make_token,
    page_limit,
    read_token,
    times_of,
    watchlist_of,
)
from analytics_service.search import FaceIndex, Match, Place
from analytics_service.store import ResultStore, VisitQuery
from analytics_service.streams import Announcer, follow, start_of
from analytics_service.visits import Visit
from analytics_service.watchlists import Entry, Watchlist, WatchlistStore
from sfic.analysis import SamePerson
from sfic.errors import InvalidInput
from sfic.v1 import analytics_pb2 as pb
from sfic.v1 import analytics_pb2_grpc

__all__ = ["AnalyticsApi"]

log = structlog.get_logger(__name__)

SEARCH_LIMIT = 20
VISIT_LIMIT = 100

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class AnalyticsApi(analytics_pb2_grpc.AnalyticsServicer):
    """Answers `sfic.v1.Analytics`; each method's contract is in `analytics.proto`."""

    def __init__(
        self,
        model_bundle: str,
        same_person: SamePerson | None,
        store: ResultStore,
        index: FaceIndex,
        watchlists: WatchlistStore,
        examples: ExampleReader,
        results: Announcer,
        alerts: Announcer,
        metrics: AnalyticsMetrics,
        searching: Executor,
        live_backlog: int,
    ) -> None:
        """`live_backlog`: results that a live subscriber may lag behind."""
        self._model_bundle = model_bundle
        self._same_person = same_person
        self._store = store
        self._index = index
        self._watchlists = watchlists
        self._examples = examples
        self._results = results
        self._alerts = alerts
        self._metrics = metrics
        self._searching = searching
        self._live_backlog = live_backlog

    # -- results

    async def SubscribeResults(  # noqa: N802
        self, request: pb.SubscribeResultsRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeResultsResponse]:
        """Stream results.

        The headers of the answer are sent when the start is fixed: what is kept after they have
        arrived will be streamed.
        """
        check_unit("min_face_score", request.min_face_score)
        first, last = times_of(request, "captured_from", "captured_until")
        start = start_of(request, self._results.newest)
        cameras = frozenset(request.camera_ids)
        await context.send_initial_metadata(())
        missed = 0
        with self._metrics.subscribers.track_inprogress():
            results = follow(self._results, start, self._store.page, self._live_backlog)
            async for result, dropped in results:
                missed += dropped
                if (
                    (cameras and result.camera_id not in cameras)
                    or result.face_score < request.min_face_score
                    or (first is not None and result.captured < first)
                    or (last is not None and result.captured > last)
                ):
                    continue
                yield pb.SubscribeResultsResponse(
                    cursor=result.cursor, analysis=result.message(), results_missed=missed
                )
                missed = 0

    # -- search

    async def SearchFaces(  # noqa: N802
        self, request: pb.SearchFacesRequest, context: Context
    ) -> pb.SearchFacesResponse:
        """Find faces."""
        filters, limit = filters_of(request), page_limit(request.limit, SEARCH_LIMIT)
        min_similarity = -1.0
        if request.HasField("min_similarity"):
            min_similarity = request.min_similarity
            if request.WhichOneof("like") is None:
                raise InvalidInput("min_similarity needs an example")
            if not -1.0 <= min_similarity <= 1.0:
                raise InvalidInput(f"min_similarity {min_similarity}: must be -1..1")
        newest, after = self._results.newest, None
        if request.page_token:
            rank, cursor, newest = read_token(request, ((float, int), int, int))
            after = Place(rank, cursor)
        filters = filters.up_to(newest)
        with self._metrics.search_seconds.time():
            example = await self._examples.read(request)
            matches: list[Match] = await asyncio.get_running_loop().run_in_executor(
                self._searching,
                self._index.search,
                filters,
                # One more, to know whether there is a next page.
                limit + 1,
                None if example is None else example.embedding,
                min_similarity,
                after,
            )
            more, matches = len(matches) > limit, matches[:limit]
            found = await self._store.by_cursors([match.cursor for match in matches])
        response = pb.SearchFacesResponse(
            hits=[
                pb.SearchFacesResponse.Hit(
                    analysis=found[match.cursor].message(),
                    similarity=match.similarity,
                    same_person=(
                        0.0
                        if example is None or self._same_person is None
                        else self._same_person.probability(match.similarity)
                    ),
                )
                for match in matches
                if match.cursor in found
            ]
        )
        if more:
            last = matches[-1]
            rank = last.captured if example is None else last.similarity
            response.next_page_token = make_token(request, (rank, last.cursor, newest))
        return response

    # -- visits

    async def ListVisits(  # noqa: N802
        self, request: pb.ListVisitsRequest, context: Context
    ) -> pb.ListVisitsResponse:
        """List visits."""
        limit = page_limit(request.limit, VISIT_LIMIT)
        seen_from, seen_until = times_of(request, "seen_from", "seen_until")
        after: tuple[int, str] | None = None
        if request.page_token:
            first, visit_id = read_token(request, (int, str))
            after = (first, visit_id)
        visits = await self._store.visits(
            VisitQuery(
                camera_ids=tuple(request.camera_ids),
                seen_from=seen_from,
                seen_until=seen_until,
                min_faces=max(1, request.min_faces),
                after=after,
                limit=limit + 1,
            )
        )
        response = pb.ListVisitsResponse(visits=map(_visit_message, visits[:limit]))
        if len(visits) > limit:
            last = visits[limit - 1]
            response.next_page_token = make_token(request, (last.first, last.visit_id))
        return response

    # -- watchlists

    async def PutWatchlist(  # noqa: N802
        self, request: pb.PutWatchlistRequest, context: Context
    ) -> pb.PutWatchlistResponse:
        """Make or change a watchlist."""
        kept = await self._watchlists.put(watchlist_of(request.watchlist))
        log.info("watchlist put", watchlist=kept.watchlist_id, purpose=kept.purpose)
        return pb.PutWatchlistResponse(watchlist=self._watchlist_message(kept))

    async def ListWatchlists(  # noqa: N802
        self, request: pb.ListWatchlistsRequest, context: Context
    ) -> pb.ListWatchlistsResponse:
        """List the watchlists."""
        kept = await self._watchlists.all()
        return pb.ListWatchlistsResponse(watchlists=map(self._watchlist_message, kept))

    async def RemoveWatchlist(  # noqa: N802
        self, request: pb.RemoveWatchlistRequest, context: Context
    ) -> pb.RemoveWatchlistResponse:
        """Remove a watchlist."""
        removed = await self._watchlists.remove(request.watchlist_id)
        log.info("watchlist removed", watchlist=request.watchlist_id, removed=removed)
        return pb.RemoveWatchlistResponse(removed=removed)

    async def PutWatchlistEntry(  # noqa: N802
        self, request: pb.PutWatchlistEntryRequest, context: Context
    ) -> pb.PutWatchlistEntryResponse:
        """Add a face to a watchlist."""
        self._watchlists.check_on()
        given = request.entry
        check_name("watchlist_id", given.watchlist_id)
        check_name("entry_id", given.entry_id)
        check_text("label", given.label)
        check_unit("threshold", given.threshold)
        expires = future_time(given, "expires_time")
        example = await self._examples.read(request)
        if example is None:
            raise InvalidInput("an entry needs an example: face_id, basic, picture or embedding")
        kept = await self._watchlists.put_entry(
            Entry(
                watchlist_id=given.watchlist_id,
                entry_id=given.entry_id,
                label=given.label,
                threshold=given.threshold if given.HasField("threshold") else None,
                model_bundle=self._model_bundle,
                embedding=example.embedding,
                face_id=example.face_id,
                expires=expires,
            )
        )
        log.info("watchlist entry put", watchlist=kept.watchlist_id, entry=kept.entry_id)
        return pb.PutWatchlistEntryResponse(entry=self._entry_message(kept))

    async def ListWatchlistEntries(  # noqa: N802
        self, request: pb.ListWatchlistEntriesRequest, context: Context
    ) -> pb.ListWatchlistEntriesResponse:
        """List the entries of a watchlist."""
        kept = await self._watchlists.entries(request.watchlist_id)
        return pb.ListWatchlistEntriesResponse(entries=map(self._entry_message, kept))

    async def RemoveWatchlistEntry(  # noqa: N802
        self, request: pb.RemoveWatchlistEntryRequest, context: Context
    ) -> pb.RemoveWatchlistEntryResponse:
        """Remove an entry."""
        removed = await self._watchlists.remove_entry(request.watchlist_id, request.entry_id)
        log.info("watchlist entry removed", watchlist=request.watchlist_id, removed=removed)
        return pb.RemoveWatchlistEntryResponse(removed=removed)

    async def SubscribeAlerts(  # noqa: N802
        self, request: pb.SubscribeAlertsRequest, context: Context
    ) -> AsyncIterator[pb.SubscribeAlertsResponse]:
        """Stream alerts; headers as in `SubscribeResults`."""
        self._watchlists.check_on()
        start = start_of(request, self._alerts.newest)
        wanted = frozenset(request.watchlist_ids)
        await context.send_initial_metadata(())
        with self._metrics.subscribers.track_inprogress():
            async for alert, _ in follow(self._alerts, start, self._watchlists.alerts):
                if not wanted or alert.watchlist_id in wanted:
                    yield pb.SubscribeAlertsResponse(cursor=alert.cursor, alert=alert.message())

    def _watchlist_message(self, watchlist: Watchlist) -> pb.Watchlist:
        message = pb.Watchlist(
            watchlist_id=watchlist.watchlist_id,
            purpose=watchlist.purpose,
            threshold=watchlist.threshold,
            camera_ids=watchlist.camera_ids,
            entries=watchlist.entries,
        )
        if self._same_person is not None:
            rates = self._same_person.errors(watchlist.threshold)
            message.false_match_rate, message.false_non_match_rate = rates
        message.created_time.FromNanoseconds(watchlist.created)
        return message

    def _entry_message(self, entry: Entry) -> pb.WatchlistEntry:
        message = pb.WatchlistEntry(
            watchlist_id=entry.watchlist_id,
            entry_id=entry.entry_id,
            label=entry.label,
            threshold=entry.threshold,
            outdated=entry.model_bundle != self._model_bundle,
        )
        message.created_time.FromNanoseconds(entry.created)
        message.expires_time.FromNanoseconds(entry.expires)
        return message


def _visit_message(visit: Visit) -> pb.Visit:
    message = pb.Visit(
        visit_id=visit.visit_id,
        camera_id=visit.camera_id,
        faces=visit.faces,
        best_face_id=visit.best_face_id,
        best_face_score=visit.best_score,
    )
    message.first_time.FromNanoseconds(visit.first)
    message.last_time.FromNanoseconds(visit.last)
    return message
