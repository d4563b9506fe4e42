"""Face ids: ULIDs (github.com/ulid/spec), 26 characters that sort by time of capture."""

from __future__ import annotations

import secrets

__all__ = ["new_ulid"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ulid(time_ms: int) -> str:
    """Return a new id for a time in milliseconds since 1970; a time outside 48 bits is clamped."""
    number = min(max(time_ms, 0), 2**48 - 1) << 80 | secrets.randbits(80)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
