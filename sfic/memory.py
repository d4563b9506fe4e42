"""How much freed memory glibc's malloc keeps; with another C library nothing is changed.

Threads that run networks in turns take and free tens of megabytes all the time, and loading a
network takes several times its size. By default malloc keeps most of it, for each thread apart.
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["keep_little_memory", "release_memory"]

# Of glibc's malloc.h.
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE: Final = 4 << 20
_ARENAS: Final = 2


def keep_little_memory() -> None:
    """Let threads share two arenas, and give blocks from 4 MiB on back once they are freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def release_memory() -> None:
    """Give back what is free now, as after loading."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
