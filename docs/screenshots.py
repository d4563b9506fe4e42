"""Screenshots of the console: `python docs/screenshots.py [FOLDER]`, from a real run.

Made anew with every model bundle; the same faces and views come out each time. Starts the services,
sends faces as cameras do, and drives Chromium through every view. Nobody is on the pictures: faces
are sampled from the codec's own prior, and the one photograph is of Eileen Collins by NASA (public
domain), which ships along with the project.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from playwright.async_api import Browser, Page, async_playwright, expect

from sfic.codec import Codec
from sfic.entropy.coder import ESCAPE_BELOW
from sfic.entropy.model import LayerSymbols
from sfic.grants import grant_all_faces
from sfic.locations import demo_photograph
from sfic.processes import ServiceGroup, free_address
from sfic.service.client import open_channel
from sfic.v1 import analytics_pb2, analytics_pb2_grpc, edge_pb2, edge_pb2_grpc

FACES = 26
CAMERAS = ("entrance", "gate-2", "lobby", "platform-4")
RATE = 7
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
WAIT = 300_000.0  # milliseconds; a machine at work may take long


def synthetic_face(codec: Codec, random: np.random.Generator) -> NDArray[np.uint8]:
    """A face that nobody has, uint8 RGB [512, 512, 3]: a basic layer drawn from the prior."""
    model = codec._entropy
    symbols = np.zeros(model.sizes["basic"], np.int32)
    for step in model._steps("basic", RATE, {"basic": symbols}):
        weights = model.tables.weights[model.tables.rows(step.table)][:, :ESCAPE_BELOW]
        below = weights.astype(np.float64).cumsum(axis=1)
        drawn = (below < random.random((len(below), 1)) * below[:, -1:]).sum(axis=1)
        magnitude = (drawn + 1) >> 1
        residuals = np.where(drawn % 2 == 1, -magnitude, magnitude)
        symbols.reshape(-1)[step.places] = residuals + step.offset
    return codec.synthesise(LayerSymbols({"basic": symbols}), RATE, "basic", 512)


def as_frame(face: NDArray[np.uint8], random: np.random.Generator) -> bytes:
    """What a camera would send: the face somewhere in a wide, blurred surrounding, as JPEG."""
    image = Image.fromarray(face)
    frame = image.resize((960, 720)).filter(ImageFilter.GaussianBlur(60))
    frame.paste(image, (int(random.integers(0, 960 - 512)), int(random.integers(60, 720 - 512))))
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


async def send(edge: str, frames: Sequence[tuple[str, float, bytes]]) -> list[str]:
    """Send frames (camera, time of capture, JPEG) in turn; returns the ids of the faces kept."""
    ids: list[str] = []
    async with open_channel(edge) as channel:
        stub = edge_pb2_grpc.EdgeIngestStub(channel)
        for number, (camera, captured, picture) in enumerate(frames):
            request = edge_pb2.StreamFramesRequest(
                camera_id=camera, frame_number=number, encoded=picture
            )
            request.capture_time.FromNanoseconds(int(captured * 1e9))
            async for receipt in stub.StreamFrames(iter([request])):
                ids.extend(face.face_id for face in receipt.faces)
    return ids


async def analysed(analytics: str, ids: Sequence[str]) -> None:
    """Return once analytics has a result of every face."""
    async with open_channel(analytics) as channel:
        stub = analytics_pb2_grpc.AnalyticsStub(channel)
        missing = set(ids)
        async for result in stub.SubscribeResults(analytics_pb2.SubscribeResultsRequest()):
            missing.discard(result.analysis.face.face_id)
            if not missing:
                return


async def look_for(analytics: str, people: Sequence[tuple[str, bytes]]) -> None:
    """A watchlist with an entry for each (label, picture)."""
    async with open_channel(analytics) as channel:
        stub = analytics_pb2_grpc.AnalyticsStub(channel)
        watchlist = analytics_pb2.Watchlist(
            watchlist_id="missing",
            purpose="Missing persons, court order 2041/26",
            threshold=0.9,
        )
        await stub.PutWatchlist(analytics_pb2.PutWatchlistRequest(watchlist=watchlist))
        for label, picture in people:
            entry = analytics_pb2.WatchlistEntry(
                watchlist_id="missing", entry_id=label.replace(" ", "-"), label=label
            )
            asked = analytics_pb2.PutWatchlistEntryRequest(entry=entry, picture=picture)
            await stub.PutWatchlistEntry(asked)


def address(port: int) -> str:
    """This port of loopback, as a reader will see it; where it is taken, a free one."""
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    return free_address() if taken else f"127.0.0.1:{port}"


def start_services(
    folder: Path, **more: Sequence[str]
) -> tuple[ServiceGroup, dict[str, str], dict[str, str]]:
    """The services and the console, with all they keep in `folder`.

    Their addresses by name, and those of their metrics pages. `more`: further arguments by name.
    """
    names = ("edge", "analytics", "decoder", "console")
    at = dict(zip(names, map(address, (50051, 50052, 50053, 50080)), strict=True))
    pages = dict(zip(names, map(address, (9101, 9102, 9103, 9105)), strict=True))
    own = {
        "edge": [f"--data-dir={folder / 'edge'}"],
        "analytics": [
            f'--edges=["{at["edge"]}"]',
            f"--database={folder / 'analytics.sqlite'}",
            "--watchlists=true",
        ],
        "decoder": [f"--edge={at['edge']}"],
        "console": [
            f'--edges=["{at["edge"]}"]',
            f"--analytics={at['analytics']}",
            f"--decoder={at['decoder']}",
            f"--metrics-pages={json.dumps([pages[name] for name in names[:3]])}",
        ],
    }
    group = ServiceGroup(log_directory=folder)
    for name in names:
        given = [f"--listen={at[name]}", f"--metrics-listen={pages[name]}"]
        arguments = [*given, *own[name], *more.get(name, ())]
        group.start(name, at[name], arguments, page=name == "console")
    try:
        group.wait_ready(180.0)
    except BaseException:
        group.stop()
        raise
    return group, at, pages


async def save(page: Page, path: Path) -> None:
    """What is on the page, as WebP, once its pictures are there and nothing moves."""
    await page.wait_for_timeout(1200)
    png = await page.screenshot(animations="disabled")
    Image.open(io.BytesIO(png)).convert("RGB").save(path, "WEBP", quality=82, method=6)
    print(f"wrote {path} ({path.stat().st_size} bytes)")


async def live(page: Page, url: str) -> None:
    """Every card in sight has its picture."""
    await page.goto(f"{url}/#/live")
    await page.wait_for_selector(".card img")
    await expect(page.locator(".card-picture:not(:has(img))")).to_have_count(0, timeout=WAIT)


async def face(page: Page, url: str, face_id: str, purpose: str) -> None:
    """The picture from all layers; basic and enhanced side by side."""
    await page.goto(f"{url}/#/face/{face_id}")
    await page.fill("#purpose", purpose)
    await page.check(".ask input[type=checkbox]")
    await page.set_input_files("#frame-file", demo_photograph())
    await page.click(".ask button[type=submit]")
    await page.wait_for_selector(".step[data-layer=enhanced][data-state=done]", timeout=WAIT)


async def shoot(browser: Browser, url: str, ids: Sequence[str], to: Path) -> None:
    """Every view, light and dark, on a desk and on a phone."""
    for theme in ("light", "dark"):
        context = await browser.new_context(
            viewport=DESKTOP, color_scheme=theme, locale="en-GB", reduced_motion="reduce"
        )
        page = await context.new_page()
        await live(page, url)
        await save(page, to / f"live-{theme}.webp")
        await page.goto(f"{url}/#/face/{ids[-1]}")
        await page.wait_for_selector("#purpose")
        if theme == "light":
            await save(page, to / "face-purpose-light.webp")
        await face(page, url, ids[-1], "Case 2041: incident review")
        await page.click(".segments button:nth-child(2)")
        await save(page, to / f"face-{theme}.webp")
        if theme == "light":
            await page.click(".segments button:nth-child(3)")
            await save(page, to / "face-frame-light.webp")
        await page.goto(f"{url}/#/search?face={ids[-1]}")
        await page.wait_for_selector(".similarity")
        await expect(page.locator(".card-picture:not(:has(img))")).to_have_count(0, timeout=WAIT)
        await save(page, to / f"search-{theme}.webp")
        await page.goto(f"{url}/#/system")
        await page.wait_for_selector(".figure")
        await save(page, to / f"system-{theme}.webp")
        await page.goto(f"{url}/#/alerts")
        await page.wait_for_selector(".entries li")
        await expect(page.locator(".card-picture:not(:has(img))")).to_have_count(0, timeout=WAIT)
        await save(page, to / f"alerts-{theme}.webp")
        await context.close()
    context = await browser.new_context(
        viewport=PHONE,
        color_scheme="light",
        locale="de-DE",
        device_scale_factor=2,
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
    )
    page = await context.new_page()
    await live(page, url)
    await save(page, to / "phone-live.webp")
    await face(page, url, ids[-1], "Fall 2041")
    await save(page, to / "phone-face.webp")
    await page.goto(f"{url}/#/system")
    await page.wait_for_selector(".figure")
    await save(page, to / "phone-system.webp")


async def main(to: Path) -> None:
    """Make them all."""
    to.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    codec = Codec.load()
    pictures = [as_frame(synthetic_face(codec, random), random) for _ in range(FACES)]
    photograph = demo_photograph().read_bytes()
    pictures += [photograph] * 3
    ages = [*np.sort(random.uniform(12, 58, FACES))[::-1], 9.0, 6.0, 3.0]
    people = [("Person 7", photograph), ("Person 12", pictures[5]), ("Person 15", pictures[11])]
    with tempfile.TemporaryDirectory(prefix="sfic-shots-") as folder:
        group, at, _ = start_services(Path(folder))
        with group:
            await grant_all_faces(at["edge"], "screenshots of the documentation", 1.0)
            await look_for(at["analytics"], people)
            now = time.time()
            frames = [
                (CAMERAS[min(number, FACES) % len(CAMERAS)], now - age, picture)
                for number, (age, picture) in enumerate(zip(ages, pictures, strict=True))
            ]
            ids = sorted(await send(at["edge"], frames))  # ULIDs sort by time of capture
            await asyncio.wait_for(analysed(at["analytics"], ids), 120)
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                await shoot(browser, f"http://{at['console']}", ids, to)
                await browser.close()


if __name__ == "__main__":
    here = Path(__file__).parent / "images" / "console"
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else here))
