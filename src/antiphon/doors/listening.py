"""Provides shared code for listeners of both servers: socket files, errors for unusable addresses, connection limits.

Lives here: the checks and limits before a server listens. Not here: opening the listeners (`http/listener.py`,
`extproc/server.py`, `supervisor/listen_address.py`), raising the limit of open files (`supervisor/process.py`),
refusing connections and requests (`http/listener.py`, admission). It imports no library, so the parent process can use
it.

Invariants: no process takes over a socket file that another process listens on. Client connections never use the last
file descriptors, which databases, files and the health port need. Without a free descriptor a process cannot answer a
health check, and would count as hung.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
from pathlib import Path
from typing import Final

from antiphon.errors import ConfigError

_RESERVED: Final = 64
"""The descriptors reserved for other uses: databases, files, the process's own sockets."""
_LEAST: Final = 8
_LONGEST_SOCKET_PATH: Final = 107
_WAYS_OUT = {
    errno.EADDRINUSE: "stop what listens there, or choose another address with --listen (port 0: any free port)",
    errno.EACCES: "a port below 1024 needs a special privilege: choose a higher one with --listen",
    errno.EADDRNOTAVAIL: "this machine has no such address: choose one that it has, or 0.0.0.0 for all, with --listen",
}


def why_not(error: OSError) -> str:
    """The system's reason for the failure, and advice."""
    # Resolver errors have their own numbers, and a socket path that is too long has none.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else str(error)
    return f"{reason}; {_WAYS_OUT[number]}" if number in _WAYS_OUT else reason


def make_room(path: Path) -> None:
    """Remove the socket file of a dead process. Raises `ConfigError` for one that is in use."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"unix:{path} is longer than {_LONGEST_SOCKET_PATH} bytes: use a shorter path (or data folder)"
        )
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"unix:{path} exists and is no socket")
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
            # Its queue is full (EAGAIN), or access is denied: a process listens there.
            pass
    raise ConfigError(f"unix:{path} is in use: is another instance running?")


def max_at_once(files: int) -> int:
    """The maximum of client connections for this number of open files: each may need a second file for an upstream."""
    return max((files - _RESERVED) // 2, _LEAST)


def max_connections(*, raised: bool = False, limits: tuple[int, int] | None = None) -> int:
    """The maximum of client connections. `raised`: for a process that raises its limit of open files to the maximum."""
    now, limit = limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    files = limit if raised else now
    return max_at_once(1 << 20 if files == resource.RLIM_INFINITY else files)


def max_requests(wanted: int, *, raised: bool = False, limits: tuple[int, int] | None = None) -> int:
    """The wanted number of requests in flight, limited by the open files: each may need a connection to an upstream."""
    return min(wanted, max_connections(raised=raised, limits=limits))
