"""The chat server of runs that must know when a model was called, and until when.

Lives here: the demo's chat server in the run's own process, and the ledger of its calls. Not here: what it answers
(`antiphon/demo_upstream.py`), what a call means for a run.

Invariant: a call is in the ledger before anything of its answer is sent.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from antiphon.demo_upstream import make_app


@dataclass
class Call:
    """One model call: its last message, its begin and its end (by `time.monotonic`)."""

    said: str
    began: float
    ended: float | None = None


@dataclass
class Model:
    """`calls`: all that ever came."""

    url: str
    calls: list[Call] = field(default_factory=list)

    def of(self, said: str) -> list[Call]:
        """The calls with this last message."""
        return [call for call in self.calls if call.said == said]


@asynccontextmanager
async def model(pause: float) -> AsyncIterator[Model]:
    """A server whose streams pause so many seconds between two words."""
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
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield made
    finally:
        await runner.cleanup()
