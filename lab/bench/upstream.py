"""Runs a chat server that is too fast to influence the measurement, as a process: `python -m lab.bench.upstream`.

Lives here: raw HTTP/1.1 on an `asyncio.Protocol`, and prepared answers. Not here: a model, or error handling that a
benchmark does not need.

The model's name in a request selects the answer:

- `json`: one completion in JSON, or a stream of one chunk if the request has `stream`;
- `burst-200`: a stream of 200 text chunks, each in a separate write, as fast as the connection accepts them;
  `tools-200` and `reasoning-200` likewise, with the arguments of a call and with reasoning;
- `paced-50-10ms`: a stream of 50 text chunks, 10 ms apart. Each text is `@NANOSECONDS@`, the monotonic clock at the
  write. So a client on the same machine can measure the latency.

Invariants: one chunk is one write and one HTTP chunk, as in real chat servers. A client that does not read blocks its
own stream, not the process.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any, cast

import uvloop

# Paths that a gateway in front of this server may request. Some gateways list the models at their start.
MODELS = ("json", "burst-5", "burst-100", "paced-2-1ms")
_MODEL = re.compile(rb'"model"\s*:\s*"([^"]+)"')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_PACED = re.compile(r"paced-(\d+)-(\d+)ms")
_TEXT = "TEXT"


def _http_chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    fields = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1700000000, "model": "bench"}
    return b"data: " + json.dumps({**fields, "choices": choices, **more}, separators=(",", ":")).encode() + b"\n\n"


def _choice(delta: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]


_USAGE = {"prompt_tokens": 12, "completion_tokens": 200, "total_tokens": 212}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_ROLE = _http_chunk(_event(_choice({"role": "assistant"})))
_CALL = {"index": 0, "id": "call_bench", "type": "function", "function": {"name": "write", "arguments": '{"text":"'}}
# The beginning of the burst, each of its chunks, and its end.
_BURSTS = {
    "burst": (b"", _http_chunk(_event(_choice({"content": " word"}))), b""),
    "tools": (
        _http_chunk(_event(_choice({"tool_calls": [_CALL]}))),
        _http_chunk(_event(_choice({"tool_calls": [{"index": 0, "function": {"arguments": " word"}}]}))),
        _http_chunk(_event(_choice({"tool_calls": [{"index": 0, "function": {"arguments": '"}'}}]}))),
    ),
    "reasoning": (b"", _http_chunk(_event(_choice({"reasoning_content": " word"}))), b""),
}
_BEFORE, _AFTER = _event(_choice({"content": _TEXT})).split(_TEXT.encode())
_END = (
    _http_chunk(_event(_choice({}, "stop")))
    + _http_chunk(_event([], usage=_USAGE))
    + _http_chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
_ANSWER = "A short answer, as many are. " * 8
_SHORT_STREAM = _STREAM_HEAD + _ROLE + _http_chunk(_event(_choice({"content": _ANSWER}))) + _END
_COMPLETION = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _ANSWER},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    }
).encode()


def _json_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


_JSON = _json_answer(_COMPLETION)
_MODELS = _json_answer(
    json.dumps(
        {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in MODELS]}
    ).encode()
)


def completion() -> bytes:
    """The body of the JSON answer."""
    return _COMPLETION


def stream_events(count: int) -> list[bytes]:
    """The events of a text stream with `count` chunks, including the events at its end."""
    text = _event(_choice({"content": " word"}))
    ending = [_event(_choice({}, "stop")), _event([], usage=_USAGE), b"data: [DONE]\n\n"]
    return [_event(_choice({"role": "assistant"})), *[text] * count, *ending]


class UpstreamConnection(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._missing = 0
        self._left = 0
        self._pace = 0.0
        self._burst = self._after = b""
        self._due = 0.0
        self._paused = False
        self._waiting = False
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._closed = True

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._waiting:
            self._waiting = False
            self._step()

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if self._missing > len(data):
            # A large body is parsed once, when it is complete.
            self._missing -= len(data)
            return
        whole = b"".join(self._parts)
        head, separator, body = whole.partition(b"\r\n\r\n")
        if not separator:
            self._parts = [whole]
            return
        if head.startswith(b"GET "):
            self._parts = []
            self._transport.write(_MODELS)
            return
        length = _LENGTH.search(head)
        if length is not None:
            self._missing = int(length[1]) - len(body)
            if self._missing > 0:
                self._parts = [whole]
                return
        elif not body.endswith(b"0\r\n\r\n"):
            self._parts = [whole]
            return
        self._parts, self._missing = [], 0
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        found = _MODEL.search(body)
        model = found[1].decode() if found else "json"
        if model == "json":
            # Some gateways request a stream from the upstream even if their client requested JSON.
            streamed = b'"stream":true' in body or b'"stream": true' in body
            self._transport.write(_SHORT_STREAM if streamed else _JSON)
            return
        paced = _PACED.fullmatch(model)
        if paced:
            self._left, self._pace = int(paced[1]), int(paced[2]) / 1000
            before = b""
        else:
            kind, _, count = model.partition("-")
            self._left, self._pace = int(count), 0.0
            before, self._burst, self._after = _BURSTS[kind]
        self._due = self._loop.time()
        self._transport.write(_STREAM_HEAD + _ROLE + before)
        self._loop.call_soon(self._step)

    def _step(self) -> None:
        if self._closed:
            return
        if self._paused:
            self._waiting = True
            return
        if not self._left:
            self._transport.write(self._after + _END)
            self._after = b""
            return
        self._left -= 1
        if not self._pace:
            self._transport.write(self._burst)
            self._loop.call_soon(self._step)
            return
        self._transport.write(_http_chunk(b"%s@%d@%s" % (_BEFORE, time.monotonic_ns(), _AFTER)))
        self._due += self._pace
        self._loop.call_at(self._due, self._step)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(UpstreamConnection, "127.0.0.1", 0, backlog=1024)
    print(f"ready: {server.sockets[0].getsockname()[1]}", flush=True)
    # The parent holds the other end of standard input, so this process ends with its parent.
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    """Serve until standard input ends; prints `ready: PORT`."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
