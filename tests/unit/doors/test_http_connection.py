"""The timers of one HTTP connection: how long a client may take for what was written to it, and who makes room."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from antiphon.doors.http.connection import DoorServer, HttpConnection


class _Transport(asyncio.Transport):
    """One that only notes how it ends; its own socket."""

    family = socket.AF_UNIX

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []

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

    def write(self, data: bytes | bytearray | memoryview) -> None: ...


async def _handle(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


@pytest.fixture
async def server() -> AsyncIterator[DoorServer]:
    made = DoorServer(_handle, head_seconds=50.0, idle_seconds=60.0, send_seconds=100.0)
    yield made
    for connection in list(made._open):
        connection.connection_lost(None)
    await made.shutdown(0.0)


def _connected(server: DoorServer) -> tuple[HttpConnection, _Transport]:
    connection, transport = server(), _Transport()
    connection.connection_made(transport)
    return connection, transport


def _left(timer: asyncio.TimerHandle | None) -> float:
    assert timer is not None and not timer.cancelled()
    return timer.when() - asyncio.get_running_loop().time()


async def test_who_does_not_take_what_was_written_has_so_long(server: DoorServer) -> None:
    connection, _ = _connected(server)
    assert connection._send_timer is None
    connection.pause_writing()
    timer = connection._send_timer
    assert 90.0 < _left(timer) <= 100.0
    connection.resume_writing()
    assert timer is not None and timer.cancelled() and connection._send_timer is None


async def test_to_hurry_makes_a_limit_shorter_and_never_longer(server: DoorServer) -> None:
    connection, _ = _connected(server)
    idle, _ = _connected(server)
    connection.pause_writing()
    first = connection._send_timer
    server.hurry(200.0)
    assert connection._send_timer is first and server.send_seconds == 100.0
    server.hurry(20.0)
    second = connection._send_timer
    assert first is not None and first.cancelled() and 10.0 < _left(second) <= 20.0
    # It has begun before, so it is over before.
    server.hurry(30.0)
    assert connection._send_timer is second and server.send_seconds == 20.0
    connection.hurry()
    assert connection._send_timer is second and idle._send_timer is None
    idle.pause_writing()
    assert 10.0 < _left(idle._send_timer) <= 20.0


async def test_who_is_stuck_is_reset_and_who_is_gone_is_left_alone(server: DoorServer) -> None:
    connection, transport = _connected(server)
    connection._is_stuck()
    assert transport.ended == ["reset", "aborted"]
    connection.connection_lost(None)
    ended = list(transport.ended)
    connection._is_stuck()
    assert transport.ended == ended


async def test_a_head_that_does_not_come_in_time_ends_the_connection(server: DoorServer) -> None:
    connection, transport = _connected(server)
    assert 40.0 < _left(connection._head_timer) <= 50.0
    connection._head_is_late()
    assert "closed" in transport.ended


async def test_what_is_lost_is_known_to_nobody_and_has_no_timer(server: DoorServer) -> None:
    connection, _ = _connected(server)
    assert server.open == 1
    connection.pause_writing()
    head, send = connection._head_timer, connection._send_timer
    connection.connection_lost(None)
    assert server.open == 0 and head is not None and head.cancelled() and send is not None and send.cancelled()


async def test_only_an_idle_connection_makes_room(server: DoorServer) -> None:
    assert server.close_idle() is False
    _, transport = _connected(server)
    await asyncio.sleep(0)
    assert server.close_idle() is False and transport.ended == [], "it has asked for nothing yet"
