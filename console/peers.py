"""The services as the console asks them: one channel each, every call with the person's rights.

Belongs here: channels, stubs, deadlines, whose token goes along. Does not belong here: what is
asked, and how the answer looks in a browser.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from console.settings import ConsoleSettings
from sfic.errors import AccessDenied
from sfic.roles import Role
from sfic.service.access import ACCESS
from sfic.service.client import open_channel, sfic_errors
from sfic.v1 import analytics_pb2, analytics_pb2_grpc, control_pb2_grpc, decoder_pb2_grpc

__all__ = ["Caller", "Health", "Peers"]

_HEALTH_SECONDS = 2.0


@dataclass(frozen=True)
class Caller:
    """The person on whose behalf a call is made."""

    name: str = ""
    roles: frozenset[Role] = frozenset()
    token: str = ""
    """Sent along with every call; empty where the services ask for none."""

    def check(self, method: str) -> None:
        """Raise `AccessDenied` unless a role of this person may call "Service/Method".

        The services check the token as well; this holds also where they only know the console's
        own certificate.
        """
        if not self.roles & ACCESS[f"/sfic.v1.{method}"]:
            raise AccessDenied(f"{self.name} may not call {method}", method=method)

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """The gRPC metadata of this person's calls."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass(frozen=True)
class Health:
    """What a service said of itself."""

    kind: str
    address: str
    state: str
    """serving, not_serving or away."""
    milliseconds: float


class Peers:
    """Channels to the services; open inside the event loop, closed with `close`."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self.settings = settings
        identity = settings.services_identity()

        def channel(address: str) -> grpc.aio.Channel:
            return open_channel(
                address, max_message_bytes=settings.max_message_bytes, identity=identity
            )

        self._channels: list[tuple[str, str, grpc.aio.Channel]] = [
            *(("edge", address, channel(address)) for address in settings.edges),
            ("analytics", settings.analytics, channel(settings.analytics)),
            ("decoder", settings.decoder, channel(settings.decoder)),
        ]
        self.controls = {
            address: control_pb2_grpc.EdgeControlStub(opened)
            for kind, address, opened in self._channels
            if kind == "edge"
        }
        """Control of each edge, by its address."""
        by_kind = {kind: opened for kind, _, opened in self._channels}
        self.analytics = analytics_pb2_grpc.AnalyticsStub(by_kind["analytics"])
        self.decoder = decoder_pb2_grpc.CloudDecoderStub(by_kind["decoder"])

    async def close(self) -> None:
        """Hang up."""
        for _, _, channel in self._channels:
            await channel.close()

    async def search(
        self, asked: analytics_pb2.SearchFacesRequest, caller: Caller
    ) -> analytics_pb2.SearchFacesResponse:
        """Ask analytics for faces; raises errors of the tree."""
        answer: analytics_pb2.SearchFacesResponse
        answer = await self.analytics_call(caller, "SearchFaces", asked)
        return answer

    async def analytics_call(self, caller: Caller, method: str, asked: Any) -> Any:
        """Make a call of analytics that has one answer; raises errors of the tree."""
        caller.check(f"Analytics/{method}")
        with sfic_errors("analytics"):
            return await getattr(self.analytics, method)(
                asked, timeout=self.settings.answer_seconds, metadata=caller.metadata
            )

    async def health(self, caller: Caller) -> list[Health]:
        """Ask every service whether it takes calls."""
        return list(await asyncio.gather(*(_ask(*peer, caller) for peer in self._channels)))


async def _ask(kind: str, address: str, channel: grpc.aio.Channel, caller: Caller) -> Health:
    start = time.perf_counter()
    state = "away"
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS, metadata=caller.metadata
        )
    except grpc.RpcError:
        pass
    else:
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        state = "serving" if serving else "not_serving"
    return Health(kind, address, state, 1e3 * (time.perf_counter() - start))
