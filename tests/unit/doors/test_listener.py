"""The HTTP server's listening sockets: by TLS, by a file of their own, and what becomes of who is on its way in."""

from __future__ import annotations

import asyncio
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from antiphon.doors.http.connection import DoorServer
from antiphon.doors.http.listener import Listener
from antiphon.doors.listening import TlsFiles
from antiphon.errors import ConfigError
from tests.support.certificates import Authority

_ASK = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def _handle(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"ok")


@asynccontextmanager
async def _listening(address: str, mode: int = 0o600, tls: TlsFiles | None = None) -> AsyncIterator[str]:
    server = DoorServer(_handle, head_seconds=60.0, idle_seconds=60.0, send_seconds=60.0)
    listener = Listener(server)
    try:
        yield await listener.open(address, mode, tls=tls)
    finally:
        await listener.aclose()
        assert server.open == 0


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(_ASK)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


async def test_with_files_only_tls_is_spoken(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signed = authority.sign("sidecar")
    trusting = ssl.create_default_context(cafile=authority.ca)
    trusting.check_hostname = False
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    async with _listening("127.0.0.1:0", tls=TlsFiles(signed.cert, signed.key)) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert (await _asked(reader, writer)).endswith(b"ok")
        plain = await _asked(*await asyncio.open_connection(host, int(port)))
        assert not plain.startswith(b"HTTP/1.1 200")


async def test_a_handshake_that_does_not_go_on_holds_up_no_end(tmp_path: Path) -> None:
    signed = Authority(tmp_path).sign("sidecar")
    async with _listening("127.0.0.1:0", tls=TlsFiles(signed.cert, signed.key)) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        # Half a record: the server waits for the rest.
        writer.write(b"\x16\x03\x01\x02\x00")
        await writer.drain()
        began = asyncio.get_running_loop().time()
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    assert asyncio.get_running_loop().time() - began < 30
    writer.close()


async def test_a_queued_connection_is_served_when_the_listener_refuses_more() -> None:
    server = DoorServer(_handle, head_seconds=60.0, idle_seconds=60.0, send_seconds=60.0)
    listener = Listener(server)
    host, _, port = (await listener.open("127.0.0.1:0", 0o600)).rpartition(":")
    # The kernel completes the connection; the event loop does not run before the listener closes.
    queued = socket.create_connection((host, int(port)))
    listener.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    assert (await _asked(*await asyncio.open_connection(sock=queued))).endswith(b"ok")
    await listener.aclose()


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_a_socket_file_has_its_mode_and_goes_with_its_listener(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.sock"
    async with _listening(f"unix:{path}", mode) as address:
        assert address == f"unix:{path}" and stat.S_IMODE(path.stat().st_mode) == mode
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
        assert (await _asked(*await asyncio.open_unix_connection(path))).endswith(b"ok")
    assert not path.exists()


async def test_a_socket_file_of_another_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with _listening(f"unix:{path}"):
        path.rename(tmp_path / "b.sock")
        path.write_text("another's")
    assert path.read_text() == "another's"


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"])
async def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        async with _listening(address):
            pass


async def test_a_socket_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"cannot listen on unix:.*/file/a\.sock"):
        async with _listening(f"unix:{tmp_path}/file/a.sock"):
            pass


async def test_the_end_closes_connections_that_were_kept(tmp_path: Path) -> None:
    async with _listening(f"unix:{tmp_path}/a.sock"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "a.sock")
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(60):
            assert await reader.readuntil(b"ok")
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()


async def test_an_address_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="in use"):
            async with _listening(address):
                pass


async def test_an_address_of_version_six_stands_in_brackets() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no such address")
    async with _listening("[::1]:0") as address:
        host, _, port = address.rpartition(":")
        assert host == "[::1]"
        assert (await _asked(*await asyncio.open_connection("::1", int(port)))).endswith(b"ok")


async def test_who_comes_after_the_end_is_turned_away(tmp_path: Path) -> None:
    server = DoorServer(_handle, head_seconds=60.0, idle_seconds=60.0, send_seconds=60.0)
    listener, path = Listener(server), tmp_path / "a.sock"
    await listener.open(f"unix:{path}", 0o600)
    listener.refuse()
    listener.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_unix_connection(path)
    await listener.aclose()
    assert not path.exists()
