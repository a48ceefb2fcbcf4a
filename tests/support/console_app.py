"""A process with a console, and its users: an operator and two owners.

Lives here: building the process, uploads as a browser sends them, and the visible text of a page. Not here: one user's
requests (`console_browser.py`), the pages.

Invariant: the process is the one that the composition root builds, on a real SQLite database.
"""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from antiphon.api.http import ApiResponse
from antiphon.app.build import App, build
from antiphon.config.settings import load_settings
from antiphon.console.console import Console
from antiphon.engine.ports.findings import Doctor
from antiphon.types.transport import Headers
from tests.support.console_browser import HOST, ConsoleBrowser

ANNA, BO = "n:anna", "n:bo"
User = Literal["operator", "anna", "bo"]
_TOKENS: dict[User, str] = {
    "operator": "the-token-of-the-operators-0123456789",
    "anna": "ant_key-of-anna-0123456789",
    "bo": "ant_key-of-bo-0123456789",
}
_ORIGIN = f"http://{HOST}"


@dataclass
class ShownPage:
    """An answer of the console."""

    status: int
    headers: Headers
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def words(self) -> str:
        """The visible text of the page, in one line, with plain hyphens."""
        plain = re.sub(r"<[^>]+>", " ", self.text)
        return re.sub("[\u2013\u2212]", "-", re.sub(r"\s+", " ", html.unescape(plain)))

    def header(self, name: str) -> str:
        """The value of a header, empty without it."""
        return next((value for key, value in self.headers if key == name), "")


class ConsoleApp:
    """A process and the browsers of its users. Paths begin after `/console`."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._browsers: dict[User, ConsoleBrowser] = {}

    async def get(
        self, path: str, user: User = "anna", *, method: str = "GET", fragment: bool = False, follow: bool = True
    ) -> ShownPage:
        """Open a page. `fragment`: as htmx does. `follow`: with the parts that a browser loads after the page."""
        browser = await self._browser(user)
        page = await _read(await browser.send(method, f"/console{path}", hx_request=_flag(fragment)))
        if follow and b'class="later"' in page.body:
            page.body = (await browser.filled(page.text)).encode()
        return page

    async def post(self, path: str, user: User = "anna", **fields: str) -> ShownPage:
        """Send a form of a page."""
        return await self._send_form(path, user, fields, "")

    async def post_by_htmx(self, path: str, user: User = "anna", **fields: str) -> ShownPage:
        """Send a form of a page as htmx does."""
        return await self._send_form(path, user, fields, _flag(True))

    async def _send_form(self, path: str, user: User, fields: dict[str, str], htmx: str) -> ShownPage:
        browser = await self._browser(user)
        form = {"csrf": await browser.csrf(), **fields}
        return await _read(await browser.send("POST", f"/console{path}", form, origin=_ORIGIN, hx_request=htmx))

    async def upload(
        self,
        name: str,
        content: bytes,
        user: User = "anna",
        *,
        path: str = "/files",
        purpose: str = "user_data",
        csrf: str = "",
        htmx: bool = True,
    ) -> ShownPage:
        """Upload a file: a form that arrives in pieces, with the CSRF token in a header. `csrf`: another token."""
        browser = await self._browser(user)
        escaped = name.replace('"', "%22")
        body = (
            f'--xx\r\ncontent-disposition: form-data; name="file"; filename="{escaped}"\r\n'
            "content-type: application/octet-stream\r\n\r\n"
        ).encode() + content
        body += f'\r\n--xx\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n--xx--\r\n'.encode()

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 7):
                yield body[start : start + 7]

        answer = await browser.send(
            "POST",
            f"/console{path}",
            None,
            pieces(),
            content_type="multipart/form-data; boundary=xx",
            x_csrf_token=csrf or await browser.csrf(),
            origin=_ORIGIN,
            hx_request=_flag(htmx),
        )
        return await _read(answer)

    async def _browser(self, user: User) -> ConsoleBrowser:
        if user not in self._browsers:
            console = self.app.context.console
            assert isinstance(console, Console)
            self._browsers[user] = ConsoleBrowser(console)
            await self._browsers[user].sign_in(_TOKENS[user])
        return self._browsers[user]


def _flag(value: bool) -> str:
    return "true" if value else "false"


async def _read(answer: ApiResponse) -> ShownPage:
    body = answer.body
    if answer.stream is not None:
        body = b"".join([part async for part in answer.stream])
    return ShownPage(answer.status, answer.headers, body)


@asynccontextmanager
async def open_console_app(
    folder: Path,
    *,
    acts: bool = True,
    anna: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    doctor: Doctor | None = None,
) -> AsyncIterator[ConsoleApp]:
    """Build a process with these settings. `acts`: operators may change data. `anna`: what Anna's key allows. `doctor`:
    what runs the checks."""
    whole = load_settings(console_settings(folder, acts=acts, anna=anna, settings=settings))
    app = await build(whole, door="http", doctor=doctor)
    try:
        yield ConsoleApp(app)
    finally:
        await app.aclose()


def console_settings(
    folder: Path,
    *,
    acts: bool = True,
    anna: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The settings of a process with a console."""
    own = {
        "data": folder,
        "admin": {"token": _TOKENS["operator"]},
        "console": {"enabled": True, "act": acts},
        "upstream": {"url": "http://127.0.0.1:9/v1", "auth": "none"},
        "owner": {"keys": {"anna": {"keys": [_TOKENS["anna"]], **(anna or {})}, "bo": {"keys": [_TOKENS["bo"]]}}},
    }
    return {**own, **(settings or {})}
