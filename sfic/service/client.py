"""Client side: channels with keepalive and retry, and gRPC errors turned back into the error tree.

What is asked over a channel belongs to the caller.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

import sfic.errors as errors
from sfic.errors import SficError
from sfic.service.identity import Identity

__all__ = ["Backoff", "from_rpc_error", "open_channel", "sfic_errors"]

_RETRY_POLICY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

# What grpc.aio makes of any status, also of a lost connection, when it comes while the client is
# writing: github.com/grpc/grpc/issues/36066. Trying again brings the true one out.
_LOST_STATUS = "Internal error from Core"


def open_channel(
    address: str,
    *,
    max_message_bytes: int = 64 * 1024 * 1024,
    identity: Identity | None = None,
    retry: bool = True,
) -> grpc.aio.Channel:
    """Open a channel to "host:port"; it connects when first used and reconnects by itself.

    `identity`: who calls, and whether over TLS; None: nobody in particular, without TLS.
    `retry` tries a call again, up to three times, that failed with UNAVAILABLE before any answer
    came. Keepalive pings notice a dead peer within half a minute.
    """
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        # Not a wait: the time that one attempt to connect has. A link of 300 ms each way, or a busy
        # machine, needs more than a second.
        ("grpc.min_reconnect_backoff_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", int(retry)),
    ]
    if retry:
        options.append(("grpc.service_config", json.dumps(_RETRY_POLICY)))
    return (identity or Identity()).channel(address, options)


def from_rpc_error(error: grpc.RpcError, peer: str = "") -> SficError:
    """Turn a failed call into the error the server raised, or the nearest one for its status.

    `peer` names the service in the message of an error that carries no details of ours.
    """
    if not isinstance(error, grpc.aio.AioRpcError):
        return SficError(f"{peer}: {error}" if peer else str(error))
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            info = error_details_pb2.ErrorInfo()
            for detail in status.details:
                if detail.Unpack(info):
                    kind = _by_code().get(info.reason, SficError)
                    return kind(status.message, **dict(info.metadata))
    by_status: dict[grpc.StatusCode, type[SficError]] = {
        grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unavailable,
        grpc.StatusCode.CANCELLED: errors.Unavailable,
        grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitExceeded,
        grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
        grpc.StatusCode.UNIMPLEMENTED: errors.InvalidInput,
        grpc.StatusCode.NOT_FOUND: errors.FaceNotKept,
        grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
        grpc.StatusCode.PERMISSION_DENIED: errors.AccessDenied,
    }
    text = error.details() or error.code().name
    if error.code() is grpc.StatusCode.INTERNAL and text == _LOST_STATUS:
        text, by_status = "connection lost", {error.code(): errors.Unavailable}
    return by_status.get(error.code(), SficError)(f"{peer}: {text}" if peer else text)


@contextlib.contextmanager
def sfic_errors(peer: str = "") -> Iterator[None]:
    """Let a failed call inside the block come out as an error of the tree."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer) from error


class Backoff:
    """Waiting times before each new attempt: doubling, with jitter, up to `longest` seconds."""

    def __init__(self, first: float = 0.2, longest: float = 10.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next_seconds(self) -> float:
        """How long to wait before the next attempt."""
        wait = self._next
        self._next = min(self._next * 2, self._longest)
        return wait * random.uniform(0.8, 1.2)

    def reset(self) -> None:
        """Start from the first waiting time again, after a success."""
        self._next = self._first


def _by_code() -> dict[str, type[SficError]]:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, SficError)]
    return {kind.code: kind for kind in kinds}
