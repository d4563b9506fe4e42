"""The Python client and the files of results; the examples of docs/how-to/analytics-client.md."""

from __future__ import annotations

import asyncio
import csv
import functools
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_rig import codec, encoded_faces, eventually, running_edge
from test_analytics import running_analytics

from sfic.client import AnalyticsClient, FaceResult
from sfic.errors import FaceNotKept, InvalidInput, MissingExtra, Unavailable, WatchlistsOff
from sfic.export import COLUMNS, export_results
from sfic.locations import demo_photograph
from sfic.processes import free_address
from sfic.webhook import WebhookSecret

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "how-to" / "analytics-client.md").read_text()


async def read(client: AnalyticsClient, **arguments: Any) -> list[FaceResult]:
    return [result async for result in client.results(follow=False, **arguments)]


async def kept(client: AnalyticsClient, count: int) -> list[FaceResult]:
    """All results, once there are so many."""
    results: list[FaceResult] = []

    async def there() -> bool:
        results[:] = await read(client)
        return len(results) == count

    await eventually(there)
    return results


async def test_results_say_what_the_codec_says(tmp_path: Path) -> None:
    face = encoded_faces()[0]
    address = free_address()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, listen=address),
        AnalyticsClient(address) as client,
    ):
        (good,) = await edge.keep([face], camera_id="door", captured=1000.5)
        (poor,) = await edge.keep([face], camera_id="gate", captured=2000.0, score=0.1)
        known, unknown = await kept(client, 2)
        said = codec().analyze(face.basic)
        assert (known.face_id, known.camera_id, known.cursor) == (good, "door", 1)
        assert known.captured == datetime.fromtimestamp(1000.5, timezone.utc)
        assert known.age is not None and known.age.value == pytest.approx(said.age.value, rel=1e-4)
        np.testing.assert_allclose(known.embedding, said.embedding, atol=1e-6)
        np.testing.assert_allclose(known.landmarks, said.landmarks, atol=1e-6)
        np.testing.assert_allclose(list(known.areas.values()), said.areas, atol=1e-6)
        assert known.parsing is None and not unknown.areas
        assert (unknown.face_id, unknown.known, unknown.age) == (poor, False, None)
        assert len(unknown.embedding) == 0
        assert [r.face_id for r in await read(client, camera="gate")] == [poor]
        assert [r.face_id for r in await read(client, camera=["door", "gate"])] == [good, poor]
        assert [r.face_id for r in await read(client, since=unknown.captured)] == [poor]
        assert [r.face_id for r in await read(client, until=known.captured)] == [good]
        assert [r.face_id for r in await read(client, after_cursor=1)] == [poor]
        with pytest.raises(InvalidInput, match="time zone"):
            await read(client, since=datetime(2026, 1, 1))
        with pytest.raises(InvalidInput, match="never given"):
            await read(client, after_cursor=99)


async def test_parsing_maps_are_kept_when_asked_for(tmp_path: Path) -> None:
    face, address = encoded_faces()[0], free_address()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, listen=address, keep_parsing=True),
        AnalyticsClient(address) as client,
    ):
        await edge.keep([face])
        await edge.keep([face], score=0.1)
        known, unknown = await kept(client, 2)
        assert known.parsing is not None and unknown.parsing is None
        np.testing.assert_array_equal(known.parsing, codec().analyze(face.basic).parsing)
        (hit,) = await client.search(known, limit=1)
        np.testing.assert_array_equal(hit.result.parsing, known.parsing)


async def test_stream_goes_on_over_restarts(tmp_path: Path) -> None:
    faces, address = encoded_faces(), free_address()
    read: list[str] = []
    async with (
        running_edge(tmp_path / "edge") as edge,
        AnalyticsClient(address, longest_wait_seconds=0.3) as client,
    ):

        async def follow() -> None:
            async for result in client.results():
                read.append(result.face_id)

        def has(count: int) -> bool:
            return len(read) == count

        sent: list[str] = []
        reader: asyncio.Task[None] | None = None
        for _ in range(3):
            async with running_analytics(tmp_path, edge.address, listen=address):
                reader = reader or asyncio.ensure_future(follow())
                sent += await edge.keep(faces[:2])
                await eventually(functools.partial(has, len(sent)))
            sent += await edge.keep(faces[2:])
        assert reader is not None
        assert read == sent[:-2]
        assert not reader.done()
        reader.cancel()


async def test_a_service_that_is_not_there_is_an_error() -> None:
    address = free_address()
    async with AnalyticsClient(address) as client:
        with pytest.raises(Unavailable, match=address):
            await read(client)
        with pytest.raises(Unavailable, match=address):
            await client.search()


async def test_search_visits_and_watchlists(tmp_path: Path) -> None:
    faces, address = encoded_faces(), free_address()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, listen=address, watchlists=True),
        AnalyticsClient(address) as client,
    ):
        sent = [
            (await edge.keep([face], captured=1000.0 + 100 * k))[0] for k, face in enumerate(faces)
        ]
        results = await kept(client, 4)
        for like in (sent[0], demo_photograph(), demo_photograph().read_bytes(), results[0]):
            hits = await client.search(like)
            assert hits[0].result.face_id == sent[0]
            assert len(hits) == 4 and hits[0].similarity > 0.9
        given = await client.search(
            results[0].embedding, model_bundle=results[0].model_bundle, limit=2
        )
        assert [hit.result.face_id for hit in given] == [hit.result.face_id for hit in hits[:2]]
        with pytest.raises(InvalidInput, match="model_bundle"):
            await client.search(results[0].embedding)
        with pytest.raises(FaceNotKept):
            await client.search("nobody")
        assert [h.result.face_id for h in await client.search(limit=3)] == sent[:0:-1]
        assert await client.search(age=(200, None)) == []
        late = results[2].captured
        assert [h.result.face_id for h in await client.search(since=late)] == sent[:1:-1]

        visits = await client.visits(limit=2)
        assert [visit.visit_id for visit in visits] == sent[:1:-1]
        assert visits[0].last == results[3].captured

        made = await client.put_watchlist("staff", purpose="a test", threshold=0.95)
        assert (await client.watchlists()) == [made]
        soon = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=1)
        entry = await client.put_entry("staff", "ann", results[0], label="Ann", expires=soon)
        assert (entry.expires, entry.threshold, entry.outdated) == (soon, None, False)
        assert await client.entries("staff") == [entry]
        (again,) = await edge.keep(faces[:1], captured=9000.0)
        alert = await asyncio.wait_for(anext(client.alerts()), 30)
        assert (alert.label, alert.face_id) == ("Ann", again)
        assert await client.remove_entry("staff", "ann")
        assert not await client.remove_entry("staff", "ann")
        assert await client.remove_watchlist("staff")
        assert await client.watchlists() == []


async def test_a_long_search_is_read_in_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfic.client._PAGE", 3)
    address = free_address()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, listen=address),
        AnalyticsClient(address) as client,
    ):
        sent = await edge.keep([*encoded_faces(), *encoded_faces()])
        await kept(client, 8)
        for limit in (2, 3, 7, 100):
            hits = await client.search(sent[0], limit=limit)
            assert len({hit.result.face_id for hit in hits}) == len(hits) == min(limit, 8)
        assert len(await client.visits(limit=7)) == 7


async def test_export(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    face, address = encoded_faces()[0], free_address()
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, listen=address),
        AnalyticsClient(address) as client,
    ):
        await edge.keep([face], captured=1000.5)
        await edge.keep([replace(face, brightened=2.5)], captured=2000.0, score=0.1)
        known, unknown = await kept(client, 2)
        assert (known.brightened, unknown.brightened) == (1.0, 2.5)
        target = tmp_path / "results.csv"
        assert await export_results(client.results(follow=False), target, "csv") == 2
        rows = list(csv.DictReader(target.open(newline="")))
        assert list(rows[0]) == list(COLUMNS)
        assert rows[0]["captured"] == "1970-01-01T00:16:40.500000+00:00"
        assert known.age is not None
        assert float(rows[0]["age"]) == pytest.approx(known.age.value, rel=1e-5)
        assert (rows[0]["known"], rows[1]["known"], rows[1]["age"]) == ("true", "false", "")
        assert [float(row["brightened"]) for row in rows] == [1.0, 2.5]
        assert (rows[0]["expression"], rows[1]["expression"]) == (known.expression, "")
        assert known.glasses is not None
        assert float(rows[0]["glasses"]) == pytest.approx(known.glasses.value, rel=1e-5)
        assert known.facial_hair is not None and unknown.facial_hair is None
        assert float(rows[0]["facial_hair"]) == pytest.approx(known.facial_hair.value, rel=1e-5)
        assert float(rows[0]["area_hair"]) == pytest.approx(known.areas["hair"], rel=1e-5)

        target = tmp_path / "results.parquet"
        stream = client.results(follow=False)
        assert await export_results(stream, target, "parquet", embeddings=True) == 2
        first, second = parquet.read_table(target).to_pylist()
        assert first["captured"] == known.captured
        assert first["face_id"] == known.face_id
        assert (second["known"], second["age"], second["embedding"]) == (False, None, None)
        assert (unknown.face_id, second["visit_id"]) == (second["face_id"], None)
        np.testing.assert_array_equal(np.float32(first["embedding"]), known.embedding)
        with pytest.raises(InvalidInput, match="Parquet"):
            await export_results(client.results(follow=False), target, "csv", embeddings=True)
        # The command, as a user runs it; an export that fails leaves no half file.
        done = await asyncio.to_thread(
            run, "--format", "csv", "-o", tmp_path / "cli.csv", "--analytics", address
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "cli.csv").read_text() == (tmp_path / "results.csv").read_text()
    done = run("--format", "csv", "-o", tmp_path / "none.csv", "--analytics", address)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1) and address in done.stderr
    assert not list(tmp_path.glob("none*"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sfic", "results", "export", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


async def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> Any:
        return
        yield

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"sfic\[export\]"):
        await export_results(nothing(), tmp_path / "x.parquet", "parquet")
    assert not list(tmp_path.iterdir())


async def test_the_examples_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their order, on a service with faces; a stream that would go on for ever is ended."""
    address = free_address()
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)
    assert len(blocks) == 8
    monkeypatch.chdir(tmp_path)
    shutil.copy(demo_photograph(), tmp_path / "photo.png")
    known: dict[str, Any] = {}
    async with (
        running_edge(tmp_path / "edge") as edge,
        running_analytics(tmp_path, edge.address, listen=address, watchlists=True),
        AnalyticsClient(address) as client,
    ):
        for k in range(4):
            await edge.keep(encoded_faces()[:1], camera_id="door", score=None if k else 0.1)
        await kept(client, 4)
        for block in blocks:
            source = block.replace("127.0.0.1:50052", address).replace(
                "AnalyticsClient()", f"AnalyticsClient({address!r})"
            )
            imports = [line for line in source.splitlines() if line.startswith("from ")]
            indented = textwrap.indent(source, "    ")
            code = f"async def example():\n{indented}\n    globals().update(locals())"
            exec("\n".join([*imports, code]), known)
            running = asyncio.ensure_future(known.pop("example")())
            if "alerts" in source:

                async def entered() -> bool:
                    lists = await client.watchlists()
                    return any(watchlist.entries for watchlist in lists)

                await eventually(entered)
                await edge.keep(encoded_faces()[:1], camera_id="door")
            endless = "client.results(camera" in source
            done, _ = await asyncio.wait([running], timeout=2 if endless else 60)
            if endless:
                assert not done
                running.cancel()
            else:
                await running
    printed = capsys.readouterr().out
    assert "is too poor to be read" in printed
    assert re.search(r"\+00:00 age \d+ \(0\.\d\d\)", printed)
    assert "smiling" in printed and "3 faces" in printed and "Ann at door" in printed
    secret = "whsec_" + "QUJD" * 10
    headers = WebhookSecret(secret).headers("id", b"{}", int(datetime.now().timestamp()))
    assert known["receive"](headers, b"{}", secret) == "id"


async def test_watchlists_that_are_off_say_so(tmp_path: Path) -> None:
    address = free_address()
    async with (
        running_analytics(tmp_path, free_address(), listen=address),
        AnalyticsClient(address) as client,
    ):
        with pytest.raises(WatchlistsOff, match="watchlists = true"):
            await anext(client.alerts())
