"""EdgeControl: grants, orders to forget, and the audit log of both, for operators and services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf.json_format import MessageToDict

from edge_encoder.grants import GrantBook, check_reason
from edge_encoder.store import FaceStore
from edge_encoder.waiting import first_set
from sfic.audit import AuditLog, read_log
from sfic.errors import InvalidInput, Unavailable
from sfic.service.access import current_caller
from sfic.v1 import control_pb2, control_pb2_grpc

__all__ = ["EdgeControl"]

_MAX_FACES = 1000


class EdgeControl(control_pb2_grpc.EdgeControlServicer):
    """Serves `sfic.v1.EdgeControl` until `stopping` is set."""

    def __init__(
        self,
        store: FaceStore,
        grants: GrantBook,
        audit: AuditLog,
        edge_id: str,
        stopping: asyncio.Event,
    ) -> None:
        self._store = store
        self._grants = grants
        self._audit = audit
        self._edge_id = edge_id
        self._stopping = stopping

    async def CreateGrant(
        self,
        request: control_pb2.CreateGrantRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> control_pb2.CreateGrantResponse:
        """Make a grant; it is on the audit log when this returns."""
        grant = await self._grants.create(request, current_caller().name)
        await self._note("grant", grant.purpose, _told(grant))
        return control_pb2.CreateGrantResponse(grant=grant)

    async def ListGrants(
        self,
        request: control_pb2.ListGrantsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> control_pb2.ListGrantsResponse:
        """List grants, newest first."""
        grants = self._grants.list(include_ended=request.include_ended)
        return control_pb2.ListGrantsResponse(grants=grants)

    async def RevokeGrant(
        self,
        request: control_pb2.RevokeGrantRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> control_pb2.RevokeGrantResponse:
        """End a grant."""
        grant = await self._grants.revoke(request.grant_id)
        await self._note("revoke", grant.purpose, _told(grant))
        return control_pb2.RevokeGrantResponse(grant=grant)

    async def Forget(
        self,
        request: control_pb2.ForgetRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> control_pb2.ForgetResponse:
        """Forget faces. On the audit log twice: as ordered, and as done with its number of faces.

        Goes on to its end when the caller hangs up.
        """
        _check_scope(request.scope)
        check_reason("reason", request.reason)
        await self._note("forget ordered", request.reason, _told(request.scope))
        order, faces = await asyncio.shield(self._store.forget(request.scope))
        await self._note("forgotten", request.reason, {**_told(request.scope), "faces": faces})
        return control_pb2.ForgetResponse(faces=faces, cursor=order.cursor)

    async def FollowForgotten(
        self,
        request: control_pb2.FollowForgottenRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[control_pb2.FollowForgottenResponse]:
        """Stream the orders from a cursor, then live."""
        log_id = await self._store.log_id()
        cursor = request.after_cursor if request.log_id in ("", log_id) else 0
        await context.send_initial_metadata(())
        while not self._stopping.is_set():
            ordered = self._store.ordered()
            for order in await self._store.forget_orders(cursor):
                cursor = order.cursor
                yield control_pb2.FollowForgottenResponse(
                    log_id=log_id,
                    cursor=cursor,
                    scope=order.scope,
                    edge_id=self._edge_id,
                    last_face_cursor=order.last_face_cursor,
                )
            if not await self._store.forget_orders(cursor, 1):
                await first_set(ordered, self._stopping)
        raise Unavailable("the edge is shutting down")

    async def ReadAudit(
        self,
        request: control_pb2.ReadAuditRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[control_pb2.ReadAuditResponse]:
        """Stream the audit log's lines, then its head."""
        lines, head = await asyncio.to_thread(read_log, self._audit.path)
        for line in lines:
            yield control_pb2.ReadAuditResponse(line=line)
        yield control_pb2.ReadAuditResponse(head=head)

    async def _note(self, action: str, why: str, what: dict[str, Any]) -> None:
        who = current_caller().name
        await asyncio.to_thread(self._audit.append, action, who=who, why=why, what=what)


def _check_scope(scope: control_pb2.ForgetScope) -> None:
    selects = bool(scope.camera_id) or scope.HasField("captured_before")
    if not (scope.face_ids or selects):
        raise InvalidInput("scope: name faces, a camera or a time", field="scope")
    if scope.face_ids and selects:
        raise InvalidInput("scope: faces need nothing else", field="scope")
    if len(scope.face_ids) > _MAX_FACES:
        raise InvalidInput(f"scope.face_ids: at most {_MAX_FACES}", field="scope.face_ids")


def _told(message: Any) -> dict[str, Any]:
    told: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return told
