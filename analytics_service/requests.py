"""What clients ask for, read and checked: filters, page tokens, watchlists.

Belongs here: from a message to values that the parts take, and `InvalidInput` for what contradicts
itself. Does not belong here: the answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from google.protobuf import message as protobuf
from google.protobuf import timestamp_pb2

from analytics_service.search import Bounds, Filters
from analytics_service.watchlists import Watchlist
from sfic.errors import InvalidInput
from sfic.v1 import analytics_pb2

__all__ = [
    "check_name",
    "check_text",
    "check_unit",
    "filters_of",
    "future_time",
    "make_token",
    "page_limit",
    "read_token",
    "time_of",
    "times_of",
    "watchlist_of",
]

HIGHEST_LIMIT = 1000
_LONGEST_TEXT = 200
# A type, or several that will do.
Kind: TypeAlias = type | tuple[type, ...]

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def filters_of(request: analytics_pb2.SearchFacesRequest) -> Filters:
    """The filters of a search."""
    check_unit("min_face_score", request.min_face_score)
    captured_from, captured_until = times_of(request, "captured_from", "captured_until")
    return Filters(
        camera_ids=tuple(request.camera_ids),
        captured_from=captured_from,
        captured_until=captured_until,
        age=_bounds(request, "age"),
        gender=_bounds(request, "gender"),
        smile=_bounds(request, "smile"),
        min_face_score=request.min_face_score,
    )


def watchlist_of(message: analytics_pb2.Watchlist) -> Watchlist:
    """A watchlist to keep."""
    check_name("watchlist_id", message.watchlist_id)
    check_text("purpose", message.purpose)
    if not message.purpose.strip():
        raise InvalidInput("purpose: say why these faces are looked for", field="purpose")
    check_unit("threshold", message.threshold)
    if not message.threshold:
        raise InvalidInput("threshold: must be over 0", field="threshold")
    return Watchlist(
        watchlist_id=message.watchlist_id,
        purpose=message.purpose,
        threshold=message.threshold,
        camera_ids=tuple(message.camera_ids),
    )


def page_limit(given: int, default: int) -> int:
    """How many on a page."""
    if given > HIGHEST_LIMIT:
        raise InvalidInput(f"limit {given}: at most {HIGHEST_LIMIT}", field="limit")
    return given or default


def make_token(request: protobuf.Message, values: Sequence[Any]) -> str:
    """A page token that holds `values` for the same request."""
    text = json.dumps([_digest(request), *values]).encode()
    return base64.urlsafe_b64encode(text).decode()


def read_token(request: Any, kinds: Sequence[Kind]) -> list[Any]:
    """The values of the request's page token, each of its kind; `InvalidInput` for any other."""
    try:
        values: list[Any]
        digest, *values = json.loads(base64.urlsafe_b64decode(request.page_token))
        sound = len(values) == len(kinds) and all(map(isinstance, values, kinds))
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise InvalidInput("page_token: not one of this service", field="page_token")
    if digest != _digest(request):
        raise InvalidInput("page_token: of another request", field="page_token")
    return values


def times_of(request: Any, start: str, end: str) -> tuple[int | None, int | None]:
    """Two times of a request as Unix nanoseconds, None where unset."""
    first, last = time_of(request, start), time_of(request, end)
    if first is not None and last is not None and first > last:
        raise InvalidInput(f"{start} lies behind {end}", field=start)
    return first, last


def time_of(request: Any, name: str) -> int | None:
    """A time of a request as Unix nanoseconds, None when it is unset."""
    if not request.HasField(name):
        return None
    given: timestamp_pb2.Timestamp = getattr(request, name)
    nanoseconds = int(given.seconds) * 10**9 + int(given.nanos)
    return max(-(2**63), min(nanoseconds, 2**63 - 1))


def check_unit(name: str, value: float) -> None:
    """Refuses what is not 0..1."""
    if not 0.0 <= value <= 1.0:
        raise InvalidInput(f"{name} {value:g}: must be 0..1", field=name)


def check_name(field: str, name: str) -> None:
    """Refuses what is not a name."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{field}: must be 1..64 of A-Z a-z 0-9 . _ -", field=field)


def check_text(field: str, text: str) -> None:
    """Refuses a text that is too long."""
    if len(text) > _LONGEST_TEXT:
        raise InvalidInput(f"{field}: at most {_LONGEST_TEXT} characters", field=field)


def future_time(request: Any, name: str) -> int:
    """A time that has to lie ahead, as Unix nanoseconds; 0 when it is unset."""
    given = time_of(request, name)
    if given is not None and given <= time.time_ns():
        raise InvalidInput(f"{name}: must lie in the future", field=name)
    return given or 0


def _bounds(request: analytics_pb2.SearchFacesRequest, name: str) -> Bounds:
    field: analytics_pb2.Range = getattr(request, name)
    low = field.min if field.HasField("min") else None
    high = field.max if field.HasField("max") else None
    if any(side is not None and math.isnan(side) for side in (low, high)):
        raise InvalidInput(f"{name}: a side of the range is not a number", field=name)
    if low is not None and high is not None and low > high:
        raise InvalidInput(f"{name}: min {low:g} is over max {high:g}", field=name)
    return Bounds(low, high)


def _digest(request: Any) -> str:
    """Names a request but for where its page starts and how long it is."""
    same = type(request)()
    same.CopyFrom(request)
    same.ClearField("page_token")
    same.ClearField("limit")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).hexdigest()[:16]
