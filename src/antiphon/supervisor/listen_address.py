"""Checks and probes the address at which clients connect, and keeps its sockets open.

This module also holds the sockets of the HTTP server for all workers. `generation.py` starts the processes that listen,
and the package `config` parses addresses.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.doors.listening import why_not
from antiphon.errors import ConfigError
from antiphon.supervisor.http_probe import ask

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WILDCARDS = ("0.0.0.0", "::")


def free_address(listen: str, setting: str = "listen") -> str:
    """Return the address in numeric form. Raises `ConfigError`, which names the setting, if no process can listen on
    the address.

    The parent checks the address itself, because Envoy silently shares a port with another listener and cannot resolve
    names.
    """
    host, port = parse_address(listen)
    if host == "unix":
        raise ConfigError(f"{setting}: {listen} is not HOST:PORT")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        reason = why_not(error)
        reason = reason if setting == "listen" else reason.replace("--listen", setting)
        raise ConfigError(f"{setting}: cannot listen on {listen}: {reason}") from None
    return join_address(str(where[0]), port)


def refuse_own_upstream(settings: Settings) -> None:
    """Raise `ConfigError` when an upstream has the address at which clients connect. With such an upstream each request
    would call Antiphon itself."""
    host, port = parse_address(settings.listen)
    own = {host, *_LOOPBACK} if host in (*_LOOPBACK, *_WILDCARDS) else {host}
    for name, upstream in settings.every_upstream.items():
        there, at = upstream.address
        if port != 0 and at == port and there in own:
            section = "upstream" if name == "default" else f"upstreams.{name}"
            raise ConfigError(
                f"{section}.url: {upstream.url} is the address at which Antiphon itself listens (listen: "
                f"{settings.listen}), so Antiphon would call itself. Set {section}.url to the chat server's URL, or "
                "choose another port in listen"
            )


class HeldPort:
    """Holds the sockets of the HTTP server's port. Each worker accepts connections on separate sockets, and the kernel
    distributes the connections among the sockets. The sockets outlive the workers, so the queue of a replaced worker is
    not lost."""

    def __init__(self, listen: str) -> None:
        self._host, self._port = parse_address(listen)
        self._sockets: list[socket.socket] = []
        self._two = False

    @property
    def address(self) -> str:
        """The address at which clients connect, with the bound port."""
        return join_address(self._host, self._port)

    def sockets(self, number: int, workers: int) -> list[socket.socket]:
        """Return the sockets of worker `number` of `workers`. Every socket belongs to a worker, even if there were more
        workers before."""
        while len(self._sockets) < workers:
            self._sockets.append(self._bind())
        return self._sockets[number::workers]

    def renew(self, number: int, workers: int) -> None:
        """Replace the sockets of a dead worker. Closing the old sockets resets the connections that wait in the
        sockets' queues. Otherwise the clients of these connections would wait. During a handover no socket is replaced,
        because a worker of the other generation accepts the connections."""
        if self._two:
            return
        for at in range(number, len(self._sockets), workers):
            former, self._sockets[at] = self._sockets[at], self._bind()
            former.close()

    @contextmanager
    def for_two_generations(self) -> Iterator[None]:
        """While the block runs, two generations share the sockets. If the next generation fails, the parent closes the
        sockets that only the next generation had. The kernel would distribute connections to such sockets, but no
        worker would accept these connections."""
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
        """Close the sockets in this process. The workers keep their copies."""
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


SocketFlags = Mapping[str, list[socket.socket]]
"""The sockets that a worker inherits, by the flag that passes them."""


def inherited(sockets: SocketFlags) -> list[str]:
    """Return the command-line arguments that pass these sockets to a worker."""
    return [word for flag, some in sockets.items() for word in (flag, ",".join(str(one.fileno()) for one in some))]


class HeldPorts:
    """Holds the ports of the HTTP server: the one for clients, and the one of the console if it is enabled."""

    def __init__(self, listen: str, console: str | None) -> None:
        self.clients = HeldPort(listen)
        self.console = HeldPort(console) if console is not None else None
        self._all = {"--sockets": self.clients, **({"--console-sockets": self.console} if self.console else {})}

    def of_worker(self, number: int, workers: int) -> SocketFlags:
        """Return the sockets of worker `number` of `workers`, by the flag that passes them."""
        return {flag: port.sockets(number, workers) for flag, port in self._all.items()}

    def renew(self, number: int, workers: int) -> None:
        """See `HeldPort.renew`."""
        for port in self._all.values():
            port.renew(number, workers)

    @contextmanager
    def for_two_generations(self) -> Iterator[None]:
        """See `HeldPort.for_two_generations`."""
        with ExitStack() as held:
            for port in self._all.values():
                held.enter_context(port.for_two_generations())
            yield

    def close(self) -> None:
        """See `HeldPort.close`."""
        for port in self._all.values():
            port.close()


def at_addresses(settings: Settings, listen: str, console: str | None) -> Settings:
    """Return the settings with these addresses of the listeners for clients and for the console. The addresses have
    numeric hosts, and real ports in place of port 0."""
    at = settings.console if console is None else settings.console.model_copy(update={"listen": console})
    return settings.model_copy(update={"listen": listen, "console": at})


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def answers(where: str, seconds: float) -> bool:
    """Whether the listener answers a request within `seconds`. The probe reaches a wildcard address over the loopback
    address."""
    host, port = parse_address(where)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return await ask(join_address(host, port), "/ready", seconds) is not None
