"""The timers of one HTTP connection: how long a client may take for what was written to it, and who makes room."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from aiohttp import web

from antiphon.doors.http.connection import DoorServer, HttpConnection
from tests.support.fake_time import in_fake_time


class _Transport(asyncio.Transport):
    """One that only notes how it ends; its own socket."""

    family = socket.AF_UNIX

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []
        self.written = b""

    @property
    def cut(self) -> bool:
        """Whether the client was reset, with what it has not taken."""
        return self.ended[-2:] == ["reset", "aborted"]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else default

    def setsockopt(self, level: int, option: int, value: object) -> None:
        if option == socket.SO_LINGER:
            self.ended.append("reset")

    def abort(self) -> None:
        self.ended.append("aborted")

    def close(self) -> None:
        self.ended.append("closed")

    def is_closing(self) -> bool:
        return bool(self.ended)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data


async def _handle(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


class Serving:
    """A server on a loop whose clock jumps, and the connections that were made to it."""

    def __init__(self, head_seconds: float = 1_000.0) -> None:
        self.leaving = False
        self.server = DoorServer(
            _handle,
            head_seconds=head_seconds,
            idle_seconds=10_000.0,
            send_seconds=100.0,
            leaving=lambda: self.leaving,
        )
        self.made: list[HttpConnection] = []

    async def __aenter__(self) -> Serving:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self.made:
            connection.connection_lost(None)
        await self.server.shutdown(0.0)

    def connect(self) -> tuple[HttpConnection, _Transport]:
        connection, transport = self.server(), _Transport()
        connection.connection_made(transport)
        self.made.append(connection)
        return connection, transport


async def _until(seconds: float) -> None:
    """Until it is so late."""
    await asyncio.sleep(seconds - asyncio.get_running_loop().time())


def test_who_does_not_take_what_was_written_has_so_long() -> None:
    async def run() -> None:
        async with Serving() as serving:
            connection, transport = serving.connect()
            taking, other = serving.connect()
            connection.pause_writing()
            taking.pause_writing()
            await _until(50.0)
            taking.resume_writing()
            await _until(99.9)
            assert not transport.cut
            await _until(160.0)
            assert transport.cut and not other.cut

    in_fake_time(run())


def test_to_hurry_makes_a_limit_shorter_and_never_longer() -> None:
    async def run() -> None:
        async with Serving() as serving:
            connection, transport = serving.connect()
            idle, other = serving.connect()
            connection.pause_writing()
            serving.server.hurry(200.0)
            assert serving.server.send_seconds == 100.0
            serving.server.hurry(20.0)
            await _until(10.0)
            # It has begun before, so it is over before.
            serving.server.hurry(30.0)
            connection.hurry()
            assert serving.server.send_seconds == 20.0
            idle.pause_writing()
            await _until(19.9)
            assert not transport.cut
            await _until(20.1)
            assert transport.cut and not other.cut
            await _until(30.1)
            assert other.cut

    in_fake_time(run())


def test_who_is_gone_is_left_alone() -> None:
    async def run() -> None:
        async with Serving() as serving:
            connection, transport = serving.connect()
            connection.pause_writing()
            connection.connection_lost(None)
            ended = list(transport.ended)
            await _until(2_000.0)
            assert transport.ended == ended

    in_fake_time(run())


def test_a_head_that_does_not_come_in_time_ends_the_connection() -> None:
    async def run() -> None:
        async with Serving(head_seconds=50.0) as serving:
            _, transport = serving.connect()
            await _until(49.9)
            assert transport.ended == []
            await _until(50.1)
            assert "closed" in transport.ended

    in_fake_time(run())


def test_what_is_lost_is_known_to_nobody() -> None:
    async def run() -> None:
        async with Serving() as serving:
            connection, _ = serving.connect()
            assert serving.server.open == 1
            connection.connection_lost(None)
            assert serving.server.open == 0

    in_fake_time(run())


async def test_only_an_idle_connection_makes_room() -> None:
    async with Serving() as serving:
        assert serving.server.close_idle() is False
        _, transport = serving.connect()
        await asyncio.sleep(0)
        assert serving.server.close_idle() is False and transport.ended == [], "it has asked for nothing yet"


_GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def _answered(connection: HttpConnection, transport: _Transport, data: bytes = _GET) -> bytes:
    """What is written for these bytes."""
    before = len(transport.written)
    connection.data_received(data)
    while len(transport.written) == before or connection.heard_at > connection.answered_at:
        await asyncio.sleep(0.001)
    return transport.written[before:]


def test_who_has_been_idle_longest_makes_room_first() -> None:
    async def run() -> None:
        async with Serving() as serving:
            first, one = serving.connect()
            second, two = serving.connect()
            third, three = serving.connect()
            for seconds, connection, transport in ((1.0, second, two), (2.0, first, one), (3.0, third, three)):
                await _until(seconds)
                assert not connection.is_idle
                assert (await _answered(connection, transport)).startswith(b"HTTP/1.1 200")
                assert connection.is_idle and seconds <= connection.answered_at < seconds + 1
            # The beginning of a head is enough to count as busy.
            second.data_received(b"GET")
            assert not second.is_idle
            assert serving.server.close_idle() and "closed" in one.ended and not (two.ended or three.ended)

    in_fake_time(run())


def test_a_drain_waits_until_each_promised_connection_has_been_quiet_so_long() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Serving() as serving:
            await serving.server.quiet(0.0)
            asked, transport = serving.connect()
            leaving, _ = serving.connect()
            await _until(5.0)
            serving.server.promise()
            later, _ = serving.connect()
            assert asked.promised and leaving.promised and not later.promised
            waiting = asyncio.ensure_future(serving.server.quiet(10.0))
            await _until(8.0)
            assert await _answered(asked, transport)
            leaving.connection_lost(None)
            await waiting
            assert 18.0 <= loop.time() < 19.0

    in_fake_time(run())


def test_a_drain_waits_for_no_connection_that_is_gone() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Serving() as serving:
            await _until(100.0)
            connection, _ = serving.connect()
            serving.server.promise()
            waiting = asyncio.ensure_future(serving.server.quiet(10.0))
            await _until(103.0)
            connection.connection_lost(None)
            await waiting
            assert loop.time() == 103.0

    in_fake_time(run())


@pytest.mark.parametrize(
    ("data", "leaving", "kept"),
    [
        (_GET, False, True),
        (_GET, True, False),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", False, False),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", False, False),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab", False, True),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", False, False),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", False, False),
    ],
)
def test_a_connection_is_kept_unless_its_next_request_would_not_be_safe(data: bytes, leaving: bool, kept: bool) -> None:
    async def run() -> None:
        async with Serving() as serving:
            serving.leaving = leaving
            connection, transport = serving.connect()
            head = (await _answered(connection, transport, data)).lower()
            assert head.startswith(b"http/1.1 200")
            assert (b"connection: close" in head) is not kept

    in_fake_time(run())


@pytest.mark.parametrize(("data", "body"), [(b"GET / nonsense\r\n\r\n", True), (b"HEAD / nonsense\r\n\r\n", False)])
@pytest.mark.parametrize("before", [0, 1])
def test_what_is_no_http_gets_an_error_object_and_no_second_answer(data: bytes, body: bool, before: int) -> None:
    async def run() -> None:
        async with Serving() as serving:
            connection, transport = serving.connect()
            for _ in range(before):
                assert await _answered(connection, transport)
            head, _, rest = (await _answered(connection, transport, data)).partition(b"\r\n\r\n")
            assert head.split()[1] == b"400"
            if body:
                error = json.loads(rest)["error"]
                assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")
            else:
                assert rest == b""
            await asyncio.sleep(1.0)
            assert "closed" in transport.ended

    in_fake_time(run())
