"""Type=notify and notify-reload: what systemd is told by whole processes, once each, and by the main process alone."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.chat_server import ChatServer
from tests.support.gateway import start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("hangups_are_heard")]


@pytest.mark.parametrize("command", [("serve",), ("up", "--door", "http", "--workers", "2")])
async def test_ready_reloading_and_stopping(command: tuple[str, ...], folder: Path, server: ChatServer) -> None:
    name, *arguments = command
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.settimeout(60)
        environ = {"NOTIFY_SOCKET": str(folder / "notify")}
        gateway = await start_gateway(server.base_url, folder / "data", *arguments, command=name, environ=environ)
        assert _told(manager) == (b"READY=1", gateway.process.pid)
        asked = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        gateway.process.send_signal(signal.SIGHUP)
        said, who = _told(manager)
        reloading, _, at = said.partition(b"\nMONOTONIC_USEC=")
        assert (reloading, who) == (b"RELOADING=1", gateway.process.pid)
        assert asked <= int(at) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert _told(manager) == (b"READY=1", gateway.process.pid)
        assert await gateway.stop() == 0
        assert _told(manager) == (b"STOPPING=1", gateway.process.pid)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def _told(manager: socket.socket) -> tuple[bytes, int]:
    """The next message, and the process that sent it."""
    said, ((_, _, sender),), _, _ = manager.recvmsg(100, socket.CMSG_SPACE(12))
    return said, int.from_bytes(sender[:4], "little")
