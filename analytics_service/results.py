"""Results out: those kept behind a cursor, then live ones, without a gap and without a repeat.

Belongs here: following the log of results. Does not belong here: making them, or finding them by
likeness.

A subscriber only ever reads the database; the announcer merely says that there is more to read.
Between the kept and the live results there is thus no seam to lose one at, and a slow subscriber
costs no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

from analytics_service.store import ResultStore
from sfic.errors import InvalidInput, Unavailable
from sfic.v1 import analytics_pb2

__all__ = ["Announcer", "first_cursor", "follow_results"]

_PAGE = 256


class Announcer:
    """Tells waiting subscribers of the newest cursor."""

    def __init__(self, newest: int = 0) -> None:
        self.newest = newest
        """The highest cursor that is committed."""
        self.closed = False
        """Whether the service is going away."""
        self._changed = asyncio.Event()

    def announce(self, newest: int) -> None:
        """Wakes everyone who waits for a result up to `newest`."""
        self.newest = max(self.newest, newest)
        self._wake()

    def close(self) -> None:
        """Wakes everyone for the last time."""
        self.closed = True
        self._wake()

    async def wait_beyond(self, cursor: int) -> None:
        """Returns once there is a result behind `cursor`, or at close."""
        while self.newest <= cursor and not self.closed:
            await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def follow_results(
    store: ResultStore,
    announcer: Announcer,
    request: analytics_pb2.SubscribeResultsRequest,
    at: int,
) -> AsyncIterator[analytics_pb2.SubscribeResultsResponse]:
    """Yields what a subscriber asked for behind the cursor `at`, without end.

    Raises `Unavailable` when the service goes away.
    """
    cameras: Collection[str] = frozenset(request.camera_ids)
    # Cursors are given without gaps, so a gap that a subscriber meets was made by retention.
    # One who starts from nothing has missed nothing.
    missed, counts = 0, at > 0
    while not announcer.closed:
        seen = announcer.newest
        page = await store.page(at, _PAGE)
        for result in page:
            missed += result.cursor - at - 1 if counts else 0
            at, counts = result.cursor, True
            message = result.message()
            if cameras and message.face.camera_id not in cameras:
                continue
            if message.face.face_score < request.min_face_score:
                continue
            yield analytics_pb2.SubscribeResultsResponse(
                cursor=at, analysis=message, results_missed=missed
            )
            missed = 0
        if not page:
            # Not beyond `at`: what lies between may be pruned, and would be waited for in a spin.
            await announcer.wait_beyond(seen)
    raise Unavailable("analytics is shutting down; subscribe again after the last cursor")


def first_cursor(request: analytics_pb2.SubscribeResultsRequest, newest: int) -> int:
    """The cursor that a subscription starts behind.

    Raises `InvalidInput` for a request that contradicts itself or names a cursor never given.
    """
    if request.live_only:
        if request.after_cursor:
            raise InvalidInput("live_only and after_cursor exclude each other")
        return newest
    if request.after_cursor > newest:
        raise InvalidInput(
            f"after_cursor {request.after_cursor} was never given, the newest is {newest}: "
            "start again from 0 if the service's database was replaced"
        )
    return int(request.after_cursor)
