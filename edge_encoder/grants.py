"""Grants: which decoder may have the keys of which faces' higher layers, for what, until when.

Belongs here: what a grant covers, and keeping grants. Does not belong here: keys, and who may make
a grant (`sfic.service.access`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from sfic.errors import InvalidInput
from sfic.grants import timestamp
from sfic.service.sqlite import Database
from sfic.v1 import common_pb2, control_pb2

__all__ = ["MAX_DAYS", "MAX_TEXT", "GrantBook"]

MAX_DAYS = 366
MAX_TEXT = 200


class GrantBook:
    """The grants of one edge: in memory to be asked, in the database to last."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._grants: dict[str, control_pb2.Grant] = {}

    async def load(self) -> None:
        """Read what is kept."""
        rows = await self._database.read(
            lambda c: c.execute("SELECT grant_id, message FROM grants").fetchall()
        )
        self._grants = {name: control_pb2.Grant.FromString(message) for name, message in rows}

    async def create(
        self, request: control_pb2.CreateGrantRequest, granted_by: str
    ) -> control_pb2.Grant:
        """Make and keep a grant. Raises `InvalidInput` naming the field."""
        now = self._clock()
        _check_scope(request.scope)
        check_reason("purpose", request.purpose)
        highest = request.highest or common_pb2.LAYER_ENHANCED
        if highest not in (common_pb2.LAYER_MIDDLE, common_pb2.LAYER_ENHANCED):
            raise InvalidInput("highest: must be middle or enhanced", field="highest")
        if len(request.decoder) > MAX_TEXT:
            raise InvalidInput(f"decoder: at most {MAX_TEXT} characters", field="decoder")
        expires = request.expires_time.ToNanoseconds() / 1e9
        if not now < expires <= now + MAX_DAYS * 86_400:
            raise InvalidInput(
                f"expires_time: must lie ahead, at most {MAX_DAYS} days", field="expires_time"
            )
        grant = control_pb2.Grant(
            grant_id=secrets.token_hex(8),
            scope=request.scope,
            highest=highest,
            decoder=request.decoder,
            purpose=request.purpose,
            granted_by=granted_by,
            created_time=timestamp(now),
            expires_time=request.expires_time,
        )
        await self._keep(grant)
        return grant

    async def revoke(self, grant_id: str) -> control_pb2.Grant:
        """End a grant now; one that has ended stays as it is. Raises `InvalidInput`."""
        known = self._grants.get(grant_id)
        if known is None:
            raise InvalidInput(f"grant_id: there is no grant {grant_id!r}", field="grant_id")
        grant = control_pb2.Grant()
        grant.CopyFrom(known)
        if not grant.HasField("revoked_time"):
            grant.revoked_time.CopyFrom(timestamp(self._clock()))
            await self._keep(grant)
        return grant

    def list(self, *, include_ended: bool) -> list[control_pb2.Grant]:
        """Grants, newest first."""
        found = [g for g in self._grants.values() if include_ended or self._holds(g)]
        return sorted(found, key=lambda g: g.created_time.ToNanoseconds(), reverse=True)

    def find(
        self, face: common_pb2.FaceInfo, layer: common_pb2.Layer, decoder: str
    ) -> control_pb2.Grant | None:
        """A grant under which `decoder` may have the key of a layer of the face; the longest."""
        found = [
            grant
            for grant in self._grants.values()
            if self._holds(grant)
            and layer <= grant.highest
            and grant.decoder in ("", decoder)
            and _covers(grant.scope, face)
        ]
        return max(found, key=lambda g: g.expires_time.ToNanoseconds(), default=None)

    def _holds(self, grant: control_pb2.Grant) -> bool:
        return (
            not grant.HasField("revoked_time")
            and grant.expires_time.ToNanoseconds() / 1e9 > self._clock()
        )

    async def _keep(self, grant: control_pb2.Grant) -> None:
        row = grant.grant_id, grant.SerializeToString()
        await self._database.write(
            lambda c: c.execute("INSERT OR REPLACE INTO grants VALUES (?, ?)", row)
        )
        self._grants[grant.grant_id] = grant


def check_reason(field: str, text: str) -> None:
    """Raises `InvalidInput` unless there is a text that says why."""
    if not text.strip():
        raise InvalidInput(f"{field}: say why", field=field)
    if len(text) > MAX_TEXT:
        raise InvalidInput(f"{field}: at most {MAX_TEXT} characters", field=field)


def _check_scope(scope: control_pb2.GrantScope) -> None:
    since, until = scope.HasField("captured_from"), scope.HasField("captured_until")
    if not (scope.face_id or scope.camera_id or since or until):
        raise InvalidInput("scope: name a face, a camera or a time", field="scope")
    if scope.face_id and (scope.camera_id or since or until):
        raise InvalidInput("scope: a face needs nothing else", field="scope")


def _covers(scope: control_pb2.GrantScope, face: common_pb2.FaceInfo) -> bool:
    if scope.face_id:
        return bool(scope.face_id == face.face_id)
    captured = face.capture_time.ToNanoseconds()
    return (
        scope.camera_id in ("", face.camera_id)
        and (not scope.HasField("captured_from") or captured >= scope.captured_from.ToNanoseconds())
        and (
            not scope.HasField("captured_until") or captured <= scope.captured_until.ToNanoseconds()
        )
    )
