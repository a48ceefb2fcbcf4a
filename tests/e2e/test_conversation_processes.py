"""Two processes on one data folder: a conversation is locked for both; its lock dies with the process that has it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.chat_server import ChatServer, Wait, answer, event, text_stream
from tests.support.gateway import Gateway, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_LEASE = 1.0
_ENVIRON = {"ANTIPHON_CONVERSATIONS__LEASE": str(_LEASE), "ANTIPHON_CONVERSATIONS__CREATE_UNKNOWN": "true"}
TEXT = {"model": "m", "input": "hi"}


@dataclass
class Pair:
    """Two HTTP doors in front of one chat server and one folder."""

    first: Gateway
    second: Gateway
    chat: ChatServer
    session: aiohttp.ClientSession

    async def create(self, gateway: Gateway, conversation: str, **fields: Any) -> int:
        request = {**TEXT, "conversation": conversation, **fields}
        async with self.session.post(f"{gateway.base_url}/responses", json=request) as answered:
            await answered.read()
            return answered.status

    async def begin(self, gateway: Gateway, conversation: str) -> aiohttp.ClientResponse:
        """A turn whose answer has begun, and does not end by itself."""
        request = {**TEXT, "conversation": conversation, "stream": True}
        streamed = await self.session.post(f"{gateway.base_url}/responses", json=request)
        body = b""
        while b"output_text.delta" not in body:
            body += await streamed.content.readany()
        return streamed

    async def texts(self, gateway: Gateway, conversation: str) -> list[str]:
        url = f"{gateway.base_url}/conversations/{conversation}/items?order=asc"
        async with self.session.get(url) as answered:
            return [item["content"][0]["text"] for item in (await answered.json())["data"]]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        first, second = [
            await start_gateway(chat.base_url, tmp_path, command="serve", environ=_ENVIRON) for _ in range(2)
        ]
        yield Pair(first, second, chat, session)
        for gateway in (first, second):
            await gateway.stop()


async def test_turns_are_refused_and_taken_in_both_processes(pair: Pair) -> None:
    go_on = asyncio.Event()
    pair.chat.script(answer(parts=[event("one"), Wait(go_on), *text_stream("")]))
    streamed = await pair.begin(pair.first, "mine")
    assert await pair.create(pair.first, "mine") == 409
    assert await pair.create(pair.second, "mine") == 409
    # Longer than the lease: it is renewed as long as the response runs.
    started = time.monotonic()
    while time.monotonic() - started < 1.5 * _LEASE:
        assert await pair.create(pair.second, "mine") == 409
        await asyncio.sleep(0.05)
    go_on.set()
    await streamed.read()
    assert await pair.create(pair.second, "mine", input="two") == 200
    assert await pair.create(pair.first, "mine", input="three") == 200
    assert await pair.texts(pair.first, "mine") == ["hi", "one", "two", "Hello", "three", "Hello"]


async def test_the_lock_of_a_killed_process_runs_out(pair: Pair) -> None:
    pair.chat.script(answer(parts=[event("lost"), Wait(asyncio.Event())]))
    streamed = await pair.begin(pair.first, "mine")
    await pair.first.stop(signal.SIGKILL)
    streamed.close()
    assert await pair.create(pair.second, "mine") == 409, "nobody knows yet that its holder is dead"
    async with asyncio.timeout(10 * _LEASE):
        while await pair.create(pair.second, "mine", input="next") == 409:
            await asyncio.sleep(0.02)
    assert await pair.texts(pair.second, "mine") == ["next", "Hello"]


async def test_a_process_that_is_stopped_gives_its_conversations_back(pair: Pair) -> None:
    """Drained, then cut: the response is stored as failed, and the lock goes with that."""
    pair.chat.script(answer(parts=[event("cut"), Wait(asyncio.Event())]))
    streamed = await pair.begin(pair.first, "mine")
    stopping = asyncio.ensure_future(pair.first.stop())
    streamed.close()
    await stopping
    assert await pair.create(pair.second, "mine", input="next") == 200
    assert await pair.texts(pair.second, "mine") == ["next", "Hello"]
