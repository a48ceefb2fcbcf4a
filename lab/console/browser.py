"""Drives the console in Chromium: signs in, opens pages, and judges what a page shows and does.

Lives here: the browser, the rules that every page must keep, and screenshots. Not here: the traffic (`traffic.py`), the
course of the check (`run.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

CHROMIUM = "/usr/bin/chromium"
DESKTOP, PHONE = {"width": 1360, "height": 900}, {"width": 390, "height": 844}
Scheme = Literal["light", "dark"]
# Chromium prints hints about forms as console messages. They are no errors.
_SERIOUS = ("serious", "critical")


@dataclass
class Visitor:
    """A browser with separate cookies. `problems` collects errors of scripts and refused resources."""

    origin: str
    context: BrowserContext
    page: Page
    axe: str
    problems: list[str] = field(default_factory=list)

    async def sign_in(self, token: str) -> None:
        """Sign in with this token."""
        await self.page.goto(f"{self.origin}/console/sign-in")
        await self.page.fill("#token", token)
        await self.page.click("button.primary")
        await self.page.wait_for_url("**/console/requests**")

    async def open(self, path: str) -> int:
        """Open a page of the console. Returns its status."""
        answer = await self.page.goto(f"{self.origin}/console{path}")
        return answer.status if answer is not None else 0

    async def text(self) -> str:
        """The visible text of the page."""
        return str(await self.page.inner_text("body"))

    async def judge(self) -> list[str]:
        """What is wrong with the page: scripts that failed or ran from data, overflow, and serious faults of
        accessibility."""
        wrong = [f"script: {one}" for one in self.problems]
        self.problems.clear()
        title = await self.page.title()
        if "hacked" in title:
            wrong.append("a stored text ran as a script")
        wide = await self.page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
        if wide > 1:
            wrong.append(f"the page is {wide} pixels wider than the window")
        if await self.page.locator("main img[onerror], main script:not([src])").count():
            wrong.append("a stored text became an active element")
        found = await self._axe()
        wrong += [f"axe: {one['id']} ({one['impact']}): {one['nodes'][0]['html'][:120]}" for one in found]
        return wrong

    async def _axe(self) -> list[dict[str, Any]]:
        # The page's policy forbids inline scripts, so axe-core runs in the browser's own world.
        await self.page.evaluate(self.axe)
        result = await self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [one for one in result["violations"] if one["impact"] in _SERIOUS]

    async def shoot(self, file: Path) -> None:
        """Write a screenshot of the window."""
        await self.page.screenshot(path=file)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium."""
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visitor(
    browser: Browser, origin: str, axe: str, *, phone: bool = False, scheme: Scheme = "light", scripts: bool = True
) -> AsyncIterator[Visitor]:
    """A new visitor without a session."""
    size: Any = PHONE if phone else DESKTOP
    context = await browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=scripts)
    page = await context.new_page()
    made = Visitor(origin, context, page, axe)
    page.on("pageerror", lambda error: made.problems.append(str(error)))
    page.on("console", lambda said: made.problems.append(said.text) if said.type == "error" else None)
    try:
        yield made
    finally:
        await context.close()
