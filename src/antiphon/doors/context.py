"""What every door is given: the one way in to the engine and the API, and the state of the process.

Lives here: the bundle that `app.py` builds once per process, and the count of requests in flight that draining
waits for. Not here: anything about gRPC, HTTP or Envoy.

Invariant: a request is admitted exactly once and released exactly once; after `close` none is admitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from antiphon.api.router import Router
from antiphon.engine.exchange import ResponseExchange
from antiphon.engine.owners import OwnerResolver
from antiphon.engine.runner import Runner
from antiphon.errors import Unavailable
from antiphon.observability.metrics import Metrics

__all__ = ["Admission", "DoorContext", "DoorLimits", "WebSocketLimits"]


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Limits a door enforces itself: bytes of a request body (compressed and plain), seconds to send it, and seconds in
    which a client must take some of an answer that comes in parts."""

    request_body_bytes: int
    request_seconds: float
    send_seconds: float = 600.0


class Admission:
    """Counts requests in flight and refuses new ones when full or draining."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._active = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.on_close: set[Callable[[], None]] = set()
        """Called once, when no more requests are admitted: what is open without a request in it can go."""

    @property
    def closed(self) -> bool:
        """Whether the process is draining."""
        return self._closed

    @property
    def active(self) -> int:
        """Requests in flight."""
        return self._active

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place for one request; raises `Unavailable` (503) when draining or full."""
        if self._closed:
            raise Unavailable(
                "The server is shutting down. Try again; another instance will answer.",
                code="shutting_down",
                headers=(("retry-after", "1"), ("connection", "close")),
            )
        if self._active >= self._most:
            raise Unavailable(
                "Too many requests are in flight. Try again shortly.",
                code="overloaded",
                headers=(("retry-after", "1"),),
            )
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    def close(self) -> None:
        """Admit no more requests."""
        self._closed = True
        for told in tuple(self.on_close):
            told()

    async def drained(self, seconds: float) -> bool:
        """Wait until nothing is in flight; False when `seconds` passed first."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class WebSocketLimits:
    """`enabled`: whether upgrades are taken at all. `origins`: pages that may connect (`*`: any), beside clients that
    are no browsers and pages of this host itself.

    `connections` are the most at once; one lives `seconds`, gets a ping every `ping_seconds`, and remembers
    `memory_bytes` of responses that are not stored. `compress`: permessage-deflate, where the client offers it.
    """

    enabled: bool = True
    origins: tuple[str, ...] = ()
    connections: int = 1_000
    seconds: float = 3_600.0
    ping_seconds: float = 30.0
    memory_bytes: int = 16 << 20
    compress: bool = True


@dataclass(frozen=True, slots=True)
class DoorContext:
    """Built once per process by `app.py`; doors only read it.

    `new_exchange` makes the state machine of one `POST /v1/responses`, `runner` performs its actions, `router`
    answers every other path of ours. `secret` is the shared secret that a TCP peer must present, or None.
    """

    new_exchange: Callable[[], ResponseExchange]
    runner: Runner
    router: Router
    owners: OwnerResolver
    admission: Admission
    limits: DoorLimits
    metrics: Metrics
    secret: str | None = None
    websocket: WebSocketLimits = WebSocketLimits()
