"""Through a real Envoy: the console's separate listener, and the route of the listener for clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from antiphon.doors.http.console import ConsoleAt
from antiphon.doors.http.server import HttpDoor
from antiphon.engine.ports.callers import Caller
from tests.support.console_pages import FakeConsole
from tests.support.extproc_door import request_body
from tests.support.fake_envoy import DEADLINE
from tests.support.real_envoy import RealEnvoy, free_port, real_envoy
from tests.support.waiting import until

ANNA = Caller("n:anna", "anna")
ORIGIN = "https://app.example"


@asynccontextmanager
async def _served(folder: Path, pages: FakeConsole, **settings: Any) -> AsyncIterator[tuple[RealEnvoy, str, HttpDoor]]:
    """Envoy with the sidecar's private port behind it, the address of the console, and that port."""
    at = f"127.0.0.1:{free_port()}"
    console = {"enabled": True, "listen": at, **settings.pop("console", {})}
    async with real_envoy(folder, settings={"console": console, **settings}) as envoy:
        context = replace(envoy.opened.context, console=pages)
        door = HttpDoor(context, private=True, drive_exchanges=False, console=ConsoleAt.GATEWAY)
        await door.start(f"unix:{folder}/http.sock")
        try:
            async with asyncio.timeout(DEADLINE):
                while (await _ask(f"http://{at}/console"))[0] != 200:
                    await asyncio.sleep(0.05)
            pages.requests.clear()
            yield envoy, f"http://{at}", door
        finally:
            await door.aclose()


async def _ask(url: str, method: str = "GET", **options: Any) -> tuple[int, dict[str, str], bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, allow_redirects=False, **options) as got,
    ):
        return got.status, {name.lower(): value for name, value in got.headers.items()}, await got.read()


async def test_the_separate_listener_leads_to_the_console_alone(tmp_path: Path) -> None:
    pages = FakeConsole()
    async with _served(tmp_path, pages) as (envoy, console, _):
        status, headers, body = await _ask(console + "/console/a?secret=1", headers={"x-antiphon-owner": "forged"})
        assert (status, json.loads(body)["path"]) == (200, "/console/a") and headers["x-request-id"]
        assert not [name for name, _ in pages.requests[-1].headers if name.startswith("x-antiphon-")]
        await _ask(console + "/console/a", headers={"x-antiphon-peer": "192.0.2.7"})
        assert pages.requests[-1].peer == "127.0.0.1"
        status, headers, _ = await _ask(console + "/?next=x")
        assert (status, headers["location"]) == (302, "/console")
        for path in ("/v1/models", "/ready", "/metrics", "/consolex", "/console/../v1/models"):
            status, _, body = await _ask(console + path)
            assert (status, json.loads(body)["error"]["code"]) == (404, "unknown_url"), path
        # The listener for clients has no console, whatever a client says about itself.
        mark = {"x-antiphon-console": "1"}
        assert (await _ask(f"http://127.0.0.1:{envoy.port}/console", headers=mark))[0] == 404
        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        assert (await _ask(console + "/console", headers=upgrade))[0] != 101


async def test_forms_and_event_streams_pass(tmp_path: Path) -> None:
    pages = FakeConsole()
    async with _served(tmp_path, pages) as (_, console, door):
        form = aiohttp.FormData()
        form.add_field("file", b"x" * 300_000, filename="a.txt")
        status, _, body = await _ask(console + "/console/form", "POST", data=form)
        assert status == 200 and json.loads(body)["streamed"] and json.loads(body)["size"] > 300_000
        async with aiohttp.ClientSession() as session:
            async with session.get(console + "/console/events") as got:
                assert await got.content.readuntil(b"\n\n") == b"data: first\n\n"
            await until(lambda: pages.open_streams == 0, DEADLINE)
            async with session.get(console + "/console/events") as got:
                await got.content.readuntil(b"\n\n")
                door.send_away()
                # The stream ends whole; a cut one raises an error.
                assert await got.content.read() == b""


async def test_the_playground_creates_a_response(tmp_path: Path) -> None:
    pages = FakeConsole(ANNA)
    async with _served(tmp_path, pages) as (envoy, console, _):
        sent = {"x-csrf-token": "right", "content-type": "application/json"}
        status, _, body = await _ask(console + "/console/run", "POST", data=request_body(stream=True), headers=sent)
        assert status == 200 and b"response.completed" in body
        (stored,) = envoy.opened.store.records.values()
        assert stored.owner == "n:anna"
        status, _, body = await _ask(console + "/console/run", "POST", data=request_body(), headers={})
        assert (status, json.loads(body)["error"]["code"]) == (401, "no_session")


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
async def test_the_listener_for_clients_serves_it_without_cors(tmp_path: Path, method: str) -> None:
    pages = FakeConsole()
    settings = {"console": {"on_client_listener": True}, "cors": {"origins": [ORIGIN]}}
    async with _served(tmp_path, pages, **settings) as (envoy, _, _):
        sent = {"origin": ORIGIN, "access-control-request-method": "POST", "x-antiphon-owner": "forged"}
        public = f"http://127.0.0.1:{envoy.port}"
        status, headers, body = await _ask(public + "/console/a", method, headers=sent)
        assert status == 200 and json.loads(body)["method"] == method
        assert not [name for name in headers if name.startswith("access-control-")]
        assert not [name for name, _ in pages.requests[-1].headers if name.startswith("x-antiphon-")]
        _, headers, _ = await _ask(public + "/v1/models", headers=sent)
        assert headers["access-control-allow-origin"] == ORIGIN


async def test_silent_connections_to_the_console_leave_envoys_other_connections_free(tmp_path: Path) -> None:
    """Of 1,100 silent connections Envoy closes those above the limit of the console's listener at once."""
    async with _served(tmp_path, FakeConsole()) as (_, url, _door), AsyncExitStack() as opened:
        host, port = str(URL(url).host), int(URL(url).port or 0)
        readers = []
        for _ in range(1100):
            reader, writer = await asyncio.open_connection(host, port)
            opened.callback(writer.close)
            readers.append(reader)
        ends = [asyncio.ensure_future(one.read(1)) for one in readers]
        async with asyncio.timeout(60):
            await until(lambda: sum(one.done() for one in ends) >= 76)
            assert not all(one.done() for one in ends)
            # The listener closes silent connections after 5 s, and then serves the console again.
            await asyncio.wait(ends)
            assert (await _ask(f"{url}/console"))[0] == 200
