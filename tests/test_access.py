"""Roles: every role against every method of every service, over real servers; tokens; rates."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from services_util import codec, edge_settings, running
from test_service_base import ToyService, toy_settings

import sfic.v1
from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from cloud_decoder.service import DecoderService
from cloud_decoder.settings import DecoderSettings
from edge_encoder.service import EdgeService
from sfic.certificates import issue, make_ca, role_address
from sfic.errors import AccessDenied, ConfigError, LimitExceeded, Unauthenticated
from sfic.roles import ROLES, Role
from sfic.service.access import ACCESS, AccessInterceptor
from sfic.service.client import open_channel, sfic_errors
from sfic.service.identity import Identity
from sfic.service.server import ServiceServer
from sfic.service.settings import ServiceSettings
from sfic.service.tokens import TokenVerifier, issue_token, make_token_key
from sfic.v1 import edge_pb2, edge_pb2_grpc

DENIED = grpc.StatusCode.PERMISSION_DENIED


def methods() -> Iterator[str]:
    """Every method of the contracts, "/sfic.v1.Service/Method"."""
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(sfic.v1.__path__, "sfic.v1."):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(module.name).DESCRIPTOR
            for service in file.services_by_name.values():
                yield from (f"/{service.full_name}/{m.name}" for m in service.methods)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for each role, named after it, for servers ("server") and for "nobody"."""
    folder = tmp_path_factory.mktemp("certs")
    make_ca(folder)
    issue(folder, "server")
    issue(folder, "nobody")
    issue(folder, "two", ["camera", "decoder"])
    for role in ROLES:
        issue(folder, role, [role])
    return folder


def identity(folder: Path, name: str) -> Identity:
    return Identity(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}-key.pem")


@asynccontextmanager
async def three_services(certs: Path, folder: Path) -> AsyncIterator[dict[str, str]]:
    """Edge, analytics and decoder over mutual TLS; addresses by the names of gRPC services."""
    tls = {"tls_key": certs / "server-key.pem", "tls_client_ca": certs / "ca.pem"}
    tls["tls_certificate"] = certs / "server.pem"
    common: dict[str, Any] = {**tls, "listen": "127.0.0.1:0", "metrics_listen": ""}
    async with AsyncExitStack() as stack:
        edge = edge_settings(folder / "edge", **tls)
        made: list[tuple[Any, ServiceSettings]] = [(EdgeService(edge, codec()), edge)]
        analytics = AnalyticsSettings.make(
            **common, edges=["127.0.0.1:1"], database=folder / "a.sqlite", edge_ca=certs / "ca.pem"
        )
        decoder = DecoderSettings.make(**common, edge="127.0.0.1:1", edge_ca=certs / "ca.pem")
        made.append((AnalyticsService(analytics, codec()), analytics))
        made.append((DecoderService(decoder, codec()), decoder))
        addresses = {}
        for service, settings in made:
            server = await stack.enter_async_context(running(service, settings))
            addresses.update(dict.fromkeys(service.names, server.address))
        yield addresses


async def status_of(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    """What becomes of a call with an empty message; one that streams counts as let through."""
    if method.endswith("/StreamFrames"):
        call = channel.stream_stream(method)()
    else:
        call = channel.unary_stream(method)(b"")
    try:
        return await asyncio.wait_for(call.code(), 4)
    except asyncio.TimeoutError:
        return grpc.StatusCode.OK
    finally:
        call.cancel()


async def test_every_role_against_every_method(certs: Path, tmp_path: Path) -> None:
    async with three_services(certs, tmp_path) as addresses:
        outcomes = {}
        for holder in (*ROLES, "nobody"):
            for address in set(addresses.values()):
                who = identity(certs, holder)
                async with open_channel(address, identity=who, retry=False) as channel:
                    await channel.channel_ready()
                    here = [m for m in methods() if addresses[m.split("/")[1]] == address]
                    statuses = await asyncio.gather(*(status_of(channel, m) for m in here))
                    outcomes.update(zip([(holder, m) for m in here], statuses, strict=True))
                    health = await health_pb2_grpc.HealthStub(channel).Check(
                        health_pb2.HealthCheckRequest()
                    )
                    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert set(outcomes) == set(itertools.product((*ROLES, "nobody"), methods()))
    for (holder, method), status in outcomes.items():
        allowed = holder in ACCESS[method]
        assert (status is DENIED) == (not allowed), (holder, method, status)
        assert status is not grpc.StatusCode.UNAUTHENTICATED
    assert all(outcomes["nobody", method] is DENIED for method in methods())


def test_the_table_names_every_method_and_no_other() -> None:
    assert {method for method in ACCESS if method.startswith("/sfic.")} == set(methods())
    assert all(ACCESS.values())
    assert all("admin" in roles for roles in ACCESS.values())


async def test_reflection_is_for_those_who_have_a_role(certs: Path) -> None:
    async with toy_over_tls(certs) as server:
        for holder, allowed in (("camera", True), ("nobody", False)):
            async with open_channel(server.address, identity=identity(certs, holder)) as channel:
                call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                    iter([reflection_pb2.ServerReflectionRequest(list_services="")])
                )
                if allowed:
                    assert (await call.read()).list_services_response.service
                else:
                    with pytest.raises(AccessDenied), sfic_errors():
                        await call.read()
                call.cancel()


@asynccontextmanager
async def toy_over_tls(certs: Path, **values: Any) -> AsyncIterator[ServiceServer]:
    settings = toy_settings(
        tls_certificate=certs / "server.pem",
        tls_key=certs / "server-key.pem",
        **{"tls_client_ca": certs / "ca.pem", **values},
    )
    async with ServiceServer(ToyService(), settings) as server:
        yield server


async def fetch(address: str, who: Identity | None = None, **call: Any) -> None:
    async with open_channel(address, identity=who, retry=False) as channel:
        with sfic_errors():
            await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(
                edge_pb2.FetchLayersRequest(), **call
            )


async def test_a_holder_of_two_roles_may_what_either_may(certs: Path) -> None:
    async with toy_over_tls(certs) as server:
        await fetch(server.address, identity(certs, "two"))
        with pytest.raises(AccessDenied, match="two .camera, decoder. may not call"):
            async with open_channel(server.address, identity=identity(certs, "two")) as channel:
                with sfic_errors():
                    await (
                        edge_pb2_grpc.BasicLayerFeedStub(channel)
                        .Subscribe(edge_pb2.SubscribeRequest())
                        .read()
                    )


async def test_who_need_not_say_who_it_is_is_a_local_admin() -> None:
    async with ServiceServer(ToyService(), toy_settings(rate_limits={"admin": 1})) as server:
        for _ in range(3):
            await fetch(server.address)


async def test_a_method_that_is_not_in_the_table_is_refused_to_all(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {k: v for k, v in ACCESS.items() if "FetchLayers" not in k}
    monkeypatch.setattr("sfic.service.access.ACCESS", left)
    async with toy_over_tls(certs) as server:
        with pytest.raises(AccessDenied):
            await fetch(server.address, identity(certs, "admin"))


@pytest.fixture(params=["ed25519", "ed25519-public", "hs256"])
def token_keys(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The key that signs and the key that a service is given."""
    private, public = make_token_key()
    (tmp_path / "key").write_bytes(private if request.param != "hs256" else bytes(range(32)))
    (tmp_path / "public").write_bytes(public)
    given = tmp_path / ("public" if request.param == "ed25519-public" else "key")
    return tmp_path / "key", given


@pytest.mark.parametrize("over_tls", [True, False])
async def test_tokens_say_who_calls(
    token_keys: tuple[Path, Path], certs: Path, tmp_path: Path, over_tls: bool
) -> None:
    signs, checks = token_keys
    token = tmp_path / "token"
    who = Identity(ca=certs / "ca.pem" if over_tls else None, token=token)
    settings = toy_settings(
        token_key=checks,
        tls_certificate=certs / "server.pem" if over_tls else None,
        tls_key=certs / "server-key.pem" if over_tls else None,
    )
    async with ServiceServer(ToyService(), settings) as server:
        with pytest.raises(Unauthenticated, match="token is needed"):
            await fetch(server.address, Identity(ca=who.ca))
        async with open_channel(server.address, identity=who) as channel:
            stub = edge_pb2_grpc.LayerStoreStub(channel)
            for roles, refused in (
                (["decoder"], None),
                (["camera"], AccessDenied),
                ([], AccessDenied),
                (["robot"], AccessDenied),
                (["admin"], None),
            ):
                # The file is read for each call: a renewed token needs no new channel.
                token.write_text(issue_token(signs, "anna", roles, 60) + "\n")
                if refused is None:
                    await stub.FetchLayers(edge_pb2.FetchLayersRequest())
                else:
                    with pytest.raises(refused, match="anna"), sfic_errors():
                        await stub.FetchLayers(edge_pb2.FetchLayersRequest())


def forged(kind: str, private: bytes, public: bytes) -> str:
    """Tokens that must not be believed."""
    now = time.time()
    claims: dict[str, Any] = {"sub": "eve", "roles": ["admin"], "aud": "sfic", "exp": now + 60}
    key: bytes | None = private
    algorithm: str | None = "EdDSA"
    if kind == "expired":
        claims["exp"] = now - 1
    elif kind == "no expiry":
        del claims["exp"]
    elif kind == "no name":
        del claims["sub"]
    elif kind == "for another audience":
        claims["aud"] = "bank"
    elif kind == "another key":
        key = make_token_key()[0]
    elif kind == "not signed":
        key, algorithm = None, "none"
    elif kind == "public key as a shared secret":
        import base64
        import hashlib
        import hmac
        import json

        # Made by hand: PyJWT refuses to sign so.
        parts = [{"alg": "HS256", "typ": "JWT"}, claims]
        text = b".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts
        )
        mac = hmac.new(public, text, hashlib.sha256).digest()
        return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()
    return jwt.encode(claims, key, algorithm=algorithm)


@pytest.mark.parametrize(
    "kind",
    [
        "expired",
        "no expiry",
        "no name",
        "for another audience",
        "another key",
        "not signed",
        "public key as a shared secret",
    ],
)
def test_forged_tokens_are_not_believed(kind: str, tmp_path: Path) -> None:
    private, public = make_token_key()
    (tmp_path / "public").write_bytes(public)
    verifier = TokenVerifier(tmp_path / "public")
    (tmp_path / "key").write_bytes(private)
    good = issue_token(tmp_path / "key", "anna", ["admin"], 60)
    assert verifier.read(f"Bearer {good}") == ("anna", frozenset({"admin"}))
    with pytest.raises(Unauthenticated):
        verifier.read(f"Bearer {forged(kind, private, public)}")
    for header in ("", "Bearer", f"Basic {good}", good, f"Bearer {good}x", "Bearer " + "x" * 9999):
        with pytest.raises(Unauthenticated):
            verifier.read(header)


def test_token_keys_that_cannot_be_used_are_named(tmp_path: Path, certs: Path) -> None:
    _, public = make_token_key()
    (tmp_path / "public").write_bytes(public)
    (tmp_path / "short").write_bytes(b"x" * 31)
    (tmp_path / "broken").write_text("-----BEGIN PUBLIC KEY-----\nx\n")
    with pytest.raises(ConfigError, match="public key"):
        issue_token(tmp_path / "public", "anna", ["admin"], 60)
    for path in (tmp_path / "short", tmp_path / "broken", certs / "ca-key.pem", tmp_path / "none"):
        with pytest.raises(ConfigError, match=path.name):
            AccessInterceptor(ServiceSettings.make(token_key=path))


async def test_rates_are_limited_for_each_client_and_role(certs: Path) -> None:
    issue(certs, "second", ["decoder"])
    limits = {"decoder": 3, "camera": 1}
    async with toy_over_tls(certs, rate_limits=limits) as server:
        for _ in range(3):
            await fetch(server.address, identity(certs, "decoder"))
        async with open_channel(
            server.address, identity=identity(certs, "decoder"), retry=False
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(
                    edge_pb2.FetchLayersRequest()
                )
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(refused.value.trailing_metadata())
        details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
        retry = error_details_pb2.RetryInfo()
        assert details[1].Unpack(retry)
        assert 0 < retry.retry_delay.ToMilliseconds() <= 20_000
        # Others are not held up, nor is a role without a limit, and health is never counted.
        await fetch(server.address, identity(certs, "second"))
        await fetch(server.address, identity(certs, "admin"))
        async with open_channel(server.address, identity=identity(certs, "decoder")) as channel:
            for _ in range(5):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())


def test_a_bucket_fills_with_time() -> None:
    from sfic.service.access import _RateLimits

    now = [0.0]
    limits = _RateLimits({"camera": 6, "operator": 60}, lambda: now[0])
    camera = frozenset[Role]({"camera"})
    for _ in range(6):
        limits.count("a", camera)
    with pytest.raises(LimitExceeded) as refused:
        limits.count("a", camera)
    assert float(refused.value.details["retry_seconds"]) == pytest.approx(10.0)
    now[0] = 10.001
    limits.count("a", camera)
    with pytest.raises(LimitExceeded):
        limits.count("a", camera)
    now[0] = 10_000.0
    for _ in range(6):
        limits.count("a", camera)
    with pytest.raises(LimitExceeded):
        limits.count("a", camera)
    for _ in range(60):
        limits.count("a", frozenset[Role]({"camera", "operator"}))
    for _ in range(1000):
        limits.count("a", frozenset[Role]({"camera", "admin"}))


def test_a_role_is_an_address_in_the_certificate() -> None:
    assert role_address("camera", "door") == "sfic://camera/door"
