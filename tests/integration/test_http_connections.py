"""Connections of the HTTP door: accepted all at once, none turned away, none held for ever by a client that waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
import structlog
import uvloop
from aiohttp import web

from antiphon.doors.http.connection import DoorServer
from antiphon.doors.http.listener import Listener
from antiphon.doors.owners import OwnerResolver
from tests.support.chat_server import DEADLINE, Mark, WaitGone, answer, completion, event, json_answer
from tests.support.http_door import OpenHttpDoor, open_http_door, post_bytes
from tests.support.waiting import until

ASK: dict[str, Any] = {"model": "demo-model", "input": "Hi"}
STREAM: dict[str, Any] = {**ASK, "stream": True}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


# Accepting


def _server(handler: Callable[[web.BaseRequest], Any] | None = None, *, send_seconds: float = 30.0) -> DoorServer:
    async def answer_ok(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"ok")

    return DoorServer(handler or answer_ok, head_seconds=30, idle_seconds=30, send_seconds=send_seconds)


@contextlib.contextmanager
def _connected(address: str, number: int) -> Iterator[list[socket.socket]]:
    """Connections that the kernel has taken and nobody has accepted."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(number)]


@pytest.mark.parametrize("loop", LOOPS)
def test_all_that_wait_are_accepted_in_one_turn(loop: str) -> None:
    """libuv takes one per turn; under load a turn is long, and the last of two hundred would wait for them all."""

    async def check() -> None:
        server = _server()
        listener = Listener(server)
        address = await listener.open("127.0.0.1:0", 0o600)
        with _connected(address, 100):
            turns = 0
            while server.open < 100:
                await asyncio.sleep(0)
                turns += 1
                assert turns < 20
        await listener.aclose()
        await until(lambda: not server.open)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(check())


@pytest.mark.parametrize("loop", LOOPS)
def test_without_descriptors_clients_wait_and_are_not_turned_away(loop: str) -> None:
    async def check() -> None:
        server = _server()
        listener = Listener(server)
        address = await listener.open("127.0.0.1:0", 0o600)
        running = asyncio.get_running_loop()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with _connected(address, 20) as clients, structlog.testing.capture_logs() as logs:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
            taken: list[int] = []
            try:
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.dup(0))
                await until(lambda: logs)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for number in taken:
                    os.close(number)
            for client in clients:
                client.setblocking(False)
                await running.sock_sendall(client, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            async with asyncio.timeout(DEADLINE):
                for client in clients:
                    assert (await running.sock_recv(client, 1000)).startswith(b"HTTP/1.1 200")
        assert [line["event"] for line in logs] == ["connections_wait"], "once, not for every try"
        await listener.aclose()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(check())


async def test_an_idle_connection_makes_room_and_a_busy_one_does_not() -> None:
    going_on = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path == "/busy":
            await going_on.wait()
        return web.Response(body=b"ok")

    server = _server(handle)
    listener = Listener(server, limit=2)
    address = await listener.open("127.0.0.1:0", 0o600)

    async def ask(path: str) -> asyncio.StreamReader:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        return reader

    writers: list[asyncio.StreamWriter] = []
    async with asyncio.timeout(DEADLINE):
        idle = await ask("/")
        assert await idle.readuntil(b"ok")
        busy = await ask("/busy")
        await until(lambda: server.open == 2)
        third = await ask("/")
        assert await third.readuntil(b"ok") and await idle.read() == b""
        await until(lambda: server.open == 2)
        fourth = await ask("/busy")
        fifth = await ask("/")
        await until(lambda: server.open == 2 and third.at_eof())
        going_on.set()
        for reader in (busy, fourth, fifth):
            assert await reader.readuntil(b"ok")
    for writer in writers:
        writer.transport.abort()
    await listener.aclose()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_crowd_is_served_one_after_the_other(loop: str) -> None:
    """Whoever is there has its answer before its connection makes room, at whatever moment the next one is waiting."""

    async def handle(_: web.BaseRequest) -> web.StreamResponse:
        for _turn in range(3):
            await asyncio.sleep(0)
        return web.Response(body=b"ok")

    async def check() -> None:
        server = _server(handle)
        listener = Listener(server, limit=10)
        address = await listener.open("127.0.0.1:0", 0o600)
        running = asyncio.get_running_loop()
        with _connected(address, 150) as clients:
            for client in clients:
                client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                client.setblocking(False)

            async def make_room() -> None:
                while True:
                    server.close_idle()
                    await asyncio.sleep(0)

            pressing = asyncio.ensure_future(make_room())
            async with asyncio.timeout(50):
                for client in clients:
                    assert (await running.sock_recv(client, 1000)).startswith(b"HTTP/1.1 200")
            pressing.cancel()
        await listener.aclose()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(check())


# Clients that do not read


class _Deaf:
    """A client that asks and never reads."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        self._where = (host, int(port))

    async def ask(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, self._where)
        await loop.sock_sendall(self.socket, data)

    async def cut(self) -> bool:
        """Wait until the other side is gone; the kernel tells with a reset."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            try:
                while await loop.sock_recv(self.socket, 1 << 20):
                    pass
            except ConnectionResetError:
                return True
        return False


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_takes_nothing_is_reset(loop: str) -> None:
    """And its handler is cancelled, on any loop."""
    ended = asyncio.Event()

    async def write_for_ever(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 50_000)
        finally:
            ended.set()

    async def check() -> None:
        server = _server(write_for_ever, send_seconds=0.05)
        listener = Listener(server)
        client = _Deaf(await listener.open("127.0.0.1:0", 0o600))
        with client.socket:
            await client.ask(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            async with asyncio.timeout(DEADLINE):
                await ended.wait()
            assert await client.cut()
        await listener.aclose()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(check())


async def _free(door: OpenHttpDoor) -> None:
    assert await door.context.admission.drained(DEADLINE)
    async with asyncio.timeout(DEADLINE):
        await door.chat.requests[0].gone.wait()


async def test_a_client_that_stops_reading_its_stream_is_cut_off() -> None:
    async with open_http_door(send_seconds=0.05) as door:
        stuck = asyncio.Event()
        door.chat.script(answer(parts=[*[event("x" * 50_000)] * 1000, Mark(stuck), WaitGone()]))
        client = _Deaf(door.address)
        with client.socket, structlog.testing.capture_logs() as logs:
            await client.ask(post_bytes(STREAM))
            await door.chat.received()
            await _free(door)
            assert not stuck.is_set() and await client.cut()
        await door.stored("failed")
        assert "client_stopped_reading" in [line["event"] for line in logs]


async def test_a_client_that_stops_reading_a_whole_answer_is_cut_off() -> None:
    async with open_http_door(send_seconds=0.05) as door:
        door.chat.script(json_answer(completion("x" * 20_000_000)))
        client = _Deaf(door.address)
        with client.socket, structlog.testing.capture_logs() as logs:
            await client.ask(post_bytes(ASK))
            await door.stored("completed")
            assert await door.context.admission.drained(DEADLINE)
            # Before it reads again: a client that reads in time gets the whole answer.
            await until(lambda: "client_stopped_reading" in [line["event"] for line in logs])
            assert await client.cut()


async def test_a_client_that_stops_reading_its_websocket_is_cut_off() -> None:
    async with open_http_door(send_seconds=0.05) as door:
        door.chat.script(answer(parts=[*[event("x" * 50_000)] * 1000, WaitGone()]))
        client = _Deaf(door.address)
        frame = json.dumps({"type": "response.create", **ASK}).encode()
        with client.socket:
            await client.ask(post_bytes(method="GET", headers=_UPGRADE) + _masked(frame))
            await door.chat.received()
            await _free(door)
            assert await client.cut()


async def test_a_client_that_does_not_read_uses_up_no_drain() -> None:
    async with open_http_door(send_seconds=3600) as door:
        door.chat.script(answer(parts=[*[event("x" * 50_000)] * 1000, WaitGone()]))
        client = _Deaf(door.address)
        with client.socket:
            await client.ask(post_bytes(STREAM))
            await door.chat.received()
            assert await door.door.drain(1.0), "nothing was in flight any more before the time was over"
            await _free(door)


async def test_a_client_that_pauses_gets_everything() -> None:
    """The limit is for a buffer that stays full, not for a stream."""
    async with open_http_door(send_seconds=30) as door, door.client() as client:
        door.chat.script(answer(parts=[*[event("x" * 50_000)] * 300, *[event("end")]], framing="close"))
        await client.send(post_bytes(STREAM))
        await client.head()
        for _ in range(500):
            await asyncio.sleep(0)
        size = 0
        while part := await client.part():
            size += len(part)
        assert size > 15_000_000


# What a connection says


_UPGRADE = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def _masked(data: bytes, first: int = 0x81) -> bytes:
    assert len(data) < 65_536
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return bytes([first]) + length + bytes(4) + data


async def test_frames_that_are_not_masked_close_the_websocket_with_1002() -> None:
    async with open_http_door() as door, aiohttp.ClientSession() as session:
        frame = json.dumps({"type": "response.create", **ASK}).encode()
        for before in (b"", _masked(b"{}")):
            async with session.ws_connect(f"{door.base_url}/responses") as ws:
                sent = before + b"\x81" + bytes([len(frame)]) + frame
                assert os.write(ws.get_extra_info("socket").fileno(), sent) == len(sent)
                async with asyncio.timeout(DEADLINE):
                    async for _ in ws:
                        pass
                assert ws.close_code == 1002
        assert not door.chat.requests


@pytest.mark.parametrize("target", ["/\u00e9".encode(), b"/\xff", b"/ x"])
async def test_a_head_request_that_is_no_http_gets_no_body(target: bytes) -> None:
    async with open_http_door() as door:
        for method in (b"HEAD", b"GET"):
            async with door.client() as client:
                await client.send(post_bytes(method="HEAD", path="/health"))
                await client.read(bodiless=True)
                await client.send(method + b" " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await client.head()).status == 400
                assert await client.closed() is (method == b"HEAD")


async def test_no_answer_tells_versions() -> None:
    async with open_http_door() as door:
        for data in (
            post_bytes(ASK),
            post_bytes(STREAM),
            post_bytes(method="GET", path="/nowhere"),
            post_bytes(method="GET", headers=_UPGRADE),
            b"nonsense\r\n\r\n",
        ):
            async with door.client() as client:
                await client.send(data)
                assert [value for name, value in (await client.head()).headers if name == "server"] == ["antiphon"]


@pytest.mark.parametrize("name", ["authorization", "Authorization", "x-antiphon-owner", "x-antiphon-secret"])
async def test_a_header_that_says_who_asks_stands_once(name: str) -> None:
    async with open_http_door(owners=OwnerResolver("header", header="x-antiphon-owner")) as door:
        twice = post_bytes(ASK, headers={name: "Bearer one"}).replace(
            b"content-length:", name.encode() + b": Bearer two\r\ncontent-length:"
        )
        got = await door.ask(twice)
        assert got.status == 400 and got.error["code"] == "duplicate_header"
        assert name.lower() in got.error["message"] and "one" not in got.error["message"]
        assert not door.chat.requests
