"""Checks and probes the address at which clients connect, and keeps the listening sockets of the HTTP server open.

`generation.py` starts the processes that listen, and the package `config` parses addresses.
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
    """Return the address in numeric form. Raises `ConfigError`, which names the setting, if Antiphon cannot listen on
    the address.

    The parent process checks the address, because Envoy cannot resolve host names. Envoy would also share the port with
    another program without an error.
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
    """Raise `ConfigError` when an upstream has Antiphon's own address, because Antiphon would then call itself for each
    request."""
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
    """Keeps the listening sockets of one HTTP port open in the parent process. Each worker accepts connections on its
    own sockets, and the kernel distributes new connections among all sockets. When a worker is replaced, its sockets
    stay open, so no waiting connection is lost."""

    def __init__(self, listen: str) -> None:
        self._host, self._port = parse_address(listen)
        self._sockets: list[socket.socket] = []
        self._two = False

    @property
    def address(self) -> str:
        """The address at which clients connect, with the actual port in place of port 0."""
        return join_address(self._host, self._port)

    def sockets(self, number: int, workers: int) -> list[socket.socket]:
        """Return the sockets for the worker `number`, if there are `workers` workers. If there were more workers
        before, their sockets are distributed among the present workers."""
        while len(self._sockets) < workers:
            self._sockets.append(self._bind())
        return self._sockets[number::workers]

    def renew(self, number: int, workers: int) -> None:
        """Replace the sockets of a dead worker. This resets the connections that wait in the old sockets' queues, so
        that their clients do not wait for the next worker. During a handover between two generations, the method
        replaces no socket, because a worker of the other generation accepts these connections."""
        if self._two:
            return
        for at in range(number, len(self._sockets), workers):
            former, self._sockets[at] = self._sockets[at], self._bind()
            former.close()

    @contextmanager
    def for_two_generations(self) -> Iterator[None]:
        """While the block runs, two generations share the sockets. If the next generation fails, close the sockets that
        only the next generation used. No worker would accept the connections that the kernel assigns to these
        sockets."""
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
        """Close the sockets in the parent process. The workers keep their copies open."""
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
"""The sockets that a worker inherits, by command-line flag (`--sockets`, `--console-sockets`)."""


def inherited(sockets: SocketFlags) -> list[str]:
    """Return the command-line flags with the file descriptors of these sockets."""
    return [word for flag, some in sockets.items() for word in (flag, ",".join(str(one.fileno()) for one in some))]


class HeldPorts:
    """Keeps the HTTP server's ports open: the port for clients, and the console's port if the console is enabled."""

    def __init__(self, listen: str, console: str | None) -> None:
        self.clients = HeldPort(listen)
        self.console = HeldPort(console) if console is not None else None
        self._all = {"--sockets": self.clients, **({"--console-sockets": self.console} if self.console else {})}

    def of_worker(self, number: int, workers: int) -> SocketFlags:
        """Return the sockets for the worker `number`, if there are `workers` workers, by command-line flag."""
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
    """Return the settings with the actual addresses of the listeners for clients and for the console: with numeric
    hosts, and without port 0."""
    at = settings.console if console is None else settings.console.model_copy(update={"listen": console})
    return settings.model_copy(update={"listen": listen, "console": at})


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def answers(where: str, seconds: float) -> bool:
    """Whether the listener at the address `where` answers a request within `seconds`. For a wildcard address such as
    `0.0.0.0`, the probe uses the loopback address."""
    host, port = parse_address(where)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return await ask(join_address(host, port), "/ready", seconds) is not None
