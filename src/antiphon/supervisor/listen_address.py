"""Checks, probes and holds the address at which clients connect.

Lives here: asking the system and the address itself, and the sockets of the HTTP door. Not here: who listens there
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
    """The address as numbers, if it can be listened on.

    Asked here, since Envoy shares a port with whoever else listens on it without a word, and knows no names.
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
    """Raise `ConfigError` when an upstream is the address at which clients connect: each request would ask itself."""
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
    """The sockets of one port at which the workers of the HTTP door accept, each at its own: the kernel deals out
    connections. They outlive the workers, so that what waits in the queue of one that is replaced is not lost."""

    def __init__(self, listen: str) -> None:
        self._host, self._port = parse_address(listen)
        self._sockets: list[socket.socket] = []
        self._two = False

    @property
    def address(self) -> str:
        """Where they are bound."""
        return join_address(self._host, self._port)

    def sockets(self, number: int, workers: int) -> list[socket.socket]:
        """The sockets of worker `number` of `workers`: each socket has a worker, also where there were more before."""
        while len(self._sockets) < workers:
            self._sockets.append(self._bind())
        return self._sockets[number::workers]

    def renew(self, number: int, workers: int) -> None:
        """That worker is dead: turn away what waits for it. (With its old sockets held, clients would wait.) Where
        another one has the same sockets, that one accepts what waits."""
        if self._two:
            return
        for at in range(number, len(self._sockets), workers):
            former, self._sockets[at] = self._sockets[at], self._bind()
            former.close()

    @contextmanager
    def for_two_generations(self) -> Iterator[None]:
        """While this lasts, the next generation has the sockets beside the former one. When it fails, those that only
        it had are closed: the kernel deals out connections to each that listens, and no worker would accept there."""
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
        """Close them here; the workers keep their copies."""
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
    """Whether a request through the listener is answered; a wildcard address is asked on this machine."""
    host, port = parse_address(where)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return await ask(join_address(host, port), "/ready", seconds) is not None
