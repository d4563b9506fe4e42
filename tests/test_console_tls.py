"""The console over TLS on both sides: people to the page, the page to the services.

Certificates are those of `sfic certs init`.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from console_rig import console_settings, encoded_faces, eventually
from service_rig import Edge
from services_util import codec, edge_settings, running
from test_cli import sfic  # noqa: F401  # the fixture that runs the CLI

from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from cloud_decoder.service import DecoderService
from cloud_decoder.settings import DecoderSettings
from console.service import ConsoleServer
from edge_encoder.service import EdgeService
from sfic.grants import grant_all_faces
from sfic.service.identity import Identity
from sfic.service.tokens import issue_token


@pytest.fixture
def certs(tmp_path: Path, sfic: Any) -> Path:  # noqa: F811
    folder = tmp_path / "certs"
    assert sfic("certs", "init", "--folder", folder).code == 0
    return folder


def server_side(certs: Path, name: str) -> dict[str, Path]:
    """Settings of a service that takes calls over mutual TLS, or with a token."""
    return {
        "tls_certificate": certs / f"{name}.pem",
        "tls_key": certs / f"{name}-key.pem",
        "tls_client_ca": certs / "ca.pem",
        "token_key": certs / "token-public.pem",
    }


def identity(certs: Path, name: str) -> Identity:
    return Identity(certs / "ca.pem", certs / f"{name}.pem", certs / f"{name}-key.pem")


@asynccontextmanager
async def secured(folder: Path, certs: Path) -> AsyncIterator[tuple[Edge, dict[str, Any]]]:
    """The three services over mutual TLS; the edge, and settings of a console before them."""
    e = edge_settings(folder / "edge", workers=1, **server_side(certs, "edge"))
    edge_service = EdgeService(e, codec())
    async with running(edge_service, e) as edge:
        a = AnalyticsSettings.make(
            listen="127.0.0.1:0",
            metrics_listen="",
            edges=[edge.address],
            edge_ca=certs / "ca.pem",
            database=folder / "analytics.sqlite",
            shutdown_grace_seconds=1.0,
            **server_side(certs, "analytics"),
        )
        d = DecoderSettings.make(
            listen="127.0.0.1:0",
            metrics_listen="",
            edge=edge.address,
            edge_ca=certs / "ca.pem",
            threads=1,
            **server_side(certs, "decoder"),
        )
        async with (
            running(AnalyticsService(a, codec()), a) as analytics,
            running(DecoderService(d, codec()), d) as decoder,
        ):
            yield (
                Edge(edge_service, edge),
                {
                    "edges": [edge.address],
                    "analytics": analytics.address,
                    "decoder": decoder.address,
                    "tls_certificate": certs / "console.pem",
                    "tls_key": certs / "console-key.pem",
                },
            )


@asynccontextmanager
async def signed_in(
    console: ConsoleServer, certs: Path, role: str | None
) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that trusts the CA; with a role, somebody who has signed in."""
    trusted = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    async with httpx.AsyncClient(
        base_url=console.url,
        headers={"X-Sfic-Console": "1"},
        verify=trusted,
        timeout=60,
        trust_env=False,
    ) as client:
        if role:
            token = issue_token(certs / "token-key.pem", "ada", [role], 60)
            answer = await client.post("/api/session", json={"token": token})
            assert answer.status_code == 200, answer.text
            assert "secure" in answer.headers["set-cookie"].lower()
        yield client


async def states(client: httpx.AsyncClient) -> set[str]:
    services = (await client.get("/api/system")).json()["services"]
    return {each["state"] for each in services}


async def test_over_tls_from_the_page_to_the_picture(tmp_path: Path, certs: Path) -> None:
    async with secured(tmp_path, certs) as (edge, before):
        (kept,) = await edge.keep(encoded_faces()[:1])
        await grant_all_faces(edge.address, "a test", 1.0, identity(certs, "operator"))
        settings = console_settings(
            **before, services_ca=certs / "ca.pem", token_key=certs / "token-public.pem"
        )
        async with ConsoleServer(settings) as console:
            assert console.url.startswith("https://")
            async with signed_in(console, certs, None) as nobody:
                assert (await nobody.get("/api/grants")).status_code == 401
            async with signed_in(console, certs, "operator") as ada:
                assert await states(ada) == {"serving"}

                async def found() -> bool:
                    hits = (await ada.post("/api/search", json={})).json()["hits"]
                    return [hit["id"] for hit in hits] == [kept]

                await eventually(found)
                form = {"purpose": "Case 7", "size": "128"}
                shown = await ada.post(f"/api/faces/{kept}/levels", data=form)
                assert len(shown.text.splitlines()) == 3, shown.text
                assert (await ada.get("/api/audit")).json()["code"] == "ACCESS_DENIED"
            async with signed_in(console, certs, "admin") as admin:
                (log,) = (await admin.get("/api/audit")).json()
                # The edge knows who gave the grant: by certificate, not by the console's word.
                assert any(line["who"] == "operator" for line in log["newest"])

        # The console's certificate alone, without a CA to trust, or one of another CA: no call.
        without = console_settings(**before)
        async with ConsoleServer(without) as console, signed_in(console, certs, None) as client:
            assert await states(client) == {"away"}


async def test_the_page_is_not_taken_for_another(tmp_path: Path, certs: Path) -> None:
    settings = console_settings(
        tls_certificate=certs / "console.pem",
        tls_key=certs / "console-key.pem",
        token_key=certs / "token-public.pem",
    )
    async with ConsoleServer(settings) as console:
        async with signed_in(console, certs, None) as client:
            assert (await client.get("/healthz")).status_code == 200
        async with httpx.AsyncClient(trust_env=False) as stranger:
            with pytest.raises(httpx.ConnectError, match="(?i)certificate"):
                await stranger.get(f"{console.url}/healthz")
            with pytest.raises(httpx.HTTPError):
                await stranger.get(f"http://{console.address}/healthz")
