"""Rolling upgrades: a service of the last release beside one of today, its databases, two bundles.

The wire of the last release is `old_release`; its databases are in data/release-0.1.0, written by
`make_release_data` at commit aaabc10.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from old_release import OldServer, OldStub, message
from PIL import Image
from service_rig import encoded_faces, eventually, running_edge
from services_util import astronaut_jpeg, codec, frame, running, send_frames

from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from analytics_service.visits import Sighting, VisitTracker
from cloud_decoder.service import DecoderService
from cloud_decoder.settings import DecoderSettings
from sfic.bundle import BUNDLE_FILES, ModelBundle
from sfic.bundles import Codecs
from sfic.client import AnalyticsClient, FaceResult
from sfic.codec import Codec
from sfic.errors import BundleMismatch, SficError
from sfic.face import EncodedFace
from sfic.locations import models_dir
from sfic.service.client import open_channel, sfic_errors
from sfic.v1 import decoder_pb2, decoder_pb2_grpc

RELEASE = Path(__file__).parent / "data" / "release-0.1.0"
LAYER_NAMES = ("basic", "middle", "enhanced")


@asynccontextmanager
async def running_analytics(
    edge: str, folder: Path, **values: Any
) -> AsyncIterator[tuple[AnalyticsService, str]]:
    """Analytics of today behind an edge."""
    settings = AnalyticsSettings.make(
        listen="127.0.0.1:0",
        metrics_listen="",
        edges=(edge,),
        database=folder / "analytics.sqlite",
        reconnect_seconds=0.2,
        min_trusted_score=0.0,
        threads=1,
        **values,
    )
    service = AnalyticsService(settings, codec())
    async with running(service, settings) as server:
        yield service, server.address


@asynccontextmanager
async def running_decoder(edge: str, **values: Any) -> AsyncIterator[str]:
    """A decoder of today behind an edge; its address."""
    settings = DecoderSettings.make(
        listen="127.0.0.1:0", metrics_listen="", edge=edge, threads=1, provider="cpu", **values
    )
    async with running(DecoderService(settings, codec()), settings) as server:
        yield server.address


async def results(address: str) -> list[FaceResult]:
    async with AnalyticsClient(address) as client:
        return [result async for result in client.results(follow=False)]


async def results_of(address: str, count: int) -> list[FaceResult]:
    """The results once there are so many."""

    async def there() -> bool:
        return len(await results(address)) == count

    await eventually(there)
    return await results(address)


async def picture(decoder: str, face_id: str) -> Any:
    """The enhanced picture, uint8 [128, 128, 3]."""
    request = decoder_pb2.ReconstructRequest(
        face_id=face_id, final_only=True, size=128, format="PICTURE_FORMAT_RAW_RGB8"
    )
    async with open_channel(decoder) as channel:
        with sfic_errors():
            stub = decoder_pb2_grpc.CloudDecoderStub(channel)
            (answer,) = [answer async for answer in stub.Reconstruct(request)]
    return np.frombuffer(answer.picture, np.uint8).reshape(128, 128, 3)


# -- the wire


async def test_clients_of_the_last_release_are_served(tmp_path: Path) -> None:
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(edge.address, tmp_path) as (_, analytics),
        running_decoder(edge.address) as decoder,
        open_channel(edge.address) as to_edge,
        open_channel(analytics) as to_analytics,
        open_channel(decoder) as to_decoder,
    ):

        async def frames() -> AsyncIterator[Any]:
            yield message("StreamFramesRequest")(camera_id="door", encoded=astronaut_jpeg())

        (receipt,) = [each async for each in OldStub(to_edge, "EdgeIngest").StreamFrames(frames())]
        (info,) = receipt.faces

        feed = OldStub(to_edge, "BasicLayerFeed").Subscribe(message("SubscribeRequest")())
        sent = await feed.read()
        assert sent.face.face_id == info.face_id
        analysis = codec().analyze(sent.basic)

        fetch = message("FetchLayersRequest")(face_ids=[info.face_id])
        answer = await OldStub(to_edge, "LayerStore").FetchLayers(fetch)
        packets = [packet.data for packet in answer.faces[0].layers]
        assert packets[0] == sent.basic and list(map(len, packets)) == list(info.layer_bytes)
        decoded = codec().decode(EncodedFace(*packets), size=128)

        await results_of(analytics, 1)
        log = message("SubscribeResultsRequest")()
        told = await OldStub(to_analytics, "Analytics").SubscribeResults(log).read()
        assert told.analysis.face.face_id == info.face_id
        np.testing.assert_allclose(told.analysis.embedding, analysis.embedding, atol=1e-5)
        search = message("SearchFacesRequest")(face_id=info.face_id, limit=5)
        found = await OldStub(to_analytics, "Analytics").SearchFaces(search)
        assert [hit.analysis.face.face_id for hit in found.hits] == [info.face_id]

        wanted = message("ReconstructRequest")(face_id=info.face_id, final_only=True, size=128)
        shown = [each async for each in OldStub(to_decoder, "CloudDecoder").Reconstruct(wanted)]
        png = tmp_path / "face.png"
        png.write_bytes(shown[-1].picture)
        np.testing.assert_array_equal(np.asarray(Image.open(png)), decoded)


async def test_an_edge_of_the_last_release_is_read(tmp_path: Path) -> None:
    async with running_edge(tmp_path / "edge") as edge, OldServer(edge.address) as old:
        (receipt,) = await send_frames(old.address, [frame(0)])
        assert len(receipt.faces) == 1
        kept = [receipt.faces[0].face_id, *await edge.keep(encoded_faces()[1:3])]
        async with running_analytics(old.address, tmp_path) as (_, analytics):
            first = await results_of(analytics, 3)
            assert [result.face_id for result in first] == kept
        kept += await edge.keep(encoded_faces()[3:])
        # The edge is upgraded while analytics is away: same log, same address, nothing twice.
        async with running_analytics(old.address, tmp_path) as (service, analytics):
            assert [result.face_id for result in await results_of(analytics, 4)] == kept
            repeated = service.registry.get_sample_value(
                "sfic_analytics_faces_total", {"edge": old.address, "outcome": "REPEATED"}
            )
            assert not repeated


async def test_a_decoder_before_its_edge_says_what_is_missing(tmp_path: Path) -> None:
    """Edges come first: docs/runbook.md. Until then a new decoder works or tells why not."""
    async with (
        running_edge(tmp_path) as edge,
        OldServer(edge.address) as old,
        running_decoder(old.address) as decoder,
    ):
        (face_id,) = await edge.keep(encoded_faces()[:1])
        try:
            shown = await picture(decoder, face_id)
        except SficError as error:
            assert old.address in error.message and face_id in error.message
        else:
            np.testing.assert_array_equal(shown, codec().decode(encoded_faces()[0], size=128))


# -- databases


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A copy of the last release's data, private as it was."""
    folder = tmp_path / "release"
    shutil.copytree(RELEASE, folder)
    for path in folder.iterdir():
        path.chmod(0o600)
    return folder


async def test_databases_of_the_last_release_are_read(release: Path, tmp_path: Path) -> None:
    contents = json.loads((release / "contents.json").read_text())
    kept = contents["kept"]
    years = 87_600.0
    async with running_edge(release, retention_hours=years) as edge:
        async with open_channel(edge.address) as channel:
            fetch = message("FetchLayersRequest")(face_ids=[*kept, contents["forgotten"]])
            answer = await OldStub(channel, "LayerStore").FetchLayers(fetch)
        assert [face.found for face in answer.faces] == [True, True, False]
        for face in answer.faces[:2]:
            hashes = [hashlib.sha256(packet.data).hexdigest() for packet in face.layers]
            assert dict(zip(LAYER_NAMES, hashes, strict=True)) == kept[face.face_id]
            assert face.info.model_bundle == contents["model_bundle"]
        # Its own log goes on: analytics reads on where it was, and what it has stays.
        values = {"retention_days": 3650.0, "watchlists": True}
        async with running_analytics(edge.address, release, **values) as (_, analytics):
            assert [each.face_id for each in await results_of(analytics, 2)] == list(kept)
            (new,) = await edge.keep(encoded_faces()[3:])
            assert [each.face_id for each in await results_of(analytics, 3)] == [*kept, new]
            async with AnalyticsClient(analytics) as client:
                (watchlist,) = await client.watchlists()
                assert watchlist.watchlist_id == "lost"
                visits = await client.visits()
        assert sum(visit.faces for visit in visits) == 3


# -- two model bundles


@contextmanager
def bundle_named(folder: Path, name: str) -> Iterator[Path]:
    """Today's networks as another bundle, with a name of its own."""
    folder.mkdir()
    for file in BUNDLE_FILES:
        (folder / file).symlink_to(models_dir() / file)
    ModelBundle.write(folder, {**codec().bundle.meta, "note": name})
    yield folder


def recoded(face: EncodedFace, other: Codec) -> EncodedFace:
    """The face as another bundle of the same networks has it: encoded anew."""
    pixels = codec().decode(face, size=512)
    return replace(other.encode(pixels), face_score=face.face_score)


async def test_faces_of_two_bundles_are_analysed_and_shown_and_of_a_third_refused(
    tmp_path: Path,
) -> None:
    with bundle_named(tmp_path / "second", "another") as second:
        other = Codec.load(second, provider="cpu", threads=1)
        assert other.model_bundle != codec().model_bundle
        faces = [encoded_faces()[0], recoded(encoded_faces()[0], other)]
        async with running_edge(tmp_path / "edge") as edge:
            (own,) = await edge.keep(faces[:1])
            (seconds,) = await edge.keep(faces[1:], model_bundle=other.model_bundle)
            (third,) = await edge.keep(faces[:1], model_bundle="0123456789abcdef")
            async with running_analytics(edge.address, tmp_path, second_bundle=second) as (
                service,
                analytics,
            ):
                read = {each.face_id: each for each in await results_of(analytics, 2)}
                assert read[own].model_bundle == codec().model_bundle
                assert read[seconds].model_bundle == other.model_bundle
                assert read[seconds].known and len(read[seconds].embedding)
                # Not compared over bundles: neither found, nor one visit.
                assert read[own].visit_id != read[seconds].visit_id
                async with AnalyticsClient(analytics) as client:
                    found = [hit.result.face_id for hit in await client.search(own)]
                    assert found == [own]
                    with pytest.raises(BundleMismatch):
                        await client.search(seconds)
                (failure,) = await service._store.failures()
                assert failure.face_id == third and failure.code == "BUNDLE_MISMATCH"
                for name in ("0123456789abcdef", *Codecs(codec(), other).bundles, "second_bundle"):
                    assert name in failure.message
            async with running_decoder(edge.address, second_bundle=second) as decoder:
                for face_id, each, face in ((own, codec(), faces[0]), (seconds, other, faces[1])):
                    shown = await picture(decoder, face_id)
                    np.testing.assert_array_equal(shown, each.decode(face, size=128))
                with pytest.raises(BundleMismatch, match="second_bundle"):
                    await picture(decoder, third)


def test_a_visit_ends_with_its_bundle() -> None:
    tracker = VisitTracker(30.0, 0.5)
    plan = tracker.plan()
    vector = np.array([1.0, 0.0], np.float32)
    seen = Sighting("a", "door", 0, 0, 0.9, vector, "old")
    assert plan.place(seen, 1) == "a"
    assert plan.place(replace(seen, face_id="b", captured=1, frame_number=1), 2) == "a"
    after = replace(seen, face_id="c", captured=2, frame_number=2, model_bundle="new")
    assert plan.place(after, 3) == "c"
