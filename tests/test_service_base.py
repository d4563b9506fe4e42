"""The shared base of the services: settings, errors over the wire, health, shutdown, SQLite."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry
from pydantic import Field

from sfic.errors import (
    ConfigError,
    FaceNotKept,
    InvalidInput,
    LimitExceeded,
    PacketError,
    SficError,
    StorageError,
    Unavailable,
)
from sfic.service.client import Backoff, from_rpc_error, open_channel, sfic_errors
from sfic.service.server import ServiceServer
from sfic.service.settings import ServiceSettings
from sfic.service.sqlite import Database
from sfic.v1 import edge_pb2, edge_pb2_grpc


class ToySettings(ServiceSettings):
    service: ClassVar[str] = "edge"
    size: int = Field(3, ge=1, le=9, title="Size")
    names: list[str] = []


class ToyService(edge_pb2_grpc.LayerStoreServicer, edge_pb2_grpc.BasicLayerFeedServicer):
    """Fails as it is told to by the face id; its feed goes on until it is drained."""

    names = ("sfic.v1.LayerStore", "sfic.v1.BasicLayerFeed")

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.stopping = asyncio.Event()
        self.events: list[str] = []
        self.error: Exception | None = None
        self.fail_start = False

    async def start(self) -> None:
        self.events.append("start")
        if self.fail_start:
            raise StorageError("no disk")

    def register(self, server: grpc.aio.Server) -> None:
        self.events.append("register")
        edge_pb2_grpc.add_LayerStoreServicer_to_server(self, server)
        edge_pb2_grpc.add_BasicLayerFeedServicer_to_server(self, server)

    async def drain(self) -> None:
        self.events.append("drain")
        self.stopping.set()

    async def close(self) -> None:
        self.events.append("close")

    async def FetchLayers(  # noqa: N802
        self, request: edge_pb2.FetchLayersRequest, context: Any
    ) -> edge_pb2.FetchLayersResponse:
        if self.error is not None:
            raise self.error
        return edge_pb2.FetchLayersResponse(
            faces=[edge_pb2.FetchLayersResponse.Face(face_id=i) for i in request.face_ids]
        )

    async def Subscribe(  # noqa: N802
        self, request: edge_pb2.SubscribeRequest, context: Any
    ) -> AsyncIterator[edge_pb2.SubscribeResponse]:
        yield edge_pb2.SubscribeResponse(cursor=1)
        await self.stopping.wait()
        yield edge_pb2.SubscribeResponse(cursor=2)
        raise Unavailable("going down")


def toy_settings(**values: Any) -> ToySettings:
    return ToySettings.make(metrics_listen="127.0.0.1:0", **values)


def test_settings_come_from_file_environment_and_flags_in_that_order(tmp_path: Path) -> None:
    config = tmp_path / "all.toml"
    config.write_text('[edge]\nsize = 4\nmax_calls = 7\nnames = ["a"]\n[decoder]\nother = 1\n')
    assert ToySettings.load().size == 3
    assert ToySettings.load(config=config, environment={}).size == 4
    environment = {"SFIC_EDGE__SIZE": "5", "SFIC_EDGE__NAMES": '["b", "c"]', "PATH": "x"}
    assert ToySettings.load(config=config, environment=environment).size == 5
    settings = ToySettings.load(["--config", str(config), "--size", "6"], environment=environment)
    assert (settings.size, settings.max_calls, settings.names) == (6, 7, ["b", "c"])


@pytest.mark.parametrize(
    ("flags", "environment", "file", "named"),
    [
        (["--size", "12"], {}, "", "edge.size"),
        (["--size", "many"], {}, "", "edge.size"),
        (["--siz", "4"], {}, "", "--siz"),
        (["--names", "[1"], {}, "", "edge.names"),
        (["--listen", "nowhere"], {}, "", "edge.listen"),
        (["--listen", "h:99999"], {}, "", "edge.listen"),
        ([], {"SFIC_EDGE__SIZES": "4"}, "", "SFIC_EDGE__SIZES"),
        ([], {"SFIC_EDGE__SIZE": "0"}, "", "edge.size"),
        ([], {}, "[edge]\nsizes = 3", "edge.sizes"),
        ([], {}, "[edges]\nsize = 3", "edges"),
        ([], {}, "edge = 3", "edge"),
        ([], {}, "size: 3", "not TOML"),
    ],
)
def test_a_wrong_setting_is_named(
    flags: list[str], environment: dict[str, str], file: str, named: str, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(file)
    with pytest.raises(ConfigError, match=named.replace("[", r"\[")) as caught:
        ToySettings.load(flags, config=config, environment=environment)
    assert "\n" not in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothere.toml"):
        ToySettings.load(config=tmp_path / "nothere.toml")


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ToySettings.load(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for name in ToySettings.model_fields:
        assert "--" + name.replace("_", "-") in printed


async def test_errors_of_the_tree_cross_the_wire_with_code_and_details() -> None:
    service = ToyService()
    async with (
        ServiceServer(service, toy_settings()) as server,
        open_channel(server.address) as channel,
    ):
        stub = edge_pb2_grpc.LayerStoreStub(channel)
        for kind, status in (
            (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
            (PacketError, grpc.StatusCode.DATA_LOSS),
            (FaceNotKept, grpc.StatusCode.NOT_FOUND),
            (LimitExceeded, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            service.error = kind("what went wrong", field="face_ids")
            with pytest.raises(grpc.aio.AioRpcError) as raw:
                await stub.FetchLayers(edge_pb2.FetchLayersRequest())
            assert raw.value.code() is status
            trailers = dict(raw.value.trailing_metadata())
            details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
            info = error_details_pb2.ErrorInfo()
            assert details.details[0].Unpack(info)
            assert (info.reason, info.domain) == (kind.code, "sfic")
            with pytest.raises(kind) as mapped, sfic_errors("toy"):
                await stub.FetchLayers(edge_pb2.FetchLayersRequest())
            assert type(mapped.value) is kind
            assert mapped.value.message == "what went wrong"
            assert mapped.value.details == {"field": "face_ids"}


async def test_our_own_fault_tells_the_client_nothing_of_the_inside() -> None:
    service = ToyService()
    service.error = ValueError("secret path /etc")
    async with (
        ServiceServer(service, toy_settings()) as server,
        open_channel(server.address) as channel,
    ):
        with pytest.raises(SficError) as caught, sfic_errors():
            await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(edge_pb2.FetchLayersRequest())
    assert caught.value.code == "INTERNAL"
    assert "secret" not in caught.value.message


async def test_a_very_long_message_still_arrives_as_the_error() -> None:
    service = ToyService()
    service.error = InvalidInput("x" * 100_000, field="y" * 100_000)
    async with (
        ServiceServer(service, toy_settings()) as server,
        open_channel(server.address) as channel,
    ):
        with pytest.raises(InvalidInput) as caught, sfic_errors():
            await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(edge_pb2.FetchLayersRequest())
    assert caught.value.message == "x" * 1000


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with open_channel("127.0.0.1:1", retry=False) as channel:
        with pytest.raises(Unavailable, match="toy"), sfic_errors("toy"):
            await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(edge_pb2.FetchLayersRequest())


def test_the_status_that_grpc_makes_of_a_lost_connection_is_unavailable() -> None:
    def error(details: str) -> grpc.aio.AioRpcError:
        metadata = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, metadata, metadata, details)

    assert type(from_rpc_error(error("Internal error from Core"), "edge")) is Unavailable
    assert type(from_rpc_error(error("something else"), "edge")) is SficError


async def test_message_at_the_limit_passes_and_one_byte_more_is_refused() -> None:
    limit = 64 * 1024
    settings = toy_settings(max_message_bytes=limit)
    async with (
        ServiceServer(ToyService(), settings) as server,
        open_channel(server.address) as channel,
    ):
        stub = edge_pb2_grpc.LayerStoreStub(channel)
        request = edge_pb2.FetchLayersRequest(face_ids=["x" * (limit - 4)])
        assert request.ByteSize() == limit
        assert len((await stub.FetchLayers(request)).faces) == 1
        request = edge_pb2.FetchLayersRequest(face_ids=["x" * (limit - 3)])
        with pytest.raises(LimitExceeded), sfic_errors():
            await stub.FetchLayers(request)
        # The connection survives.
        assert not (await stub.FetchLayers(edge_pb2.FetchLayersRequest())).faces


async def test_calls_over_the_limit_are_refused() -> None:
    settings = toy_settings(max_calls=1)
    async with (
        ServiceServer(ToyService(), settings) as server,
        open_channel(server.address, retry=False) as channel,
    ):
        call = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(edge_pb2.SubscribeRequest())
        assert (await call.read()).cursor == 1
        with pytest.raises(LimitExceeded), sfic_errors():
            await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(edge_pb2.FetchLayersRequest())
        call.cancel()


async def test_health_reflection_and_metrics() -> None:
    async with (
        ServiceServer(ToyService(), toy_settings()) as server,
        open_channel(server.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *ToyService.names):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await listing.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {s.name for s in (await listing.read()).list_services_response.service}
        listing.cancel()
        assert listed >= {*ToyService.names, "grpc.health.v1.Health"}

        page = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read()
        )
        assert b'sfic_grpc_calls_total{code="OK",method="/grpc.health.v1.Health/Check"} 3.0' in page


async def test_shutdown_turns_health_off_lets_calls_end_and_closes_last() -> None:
    service = ToyService()
    server = ServiceServer(service, toy_settings())
    await server.start()
    async with open_channel(server.address, retry=False) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = edge_pb2_grpc.BasicLayerFeedStub(channel).Subscribe(edge_pb2.SubscribeRequest())
        assert (await call.read()).cursor == 1
        stopping = asyncio.ensure_future(server.stop(grace_seconds=30))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await call.read()).cursor == 2
        with pytest.raises(Unavailable, match="going down"), sfic_errors():
            await call.read()
        # The watcher of health does not hang up, and may not hold the shutdown for its grace time.
        await asyncio.wait_for(stopping, 5)
    assert service.events == ["start", "register", "drain", "close"]


async def test_a_taken_port_is_a_config_error_before_anything_loads() -> None:
    async with ServiceServer(ToyService(), toy_settings()) as first:
        service = ToyService()
        with pytest.raises(ConfigError, match="edge.listen"):
            await ServiceServer(service, toy_settings(listen=first.address)).start()
        assert "start" not in service.events
        with pytest.raises(ConfigError, match="edge.metrics_listen"):
            await ServiceServer(
                ToyService(), ToySettings.make(metrics_listen=first.metrics_address)
            ).start()


async def test_a_failed_start_lets_go_of_its_ports() -> None:
    service = ToyService()
    service.fail_start = True
    failing = ServiceServer(service, toy_settings())
    with pytest.raises(StorageError):
        await failing.start()
    assert service.events == ["start", "close"]
    async with ServiceServer(ToyService(), toy_settings(listen=failing.address)):
        pass


def test_backoff_doubles_up_to_its_longest_and_starts_anew() -> None:
    backoff = Backoff(first=1.0, longest=5.0)
    waits = [backoff.next_seconds() for _ in range(6)]
    for wait, nominal in zip(waits, (1, 2, 4, 5, 5, 5), strict=True):
        assert 0.8 * nominal <= wait <= 1.2 * nominal
    backoff.reset()
    assert backoff.next_seconds() <= 1.2


async def test_database_keeps_commits_and_undoes_failures(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.sqlite"
    database = Database(path, ["CREATE TABLE t (x INTEGER UNIQUE)"])
    await database.write(lambda c: c.execute("INSERT INTO t VALUES (1)"))

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (2)")
        connection.execute("INSERT INTO t VALUES (1)")

    with pytest.raises(StorageError, match="UNIQUE"):
        await database.write(half)
    with pytest.raises(ZeroDivisionError):
        await database.write(lambda c: c.execute("INSERT INTO t VALUES (3)") and 1 // 0)
    rows = await database.read(lambda c: c.execute("SELECT x FROM t").fetchall())
    pragmas = await database.write(
        lambda c: [c.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous")]
    )
    database.close()
    assert rows == [(1,)]
    assert pragmas == ["wal", 2]


async def test_database_migrates_forward_and_refuses_a_newer_file(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    steps = ["CREATE TABLE t (x); INSERT INTO t VALUES (1)", "ALTER TABLE t ADD COLUMN y"]
    Database(path, steps[:1]).close()
    database = Database(path, steps)
    assert await database.read(lambda c: c.execute("SELECT * FROM t").fetchall()) == [(1, None)]
    database.close()
    with pytest.raises(StorageError, match="newer"):
        Database(path, steps[:1])
    with pytest.raises(StorageError):
        Database(path, [*steps, "CREATE TABLE u (x); NONSENSE"])
    # The failed step left nothing behind.
    Database(path, [*steps, "CREATE TABLE u (x)"]).close()


def test_database_that_cannot_be_opened_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "junk.sqlite").write_bytes(b"not a database, " * 100)
    with pytest.raises(StorageError, match="junk"):
        Database(tmp_path / "junk.sqlite", ["CREATE TABLE t (x)"])
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Database(tmp_path / "file" / "a.sqlite", [])


async def test_logs_are_json_lines(tmp_path: Path) -> None:
    script = (
        "import logging, structlog\n"
        "from sfic.service.server import configure_logs\n"
        "from sfic.service.settings import ServiceSettings\n"
        "configure_logs(ServiceSettings.make(log_format='json', log_level='info'))\n"
        "structlog.get_logger('a').info('one', faces=2)\n"
        "structlog.get_logger('a').debug('hidden')\n"
        "logging.getLogger('library').warning('two')\n"
    )
    process = await asyncio.create_subprocess_exec(
        __import__("sys").executable,
        "-c",
        script,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[1],
    )
    _, printed = await process.communicate()
    lines = [json.loads(line) for line in printed.decode().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("one", "info"),
        ("two", "warning"),
    ]
    assert lines[0]["faces"] == 2
