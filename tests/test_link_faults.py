"""Links that are cut, lossy and slow, and a wrong bundle at one end: waiting, then going on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lossy_link import LossyLink
from service_rig import encoded_faces, eventually, running_edge
from services_util import REPOSITORY, astronaut_pixels, codec, encode_picture
from test_analytics import count, ids, read_results, running_analytics
from test_decoder import running_decoder
from test_edge_log import make_store
from test_storage_faults import rows_of

from benchmarks.cut_link import CutLink
from edge_encoder.store import FrameKey, NewFace
from edge_encoder.ulid import new_ulid
from sfic.bundle import BUNDLE_FILES, ModelBundle
from sfic.codec import Codec
from sfic.errors import BundleMismatch, Unavailable
from sfic.locations import models_dir
from sfic.service.client import open_channel
from sfic.v1 import common_pb2


@pytest.mark.parametrize("way", ["cut", "reset"])
async def test_results_wait_for_a_cut_link_and_go_on_when_it_heals(
    tmp_path: Path, way: str
) -> None:
    faces = encoded_faces()
    async with (
        running_edge(tmp_path / "edge") as edge,
        CutLink(edge.address) as link,
        running_analytics(tmp_path, link.address) as (service, stub),
    ):
        sent = await edge.keep(faces)
        await read_results(stub, 4)
        connected = {"edge": link.address}
        assert count(service, "sfic_analytics_feed_connected", **connected) == 1
        (link.cut if way == "cut" else link.reset)()
        if way == "reset":
            await eventually(
                lambda: count(service, "sfic_analytics_feed_connected", **connected) == 0
            )
        for _ in range(5):
            sent += await edge.keep(faces)
        await asyncio.sleep(1.0)
        assert service._results.newest == 4
        link.heal()
        assert ids(await read_results(stub, 24)) == sent


@pytest.mark.parametrize("way", ["cut", "reset"])
async def test_a_decoder_says_that_the_edge_is_away_and_decodes_when_it_is_back(
    tmp_path: Path, way: str
) -> None:
    async with (
        running_edge(tmp_path / "edge") as edge,
        CutLink(edge.address) as link,
        running_decoder(link.address, fetch_seconds=1.0) as decoder,
    ):
        first, second = await edge.keep(encoded_faces()[:2])
        await decoder.pictures(first, highest=1)
        (link.cut if way == "cut" else link.reset)()
        asked = time.monotonic()
        with pytest.raises(Unavailable, match=link.address):
            await decoder.pictures(second, highest=1)
        assert time.monotonic() - asked < 20
        link.heal()

        async def decodes() -> bool:
            try:
                return len(await decoder.pictures(second, highest=1)) == 1
            except Unavailable:
                return False  # gRPC has not connected again yet.

        await eventually(decodes)


async def test_a_connection_may_take_longer_to_make_than_a_round_trip(tmp_path: Path) -> None:
    async with running_edge(tmp_path) as edge, CutLink(edge.address) as link:
        link.cut()
        asyncio.get_running_loop().call_later(1.5, link.heal)
        async with open_channel(link.address, retry=False) as channel:
            request = health_pb2.HealthCheckRequest()
            answer = await health_pb2_grpc.HealthStub(channel).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_nothing_is_lost_on_a_link_that_loses_packets(tmp_path: Path) -> None:
    """5 % of all packets, and 0.3 s for each of the others, in both directions."""
    sent = await log_of_faces(tmp_path / "edge", 60)
    picture = tmp_path / "face.jpg"
    picture.write_bytes(encode_picture(astronaut_pixels()[0:256, 100:356], "JPEG"))
    with LossyLink(loss=0.05, delay_seconds=0.3) as link:
        edge = f"{link.addresses['edge']}:50051"
        database = tmp_path / "analytics.sqlite"

        def results() -> list[str]:
            if not database.exists():
                return []
            if not rows_of(database, "SELECT 1 FROM sqlite_master WHERE name = 'results'"):
                return []  # It is being made.
            rows = rows_of(database, "SELECT face_id FROM results ORDER BY cursor")
            return [row[0] for row in rows]

        edge_words = ["edge_encoder", f"--listen={edge}", "--insecure", "--min-face-score=0"]
        with (
            at(link, "edge", *edge_words, f"--data-dir={tmp_path / 'edge'}", *QUIET),
            at(
                link,
                "cloud",
                "analytics_service",
                f'--edges=["{edge}"]',
                f"--database={database}",
                *("--listen=127.0.0.1:0", "--reconnect-seconds=1", *QUIET),
            ),
        ):
            await eventually(lambda: len(results()) == 60, 90)
            camera = ["sfic", "camera", str(picture), f"--edge={edge}", "--aligned"]
            with at(link, "cloud", *camera) as process:
                assert await asyncio.to_thread(process.wait, 90) == 0
            await eventually(lambda: len(results()) == 61, 30)
        assert results()[:60] == sent
        assert link.lost > 3
        assert 0.01 < link.lost / link.passed < 0.2


QUIET = ("--metrics-listen=", "--provider=cpu", "--threads=1", "--log-level=error")


async def log_of_faces(folder: Path, number: int) -> list[str]:
    """An edge's log with so many faces; their ids."""
    store = make_store(folder)
    encoded = encoded_faces()
    for frame in range(number):
        face = encoded[frame % len(encoded)]
        info = common_pb2.FaceInfo(
            face_id=new_ulid(frame),
            camera_id="door",
            frame_number=frame,
            face_score=0.9,
            model_bundle=codec().model_bundle,
        )
        layers = (face.basic, face.middle, face.enhanced)
        await store.add_frame(FrameKey("door", None, frame), [NewFace(info, layers)])
    sent = [entry.info.face_id for entry in (await store.page(0)).entries]
    store.close()
    return sent


@contextmanager
def at(link: LossyLink, end: str, module: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module` at one end of the link, killed at the end of the block."""
    process = subprocess.Popen(
        link.command(end, [sys.executable, "-m", module, *words]),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_faces_of_another_bundle_are_read_once_the_right_one_is_there(
    tmp_path: Path,
) -> None:
    other = Codec.load(another_bundle(tmp_path / "bundle"), provider="cpu", threads=1)
    ours, theirs = encoded_faces()[:2], other.encode_picture(astronaut_pixels())
    async with running_edge(tmp_path / "edge") as edge:
        sent = await edge.keep(ours[:1])
        foreign = await edge.keep(theirs, model_bundle=other.model_bundle)
        sent += await edge.keep(ours[1:])
        async with (
            running_analytics(tmp_path, edge.address) as (service, stub),
            running_decoder(edge.address) as decoder,
        ):
            assert ids(await read_results(stub, 2)) == sent
            (failed,) = await service._store.failures()
            assert (failed.face_id, failed.code) == (foreign[0], "BUNDLE_MISMATCH")
            assert f"coded with model bundle {other.model_bundle}" in failed.message
            with pytest.raises(BundleMismatch, match=other.model_bundle):
                await decoder.pictures(foreign[0], highest=1)
        async with running_analytics(tmp_path, edge.address, codec=other) as (service, stub):
            assert ids(await read_results(stub, 3)) == [*sent, *foreign]
            assert await service._store.failures() == []
        async with running_analytics(tmp_path, edge.address) as (service, stub):
            assert ids(await read_results(stub, 3)) == [*sent, *foreign]
            sent += await edge.keep(ours[:1])
            assert ids(await read_results(stub, 1, after_cursor=3)) == sent[2:]


def another_bundle(folder: Path) -> Path:
    """The bundle under another name: its files, and one more word about them."""
    folder.mkdir()
    for name in BUNDLE_FILES:
        os.symlink(models_dir() / name, folder / name)
    ModelBundle.write(folder, {**ModelBundle.load().meta, "note": "another"})
    return folder
