"""Notifies the service manager (systemd, `Type=notify`) of readiness, reloads and the end.

Lives here: the one datagram of sd_notify(3). Not here: when it is sent (`process.py`, `changed_settings.py` and the
commands that serve).

Invariants: without a service manager that requests it (`NOTIFY_SOCKET`), nothing happens. Sending never waits and never
fails for the caller. If the manager is unreachable, the log has one line, and the manager's own timeout decides.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Literal

import structlog

_log = structlog.get_logger(__name__)

State = Literal["READY=1", "RELOADING=1", "STOPPING=1"]


def tell(state: State) -> None:
    """Notify the service manager, if there is one. `RELOADING=1` holds until the next `READY=1`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # An abstract name begins with a null byte, which no environment variable can contain.
    place = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.setblocking(False)
            sending.connect(place)
            sending.send(_message(state).encode())
    except (OSError, ValueError) as error:
        _log.warning("service_manager_not_told", state=state, cause=str(error))


def _message(state: State) -> str:
    if state != "RELOADING=1":
        return state
    # With this field, a manager that requested a reload (`Type=notify-reload`) distinguishes it from an earlier one.
    return f"{state}\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
