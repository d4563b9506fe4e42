"""The Grafana dashboards against real services: what their panels ask, and what Prometheus answers.

Belongs here: the services in use, a Prometheus that scrapes them as deploy/prometheus.yml says, and
the panels' queries as Grafana would send them. Does not belong here: drawing the answers
(`dashboard_pictures`) and judging them (tests/test_dashboards_live.py).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import re
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import yaml
from screenshots import look_for, start_services

from sfic.client import AnalyticsClient
from sfic.grants import grant_all_faces
from sfic.processes import free_address
from sfic.service.client import open_channel
from sfic.v1 import decoder_pb2, decoder_pb2_grpc, edge_pb2, edge_pb2_grpc

DEPLOY = Path(__file__).parent.parent / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PROMETHEUS = shutil.which("prometheus")
"""The program; None where it is not installed (Debian package prometheus)."""


@dataclass(frozen=True)
class Series:
    """One line of a panel."""

    name: str
    """As its legend has it."""
    labels: dict[str, str]
    points: list[tuple[float, float]]
    """Unix time and value; without those that are not numbers."""


@dataclass(frozen=True)
class Span:
    """The time that a dashboard shows, as Grafana resolves it for its queries."""

    start: float
    end: float
    scrape_seconds: int
    """What the data source is told as its scrape interval, and the step of the queries."""

    def resolve(self, expression: str, variables: dict[str, str]) -> str:
        """The expression with Grafana's own variables and the dashboard's filled in."""
        known = {
            **variables,
            "__rate_interval": f"{4 * self.scrape_seconds}s",
            "__range": f"{round(self.end - self.start)}s",
        }
        return re.sub(r"\$(\w+)", lambda found: known[found[1]], expression)


class Prometheus:
    """What a Prometheus server knows, over its HTTP API."""

    def __init__(self, address: str) -> None:
        self._client = httpx.Client(base_url=f"http://{address}/api/v1", trust_env=False)

    def get(self, path: str, **parameters: Any) -> Any:
        """The `data` of an answer. Raises `RuntimeError` with what Prometheus says it is not."""
        response = self._client.get(path, params=parameters)
        if response.status_code == 503:
            response.raise_for_status()
        answer = response.json()
        if answer["status"] != "success":
            raise RuntimeError(f"{answer['error']}: {parameters}")
        return answer["data"]

    def scrapes(self) -> dict[str, str]:
        """Each job's health."""
        targets = self.get("/targets")["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in targets}

    def variables(self, dashboard: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
        """Of each variable what stands for it with *All* chosen, and what it offers.

        Without a value of its own, *All* is any of what is offered, as a pattern within a string.
        """
        found = {}
        for variable in dashboard["templating"]["list"]:
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert asked, variable
            offered = self.get(f"/label/{asked[2]}/values", **{"match[]": asked[1]})
            any_of_them = "|".join(re.escape(value) for value in offered).replace("\\", r"\\")
            found[variable["name"]] = (f"({any_of_them})", offered)
        return found

    def answer(self, target: dict[str, Any], variables: dict[str, str], span: Span) -> list[Series]:
        """What a panel's query gives."""
        query = span.resolve(target["expr"], variables)
        if target.get("instant"):
            data = self.get("/query", query=query, time=span.end)
            rows = [(row["metric"], [row["value"]]) for row in data["result"]]
        else:
            data = self.get(
                "/query_range",
                query=query,
                start=span.start,
                end=span.end,
                step=span.scrape_seconds,
            )
            rows = [(row["metric"], row["values"]) for row in data["result"]]
        found = []
        for labels, values in rows:
            name = target["legendFormat"]
            for label in re.findall(r"{{(\w+)}}", name):
                name = name.replace(f"{{{{{label}}}}}", labels.get(label, ""))
            points = [(float(time), float(value)) for time, value in values]
            finite = [point for point in points if math.isfinite(point[1])]
            found.append(Series(name, labels, finite))
        return found


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those with queries."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@asynccontextmanager
async def watched_services(
    folder: Path, scrape_seconds: int
) -> AsyncIterator[tuple[dict[str, str], Prometheus]]:
    """The services, and a Prometheus that has read all of them once; their addresses by name.

    It runs with deploy/prometheus.yml and its alerts; only the intervals are shorter, and the
    services are on this machine under the names they have there.
    """
    secret = folder / "webhook-secret"
    secret.write_text(f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}")
    async with webhook_receiver() as receiver:
        hook = {"name": "desk", "url": f"http://{receiver}", "secret_file": str(secret)}
        hook["sends"] = "results"
        services, at, pages = start_services(folder, analytics=[f"--webhooks={json.dumps([hook])}"])
        with services:
            address = free_address()
            config = prometheus_config(pages, scrape_seconds)
            (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
            with (folder / "prometheus.log").open("wb") as log:
                process = subprocess.Popen(
                    [
                        str(PROMETHEUS),
                        f"--config.file={folder / 'prometheus.yml'}",
                        f"--storage.tsdb.path={folder / 'prometheus'}",
                        f"--web.listen-address={address}",
                    ],
                    stdout=log,
                    stderr=log,
                )
            try:
                prometheus = Prometheus(address)
                await asyncio.wait_for(_all_scraped(prometheus, set(pages)), 60)
                yield at, prometheus
            finally:
                process.terminate()
                process.wait(20)


def prometheus_config(pages: dict[str, str], scrape_seconds: int) -> dict[str, Any]:
    """deploy/prometheus.yml for services whose metrics pages are at `pages`."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    interval = f"{scrape_seconds}s"
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(DEPLOY / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        for static in job["static_configs"]:
            (instance,) = static["targets"]
            static["targets"] = [pages[job["job_name"]]]
            static["labels"] = {"instance": instance}
    return config


async def _all_scraped(prometheus: Prometheus, jobs: set[str]) -> None:
    while True:
        try:
            if prometheus.scrapes() == dict.fromkeys(jobs, "up"):
                return
        except httpx.HTTPError:
            pass  # It is starting.
        await asyncio.sleep(0.1)


@asynccontextmanager
async def webhook_receiver() -> AsyncIterator[str]:
    """Somebody who takes every delivery; the address."""

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # At the end a delivery may be under way.
        with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


# -- use


@asynccontextmanager
async def in_use(
    at: dict[str, str],
    cameras: Mapping[str, Sequence[bytes]],
    looked_for: bytes,
    frame_seconds: float,
    look_seconds: float,
) -> AsyncIterator[None]:
    """Cameras that send their pictures over and over, somebody on a watchlist, people who look.

    `frame_seconds`: between two pictures of a camera; `look_seconds`: between two faces that are
    looked at.
    """
    await grant_all_faces(at["edge"], "the pictures of the dashboards", 1.0)
    await look_for(at["analytics"], [("Person 7", looked_for)])
    work = [_send(at["edge"], name, pictures, frame_seconds) for name, pictures in cameras.items()]
    tasks = [asyncio.ensure_future(each) for each in (*work, _look(at, look_seconds))]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
                raise RuntimeError("a camera or a reader ended by itself")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(edge: str, camera: str, pictures: Sequence[bytes], pause: float) -> None:
    async def frames() -> AsyncIterator[edge_pb2.StreamFramesRequest]:
        for number in count():
            picture = pictures[number % len(pictures)]
            request = edge_pb2.StreamFramesRequest(
                camera_id=camera, frame_number=number, encoded=picture
            )
            request.capture_time.GetCurrentTime()
            yield request
            await asyncio.sleep(pause)

    async with open_channel(edge) as channel:
        async for _ in edge_pb2_grpc.EdgeIngestStub(channel).StreamFrames(frames()):
            pass


async def _look(at: dict[str, str], pause: float) -> None:
    """At each new result, as fast as they are shown: the face's like, and its picture twice."""
    async with AnalyticsClient(at["analytics"]) as client, open_channel(at["decoder"]) as channel:
        decoder = decoder_pb2_grpc.CloudDecoderStub(channel)
        async for result in client.results(live_only=True):
            if not result.known:
                continue  # Too poor to be compared.
            await client.search(like=result.face_id, limit=10)
            for size in (256, 512):  # the second time layers are in the decoder's cache
                request = decoder_pb2.ReconstructRequest(
                    face_id=result.face_id, size=size, purpose="the pictures of the dashboards"
                )
                async for _ in decoder.Reconstruct(request):
                    pass
            await asyncio.sleep(pause)
