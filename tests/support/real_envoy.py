"""Runs a real Envoy in front of an ext_proc server of this process, so that a test can observe both.

Lives here: starting Envoy with the generated bootstrap, and a raw HTTP/2 request. Not here: `antiphon up`
(`gateway.py`), which runs every part in a separate process.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.sidecars import SidecarEndpoint
from tests.support.chat_server import ChatServer
from tests.support.envoy_binary import envoy_binary, envoy_version
from tests.support.extproc_door import OpenDoor, open_door
from tests.support.gateway import Answered, post

_DEADLINE = 90.0


@dataclass
class RealEnvoy:
    """Envoy, the ext_proc server behind it, and the chat server to which it relays."""

    opened: OpenDoor
    chat: ChatServer
    port: int
    log: Path

    async def post(self, body: bytes) -> Answered:
        """Send one request for a response over HTTP/1.1."""
        return await post(f"http://127.0.0.1:{self.port}/v1/responses", body)

    async def stats(self, holds: str) -> str:
        """Envoy's metrics whose names contain `holds`, in Prometheus's format."""
        connector = aiohttp.UnixConnector(str(self.log.parent / "envoy-admin.sock"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://envoy/stats/prometheus?filter={holds}") as got,
        ):
            return await got.text()

    async def post_with_trailers(self, body: bytes) -> tuple[bool, bytes]:
        """Send the same request over HTTP/2 with request trailers. Returns whether the status was 200, and the body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = ((":method", "POST"), (":path", "/v1/responses"), (":scheme", "http"), (":authority", "test"))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        writer.write(
            _frame(1, 4, 1, _literals(head)) + _frame(0, 0, 1, body) + _frame(1, 5, 1, _literals((("x-t", "1"),)))
        )
        fine, answer = False, b""
        try:
            async with asyncio.timeout(_DEADLINE):
                while True:
                    prefix = await reader.readexactly(9)
                    payload = await reader.readexactly(int.from_bytes(prefix[:3], "big"))
                    kind, flags = prefix[3], prefix[4]
                    assert kind not in (3, 7), f"reset or goaway: {payload!r}"
                    if kind == 1:
                        fine = fine or b"\x88" in payload[:1]
                    elif kind == 0:
                        answer += payload
                    if kind in (0, 1) and flags & 1:
                        return fine, answer
        finally:
            writer.close()
            await writer.wait_closed()

    async def reset_in_stream(self, body: bytes, request_id: str, seen: bytes) -> None:
        """Send one request over HTTP/2, and reset its stream (CANCEL) when the answer contains `seen`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = ((":method", "POST"), (":path", "/v1/responses"), (":scheme", "http"), (":authority", "test"))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        writer.write(_frame(1, 4, 1, _literals((*head, ("x-request-id", request_id)))) + _frame(0, 1, 1, body))
        try:
            async with asyncio.timeout(_DEADLINE):
                await reader.readuntil(seen)
                writer.write(_frame(3, 0, 1, (8).to_bytes(4, "big")))
                await writer.drain()
                # Envoy answers the ping only after it has processed the reset.
                writer.write(_frame(6, 0, 0, b"sequence"))
                await reader.readuntil(b"sequence")
        finally:
            writer.close()
            await writer.wait_closed()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literals(headers: tuple[tuple[str, str], ...]) -> bytes:
    """A header block without compression. All strings must be short."""
    return b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in headers
    )


@asynccontextmanager
async def real_envoy(
    folder: Path,
    change: Callable[[dict[str, Any]], None] = lambda config: None,
    *,
    serves: bool = True,
    settings: dict[str, Any] | None = None,
    **door: Any,
) -> AsyncIterator[RealEnvoy]:
    """Start an ext_proc server, and Envoy in front of it with these settings. `change` may alter the bootstrap. Without
    `serves`, Envoy need not be able to serve."""
    async with ChatServer() as chat, open_door(folder, **door) as opened:
        port = free_port()
        given = {"listen": f"127.0.0.1:{port}", "data": folder, "upstream": {"url": chat.base_url}}
        config = bootstrap(
            Settings.model_validate({**given, **(settings or {})}),
            sidecars=[SidecarEndpoint(opened.address, f"unix:{folder}/http.sock")],
            version=envoy_version(),
        )
        change(config)
        (folder / "envoy.yaml").write_text(to_yaml(config))
        log = folder / "envoy.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(str(envoy_binary()), "-c", str(folder / "envoy.yaml")),
                *("--concurrency", "1", "-l", "warning", "--disable-hot-restart"),
                # Tests wait for lines of Envoy's access log, which Envoy would otherwise buffer for ten seconds.
                *("--file-flush-interval-msec", "100"),
                stdout=output,
                stderr=output,
            )
            try:
                await _listening(port, process, log, serves)
                yield RealEnvoy(opened, chat, port, log)
            finally:
                process.terminate()
                await process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _listening(port: int, process: asyncio.subprocess.Process, log: Path, serves: bool) -> None:
    """Wait until Envoy answers, and (with `serves`) until it considers the sidecar healthy."""
    async with asyncio.timeout(_DEADLINE), aiohttp.ClientSession() as session:
        while True:
            assert process.returncode is None, log.read_text()[-2000:]
            try:
                async with session.post(f"http://127.0.0.1:{port}/v1/responses", data=b"{}") as answer:
                    code = json.loads(await answer.read())["error"]["code"]
                    if not serves or code != "adapter_unavailable":
                        return
            except (OSError, ValueError):
                pass
            await asyncio.sleep(0.02)
