"""Sealed layers: what opens them and what does not, keys at the edge, and who is given them."""

from __future__ import annotations

import secrets
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from prometheus_client import CollectorRegistry
from service_rig import encoded_faces, running_edge
from test_decoder import running_decoder
from test_edge_log import add, make_store

from edge_encoder.keys import KeyStore
from edge_encoder.metrics import EdgeMetrics
from edge_encoder.store import _MIGRATIONS, FaceStore
from sfic.errors import (
    AccessDenied,
    ConfigError,
    FaceNotKept,
    InvalidInput,
    PacketError,
    StorageError,
)
from sfic.grants import timestamp
from sfic.sealing import KEY_BYTES, TAG_BYTES, new_layer_key, open_layer, seal_layer
from sfic.service.client import open_channel, sfic_errors
from sfic.v1 import common_pb2, control_pb2, control_pb2_grpc, edge_pb2, edge_pb2_grpc

BASIC, MIDDLE, ENHANCED = common_pb2.LAYER_BASIC, common_pb2.LAYER_MIDDLE, common_pb2.LAYER_ENHANCED


def test_a_sealed_layer_is_eight_bytes_longer_and_opens_only_as_itself() -> None:
    for size in (0, 1, 97, 65_536):
        packet, key = secrets.token_bytes(size), new_layer_key()
        sealed = seal_layer(key, packet, "FACE", "middle")
        assert len(key) == KEY_BYTES and len(sealed) == size + TAG_BYTES == size + 8
        assert open_layer(key, sealed, "FACE", "middle") == packet
        for wrong in (
            (new_layer_key(), sealed, "FACE", "middle"),
            (key, sealed, "FACF", "middle"),
            (key, sealed, "FACE", "enhanced"),
            (key, sealed[:-1], "FACE", "middle"),
            (key, sealed + b"\0", "FACE", "middle"),
            (key, b"", "FACE", "middle"),
            (b"", sealed, "FACE", "middle"),
        ):
            with pytest.raises(PacketError, match="middle|enhanced"):
                open_layer(*wrong)


def test_every_changed_bit_is_noticed() -> None:
    key, packet = new_layer_key(), b"a basic layer"
    sealed = seal_layer(key, packet, "FACE", "basic")
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PacketError):
            open_layer(key, bytes(changed), "FACE", "basic")


async def test_keys_are_kept_wrapped_and_differ(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.sqlite", tmp_path / "master.key")
    made = await store.make([("a", "door", ["basic", "middle"]), ("b", "gate", ["basic"])])
    assert len(set(made.values())) == len(made) == 3
    assert await store.find(["a", "b"], ["basic", "middle"]) == made
    assert await store.find(["a"], ["middle"]) == {("a", "middle"): made["a", "middle"]}
    store.close()

    master = (tmp_path / "master.key").read_bytes()
    for name in ("master.key", "keys.sqlite"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    on_disk = (tmp_path / "keys.sqlite").read_bytes()
    assert not any(key in on_disk for key in (*made.values(), master))
    with sqlite3.connect(tmp_path / "keys.sqlite") as connection:
        rows = connection.execute("SELECT camera_id, layer, wrapped FROM camera_keys").fetchall()
        cameras = {(camera, layer): aes_key_unwrap(master, w) for camera, layer, w in rows}
        assert set(cameras) == {("door", "basic"), ("door", "middle"), ("gate", "basic")}
        assert len(set(cameras.values())) == 3
        for face, layer, camera, wrapped in connection.execute(
            "SELECT face_id, layer, camera_id, wrapped FROM layer_keys"
        ):
            assert aes_key_unwrap(cameras[camera, layer], wrapped) == made[face, layer]
    connection.close()

    store = KeyStore(tmp_path / "keys.sqlite", tmp_path / "master.key")
    assert await store.find(["a", "b"], ["basic", "middle"]) == made
    store.close()


async def test_a_master_key_that_is_gone_wrong_or_open_to_others_stops_the_start(
    tmp_path: Path,
) -> None:
    database, master = tmp_path / "keys.sqlite", tmp_path / "master.key"
    store = KeyStore(database, master)
    await store.make([("a", "door", ["basic"])])
    store.close()
    good = master.read_bytes()
    master.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyStore(database, master)
    master.chmod(0o600)
    master.write_bytes(good[:-1])
    with pytest.raises(ConfigError, match="32 bytes"):
        KeyStore(database, master)
    master.write_bytes(bytes(32))
    store = KeyStore(database, master)
    with pytest.raises(StorageError, match="key_file is another"):
        await store.find(["a"], ["basic"])
    store.close()
    master.unlink()
    with pytest.raises(StorageError, match=r"master\.key is gone"):
        KeyStore(database, master)
    assert not master.exists(), "no new key is made in the place of a lost one"


async def test_the_edge_keeps_sealed_layers_and_nothing_else(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with running_edge(tmp_path) as edge:
        (face_id,) = await edge.keep([face])
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for packet in face.layers.values():
        assert all(packet[k : k + 8] not in on_disk for k in range(len(packet) - 8))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    # The layers' database without its keys, as a backup has it, is noise.
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "edge.sqlite").write_bytes((tmp_path / "edge.sqlite").read_bytes())
    store = make_store(copy)
    assert list(await store.fetch([face_id])) == [face_id]
    assert await store.keys([face_id], ["basic", "middle", "enhanced"]) == {}
    store.close()


async def test_a_store_of_the_release_before_is_sealed_at_start(tmp_path: Path) -> None:
    """Written with the first schema, as that release did."""
    tmp_path.chmod(0o700)
    face = encoded_faces()[0]
    with sqlite3.connect(tmp_path / "edge.sqlite") as connection:
        connection.executescript(f"{_MIGRATIONS[0]}; PRAGMA user_version = 1")
        for number in range(3):
            info = common_pb2.FaceInfo(face_id=f"FACE{number}", camera_id="door")
            packets = (face.basic, face.middle, face.enhanced if number else None)
            connection.execute(
                "INSERT INTO faces (face_id, camera_id, frame_number, stored_ms, face_score, info,"
                " size, basic, middle, enhanced) VALUES (?, 'door', 0, ?, 0.5, ?, 100, ?, ?, ?)",
                (f"FACE{number}", int(time.time() * 1000), info.SerializeToString(), *packets),
            )
        connection.execute("UPDATE log_state SET faces = 3, bytes = 300")
    connection.close()
    async with running_edge(tmp_path) as edge, open_channel(edge.address) as channel:
        answer = await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(
            edge_pb2.FetchLayersRequest(face_ids=["FACE0", "FACE1", "FACE2"])
        )
        assert [[p.data for p in f.layers] for f in answer.faces] == [
            [face.basic, face.middle],
            [face.basic, face.middle, face.enhanced],
            [face.basic, face.middle, face.enhanced],
        ]
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert face.enhanced is not None and face.enhanced not in on_disk


async def test_eviction_and_repeats_take_the_keys_along(tmp_path: Path) -> None:
    now = [1000.0]
    metrics = EdgeMetrics(CollectorRegistry())
    store = FaceStore(
        tmp_path / "edge.sqlite",
        metrics,
        retention_seconds=10,
        retention_bytes=1 << 30,
        clock=lambda: now[0],
    )
    old = await add(store, 1)
    now[0] = 1020.0
    young = await add(store, 2, camera_id="gate")
    await store.evict()
    assert {face_id for face_id, _ in await store.keys([old, young], ["basic"])} == {young}
    store.close()
    with sqlite3.connect(tmp_path / "keys.sqlite") as connection:
        cameras = {row[0] for row in connection.execute("SELECT camera_id FROM camera_keys")}
        assert cameras == {"gate"}, "the key of a camera without faces goes too"
    connection.close()


class Client:
    """Calls to an edge."""

    def __init__(self, channel: Any) -> None:
        self.control = control_pb2_grpc.EdgeControlStub(channel)
        self.layers = edge_pb2_grpc.LayerStoreStub(channel)

    async def grant(self, *, hours: float = 1.0, **fields: Any) -> control_pb2.Grant:
        scope = {k: fields.pop(k) for k in list(fields) if k in SCOPE_FIELDS}
        request = control_pb2.CreateGrantRequest(
            scope=control_pb2.GrantScope(**scope),
            expires_time=timestamp(time.time() + hours * 3600),
            **{"purpose": "a test", **fields},
        )
        with sfic_errors():
            return (await self.control.CreateGrant(request)).grant

    async def keys(self, face_id: str, highest: int = ENHANCED) -> edge_pb2.FetchKeysResponse:
        with sfic_errors():
            return await self.layers.FetchKeys(
                edge_pb2.FetchKeysRequest(
                    face_id=face_id, highest=highest, on_behalf_of="anna", purpose="a look"
                )
            )

    async def audit(self) -> list[dict[str, Any]]:
        import json

        call = self.control.ReadAudit(control_pb2.ReadAuditRequest())
        return [json.loads(part.line) for part in [p async for p in call] if part.line]


SCOPE_FIELDS = ("face_id", "camera_id", "captured_from", "captured_until")


async def layers_given(client: Client, face_id: str) -> list[int]:
    return [each.layer for each in (await client.keys(face_id)).keys]


async def test_keys_of_higher_layers_are_given_as_far_as_a_grant_reaches(tmp_path: Path) -> None:
    face, all_three = encoded_faces()[0], [BASIC, MIDDLE, ENHANCED]
    async with (
        running_edge(tmp_path, granted=False) as edge,
        open_channel(edge.address) as channel,
    ):
        client = Client(channel)
        a, b = [(await edge.keep([face], camera_id=c, captured=5000.0))[0] for c in ("a", "b")]
        answer = await client.keys(a)
        assert [each.layer for each in answer.keys] == [BASIC]
        assert "no grant" in answer.refusal and "middle" in answer.refusal
        assert (await client.keys(a, BASIC)).refusal == ""

        grant = await client.grant(face_id=a)
        answer = await client.keys(a)
        assert [each.layer for each in answer.keys] == all_three
        assert (answer.refusal, answer.grant_id) == ("", grant.grant_id)
        sealed = await client.layers.FetchLayers(
            edge_pb2.FetchLayersRequest(face_ids=[a], sealed=True)
        )
        for key, packet, name in zip(answer.keys, sealed.faces[0].layers, face.layers, strict=True):
            assert open_layer(key.key, packet.data, a, name) == face.layers[name]
        assert await layers_given(client, b) == [BASIC], "a grant is for its face"

        with sfic_errors():
            ended = await client.control.RevokeGrant(
                control_pb2.RevokeGrantRequest(grant_id=grant.grant_id)
            )
        assert ended.grant.HasField("revoked_time")
        assert await layers_given(client, a) == [BASIC]
        for scope, reaches_a, reaches_b in (
            ({"camera_id": "a"}, True, False),
            ({"captured_until": timestamp(5000.0)}, True, True),
            ({"captured_until": timestamp(4999.0)}, False, False),
            ({"captured_from": timestamp(5001.0)}, False, False),
            ({"camera_id": "b", "captured_from": timestamp(1.0)}, False, True),
        ):
            grant = await client.grant(**scope)
            given = [await layers_given(client, face_id) == all_three for face_id in (a, b)]
            assert given == [reaches_a, reaches_b], scope
            await client.control.RevokeGrant(
                control_pb2.RevokeGrantRequest(grant_id=grant.grant_id)
            )
        await client.grant(face_id=a, highest=MIDDLE)
        assert await layers_given(client, a) == [BASIC, MIDDLE]
        await client.grant(face_id=b, decoder="another")
        assert await layers_given(client, b) == [BASIC], "the grant names another decoder"
        with pytest.raises(FaceNotKept):
            await client.keys("nobody")
    async with (
        running_edge(tmp_path, granted=False) as edge,
        open_channel(edge.address) as channel,
    ):
        assert await layers_given(Client(channel), a) == [BASIC, MIDDLE], "grants last"


async def test_a_grant_ends_by_its_time(tmp_path: Path) -> None:
    async with (
        running_edge(tmp_path, granted=False) as edge,
        open_channel(edge.address) as channel,
    ):
        client = Client(channel)
        (face_id,) = await edge.keep(encoded_faces()[:1])
        await client.grant(face_id=face_id, hours=1.0)
        assert len(await layers_given(client, face_id)) == 3
        edge.service._layers._grants._clock = lambda: time.time() + 3601
        assert await layers_given(client, face_id) == [BASIC]
        listed = await client.control.ListGrants(control_pb2.ListGrantsRequest())
        assert not listed.grants
        listed = await client.control.ListGrants(control_pb2.ListGrantsRequest(include_ended=True))
        assert len(listed.grants) == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "scope"),
        ({"face_id": "x", "camera_id": "y"}, "scope"),
        ({"face_id": "x", "purpose": ""}, "purpose"),
        ({"face_id": "x", "purpose": "p" * 201}, "purpose"),
        ({"face_id": "x", "highest": BASIC}, "highest"),
        ({"face_id": "x", "hours": -1}, "expires_time"),
        ({"face_id": "x", "hours": 24 * 400}, "expires_time"),
        ({"face_id": "x", "decoder": "d" * 201}, "decoder"),
    ],
)
async def test_a_grant_says_what_why_and_until_when(
    fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    from edge_encoder.grants import GrantBook

    store = make_store(tmp_path)
    fields = dict(fields)
    hours = fields.pop("hours", 1.0)
    scope = {k: fields.pop(k) for k in list(fields) if k in SCOPE_FIELDS}
    request = control_pb2.CreateGrantRequest(
        scope=control_pb2.GrantScope(**scope),
        expires_time=timestamp(time.time() + hours * 3600),
        **{"purpose": "a test", **fields},
    )
    with pytest.raises(InvalidInput, match=named):
        await GrantBook(store.database).create(request, "anna")
    store.close()


async def test_layers_that_the_edge_opens_need_the_grant_too(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    async with (
        running_edge(tmp_path, granted=False) as edge,
        open_channel(edge.address) as channel,
    ):
        client = Client(channel)
        (face_id,) = await edge.keep([face])
        request = edge_pb2.FetchLayersRequest(face_ids=[face_id])
        with pytest.raises(AccessDenied, match="middle"), sfic_errors():
            await client.layers.FetchLayers(request)
        request.layers.append(BASIC)
        answer = await client.layers.FetchLayers(request)
        assert [packet.data for packet in answer.faces[0].layers] == [face.basic]
        assert [line["action"] for line in await client.audit()] == ["refused", "reconstruct"]


async def test_a_decoder_shows_what_its_grant_lets_it_see(tmp_path: Path) -> None:
    async with (
        running_edge(tmp_path, granted=False) as edge,
        running_decoder(edge.address) as decoder,
        open_channel(edge.address) as channel,
    ):
        client = Client(channel)
        (face_id,) = await edge.keep(encoded_faces()[:1], camera_id="door")
        came, error = await decoder.until_error(face_id, purpose="a visitor asks")
        assert [answer.level for answer in came] == [BASIC]
        assert isinstance(error, AccessDenied) and error.details["layer"] == "middle"
        grant = await client.grant(camera_id="door", highest=MIDDLE)
        came, error = await decoder.until_error(face_id)
        assert [answer.level for answer in came] == [BASIC, MIDDLE]
        assert isinstance(error, AccessDenied) and error.details["layer"] == "enhanced"
        await client.grant(camera_id="door")
        assert len(await decoder.pictures(face_id, purpose="second look")) == 3
        # All is cached now; without a grant it is noise again.
        for each in (await client.control.ListGrants(control_pb2.ListGrantsRequest())).grants:
            await client.control.RevokeGrant(control_pb2.RevokeGrantRequest(grant_id=each.grant_id))
        came, error = await decoder.until_error(face_id)
        assert [answer.level for answer in came] == [BASIC]
        assert isinstance(error, AccessDenied)

        lines = await client.audit()
        told = [(line["action"], line["why"], line["what"].get("layers")) for line in lines]
        assert told[:3] == [
            ("refused", "a visitor asks", ["basic"]),
            ("grant", "a test", None),
            ("refused", "a test", ["basic", "middle"]),
        ]
        assert told[4] == ("reconstruct", "second look", ["basic", "middle", "enhanced"])
        assert lines[0]["who"] == "local"
        assert lines[0]["what"]["face_id"] == face_id
        assert lines[2]["what"]["grant_id"] == grant.grant_id
