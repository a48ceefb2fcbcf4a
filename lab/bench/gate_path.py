"""Feeds Envoy's messages directly into the processor, in one process and without a socket.

Lives here: the messages, and the relay and the echo that process them. Not here: counting (`gate_instructions.py`,
`gate_time.py`), limits (`gate.py`).

The processor gets messages in Envoy's form, and the caller discards the processor's output. The echo is the benchmark's
no-op (`echo.py`), which decodes each message and sends it back.

Invariant: a path depends on no clock; the caller triggers the reports of ended responses.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import msgspec

from antiphon.app.build import build
from antiphon.config.limits import LimitSettings
from antiphon.config.settings import load_settings
from antiphon.doors.context import DoorContext
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.answers import Accounting
from antiphon.doors.extproc.fast_codec import RESPONSE_BODY
from antiphon.doors.extproc.immediate_response import Ahead
from antiphon.doors.extproc.stream import ProcessorOptions, serve_stream
from antiphon.doors.extproc.transport import Presented, StreamClosed
from antiphon.supervisor.process import keep_what_there_is
from lab.bench.echo import Echo
from lab.bench.upstream import completion, stream_events
from lab.bench.variants import RESPONSES

CHUNKS = 400
CROWD = 64
"""The number of chunks in one message. A busy Envoy joins chunks like this."""
_STREAM = b'{"model":"m","input":"Say something.","stream":true,"store":false}'
_LATER = 3600.0
_LONG = 100_000
_LEAST_EVENT = 100
_RESPONSE_ID = re.compile(rb"resp_[0-9a-f]{8,}")
# Envoy forwards a long body in parts.
_PART = 32_768


@dataclass
class _Messages:
    """A `MessageStream` of prepared messages, which ends after the last one. Like a busy Envoy, the stream never waits
    for the network.

    After a chunk of the upstream's body, only the empty end of the body is available without waiting. So the processor
    answers several chunks together.
    """

    messages: list[bytes]
    at: int = 0
    here: bool = True
    sent: int = 0
    size: int = 0
    last: bytes = field(default=b"", repr=False)

    async def receive(self) -> bytes | None:
        self.here = True
        return self.receive_now()

    def receive_now(self) -> bytes | None:
        if self.at == len(self.messages) or not self.here:
            return None
        message = self.messages[self.at]
        self.at += 1
        self.here = message[0] != RESPONSE_BODY or self.at == len(self.messages) - 1
        return message

    async def begin(self) -> None:
        pass

    async def let_end(self, seconds: float) -> None:
        pass

    async def settle(self) -> None:
        pass

    def send_now(self, message: bytes) -> bool:
        if self.at > len(self.messages):
            raise StreamClosed("gone")
        self.sent += 1
        self.size += len(message)
        self.last = message
        return True

    async def send(self, message: bytes) -> None:
        self.send_now(message)


def _headers(target: pb.HttpHeaders, pairs: Sequence[tuple[str, str]]) -> None:
    for name, value in pairs:
        header = target.headers.headers.add()
        header.key, header.raw_value = name, value.encode()


def _conversation(body: bytes, head: Sequence[tuple[str, str]], parts: Sequence[bytes]) -> list[bytes]:
    """All messages that Envoy sends in one exchange."""
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
    requests = []
    for at in range(0, len(body), _PART):
        requests.append(pb.ProcessingRequest())
        requests[-1].request_body.body = body[at : at + _PART]
    # Envoy 1.40 ends a body with an empty part, even if its length is known.
    request_end = pb.ProcessingRequest()
    request_end.request_body.end_of_stream = True
    answer = pb.ProcessingRequest()
    _headers(answer.response_headers, ((":status", "200"), *head, ("x-envoy-upstream-service-time", "1")))
    messages = [first, *requests, request_end, answer]
    for part in parts:
        message = pb.ProcessingRequest()
        message.response_body.body = part
        messages.append(message)
    end = pb.ProcessingRequest()
    end.response_body.end_of_stream = True
    messages.append(end)
    # Envoy 1.40 appends an empty metadata_context to every message.
    return [message.SerializeToString() + b"\x42\x00" for message in messages]


def in_crowds(size: int) -> list[bytes]:
    """A stream of chunks, with up to `CROWD` chunks in each message."""
    events = stream_events(CHUNKS)
    crowds = [b"".join(events[at : at + size]) for at in range(0, len(events), size)]
    return _conversation(_STREAM, (("content-type", "text/event-stream"),), crowds)


def _request(**fields: Any) -> list[bytes]:
    """A small request with a JSON answer."""
    return _with_answer(msgspec.json.encode({"model": "m", "input": "Say something.", **fields}))


def _with_answer(body: bytes) -> list[bytes]:
    return _conversation(body, (("content-type", "application/json"),), [completion()])


class Paths:
    """The relay path and the echo path, over the same messages."""

    def __init__(self, context: DoorContext) -> None:
        self._context = context
        self._options = ProcessorOptions(
            always_drive=False, ahead=Ahead(LimitSettings(), time.monotonic), accounting=Accounting(lambda *_: 0)
        )
        self.stream = in_crowds(1)
        self.crowd = in_crowds(CROWD)
        self.short = _request(store=False)
        self.long = _with_answer(RESPONSES.body("m", stream=False, size=_LONG, turns=True).encode())
        self.chained: list[bytes] = []

    async def begin_chain(self) -> None:
        """Store a response, and make `chained`, a small request that continues it."""
        stream = _Messages(_request(store=True))
        await serve_stream(self._context, stream, self._options)
        found = _RESPONSE_ID.search(stream.last)
        assert found is not None, "the answer has no id"
        self.chained = _request(store=False, previous_response_id=found[0].decode())

    async def relay(self, messages: list[bytes], events: int) -> None:
        """Send messages through the processor. Checks that the processor produced at least `events` events."""
        stream = _Messages(messages)
        await serve_stream(self._context, stream, self._options)
        if stream.size < events * _LEAST_EVENT or len(stream.last) > 4096 + stream.size // 2:
            raise SystemExit(f"bench: the relay sent {stream.sent} messages, {stream.size} bytes")

    async def echo(self, messages: list[bytes], _events: int) -> None:
        """Send messages through the no-op."""
        stream = _Messages(messages)
        await Echo().process(stream, Presented(None))
        if stream.sent != len(messages):
            raise SystemExit(f"bench: the echo sent {stream.sent} messages")

    def tell(self) -> None:
        """Write the reports of ended responses."""
        self._context.telemetry.endings.tell()


class _NoHurry:
    """The part of an event loop that `Endings` uses. Under valgrind 50 ms pass after a few requests, so `Endings` would
    write reports during the count. `tell` writes them instead."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def call_later(self, _delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(_LATER, callback)


QUOTAS: dict[str, object] = {
    "quotas": {
        "each_owner": {
            **dict.fromkeys(("requests_per_minute", "tokens_per_minute", "tokens_per_month"), 10**9),
            "cost_per_month": 1e6,
            "parallel_requests": 1000,
        }
    }
}
"""Settings with every kind of limit, none of which a request reaches."""
CONSOLE: dict[str, object] = {"console": {"enabled": True}}
"""Settings with the console, which records no contents."""


@asynccontextmanager
async def open_paths(more: Mapping[str, object] = {}) -> AsyncIterator[Paths]:
    """Open both paths in an application with a new data folder. `more`: settings of the application."""
    with TemporaryDirectory(prefix="antiphon-gate-") as folder:
        app = await build(load_settings({"data": str(Path(folder) / "data"), **more}), door="envoy")
        try:
            keep_what_there_is()
            app.context.telemetry.endings.by_time(cast(asyncio.AbstractEventLoop, _NoHurry()))
            paths = Paths(app.context)
            await paths.begin_chain()
            yield paths
        finally:
            await app.aclose()
