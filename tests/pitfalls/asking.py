"""Short ways to ask in these tests.

Lives here: a request with the chat request it leads to, a streamed answer with its events. Not here: running an
exchange (`tests/support/exchanges.py`), judging one (`judge.py`, `strict_chat.py`).

Invariant: every chat request that is made here is one that the strictest chat server takes, and every stream is judged
whole.
"""

from __future__ import annotations

import json
from typing import Any

from antiphon.engine.ports.actions import Chain, Context, StoredItem
from tests.support.exchanges import JSON, Outcome, run
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.strict_chat import check_chat_request

FUNCTION: dict[str, Any] = {
    "type": "function",
    "name": "f",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
_STOP = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'


# The way to the upstream


def chat(profile: str = "generic", context: Context | None = None, **fields: Any) -> dict[str, Any]:
    """The chat request that a request becomes."""
    outcome = run({"model": "m", "input": "hi", **fields}, [_STOP], headers=JSON, profile=profile, context=context)
    assert outcome.calls, outcome.body
    made: dict[str, Any] = outcome.chat
    check_chat_request(made)
    return made


def error(**fields: Any) -> dict[str, Any]:
    """The error of a request that must be a 400, and never reaches the upstream."""
    outcome = run({"model": "m", "input": "hi", **fields})
    assert not outcome.calls and outcome.head is not None and outcome.head.status == 400, outcome
    found: dict[str, Any] = outcome.json["error"]
    assert set(found) - {"request_id"} == {"message", "type", "param", "code"}
    return found


def call_item(call_id: str = "call_1", name: str = "f", arguments: str = '{"x":1}', **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **more}


def output_item(call_id: str = "call_1", output: Any = "done", **more: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output, **more}


def chain(*items: dict[str, Any]) -> Context:
    """A stored conversation behind `previous_response_id`."""
    stored = tuple(
        StoredItem(item.get("id", f"item_{number}"), item.get("type", "message"), json.dumps(item).encode())
        for number, item in enumerate(items)
    )
    return Context(chain=Chain(stored))


# The way back


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(arguments: str | None = None, name: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk with one entry of `tool_calls`; `more` are its id and index."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return chunk(tool_calls=[{**more, "function": function}])


def sse(*chunks: dict[str, Any], done: bool = True) -> bytes:
    body = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in chunks)
    return body + (b"data: [DONE]\n\n" if done else b"")


def streamed(*chunks: dict[str, Any] | bytes, finish: str | None = "stop", done: bool = True, **fields: Any) -> Outcome:
    """A streamed answer of these chunks (bytes go as they are). `options` go to the exchange."""
    options = fields.pop("options", {})
    pieces = [one if isinstance(one, bytes) else sse(one, done=False) for one in chunks]
    if finish is not None:
        pieces.append(sse(chunk(finish), done=False))
    if done:
        pieces.append(b"data: [DONE]\n\n")
    return run({"model": "m", "input": "hi", "stream": True, **fields}, pieces, **options)


def events(outcome: Outcome) -> list[dict[str, Any]]:
    """The events, judged."""
    found = parse_sse(outcome.body)
    check_stream(found)
    return found


def kinds(outcome: Outcome) -> list[str]:
    """The events' types without `response.`."""
    return [event["type"].removeprefix("response.") for event in events(outcome)]


def final(outcome: Outcome) -> dict[str, Any]:
    """The response at the end of a stream."""
    response: dict[str, Any] = events(outcome)[-1]["response"]
    return response


def answered(message: dict[str, Any], finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """The JSON response of a JSON completion."""
    body = {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}]}
    outcome = run({"model": "m", "input": "hi", **fields}, [json.dumps(body).encode()], headers=JSON)
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    response: dict[str, Any] = outcome.json
    check_response(response)
    return response
