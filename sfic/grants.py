"""Asking an edge for grants, as the command line, `serve all` and the demo do.

What a grant means and who may make one is the edge's business.
"""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp

from sfic.service.client import open_channel, sfic_errors
from sfic.service.identity import Identity
from sfic.v1 import control_pb2, control_pb2_grpc

__all__ = ["create_grant", "grant_all_faces", "list_grants", "revoke_grant", "timestamp"]


async def create_grant(
    edge: str, identity: Identity, request: control_pb2.CreateGrantRequest, hours: float
) -> control_pb2.Grant:
    """Make a grant that ends in `hours`; raises errors of the tree."""
    request.expires_time.CopyFrom(timestamp(time.time() + hours * 3600))
    async with open_channel(edge, identity=identity) as channel:
        with sfic_errors(f"edge at {edge}"):
            stub = control_pb2_grpc.EdgeControlStub(channel)
            answer: control_pb2.CreateGrantResponse = await stub.CreateGrant(request)
    return answer.grant


async def list_grants(edge: str, identity: Identity) -> list[control_pb2.Grant]:
    """The grants that hold, newest first."""
    async with open_channel(edge, identity=identity) as channel:
        with sfic_errors(f"edge at {edge}"):
            stub = control_pb2_grpc.EdgeControlStub(channel)
            answer = await stub.ListGrants(control_pb2.ListGrantsRequest())
    return list(answer.grants)


async def revoke_grant(edge: str, identity: Identity, grant_id: str) -> control_pb2.Grant:
    """End a grant now."""
    request = control_pb2.RevokeGrantRequest(grant_id=grant_id)
    async with open_channel(edge, identity=identity) as channel:
        with sfic_errors(f"edge at {edge}"):
            stub = control_pb2_grpc.EdgeControlStub(channel)
            answer: control_pb2.RevokeGrantResponse = await stub.RevokeGrant(request)
    return answer.grant


async def grant_all_faces(
    edge: str, purpose: str, hours: float, identity: Identity | None = None
) -> control_pb2.Grant:
    """Let any decoder see every face captured until the grant ends."""
    until = timestamp(time.time() + hours * 3600)
    request = control_pb2.CreateGrantRequest(
        scope=control_pb2.GrantScope(captured_until=until), purpose=purpose
    )
    return await create_grant(edge, identity or Identity(), request, hours)


def timestamp(seconds: float) -> Timestamp:
    """Seconds since 1970 as a message."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
