"""Serves the console on the listeners of the HTTP server.

This module decides which requests the console answers, redirects clients to the console, and ends the console's event
streams in a drain. `doors/context.py` defines the interface of the pages, and `server.py` controls access to the
listener. `envoy/bootstrap.py` generates Envoy's listener for the console.

Invariants: a listener that does not serve the console answers the console's paths like unknown paths. The separate
listener serves no other path. Behind Envoy, only requests with a header that Envoy adds reach the console.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from enum import Enum, auto
from typing import Any

from antiphon.api.http import ApiRequest, ApiResponse, BodyStream
from antiphon.api.router import unknown_url
from antiphon.doors.context import RUN_PATH, ConsolePages, DoorContext, is_console
from antiphon.doors.http.incoming_body import BodyKind, BodyLimit
from antiphon.doors.listening import max_connections
from antiphon.engine.ports.callers import Caller
from antiphon.engine.waiting import look_at
from antiphon.types.transport import CONSOLE_HEADER, CONSOLE_PATH, PEER_HEADER, Headers, header_value

OPERATION = "console"
"""The name of the console's requests in metrics."""
OWNER = "console"
"""The owner under which the budgets count requests to pages. No owner of stored data has this name."""
_FORM_BYTES = 256 << 10
"""The maximum number of bytes of a form, without the file that it uploads."""
_CONNECTIONS = 256
"""The maximum number of connections of the separate listener, which clients of the API do not use."""
UNKNOWN_SECONDS = 5.0
"""The time in seconds in which a client that has not signed in must send a request head, and the body of a form."""
TO_CONSOLE: Headers = (("location", CONSOLE_PATH), ("cache-control", "no-store"))
"""The headers of the redirect from `/` to the console."""
_NOT_PASSED_ON = frozenset({"authorization", "cookie", "x-csrf-token"})


class ConsoleAt(Enum):
    """Whether a listener serves the console."""

    NOWHERE = auto()
    SEPARATE = auto()
    """The console's separate listener, which serves nothing else."""
    CLIENTS = auto()
    """The listener for clients (`console.on_client_listener`)."""
    GATEWAY = auto()
    """The sidecar's private port, for requests with a header that Envoy adds."""


class ConsoleAccess:
    """Decides which requests of one listener the console answers, and ends the console's event streams."""

    def __init__(self, context: DoorContext, at: ConsoleAt) -> None:
        self._context = context
        self._pages: ConsolePages | None = context.console
        self._at = at
        # Maps the `asyncio.Event` that ends an open event stream to the address of the stream's peer.
        self._streams: dict[asyncio.Event, str] = {}
        self._leaving = False

    @property
    def connections(self) -> int | None:
        """The maximum number of connections of the listener. None means that only the process's own limit applies."""
        return min(_CONNECTIONS, max_connections()) if self.is_separate else None

    @property
    def head_seconds(self) -> float:
        """The timeout in seconds for the first request head on a connection of the listener."""
        seconds = self._context.timeouts.request
        return min(seconds, UNKNOWN_SECONDS) if self.is_separate else seconds

    @property
    def is_separate(self) -> bool:
        """Whether this listener serves only the console."""
        return self._at is ConsoleAt.SEPARATE

    def is_here(self, path: str) -> bool:
        """Whether the path belongs to the console and this listener can serve it."""
        return self._pages is not None and self._at is not ConsoleAt.NOWHERE and is_console(path)

    def takes(self, method: str, path: str, headers: Headers, *, trusted: bool) -> bool:
        """Whether the console answers this request. `trusted` is True if the gateway sent the request. Raises
        `NotFound` for a path that this listener does not serve."""
        if not self.is_here(path):
            if self.is_separate and not self.redirects(method, path):
                raise unknown_url(method, path)
            return self.is_separate
        if self._at is ConsoleAt.GATEWAY and not (trusted and header_value(headers, CONSOLE_HEADER)):
            raise unknown_url(method, path)
        return True

    def redirects(self, method: str, path: str) -> bool:
        """Whether the server redirects this request to the console. Only the separate listener redirects, and only the
        path `/`."""
        return self.is_separate and path == "/" and method in ("GET", "HEAD")

    def client_address(self, headers: Headers, peer: str) -> str:
        """The address of the client that sent these headers. Behind Envoy, Envoy names the address in a header, and
        `peer` is Envoy's address."""
        return (header_value(headers, PEER_HEADER) or "") if self._at is ConsoleAt.GATEWAY else peer

    async def runs(self, request: ApiRequest) -> Caller | None:
        """The caller for whom a request of the playground creates a response. The result is None for any other request.
        Raises `ApiError`."""
        is_run = self._pages is not None and request.method == "POST" and request.path == RUN_PATH
        return await self._pages.runs(request) if is_run and self._pages is not None else None

    def body_of(self, request: ApiRequest) -> BodyKind:
        """How the pages get the body of this request: not at all, as bytes, or as a stream. A form that may hold files
        arrives as a stream."""
        if self._pages is None or not self._pages.reads_body(request.method, request.path):
            return "none"
        kind = (request.header("content-type") or "").partition(";")[0]
        return "stream" if kind.strip().lower() == "multipart/form-data" else "whole"

    def form_limit(self, request: ApiRequest, kind: BodyKind) -> BodyLimit:
        """The limits of a form. Only a streamed form holds an upload. Only a user who has signed in may send a form
        slowly, because other clients could keep many connections busy with slow forms."""
        seconds = self._context.timeouts.request
        if self._pages is None or not self._pages.knows(request):
            seconds = min(seconds, UNKNOWN_SECONDS)
        return BodyLimit(_FORM_BYTES + (self._context.upload_bytes if kind == "stream" else 0), seconds)

    async def handle(self, peer: str, request: ApiRequest) -> ApiResponse:
        """Answer a request to a page, and count the request in the metrics. `peer` is the address of the client or the
        gateway. The answer to HEAD has no content."""
        assert self._pages is not None
        answer = await self._pages.handle(request)
        fault = answer.failure.fault if answer.failure is not None else "none"
        self._context.telemetry.metrics.request_finished(OPERATION, answer.status, fault)
        if request.method == "HEAD":
            return replace(answer, body=b"", stream=None)
        if answer.stream is None or not _is_events(answer.headers):
            return answer
        return replace(answer, stream=self._until_ended(answer.stream, peer))

    def end_streams(self, peer: str | None = None) -> None:
        """End the open event streams of this peer. Without a peer, end all event streams, also those that begin later.
        A browser then connects again, and reaches another process. Downloads continue."""
        self._leaving = self._leaving or peer is None
        for ended, came_from in self._streams.items():
            if peer in (came_from, None):
                ended.set()

    async def _until_ended(self, parts: BodyStream, peer: str) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a page's stream until `end_streams` ends it. Close the page's stream in any case."""
        ended = asyncio.Event()
        if self._leaving:
            ended.set()
        self._streams[ended] = peer
        ending = asyncio.ensure_future(ended.wait())
        waiting: set[asyncio.Future[Any]] = {ending}
        async with aclosing(parts):
            try:
                while True:
                    following = asyncio.ensure_future(anext(parts))
                    waiting = {ending, following}
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if not following.done():
                        return
                    try:
                        part = following.result()
                    except StopAsyncIteration:
                        return
                    yield part
                    if ended.is_set():
                        return
            finally:
                # The page's generator can be closed only when no task runs it.
                del self._streams[ended]
                for one in waiting:
                    one.cancel()
                await asyncio.wait(waiting)
                for one in waiting:
                    look_at(one)


def _is_events(headers: Headers) -> bool:
    return (header_value(headers, "content-type") or "").startswith("text/event-stream")


def without_session(headers: Headers) -> Headers:
    """The headers of a playground's request without the credentials of its session. The server runs the request for the
    caller, and must not forward the session to an upstream."""
    return tuple((name, value) for name, value in headers if name not in _NOT_PASSED_ON)
