"""Manages the listening sockets of the HTTP server: bind, accept and refuse.

This module binds TCP ports and Unix sockets, accepts connections, and makes clients wait at the connection limit.
`doors/listening.py` computes the limit, `connection.py` implements the connections, and `server.py` serves the
requests.

This module accepts connections itself, because libuv (since 1.45) would accept only one connection per iteration of the
event loop. Under load the iterations are long, so queued connections would wait for a second while open connections are
served again and again. This module accepts all queued connections in one iteration.

Invariants: a Unix socket file has its mode before any client can connect, and the listener removes only its own file.
Without a free file descriptor, a client waits in the kernel's queue; libuv would reset its connection.
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
from antiphon.doors.listening import TlsFiles, make_room, max_connections, why_not
from antiphon.errors import ConfigError

_BACKLOG = 2048
_CLOSE_SECONDS = 0.2
_FULL_SECONDS = 0.05
_TELL_SECONDS = 60.0

_log = structlog.get_logger(__name__)


class Listener:
    """Listens on one address. `limit` is the maximum number of connections. At the limit of connections, the listener
    closes idle connections.

    `closes_silent`: at the limit, the listener also closes connections whose clients have sent no whole request head.
    """

    def __init__(self, server: DoorServer, limit: int | None = None, *, closes_silent: bool = False) -> None:
        self._server = server
        self._closes_silent = closes_silent
        self._limit = max_connections() if limit is None else limit
        self._bound: list[socket.socket] = []
        self._context: ssl.SSLContext | None = None
        # Tasks that set up accepted connections, mostly TLS handshakes.
        self._opening: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._told_at = -_TELL_SECONDS
        self._path: Path | None = None
        self._inode = 0

    @property
    def is_unix(self) -> bool:
        """Whether clients connect over a Unix socket, whose file mode controls access."""
        return self._path is not None

    async def open(
        self, address: str, mode: int, *, sockets: Sequence[socket.socket] = (), tls: TlsFiles | None = None
    ) -> str:
        """Bind the address and listen. TCP uses TLS if `tls` is set. `sockets` are sockets that the parent process has
        already bound to the address. Returns the address with its real port.

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
        """Accept the queued connections and then close the listening sockets. Closing a socket earlier would reset the
        connections in its queue."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for bound in self._bound:
            asyncio.get_running_loop().remove_reader(bound)
            self._take(bound, self._room())
            bound.close()
        self._bound = []

    async def aclose(self) -> None:
        """Close all connections and remove the Unix socket file."""
        self.refuse()
        if self._opening:
            # If uvloop's connection setup is cancelled halfway, the connection never gets its end event. So the
            # listener first waits for connections that are being set up.
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
        """Accept all queued connections of one listening socket. The event loop calls this method when at least one
        connection is queued."""
        room = self._room()
        if room <= 0:
            self._pause("all connections are in use")
        elif (error := self._take(bound, room)) is not None:
            self._pause(why_not(error))

    def _room(self) -> int:
        """The number of connections that the listener may still accept."""
        return self._limit - self._server.open - len(self._opening)

    def _take(self, bound: socket.socket, room: int) -> OSError | None:
        """Accept at most `room` queued connections. Returns the error that stopped the loop early, or None."""
        for _ in range(min(room, _BACKLOG)):
            try:
                accepted, _ = bound.accept()
            except (BlockingIOError, InterruptedError):
                return None
            except ConnectionError:
                # The client disconnected while its connection was queued.
                continue
            except OSError as error:
                return error
            accepted.setblocking(False)
            opening = asyncio.get_running_loop().create_task(self._open(accepted))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        return None

    async def _open(self, accepted: socket.socket) -> None:
        # The client causes these errors: it left or failed the TLS handshake. The transport closes the socket.
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.get_running_loop().connect_accepted_socket(self._server, accepted, ssl=self._context)

    def _pause(self, why: str) -> None:
        """Stop accepting connections for a moment, because the limit is reached or no descriptor is free. Close the
        connection that has been idle longest, so that another client can connect.

        With `closes_silent`, close the oldest quarter of the connections, except those with a request in flight. If the
        listener closed only one, a client could open silent connections faster than the listener closes them."""
        loop = asyncio.get_running_loop()
        for bound in self._bound:
            loop.remove_reader(bound)
        self._again = loop.call_later(_FULL_SECONDS, self._watch)
        if self._closes_silent:
            made_room = self._server.close_silent(max(1, self._limit // 4))
        else:
            made_room = self._server.close_idle()
        if not made_room and loop.time() >= self._told_at + _TELL_SECONDS:
            self._told_at = loop.time()
            _log.warning("connections_wait", cause=why, open=self._server.open, limit=self._limit)


async def _bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Return one bound socket for each address of the host name."""
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
        # No client can connect between bind and listen, so the file has its mode before the first connection.
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
