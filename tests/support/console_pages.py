"""A console with trivial pages, for tests of the listeners that serve it.

Lives here: pages that show what arrived, an event stream, and a playground. Not here: the real pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from antiphon.api.http import ApiRequest, ApiResponse, json_response
from antiphon.engine.ports.callers import Caller
from antiphon.errors import Unauthorized


class FakeConsole:
    """Answers every path with what arrived. `/console/events` is an endless event stream, and `/console/download` a
    download that ends after `goes_on`."""

    def __init__(self, runs_for: Caller | None = None) -> None:
        self.runs_for = runs_for
        self.requests: list[ApiRequest] = []
        self.open_streams = 0
        self.goes_on = asyncio.Event()

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """Answer with the method, the path and the number of bytes of the body."""
        self.requests.append(request)
        if request.path == "/console/events":
            return ApiResponse(200, (("content-type", "text/event-stream"),), b"", self._events())
        if request.path == "/console/download":
            return ApiResponse(200, (("content-type", "text/csv"),), b"", self._download())
        size = 0
        async for piece in request.pieces():
            size += len(piece)
        streamed = request.body_stream is not None
        return json_response({"method": request.method, "path": request.path, "size": size, "streamed": streamed})

    def reads_body(self, method: str, path: str) -> bool:
        """Whether the path is that of a form."""
        return method == "POST" and path == "/console/form"

    def knows(self, request: ApiRequest) -> bool:
        """Whether the request has a cookie."""
        return request.header("cookie") is not None

    async def runs(self, request: ApiRequest) -> Caller | None:
        """The caller of the test, for requests with its CSRF token."""
        self.requests.append(request)
        if self.runs_for is not None and request.header("x-csrf-token") != "right":
            raise Unauthorized("Sign in again.", code="no_session")
        return self.runs_for

    async def _download(self) -> AsyncGenerator[bytes, None]:
        yield b"first"
        await self.goes_on.wait()
        yield b"last"

    async def _events(self) -> AsyncGenerator[bytes, None]:
        self.open_streams += 1
        try:
            yield b"data: first\n\n"
            await asyncio.Event().wait()
        finally:
            self.open_streams -= 1
