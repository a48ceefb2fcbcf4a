"""Shared context of every door: the engine, the API, and the state of the process.

Lives here: the bundle that requests are served with, and the count of those in flight, by kind, that draining waits
for. Not here: anything about gRPC, HTTP or Envoy.

Invariant: a request is admitted exactly once and released exactly once; after `close` none is admitted.
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
"""What is in flight: responses of clients, turns on WebSockets, responses in the background, everything else."""


class Admission:
    """Counts requests in flight and refuses new ones when full or draining."""

    def __init__(self, places: Budget) -> None:
        """`places` are how many may be in flight, altogether and of one owner."""
        self._places = places
        self._kinds: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        """What ended since this process leaves, by kind; `given_back` are those that another process goes on with."""
        self.gives_back = False
        """Whether what ends in the background now is given back."""
        self._leaving = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.on_leave: set[Callable[[], None]] = set()
        """Called once, when requests should go elsewhere: what others can begin as well is not begun here any more."""
        self.on_close: set[Callable[[], None]] = set()
        """Called once, when no more requests are admitted: what is open without a request in it can go."""

    @property
    def leaving(self) -> bool:
        """Whether requests should go elsewhere: none are admitted any more, or soon."""
        return self._leaving

    @property
    def closed(self) -> bool:
        """Whether no more requests are admitted."""
        return self._closed

    @property
    def active(self) -> int:
        """Requests in flight."""
        return self._places.used

    @property
    def in_flight(self) -> dict[str, int]:
        """Requests in flight by kind."""
        return {kind: count for kind, count in self._kinds.items() if count}

    def admit(self, owner: str, kind: Kind = "request", *, promised: bool = False) -> AbstractContextManager[None]:
        """Hold a place for one request of this owner; entering raises `Unavailable` when draining (unless it was
        `promised`), `AtCapacity` when full."""
        return _Admitted(self, owner, kind, promised)

    def begin(self, owner: str, kind: Kind, *, promised: bool = False) -> Hold:
        """What `admit` does on entering: the place."""
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
        """What `admit` does in the end: the place is given back."""
        place.close()
        self._kinds[kind] -= 1
        if self._leaving:
            self.ended["given_back" if kind == "background" and self.gives_back else kind] += 1
        if not self._places.used:
            self._idle.set()

    def leave(self) -> None:
        """Say that requests should go elsewhere; those that come are admitted."""
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
        """Say that this process leaves, for `notice` seconds serve all the same, then admit no more and wait for what
        is in flight; False when `seconds` were not enough for all that."""
        clock = asyncio.get_running_loop().time
        last = clock() + seconds
        self.leave()
        if notice > 0:
            await asyncio.sleep(min(notice, seconds))
        self.close()
        return await self.drained(max(0.0, last - clock()))

    async def drained(self, seconds: float) -> bool:
        """Wait until nothing is in flight; False when `seconds` passed first."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class _Admitted:
    """One request in flight. (A context manager made of a generator takes four times as long.)"""

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
    """What a request is served with, made of the settings by `app/build.py`; doors only read it.

    `new_exchange` makes the state machine of one `POST /v1/responses`, `runner` performs its actions, `router`
    answers every other path of ours. `secret` is the shared secret that a TCP peer must present, or None;
    `cors_origins` are the pages that may ask the public HTTP door.
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
    """Whether what nobody here knows is refused, not left out."""
    bodies: Budget = field(default_factory=lambda: Budget(512 << 20, "limits.bytes_in_flight"))
    """What all requests in flight hold together: their bodies, and what they refer to."""
