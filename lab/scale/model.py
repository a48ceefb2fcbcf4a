"""A chat server with a ledger of its calls, for runs that must know when each model call began and ended.

Lives here: the demo's chat server in the run's process, and the ledger. Not here: the content of the answers
(`antiphon/commands/demo_upstream.py`), the evaluation of the calls.

Invariant: the ledger has a call before the server sends any part of its answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from antiphon.commands.demo_upstream import make_app


@dataclass
class Call:
    """One model call: its last message, its begin and its end (by `time.monotonic`)."""

    said: str
    began: float
    ended: float | None = None


@dataclass
class Model:
    """The ledger. `calls` has every call since the start."""

    url: str
    calls: list[Call] = field(default_factory=list)

    def of(self, said: str) -> list[Call]:
        """The calls with this last message."""
        return [call for call in self.calls if call.said == said]


@asynccontextmanager
async def model(pause: float) -> AsyncIterator[Model]:
    """Start a server whose streams pause `pause` seconds between two words."""
    made = Model("")

    @web.middleware
    async def noted(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.method != "POST":
            return await handler(request)  # type: ignore[no-any-return]
        asked = await request.json()
        call = Call(asked["messages"][-1]["content"], time.monotonic())
        made.calls.append(call)
        try:
            return await handler(request)  # type: ignore[no-any-return]
        finally:
            call.ended = time.monotonic()

    app = make_app(pause=pause)
    app.middlewares.append(noted)
    async with serving(app, handler_cancellation=True) as made.url:
        yield made


@asynccontextmanager
async def serving(app: web.Application, *, handler_cancellation: bool = False) -> AsyncIterator[str]:
    """Serve the application in this process. Yields its base URL, which ends with `/v1`."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=handler_cancellation)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
