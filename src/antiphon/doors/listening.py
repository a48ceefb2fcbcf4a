"""Explains to an operator why a process cannot listen on an address.

Lives here: the messages. Not here: opening the listeners (`http/listener.py`, `commands/listen_address.py`). It imports
no library, so the parent process can use it.
"""

from __future__ import annotations

import errno
import os

_WAYS_OUT = {
    errno.EADDRINUSE: "stop what listens there, or choose another address with --listen (port 0: any free port)",
    errno.EACCES: "a port below 1024 needs a special privilege: choose a higher one with --listen",
    errno.EADDRNOTAVAIL: "this machine has no such address: choose one of its own, or 0.0.0.0 for all, with --listen",
}


def why_not(error: OSError) -> str:
    """The system's reason, and what to do about it."""
    # Resolver errors have numbers of their own, and a socket path that is too long has none.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else str(error)
    return f"{reason}; {_WAYS_OUT[number]}" if number in _WAYS_OUT else reason
