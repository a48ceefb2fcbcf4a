"""A process takes other settings while it serves: what began before ends with what it began with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from antiphon.app.build import build
from antiphon.app.built import App
from antiphon.config.settings import Settings, load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.errors import ConfigError
from tests.support.chat_server import ChatServer, Wait, answer, event, text_stream
from tests.support.waiting import until

ASK = {"model": "m", "input": "hi"}
KEYS = ("key-of-the-first-client", "key-of-the-second-client")


def settings(data: Path, chat: ChatServer, **given: Any) -> Settings:
    upstream = {"url": chat.base_url, "auth": "none", "profile": "generic"}
    return load_settings({"data": data, "upstream": upstream, "background": {"workers": 1}, **given})


@asynccontextmanager
async def served(first: Settings) -> AsyncIterator[tuple[App, str, aiohttp.ClientSession]]:
    app = await build(first, door="http")
    door = HttpDoor(app.current)
    try:
        address = await door.start("127.0.0.1:0")
        async with aiohttp.ClientSession() as session:
            yield app, f"http://{address}/v1", session
    finally:
        await app.give_back()
        await door.aclose()
        await app.aclose()


async def swap(app: App, other: Settings) -> None:
    app.swap(await app.prepare(other))


async def test_a_stream_ends_with_what_it_began_with(tmp_path: Path) -> None:
    async with ChatServer() as one, ChatServer() as two, served(settings(tmp_path, one)) as (app, url, session):
        gate = asyncio.Event()
        one.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        old = await session.post(f"{url}/responses", json={**ASK, "stream": True})
        await old.content.readuntil(b"output_text.delta")
        await swap(app, settings(tmp_path, two))
        assert app.replaced == 1
        async with session.post(f"{url}/responses", json=ASK) as new:
            assert new.status == 200
        assert (len(one.requests), len(two.requests)) == (1, 1)
        gate.set()
        assert b"response.completed" in await old.content.read()
        # Its connections are closed when its last request is over.
        await until(lambda: app.replaced == 0)
        await until(lambda: one.open_connections == 0)


async def test_a_background_response_runs_with_what_there_is_when_it_begins(tmp_path: Path) -> None:
    async with ChatServer() as one, ChatServer() as two, served(settings(tmp_path, one)) as (app, url, session):
        gate = asyncio.Event()
        one.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        ids = []
        for _ in range(2):
            async with session.post(f"{url}/responses", json={**ASK, "background": True}) as queued:
                ids.append((await queued.json())["id"])
        await one.received()
        await swap(app, settings(tmp_path, two))
        gate.set()
        await two.received()
        for response_id in ids:
            while True:
                async with session.get(f"{url}/responses/{response_id}") as asked:
                    found = await asked.json()
                if found["status"] not in ("queued", "in_progress"):
                    break
            assert found["status"] == "completed"
        assert (len(one.requests), len(two.requests)) == (1, 1)
        await until(lambda: app.replaced == 0)


async def test_a_websocket_takes_the_new_settings_with_its_next_turn(tmp_path: Path) -> None:
    first = {"owner": {"api_keys": list(KEYS)}}
    async with (
        ChatServer() as one,
        ChatServer() as two,
        served(settings(tmp_path, one, **first)) as (app, url, session),
    ):
        headers = {"authorization": f"Bearer {KEYS[0]}"}
        async with session.ws_connect(f"{url}/responses", headers=headers) as socket:
            await swap(app, settings(tmp_path, two, **first))
            # An idle connection holds nothing up.
            await until(lambda: app.replaced == 0)
            await socket.send_json({"type": "response.create", **ASK})
            while (await socket.receive_json())["type"] != "response.completed":
                pass
            assert (len(one.requests), len(two.requests)) == (0, 1)
            await swap(app, settings(tmp_path, two, owner={"api_keys": [KEYS[1]]}))
            await socket.send_json({"type": "response.create", **ASK})
            assert (await socket.receive_json())["error"]["code"] == "invalid_api_key"
        async with session.post(f"{url}/responses", json=ASK, headers=headers) as refused:
            assert refused.status == 401


async def test_what_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    async with ChatServer() as one, served(settings(tmp_path, one)) as (app, url, session):
        before = app.generation
        upstream = {"url": "https://127.0.0.1:1/v1", "ca_file": str(tmp_path / "none.pem")}
        with pytest.raises(ConfigError, match=r"upstream\.ca_file"):
            await app.prepare(load_settings({"data": tmp_path, "upstream": upstream}))
        assert app.generation is before
        async with session.post(f"{url}/responses", json=ASK) as asked:
            assert asked.status == 200


async def test_there_are_only_so_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antiphon.app.built._MOST_GENERATIONS", 1)
    async with ChatServer() as one, served(settings(tmp_path, one)) as (app, url, session):
        gate = asyncio.Event()
        one.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        old = await session.post(f"{url}/responses", json={**ASK, "stream": True})
        await old.content.readuntil(b"output_text.delta")
        await swap(app, settings(tmp_path, one, strict=True))
        with pytest.raises(ConfigError, match="1 earlier settings"):
            await app.prepare(settings(tmp_path, one))
        gate.set()
        await old.content.read()
        await until(lambda: app.replaced == 0)
        await swap(app, settings(tmp_path, one))


async def test_requests_that_last_longer_than_a_response_may_hold_nothing_for_ever(tmp_path: Path) -> None:
    given = {"timeouts": {"response": 0.05}}
    async with ChatServer() as one, served(settings(tmp_path, one, **given)) as (app, url, session):
        gate = asyncio.Event()
        one.script(answer(parts=[Wait(gate)]))
        chat = asyncio.ensure_future(session.post(f"{url}/chat/completions", json={"model": "m", "messages": []}))
        await one.received()
        await swap(app, settings(tmp_path, one))
        await until(lambda: app.replaced == 0)
        chat.cancel()
        gate.set()


async def test_limits_of_the_process_are_fitted(tmp_path: Path) -> None:
    async with ChatServer() as one, served(settings(tmp_path, one)) as (app, url, session):
        gate = asyncio.Event()
        one.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        old = await session.post(f"{url}/responses", json={**ASK, "stream": True})
        await old.content.readuntil(b"output_text.delta")
        await swap(app, settings(tmp_path, one, limits={"concurrent_requests": 1}))
        async with session.post(f"{url}/responses", json=ASK) as refused:
            assert refused.status in (429, 503)
        gate.set()
        await old.content.read()
        async with session.post(f"{url}/responses", json=ASK) as asked:
            assert asked.status == 200
