"""Backup and restore, tried: of a running edge and of analytics, into an empty folder."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from service_rig import Edge, encoded_faces, eventually, running_edge
from services_util import REPOSITORY, codec, running

from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from sfic.audit import read_log, verify_lines
from sfic.client import AnalyticsClient
from sfic.errors import InvalidInput
from sfic.service.backup import age_out, make_backup, open_backup, put_back
from sfic.service.client import open_channel
from sfic.v1 import common_pb2, control_pb2, control_pb2_grpc, edge_pb2, edge_pb2_grpc


async def sfic(*words: object, code: int = 0) -> str:
    """The command line, beside the services that run here."""

    def call() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sfic", *map(str, words)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return await asyncio.to_thread(call)


def settings_file(folder: Path) -> Path:
    """Settings of an edge in `folder`/edge and of analytics beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / "sfic.toml"
    path.write_text(
        f'[edge]\ndata_dir = "{folder / "edge"}"\n'
        f'[analytics]\ndatabase = "{folder / "analytics.sqlite"}"\n'
    )
    return path


@asynccontextmanager
async def running_analytics(edge: str, folder: Path) -> AsyncIterator[str]:
    settings = AnalyticsSettings.make(
        listen="127.0.0.1:0",
        metrics_listen="",
        edges=(edge,),
        database=folder / "analytics.sqlite",
        reconnect_seconds=0.2,
        threads=1,
    )
    async with running(AnalyticsService(settings, codec()), settings) as server:
        yield server.address


async def results_become(address: str, expected: list[str]) -> None:
    """Returns once the log of results has these faces, in this order."""

    async def there() -> bool:
        async with AnalyticsClient(address) as client:
            return [result.face_id async for result in client.results(follow=False)] == expected

    await eventually(there)


async def layers_of(edge: Edge, face_ids: list[str]) -> list[list[bytes]]:
    """Packets of each face as a decoder gets them, none for one that is not kept."""
    async with open_channel(edge.address) as channel:
        request = edge_pb2.FetchLayersRequest(face_ids=face_ids)
        answer = await edge_pb2_grpc.LayerStoreStub(channel).FetchLayers(request)
        return [[packet.data for packet in face.layers] for face in answer.faces]


async def forget(edge: Edge, **scope: Any) -> None:
    async with open_channel(edge.address) as channel:
        request = control_pb2.ForgetRequest(scope=control_pb2.ForgetScope(**scope), reason="a test")
        await control_pb2_grpc.EdgeControlStub(channel).Forget(request)


async def log_id(edge: Edge) -> str:
    assert edge.service._store is not None
    return await edge.service._store.log_id()


async def test_an_edge_comes_back_and_what_was_forgotten_since_does_not(tmp_path: Path) -> None:
    faces = encoded_faces()
    packets = [list(face.layers.values()) for face in faces]
    backups, old, new = tmp_path / "backups", tmp_path / "old", tmp_path / "new"
    old_file, new_file = settings_file(old), settings_file(new)
    async with running_edge(old / "edge") as edge:
        first = await edge.keep(faces[:3], camera_id="door")
        told = await sfic(
            "backup", "edge", "-o", backups, "--config", old_file, "--keys", "--keep-days", 7
        )
        assert "edge.sqlite" in told and "keys.sqlite" in told and "master.key" not in told
        await forget(edge, face_ids=[first[1]])
        later = await edge.keep(faces[3:], camera_id="gate")
        async with running_analytics(edge.address, old) as analytics:
            await results_become(analytics, [first[0], first[2], *later])
        before = await log_id(edge)
    # The disk of the layers is lost; audit log and master key were kept elsewhere.
    (new / "edge").mkdir()
    for name in ("audit.jsonl", "audit.jsonl.head"):
        shutil.copy(old / "edge" / name, new / "edge" / name)
    (folder,) = backups.iterdir()
    words = ("restore", "edge", folder, "--config", new_file)
    assert "master key" in await sfic(*words, code=2)
    shutil.copy(old / "edge" / "master.key", new / "edge" / "master.key")
    told = await sfic(*words)
    assert "restored 2 faces" in told and "forgot 1 again" in told
    assert "move it away" in await sfic(*words, code=2)
    lines, head = read_log(new / "edge" / "audit.jsonl")
    assert not verify_lines(lines, head).problems
    async with running_edge(new / "edge") as edge:
        assert await log_id(edge) != before
        assert await layers_of(edge, first) == [packets[0], [], packets[2]]
        fresh = await edge.keep(faces[3:], camera_id="gate")
        # Analytics had read further than the restored log reaches: it starts over, and neither
        # misses the new face nor keeps the old ones twice.
        shutil.copytree(old, new / "away", ignore=shutil.ignore_patterns("edge"))
        async with running_analytics(edge.address, new / "away") as analytics:
            await results_become(analytics, [first[0], first[2], *later, *fresh])


async def test_a_backup_without_keys_shows_no_face(tmp_path: Path) -> None:
    old, new, backups = tmp_path / "old", tmp_path / "new", tmp_path / "backups"
    async with running_edge(old / "edge") as edge:
        kept = await edge.keep(encoded_faces()[:2])
        told = await sfic("backup", "edge", "-o", backups, "--config", settings_file(old))
        assert "keys.sqlite" not in told
    (folder,) = backups.iterdir()
    for face in encoded_faces()[:2]:
        for packet in face.layers.values():
            assert packet not in (folder / "edge.sqlite").read_bytes()
    told = await sfic("restore", "edge", folder, "--config", settings_file(new))
    assert "restored 0 faces" in told and "dropped 2 without keys" in told
    async with running_edge(new / "edge", granted=False) as edge:
        assert await layers_of(edge, kept) == [[], []]
        async with open_channel(edge.address) as channel:
            stub = control_pb2_grpc.EdgeControlStub(channel)
            grants = (await stub.ListGrants(control_pb2.ListGrantsRequest())).grants
        assert [grant.highest for grant in grants] == [common_pb2.LAYER_ENHANCED]


async def test_analytics_comes_back_and_reads_on(tmp_path: Path) -> None:
    old, new, backups = tmp_path / "old", tmp_path / "new", tmp_path / "backups"
    async with running_edge(tmp_path / "edge") as edge:
        kept = await edge.keep(encoded_faces()[:2])
        async with running_analytics(edge.address, old) as analytics:
            await results_become(analytics, kept)
            words = ("-o", backups, "--config", settings_file(old))
            await sfic("backup", "analytics", *words)
            await forget(edge, face_ids=kept[:1])
            kept += await edge.keep(encoded_faces()[2:3])
            await results_become(analytics, kept[1:])
        (folder,) = backups.iterdir()
        await sfic("restore", "analytics", folder, "--config", settings_file(new))
        async with running_analytics(edge.address, new) as analytics:
            await results_become(analytics, kept[1:])


def test_a_backup_that_was_changed_or_is_of_another_service_is_refused(tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.write_text("as it was")
    made = make_backup("edge", [], [note], tmp_path / "backups")
    assert open_backup(made.folder, "edge").hashes == made.hashes
    with pytest.raises(InvalidInput, match="of edge, not of analytics"):
        open_backup(made.folder, "analytics")
    with pytest.raises(InvalidInput, match="move it away"):
        put_back(made, tmp_path)
    (made.folder / "note").write_text("as it is")
    with pytest.raises(InvalidInput, match="note is missing or was changed"):
        open_backup(made.folder, "edge")
    (made.folder / "manifest.json").unlink()
    with pytest.raises(InvalidInput, match="not a backup"):
        open_backup(made.folder, "edge")


def test_backups_age_out(tmp_path: Path) -> None:
    now = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
    (tmp_path / "edge-notes").mkdir()
    made = [
        make_backup("edge", [], [], tmp_path, now - timedelta(days=days)).folder
        for days in (9, 8, 2)
    ]
    make_backup("analytics", [], [], tmp_path, now - timedelta(days=30))
    assert age_out(tmp_path, "edge", 7, now) == made[:2]
    assert len(list(tmp_path.iterdir())) == 3 and made[2].is_dir()
