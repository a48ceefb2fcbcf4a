"""An external processor that changes nothing: what ext_proc itself costs. `python -m tests.bench.echo SOCKET`.

Lives here: the same server as Antiphon's (`grpc.aio` on uvloop, bytes in and out), with the least an ext_proc service
can do for a message. Not here: anything of Antiphon but the wire format.

Invariant: what Envoy sends is what it gets back, message by message.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import grpc.aio
import uvloop

from antiphon.doors.extproc import wire
from antiphon.doors.extproc.server import SERVICE

__all__ = ["main"]


def _echo(message: bytes) -> bytes:
    received = wire.decode(message)
    match received.kind:
        case wire.Kind.RESPONSE_BODY:
            return wire.response_body(received.body, received.end)
        case wire.Kind.REQUEST_BODY:
            return wire.request_body(received.body, received.end)
        case wire.Kind.REQUEST_HEADERS:
            return wire.request_head((), ())
        case wire.Kind.RESPONSE_HEADERS:
            return wire.response_head((), ())
        case wire.Kind.REQUEST_TRAILERS:
            return wire.request_trailers()
    return wire.response_trailers()


async def _process(_request: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        await context.write(_echo(message))


async def _serve(path: str) -> None:
    server = grpc.aio.server(options=(("grpc.max_concurrent_streams", 100_000),))
    handler = grpc.stream_stream_rpc_method_handler(_process)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    print("ready: 0", flush=True)
    # The parent holds the other end: its end is ours.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(grace=0.1)


def main() -> None:
    """Serve until standard input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1]))


if __name__ == "__main__":
    main()
