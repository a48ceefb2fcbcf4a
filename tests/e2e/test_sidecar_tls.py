"""TLS between Envoy and the sidecar's TCP ports: both transports, with and without client certificates."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path

import aiohttp
import pytest

from antiphon.commands import health
from antiphon.commands.command_line import make_parser
from tests.support.certificates import Authority
from tests.support.chat_server import ChatServer
from tests.support.gateway import post, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_TEXT = {"model": "demo-model", "input": "hi"}
_SECRET = "a-shared-secret"


def _ports(count: int) -> list[int]:
    found = []
    for _ in range(count):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            found.append(free.getsockname()[1])
    return found


def _environ(folder: Path, grpc: int, http: int, *, mutual: bool) -> dict[str, str]:
    authority = Authority(folder)
    sidecar = authority.sign("sidecar")
    environ = {
        "ANTIPHON_SIDECAR__GRPC": f"127.0.0.1:{grpc}",
        "ANTIPHON_SIDECAR__HTTP": f"127.0.0.1:{http}",
        "ANTIPHON_SIDECAR__SECRET": _SECRET,
        "ANTIPHON_SIDECAR__TLS__CERT": str(sidecar.cert),
        "ANTIPHON_SIDECAR__TLS__KEY": str(sidecar.key),
        "ANTIPHON_SIDECAR__TLS__CA": str(authority.ca),
    }
    if mutual:
        clients = Authority(folder, "clients")
        envoy = clients.sign("envoy")
        environ |= {
            "ANTIPHON_SIDECAR__TLS__CLIENT_CA": str(clients.ca),
            "ANTIPHON_SIDECAR__TLS__ENVOY_CERT": str(envoy.cert),
            "ANTIPHON_SIDECAR__TLS__ENVOY_KEY": str(envoy.key),
        }
    return environ


async def _handshake(port: int, context: ssl.SSLContext) -> bytes:
    """What a server says behind the handshake to somebody without a certificate (nothing, when it hangs up)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        return await reader.read(64)
    finally:
        writer.close()


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
@pytest.mark.parametrize("mutual", [False, True], ids=["server", "mutual"])
async def test_envoy_and_sidecar_talk_tls(
    transport: str, mutual: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grpc, http = _ports(2)
    environ = _environ(tmp_path, grpc, http, mutual=mutual)
    async with ChatServer() as server:
        gateway = await start_gateway(
            server.base_url, tmp_path / "data", "--mode", "relay", "--transport", transport, environ=environ
        )
        try:
            made = await post(gateway.base_url + "/responses", _TEXT)
            assert made.status == 200, made.body
            streamed = await post(gateway.base_url + "/responses", {**_TEXT, "stream": True})
            assert b"response.completed" in streamed.body and not streamed.cut
            found = f"/responses/{json.loads(made.body)['id']}"
            async with aiohttp.ClientSession() as session, session.get(gateway.base_url + found) as answer:
                assert answer.status == 200
            # Nobody gets in without TLS, and, where they are asked for, without a certificate.
            for port in (grpc, http):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                try:
                    assert b"HTTP" not in await reader.read(64)
                except ConnectionError:
                    pass
                finally:
                    writer.close()
            context = ssl.create_default_context(cafile=environ["ANTIPHON_SIDECAR__TLS__CA"])
            context.set_alpn_protocols(["http/1.1"])
            if mutual:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    assert await _handshake(http, context) == b"", "it let a client in"
                    raise ConnectionError
            else:
                assert (await _handshake(http, context)).startswith(b"HTTP/1.1 200")
            for name, value in environ.items():
                monkeypatch.setenv(name, value)
            arguments = make_parser().parse_args(["health"])
            status = await asyncio.to_thread(health.run, arguments)
            assert status == 0, capsys.readouterr().err
        finally:
            assert await gateway.stop() == 0
