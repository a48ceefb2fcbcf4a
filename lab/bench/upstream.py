"""The answers of the benchmark's chat server (`upstream.c`), and its start.

Lives here: prepared answers. Not here: a model, or error handling that a benchmark does not need.

The model's name in a request selects the answer:

- `json`: one completion in JSON, or a stream of one chunk if the request has `stream`;
- `burst-200`: a stream of 200 text chunks, each in a separate write, as fast as the connection accepts them;
  `tools-200` and `reasoning-200` likewise, with the arguments of a call and with reasoning;
- `paced-50-10ms`: a stream of 50 text chunks, 10 ms apart. Each text is `@NANOSECONDS@`, the monotonic clock at the
  write. So a client on the same machine can measure the latency.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab.bench.native import program
from lab.bench.variants import Process

# Paths that a gateway in front of this server may request. Some gateways list the models at their start.
MODELS = ("json", "burst-5", "burst-100", "paced-2-1ms")
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


def _tool(arguments: str) -> bytes:
    return _http_chunk(_event(_choice({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]})))


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


_ANSWERS = {
    "STREAM_HEAD": _STREAM_HEAD,
    "ROLE": _ROLE,
    "BURST": _http_chunk(_event(_choice({"content": " word"}))),
    "REASONING": _http_chunk(_event(_choice({"reasoning_content": " word"}))),
    "TOOLS_BEFORE": _http_chunk(_event(_choice({"tool_calls": [_CALL]}))),
    "TOOLS": _tool(" word"),
    "TOOLS_AFTER": _tool('"}'),
    "BEFORE": _BEFORE,
    "AFTER": _AFTER,
    "END": _END,
    "SHORT_STREAM": _SHORT_STREAM,
    "JSON": _JSON,
    "MODELS": _MODELS,
}


def _literal(value: bytes) -> str:
    plain = (chr(one) if 32 <= one < 127 and chr(one) not in '"\\?' else f"\\{one:03o}" for one in value)
    return f'"{"".join(plain)}"'


async def start_upstream(folder: Path) -> Process:
    """Start the server. Its address is a port in `ready`, and it ends with its standard input."""
    header = "".join(f"#define {name} {_literal(value)}\n" for name, value in _ANSWERS.items())
    return await Process.start(folder / "upstream.log", str(program("upstream", {"answers.h": header})))
