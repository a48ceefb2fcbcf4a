"""Holds the shared context of both servers: the engine, the API, and the state of the process.

Lives here: the bundle that requests are served with, and the count of requests in flight by kind, which a drain waits
for. Not here: gRPC, HTTP, Envoy.

Invariant: each request is admitted once and released once. After `close` no request is admitted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from antiphon.api.router import Router
from antiphon.config.limits import LimitSettings, TimeoutSettings, WebSocketSettings
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.budget import Budget, Hold
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.running.runner import Runner
from antiphon.errors import Unavailable
from antiphon.observability.observation import Telemetry

Kind = Literal["response", "websocket", "background", "request"]
"""The kinds of requests in flight: responses of clients, turns on WebSockets, background responses, everything else."""


class Admission:
    """Counts requests in flight and refuses new ones when full or draining."""

    def __init__(self, places: Budget) -> None:
        """`places`: the limits of requests in flight, in total and per owner."""
        self._places = places
        self._kinds: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        """The requests that ended during the drain, by kind; `given_back` counts jobs that another process
        continues."""
        self.gives_back = False
        """Whether background responses that end now were given back to the queue."""
        self._leaving = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.on_leave: set[Callable[[], None]] = set()
        """Called once, when the drain begins: this process starts no work that another process can do."""
        self.on_close: set[Callable[[], None]] = set()
        """Called once, when no more requests are admitted: connections without a request can close."""

    @property
    def leaving(self) -> bool:
        """Whether clients should use another process: this one admits no more requests, or soon will not."""
        return self._leaving

    @property
    def closed(self) -> bool:
        """Whether no more requests are admitted."""
        return self._closed

    @property
    def active(self) -> int:
        """The number of requests in flight."""
        return self._places.used

    @property
    def in_flight(self) -> dict[str, int]:
        """Requests in flight by kind."""
        return {kind: count for kind, count in self._kinds.items() if count}

    def admit(self, owner: str, kind: Kind = "request", *, promised: bool = False) -> AbstractContextManager[None]:
        """Hold a place for one request of this owner. Entering raises `Unavailable` when closed (unless the request was
        `promised`), and `AtCapacity` when full."""
        return _Admitted(self, owner, kind, promised)

    def begin(self, owner: str, kind: Kind, *, promised: bool = False) -> Hold:
        """The entry of `admit`; returns the place."""
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
        """The exit of `admit`; releases the place."""
        place.close()
        self._kinds[kind] -= 1
        if self._leaving:
            self.ended["given_back" if kind == "background" and self.gives_back else kind] += 1
        if not self._places.used:
            self._idle.set()

    def leave(self) -> None:
        """Begin the drain: report that requests should go to another process, but still admit them."""
        if not self._leaving:
            self._leaving = True
            for told in tuple(self.on_leave):
                told()

    def close(self) -> None:
        """Admit no more requests."""
        self.leave()
        self._closed = True
        for told in tuple(self.on_close):
            told()

    async def drain(self, seconds: float, notice: float) -> bool:
        """Begin the drain, serve requests for `notice` seconds more, then admit no more and wait for those in flight.
        False when all this took longer than `seconds`."""
        clock = asyncio.get_running_loop().time
        last = clock() + seconds
        self.leave()
        if notice > 0:
            await asyncio.sleep(min(notice, seconds))
        self.close()
        return await self.drained(max(0.0, last - clock()))

    async def drained(self, seconds: float) -> bool:
        """Wait until no request is in flight; False after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class _Admitted:
    """One request in flight. (A generator-based context manager takes four times as long.)"""

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
    """The dependencies of a request, built from the settings by `app/build.py`. The servers only read it.

    `new_exchange` creates the state machine of one `POST /v1/responses`, `runner` performs its actions, and `router`
    handles all other paths. `secret`: the shared secret that a TCP peer must present, or None. `cors_origins`: the
    origins of pages that may use the public HTTP server.
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
    """Whether unknown fields are refused instead of ignored."""
    bodies: Budget = field(default_factory=lambda: Budget(512 << 20, "limits.bytes_in_flight"))
    """The memory that all requests in flight hold together: their bodies and the data that these refer to."""
