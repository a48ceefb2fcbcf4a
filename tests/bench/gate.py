"""`scripts/bench --gate`: what a chunk and a request may cost, as ratios to the echo path. A few seconds.

Lives here: both paths in one process without sockets, and the bounds. Not here: real processes (`run.py`).

Messages as Envoy sends them go straight into the processor, and what it sends is dropped. The echo is the one of the
benchmark: it decodes each message and sends it back. CPU time of rounds that take turns, and the least of each: who
else uses the machine makes every round dearer (it shares the caches), never cheaper, and the longer path more than the
shorter one. The bounds leave room for different machines; what exceeds them is a new cost.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from antiphon.app.build import build
from antiphon.commands.collecting import keep_what_there_is
from antiphon.config.limits import LimitSettings
from antiphon.config.settings import Settings
from antiphon.doors.context import DoorContext
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.ahead import Ahead
from antiphon.doors.extproc.stream import ProcessorOptions, serve_stream
from antiphon.doors.extproc.transport import Presented, StreamClosed
from antiphon.observability.logs import configure
from tests.bench.echo import Echo
from tests.bench.upstream import completion, stream_events

CHUNKS = 400
_STREAMS = 12
_REQUESTS = 200
_ROUNDS = 15

CHUNK_BOUND = 7.0
"""Of the relay's CPU time for a chunk to the echo's for a message."""
REQUEST_BOUND = 15.0
"""Of the relay's CPU time for a small JSON request, all its messages together, to the echo's."""


@dataclass
class _Messages:
    """A `MessageStream` of messages made in advance; ends when all were taken. Like Envoy, it waits for nothing."""

    messages: list[bytes]
    at: int = 0
    sent: int = 0
    size: int = 0
    last: bytes = field(default=b"", repr=False)

    async def receive(self) -> bytes | None:
        if self.at == len(self.messages):
            return None
        self.at += 1
        return self.messages[self.at - 1]

    async def begin(self) -> None:
        pass

    async def send(self, message: bytes) -> None:
        if self.at > len(self.messages):
            raise StreamClosed("gone")
        self.sent += 1
        self.size += len(message)
        self.last = message


def _headers(target: pb.HttpHeaders, pairs: Sequence[tuple[str, str]]) -> None:
    for name, value in pairs:
        header = target.headers.headers.add()
        header.key, header.raw_value = name, value.encode()


def _conversation(body: bytes, head: Sequence[tuple[str, str]], parts: Sequence[bytes]) -> list[bytes]:
    """All Envoy says in one exchange."""
    duplex = pb.ProcessingMode.FULL_DUPLEX_STREAMED
    first = pb.ProcessingRequest()
    first.protocol_config.request_body_mode = duplex
    first.protocol_config.response_body_mode = duplex
    _headers(
        first.request_headers,
        (
            (":authority", "127.0.0.1:10000"),
            (":path", "/v1/responses"),
            (":method", "POST"),
            (":scheme", "http"),
            ("content-type", "application/json"),
            ("authorization", "Bearer bench"),
            ("content-length", str(len(body))),
            ("x-forwarded-proto", "http"),
            ("x-request-id", "0c1f6a0e-8f6c-4a7e-9d0c-0f5f3a7b2c11"),
        ),
    )
    request = pb.ProcessingRequest()
    request.request_body.body = body
    request.request_body.end_of_stream = True
    answer = pb.ProcessingRequest()
    _headers(answer.response_headers, ((":status", "200"), *head, ("x-envoy-upstream-service-time", "1")))
    messages = [first, request, answer]
    for part in parts:
        message = pb.ProcessingRequest()
        message.response_body.body = part
        messages.append(message)
    messages[-1].response_body.end_of_stream = True
    # Envoy 1.40 appends an empty metadata_context to every message.
    return [message.SerializeToString() + b"\x42\x00" for message in messages]


class Paths:
    """Both paths over the same messages."""

    def __init__(self, context: DoorContext) -> None:
        self._context = context
        self._options = ProcessorOptions(always_drive=False, ahead=Ahead(LimitSettings(), time.monotonic))
        stream = b'{"model":"m","input":"Say something.","stream":true,"store":false}'
        short = b'{"model":"m","input":"Say something.","store":false}'
        self.stream = _conversation(stream, (("content-type", "text/event-stream"),), stream_events(CHUNKS))
        self.short = _conversation(short, (("content-type", "application/json"),), [completion()])

    async def relay(self, messages: list[bytes], events: int) -> None:
        """Through the processor."""
        stream = _Messages(messages)
        await serve_stream(self._context, stream, self._options)
        if stream.sent < events or len(stream.last) > 4096 + stream.size // 2:
            raise SystemExit(f"bench: the relay sent {stream.sent} messages")

    async def echo(self, messages: list[bytes], events: int) -> None:
        """Through the no-op."""
        stream = _Messages(messages)
        await Echo().process(stream, Presented(None))
        if stream.sent != len(messages):
            raise SystemExit(f"bench: the echo sent {stream.sent} messages")

    async def measure(self) -> dict[str, float]:
        """CPU microseconds: of a chunk and of a request, through the relay and the echo."""
        samples: dict[str, list[float]] = {}
        for number in range(_ROUNDS + 1):
            for kind, messages, times, per in (
                ("chunk", self.stream, _STREAMS, CHUNKS),
                ("request", self.short, _REQUESTS, 1),
            ):
                for name, path in (("relay", self.relay), ("echo", self.echo)):
                    gc.collect()
                    started = time.process_time()
                    for _ in range(times):
                        await path(messages, per)
                    self._context.telemetry.endings.tell()
                    spent = (time.process_time() - started) / (times * per) * 1e6
                    if number:
                        samples.setdefault(f"{kind} {name}", []).append(spent)
        return {name: min(values) for name, values in samples.items()}


async def _measure() -> dict[str, float]:
    with TemporaryDirectory(prefix="antiphon-gate-") as folder:
        app = await build(Settings.model_validate({"data": str(Path(folder) / "data")}), door="envoy")
        try:
            keep_what_there_is()
            app.context.telemetry.endings.by_time(asyncio.get_running_loop())
            return await Paths(app.context).measure()
        finally:
            await app.aclose()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both ratios; the exit status is 1 when one exceeds its bound."""
    parser = argparse.ArgumentParser(prog="scripts/bench --gate", description="What a chunk and a request may cost.")
    parser.parse_args(arguments)
    configure("error", "json")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        cost = runner.run(_measure())
    status = 0
    for kind, bound in (("chunk", CHUNK_BOUND), ("request", REQUEST_BOUND)):
        ours, echo = cost[f"{kind} relay"], cost[f"{kind} echo"]
        verdict = "good" if ours / echo <= bound else "TOO MUCH"
        status |= verdict != "good"
        said = f"{ours:.1f} µs, echo {echo:.1f} µs: {ours / echo:.1f}x (at most {bound:g}x)"
        print(f"gate: CPU per {kind}: {said} {verdict}")
    return status


if __name__ == "__main__":
    sys.exit(main())
