"""Runs an external processor that changes nothing, to measure the cost of ext_proc itself.

Lives here: a gRPC server on Antiphon's transports that does the minimum work for a message. Of Antiphon it uses only
the transports and the wire format. Run as `python -m lab.bench.echo SOCKET TRANSPORT`.

Invariant: Envoy gets each message back unchanged.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from antiphon.doors.extproc import wire
from antiphon.doors.extproc.received import MessageKind
from antiphon.doors.extproc.server import TransportName, open_transport
from antiphon.doors.extproc.transport import CallFailed, MessageStream, Presented


def _echo(message: bytes) -> bytes:
    received = wire.decode(message)
    match received.kind:
        case MessageKind.RESPONSE_BODY:
            return wire.response_body(received.body, received.end)
        case MessageKind.REQUEST_BODY:
            return wire.request_body(received.body, received.end)
        case MessageKind.REQUEST_HEADERS:
            return wire.request_head((), ())
        case MessageKind.RESPONSE_HEADERS:
            return wire.response_head((), ())
    return wire.response_trailers()


class Echo:
    """The `Calls` of a service that returns every message unchanged."""

    async def process(self, stream: MessageStream, presented: Presented) -> None:
        while (message := await stream.receive()) is not None:
            await stream.send(_echo(message))

    def refusal(self, presented: Presented) -> CallFailed | None:
        return None

    def check(self, message: bytes) -> bytes:
        return b""

    async def standard(self, path: str, stream: MessageStream) -> None:
        """Answer no other gRPC services, because the benchmark measures only the processor."""


async def _serve(path: str, transport: TransportName) -> None:
    server = open_transport(transport, Echo())
    await server.listen(f"unix:{path}")
    print("ready: 0", flush=True)
    # The parent holds the other end of standard input, so this process ends with its parent.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.aclose(grace=0.1)


def main() -> None:
    """Serve until standard input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1], cast(TransportName, sys.argv[2])))


if __name__ == "__main__":
    main()
