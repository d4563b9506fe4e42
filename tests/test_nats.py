"""Basic layers over NATS JetStream: hub, leaves and replicas that come and go; nothing is lost or
repeated. All servers are real; without nats-server (Debian: apt-get install nats-server) all of it
skips.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nats", reason="nats-py is not installed")

import nats.errors
import test_analytics
import test_forget
from nats_rig import (
    SERVER,
    SITES,
    Backbone,
    NatsKey,
    NatsServer,
    messages_of,
    running_backbone,
)
from service_rig import Edge, codec, encoded_faces, eventually, running_edge, start_process
from services_util import REPOSITORY, SWITCHED, running
from test_analytics import count, ids, kept, read_results, running_analytics
from test_forget import bytes_of, forget

from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from edge_encoder.settings import EdgeSettings
from sfic.certificates import issue, make_ca
from sfic.errors import ConfigError, PacketError, Unavailable
from sfic.processes import free_address
from sfic.sealing import new_layer_key, open_layer, open_result, seal_result
from sfic.service.client import open_channel
from sfic.service.identity import Identity
from sfic.service.nats import NatsAccess, connected
from sfic.service.streams import FACES, RESULTS
from sfic.v1 import analytics_pb2_grpc, edge_pb2, edge_pb2_grpc

pytestmark = pytest.mark.skipif(SERVER is None, reason="nats-server is not installed")

CONTRACT = (
    test_analytics.test_result_is_what_the_codec_says_of_the_basic_layer,
    test_analytics.test_resumes_after_a_restart_without_loss_or_repeat,
    test_analytics.test_live_results_follow_the_kept_ones_without_a_seam,
    test_analytics.test_several_edges_and_an_edge_that_comes_back,
    test_analytics.test_an_edge_with_a_new_log_is_read_from_its_start,
    test_analytics.test_a_face_that_cannot_be_read_is_on_record_and_stops_nothing,
    test_analytics.test_retention_deletes_and_says_how_many_were_missed,
    test_forget.test_analytics_and_decoder_forget_at_once,
    test_forget.test_analytics_that_was_away_forgets_at_its_next_contact,
)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backbone]:
    yield from running_backbone(tmp_path_factory.mktemp("nats"))


@pytest.fixture
def linked_servers(tmp_path: Path) -> Iterator[Backbone]:
    """Servers of a test that cuts the links between them."""
    yield from running_backbone(tmp_path, linked=True)


@pytest.fixture
def switch(servers: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in each service's settings: edges at the first site's leaf, analytics at the hub."""
    monkeypatch.setitem(SWITCHED, "edge", lambda folder: on_site(servers, 0, folder))
    monkeypatch.setitem(SWITCHED, "analytics", lambda _: at_hub(servers))


def on_site(servers: Backbone, number: int, folder: Path) -> dict[str, Any]:
    edge_id = folder.name if folder.name.startswith("edge-") else "edge-1"
    return {"nats": servers.leaves[SITES[number]].url, "edge_id": edge_id}


def at_hub(servers: Backbone) -> dict[str, Any]:
    return {"nats": servers.hub.url, "nats_ack_seconds": 2.0}


@pytest.mark.parametrize("contract", CONTRACT, ids=lambda test: test.__name__)
async def test_the_contract_holds_over_nats(
    contract: Any, tmp_path: Path, servers: Backbone, switch: None
) -> None:
    async with servers.open():
        await contract(tmp_path)


async def published(edge: Edge, faces: int) -> None:
    """Returns once the site's leaf has what the edge keeps."""
    await eventually(
        lambda: (
            edge.value("sfic_edge_outbox_faces_total") == faces
            and edge.value("sfic_edge_outbox_waiting_faces") == 0
        ),
        60,
    )


async def test_nothing_lost_or_repeated_over_cuts_kills_and_restarts(
    tmp_path: Path, linked_servers: Backbone
) -> None:
    """A replica is killed with faces in work, a site is cut off for longer than the duplicate
    window, the hub restarts; both replicas end with every face once."""
    servers, faces = linked_servers, encoded_faces()
    databases = [tmp_path / "replica-1.sqlite", tmp_path / "replica-2" / "analytics.sqlite"]
    async with (
        servers.open() as hub,
        running_edge(tmp_path / "edge-1", **on_site(servers, 0, tmp_path / "edge-1")) as first,
        running_edge(tmp_path / "edge-2", **on_site(servers, 1, tmp_path / "edge-2")) as second,
    ):
        edges = (first.address, second.address)
        arguments = (
            "--listen=127.0.0.1:0",
            "--metrics-listen=",
            f'--edges=["{edges[0]}", "{edges[1]}"]',
            f"--database={databases[0]}",
            "--threads=1",
            "--batch-faces=4",
            "--reconnect-seconds=0.5",
            "--nats-ack-seconds=2",
            f"--nats={servers.hub.url}",
        )
        replica = start_process("analytics_service", *arguments)
        sent: dict[str, list[str]] = {"edge-1": [], "edge-2": []}

        async def keep(edge: Edge, times: int) -> None:
            for _ in range(times):
                sent[edge.service.settings.edge_id] += await edge.keep(faces)

        try:
            await keep(first, 15)
            await keep(second, 15)
            await eventually(lambda: kept(databases[0]) >= 8, 120)
            async with running_analytics(
                tmp_path / "replica-2",
                *edges,
                batch_faces=4,
                **at_hub(servers),
            ) as (other, stub):
                os.kill(replica.pid, signal.SIGKILL)
                replica.wait()
                at_kill = kept(databases[0])

                servers.links[SITES[0]].cut()
                await keep(first, 10)
                await published(first, 100)
                behind = await messages_of(hub, FACES)
                assert not {m.headers["Nats-Msg-Id"] for m in behind} & set(sent["edge-1"][60:])
                await asyncio.sleep(1.5)
                servers.links[SITES[0]].heal()

                servers.hub.stop()
                await keep(second, 5)
                await published(second, 80)
                servers.hub.start()
                replica = start_process("analytics_service", *arguments)
                results = await read_results(stub, 180)
                await eventually(lambda: kept(databases[0]) >= 180, 120)
                read = count(other, "sfic_analytics_batch_seconds_count")
                in_stream = await messages_of(hub, FACES)
        finally:
            replica.terminate()
            replica.wait(30)
    assert at_kill < 120, "the kill did not come in the middle of the work"
    assert read > 0
    assert len(results) == len(set(ids(results))), "repeated"
    everything = sorted(sent["edge-1"] + sent["edge-2"])
    assert sorted(ids(results)) == everything
    assert sorted(m.headers["Nats-Msg-Id"] for m in in_stream) == everything
    for database in databases:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        rows = [row[0] for row in connection.execute("SELECT face_id FROM results")]
        failed = connection.execute("SELECT count(*) FROM failures").fetchone()
        connection.close()
        assert (sorted(rows), failed) == (everything, (0,))


async def test_replicas_share_the_work_and_each_answers_for_all(
    tmp_path: Path, servers: Backbone, switch: None
) -> None:
    faces = encoded_faces()
    async with (
        servers.open(),
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path / "a", edge.address, batch_faces=4) as (one, stub),
        running_analytics(tmp_path / "b", edge.address, batch_faces=4) as (two, other),
    ):
        sent: list[str] = []
        for _ in range(40):
            sent += await edge.keep(faces)
            await asyncio.sleep(0.01)
        read = [await read_results(each, 160) for each in (stub, other)]
        shares = [
            count(service, "sfic_analytics_faces_total", edge=edge.address, outcome="OK")
            for service in (one, two)
        ]
    assert all(sorted(ids(results)) == sorted(sent) for results in read)
    assert ids(read[0]) == ids(read[1])
    assert [r.analysis.visit_id for r in read[0]] == [r.analysis.visit_id for r in read[1]]
    assert sum(shares) == 160 and min(shares) > 0


async def test_no_server_ever_has_what_opens_a_face(
    tmp_path: Path, servers: Backbone, switch: None
) -> None:
    """Of faces, leaf and hub hold sealed basic layers and sealed results: no higher layer, no key,
    nothing that was read. What is forgotten stays closed there."""
    faces = encoded_faces()
    async with (
        servers.open() as hub,
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path / "a", edge.address) as (_, stub),
    ):
        (gone, stays) = await edge.keep(faces[:2])
        (first, _) = await read_results(stub, 2)
        store = edge.service._store
        assert store is not None
        keys = await store.keys([gone, stays], ["basic", "middle", "enhanced"])
        layers = await store.fetch([gone, stays])
        held = bytes_of(servers.store)
        for stream, domain in ((FACES, SITES[0]), (FACES, None), (RESULTS, None)):
            messages = await messages_of(hub, stream, domain)
            held += b"".join(message.data or b"" for message in messages)
        assert layers[gone].layers["basic"] in held
        secret = [
            *keys.values(),
            *(face.layers[name] for face in layers.values() for name in ("middle", "enhanced")),
            *(part for face in faces[:2] for part in (face.basic, face.middle, face.enhanced)),
            np.asarray(first.analysis.embedding, "<f4").tobytes()[:64],
        ]
        assert not [each for each in secret if each in held]

        await forget(edge.address, face_ids=[gone])
        async with open_channel(edge.address) as channel:
            call = edge_pb2_grpc.BasicLayerFeedStub(channel).FetchBasicKeys()
            await call.write(edge_pb2.FetchBasicKeysRequest(face_ids=[stays, gone]))
            answer = await call.read()
            call.cancel()
        assert list(answer.keys) == [keys[stays, "basic"], b""]
        # A replica that comes later reads the same streams and finds nothing of it.
        async with running_analytics(tmp_path / "b", edge.address) as (late, other):
            assert ids(await read_results(other, 1)) == [stays]
            label = {"edge": edge.address, "outcome": "FACE_NOT_KEPT"}
            await eventually(lambda: count(late, "sfic_analytics_faces_total", **label) == 1)


async def test_a_face_in_the_queue_is_forgotten_before_it_is_read(
    tmp_path: Path, servers: Backbone, switch: None
) -> None:
    async with (
        servers.open(),
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path / "a", edge.address, nats_ack_seconds=60) as (service, stub),
    ):
        release = asyncio.Event()
        loop = asyncio.get_running_loop()
        hold = loop.run_in_executor(
            service._analysis,
            lambda: asyncio.run_coroutine_threadsafe(release.wait(), loop).result(60),
        )
        (gone,) = await edge.keep(encoded_faces()[:1])
        await eventually(lambda: bool(service._analysis._work_queue.qsize()))
        await forget(edge.address, face_ids=[gone])
        release.set()
        await hold
        (stays,) = await edge.keep(encoded_faces()[1:2])
        assert ids(await read_results(stub, 1)) == [stays]
        assert await service._store.by_face(gone) is None


async def test_the_line_may_come_and_go(
    tmp_path: Path, servers: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces, address = encoded_faces(), free_address()
    sent: list[str] = []
    async with servers.open():
        for over_nats in (False, True, False):
            with monkeypatch.context() as patch:
                if over_nats:
                    patch.setitem(SWITCHED, "edge", lambda folder: on_site(servers, 0, folder))
                    patch.setitem(SWITCHED, "analytics", lambda _: at_hub(servers))
                async with (
                    running_edge(tmp_path / "edge-1", listen=address) as edge,
                    running_analytics(tmp_path, address) as (_, stub),
                ):
                    sent += await edge.keep(faces[:2])
                    results = await read_results(stub, len(sent))
                    assert sorted(ids(results)) == sorted(sent)
                    assert [result.cursor for result in results] == list(range(1, len(sent) + 1))


async def test_an_edge_goes_on_exactly_where_it_stopped(
    tmp_path: Path, servers: Backbone, switch: None
) -> None:
    """Also after longer than the duplicate window, when JetStream itself would not notice."""
    faces = encoded_faces()
    async with servers.open() as hub:
        sent: list[str] = []
        for kept_so_far in (4, 8):
            async with running_edge(tmp_path / "edge") as edge:
                sent += await edge.keep(faces)
                await published(edge, 4)
                assert len(sent) == kept_so_far
            await asyncio.sleep(1.2)
        stored = await messages_of(hub, FACES, SITES[0])
    assert [message.headers["Nats-Msg-Id"] for message in stored] == sent


async def test_a_full_leaf_makes_the_edge_wait_and_say_so(
    tmp_path: Path, servers: Backbone, switch: None
) -> None:
    async with servers.open(site_bytes=2000) as hub, running_edge(tmp_path / "edge") as edge:
        sent = [await edge.keep(encoded_faces()[:1]) for _ in range(12)]
        await eventually(lambda: edge.value("sfic_edge_outbox_waiting_faces") > 5)
        first = await messages_of(hub, FACES, SITES[0])
        assert 0 < len(first) < 6
        jetstream = hub.jetstream(domain=SITES[0])
        config = (await jetstream.stream_info(FACES)).config
        config.max_bytes = -1
        await jetstream.update_stream(config)
        await published(edge, 12)
        stored = await messages_of(hub, FACES, SITES[0])
    assert [[message.headers["Nats-Msg-Id"]] for message in stored] == sent


async def test_the_shipped_configuration_lets_in_who_is_named_and_no_other(tmp_path: Path) -> None:
    """deploy/nats over TLS with certificates of one CA, `sfic nats init`, an edge, analytics."""
    certs = tmp_path / "certs"
    make_ca(certs)
    for name, roles in (("hub", ()), ("store-7", ()), ("edge", ())):
        issue(certs, name, roles)
    for role in ("analytics", "admin", "camera"):
        issue(certs, role, [role])
    leaves = free_address()

    def server(kind: str, holder: str, **more: str) -> NatsServer:
        address = free_address()
        environment = {
            "SFIC_NATS_LISTEN": address,
            "SFIC_NATS_LEAVES": leaves,
            "SFIC_NATS_STORE": str(tmp_path / kind),
            "SFIC_NATS_CERT": str(certs / f"{holder}.pem"),
            "SFIC_NATS_KEY": str(certs / f"{holder}-key.pem"),
            "SFIC_NATS_CA": str(certs / "ca.pem"),
            "SFIC_NATS_SITE": holder,
            "SFIC_NATS_HUB": f"tls://{leaves}",
        }
        config = REPOSITORY / "deploy" / "nats" / f"{kind}.conf"
        return NatsServer(tmp_path, config, address, environment)

    def tls(holder: str) -> dict[str, Any]:
        files = {"tls_certificate": f"{holder}.pem", "tls_key": f"{holder}-key.pem"}
        return {**{name: certs / file for name, file in files.items()}, "nats_ca": certs / "ca.pem"}

    hub, leaf = server("hub", "hub"), server("leaf", "store-7")
    try:
        await eventually(lambda: "Leafnode connection created" in hub.log)
        init = [sys.executable, "-m", "sfic", "nats", "init", f"--server={hub.url}"]
        init += ["--site=store-7", f"--identity={certs / 'admin'}"]
        made = await asyncio.to_thread(
            subprocess.run, init, cwd=REPOSITORY, capture_output=True, text=True, timeout=120
        )
        assert (made.returncode, made.stderr) == (0, "")
        assert made.stdout == f"the hub {hub.address} has the faces of: store-7\n"
        away = await asyncio.to_thread(
            subprocess.run, [*init, "--site=store-9"], cwd=REPOSITORY, capture_output=True
        )
        assert away.returncode == Unavailable.exit_code
        assert b"site store-9: no JetStream of this domain answers" in away.stderr

        settings = AnalyticsSettings.make(
            listen="127.0.0.1:0",
            metrics_listen="",
            database=tmp_path / "analytics.sqlite",
            edges=(edge_address := free_address(),),
            edge_ca=certs / "ca.pem",
            nats=hub.url,
            **tls("analytics"),
        )
        service = AnalyticsService(settings, codec())
        mutual = {**tls("edge"), "tls_client_ca": certs / "ca.pem"}
        ours = Identity(certs / "ca.pem", certs / "analytics.pem", certs / "analytics-key.pem")
        async with (
            running_edge(
                tmp_path / "edge", granted=False, listen=edge_address, nats=leaf.url, **mutual
            ) as edge,
            running(service, settings) as running_service,
            open_channel(running_service.address, identity=ours) as channel,
        ):
            sent = await edge.keep(encoded_faces())
            stub = analytics_pb2_grpc.AnalyticsStub(channel)
            assert ids(await read_results(stub, 4)) == sent

        for holder in ("camera", "edge"):
            stranger = NatsAccess(
                hub.url,
                certs / "ca.pem",
                None,
                certs / f"{holder}.pem",
                certs / f"{holder}-key.pem",
            )
            with pytest.raises(Unavailable, match="Authorization Violation"):
                async with connected(stranger, "a stranger"):
                    pass
        async with connected(settings.nats_access(), "analytics") as (connection, _):
            with pytest.raises(nats.errors.TimeoutError):
                await connection.jetstream(timeout=0.5).delete_stream(FACES)
    finally:
        leaf.stop()
        hub.stop()


async def test_a_credentials_file_says_who_calls(tmp_path: Path) -> None:
    operator, account, user = NatsKey("operator"), NatsKey("account"), NatsKey("user")
    config, address = tmp_path / "accounts.conf", free_address()
    config.write_text(
        f'listen: "{address}"\noperator: "{operator.token(operator)}"\nresolver: MEMORY\n'
        f'resolver_preload {{ {account.public}: "{operator.token(account)}" }}\n'
    )
    files = {}
    for name, signer in (("user", account), ("stranger", NatsKey("account"))):
        files[name] = tmp_path / f"{name}.creds"
        files[name].write_text(
            f"-----BEGIN NATS USER JWT-----\n{signer.token(user)}\n------END NATS USER JWT------\n"
            f"\n-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
    server = NatsServer(tmp_path, config, address)
    ours = NatsAccess(server.url, credentials=files["user"])
    try:
        await eventually(lambda: server.ready)
        async with connected(ours, "us") as (connection, _):
            await connection.flush()
        stranger = NatsAccess(server.url, credentials=files["stranger"])
        with pytest.raises(Unavailable, match="Authorization Violation"):
            async with connected(stranger, "a stranger"):
                pass
        files["user"].write_text("-----BEGIN NATS USER JWT-----\nx\n")
        with pytest.raises(ConfigError, match="not a credentials file"):
            async with connected(ours, "us"):
                pass
    finally:
        server.stop()


def test_nats_beyond_this_machine_needs_tls(tmp_path: Path) -> None:
    for kind in (EdgeSettings, AnalyticsSettings):
        assert kind.make().nats == ""
        for url, word in (
            ("nats://hub.example:4222", "without TLS"),
            ("hub.example:4222", "nats://host:port"),
            ("nats://hub.example", "nats://host:port"),
        ):
            with pytest.raises(ConfigError, match=word):
                kind.make(nats=url)
        kind.make(nats="tls://hub.example:4222")
        kind.make(nats="nats://hub.example:4222", nats_ca=tmp_path / "ca.pem")
        kind.make(nats="nats://127.0.0.1:4222")
    assert NatsAccess("tls://user:secret@hub.example:4222").server == "hub.example:4222"


def test_a_sealed_result_opens_with_its_layers_key_alone() -> None:
    key, result = new_layer_key(), b"what was read"
    sealed = [seal_result(key, result, "face") for _ in range(2)]
    assert sealed[0] != sealed[1], "the same result twice must not look the same"
    assert all(open_result(key, each, "face") == result for each in sealed)
    changed = bytes([*sealed[0][:-1], sealed[0][-1] ^ 1])
    for wrong in (
        (new_layer_key(), sealed[0], "face"),
        (key, sealed[0], "other"),
        (key, changed, "face"),
        (key, b"", "face"),
    ):
        with pytest.raises(PacketError):
            open_result(*wrong)
    with pytest.raises(PacketError):
        open_layer(key, sealed[0], "face", "basic")
