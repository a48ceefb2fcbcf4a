"""Defines the answers of the strict chat server as data, and renders them as one chat completion or as chunks.

Lives here: the form of an answer and its bytes. Not here: the server, and its answers without a script
(`strict_upstream.py`).

Invariant: folding the chunks of an answer gives its chat completion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
_FIELDS = {
    # The content of the message.
    *("content", "refusal", "reasoning", "calls", "after", "logprobs", "finish", "usage"),
    # Instead of a message, an HTTP status with headers and an error object.
    *("status", "headers", "error"),
    # The selection of the request.
    *("when",),
    # After the message: cut the connection, send an error as a chunk, or keep the stream open until the client leaves.
    *("cut", "error_chunk", "hold"),
}


class Answer:
    """One answer, whose fields are all optional. `calls` are `{name, arguments, id?}` with arguments as JSON or an
    object. `after` is text after the calls. With `when`, the answer is for the next request whose last message contains
    these words, for clients with concurrent requests. `number` distinguishes this answer's call ids from those of
    others."""

    def __init__(self, said: dict[str, Any], number: int = 0) -> None:
        assert set(said) <= _FIELDS, f"no such part of an answer: {set(said) - _FIELDS}"
        self.content: str | None = said.get("content")
        self.refusal: str | None = said.get("refusal")
        self.reasoning: str | None = said.get("reasoning", "Let me think.")
        self.after: str = said.get("after", "")
        self.calls = [_call(f"{number}_{at}", call) for at, call in enumerate(said.get("calls", ()))]
        self.logprobs: bool = said.get("logprobs", False)
        self.finish: str = said.get("finish") or ("tool_calls" if self.calls else "stop")
        self.usage: dict[str, Any] = said.get("usage", _USAGE)
        self.status: int = said.get("status", 200)
        self.headers: dict[str, str] = said.get("headers", {})
        self.error: dict[str, Any] = said.get(
            "error", {"message": "as asked", "type": "x", "code": None, "param": None}
        )
        self.cut: bool = said.get("cut", False)
        self.error_chunk: dict[str, Any] | None = said.get("error_chunk")
        self.hold: bool = said.get("hold", False)
        self.when: str = said.get("when", "")


def _call(number: str, call: dict[str, Any]) -> dict[str, Any]:
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call_id = call.get("id", f"call_strict_{number}")
    return {"id": call_id, "type": "function", "function": {"name": call["name"], "arguments": text}}


def completion(answer: Answer) -> dict[str, Any]:
    """The answer as one chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": (answer.content or "") + answer.after or None}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.refusal is not None:
        message["refusal"] = answer.refusal
    if answer.calls:
        message["tool_calls"] = answer.calls
    choice = {"index": 0, "message": message, "finish_reason": answer.finish}
    if answer.logprobs:
        choice["logprobs"] = {"content": [_logprob(piece) for piece in _pieces(answer.content or "")]}
    return {"id": "c", "object": "chat.completion", "choices": [choice], "usage": answer.usage}


def chunks(answer: Answer, usage: bool) -> Iterator[bytes]:
    """The answer as a server's stream, up to the position at which it breaks off, if it does. `usage`: whether the
    request asked for usage."""
    for delta, logprobs in _deltas(answer):
        yield _event([{"index": 0, "delta": delta, "finish_reason": None, **logprobs}])
    if answer.error_chunk is not None:
        yield b"data: %b\n\n" % json.dumps({"error": answer.error_chunk}).encode()
    elif not answer.cut and not answer.hold:
        yield _event([{"index": 0, "delta": {}, "finish_reason": answer.finish}])
        if usage:
            yield _event([], usage=answer.usage)
        yield b"data: [DONE]\n\n"


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "choices": choices, **more}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


def _deltas(answer: Answer) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    yield {"role": "assistant", "content": ""}, {}
    for at, word in enumerate((answer.reasoning or "").split(" ") if answer.reasoning else ()):
        yield {"reasoning_content": (" " if at else "") + word}, {}
    for piece in _pieces(answer.refusal or ""):
        yield {"refusal": piece}, {}
    for piece in _pieces(answer.content or ""):
        yield {"content": piece}, {"logprobs": {"content": [_logprob(piece)]}} if answer.logprobs else {}
    for number, call in enumerate(answer.calls):
        function = call["function"]
        yield {"tool_calls": [{**call, "index": number, "function": {"name": function["name"], "arguments": ""}}]}, {}
        for at in range(0, len(function["arguments"]), 7):
            piece = function["arguments"][at : at + 7]
            yield {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, {}
    for piece in _pieces(answer.after):
        yield {"content": piece}, {}


def _pieces(content: str) -> list[str]:
    return [content[at : at + 5] for at in range(0, len(content), 5)]


def _logprob(piece: str) -> dict[str, Any]:
    one = {"token": piece, "logprob": -0.5, "bytes": list(piece.encode())}
    return {**one, "top_logprobs": [one]}
