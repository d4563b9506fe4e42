"""What the console's tests share: the real services in this process, and a console before them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from service_rig import Edge, codec, encoded_faces, eventually, running_edge
from services_util import running

from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from cloud_decoder.service import DecoderService
from cloud_decoder.settings import DecoderSettings
from console.service import ConsoleServer
from console.settings import ConsoleSettings
from sfic.grants import grant_all_faces, list_grants, revoke_grant
from sfic.service.client import open_channel
from sfic.service.identity import Identity
from sfic.service.server import ServiceServer
from sfic.v1 import analytics_pb2, analytics_pb2_grpc, control_pb2, control_pb2_grpc

__all__ = ["Rig", "client_of", "console_settings", "running_rig"]


@dataclass
class Rig:
    """Edge, analytics, decoder and console, all running."""

    edge: Edge
    analytics: ServiceServer
    decoder: ServiceServer
    console: ConsoleServer

    async def keep(self, count: int = 1, **fields: Any) -> list[str]:
        """Commit faces to the edge and wait until analytics has a result of each; their ids.

        Capture times are a second apart, the last face the newest.
        """
        faces, ids = encoded_faces(), []
        now = fields.pop("captured", time.time())
        for number in range(count):
            captured = now - (count - 1 - number)
            ids += await self.edge.keep([faces[number % 4]], captured=captured, **fields)
        await eventually(lambda: self.results() >= len(ids) + self._kept)
        self._kept += len(ids)
        return ids

    _kept: int = 0

    async def clear(self) -> None:
        """Faces, results, watchlists and grants as at the start: a test finds nothing of another.

        Metrics and the audit log go on; whoever looks at them compares.
        """
        async with open_channel(self.edge.address) as channel:
            scope = control_pb2.ForgetScope()
            scope.captured_before.FromSeconds(int(time.time()) + 86_400)
            await control_pb2_grpc.EdgeControlStub(channel).Forget(
                control_pb2.ForgetRequest(scope=scope, reason="the next test")
            )
        async with open_channel(self.analytics.address) as channel:
            stub = analytics_pb2_grpc.AnalyticsStub(channel)
            lists = await stub.ListWatchlists(analytics_pb2.ListWatchlistsRequest())
            for each in lists.watchlists:
                gone = analytics_pb2.RemoveWatchlistRequest(watchlist_id=each.watchlist_id)
                await stub.RemoveWatchlist(gone)

            async def empty() -> bool:
                answer = await stub.SearchFaces(analytics_pb2.SearchFacesRequest(limit=1))
                return not answer.hits

            await eventually(empty)
        nobody = Identity()
        for grant in await list_grants(self.edge.address, nobody):
            await revoke_grant(self.edge.address, nobody, grant.grant_id)
        await grant_all_faces(self.edge.address, "a test", 1.0)

    def results(self) -> float:
        """How many results analytics has made."""
        metric = "sfic_analytics_faces_total"
        labels = {"edge": self.edge.address, "outcome": "OK"}
        return self.analytics.service.registry.get_sample_value(metric, labels) or 0.0


def console_settings(**values: Any) -> ConsoleSettings:
    """Settings of a console on free ports."""
    return ConsoleSettings.make(
        **{"listen": "127.0.0.1:0", "metrics_listen": "", "metrics_pages": (), **values}
    )


@asynccontextmanager
async def running_rig(folder: Path, **values: Any) -> AsyncIterator[Rig]:
    """Everything on free ports; `values` are settings of the console."""
    async with running_edge(folder / "edge") as edge:
        a = AnalyticsSettings.make(
            listen="127.0.0.1:0",
            metrics_listen="127.0.0.1:0",
            edges=[edge.address],
            database=folder / "analytics.sqlite",
            watchlists=True,
            shutdown_grace_seconds=1.0,
        )
        d = DecoderSettings.make(
            listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", edge=edge.address, threads=1
        )
        async with (
            running(AnalyticsService(a, codec()), a) as analytics,
            running(DecoderService(d, codec()), d) as decoder,
        ):
            pages = [s.metrics_address for s in (edge.server, analytics, decoder)]
            settings = console_settings(
                **{
                    "edges": [edge.address],
                    "analytics": analytics.address,
                    "decoder": decoder.address,
                    "metrics_pages": pages,
                    **values,
                }
            )
            async with ConsoleServer(settings) as console:
                yield Rig(edge, analytics, decoder, console)


@asynccontextmanager
async def client_of(console: ConsoleServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client that asks as the page does."""
    async with httpx.AsyncClient(
        base_url=console.url, headers={"X-Sfic-Console": "1"}, timeout=60, trust_env=False
    ) as client:
        yield client
