"""The console in a real, headless Chromium over real services: what a person does, and sees."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from console_rig import Rig, codec, console_settings, encoded_faces, running_rig
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect
from services_util import astronaut_jpeg

from analytics_service.records import make_result
from console.service import ConsoleServer
from sfic.service.tokens import issue_token, make_token_key
from sfic.v1 import common_pb2

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SECONDS = 1000

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.asyncio(loop_scope="module"),
]
expect.set_options(timeout=30 * SECONDS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        await started.close()


@pytest_asyncio.fixture(loop_scope="module")
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running_rig(tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: object) -> AsyncIterator[Page]:
    """A page of a new person; errors of its own and questions to other hosts fail the test."""
    settings = {"locale": "en-GB", "reduced_motion": "reduce", **options}
    context = await browser.new_context(**settings)  # type: ignore[arg-type]
    page = await context.new_page()
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: faults.append(message.text) if "Security Policy" in message.text else None,
    )
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(url)
    yield page
    await context.close()
    assert not faults, faults
    host = url.partition("/#")[0].rstrip("/")
    assert all(address.startswith((host, "blob:")) for address in asked), asked


async def test_from_a_live_card_to_the_sharp_picture(browser: Browser, rig: Rig) -> None:
    await rig.keep(camera_id="door")
    async with opened(browser, rig.console.url, accept_downloads=True) as page:
        await expect(page.locator(".state")).to_contain_text("Live")
        await expect(page.locator(".card")).to_have_count(1)
        (fresh,) = await rig.keep(camera_id="gate")
        card = page.locator(".card").first
        await expect(card).to_contain_text("gate")
        await expect(card.locator("img")).to_be_visible()
        await expect(card).to_contain_text(re.compile(r"\d+ years?"))

        await card.click()
        await expect(page).to_have_url(re.compile(fresh))
        await expect(page.get_by_text("Why do you need this picture?")).to_be_visible()
        await expect(page.locator(".sheet")).to_have_count(0)
        await page.get_by_label("Purpose").fill("Test of the page")
        await page.get_by_role("button", name="Show the picture").click()
        await expect(page.locator(".step[data-state=done]")).to_have_count(3)
        enhanced = page.locator(".step[data-layer=enhanced]")
        await expect(enhanced).to_contain_text("bytes in all")
        await expect(page.locator(".strip")).to_contain_text("not a photograph")

        await page.get_by_role("button", name="Compare").click()
        slider = page.get_by_label("Where the two pictures meet")
        await slider.focus()
        await page.keyboard.press("End")
        split = "document.querySelector('.compare').style.getPropertyValue('--split')"
        assert await page.evaluate(split) == "100%"

        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Download PNG").click()
        path = await (await waiting.value).path()
        picture = Image.open(io.BytesIO(path.read_bytes()))
        text = dict(picture.text)  # type: ignore[attr-defined]
        assert text["sfic:purpose"] == "Test of the page" and text["sfic:face_id"] == fresh
        assert "not a photograph" in text["Warning"]


async def test_search_by_face_and_by_picture(browser: Browser, rig: Rig, tmp_path: Path) -> None:
    first, *_ = await rig.keep(4, camera_id="door")
    async with opened(browser, f"{rig.console.url}/#/search?face={first}") as page:
        await expect(page.locator(".similarity").first).to_have_text("1.00")
        await expect(page.locator(".facts")).to_contain_text("4 faces")
        picture = tmp_path / "photo.jpg"
        picture.write_bytes(astronaut_jpeg())
        await page.set_input_files("#search-picture", picture)
        await expect(page.locator(".example-name")).to_have_text("Like photo.jpg")
        await expect(page.locator(".similarity").first).to_have_text(re.compile(r"0\.9\d|1\.00"))
        await page.get_by_text("Filters").last.click()
        await page.get_by_role("spinbutton", name="from").fill("119")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("No face fits.")).to_be_visible()


async def test_watchlist_to_alert(browser: Browser, rig: Rig, tmp_path: Path) -> None:
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(astronaut_jpeg())
    async with opened(browser, f"{rig.console.url}/#/alerts") as page:
        await page.get_by_text("New watchlist").click()
        await page.get_by_label("Name").fill("missing")
        await page.get_by_label("Purpose, and on what").fill("Missing person, by court order 7")
        await page.get_by_role("button", name="Make the list").click()
        await page.get_by_label("Whom to look for").fill("Person 7")
        await page.set_input_files(".entry-form input[type=file]", picture)
        await page.get_by_role("button", name="Look for this face").click()
        await expect(page.locator(".entries")).to_contain_text("Person 7")
        await rig.keep(camera_id="gate")
        await expect(page.locator(".card")).to_contain_text("Person 7 · missing")


async def test_a_lost_connection_is_told_and_comes_back(browser: Browser, rig: Rig) -> None:
    await rig.keep()
    settings = rig.console.settings
    console = ConsoleServer(settings)
    await console.start()
    again = ConsoleServer(
        type(settings).make(**{**settings.model_dump(), "listen": console.address})
    )
    async with opened(browser, console.url) as page:
        await expect(page.locator(".card")).to_have_count(1)
        await console.stop()
        await expect(page.locator(".state")).to_contain_text("Connection lost")
        await rig.keep(2)
        await again.start()
        await expect(page.locator(".state")).to_have_text("Live")
        await expect(page.locator(".card")).to_have_count(3)
    await again.stop()


async def test_analytics_away_is_told(browser: Browser) -> None:
    from sfic.processes import free_address

    settings = console_settings(analytics=free_address(), decoder=free_address())
    async with ConsoleServer(settings) as console, opened(browser, console.url) as page:
        await expect(page.locator(".state")).to_contain_text("Analytics is away")
        await page.get_by_role("link", name="System").click()
        await expect(page.locator(".facts")).to_contain_text("0 of 3")


async def test_paused_and_scrolled_views_do_not_move(browser: Browser, rig: Rig) -> None:
    await rig.keep()
    async with opened(browser, rig.console.url) as page:
        await expect(page.locator(".card")).to_have_count(1)
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator(".state")).to_have_text("Paused")
        await rig.keep(2)
        await expect(page.locator(".pill")).to_contain_text("2 new faces")
        await expect(page.locator(".card")).to_have_count(1)
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator(".card")).to_have_count(3)


async def put_results(rig: Rig, count: int) -> None:
    """Results of `count` faces, straight into analytics' database and index."""
    service = rig.analytics.service
    analysis = codec().analyze(encoded_faces()[0].basic)
    results, now = [], time.time_ns()
    for number in range(count):
        face = common_pb2.FaceInfo(
            face_id=f"{number:026d}",
            camera_id=f"camera-{number % 7}",
            face_score=0.8,
            model_bundle=codec().model_bundle,
            layer_bytes=[34, 9, 185],
        )
        face.capture_time.FromNanoseconds(now - (count - number) * 10**9)
        results.append(make_result(face, analysis, 0.0, time.time_ns()))
    kept = await service._store.commit(results, [], {})  # type: ignore[attr-defined]
    service._kept(kept)  # type: ignore[attr-defined]


async def scroll_milliseconds(page: Page) -> float:
    """Median time that the page takes to scroll on by one screen, not down to the end."""
    return float(
        await page.evaluate(
            """async () => {
                const grid = document.querySelector('.grid');
                const screens = Math.min(40, 0.8 * grid.scrollHeight / grid.clientHeight - 1);
                const times = [];
                for (let screen = 0; screen < screens; screen += 1) {
                    const start = performance.now();
                    grid.scrollTop = screen * grid.clientHeight;
                    grid.dispatchEvent(new Event('scroll'));
                    grid.getBoundingClientRect();
                    times.push(performance.now() - start);
                    await new Promise(requestAnimationFrame);
                }
                return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
            }"""
        )
    )


async def test_5000_cards_scroll_with_few_elements(browser: Browser, rig: Rig) -> None:
    await put_results(rig, 5000)
    async with opened(browser, rig.console.url) as page:
        await expect(page.locator(".facts")).to_contain_text("200 faces")
        grid = "document.querySelector('.grid')"
        with_200 = await scroll_milliseconds(page)
        for _ in range(400):  # each end reached loads the next page
            await page.evaluate(f"{grid}.scrollTop = {grid}.scrollHeight")
            if "5,000 faces" in (await page.locator(".facts").text_content() or ""):
                break
            await page.wait_for_timeout(60)
        await expect(page.locator(".facts")).to_contain_text("5,000 faces")
        assert await page.locator(".card").count() < 120
        # A screen of 5,000 cards costs what one of 200 does.
        assert await scroll_milliseconds(page) < 3 * with_200 + 5
        await page.evaluate(f"{grid}.scrollTop = {grid}.scrollHeight")
        last = page.locator(".cell[aria-posinset='5000']")
        await expect(last).to_have_attribute("aria-setsize", "5000")


async def test_keyboard_alone_reaches_everything(browser: Browser, rig: Rig) -> None:
    await rig.keep(3)
    async with opened(browser, rig.console.url) as page:
        await expect(page.locator(".card")).to_have_count(3)
        await page.keyboard.press("Tab")
        await expect(page.locator(".skip")).to_be_focused()
        await page.locator(".card").first.focus()
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("ArrowRight")
        second = page.locator(".cell[aria-posinset='3'] .card")
        await expect(second).to_be_focused()
        await page.keyboard.press("Home")
        await expect(page.locator(".cell[aria-posinset='1'] .card")).to_be_focused()
        assert await page.locator(".card[tabindex='0']").count() == 1
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Purpose")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing(browser: Browser, rig: Rig, theme: str) -> None:
    (kept,) = await rig.keep()
    options = {"color_scheme": theme, "bypass_csp": True}  # axe is injected as a script
    async with opened(browser, rig.console.url, **options) as page:
        for place in ("live", f"face/{kept}", "shown", f"search?face={kept}", "alerts", "system"):
            if place == "shown":
                await page.get_by_label("Purpose").fill("axe")
                await page.get_by_role("button", name="Show the picture").click()
                await expect(page.locator(".step[data-state=done]")).to_have_count(3)
                await page.get_by_role("button", name="Compare").click()
            else:
                await page.goto(f"{rig.console.url}/#/{place}")
            await expect(page.locator(".card, .ask, .sheet, .figure, .lists").first).to_be_visible()
            await page.wait_for_timeout(300)
            found = (await Axe().run(page)).response["violations"]
            told = [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]
            assert not found, (place, told)


async def test_language_and_theme_are_kept(browser: Browser, rig: Rig) -> None:
    async with opened(browser, rig.console.url) as page:
        await page.get_by_label("Language").select_option("de")
        await expect(page.get_by_role("link", name="Suche")).to_be_visible()
        await page.get_by_role("button", name="Wie das System").click()
        await page.get_by_role("button", name="Hell").click()
        await page.reload()
        await expect(page.get_by_role("button", name="Dunkel")).to_be_visible()
        assert await page.evaluate("document.documentElement.lang") == "de"
        ground = "getComputedStyle(document.documentElement).backgroundColor"
        assert await page.evaluate(ground) == "rgb(12, 17, 22)"


async def test_people_sign_in_and_get_no_more_than_their_role(
    browser: Browser, tmp_path: Path
) -> None:
    private, _ = make_token_key()
    key = tmp_path / "token-key.pem"
    key.write_bytes(private)
    async with (
        running_rig(tmp_path, token_key=key) as rig,
        opened(browser, rig.console.url) as page,
    ):
        token = page.get_by_label("Token")
        await token.fill(issue_token(key, "box-3", ["camera"], 60))
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("Your role does not allow this")
        await token.fill("not.a.token")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("not good here")
        assert (await page.request.get(f"{rig.console.url}/api/cameras")).status == 401

        await token.fill(issue_token(key, "ada", ["operator"], 60))
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator(".person")).to_contain_text("ada · operator")
        (cookie,) = await page.context.cookies()
        assert cookie.get("httpOnly") and cookie.get("sameSite") == "Strict"
        assert "ada" not in str(await page.evaluate("JSON.stringify(localStorage)"))
        await page.get_by_role("link", name="System").click()
        await expect(page.locator(".figure").first).to_be_visible()
        await expect(page.get_by_role("heading", name="Grants")).to_be_visible()
        await expect(page.get_by_role("heading", name="Forget")).to_have_count(0)
        refused = await page.request.post(
            f"{rig.console.url}/api/forget",
            headers={"X-Sfic-Console": "1"},
            data={"camera": "door", "reason": "x"},
        )
        assert (refused.status, (await refused.json())["code"]) == (403, "ACCESS_DENIED")
        await page.get_by_role("button", name="Sign out").click()
        await expect(token).to_be_visible()
        assert await page.context.cookies() == []


async def test_a_session_ends_with_its_token(browser: Browser, tmp_path: Path) -> None:
    private, _ = make_token_key()
    key = tmp_path / "token-key.pem"
    key.write_bytes(private)
    async with (
        running_rig(tmp_path, token_key=key) as rig,
        opened(browser, rig.console.url) as page,
    ):
        await page.get_by_label("Token").fill(issue_token(key, "ada", ["operator"], 6))
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator(".state")).to_have_text("Live")
        await expect(page.get_by_label("Token")).to_be_visible()
