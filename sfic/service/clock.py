"""A time of day that never goes back, for what is ordered or dropped by age.

The system's clock is set back by hand, by a battery that died, by a time server. Where that would
drop what is new, or give an old time to what came later, this clock is read instead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["SteadyClock"]


class SteadyClock:
    """Seconds since 1970. Set back, it goes on from where it was, as fast as time passes.

    `clock` is the system's; `ticks` counts seconds and is never set. Used from any thread.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._ticks = ticks
        self._lock = threading.Lock()
        self._last, self._last_ticks = clock(), ticks()

    def __call__(self) -> float:
        with self._lock:
            ticks = self._ticks()
            self._last = max(self._clock(), self._last + ticks - self._last_ticks)
            self._last_ticks = ticks
            return self._last

    def not_before(self, seconds: float) -> None:
        """Go on from this time if it is later: one that an earlier run has given."""
        with self._lock:
            self._last = max(self._last, seconds)
