"""Notifies the service manager (systemd, `Type=notify`) of readiness, reloads and the end.

This module sends the datagram of sd_notify(3). `process.py`, `changed_settings.py` and the commands that serve decide
when to send the datagram.

Invariants: if the environment has no `NOTIFY_SOCKET`, the module sends nothing. Sending never waits and never raises.
If the service manager is unreachable, the log has one line, and the manager applies its own timeout.
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
    """Notify the service manager of this state, if there is a service manager. After `RELOADING=1` the caller must send
    `READY=1`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A name with `@` is an abstract socket, whose real name begins with a null byte. No environment variable can
    # contain that byte.
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
    # A manager with `Type=notify-reload` uses this field to distinguish this reload from an earlier one.
    return f"{state}\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
