"""What is asked of analytics: faces by filters, by a face or by a picture; watchlists and alerts.

Belongs here: the calls and their answers as the page reads them. Pictures go on to analytics as
they came and are kept by nobody.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from console.messages import alert_json, entry_json, face_json
from console.peers import Caller, Peers
from sfic.errors import InvalidInput
from sfic.service.client import sfic_errors
from sfic.v1 import analytics_pb2

__all__ = [
    "alerts",
    "put_entry",
    "put_watchlist",
    "remove_entry",
    "remove_watchlist",
    "search",
    "watchlists",
]

_MOST_ALERTS = 200


async def search(
    peers: Peers, caller: Caller, asked: analytics_pb2.SearchFacesRequest
) -> dict[str, Any]:
    """Hits, best first; newest first without an example."""
    answer = await peers.search(asked, caller)
    by_likeness = asked.WhichOneof("like") is not None
    return {
        "by_likeness": by_likeness,
        "next_page": answer.next_page_token,
        "hits": [
            {
                **face_json(hit.analysis),
                "similarity": round(hit.similarity, 4) if by_likeness else None,
            }
            for hit in answer.hits
        ],
    }


async def watchlists(peers: Peers, caller: Caller) -> list[dict[str, Any]]:
    """Every list with its entries."""
    found = await peers.analytics_call(
        caller, "ListWatchlists", analytics_pb2.ListWatchlistsRequest()
    )
    shown = []
    for each in found.watchlists:
        entries = await peers.analytics_call(
            caller,
            "ListWatchlistEntries",
            analytics_pb2.ListWatchlistEntriesRequest(watchlist_id=each.watchlist_id),
        )
        shown.append(
            {
                "id": each.watchlist_id,
                "purpose": each.purpose,
                "threshold": round(each.threshold, 4),
                "created": int(each.created_time.ToMilliseconds()),
                "entries": [entry_json(entry) for entry in entries.entries],
            }
        )
    return shown


async def put_watchlist(
    peers: Peers, caller: Caller, name: str, purpose: str, threshold: float
) -> None:
    """Make a list, or change one."""
    asked = analytics_pb2.PutWatchlistRequest(
        watchlist=analytics_pb2.Watchlist(watchlist_id=name, purpose=purpose, threshold=threshold)
    )
    await peers.analytics_call(caller, "PutWatchlist", asked)


async def remove_watchlist(peers: Peers, caller: Caller, name: str) -> None:
    """Remove a list with its entries and alerts."""
    asked = analytics_pb2.RemoveWatchlistRequest(watchlist_id=name)
    await peers.analytics_call(caller, "RemoveWatchlist", asked)


async def put_entry(
    peers: Peers, caller: Caller, name: str, label: str, face_id: str, picture: bytes
) -> None:
    """Look for a face from now on; its entry is named after the label."""
    entry_id = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-")[:64]
    if not entry_id:
        raise InvalidInput("label: must have a letter or a digit", field="label")
    entry = analytics_pb2.WatchlistEntry(watchlist_id=name, entry_id=entry_id, label=label)
    asked = analytics_pb2.PutWatchlistEntryRequest(entry=entry)
    if picture:
        asked.picture = picture
    else:
        asked.face_id = face_id
    await peers.analytics_call(caller, "PutWatchlistEntry", asked)


async def remove_entry(peers: Peers, caller: Caller, name: str, entry_id: str) -> None:
    """No longer look for a face; its alerts go too."""
    asked = analytics_pb2.RemoveWatchlistEntryRequest(watchlist_id=name, entry_id=entry_id)
    await peers.analytics_call(caller, "RemoveWatchlistEntry", asked)


async def alerts(peers: Peers, caller: Caller, after: int) -> dict[str, Any]:
    """The newest alerts behind a cursor, newest first, and the cursor to ask from next time."""
    caller.check("Analytics/SubscribeAlerts")
    newest: deque[dict[str, Any]] = deque(maxlen=_MOST_ALERTS)
    asked = analytics_pb2.SubscribeAlertsRequest(after_cursor=after, kept_only=True)
    with sfic_errors("analytics"):
        async for answer in peers.analytics.SubscribeAlerts(
            asked, timeout=peers.settings.answer_seconds, metadata=caller.metadata
        ):
            newest.appendleft(alert_json(answer.alert))
            after = answer.cursor
    return {"cursor": after, "alerts": list(newest)}
