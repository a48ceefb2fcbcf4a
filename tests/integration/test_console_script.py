"""The console's script in a real browser: pages that cannot update themselves, and the keyboard on lists that do."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from antiphon.doors.http.console import ConsoleAt
from antiphon.doors.http.server import HttpDoor
from antiphon.engine.ports.findings import DoctorReport, Finding
from antiphon.engine.ports.journal import Entry
from tests.support.chat_server import ChatServer
from tests.support.console_app import ConsoleApp, open_console_app
from tests.support.held_console import ANNA, TOKEN, Held, held

if TYPE_CHECKING:
    from playwright.async_api import Page, Route

playwright = pytest.importorskip("playwright.async_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@asynccontextmanager
async def opened(there: Held | ConsoleApp, token: str = ANNA, width: int = 1280) -> AsyncIterator[Page]:
    """A page of a browser in which a user has signed in. The page's links lead to the console of this process."""
    app = there.app if isinstance(there, ConsoleApp) else there.app.app
    door = HttpDoor(app.context, console=ConsoleAt.SEPARATE)
    origin = f"http://{await door.start('127.0.0.1:0')}"
    try:
        async with playwright.async_playwright() as play:
            browser = await play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = await browser.new_context(base_url=origin, viewport={"width": width, "height": 800})
            page = await context.new_page()
            await page.goto("/console/sign-in")
            await page.fill("#token", token)
            await page.click("button.primary")
            await page.wait_for_url("**/console/requests**")
            yield page
            await browser.close()
    finally:
        await door.aclose()


async def test_a_page_that_cannot_update_itself_says_since_when(tmp_path: Path) -> None:
    async with held(tmp_path) as there, opened(there) as page:
        await page.goto("/console/live")
        notice = page.locator("#stale")
        assert not await notice.is_visible()
        for answered in ("abort", "503"):
            await page.route("**/console/live", partial(_fail, answered))
            await notice.wait_for(state="visible")
            assert re.match(r"Not updated since \d\d:\d\d:\d\d UTC: the server", await notice.inner_text())
            await page.unroute("**/console/live")
            await notice.wait_for(state="hidden")


async def _fail(how: str, route: Route) -> None:
    await (route.abort() if how == "abort" else route.fulfill(status=int(how), body="<p class=problem>Full</p>"))


async def test_a_refused_upload_says_why(tmp_path: Path) -> None:
    async with held(tmp_path) as there, opened(there) as page:
        await page.goto("/console/files")
        await page.route("**/console/files", partial(_fail, "413"))
        await page.set_input_files("#upload input[type=file]", {"name": "a", "mimeType": "text/plain", "buffer": b"a"})
        await page.click("#upload button")
        await page.locator("#stale").wait_for(state="visible")
        assert await page.locator("#stale").inner_text() == (
            "The request failed: the server answered with HTTP 413. Full"
        )


@pytest.mark.parametrize("view", ["live", "files"])
async def test_without_a_session_the_browser_opens_the_sign_in_page(tmp_path: Path, view: str) -> None:
    async with held(tmp_path) as there, opened(there) as page:
        await page.goto(f"/console/{view}")
        await page.context.clear_cookies()
        if view == "files":
            await page.set_input_files("#upload input[type=file]", Path(__file__))
            await page.click("#upload button")
        await page.wait_for_url(f"**/console/sign-in?to=%2Fconsole%2F{view}")


async def test_the_marked_row_stays_marked_and_enter_opens_the_request(tmp_path: Path) -> None:
    async with held(tmp_path) as there, there.stream() as (live, _), opened(there) as page:
        await page.goto("/console/live")
        row = page.locator(f"#l-{live.id}")
        await row.wait_for()
        await page.keyboard.press("j")
        for _ in range(2):
            async with page.expect_response("**/console/live"):
                pass
        await page.wait_for_selector(f"#l-{live.id}.here")
        assert await row.evaluate("row => row.contains(document.activeElement)")
        await page.evaluate("document.activeElement.blur()")
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"**/console/requests/{live.id}")
        assert "streaming" in await page.inner_text("#pending")
        there.gate.set()
        await page.wait_for_selector("text=Where the time went")


async def test_esc_goes_back_to_the_row_and_each_view_has_a_letter(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console, opened(console, TOKEN) as page:
        rows = [Entry(f"entry_{n}", "n:anna", outcome="completed", age=90.0 - n) for n in range(60)]
        await console.app.stores.journal.add(rows)
        await page.goto("/console/requests")
        for _ in range(3):
            await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/console/requests/entry_57")
        await page.keyboard.press("Escape")
        await page.wait_for_selector("#r-entry_57.here")
        await page.keyboard.press("j")
        await page.wait_for_selector("#r-entry_56.here")
        await page.click("[data-page=next]")
        await page.click("#r-entry_5 a.cover")
        await page.wait_for_url("**/console/requests/entry_5?**")
        await page.keyboard.press("Escape")
        await page.wait_for_selector("#r-entry_5.here")
        links = await page.locator(".bar nav a").evaluate_all(
            "all => all.map(one => [one.dataset.letter, one.pathname])"
        )
        assert len({letter for letter, _ in links}) == len(links) == 12
        for letter, path in links:
            await page.keyboard.press("g")
            await page.keyboard.press(letter)
            await page.wait_for_url(f"**{path}")
            await page.wait_for_load_state()


async def test_the_views_are_in_a_menu_on_a_phone(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console, opened(console, TOKEN, 375) as page:
        await page.goto("/console/requests")
        keys, outcome = page.locator("nav a[data-letter=k]"), page.locator("select[name=outcome]")
        assert not await keys.is_visible() and not await outcome.is_visible()
        await page.click("text=More filters")
        assert await outcome.is_visible()
        await page.click(".menu")
        await keys.click()
        await page.wait_for_url("**/console/keys")


async def test_the_actions_of_a_request_are_in_a_menu_on_a_phone(tmp_path: Path) -> None:
    async with held(tmp_path) as there, there.stream() as (live, _), opened(there, width=375) as page:
        there.gate.set()
        await page.goto(f"/console/requests/{live.id}")
        await page.wait_for_selector("text=Where the time went")
        delete = page.locator("#actions button.danger")
        assert not await delete.is_visible()
        await page.click(".head .menu")
        assert await delete.is_visible()
        await page.set_viewport_size({"width": 1280, "height": 800})
        await page.reload()
        assert await delete.is_visible() and not await page.locator(".head .menu").is_visible()


class _SlowDoctor:
    """Checks that end when the test lets them end."""

    asks_models, most_seconds, latest = False, 40.0, None

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()

    async def run(self) -> DoctorReport:
        await self.goes_on.wait()
        self.latest = DoctorReport((Finding("database", "ok", "can be written"),), time.time(), 0.1)
        return self.latest

    async def aclose(self) -> None:
        """End nothing."""


async def test_a_run_of_the_checks_shows_that_it_runs(tmp_path: Path) -> None:
    doctor = _SlowDoctor()
    async with open_console_app(tmp_path, doctor=doctor) as console, opened(console, TOKEN) as page:
        await page.goto("/console/models")
        running, findings = page.locator(".running"), page.locator("#findings")
        assert not await running.is_visible() and await findings.get_attribute("aria-busy") is None
        await page.click("#doctor button")
        await running.wait_for(state="visible")
        assert await running.inner_text() == "The checks run…" and await findings.get_attribute("aria-busy") == "true"
        doctor.goes_on.set()
        await page.wait_for_selector("text=1 passed")
        assert not await running.is_visible() and await findings.get_attribute("aria-busy") is None


async def test_wide_tables_fit_a_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned = {"timestamp": "2026-01-01T00:00:00Z", "message": "a_warning_with_a_long_name", "cause": "word " * 60}
    monkeypatch.setattr("antiphon.app.console.recent_warnings", lambda: [warned])
    async with ChatServer() as chat:
        profiles = ("vllm", "openai", "generic")
        settings = {
            "upstreams": {one: {"url": chat.base_url, "auth": "none", "profile": one} for one in profiles},
            "models": [{"match": f"a-model-with-a-long-name-{one}", "upstream": one} for one in profiles],
        }
        async with open_console_app(tmp_path, settings=settings) as console, opened(console, TOKEN, 375) as page:
            await page.goto("/console/models")
            await page.wait_for_selector("details[open] .matrix")
            assert await page.evaluate("document.documentElement.scrollWidth") <= 375
            await page.goto("/console/system")
            fields = page.locator(".stacked td:last-child").first
            box = await fields.bounding_box()
            assert box is not None and box["x"] + box["width"] <= 375 and box["width"] > 250


async def test_a_click_anywhere_in_a_row_opens_its_request(tmp_path: Path) -> None:
    async with held(tmp_path) as there:
        entry = Entry("entry_1", "n:anna", outcome="failed", fault="upstream", code="upstream_cut", model="demo-model")
        await there.app.app.stores.journal.add([entry])
        for width in (1280, 375):
            async with opened(there, TOKEN, width) as page:
                await page.goto("/console/requests?owner=")
                row = page.locator("#r-entry_1")
                # The link covers the cell, so a click on the cell itself would wait forever.
                box = await row.locator("td", has_text="demo-model").bounding_box()
                assert box is not None
                await page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
                await page.wait_for_url("**/console/requests/entry_1**")
                await page.goto("/console/requests?owner=")
                await row.locator("td:nth-child(2) a").click()
                await page.wait_for_url("**/console/requests?*code=upstream_cut**")
