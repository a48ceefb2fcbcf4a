"""`envoy/drain.sh`: what a pod does before its Envoy is stopped."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.support.chat_server import ChatServer, Wait, answer, event, text_stream
from tests.support.gateway import post, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 90.0
SCRIPT = Path(__file__).parents[2] / "envoy" / "drain.sh"
STREAM = {"model": "m", "input": "hi", "stream": True}


@asynccontextmanager
async def _draining(
    notice: int, port: int, *others: object, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    command = ("bash", str(SCRIPT), str(notice), str(port), *map(str, others))
    process = await asyncio.create_subprocess_exec(
        *command, start_new_session=True, env={**os.environ, **(environ or {})}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            # What it waits with, too.
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _until_refused(url: str) -> None:
    while True:
        try:
            await post(url, {})
        except aiohttp.ClientOSError as error:
            if error.errno == errno.ECONNREFUSED:
                return
            # What waited to be accepted when the listener closed is reset by the kernel.
            assert error.errno == errno.ECONNRESET


async def test_an_envoy_leaves_when_its_last_answer_is_whole(
    server: ChatServer, folder: Path, unused_tcp_port: int
) -> None:
    environ = {"ANTIPHON_ENVOY__ADMIN": f"127.0.0.1:{unused_tcp_port}"}
    gateway = await start_gateway(server.base_url, folder, environ=environ)
    gate = asyncio.Event()
    server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]), answer(parts=text_stream("c")))
    async with (
        asyncio.timeout(SECONDS),
        aiohttp.ClientSession() as session,
        session.post(gateway.base_url + "/responses", json=STREAM) as stream,
    ):
        body = await stream.content.readuntil(b"output_text.delta")
        async with _draining(600, unused_tcp_port):
            status = 200
            while status == 200:
                async with session.get(gateway.origin + "/ready") as ready:
                    status, said = ready.status, await ready.json()
            assert (status, said["reason"], ready.headers["connection"]) == (503, "shutting_down", "close")
            served = await post(gateway.base_url + "/responses", STREAM)
            assert b"response.completed" in served.body and served.headers["connection"] == "close"
        # The same again, with the notice over.
        async with _draining(0, unused_tcp_port) as process:
            await _until_refused(gateway.base_url + "/conversations")
            assert process.returncode is None
            gate.set()
            body += await stream.content.read()
            assert await process.wait() == 0
    assert b"response.completed" in body
    assert await gateway.stop() == 0


async def test_what_is_left_is_a_websocket(server: ChatServer, folder: Path, unused_tcp_port: int) -> None:
    """The sidecar is told to leave, which ends it; and who waits for an answer ends with the time."""
    environ = {"ANTIPHON_ENVOY__ADMIN": f"127.0.0.1:{unused_tcp_port}"}
    gateway = await start_gateway(server.base_url, folder, environ=environ)
    gate, told = asyncio.Event(), folder / "leave"
    server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    async with (
        asyncio.timeout(SECONDS),
        aiohttp.ClientSession() as session,
        session.ws_connect(gateway.base_url + "/responses") as socket,
    ):
        async with session.post(gateway.base_url + "/responses", json=STREAM) as stream:
            await stream.content.readuntil(b"output_text.delta")
            # The seconds in all are over: somebody else ends what there is.
            async with _draining(0, unused_tcp_port, 1, told) as process:
                assert await process.wait() == 0
            assert told.exists()
            told.unlink()
            gate.set()
            await stream.content.read()
        async with _draining(0, unused_tcp_port, int(SECONDS), told) as process:
            while not told.exists():
                await asyncio.sleep(0.05)
            assert process.returncode is None
            await socket.close()
            assert await process.wait() == 0
    assert await gateway.stop() == 0


async def test_antiphon_in_another_pod_is_told_to_end_websockets(
    server: ChatServer, folder: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """Over TCP, with the secret: idle ones end, and busy ones after their turn."""
    admin, grpc, http = (unused_tcp_port_factory() for _ in range(3))
    environ = {
        "ANTIPHON_ENVOY__ADMIN": f"127.0.0.1:{admin}",
        "ANTIPHON_SIDECAR__GRPC": f"127.0.0.1:{grpc}",
        "ANTIPHON_SIDECAR__HTTP": f"127.0.0.1:{http}",
        "ANTIPHON_SIDECAR__SECRET": "a-shared-secret",
    }
    gateway = await start_gateway(server.base_url, folder, environ=environ)
    gate = asyncio.Event()
    server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    told = {"ANTIPHON_SIDECAR_SECRET": "a-shared-secret"}
    async with (
        asyncio.timeout(SECONDS),
        aiohttp.ClientSession() as session,
        session.ws_connect(gateway.base_url + "/responses") as idle,
        session.ws_connect(gateway.base_url + "/responses") as busy,
    ):
        await busy.send_json({"type": "response.create", "model": "m", "input": "hi"})
        await busy.receive()
        # Nobody else may say so.
        assert (await post(gateway.origin + "/gateway/leaves", {})).status == 404
        async with _draining(0, admin, int(SECONDS), environ=told) as process:
            assert (await idle.receive()).data == aiohttp.WSCloseCode.GOING_AWAY
            await idle.close()
            assert process.returncode is None
            gate.set()
            while (message := await busy.receive()).type is aiohttp.WSMsgType.TEXT:
                last = message.data
            assert "response.completed" in last and message.data == aiohttp.WSCloseCode.GOING_AWAY
            await busy.close()
            assert await process.wait() == 0
    assert await gateway.stop() == 0
