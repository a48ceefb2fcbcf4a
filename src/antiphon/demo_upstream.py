"""A small scripted chat server, for trying Antiphon out without a model.

It is no model and does not pretend to be one. What it says is fixed by what it is asked:

- a request with tools whose last user message names one of them (or, with a single tool, asks a question): calls it,
  twice at once when the message says "both" or "and" between two known cities, with arguments guessed from the words;
- after tool messages: repeats their results;
- a message with "think": some reasoning (`reasoning_content`), then the answer;
- a message with "fail": HTTP 500, with "break": a stream that is cut in the middle;
- else: says what the user said last, and how many messages it was sent.

Answers are streamed word by word when asked. Usage counts words. It listens on `/v1/chat/completions`, `/v1/models`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from aiohttp import web

__all__ = ["make_app"]

_MODEL = "demo"
_CITIES = ("Paris", "London", "Berlin", "Tokyo", "Rome", "Madrid", "Oslo", "Lima")
_ids = itertools.count(1)


def make_app(*, pause: float = 0.03) -> web.Application:
    """The server; `pause` is the time between two streamed words, in seconds."""
    app = web.Application(client_max_size=64 << 20)

    async def chat(request: web.Request) -> web.StreamResponse:
        return await _chat(request, pause)

    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", _models)
    return app


async def _models(_: web.Request) -> web.Response:
    model = {"id": _MODEL, "object": "model", "created": 0, "owned_by": "demo-upstream"}
    return web.json_response({"object": "list", "data": [model]})


async def _chat(request: web.Request, pause: float) -> web.StreamResponse:
    try:
        body = await request.json()
        messages = body["messages"]
        model = body["model"]
    except (ValueError, KeyError, TypeError):
        return _error(400, "The request needs model and messages.", "invalid_request_error", None)
    if not str(model).startswith(_MODEL):
        return _error(404, f"The model '{model}' does not exist; this server has '{_MODEL}'.", "not_found", None)
    said = _last_user_text(messages)
    if "fail" in said.lower().split():
        return _error(500, "You asked for a failure.", "server_error", "scripted_failure")
    message = _answer(messages, body.get("tools") or [], said)
    usage = _usage(messages, message)
    if not body.get("stream"):
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        return web.json_response({**_envelope("chat.completion", model), "choices": [choice], "usage": usage})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    cut = "break" in said.lower().split()
    for number, chunk in enumerate(_chunks(message)):
        if cut and number == 3:
            assert request.transport is not None
            request.transport.abort()
            return response
        await _send(response, {**_envelope("chat.completion.chunk", model), "choices": [chunk]})
        await asyncio.sleep(pause)
    if (body.get("stream_options") or {}).get("include_usage"):
        await _send(response, {**_envelope("chat.completion.chunk", model), "choices": [], "usage": usage})
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _envelope(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-demo-{next(_ids)}", "object": kind, "created": 0, "model": model}


def _error(status: int, message: str, kind: str, code: str | None) -> web.Response:
    return web.json_response({"error": {"message": message, "type": kind, "param": None, "code": code}}, status=status)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


def _last_user_text(messages: list[dict[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user":
            return _text(message.get("content"))
    return ""


def _answer(messages: list[dict[str, Any]], tools: list[dict[str, Any]], said: str) -> dict[str, Any]:
    results = []
    for message in reversed(messages):
        if message.get("role") != "tool":
            break
        results.insert(0, _text(message.get("content")))
    if results:
        return {"content": "The tool said: " + "; ".join(results)}
    calls = _calls(tools, said)
    if calls:
        return {"content": None, "tool_calls": calls}
    remembered = f" (I was sent {len(messages)} messages.)" if len(messages) > 1 else ""
    answer: dict[str, Any] = {"content": f"You said: {said}{remembered}"}
    if "think" in said.lower():
        answer["reasoning_content"] = "The user wants me to think. I am a script, so this is quick."
    return answer


def _calls(tools: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    functions = [tool["function"] for tool in tools if tool.get("type") == "function"]
    named = [function for function in functions if function["name"].replace("_", " ").split()[-1] in said.lower()]
    if not named and len(functions) == 1 and "?" in said:
        named = functions
    if not named:
        return []
    function = named[0]
    cities = [city for city in _CITIES if city.lower() in said.lower()]
    wanted = cities[:2] if len(cities) > 1 else cities[:1] or [""]
    return [
        {
            "id": f"call_demo_{next(_ids)}",
            "type": "function",
            "function": {"name": function["name"], "arguments": json.dumps(_arguments(function, said, city))},
        }
        for city in wanted
    ]


def _arguments(function: dict[str, Any], said: str, city: str) -> dict[str, Any]:
    """Arguments for every required property, taken from the words of the question."""
    schema = function.get("parameters") or {}
    numbers = [int(number) for number in re.findall(r"-?\d+", said)]
    arguments: dict[str, Any] = {}
    for name in schema.get("required") or list(schema.get("properties") or {})[:1]:
        kind = (schema.get("properties") or {}).get(name, {}).get("type")
        if kind in ("integer", "number"):
            arguments[name] = numbers.pop(0) if numbers else 1
        elif kind == "boolean":
            arguments[name] = True
        else:
            arguments[name] = city or said
    return arguments


def _chunks(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The message as the choices of stream chunks, the role first."""
    yield {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    for word in re.findall(r"\S+\s*", message.get("reasoning_content") or ""):
        yield {"index": 0, "delta": {"reasoning_content": word}, "finish_reason": None}
    for word in re.findall(r"\S+\s*", message.get("content") or ""):
        yield {"index": 0, "delta": {"content": word}, "finish_reason": None}
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        begun = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        yield {"index": 0, "delta": {"tool_calls": [begun]}, "finish_reason": None}
        for piece in re.findall(r".{1,6}", function["arguments"]):
            part = {"index": index, "function": {"arguments": piece}}
            yield {"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": None}
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    yield {"index": 0, "delta": {}, "finish_reason": finish}


def _usage(messages: list[dict[str, Any]], message: dict[str, Any]) -> dict[str, Any]:
    prompt = sum(len(_text(one.get("content")).split()) for one in messages)
    reasoning = len((message.get("reasoning_content") or "").split())
    completion = reasoning + len((message.get("content") or "").split()) + 5 * len(message.get("tool_calls") or ())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
