"""A process with a console, whose chat server stops in the middle of an answer until the test lets it continue.

Lives here: the process, its users, and requests in flight. Not here: the pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from antiphon.config.operators import AdminSettings, ConsoleSettings
from antiphon.console.console import Console
from antiphon.engine.ports.journal import EntryFilter, LiveRequest
from tests.support.background_app import BackgroundApp, processes
from tests.support.chat_server import ChatServer, Wait, answer, text_stream
from tests.support.console_browser import ConsoleBrowser
from tests.support.waiting import until

TOKEN = "the-token-of-the-operators-0123456789"
ANNA, BO = "ant_key-of-anna-0123456789", "ant_key-of-bo-0123456789"
BEARER = {"authorization": f"Bearer {ANNA}"}


@dataclass
class Held:
    """A process with a console, whose chat server sends one word and then waits for `gate`."""

    app: BackgroundApp
    chat: ChatServer
    gate: asyncio.Event

    async def user(self, token: str = ANNA) -> ConsoleBrowser:
        console = self.app.app.context.console
        assert isinstance(console, Console)
        made = ConsoleBrowser(console)
        await made.sign_in(token)
        return made

    def holds_answer(self) -> None:
        """Let the next model call stop after its first word, until `gate` is set."""
        role, first, *rest = text_stream("Hello from the model server", " again")
        self.chat.script(answer(parts=[role, first, Wait(self.gate), *rest]))

    @property
    def live(self) -> list[LiveRequest]:
        return self.app.app.context.telemetry.live()

    @asynccontextmanager
    async def stream(self, **fields: Any) -> AsyncIterator[tuple[LiveRequest, aiohttp.ClientResponse]]:
        """A streamed request of Anna that is in flight, and its response."""
        self.holds_answer()
        body = {"model": "demo-model", "input": "the needle", "stream": True, **fields}
        async with self.app.session.post(f"{self.app.url}/responses", json=body, headers=BEARER) as got:
            await until(lambda: any(one.tokens for one in self.live), 10)
            yield self.live[0], got

    async def has_ended(self, entries: int) -> None:
        """Wait until the journal has this number of entries."""
        async with asyncio.timeout(30):
            while (await self.app.app.stores.journal.list(EntryFilter(), limit=1)).total < entries:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def held(data: Path, **changes: Any) -> AsyncIterator[Held]:
    async with processes(data) as made:
        app = await made.start(
            owner_keys={"anna": {"keys": [ANNA]}, "bo": {"keys": [BO]}},
            admin=AdminSettings(token=SecretStr(TOKEN)),
            console=ConsoleSettings(enabled=True, act=True, record="all"),
            **changes,
        )
        yield Held(app, made.chat, asyncio.Event())
