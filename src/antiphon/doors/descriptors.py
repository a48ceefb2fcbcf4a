"""How many connections and requests there may be at once, by the limit of open files.

Lives here: the sharing out. Not here: raising the limit (`commands/process.py`), refusing
(`http/listener.py`, admission).

Invariant: what is let in never takes the last descriptors: those of databases, files and the port on which this
process is asked whether it lives. A process without any could not answer, and would be taken for hung.
"""

from __future__ import annotations

import resource
from typing import Final

_RESERVED: Final = 64
"""What a process needs besides: databases, files, its own sockets."""
_LEAST: Final = 8


def max_at_once(files: int) -> int:
    """For so many open files: each connection of a client may need one more towards an upstream."""
    return max((files - _RESERVED) // 2, _LEAST)


def max_connections(*, raised: bool = False) -> int:
    """How many of clients there may be at once; `raised`: in a process that raises its limit as far as it may."""
    now, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = limit if raised else now
    return max_at_once(1 << 20 if files == resource.RLIM_INFINITY else files)


def max_requests(wanted: int, *, raised: bool = False) -> int:
    """How many of the wanted number can be in flight: each may have a connection to an upstream."""
    return min(wanted, max_connections(raised=raised))
