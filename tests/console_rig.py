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
from sfic.service.server import ServiceServer

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
