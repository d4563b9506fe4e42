"""Following an edge's orders to forget: for services that hold what came of its faces.

Belongs here: reading the orders and what they mean. Does not belong here: deleting, which is the
service's own, and giving orders, which is `sfic forget`'s and the edge's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import structlog

from sfic.errors import SficError
from sfic.service.client import Backoff, from_rpc_error, open_channel
from sfic.service.identity import Identity
from sfic.v1 import common_pb2, control_pb2, control_pb2_grpc

__all__ = ["follow_forgotten", "is_meant"]

log = structlog.get_logger(__name__)

Order = control_pb2.FollowForgottenResponse


def is_meant(order: Order, face: common_pb2.FaceInfo) -> bool:
    """Whether an order to forget means the face, by all that is known of it but its cursor."""
    scope = order.scope
    if scope.face_ids:
        return face.face_id in scope.face_ids
    if face.edge_id != order.edge_id or scope.camera_id not in ("", face.camera_id):
        return False
    before = scope.captured_before.ToNanoseconds() if scope.HasField("captured_before") else None
    return before is None or face.capture_time.ToNanoseconds() < before


async def follow_forgotten(
    edge: str,
    identity: Identity,
    after: tuple[int, str],
    carry_out: Callable[[Order], Awaitable[None]],
    longest_wait: float = 10.0,
) -> None:
    """Carry out an edge's orders, in order, until cancelled; connects again after each failure.

    `after`: cursor and log id of the last order carried out, 0 and "" for none. An order that
    `carry_out` fails on with an error of the tree comes again.
    """
    cursor, log_id = after
    backoff = Backoff(longest=longest_wait)
    while True:
        try:
            async with open_channel(edge, identity=identity, retry=False) as channel:
                request = control_pb2.FollowForgottenRequest(after_cursor=cursor, log_id=log_id)
                stub = control_pb2_grpc.EdgeControlStub(channel)
                async for order in stub.FollowForgotten(request):
                    await carry_out(order)
                    cursor, log_id = order.cursor, order.log_id
                    backoff.reset()
            reason = "the edge ended the stream"
        except grpc.RpcError as rpc_error:
            reason = from_rpc_error(rpc_error, f"edge {edge}").message
        except SficError as error:
            reason = error.message
        wait = backoff.next_seconds()
        log.info("orders to forget not followed", edge=edge, reason=reason, seconds=round(wait, 2))
        await asyncio.sleep(wait)
