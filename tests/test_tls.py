"""TLS of the services: who gets a connection, certificates renewed, what must not start."""

from __future__ import annotations

import asyncio
import datetime
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from services_util import empty_jpeg
from test_service_base import ToyService, toy_settings

from sfic.certificates import issue, make_ca
from sfic.errors import AccessDenied, ConfigError, InvalidInput, SficError, Unavailable
from sfic.healthcheck import serves
from sfic.service.client import open_channel, sfic_errors
from sfic.service.identity import Identity
from sfic.service.server import ServiceServer
from sfic.service.settings import ServiceSettings
from sfic.v1 import edge_pb2, edge_pb2_grpc


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with a server's certificate and one of a decoder."""
    folder = tmp_path_factory.mktemp("certs")
    assert make_ca(folder)
    issue(folder, "edge", hosts=["localhost", "127.0.0.1"])
    issue(folder, "decoder", ["decoder"])
    return folder


def identity(folder: Path, name: str) -> Identity:
    return Identity(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}-key.pem")


def tls_settings(folder: Path, *, mutual: bool = True, **values: Any) -> ServiceSettings:
    return toy_settings(
        tls_certificate=folder / "edge.pem",
        tls_key=folder / "edge-key.pem",
        tls_client_ca=folder / "ca.pem" if mutual else None,
        **values,
    )


async def ask(address: str, who: Identity | None) -> None:
    """One call; raises what becomes of it."""
    async with open_channel(address, identity=who, retry=False) as channel:
        with sfic_errors("toy"):
            await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(
                edge_pb2.FetchLayersRequest(), timeout=10
            )


@asynccontextmanager
async def toy_server(settings: ServiceSettings) -> AsyncIterator[ServiceServer]:
    async with ServiceServer(ToyService(), settings) as server:
        yield server


async def test_with_a_client_ca_only_its_certificates_get_a_connection(
    issued: Path, tmp_path: Path
) -> None:
    make_ca(tmp_path)
    issue(tmp_path, "decoder", ["decoder"])
    stranger = Identity(issued / "ca.pem", tmp_path / "decoder.pem", tmp_path / "decoder-key.pem")
    async with toy_server(tls_settings(issued)) as server:
        await ask(server.address, identity(issued, "decoder"))
        with pytest.raises(AccessDenied, match="edge .no role. may not call"):
            await ask(server.address, identity(issued, "edge"))
        for who in (None, Identity(ca=issued / "ca.pem"), stranger):
            with pytest.raises(Unavailable):
                await ask(server.address, who)
        # The client, too, looks whom it talks to.
        with pytest.raises(Unavailable, match="(?i)certificate|handshake|ssl|closed"):
            await ask(server.address, identity(tmp_path, "decoder"))


async def test_without_a_client_ca_tls_asks_no_certificate(issued: Path) -> None:
    async with toy_server(tls_settings(issued, mutual=False)) as server:
        await ask(server.address, Identity(ca=issued / "ca.pem"))
        with pytest.raises(Unavailable):
            await ask(server.address, None)


@pytest.mark.parametrize("mutual", [True, False])
async def test_a_service_can_ask_its_own_health(issued: Path, mutual: bool) -> None:
    settings = tls_settings(issued, mutual=mutual)
    async with toy_server(settings) as server:
        assert await asyncio.to_thread(
            serves, server.address, identity=settings.own_identity(), timeout_seconds=10
        )
        assert not await asyncio.to_thread(serves, server.address, 1.0)


async def test_new_certificates_are_taken_without_a_restart(issued: Path, tmp_path: Path) -> None:
    """A new CA on both sides, under a running server and a channel that stays open."""
    shutil.copytree(issued, tmp_path, dirs_exist_ok=True)
    old = identity(issued, "decoder")
    async with (
        toy_server(tls_settings(tmp_path)) as server,
        open_channel(server.address, identity=identity(tmp_path, "decoder")) as channel,
    ):
        stub = edge_pb2_grpc.LayerStoreStub(channel)
        await stub.FetchLayers(edge_pb2.FetchLayersRequest())
        await ask(server.address, old)
        for path in tmp_path.glob("*.pem"):
            path.unlink()
        make_ca(tmp_path)
        issue(tmp_path, "edge")
        issue(tmp_path, "decoder", ["decoder"])
        await stub.FetchLayers(edge_pb2.FetchLayersRequest())
        await ask(server.address, identity(tmp_path, "decoder"))
        with pytest.raises(Unavailable):
            await ask(server.address, old)


async def test_a_spoilt_certificate_leaves_the_last_good_one_in_use(
    issued: Path, tmp_path: Path
) -> None:
    shutil.copytree(issued, tmp_path, dirs_exist_ok=True)
    async with toy_server(tls_settings(tmp_path)) as server:
        (tmp_path / "edge.pem").write_text("half of a certif")
        await ask(server.address, identity(issued, "decoder"))
        shutil.copy(tmp_path / "decoder.pem", tmp_path / "edge.pem")
        await ask(server.address, identity(issued, "decoder"))


async def test_files_that_cannot_be_used_stop_the_start(issued: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    wrong: list[dict[str, Any]] = [
        {"tls_certificate": tmp_path / "none.pem"},
        {"tls_certificate": tmp_path / "junk.pem"},
        {"tls_key": tmp_path / "junk.pem"},
        {"tls_key": issued / "decoder-key.pem"},
        {"tls_client_ca": tmp_path / "junk.pem"},
    ]
    for values in wrong:
        (path,) = values.values()
        settings = tls_settings(issued).model_copy(update=values)
        with pytest.raises(ConfigError, match=path.name):
            await ServiceServer(ToyService(), settings).start()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"listen": "0.0.0.0:0"}, "without TLS"),
        ({"listen": "[::]:0"}, "without TLS"),
        ({"listen": "edge.example:0"}, "without TLS"),
        ({"listen": "0.0.0.0:0", "token_key": "k"}, "without TLS"),
        ({"listen": "0.0.0.0:0", "tls_certificate": "c", "tls_key": "k"}, "know the callers"),
        ({"tls_certificate": "c"}, "need each other"),
        ({"tls_key": "c"}, "need each other"),
        ({"tls_client_ca": "c"}, "needs tls_certificate"),
        ({"rate_limits": {"robot": 1}}, "robot"),
        ({"rate_limits": {"camera": 0}}, "camera"),
    ],
)
def test_settings_that_would_let_strangers_in_are_refused(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        ServiceSettings.make(**values)


def test_settings_that_keep_strangers_out_or_say_so_are_taken() -> None:
    tls = {"tls_certificate": "c", "tls_key": "k"}
    for listen in ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"):
        assert not ServiceSettings.make(listen=listen).knows_callers
    assert ServiceSettings.make(listen="0.0.0.0:1", tls_client_ca="a", **tls).knows_callers
    assert ServiceSettings.make(listen="0.0.0.0:1", token_key="t", **tls).knows_callers
    assert ServiceSettings.load(["--insecure", "--listen", "0.0.0.0:1"]).insecure
    assert not ServiceSettings.load(["--insecure", "false"]).insecure


async def test_insecure_is_said_loudly(capfd: pytest.CaptureFixture[str]) -> None:
    async with toy_server(toy_settings(listen="0.0.0.0:0", insecure=True)) as server:
        await ask(f"127.0.0.1:{server.address.rpartition(':')[2]}", None)
    said = "".join(capfd.readouterr())
    assert "INSECURE" in said and "warning" in said


def test_issued_certificates_say_who_where_and_how_long(tmp_path: Path) -> None:
    assert make_ca(tmp_path)
    before = (tmp_path / "ca.pem").read_bytes()
    assert not make_ca(tmp_path) and (tmp_path / "ca.pem").read_bytes() == before
    path = issue(tmp_path, "door", ["camera", "operator"], hosts=["door.lan", "10.1.2.3"], days=7)
    made = x509.load_pem_x509_certificate(path.read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["door.lan"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "sfic://camera/door",
        "sfic://operator/door",
    ]
    held = made.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    assert held < datetime.timedelta(days=7)
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(before))
    for key in tmp_path.glob("*-key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for name in ("ca", "../door", "", "a b"):
        with pytest.raises(InvalidInput, match="name"):
            issue(tmp_path, name)
    with pytest.raises(InvalidInput, match="certs init"):
        issue(tmp_path / "nowhere", "door")


async def test_a_token_never_crosses_a_network_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        open_channel("edge.example:50051", identity=Identity(token=tmp_path / "token"))


async def test_the_camera_client_calls_over_tls(issued: Path, tmp_path: Path) -> None:
    from services_util import codec, edge_settings, running

    from edge_encoder.service import EdgeService
    from sfic.camera import Camera
    from sfic.sources import open_source

    issue(issued, "door", ["camera"])
    picture = tmp_path / "wall.jpg"
    picture.write_bytes(empty_jpeg())
    settings = edge_settings(
        tmp_path / "edge",
        tls_certificate=issued / "edge.pem",
        tls_key=issued / "edge-key.pem",
        tls_client_ca=issued / "ca.pem",
    )
    async with running(EdgeService(settings, codec()), settings) as server:
        for name in ("door", "decoder"):
            camera = Camera(
                open_source(str(picture)), server.address, identity=identity(issued, name)
            )
            try:
                receipts = [receipt async for receipt in camera.receipts()]
            except SficError as error:
                assert (name, type(error)) == ("decoder", AccessDenied)
            else:
                assert name == "door"
                assert [receipt.error_code for receipt in receipts] == [""]
