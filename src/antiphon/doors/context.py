"""Defines the objects that the ext_proc server and the HTTP server share, such as the router and the count of requests.

`DoorContext` holds the dependencies that every request handler uses. `ConsolePages` is the interface of the console's
pages. `Admission` counts the requests in flight by kind. A drain waits until this count is zero. This module knows
nothing about gRPC, HTTP or Envoy.

Invariants: `Admission` admits each request once and releases it once. After `close`, `Admission` admits only requests
on connections to which the HTTP server promised one more request. Every path of the console is `CONSOLE_PATH` or below
it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Literal, Protocol

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.api.router import Router
from antiphon.config.limits import LimitSettings, TimeoutSettings, WebSocketSettings
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.budget import Budget, Hold
from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.callers import ADMIN, Caller
from antiphon.engine.running.runner import Runner
from antiphon.errors import Unavailable
from antiphon.observability.observation import Telemetry
from antiphon.redaction import SecretSearch, bearer_token, without_credentials
from antiphon.types.transport import CONSOLE_PATH, Headers

RUN_PATH: Final = CONSOLE_PATH + "/run"
"""The path to which the playground sends a Responses request. The server runs it as `POST /v1/responses`."""
_QUOTED: Final = 256
"""The number of a path's first characters that an error message quotes."""
Kind = Literal["response", "websocket", "background", "request"]
"""The kind of a request in flight. `response` is a client's response request, `websocket` is a response on a WebSocket,
`background` is a background response, and `request` is every other request."""


class ConsolePages(Protocol):
    """The interface of the console's pages. The pages check the user's session themselves."""

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """Answer a request to a path of the console. This method never raises, except for cancellation. A form with
        uploads (`multipart/form-data`) arrives as `request.body_stream`, every other body as `request.body`."""
        ...

    def reads_body(self, method: str, path: str) -> bool:
        """Whether the page at this path needs the request body. If the page needs no body, the server does not read the
        body."""
        ...

    def knows(self, request: ApiRequest) -> bool:
        """Whether the request comes from a user who has signed in."""
        ...

    async def runs(self, request: ApiRequest) -> Caller | None:
        """The caller for whom a `POST` to `RUN_PATH` creates a response. The result is None if `handle` must answer the
        request. The server calls this method before it reads the request body. Raises `ApiError` when the session or
        the CSRF token is wrong."""
        ...


def is_console(path: str) -> bool:
    """Whether a normalized path belongs to the console."""
    return path == CONSOLE_PATH or path.startswith(CONSOLE_PATH + "/")


class Admission:
    """Counts the requests in flight. `Admission` refuses a new request when the limit is reached or after the drain has
    closed admission."""

    def __init__(self, places: Budget) -> None:
        """`places` is the budget that limits the requests in flight, in total and per owner."""
        self._places = places
        self._kinds: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        """The number of requests that ended since the drain began, by kind. The key `given_back` counts background
        responses that were returned to the queue for another process."""
        self.gives_back = False
        """Whether the process returns background responses to the queue. If it does, `end` counts each ended background
        response as `given_back`."""
        self._leaving = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.on_leave: set[Callable[[], None]] = set()
        """Callbacks that `leave` runs once, when the drain begins. For example, the ext_proc server registers a
        callback that sets its gRPC health status to NOT_SERVING."""
        self.on_close: set[Callable[[], None]] = set()
        """Callbacks that `close` runs when this process stops admitting requests. A callback may close connections that
        have no request in flight."""

    @property
    def leaving(self) -> bool:
        """Whether the drain has begun, so clients should send their next request to another process."""
        return self._leaving

    @property
    def closed(self) -> bool:
        """Whether `close` was called, so new requests are refused."""
        return self._closed

    @property
    def active(self) -> int:
        """The number of requests in flight."""
        return self._places.used

    @property
    def in_flight(self) -> dict[str, int]:
        """The number of requests in flight by kind, without the kinds whose number is zero."""
        return {kind: count for kind, count in self._kinds.items() if count}

    def admit(self, owner: str, kind: Kind = "request", *, promised: bool = False) -> AbstractContextManager[None]:
        """Return a context manager that counts one request of this owner as in flight. Entering the context manager
        raises `Unavailable` after `close`, except for a `promised` request. Entering raises `AtCapacity` when the limit
        of requests is reached."""
        return _Admitted(self, owner, kind, promised)

    def begin(self, owner: str, kind: Kind, *, promised: bool = False) -> Hold:
        """Count a request as in flight and return its reservation in the budget. Raises the same errors as `admit`."""
        if self._closed and not promised:
            raise Unavailable(
                "The server is shutting down. Try again; another instance will answer.",
                code="shutting_down",
                headers=(("retry-after", "1"), ("connection", "close")),
            )
        place = self._places.hold(owner)
        place.add(1)
        self._kinds[kind] += 1
        self._idle.clear()
        return place

    def end(self, place: Hold, kind: Kind) -> None:
        """Count the request as ended and release its reservation."""
        place.close()
        self._kinds[kind] -= 1
        if self._leaving:
            self.ended["given_back" if kind == "background" and self.gives_back else kind] += 1
        if not self._places.used:
            self._idle.set()

    def leave(self) -> None:
        """Begin the drain: set `leaving` and run the `on_leave` callbacks. Requests are still admitted."""
        if not self._leaving:
            self._leaving = True
            for told in tuple(self.on_leave):
                told()

    def close(self) -> None:
        """Stop admitting requests and run the `on_close` callbacks."""
        self.leave()
        self._closed = True
        for told in tuple(self.on_close):
            told()

    async def drain(self, seconds: float, notice: float) -> bool:
        """Begin the drain and admit requests for `notice` more seconds. After the notice, close admission and wait for
        the requests in flight. Returns False when the drain takes longer than `seconds`."""
        clock = asyncio.get_running_loop().time
        last = clock() + seconds
        self.leave()
        if notice > 0:
            await asyncio.sleep(min(notice, seconds))
        self.close()
        return await self.drained(max(0.0, last - clock()))

    async def drained(self, seconds: float) -> bool:
        """Wait until no request is in flight. Returns False when that takes longer than `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class _Admitted:
    """The context manager that `admit` returns for one request. A generator-based context manager would take four times
    as long."""

    __slots__ = ("_admission", "_kind", "_owner", "_place", "_promised")

    def __init__(self, admission: Admission, owner: str, kind: Kind, promised: bool) -> None:
        self._admission = admission
        self._owner = owner
        self._kind = kind
        self._promised = promised

    def __enter__(self) -> None:
        self._place = self._admission.begin(self._owner, self._kind, promised=self._promised)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.end(self._place, self._kind)


@dataclass(frozen=True, slots=True)
class DoorContext:
    """Holds the dependencies of the request handlers. `app/build.py` builds this object from the settings, and the
    servers only read it.

    `new_exchange` creates the state machine of one `POST /v1/responses`, `runner` performs its actions, and `router`
    handles all other paths. `secret` is the shared secret that a TCP peer must present, or None. `cors_origins` lists
    the web origins whose pages may call the public HTTP server.
    """

    new_exchange: Callable[[], ResponseExchange]
    runner: Runner
    router: Router
    owners: OwnerResolver
    admission: Admission
    limits: LimitSettings
    timeouts: TimeoutSettings
    telemetry: Telemetry
    secret: str | None = None
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    cors_origins: tuple[str, ...] = ()
    strict: bool = False
    """Whether the server refuses a request with unknown fields. By default the server ignores unknown fields."""
    bodies: Budget = field(default_factory=lambda: Budget(512 << 20, "limits.bytes_in_flight"))
    """The budget of memory for all requests in flight together. The budget covers the request bodies and the stored
    data that the requests load."""
    console: ConsolePages | None = None
    """The pages of the console, or None if the console is not enabled."""
    upload_bytes: int = 512 << 20
    """The maximum size of a file that a form of the console uploads."""
    secrets: SecretSearch = field(default_factory=lambda: SecretSearch(()))
    """Finds the secrets of the settings."""

    def refused_texts(self, headers: Headers, path: str, failure: Failure, message: str) -> tuple[str, Failure, str]:
        """Return the path, the failure and the message of a refused request for the log and the journal. They contain
        no API key, no secret of the settings, and not the token of the request. A client may put a key into the path,
        and error messages quote the path."""
        tokens = [token for name, value in headers if name == "authorization" for token in bearer_token(value)]
        search = self.secrets.joined(tokens)
        clean = without_credentials(path, search)

        def without(text: str) -> str:
            # The end of the quoted path may be a part of a key.
            text = text.replace(path[:_QUOTED], clean[:_QUOTED]) if clean != path else text
            return without_credentials(text, search)

        return clean, replace(failure, cause=without(failure.cause)), without(message)

    def caller_of(
        self, path: str, headers: Headers, metadata: Mapping[str, Mapping[str, object]] | None = None
    ) -> Caller:
        """Return the caller of a path that needs credentials: `ADMIN` for a path of the admin API, else the result of
        `OwnerResolver.resolve`. Raises `Unauthorized`. For a path of the admin API, also raises `ApiError` after too
        many wrong attempts."""
        guard = self.router.guard_of(path)
        if guard is None:
            return self.owners.resolve(headers, metadata)
        guard(headers)
        return ADMIN
