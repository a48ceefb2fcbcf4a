"""What clients of a real Envoy can hold open, with short limits: connections, heads, responses that nobody reads."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.chat_server import WaitGone, answer, event, text_stream
from tests.support.extproc_door import request_body
from tests.support.fake_envoy import DEADLINE
from tests.support.real_envoy import RealEnvoy, real_envoy


async def _said(envoy: RealEnvoy, sent: bytes) -> bytes:
    """All that a connection is told that sends this and then nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port)
    writer.write(sent)
    try:
        async with asyncio.timeout(DEADLINE):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.slow
async def test_connections_that_do_not_go_on_are_closed(tmp_path: Path) -> None:
    settings = {"timeouts": {"request": 0.5, "client_idle": 0.5}}
    async with real_envoy(tmp_path, settings=settings) as envoy:
        silent, word, half, idle = await asyncio.gather(
            _said(envoy, b""),
            _said(envoy, b"PO"),
            _said(envoy, b"POST /v1/responses HTTP/1.1\r\nhost: x\r\n"),
            _said(envoy, b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"),
        )
        assert (silent, word) == (b"", b"")
        assert half.startswith(b"HTTP/1.1 408 ")
        assert json.loads(half.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        assert idle.startswith(b"HTTP/1.1 404 ")
        assert (await envoy.post(request_body())).status == 200


def _unread(envoy: RealEnvoy) -> socket.socket:
    """A client that asks for a stream and never reads it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", envoy.port))
    body = request_body(stream=True)
    client.sendall(b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    return client


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")
@pytest.mark.parametrize("mode", ["relay", pytest.param("drive", marks=pytest.mark.full)])
async def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path, mode: str) -> None:
    async with real_envoy(tmp_path, settings={"timeouts": {"send": 1}}, mode=mode) as envoy:
        chat = envoy.chat if mode == "relay" else envoy.opened.chat
        chat.script(answer(parts=[*text_stream("x")[:1], *[event("x" * 100_000)] * 80, WaitGone()]))
        with closing(_unread(envoy)):
            call = await chat.received()
            async with asyncio.timeout(DEADLINE):
                await call.gone.wait()
