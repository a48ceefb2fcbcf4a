"""A browser without a window: requests of one user to the pages of a console, with cookies and CSRF tokens.

Lives here: cookies, forms, and the links of a page. Not here: real browsers (`lab/console`).
"""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.console.console import Console

HOST = "console.example"
_LATER = re.compile(r'<div class="later" hx-get="([^"]*)".*?</div>')
_LINK = re.compile(r'href="(/console[^"#]*)"')


@dataclass
class ConsoleBrowser:
    """One user of the console. `headers` go with each request."""

    console: Console
    headers: dict[str, str] = field(default_factory=dict)
    cookie: str = ""

    async def send(
        self,
        method: str,
        target: str,
        form: dict[str, str] | None = None,
        pieces: AsyncIterator[bytes] | None = None,
        /,
        **headers: str,
    ) -> ApiResponse:
        """Send one request. Underscores in header names become dashes. `pieces`: a body that arrives as a stream."""
        parts = urlsplit(target)
        body = urlencode(form or {}).encode()
        sent = {"host": HOST, **self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if form is not None:
            sent.setdefault("content-type", "application/x-www-form-urlencoded")
        if self.cookie:
            sent["cookie"] = self.cookie
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        answer = await self.console.handle(
            ApiRequest(method, parts.path, query, tuple(sent.items()), body, "console", "req_test", body_stream=pieces)
        )
        for name, value in answer.headers:
            if name == "set-cookie":
                self.cookie = value.partition(";")[0]
        return answer

    async def get(self, target: str, **headers: Any) -> tuple[int, str]:
        """The status and the text of a page, after redirects."""
        for _ in range(3):
            answer = await self.send("GET", target, **headers)
            if answer.status != 303:
                break
            target = header(answer, "location")
        return answer.status, await self.filled(answer.body.decode())

    async def filled(self, page: str) -> str:
        """The page with each part that the browser loads after the page."""
        while (found := _LATER.search(page)) is not None:
            part = await self.send("GET", html.unescape(found[1]), hx_request="true")
            assert part.status == 200, part.body.decode()
            page = page[: found.start()] + part.body.decode() + page[found.end() :]
        return page

    async def sign_in(self, token: str) -> None:
        """Sign in with this token."""
        answer = await self.send("POST", "/console/sign-in", {"token": token})
        assert answer.status == 303, answer.body.decode()

    async def csrf(self) -> str:
        """The CSRF token that the pages of this session carry."""
        _, page = await self.get("/console/requests")
        found = re.search(r'name="csrf" content="([0-9a-f]+)"', page)
        assert found is not None, page
        return found[1]

    async def post(self, target: str, **form: str) -> ApiResponse:
        """Send a form of a page of this session."""
        return await self.send("POST", target, {"csrf": await self.csrf(), **form}, origin=f"http://{HOST}")


def header(answer: ApiResponse, name: str) -> str:
    """The first value of a header, or an empty text."""
    return next((value for key, value in answer.headers if key == name), "")


def links(page: str) -> set[str]:
    """The links of a page to other pages of the console."""
    return {html.unescape(found) for found in _LINK.findall(page)}
