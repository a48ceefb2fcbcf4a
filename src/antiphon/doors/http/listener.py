"""Sockets and connections under the HTTP door.

Lives here: binding (TCP, Unix with its file mode), aiohttp's low-level server, and what it answers to bytes that are
no HTTP. Not here: any request (`server.py`).

Invariant: a Unix socket file has its mode before anybody can connect, a file that somebody still listens on is never
taken over, and only our own file is removed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from antiphon.doors.http.exchange import make_response
from antiphon.doors.tls import TlsFiles
from antiphon.errors import ApiError, ConfigError, InternalError, InvalidRequest

__all__ = ["Listener", "make_server"]

_HEADER_BYTES = 64 * 1024
_BACKLOG = 2048
_CLOSE_SECONDS = 0.2

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def make_server(handler: Handler, *, head_seconds: float, idle_seconds: float) -> web.Server:
    """aiohttp's server around one handler, which is cancelled when its client leaves.

    `head_seconds`: for the first request's head on a new connection; `idle_seconds`: between requests.
    """
    return _Server(
        handler,
        handler_cancellation=True,
        head_seconds=head_seconds,
        keepalive_timeout=idle_seconds,
        access_log=None,
        auto_decompress=False,
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
    )


class _Server(web.Server):
    def __init__(self, handler: Handler, *, handler_cancellation: bool, head_seconds: float, **options: Any) -> None:
        super().__init__(handler, handler_cancellation=handler_cancellation)
        self._options = options
        self._head_seconds = head_seconds

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._head_seconds, self._options)


class _Connection(web.RequestHandler):
    """One connection: bytes that are no HTTP get an OpenAI error object, and silence ends."""

    __slots__ = ("_head_seconds", "_head_timer")

    def __init__(self, server: _Server, head_seconds: float, options: dict[str, Any]) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._head_seconds = head_seconds
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_timer = asyncio.get_running_loop().call_later(self._head_seconds, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

    def _head_is_late(self) -> None:
        if self._request_count == 0:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("A response has begun; it can only be cut.")
        error: ApiError
        if status < 500:
            error = InvalidRequest("The request is not valid HTTP.", code="invalid_http", status=status)
        else:
            error = InternalError("The server had an error while processing your request.")
        close = (("content-type", "application/json"), ("connection", "close"))
        return make_response(error.status, close, error.body())


class Listener:
    """One bound address."""

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self._listening: asyncio.Server | None = None
        self._path: Path | None = None
        self._inode = 0

    @property
    def is_unix(self) -> bool:
        """Whether peers come over a Unix socket (whose file mode says who may)."""
        return self._path is not None

    async def open(self, address: str, mode: int, *, shared_port: bool, tls: TlsFiles | None = None) -> str:
        """Bind and listen (on TCP with TLS, where files are given); the address with its real port.

        Raises `ConfigError`.
        """
        if address.startswith("unix:"):
            return await self._open_unix(Path(address.removeprefix("unix:")), mode)
        host, port = _split_address(address)
        context = tls.context("http/1.1") if tls is not None else None
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                self._server, host, port, backlog=_BACKLOG, reuse_port=shared_port or None, ssl=context
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {_reason(error)}") from error
        name = self._listening.sockets[0].getsockname()
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    async def _open_unix(self, path: Path, mode: int) -> str:
        try:
            bound = _bind_unix(path, mode)
        except OSError as error:
            raise ConfigError(f"cannot listen on unix:{path}: {_reason(error)}") from error
        self._path, self._inode = path, _inode(path)
        self._listening = await asyncio.get_running_loop().create_unix_server(
            self._server, sock=bound, backlog=_BACKLOG
        )
        return f"unix:{path}"

    def refuse(self) -> None:
        """Accept no more connections."""
        if self._listening is not None:
            self._listening.close()

    async def aclose(self) -> None:
        """Close all connections and remove the socket file."""
        self.refuse()
        await self._server.shutdown(_CLOSE_SECONDS)
        if self._path is not None and _inode(self._path) == self._inode:
            _remove(self._path)


def _split_address(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ConfigError(f"cannot listen on {address!r}: it is not HOST:PORT (or unix:PATH)")
    return host.strip("[]") or "0.0.0.0", int(port)


def _bind_unix(path: Path, mode: int) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody can connect between bind and listen, so the mode is right from the start.
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


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _reason(error: OSError) -> str:
    # Resolver errors have numbers of their own, and a socket path that is too long has none.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"cannot listen on unix:{path}: the file exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            _remove(path)
            return
        except OSError:
            pass
    raise ConfigError(f"cannot listen on unix:{path}: another process listens there")
