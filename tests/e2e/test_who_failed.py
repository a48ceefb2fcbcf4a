"""Through a real Envoy: what failed is told truthfully, to the client and in the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from antiphon.doors.http.server import HttpDoor
from antiphon.errors import StoreError
from tests.support.chat_server import ChatServer, WaitGone, answer, event
from tests.support.extproc_door import request_body
from tests.support.fake_envoy import DEADLINE
from tests.support.memory_store import MemoryResponseStore
from tests.support.real_envoy import RealEnvoy, real_envoy
from tests.support.waiting import until

UNAVAILABLE = (503, "adapter_unavailable")


async def _get(envoy: RealEnvoy, path: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{envoy.port}{path}") as got:
        return got.status, await got.json()


def _code(got: tuple[int, Any]) -> tuple[int, str]:
    return got[0], got[1].get("error", {}).get("code", "")


async def _until(envoy: RealEnvoy, path: str, wanted: tuple[int, Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while await _get(envoy, path) != wanted:
            await asyncio.sleep(0.05)


class _Full(MemoryResponseStore):
    """A store that can be read and not written."""

    full = False

    async def ping(self) -> None:
        if self.full:
            raise StoreError("the server's disk is full")


@asynccontextmanager
async def _http(envoy: RealEnvoy, folder: Path) -> AsyncIterator[None]:
    door = HttpDoor(envoy.opened.context, private=True, drive_exchanges=False)
    await door.start(f"unix:{folder}/http.sock")
    try:
        yield
    finally:
        await door.aclose()


async def test_a_sidecar_that_is_not_ready_answers_by_itself_where_none_is(tmp_path: Path) -> None:
    store = _Full()
    async with real_envoy(tmp_path, store=store) as envoy, _http(envoy, tmp_path):
        await _until(envoy, "/health", (200, {"status": "ok"}))
        store.full = True
        async with asyncio.timeout(DEADLINE):
            while await _stat(envoy, "cluster.sidecar_http.membership_healthy"):
                await asyncio.sleep(0.05)
        status, said = await _get(envoy, "/ready")
        assert (status, said["reason"]) == (503, "the store does not work")
        assert (await _get(envoy, "/v1/responses/resp_absent"))[0] == 404


async def _stat(envoy: RealEnvoy, name: str) -> int:
    reader, writer = await asyncio.open_unix_connection(envoy.log.parent / "envoy-admin.sock")
    writer.write(b"GET /stats?filter=^%b$ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % name.encode())
    said = await reader.read()
    writer.close()
    return int(said.rpartition(f"{name}: ".encode())[2].split()[0])


@pytest.mark.parametrize("there", [False, True], ids=["refused", "reset"])
async def test_a_failed_connection_to_a_sidecar_is_no_upstreams_fault(tmp_path: Path, there: bool) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/ready " in await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with real_envoy(tmp_path) as envoy:
        server = await asyncio.start_unix_server(cut, tmp_path / "http.sock") if there else None
        if server is not None:
            async with asyncio.timeout(DEADLINE):
                while not await _stat(envoy, "cluster.sidecar_http.membership_healthy"):
                    await asyncio.sleep(0.05)
        for path in ("/v1/responses/resp_x", "/v1/files"):
            assert _code(await _get(envoy, path)) == UNAVAILABLE, path
        if server is not None:
            server.close()


async def test_an_upstream_that_nobody_reached_has_no_status(tmp_path: Path) -> None:
    async with ChatServer() as gone:
        url = gone.base_url
    with capture_logs() as lines:
        async with real_envoy(tmp_path, settings={"upstream": {"url": url}}) as envoy:
            for path in ("/v1/responses", "/v1/chat/completions"):
                async with (
                    aiohttp.ClientSession() as session,
                    session.post(f"http://127.0.0.1:{envoy.port}{path}", data=request_body()) as got,
                ):
                    assert _code((got.status, await got.json())) == (502, "upstream_unreachable")
                    assert not [name for name in got.headers if name.lower().startswith("x-antiphon")]
    (line,) = [line for line in lines if line["event"] == "response" and line.get("response_id")]
    assert (line["fault"], line["status"], line["log_level"]) == ("upstream", 502, "warning")
    assert line["cause"].startswith("unreachable: ") and "upstream_status" not in line


async def test_a_client_that_leaves_in_the_middle_is_not_called_our_fault(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with real_envoy(tmp_path) as envoy:
            envoy.chat.script(answer(parts=[event("a"), WaitGone()]))
            async with aiohttp.ClientSession() as session:
                url = f"http://127.0.0.1:{envoy.port}/v1/responses"
                async with session.post(url, data=request_body(stream=True)) as got:
                    await got.content.readuntil(b"output_text.delta")
            await until(lambda: [line for line in lines if line["event"] == "response"][-1:], DEADLINE)
    line = [line for line in lines if line["event"] == "response"][-1]
    assert (line["fault"], line["log_level"], line["code"]) == ("unknown", "info", "connection_ended")
    assert json.loads(request_body())["model"] == line["model"]
