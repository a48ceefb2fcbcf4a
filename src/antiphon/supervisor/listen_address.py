"""Checks, probes and holds the address at which clients connect.

Lives here: checks of the address, and the sockets of the HTTP server. Not here: the listening processes
(`generation.py`), parsing (`antiphon.config`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.doors.listening import why_not
from antiphon.errors import ConfigError
from antiphon.supervisor.http_probe import ask

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WILDCARDS = ("0.0.0.0", "::")


def free_address(listen: str) -> str:
    """The address in numeric form, if a process can listen on it.

    The parent checks this because Envoy silently shares a port with another listener, and cannot resolve names.
    """
    host, port = parse_address(listen)
    if host == "unix":
        raise ConfigError(f"listen: {listen} is not HOST:PORT")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ConfigError(f"listen: cannot listen on {listen}: {why_not(error)}") from None
    return join_address(str(where[0]), port)


def refuse_own_upstream(settings: Settings) -> None:
    """Raise `ConfigError` when an upstream is the address where clients connect: each request would call Antiphon
    itself."""
    host, port = parse_address(settings.listen)
    own = {host, *_LOOPBACK} if host in (*_LOOPBACK, *_WILDCARDS) else {host}
    for name, upstream in settings.every_upstream.items():
        there, at = upstream.address
        if port != 0 and at == port and there in own:
            section = "upstream" if name == "default" else f"upstreams.{name}"
            raise ConfigError(
                f"{section}.url: {upstream.url} is where Antiphon itself listens (listen: {settings.listen}), so that "
                "each request would ask itself: set the chat server's URL, or another port in listen"
            )


class HeldPort:
    """The sockets of one port on which the workers of the HTTP server accept, each on its own: the kernel distributes
    the connections. The sockets outlive the workers, so the queue of a replaced worker is not lost."""

    def __init__(self, listen: str) -> None:
        self._host, self._port = parse_address(listen)
        self._sockets: list[socket.socket] = []
        self._two = False

    @property
    def address(self) -> str:
        """The bound address."""
        return join_address(self._host, self._port)

    def sockets(self, number: int, workers: int) -> list[socket.socket]:
        """The sockets of worker `number` of `workers`. Each socket has a worker, even if there were more workers
        before."""
        while len(self._sockets) < workers:
            self._sockets.append(self._bind())
        return self._sockets[number::workers]

    def renew(self, number: int, workers: int) -> None:
        """That worker is dead: reset the connections in its queue. (If the parent held its old sockets, clients would
        wait.) If another worker has the same sockets, that one accepts them."""
        if self._two:
            return
        for at in range(number, len(self._sockets), workers):
            former, self._sockets[at] = self._sockets[at], self._bind()
            former.close()

    @contextmanager
    def for_two_generations(self) -> Iterator[None]:
        """While active, the next generation shares the sockets with the former one. If the next one fails, the sockets
        that only it had are closed. The kernel distributes connections to every listening socket, and no worker would
        accept there."""
        before = len(self._sockets)
        self._two = True
        try:
            yield
        except BaseException:
            for one in self._sockets[before:]:
                one.close()
            del self._sockets[before:]
            raise
        finally:
            self._two = False

    def close(self) -> None:
        """Close the sockets here; the workers keep their copies."""
        for one in self._sockets:
            one.close()
        self._sockets = []

    def _bind(self) -> socket.socket:
        bound = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        try:
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind((self._host, self._port))
        except BaseException:
            bound.close()
            raise
        self._port = int(bound.getsockname()[1])
        return bound


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def answers(where: str, seconds: float) -> bool:
    """Whether the listener answers a request; for a wildcard address, over the loopback address."""
    host, port = parse_address(where)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return await ask(join_address(host, port), "/ready", seconds) is not None
