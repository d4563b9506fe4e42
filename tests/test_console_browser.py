"""The console in a real, headless Chromium over real services: what a person does, and sees."""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from console_rig import Rig, codec, console_settings, encoded_faces, running_rig
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect
from services_util import astronaut_jpeg, running

from analytics_service.records import make_result
from analytics_service.service import AnalyticsService
from analytics_service.settings import AnalyticsSettings
from analytics_service.store import Retention
from console.service import ConsoleServer
from sfic.processes import free_address
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
expect.set_options(timeout=60 * SECONDS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        await started.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with running_rig(tmp_path_factory.mktemp("rig")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def rig(services: Rig) -> AsyncIterator[Rig]:
    """The same services for all tests, with nothing in them."""
    yield services
    await services.clear()


@asynccontextmanager
async def with_sign_in(rig: Rig, folder: Path) -> AsyncIterator[tuple[ConsoleServer, Path]]:
    """A second console before the same services, where people sign in; and the key of tokens."""
    private, _ = make_token_key()
    key = folder / "token-key.pem"
    key.write_bytes(private)
    settings = rig.console.settings
    changed = {**settings.model_dump(), "listen": "127.0.0.1:0", "token_key": key}
    async with ConsoleServer(type(settings).make(**changed)) as console:
        yield console, key


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: object) -> AsyncIterator[Page]:
    """A page of a new person; errors of its own and questions to other hosts fail the test."""
    settings = {"locale": "en-GB", "reduced_motion": "reduce", **options}
    context = await browser.new_context(**settings)  # type: ignore[arg-type]
    context.set_default_timeout(60 * SECONDS)
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


async def show_picture(page: Page, purpose: str) -> None:
    """Give a purpose and wait for the last layer."""
    await page.get_by_label("Purpose").fill(purpose)
    await page.get_by_role("button", name="Show the picture").click()
    await expect(page.locator(".step[data-state=done]")).to_have_count(3)


async def downloaded(page: Page) -> Image.Image:
    """What "Download PNG" gives."""
    async with page.expect_download() as waiting:
        await page.get_by_role("button", name="Download PNG").click()
    path = await (await waiting.value).path()
    return Image.open(io.BytesIO(path.read_bytes()))


async def test_from_a_live_card_to_the_sharp_picture(browser: Browser, rig: Rig) -> None:
    await rig.keep(camera_id="door")
    async with opened(browser, rig.console.url, accept_downloads=True) as page:
        await expect(page.locator(".state")).to_contain_text("Connected")
        await expect(page.locator(".card")).to_have_count(1)
        (fresh,) = await rig.keep(camera_id="gate")
        card = page.locator(".card").first
        await expect(card).to_contain_text("gate")
        await expect(card.locator("img")).to_be_visible()
        await expect(card).to_contain_text(re.compile(r"\d+ years?"))
        await expect(card).to_have_accessible_name(re.compile(r"gate at .*, Face score \d+"))

        await card.click()
        await expect(page).to_have_url(re.compile(fresh))
        await expect(page.get_by_text("Why do you need this picture?")).to_be_visible()
        await expect(page.locator(".sheet")).to_have_count(0)
        await page.get_by_role("button", name="Show the picture").click()
        await expect(page.locator(".sheet")).to_have_count(0)  # not without a purpose
        await show_picture(page, "Test of the page")
        before = 0
        for layer in ("basic", "middle", "enhanced"):
            told = await page.locator(f".step[data-layer={layer}]").inner_text()
            found = re.search(r"\+ (\d+) bytes\s+(\d+) bytes in all.*synthesis \d", told, re.S)
            assert found, told
            own, total = int(found[1]), int(found[2])
            assert total == before + own
            before = total
        await expect(page.locator(".strip")).to_contain_text("not a photograph")
        await compare_layers(page)

        picture = await downloaded(page)
        text = dict(picture.text)  # type: ignore[attr-defined]
        assert text["sfic:purpose"] == "Test of the page" and text["sfic:face_id"] == fresh
        assert text["sfic:layers"] == "basic+middle+enhanced"
        assert "not a photograph" in text["Warning"]
        assert picture.height > picture.width == 1024  # the strip that says so stands below


async def compare_layers(page: Page) -> None:
    """The slider between two layers, by mouse and by keyboard; another layer on its left."""
    await page.get_by_role("button", name="Compare").click()
    split = "document.querySelector('.compare').style.getPropertyValue('--split')"
    assert await page.evaluate(split) == "50%"
    slider = page.get_by_label("Where the two pictures meet")
    box = await slider.bounding_box()
    assert box
    await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
    await page.mouse.up()
    assert 20 < float((await page.evaluate(split)).removesuffix("%")) < 30
    await slider.focus()
    await page.keyboard.press("End")
    assert await page.evaluate(split) == "100%"
    left = page.locator(".compare .before img")
    basic = await left.get_attribute("src")
    await page.get_by_label("Left").select_option("middle")
    await expect(page.locator(".tag-left")).to_have_text("Middle")
    assert await left.get_attribute("src") != basic


async def test_a_face_goes_back_into_its_frame(browser: Browser, rig: Rig, tmp_path: Path) -> None:
    (kept,) = await rig.keep()
    frame = tmp_path / "frame.jpg"
    frame.write_bytes(astronaut_jpeg())
    async with opened(browser, f"{rig.console.url}/#/face/{kept}", accept_downloads=True) as page:
        await page.get_by_label("Also put it back").check()
        await page.set_input_files("#frame-file", frame)
        await show_picture(page, "In its frame")
        await page.get_by_role("button", name="In its frame").click()
        shown = page.locator(".frame-sheet img")
        assert await shown.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [512, 512]
        picture = await downloaded(page)
        pasted = np.asarray(picture.convert("RGB"), np.int16)[:512]
        change = np.abs(pasted - np.asarray(Image.open(frame), np.int16)).mean(axis=2)
        assert pasted.shape == (512, 512, 3)
        assert change[420:, :].max() == 0  # far from the face nothing changed
        assert change[60:200, 160:300].mean() > 2  # where the face is, it is the codec's


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
        await page.get_by_label("One card a visit").check()
        await expect(page.locator(".facts")).to_contain_text(re.compile(r"4 faces · [1-4] visit"))
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
        await expect(page.locator(".state")).to_have_text("Connected")
        await expect(page.locator(".card")).to_have_count(3)
    await again.stop()


async def test_analytics_away_is_told(browser: Browser) -> None:
    settings = console_settings(analytics=free_address(), decoder=free_address())
    async with ConsoleServer(settings) as console, opened(browser, console.url) as page:
        await expect(page.locator(".state")).to_contain_text("Analytics is away")
        await page.get_by_role("link", name="System").click()
        await expect(page.locator(".facts")).to_contain_text("0 of 3")


async def test_paused_and_scrolled_views_do_not_move(browser: Browser, rig: Rig) -> None:
    await rig.keep(camera_id="door")
    async with opened(browser, rig.console.url) as page:
        await expect(page.locator(".card")).to_have_count(1)
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator(".state")).to_have_text("Paused")
        await rig.keep(2, camera_id="gate")
        await expect(page.locator(".pill")).to_contain_text("2 new faces")
        await expect(page.locator(".card")).to_have_count(1)
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator(".card")).to_have_count(3)
        await page.locator("summary", has_text="Cameras").click()
        await page.get_by_role("checkbox", name="door").check()
        await expect(page.locator(".card")).to_have_count(1)
        await rig.keep(camera_id="gate")
        await rig.keep(camera_id="door")
        # The menu has the focus, not a card: what passes the filter comes, the rest does not.
        await expect(page.locator(".card")).to_have_count(2)
        await expect(page.locator(".card .camera")).to_have_text(["door", "door"])


@asynccontextmanager
async def analytics_alone(folder: Path) -> AsyncIterator[tuple[AnalyticsService, ConsoleServer]]:
    """Analytics whose edge is away, and a console before it: results are put in by hand."""
    settings = AnalyticsSettings.make(
        listen="127.0.0.1:0",
        metrics_listen="",
        edges=[free_address()],
        database=folder / "analytics.sqlite",
        shutdown_grace_seconds=1.0,
    )
    service = AnalyticsService(settings, codec())
    async with running(service, settings) as server:
        page = console_settings(analytics=server.address, decoder=free_address(), edges=())
        async with ConsoleServer(page) as console:
            yield service, console


async def put_results(
    service: AnalyticsService, count: int, *, first: int = 0, age: float = 0
) -> None:
    """Results of `count` faces, made `age` seconds ago, straight into the database and index."""
    analysis = codec().analyze(encoded_faces()[0].basic)
    results, now = [], time.time_ns()
    for number in range(first, first + count):
        face = common_pb2.FaceInfo(
            face_id=f"{number:026d}",
            camera_id=f"camera-{number % 7}",
            face_score=0.8,
            model_bundle=codec().model_bundle,
            layer_bytes=[34, 9, 185],
        )
        face.capture_time.FromNanoseconds(now - (count - number) * 10**9)
        result = make_result(face, analysis, 0.0, time.time_ns())
        if age:
            message = result.message()
            message.analysed_time.FromNanoseconds(now - int(age * 1e9))
            result = replace(result, analysis=message.SerializeToString())
        results.append(result)
    service._kept(await service._store.commit(results, [], {}))


async def test_lag_and_what_was_dropped_are_told(browser: Browser, tmp_path: Path) -> None:
    async with analytics_alone(tmp_path) as (service, first):
        await put_results(service, 1)
        async with opened(browser, first.url) as page:
            await expect(page.locator(".state")).to_have_text("Connected")
            await put_results(service, 1, first=1)
            await expect(page.locator(".card")).to_have_count(2)
            await first.stop()
            await expect(page.locator(".state")).to_contain_text("Connection lost")
            # While the page is away three come and go, and one comes that is sent late.
            await put_results(service, 3, first=2)
            everything = Retention(oldest=time.time_ns(), max_results=1000, max_bytes=1 << 40)
            await service._store.prune(everything)
            await put_results(service, 1, first=5, age=9)
            again = {**first.settings.model_dump(), "listen": first.address}
            async with ConsoleServer(type(first.settings).make(**again)):
                await expect(page.locator(".state")).to_have_text(re.compile(r"\d+.* s behind"))
                await expect(page.locator(".chip.warn")).to_have_text("3 faces missed")
                await expect(page.locator(".state")).to_have_text("Connected")  # caught up


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


async def test_5000_cards_scroll_with_few_elements(browser: Browser, tmp_path: Path) -> None:
    async with (
        analytics_alone(tmp_path) as (service, console),
        opened(browser, console.url) as page,
    ):
        await put_results(service, 5000)
        await page.reload()
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


PLACES = ("live", "face", "picture", "search", "alerts", "system")


async def go(page: Page, url: str, place: str, kept: str) -> None:
    """Go to a place and wait until all that belongs there is there."""
    if place == "picture":
        await show_picture(page, "A look at the page")
        await page.get_by_role("button", name="Compare").click()
        await expect(page.locator(".compare")).to_be_visible()
        return
    hash_of = {"face": f"face/{kept}", "search": f"search?face={kept}"}
    await page.goto(f"{url}/#/{hash_of.get(place, place)}")
    wanted = {"face": ".ask", "alerts": ".lists > *", "system": "tbody tr"}.get(place, ".card img")
    await expect(page.locator(wanted).first).to_be_visible()
    if place == "system":
        await expect(page.locator(".figure").first).to_be_visible()


async def assert_fits(page: Page, place: str, width: int) -> None:
    """Nothing is wider than the page, no card's words are cut, the navigation is in sight."""
    await page.evaluate("() => new Promise(requestAnimationFrame)")
    # Only tables may be wider: they scroll in their frame.
    wide = await page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter((each) =>
            each.getBoundingClientRect().right > innerWidth + 1
            && !each.closest('.table-frame, .visually-hidden, .backdrop, .sheet'))
            .map((each) => each.className || each.tagName)"""
    )
    cut = await page.evaluate(
        """() => [...document.querySelectorAll('.card-text')].filter((each) =>
            each.scrollHeight > each.clientHeight + 1).length"""
    )
    assert (wide, cut) == ([], 0), (place, width)
    await expect(page.get_by_role("link", name="System")).to_be_in_viewport()


async def test_every_view_passes_axe_and_fits_from_a_phone_to_a_wall(
    browser: Browser, rig: Rig
) -> None:
    (kept,) = await rig.keep()
    axe = Axe()
    async with opened(browser, rig.console.url, bypass_csp=True) as page:  # axe is a script
        for place in PLACES:
            await page.set_viewport_size({"width": 1280, "height": 800})
            await go(page, rig.console.url, place, kept)
            for theme in ("light", "dark"):
                await page.emulate_media(color_scheme=theme)
                # What the theme does not change is looked at once.
                options = {"runOnly": ["color-contrast"]} if theme == "dark" else {}
                found = (await axe.run(page, options=options)).response["violations"]
                nodes = [(each["id"], [n["html"] for n in each["nodes"]][:3]) for each in found]
                assert not found, (place, theme, nodes)
            for width, height in ((360, 800), (820, 1180), (3840, 2160)):
                await page.set_viewport_size({"width": width, "height": height})
                await assert_fits(page, place, width)


async def test_system_tells_and_admins_forget(browser: Browser, rig: Rig) -> None:
    await rig.keep(2, camera_id="door")
    (kept,) = await rig.keep(camera_id="gate")
    async with opened(browser, f"{rig.console.url}/#/system") as page:
        await expect(page.locator(".facts").first).to_have_text("3 of 3 services take calls")
        await expect(page.locator(".service")).to_have_count(3)
        for words in ("Faces kept", "Lag, newest face", "Subscribers", "Dropped by retention"):
            await expect(page.locator(".figure dt", has_text=words).first).to_be_visible()
        await expect(page.locator(".pages")).to_contain_text(
            re.compile(r"On CPU, model bundle \w+ · keeps 7 d, at most 10.7 GB")
        )
        await expect(page.locator(".pages")).to_contain_text(
            "keeps 30 d, at most 1,000,000 results"
        )
        await page.get_by_role("button", name="End this grant").click()
        await expect(page.get_by_text("No grant holds.")).to_be_visible()

        await page.get_by_label("or all of a camera").fill("door")
        await page.get_by_label("Reason, for the audit log").fill("asked for, ticket 12")
        await page.get_by_label("I am sure").check()
        await page.get_by_role("button", name="Forget for good").click()
        await expect(page.get_by_text("2 faces forgotten")).to_be_visible()
        newest = page.locator("tr", has_text="ticket 12").first
        await expect(newest).to_contain_text("forgotten")
        await expect(page.get_by_text(re.compile("none changed or missing"))).to_be_visible()

        # A camera's name leads to its live faces; without a grant only basic layers are shown.
        await page.locator("td a", has_text="gate").click()
        await expect(page.locator(".card")).to_have_count(1)
        await page.locator(".card").click()
        await page.get_by_label("Purpose").fill("Case 7")
        await page.get_by_role("button", name="Show the picture").click()
        await expect(page.get_by_role("alert")).to_contain_text("ACCESS_DENIED")
        await expect(page.locator(".step[data-state=done]")).to_have_count(1)
        await page.get_by_role("button", name="Allow this face").click()
        await expect(page.locator(".step[data-state=done]")).to_have_count(3)
        assert kept in page.url


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
    browser: Browser, rig: Rig, tmp_path: Path
) -> None:
    async with (
        with_sign_in(rig, tmp_path) as (console, key),
        opened(browser, console.url) as page,
    ):
        token = page.get_by_label("Token")
        await token.fill(issue_token(key, "box-3", ["camera"], 60))
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("Your role does not allow this")
        await token.fill("not.a.token")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("not good here")
        assert (await page.request.get(f"{console.url}/api/cameras")).status == 401

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
            f"{console.url}/api/forget",
            headers={"X-Sfic-Console": "1"},
            data={"camera": "door", "reason": "x"},
        )
        assert (refused.status, (await refused.json())["code"]) == (403, "ACCESS_DENIED")
        await page.set_viewport_size({"width": 360, "height": 800})  # on a phone, too
        await page.get_by_role("button", name="Sign out").click()
        await expect(token).to_be_visible()
        assert await page.context.cookies() == []


async def test_a_session_ends_with_its_token(browser: Browser, rig: Rig, tmp_path: Path) -> None:
    async with (
        with_sign_in(rig, tmp_path) as (console, key),
        opened(browser, console.url) as page,
    ):
        await page.get_by_label("Token").fill(issue_token(key, "ada", ["operator"], 6))
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator(".state")).to_have_text("Connected")
        await expect(page.get_by_label("Token")).to_be_visible()
