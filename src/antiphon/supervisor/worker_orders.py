"""Sends orders from `antiphon up` to a running worker, over a socket.

The socket is the worker's standard input, and this module implements both ends of it. `generation.py` sends the orders.
The order `STREAM_ENDED` contains a log line of Envoy, which reports whether the client or the upstream ended a stream
early. The sidecar that served the stream logs this, but the parent process does not know which sidecar that is. So it
sends the order to all sidecars. The order `PATH_UNKNOWN` tells one sidecar that Envoy refused a request to an unknown
path, so that the sidecar's journal has the refusal. `envoy_reports.py` handles both orders in the sidecar, and
`envoy/failures.py` configures both log lines in Envoy. The parent process imports this module, but not
`envoy_reports.py`, which imports the telemetry of a serving process.

At a stop, Envoy must end before its sidecars. Otherwise Envoy could not reach a sidecar for a request on an open
connection. So the order `OUTLIVE_ENVOY` makes a sidecar stay until the order `ENVOY_ENDED`.

Invariants: no other process can send orders to a worker. The parent process sends a worker at most one order at a time
that requires an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from antiphon.envoy.routes import UNKNOWN_URL
from antiphon.types.transport import ENDED_EARLY


class Orders:
    """The parent process's end of the socket to one child."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)

    def started(self) -> None:
        """Close the child's end of the socket in the parent process, after the child has inherited it."""
        self.theirs.close()

    async def give(self, do: str, seconds: float) -> None:
        """Send an order and wait for the child's answer. Raises `TimeoutError` after `seconds`, and `ConnectionError`
        if the child has ended."""
        self.tell({"do": do, "answer": True})
        async with asyncio.timeout(seconds):
            if not await asyncio.get_running_loop().sock_recv(self._ours, 1):
                raise ConnectionResetError("the worker has ended")

    def tell(self, said: dict[str, object]) -> None:
        """Send a message without waiting for an answer. If the child has ended or does not read its orders, the message
        is lost."""
        # The kernel writes a message this short completely or not at all.
        with contextlib.suppress(OSError):
            self._ours.send(json.dumps(said).encode() + b"\n")

    def close(self) -> None:
        """Close the socket, because the child has ended."""
        self._ours.close()


def own_end() -> socket.socket | None:
    """Return the worker's end of the socket, or None if standard input is not a socket. The function replaces standard
    input with `/dev/null`, so that child processes of the worker cannot read orders."""
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        return None
    ours = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return ours


Obey = Mapping[str, Callable[[dict[str, object]], object]]
"""The handler of each order, by the order's name."""


@asynccontextmanager
async def obeying(ours: socket.socket | None, obey: Obey) -> AsyncIterator[None]:
    """While the block runs, handle the orders that arrive on the socket `ours`. If `ours` is None, do nothing."""
    task = asyncio.ensure_future(take_orders(ours, obey)) if ours is not None else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})


async def take_orders(ours: socket.socket, obey: Obey) -> None:
    """Handle the orders one after another, until the parent process closes its end of the socket."""
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        while line := await reader.readline():
            order = json.loads(line)
            obey[order["do"]](order)
            if "answer" in order:
                writer.write(b"\n")
    except ConnectionError:
        # The parent has ended. The worker also notices the parent's end by the parent pipe.
        pass
    finally:
        writer.close()


OUTLIVE_ENVOY = "outlive_envoy"
"""The order before a stop of the whole gateway. While the sidecar drains, Envoy must not consider it unhealthy. After
the drain, the sidecar answers requests until the order `ENVOY_ENDED`."""
ENVOY_ENDED = "envoy_ended"
"""The order after Envoy has ended. The sidecar then closes its servers and ends."""


async def outlive_envoy(sidecars: Iterable[Orders], seconds: float) -> None:
    """Give the sidecars the order `OUTLIVE_ENVOY`, and wait at most `seconds` for their answers."""

    async def give(sidecar: Orders) -> None:
        # A sidecar that hangs or has ended cannot outlive Envoy.
        with contextlib.suppress(OSError):
            await sidecar.give(OUTLIVE_ENVOY, seconds)

    await asyncio.gather(*map(give, sidecars))


STREAM_ENDED = "stream_ended"
"""The order with Envoy's log line about a stream that ended early."""
_MARK = f'"{ENDED_EARLY}"'


def pass_on_early_end(line: str, sidecars: Iterable[Orders]) -> bool:
    """If `line` is Envoy's log line about a stream that ended early, send it to the sidecars. If Envoy does not know
    whether the client or the upstream ended the stream, send nothing. Returns whether the function sent the line. The
    caller logs a line that was not sent."""
    if _MARK not in line:
        return False
    try:
        said = json.loads(line)
        if said["message"] != ENDED_EARLY or said["fault"] == "unknown":
            return False
        end = [said["fault"] == "cancelled", said["details"], said["status"]]
        order = {"do": STREAM_ENDED, "request_id": said["request_id"], "end": end}
    except (ValueError, KeyError):
        return False
    for sidecar in sidecars:
        sidecar.tell(order)
    return True


PATH_UNKNOWN = "path_unknown"
"""The order with Envoy's log line about a request to an unknown path."""
_UNKNOWN_MARK = f'"{UNKNOWN_URL}"'


def pass_on_unknown_path(line: str, sidecars: Sequence[Orders]) -> None:
    """If `line` is Envoy's log line about a request to an unknown path, send it to one sidecar."""
    if not sidecars or _UNKNOWN_MARK not in line:
        return
    try:
        said = json.loads(line)
        if said["code"] == UNKNOWN_URL and said["door"] == "envoy":
            order = {"do": PATH_UNKNOWN, **{name: said.get(name, "") for name in ("request_id", "method", "path")}}
            sidecars[0].tell({**order, "status": said["status"]})
    except (ValueError, KeyError, TypeError):
        return


def pass_on_line(line: str, sidecars: Sequence[Orders]) -> bool:
    """If `line` is one of Envoy's log lines that sidecars need, send it to them. Returns whether the sidecars log the
    event instead of the caller."""
    pass_on_unknown_path(line, sidecars)
    return pass_on_early_end(line, sidecars)
