"""Background responses through a gateway of our own: when that goes away, and when the model server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from antiphon.app.build import build
from antiphon.config.processes import SidecarSettings
from antiphon.config.settings import Settings
from antiphon.config.state import BackgroundSettings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.doors.http.server import HttpDoor
from antiphon.engine.running.workers import Pauses
from tests.support.background_app import BackgroundApp
from tests.support.chat_server import ChatServer, Wait, answer, event, never, text_stream
from tests.support.waiting import until


class Door:
    """What Envoy is to a model call: bytes go to the chat server and back. It can go away, and come back."""

    def __init__(self, path: Path, chat: ChatServer) -> None:
        self._path = path
        self._chat = chat
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, bool] = {}

    async def come(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))

    async def go(self) -> None:
        """As by kill -9: nobody listens, and every connection ends."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    def cut(self) -> None:
        """What a model server that breaks off its answer leads to: the call's own connection ends."""
        for writer, used in self._open.items():
            if used:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = False
        try:
            first = await reader.read(1 << 16)
            if not first:
                return
            self._open[writer] = True
            url = urlsplit(self._chat.base_url)
            back, forth = await asyncio.open_connection(url.hostname, url.port)
            forth.write(first)
            await asyncio.gather(_copy(reader, forth), _copy(back, writer))
        except OSError:
            pass
        finally:
            del self._open[writer]
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def behind(folder: Path, **background: Any) -> AsyncIterator[tuple[BackgroundApp, Door, ChatServer]]:
    async with ChatServer() as chat:
        door = Door(folder / "door.sock", chat)
        await door.come()
        settings = Settings(
            data=folder / "data",
            upstream=UpstreamSettings(url=chat.base_url, auth=AuthMode.NONE, profile="generic"),
            background=BackgroundSettings(**background),
            sidecar=SidecarSettings(model_door=f"unix:{folder / 'door.sock'}"),
        )
        app = await build(settings, door="envoy")
        app.workers.pauses = Pauses(door=0.01)
        http = HttpDoor(app.context)
        url = f"http://{await http.start('127.0.0.1:0')}/v1"
        one = BackgroundApp(app, http, url, aiohttp.ClientSession())
        try:
            yield one, door, chat
        finally:
            await one.stop()
            await door.go()


@pytest.mark.parametrize("begun", [True, False], ids=["in the middle", "before the head"])
async def test_a_gateway_that_goes_away_costs_an_attempt(tmp_path: Path, begun: bool) -> None:
    async with behind(tmp_path) as (one, door, chat):
        begin = answer(parts=[event("Hel"), Wait(asyncio.Event())]) if begun else never()
        chat.script(begin, answer(parts=text_stream("Again")))
        async with one.session.post(f"{one.url}/conversations", json={}) as got:
            conversation = (await got.json())["id"]
        async with one.stream(conversation=conversation) as followed:
            response_id = await followed.response_id()
            await until(lambda: chat.requests)
            if begun:
                await followed.until(b'"delta":"Hel"')
        await door.go()
        await until(lambda: not one.app.workers.running)
        assert (await one.get(response_id))["status"] == "in_progress"
        # Its conversation is its own still.
        turn = {"model": "m", "input": "x", "conversation": conversation}
        async with one.session.post(f"{one.url}/responses", json=turn) as got:
            assert got.status == 409
        await door.come()
        ended = await one.ended(response_id)
        assert ended["output"][0]["content"][0]["text"] == "Again" and len(chat.requests) == 2


async def test_one_that_never_comes_back_costs_them_all(tmp_path: Path) -> None:
    async with behind(tmp_path, attempts=3, patience=0) as (one, door, _):
        await door.go()
        ended = await one.ended((await one.create())["id"])
        assert ended["status"] == "failed" and ended["error"]["code"] == "upstream_unreachable"


async def test_where_nothing_is_tried_again_it_fails_at_once(tmp_path: Path) -> None:
    async with behind(tmp_path, on_restart="fail", patience=0) as (one, door, chat):
        chat.script(answer(parts=[event("Hel"), Wait(asyncio.Event())]))
        made = await one.create()
        await until(lambda: chat.requests)
        await door.go()
        assert (await one.ended(made["id"]))["status"] == "failed" and len(chat.requests) == 1


async def test_what_the_model_server_breaks_off_fails(tmp_path: Path) -> None:
    """It may be the request that it dies of."""
    async with behind(tmp_path) as (one, door, chat):
        chat.script(answer(parts=[event("Hel"), Wait(asyncio.Event())]))
        async with one.stream() as followed:
            await followed.until(b'"delta":"Hel"')
            door.cut()
            await followed.whole()
            ended = await one.ended(await followed.response_id())
        assert ended["status"] == "failed" and ended["error"]["code"] == "upstream_cut"
        # The door was asked whether it answers; the model was not asked again.
        assert [asked.path for asked in chat.requests] == ["/v1/chat/completions", "/"]
