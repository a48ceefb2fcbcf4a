"""Manages the listening sockets of the HTTP server: bind, accept and refuse.

Lives here: binding (TCP, Unix with its file mode), accepting, and refusing connections over the limit. Not here: the
limit of connections (`doors/listening.py`), the connections (`connection.py`), requests (`server.py`).

This module accepts connections, not the event loop. libuv accepts one per turn (since 1.45). Under load turns are long,
so queued connections would wait for a second while others are served again and again. This module accepts all queued
connections in one turn.

Invariants: a Unix socket file has its mode before any client can connect, and the listener removes only its own file.
Without a free descriptor, a client waits in the kernel's queue (libuv would reset it).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import structlog

from antiphon.config.section import parse_address
from antiphon.doors.http.connection import DoorServer
from antiphon.doors.listening import make_room, max_connections, why_not
from antiphon.doors.tls import TlsFiles
from antiphon.errors import ConfigError

_BACKLOG = 2048
_CLOSE_SECONDS = 0.2
_FULL_SECONDS = 0.05
_TELL_SECONDS = 60.0

_log = structlog.get_logger(__name__)


class Listener:
    """One bound address. `limit`: the maximum of connections; at the limit, idle ones are closed."""

    def __init__(self, server: DoorServer, limit: int | None = None) -> None:
        self._server = server
        self._limit = max_connections() if limit is None else limit
        self._bound: list[socket.socket] = []
        self._context: ssl.SSLContext | None = None
        # Handshakes in progress, mostly of TLS.
        self._opening: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._told_at = -_TELL_SECONDS
        self._path: Path | None = None
        self._inode = 0

    @property
    def is_unix(self) -> bool:
        """Whether peers connect over a Unix socket; its file mode controls access."""
        return self._path is not None

    async def open(
        self, address: str, mode: int, *, sockets: Sequence[socket.socket] = (), tls: TlsFiles | None = None
    ) -> str:
        """Bind and listen (on TCP with TLS, if files are given). Returns the address with its real port. `sockets`:
        already bound there.

        Raises `ConfigError`.
        """
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            try:
                self._bound = [_bind_unix(path, mode)]
            except OSError as error:
                raise ConfigError(f"cannot listen on unix:{path}: {why_not(error)}") from error
            self._path, self._inode = path, _inode(path)
            self._listen()
            return f"unix:{path}"
        try:
            host, port = parse_address(address)
        except ValueError as error:
            raise ConfigError(f"cannot listen: {error}") from None
        self._context = tls.context("http/1.1") if tls is not None else None
        try:
            self._bound = list(sockets) or await _bind_tcp(host, port)
            self._listen()
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {why_not(error)}") from error
        name = self._bound[0].getsockname()
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    def refuse(self) -> None:
        """Accept the queued connections, then no more. (Closing a socket resets the connections in its queue.)"""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for bound in self._bound:
            asyncio.get_running_loop().remove_reader(bound)
            self._take(bound, self._room())
            bound.close()
        self._bound = []

    async def aclose(self) -> None:
        """Close all connections and remove the socket file."""
        self.refuse()
        if self._opening:
            # A connection that is cut off between its two halves would never get its end event (uvloop).
            _, slow = await asyncio.wait(self._opening, timeout=_CLOSE_SECONDS)
            for opening in slow:
                opening.cancel()
        await self._server.shutdown(_CLOSE_SECONDS)
        if self._path is not None and _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)

    def _listen(self) -> None:
        try:
            for bound in self._bound:
                bound.listen(_BACKLOG)
        except OSError:
            self.refuse()
            raise
        self._watch()

    def _watch(self) -> None:
        self._again = None
        for bound in self._bound:
            asyncio.get_running_loop().add_reader(bound, self._accept, bound)

    def _accept(self, bound: socket.socket) -> None:
        """Accept all queued connections; at least one is queued."""
        room = self._room()
        if room <= 0:
            self._pause("all connections are in use")
        elif (error := self._take(bound, room)) is not None:
            self._pause(why_not(error))

    def _room(self) -> int:
        """The number of connections that may still be accepted."""
        return self._limit - self._server.open - len(self._opening)

    def _take(self, bound: socket.socket, room: int) -> OSError | None:
        """Accept at most `room` queued connections. Returns the error that ended this early, if any."""
        for _ in range(min(room, _BACKLOG)):
            try:
                accepted, _ = bound.accept()
            except (BlockingIOError, InterruptedError):
                return None
            except ConnectionError:
                # The client left while it was queued.
                continue
            except OSError as error:
                return error
            accepted.setblocking(False)
            opening = asyncio.get_running_loop().create_task(self._open(accepted))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        return None

    async def _open(self, accepted: socket.socket) -> None:
        # A failure here is the client's: it left, or the TLS handshake failed. The transport closes the socket.
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.get_running_loop().connect_accepted_socket(self._server, accepted, ssl=self._context)

    def _pause(self, why: str) -> None:
        """There is no room: close the connection that has been idle longest, and check again soon."""
        loop = asyncio.get_running_loop()
        for bound in self._bound:
            loop.remove_reader(bound)
        self._again = loop.call_later(_FULL_SECONDS, self._watch)
        made_room = self._server.close_idle()
        if not made_room and loop.time() >= self._told_at + _TELL_SECONDS:
            self._told_at = loop.time()
            _log.warning("connections_wait", cause=why, open=self._server.open, limit=self._limit)


async def _bind_tcp(host: str, port: int) -> list[socket.socket]:
    """One socket for every address of the name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, where in dict.fromkeys(found):
            bound = socket.socket(family, kind, protocol)
            sockets.append(bound)
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(where)
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return sockets


def _bind_unix(path: Path, mode: int) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_room(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # No client can connect between bind and listen, so the mode is right from the start.
        bound.bind(str(path))
        path.chmod(mode)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
