"""The streams that NATS JetStream keeps of us: their names, their subjects, and how they are made.

    leaf of a site                         hub
    sfic-faces                             sfic-faces            sources all sites
      sfic.faces.SITE.EDGE  ---------->      sfic.faces.*.EDGE   one durable consumer for each edge,
                                                                 shared by the replicas of analytics
                                           sfic-results
                                             sfic.results.EDGE   read by every replica

A site is a JetStream domain. Faces are sealed basic layers (`SubscribeResponse` without its key),
results are sealed too (`sfic.sealing.seal_result`): what opens them never is in a stream.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfic.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext
    from nats.js.api import StreamConfig, StreamInfo

__all__ = [
    "FACES",
    "ID_HEADER",
    "READERS",
    "RESULTS",
    "edge_token",
    "faces_of_edge",
    "make_streams",
    "results_of_edge",
    "stream_info",
]

FACES = "sfic-faces"
RESULTS = "sfic-results"
READERS = "analytics"
"""First part of the names of the consumers that replicas share."""

ID_HEADER = "Nats-Msg-Id"
"""Holds the face's id: JetStream drops a second one that comes within its duplicate window."""

_SITE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_MESSAGE_BYTES = 64 * 1024
_DUPLICATE_SECONDS = 120.0


def edge_token(edge_id: str) -> str:
    """An edge's name as one part of a subject, which a dot would split."""
    return edge_id.replace(".", "=")


def faces_of_edge(edge_id: str) -> str:
    """Subject of an edge's faces at the hub."""
    return f"sfic.faces.*.{edge_token(edge_id)}"


def results_of_edge(edge_id: str) -> str:
    """Subject of the results of an edge's faces."""
    return f"sfic.results.{edge_token(edge_id)}"


async def stream_info(stream: JetStreamContext, name: str) -> StreamInfo:
    """What the server says of a stream. Raises `Unavailable` that names the cure when it is not."""
    from nats.js.errors import NotFoundError, ServiceUnavailableError

    try:
        return await stream.stream_info(name)
    except (NotFoundError, ServiceUnavailableError) as error:
        raise Unavailable(f"NATS has no stream {name} here: run sfic nats init") from error


async def make_streams(
    hub: Client, sites: Sequence[str], *, keep_hours: float, site_bytes: int
) -> list[str]:
    """Make the streams of the hub and of sites whose leaves are connected to it, or change them.

    Sites that the hub knows already stay. Returns all of them. Raises `Unavailable`, naming the
    site, when its leaf does not answer.
    """
    from nats.errors import Error
    from nats.js.api import (
        DiscardPolicy,
        ExternalStream,
        RetentionPolicy,
        StorageType,
        StreamConfig,
        StreamSource,
    )
    from nats.js.errors import NotFoundError

    for site in sites:
        if not _SITE.fullmatch(site):
            raise InvalidInput(f"site {site!r}: must be 1..64 of A-Z a-z 0-9 _ -")

    def config(name: str, **values: object) -> StreamConfig:
        return StreamConfig(
            name=name,
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            max_age=keep_hours * 3600.0,
            max_msg_size=_MAX_MESSAGE_BYTES,
            duplicate_window=_DUPLICATE_SECONDS,
            **values,  # type: ignore[arg-type]
        )

    for site in sites:
        leaf = hub.jetstream(domain=site)
        # A full leaf refuses, and the edge waits and says so: what it dropped would be lost to
        # the hub without a sign.
        wanted = config(
            FACES,
            subjects=[f"sfic.faces.{site}.*"],
            max_bytes=site_bytes,
            discard=DiscardPolicy.NEW,
        )
        try:
            await _put(leaf, wanted)
        except (Error, asyncio.TimeoutError) as error:
            raise Unavailable(
                f"site {site}: no JetStream of this domain answers, is its leaf connected? {error}"
            ) from error
    jetstream = hub.jetstream()
    try:
        known = (await jetstream.stream_info(FACES)).config.sources or []
    except NotFoundError:
        known = []
    prefixes = {source.external.api for source in known if source.external is not None}
    prefixes |= {f"$JS.{site}.API" for site in sites}
    if not prefixes:
        raise InvalidInput("name the sites: a hub without one has nothing to read")
    sources = [
        StreamSource(name=FACES, external=ExternalStream(api=prefix, deliver=""))
        for prefix in sorted(prefixes)
    ]
    await _put(jetstream, config(FACES, sources=sources))
    await _put(jetstream, config(RESULTS, subjects=["sfic.results.*"]))
    return [prefix.split(".")[1] for prefix in sorted(prefixes)]


async def _put(jetstream: JetStreamContext, wanted: StreamConfig) -> None:
    from nats.js.errors import NotFoundError

    try:
        await jetstream.stream_info(wanted.name or "")
    except NotFoundError:
        await jetstream.add_stream(wanted)
    else:
        await jetstream.update_stream(wanted)
