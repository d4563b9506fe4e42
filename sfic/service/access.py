"""Who may call what: the one table of roles and methods, and the interceptor that holds to it.

A caller is known by its certificate (sfic://ROLE/NAME among its subject alternative names) or by a
signed token. Where a service need not know its callers (this machine alone, or `insecure`),
everyone is a local admin. How a client shows who it is: `sfic.service.identity`. Grants for single
faces are the edge's business, not that of roles.
"""

from __future__ import annotations

import contextvars
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from sfic.errors import AccessDenied, LimitExceeded, Unauthenticated
from sfic.roles import ROLES, Role
from sfic.service.interceptor import wrap_handler
from sfic.service.settings import ServiceSettings
from sfic.service.tokens import TokenVerifier

__all__ = ["ACCESS", "LOCAL", "AccessInterceptor", "Caller", "current_caller"]

_CAMERA: Final = frozenset[Role]({"camera", "admin"})
_ANALYTICS: Final = frozenset[Role]({"analytics", "admin"})
_DECODER: Final = frozenset[Role]({"decoder", "admin"})
_OPERATOR: Final = frozenset[Role]({"operator", "admin"})
_RESULTS: Final = frozenset[Role]({"analytics", "operator", "admin"})
_FOLLOWERS: Final = frozenset[Role]({"analytics", "decoder", "operator", "admin"})
_ADMIN: Final = frozenset[Role]({"admin"})
_EVERYONE: Final = frozenset[Role](ROLES)

ACCESS: Final[Mapping[str, frozenset[Role]]] = {
    "/sfic.v1.EdgeIngest/StreamFrames": _CAMERA,
    "/sfic.v1.BasicLayerFeed/Subscribe": _ANALYTICS,
    "/sfic.v1.BasicLayerFeed/FetchBasicKeys": _ANALYTICS,
    "/sfic.v1.LayerStore/FetchLayers": _DECODER,
    "/sfic.v1.LayerStore/FetchKeys": _DECODER,
    "/sfic.v1.EdgeControl/CreateGrant": _OPERATOR,
    "/sfic.v1.EdgeControl/ListGrants": _OPERATOR,
    "/sfic.v1.EdgeControl/RevokeGrant": _OPERATOR,
    "/sfic.v1.EdgeControl/Forget": _ADMIN,
    "/sfic.v1.EdgeControl/FollowForgotten": _FOLLOWERS,
    "/sfic.v1.EdgeControl/ReadAudit": _ADMIN,
    "/sfic.v1.Analytics/SubscribeResults": _RESULTS,
    "/sfic.v1.Analytics/SearchFaces": _OPERATOR,
    "/sfic.v1.Analytics/ListVisits": _OPERATOR,
    "/sfic.v1.Analytics/PutWatchlist": _OPERATOR,
    "/sfic.v1.Analytics/ListWatchlists": _OPERATOR,
    "/sfic.v1.Analytics/RemoveWatchlist": _OPERATOR,
    "/sfic.v1.Analytics/PutWatchlistEntry": _OPERATOR,
    "/sfic.v1.Analytics/ListWatchlistEntries": _OPERATOR,
    "/sfic.v1.Analytics/RemoveWatchlistEntry": _OPERATOR,
    "/sfic.v1.Analytics/SubscribeAlerts": _OPERATOR,
    "/sfic.v1.CloudDecoder/Reconstruct": _OPERATOR,
    "/sfic.v1.CloudDecoder/GetDecoderInfo": _OPERATOR,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _EVERYONE,
}
"""Roles that may call a method. A method that is missing here is refused to all."""

_HEALTH: Final = "/grpc.health.v1.Health/"
"""Open to whoever gets a connection, so that health checks need no role."""

_ROLE_ADDRESS: Final = re.compile(rb"sfic://([a-z]+)/")


@dataclass(frozen=True)
class Caller:
    """Who calls. `limited`: whether rate limits hold for it."""

    name: str
    roles: frozenset[Role]
    limited: bool = True


LOCAL: Final = Caller("local", frozenset({"admin"}), limited=False)
"""Everyone, where callers are not asked who they are."""

_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller", default=LOCAL)


def current_caller() -> Caller:
    """Who made the call that runs."""
    return _caller.get()


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets a call through to its handler when its caller may make it."""

    def __init__(
        self, settings: ServiceSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises `ConfigError` for a token key that cannot be used."""
        self._knows_callers = settings.knows_callers
        self._tokens = None if settings.token_key is None else TokenVerifier(settings.token_key)
        self._limits = _RateLimits(settings.rate_limits, clock)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler that was found for the call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_HEALTH):
            return handler

        def wrap_unary(inner: Any) -> Any:
            async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
                self._admit(method, context)
                return await inner(request, context)

            return call

        def wrap_stream(inner: Any) -> Any:
            async def call(
                request: Any, context: grpc.aio.ServicerContext[Any, Any]
            ) -> AsyncIterator[Any]:
                self._admit(method, context)
                result = inner(request, context)
                if hasattr(result, "__aiter__"):
                    async for response in result:
                        yield response
                else:
                    await result

            return call

        return wrap_handler(handler, wrap_unary, wrap_stream)

    def _admit(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises `Unauthenticated`, `AccessDenied` or `LimitExceeded`; sets `current_caller`."""
        caller = self._who(context)
        allowed = caller.roles & ACCESS.get(method, frozenset())
        if not allowed:
            raise AccessDenied(
                f"{caller.name} ({', '.join(sorted(caller.roles)) or 'no role'}) may not call "
                f"{method.removeprefix('/')}",
                method=method.removeprefix("/"),
            )
        if caller.limited:
            self._limits.count(caller.name, allowed)
        _caller.set(caller)

    def _who(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        if not self._knows_callers:
            return LOCAL
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and self._tokens is not None:
                name, roles = self._tokens.read(str(value))
                return Caller(name, roles)
        shown = context.auth_context()
        if "x509_pem_cert" not in shown:
            raise Unauthenticated("say who you are: a certificate or a token is needed")
        names = shown.get("x509_common_name", [b""])
        roles = _roles_of(shown.get("x509_subject_alternative_name", ()))
        return Caller(names[0].decode("utf-8", "replace"), roles)


def _roles_of(alternative_names: Iterable[bytes]) -> frozenset[Role]:
    found = (_ROLE_ADDRESS.match(name) for name in alternative_names)
    named = {address[1].decode() for address in found if address}
    return frozenset(role for role in ROLES if role in named)


class _RateLimits:
    """Calls of each client as a bucket that a minute fills; the bucket is what may come at once."""

    def __init__(self, calls_a_minute: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._limits = calls_a_minute
        self._clock = clock
        # By role and client: calls left, and when they were counted.
        self._left: dict[tuple[Role, str], tuple[float, float]] = {}

    def count(self, client: str, roles: frozenset[Role]) -> None:
        """Count a call against the widest of the roles that allow it. Raises `LimitExceeded`."""
        if not all(role in self._limits for role in roles):
            return
        role = max(roles, key=lambda role: self._limits[role])
        limit, now = self._limits[role], self._clock()
        left, counted = self._left.get((role, client), (float(limit), now))
        left = min(float(limit), left + (now - counted) * limit / 60)
        if left < 1:
            self._left[role, client] = left, now
            raise LimitExceeded(
                f"{client} has made its {limit} calls a minute as {role}",
                limit=str(limit),
                retry_seconds=f"{(1 - left) * 60 / limit:.3f}",
            )
        self._left[role, client] = left - 1, now
