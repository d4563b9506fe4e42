"""Control of the edges from the page: grants, forgetting, the audit log.

Belongs here: asking every edge, and what it answered as the page reads it. Who may ask is decided
by the edges, by the same table of roles.
"""

from __future__ import annotations

import json
import time
from collections import deque
from datetime import datetime, timezone
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from console.messages import layer_name
from console.peers import Caller, Peers
from sfic.audit import verify_lines
from sfic.grants import timestamp
from sfic.service.client import sfic_errors
from sfic.v1 import control_pb2

__all__ = ["ForgetForm", "audit", "create_grant", "forget", "grants", "revoke_grant"]

_MOST_LINES = 200


class ForgetForm(BaseModel):
    """Which faces to forget, and why: those named; or all of a camera, before a time, or both."""

    model_config = ConfigDict(extra="forbid")
    face_ids: list[str] = Field(default_factory=list, max_length=1000)
    camera: str = Field(default="", max_length=64)
    before: datetime | None = None
    reason: str = Field(default="", max_length=200)


async def grants(peers: Peers, caller: Caller) -> list[dict[str, Any]]:
    """The grants that hold, of every edge, newest first."""
    shown = []
    for edge in peers.settings.edges:
        answer = await _ask(peers, caller, edge, "ListGrants", control_pb2.ListGrantsRequest())
        shown += [{"edge": edge, **_grant_json(grant)} for grant in answer.grants]
    return sorted(shown, key=lambda grant: -grant["created"])


async def create_grant(
    peers: Peers, caller: Caller, face_id: str, purpose: str, hours: float
) -> None:
    """Let decoders see one face for a while; every edge is told, for it may be any one's."""
    asked = control_pb2.CreateGrantRequest(
        scope=control_pb2.GrantScope(face_id=face_id), purpose=purpose
    )
    asked.expires_time.CopyFrom(timestamp(time.time() + hours * 3600))
    for edge in peers.settings.edges:
        await _ask(peers, caller, edge, "CreateGrant", asked)


async def revoke_grant(peers: Peers, caller: Caller, edge: str, grant_id: str) -> None:
    """End a grant of one edge now."""
    asked = control_pb2.RevokeGrantRequest(grant_id=grant_id)
    await _ask(peers, caller, edge, "RevokeGrant", asked)


async def forget(peers: Peers, caller: Caller, form: ForgetForm) -> int:
    """Forget faces at every edge, for good; how many there were."""
    scope = control_pb2.ForgetScope(face_ids=form.face_ids, camera_id=form.camera)
    if form.before is not None:
        aware = form.before if form.before.tzinfo else form.before.replace(tzinfo=timezone.utc)
        scope.captured_before.FromDatetime(aware)
    asked = control_pb2.ForgetRequest(scope=scope, reason=form.reason)
    answers = [await _ask(peers, caller, edge, "Forget", asked) for edge in peers.settings.edges]
    return sum(int(answer.faces) for answer in answers)


async def audit(peers: Peers, caller: Caller) -> list[dict[str, Any]]:
    """The newest lines of every edge's log, newest first, and whether the whole log is intact."""
    return [await _audit_of(peers, caller, edge) for edge in peers.settings.edges]


async def _audit_of(peers: Peers, caller: Caller, edge: str) -> dict[str, Any]:
    caller.check("EdgeControl/ReadAudit")
    lines: list[str] = []
    head = ""
    with sfic_errors(f"edge {edge}"):
        async for part in peers.controls[edge].ReadAudit(
            control_pb2.ReadAuditRequest(),
            timeout=peers.settings.answer_seconds,
            metadata=caller.metadata,
        ):
            if part.line:
                lines.append(part.line)
            head = part.head or head
    verdict = verify_lines(lines, head)
    newest: deque[dict[str, Any]] = deque(maxlen=_MOST_LINES)
    for line in lines[-_MOST_LINES:]:
        try:
            record = json.loads(line)
            told = {key: value for key, value in record["what"].items() if value not in ("", [])}
            shown = {key: str(record[key]) for key in ("time", "action", "who", "why")}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # A line that is none is among the verdict's problems.
        newest.appendleft({**shown, "what": " ".join(f"{k}={v}" for k, v in told.items())})
    return {
        "edge": edge,
        "lines": verdict.lines,
        "problems": list(verdict.problems)[:10],
        "newest": list(newest),
    }


def _grant_json(grant: control_pb2.Grant) -> dict[str, Any]:
    scope = grant.scope
    times = {
        name: int(getattr(scope, name).ToMilliseconds())
        for name in ("captured_from", "captured_until")
        if scope.HasField(name)
    }
    return {
        "id": grant.grant_id,
        "face": scope.face_id,
        "camera": scope.camera_id,
        **times,
        "highest": layer_name(grant.highest),
        "decoder": grant.decoder,
        "purpose": grant.purpose,
        "by": grant.granted_by,
        "created": int(grant.created_time.ToMilliseconds()),
        "expires": int(grant.expires_time.ToMilliseconds()),
    }


async def _ask(peers: Peers, caller: Caller, edge: str, method: str, asked: Any) -> Any:
    caller.check(f"EdgeControl/{method}")
    with sfic_errors(f"edge {edge}"):
        return await getattr(peers.controls[edge], method)(
            asked, timeout=peers.settings.answer_seconds, metadata=caller.metadata
        )
