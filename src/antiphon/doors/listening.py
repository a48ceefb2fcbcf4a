"""Prepares the listeners of both servers: socket files, TLS contexts, errors for unusable addresses, connection limits.

This module has the checks and limits that apply before a server listens, and the TLS contexts of the sidecar's own TCP
ports. `http/listener.py`, `extproc/server.py` and `supervisor/listen_address.py` open the listeners, and
`supervisor/process.py` raises the limit of open files. `http/listener.py` refuses connections, and `doors/context.py`
refuses requests. `envoy/clusters.py` configures TLS for Envoy, the client of the sidecar's ports. This module imports
only the standard library, so the parent process can load it cheaply.

Invariants: no process takes over a socket file that another process listens on. Client connections never use the last
file descriptors, which databases, files and the health port need. A process without a free descriptor cannot answer a
health check, so the supervisor would treat it as hung. Unusable TLS files raise `ConfigError` before a server listens.
If `client_ca` is set, the handshake fails for a client without a certificate from this CA.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from antiphon.errors import ConfigError

_RESERVED: Final = 64
"""The number of file descriptors that client connections must leave free for databases, files and the process's own
sockets."""
_LEAST: Final = 8
_LONGEST_SOCKET_PATH: Final = 107
_WAYS_OUT = {
    errno.EADDRINUSE: (
        "stop the process that listens there, or choose another address with --listen (port 0: any free port)"
    ),
    errno.EACCES: "a port below 1024 needs a special privilege: choose a higher one with --listen",
    errno.EADDRNOTAVAIL: (
        "this machine has no such address: choose one of its addresses, or 0.0.0.0 for all, with --listen"
    ),
}


def why_not(error: OSError) -> str:
    """The operating system's reason for the failed bind, followed by advice for the common errors."""
    # Resolver errors have numbers that `os.strerror` does not know, and a too long socket path has no number.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else str(error)
    return f"{reason}; {_WAYS_OUT[number]}" if number in _WAYS_OUT else reason


def make_room(path: Path) -> None:
    """Remove the socket file that a dead process left at `path`. Raises `ConfigError` when a process still listens on
    the socket, when the path is too long, or when the file is not a socket."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"unix:{path} is longer than {_LONGEST_SOCKET_PATH} bytes: use a shorter path (or data folder)"
        )
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(
                f"unix:{path}: the file exists and is not a socket. Delete the file, or choose another path"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:
            # The queue of the listener is full (EAGAIN), or access is denied. In both cases a process still listens on
            # the socket, so the file must stay.
            pass
    raise ConfigError(f"unix:{path} is in use: is another instance running?")


def max_at_once(files: int) -> int:
    """The maximum number of client connections for a limit of `files` open files. Each client connection may need a
    second descriptor for its upstream connection."""
    return max((files - _RESERVED) // 2, _LEAST)


def max_connections(*, raised: bool = False, limits: tuple[int, int] | None = None) -> int:
    """The maximum number of client connections in this process. `raised` is True for a process that raises its soft
    limit of open files to the hard limit. `limits` replaces the soft and hard limit of the system."""
    now, limit = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    files = limit if raised else now
    return max_at_once(1 << 20 if files == resource.RLIM_INFINITY else files)


def max_requests(wanted: int, *, raised: bool = False, limits: tuple[int, int] | None = None) -> int:
    """The configured number of requests in flight, reduced to what the limit of open files allows. Each request may
    need a separate connection to an upstream."""
    return min(wanted, max_connections(raised=raised, limits=limits))


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The paths of PEM files: the server certificate with its chain, the private key, and the CA that signs client
    certificates. If `client_ca` is None, the server asks for no client certificate."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def context(self, protocol: str) -> ssl.SSLContext:
        """Build the server's TLS context for one ALPN protocol (`h2` or `http/1.1`). Raises `ConfigError`."""
        check_readable("sidecar.tls.cert", self.cert)
        check_readable("sidecar.tls.key", self.key)
        if self.client_ca is not None:
            check_readable("sidecar.tls.client_ca", self.client_ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([protocol])
        try:
            # The empty password prevents a prompt on the terminal. With an encrypted key the call fails instead.
            context.load_cert_chain(self.cert, self.key, password=b"")
        except (OSError, ssl.SSLError, ValueError) as error:
            what = f"sidecar.tls.cert ({self.cert}) and sidecar.tls.key ({self.key})"
            raise ConfigError(f"{what} cannot be used together: {error}") from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise ConfigError(f"sidecar.tls.client_ca: {self.client_ca} cannot be used: {error}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def contents(self) -> tuple[bytes, bytes, bytes | None]:
        """The bytes of the certificate file, the key file and the CA file, after a check that they can be used
        together. Raises `ConfigError`."""
        self.context("h2")
        return self.cert.read_bytes(), self.key.read_bytes(), self.client_ca.read_bytes() if self.client_ca else None


def check_readable(setting: str, file: Path) -> None:
    """Raise `ConfigError` when the file is missing or unreadable. The error names the setting and the file."""
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{setting}: {file} cannot be read: {error.strerror}") from None
