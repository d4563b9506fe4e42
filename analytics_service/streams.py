"""Results and alerts out: those kept behind a cursor, then live ones, without a gap or a repeat.

Belongs here: following the two logs. Does not belong here: making results, or finding them by
likeness.

A subscriber only ever reads the database; the announcer merely says that there is more to read.
Between the kept and the live entries there is thus no seam to lose one at, and a slow subscriber
costs no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from analytics_service.records import StoredResult
from analytics_service.watchlists import StoredAlert
from sfic.errors import InvalidInput, Unavailable

__all__ = ["Announcer", "Start", "follow", "start_of"]

_PAGE = 256

E = TypeVar("E", StoredResult, StoredAlert)


class Announcer:
    """Tells waiting subscribers of the newest cursor."""

    def __init__(self, newest: int = 0) -> None:
        self.newest = newest
        """The highest cursor that is committed."""
        self.closed = False
        """Whether the service is going away."""
        self._changed = asyncio.Event()

    def announce(self, newest: int) -> None:
        """Wakes everyone who waits for an entry up to `newest`."""
        self.newest = max(self.newest, newest)
        self._wake()

    def close(self) -> None:
        """Wakes everyone for the last time."""
        self.closed = True
        self._wake()

    async def wait_beyond(self, cursor: int) -> None:
        """Returns once there is an entry behind `cursor`, or at close."""
        while self.newest <= cursor and not self.closed:
            await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Request(Protocol):
    """What subscriptions have in common."""

    after_cursor: int
    live_only: bool
    kept_only: bool


@dataclass(frozen=True)
class Start:
    """A subscription starts behind `after` and ends after `until`; None: never.

    `live`: it wants what is new, and may be moved on when it lags.
    """

    after: int
    until: int | None
    live: bool


def start_of(request: Request, newest: int) -> Start:
    """Where a subscription starts and ends.

    Raises `InvalidInput` for a request that contradicts itself or names a cursor never given.
    """
    if request.live_only and (request.after_cursor or request.kept_only):
        raise InvalidInput("live_only excludes after_cursor and kept_only")
    if request.after_cursor > newest:
        raise InvalidInput(
            f"after_cursor {request.after_cursor} was never given, the newest is {newest}: "
            "start again from 0 if the service's database was replaced"
        )
    after = newest if request.live_only else int(request.after_cursor)
    return Start(after, newest if request.kept_only else None, request.live_only)


async def follow(
    announcer: Announcer,
    start: Start,
    page: Callable[[int, int], Awaitable[Sequence[E]]],
    live_backlog: int | None = None,
) -> AsyncIterator[tuple[E, int]]:
    """Yields each entry of a log, and how many before it were missed: dropped by retention unread.

    `page(after, limit)` reads the log. A live subscription that lags more than `live_backlog`
    entries behind misses the oldest of them too. Raises `Unavailable` when the service goes away.
    """
    # Cursors are given without gaps, so a gap that a subscriber meets is what it missed.
    # One who starts from nothing has missed nothing.
    at, counts = start.after, start.after > 0 or start.live
    while not announcer.closed:
        seen = announcer.newest
        lag = live_backlog if start.live and live_backlog is not None else seen
        entries = await page(max(at, seen - lag), _PAGE)
        for entry in entries:
            if start.until is not None and entry.cursor > start.until:
                return
            yield entry, entry.cursor - at - 1 if counts else 0
            at, counts = entry.cursor, True
        if not entries:
            if start.until is not None:
                return
            # Not beyond `at`: what lies between may be pruned, and would be waited for in a spin.
            await announcer.wait_beyond(seen)
    raise Unavailable("analytics is shutting down; subscribe again after the last cursor")
