"""The console's back end over real services: what it answers, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from console_rig import Rig, client_of, console_settings, running_rig
from PIL import Image
from service_rig import encoded_faces, eventually
from services_util import astronaut_jpeg, empty_jpeg

from console.provenance import NOTICE
from console.service import ConsoleServer
from sfic.errors import ConfigError
from sfic.processes import free_address

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with running_rig(tmp_path_factory.mktemp("rig")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def rig(services: Rig) -> AsyncIterator[Rig]:
    """The same services for all tests, with nothing in them."""
    yield services
    await services.clear()


class Events:
    """Server-sent events as a browser reads them."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.last_id = ""

    async def next(self, name: str) -> Any:
        """The content of the next event of this name; others are passed over."""
        event = ""
        async for line in self._lines:
            if line.startswith("id: "):
                self.last_id = line[4:]
            elif line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: ") and event == name:
                return json.loads(line[6:])
        raise AssertionError("the stream ended")


async def test_live_brings_new_faces_and_resumes_without_a_gap(rig: Rig) -> None:
    async with client_of(rig.console) as client:
        (before,) = await rig.keep()
        async with client.stream("GET", "/api/live") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = Events(response)
            assert (await events.next("ready"))["resumed"] is False
            (first,) = await rig.keep(camera_id="gate")
            (face,) = (batch := await events.next("faces"))["faces"]
            assert (face["id"], face["camera"]) == (first, "gate")
            assert face["id"] != before and batch["lag_ms"] < 30_000 and batch["missed"] == 0
            assert 0 < face["estimates"]["age"]["value"] < 100
            assert "embedding" not in face
        missed = await rig.keep(2)
        resume = {"Last-Event-ID": events.last_id}
        async with client.stream("GET", "/api/live", headers=resume) as response:
            events = Events(response)
            assert (await events.next("ready"))["resumed"] is True
            seen: list[str] = []
            while len(seen) < 2:
                seen += [face["id"] for face in (await events.next("faces"))["faces"]]
            assert seen == missed


async def test_live_tells_that_analytics_is_away_and_comes_back(tmp_path: Path) -> None:
    settings = console_settings(analytics=free_address(), decoder=free_address(), edges=())
    async with ConsoleServer(settings) as console, client_of(console) as client:
        async with client.stream("GET", "/api/live") as response:
            assert (await Events(response).next("away"))["code"] == "UNAVAILABLE"
        answer = await client.post("/api/search", json={})
        assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")


async def test_live_views_of_one_person_are_limited(tmp_path: Path) -> None:
    settings = console_settings(
        analytics=free_address(), decoder=free_address(), max_streams_per_connection=1
    )
    async with ConsoleServer(settings) as console, client_of(console) as client:
        async with client.stream("GET", "/api/live") as first:
            await Events(first).next("away")
            refused = await client.get("/api/live")
            assert (refused.status_code, refused.json()["code"]) == (429, "LIMIT")

        async def room() -> bool:
            async with client.stream("GET", "/api/live") as again:
                return again.status_code == 200

        await eventually(room)


async def test_search_by_filters_face_and_picture(rig: Rig) -> None:
    door = await rig.keep(3, camera_id="door", score=0.9)
    gate = await rig.keep(2, camera_id="gate", score=0.3)
    async with client_of(rig.console) as client:

        async def found(**form: Any) -> list[dict[str, Any]]:
            answer = await client.post("/api/search", json=form)
            assert answer.status_code == 200, answer.text
            hits: list[dict[str, Any]] = answer.json()["hits"]
            return hits

        newest = await found()
        assert [hit["captured"] for hit in newest] == sorted(
            (hit["captured"] for hit in newest), reverse=True
        )
        assert {hit["id"] for hit in newest} == {*door, *gate}
        assert {hit["id"] for hit in await found(cameras=["gate"])} == set(gate)
        assert {hit["id"] for hit in await found(min_face_score=0.5)} == set(door)
        assert await found(age={"min": 119}) == []
        like = await found(face_id=gate[0], min_similarity=0.99)
        assert gate[0] in [hit["id"] for hit in like]
        assert like[0]["similarity"] == pytest.approx(1.0, abs=1e-3)

        picture = {"picture": ("photo.jpg", astronaut_jpeg())}
        answer = await client.post("/api/search/picture", data={"form": "{}"}, files=picture)
        assert answer.json()["by_likeness"] and answer.json()["hits"][0]["similarity"] > 0.9
        nobody = {"picture": ("wall.jpg", empty_jpeg())}
        answer = await client.post("/api/search/picture", data={"form": "{}"}, files=nobody)
        assert (answer.status_code, answer.json()["code"]) == (404, "NO_FACE")


async def test_wrong_requests_are_told_in_one_line(rig: Rig) -> None:
    (kept,) = await rig.keep()
    async with client_of(rig.console) as client:
        for form in ({"limit": 0}, {"no_such": 1}, {"age": {"min": "old"}}, {"min_face_score": 7}):
            answer = await client.post("/api/search", json=form)
            assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_INPUT"), form
            assert "\n" not in answer.json()["message"]
        unknown = await client.get("/api/faces/01NOSUCHFACE")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "FACE_NOT_KEPT")
        for form in ({}, {"purpose": "  "}, {"purpose": "x", "highest": "top"}):
            answer = await client.post(f"/api/faces/{kept}/levels", data=form)
            assert answer.status_code == 400, form
        assert (await client.post(f"/api/faces/{kept}/picture.png", data={})).status_code == 400


async def test_a_face_sharpens_level_by_level(rig: Rig) -> None:
    (kept,) = await rig.keep()
    async with client_of(rig.console) as client:
        facts = (await client.get(f"/api/faces/{kept}")).json()
        assert len(facts["layer_bytes"]) == 3 and len(facts["landmarks"]) == 136
        assert facts["frame"] == [512, 512]
        form = {"purpose": "test", "size": "128", "paste_back": "true"}
        async with client.stream("POST", f"/api/faces/{kept}/levels", data=form) as response:
            levels = [json.loads(line) async for line in response.aiter_lines()]
    assert [level["level"] for level in levels] == ["basic", "middle", "enhanced"]
    assert levels[-1]["layer_bytes"] == sum(facts["layer_bytes"])
    assert all(level["synthesis_ms"] > 0 for level in levels)
    pixels = [np.asarray(opened(level["picture"]), np.int16) for level in levels]
    assert pixels[0].shape == (128, 128, 3) and np.abs(pixels[0] - pixels[2]).mean() > 1
    assert opened(levels[-1]["frame"]).size == (512, 512)


def opened(base64_text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(base64_text)))


async def test_a_failure_comes_after_what_was_sent(rig: Rig) -> None:
    async with client_of(rig.console) as client:
        answer = await client.post("/api/faces/01NOSUCHFACE/levels", data={"purpose": "test"})
        (line,) = answer.text.splitlines()
        assert json.loads(line)["error"]["code"] == "FACE_NOT_KEPT"


async def test_a_downloaded_picture_says_what_it_is(rig: Rig) -> None:
    dim = replace(encoded_faces()[0], brightened=2.5)
    (kept,) = await rig.edge.keep([dim], camera_id="gate")
    async with client_of(rig.console) as client:
        form = {"purpose": "Fall 7: Prüfung", "size": "256", "highest": "middle"}
        answer = await client.post(f"/api/faces/{kept}/picture.png", data=form)
    assert f'filename="sfic-{kept}.png"' in answer.headers["content-disposition"]
    image = Image.open(io.BytesIO(answer.content))
    assert image.format == "PNG" and image.width == 256 and image.height > 256
    assert isinstance(image, Image.Image)
    text = dict(image.text)  # type: ignore[attr-defined]
    assert text["Warning"] == NOTICE
    assert text["sfic:layers"] == "basic+middle"
    assert text["sfic:brightened"] == "2.50"
    assert text["sfic:purpose"] == "Fall 7: Prüfung"
    assert (text["sfic:face_id"], text["sfic:camera"]) == (kept, "gate")
    assert re.fullmatch("[0-9a-f]{16}", text["sfic:model_bundle"])
    strip = np.asarray(image.convert("L"))[256:]
    assert strip.min() < 40 and strip.max() > 200  # letters on a dark ground


async def test_small_pictures_are_small_and_never_cached(rig: Rig) -> None:
    (kept,) = await rig.keep()
    async with client_of(rig.console) as client:
        answer = await client.get(f"/api/faces/{kept}/preview")
        assert answer.headers["cache-control"] == "no-store"
        assert Image.open(io.BytesIO(answer.content)).size == (128, 128)
        assert len(answer.content) < 20_000


async def test_system_tells_health_figures_and_cameras(rig: Rig) -> None:
    await rig.keep(2, camera_id="door")
    await rig.keep(camera_id="gate")
    async with client_of(rig.console) as client:

        async def not_found() -> int:
            pages = (await client.get("/api/system")).json()["pages"]
            told = next(page["errors"] for page in pages if page["kind"] == "decoder")
            calls = {(each["method"], each["code"]): each["calls"] for each in told}
            return int(calls.get(("Reconstruct", "NOT_FOUND"), 0))

        before = await not_found()
        await client.post("/api/faces/01NOSUCHFACE/levels", data={"purpose": "test"})
        assert await not_found() == before + 1
        state = (await client.get("/api/system")).json()
        assert {each["kind"]: each["state"] for each in state["services"]} == {
            "edge": "serving",
            "analytics": "serving",
            "decoder": "serving",
        }
        by_kind = {page["kind"]: page for page in state["pages"]}
        assert by_kind["edge"]["figures"]["store_faces"] == 3
        assert by_kind["analytics"]["figures"]["feeds"] == 1
        assert by_kind["analytics"]["figures"]["lag_p95"] > 0
        cameras = {
            each["camera"]: each["faces"] for each in (await client.get("/api/cameras")).json()
        }
        assert cameras == {"door": 2, "gate": 1}


async def test_grants_forgetting_and_the_audit_log(rig: Rig) -> None:
    kept, other = await rig.keep(2)
    async with client_of(rig.console) as client:
        for grant in (await client.get("/api/grants")).json():
            path = f"/api/grants/{grant['id']}"
            assert (await client.delete(path, params={"edge": "x:1"})).status_code == 400
            gone = await client.delete(path, params={"edge": grant["edge"]})
            assert gone.status_code == 200
        form = {"purpose": "Fall 7", "size": "128"}
        answer = await client.post(f"/api/faces/{kept}/levels", data=form)
        basic, refused = map(json.loads, answer.text.splitlines())
        assert basic["level"] == "basic" and refused["error"]["code"] == "ACCESS_DENIED"

        granted = await client.post(f"/api/faces/{kept}/grant", json={"purpose": "Fall 7"})
        assert granted.status_code == 200, granted.text
        answer = await client.post(f"/api/faces/{kept}/levels", data=form)
        assert len(answer.text.splitlines()) == 3
        (grant,) = (await client.get("/api/grants")).json()
        assert (grant["face"], grant["purpose"]) == (kept, "Fall 7")

        order = {"face_ids": [kept], "reason": "asked for by the person"}
        assert (await client.post("/api/forget", json=order)).json() == {"faces": 1}
        assert (
            await client.post("/api/forget", json={"reason": "nothing named"})
        ).status_code == 400
        (log,) = (await client.get("/api/audit")).json()
        assert log["problems"] == [] and log["lines"] >= 3
        assert any("asked for by the person" in line["why"] for line in log["newest"])

        async def only_other() -> bool:
            hits = (await client.post("/api/search", json={})).json()["hits"]
            return [hit["id"] for hit in hits] == [other]

        await eventually(only_other)


async def test_system_works_when_nothing_else_does() -> None:
    away = {"edges": [free_address()], "analytics": free_address(), "decoder": free_address()}
    settings = console_settings(**away, metrics_pages=[free_address()])
    async with ConsoleServer(settings) as console, client_of(console) as client:
        state = (await client.get("/api/system")).json()
        assert {each["state"] for each in state["services"]} == {"away"}
        assert [page["kind"] for page in state["pages"]] == [""]


@pytest_asyncio.fixture(loop_scope="module")
async def alone() -> AsyncIterator[ConsoleServer]:
    """A console without services: enough for what it refuses by itself."""
    settings = console_settings(
        analytics=free_address(), decoder=free_address(), edges=(), max_message_bytes=65_536
    )
    async with ConsoleServer(settings) as console:
        yield console


async def test_other_sites_get_nothing(alone: ConsoleServer) -> None:
    async with httpx.AsyncClient(base_url=alone.url, trust_env=False) as client:

        async def status(method: str, path: str, **headers: str) -> int:
            return (await client.request(method, path, headers=headers)).status_code

        assert await status("GET", "/api/session") == 200
        assert await status("GET", "/", Host="evil.example") == 403
        assert await status("GET", "/api/session", Host="evil.example:50080") == 403
        assert await status("GET", "/api/session", **{"Sec-Fetch-Site": "cross-site"}) == 403
        assert await status("GET", "/api/session", **{"Sec-Fetch-Site": "same-site"}) == 403
        assert await status("GET", "/api/session", Origin="https://evil.example") == 403
        assert await status("GET", "/api/session", Origin=alone.url) == 200
        assert await status("POST", "/api/search") == 403
        form = {"purpose": "x"}
        assert (await client.post("/api/faces/x/levels", data=form)).status_code == 403


async def test_uploads_are_bounded(alone: ConsoleServer) -> None:
    async with client_of(alone) as client:
        large = {"picture": ("x.png", bytes(70_000))}
        answer = await client.post("/api/search/picture", data={"form": "{}"}, files=large)
        assert answer.status_code == 403 and "65536" in answer.text

        async def endless() -> AsyncIterator[bytes]:
            yield b"{}"

        assert (await client.post("/api/search", content=endless())).status_code == 403


async def test_every_answer_has_the_strict_headers(alone: ConsoleServer) -> None:
    async with client_of(alone) as client:
        for path in ("/", "/main.js", "/api/session", "/api/search", "/nowhere"):
            headers = (await client.get(path)).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy, path
            assert "http" not in policy and "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            wanted = "no-store" if path.startswith("/api") else "no-cache"
            assert headers["cache-control"] == wanted, path


async def test_a_taken_port_is_one_clear_error(alone: ConsoleServer) -> None:
    with pytest.raises(ConfigError, match=re.escape(alone.address)):
        await ConsoleServer(console_settings(listen=alone.address)).start()
