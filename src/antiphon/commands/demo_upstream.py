"""Runs a scripted Chat Completions server, for trying Antiphon without a model. The server contains no model.

`reply` makes the content of an answer, `completion` and `chunks` convert it to JSON, and `make_app` builds the HTTP
server. Only `chat_servers.py` imports this module. This module uses no other module of Antiphon.

The last message of a request decides the answer. The first rule that matches applies:

- The last messages are tool results: the server repeats them (`The tool said: …`).

- The user's message contains `fail`: the server returns status 500 with an OpenAI error object. If the message contains
  `error 429`, or `error` with another status from 400 to 599, the server returns that status.

- The message contains `break`: the server starts an answer, then cuts the connection.

- The request offers tools, and the message matches one: the server calls that tool. A message matches a tool if it
  contains the tool's name or a word of the name. If the request offers a single tool, every question matches that tool.
  `tool_choice` can require a call. The server makes one call per city in the message (`in Paris and Rome`), unless
  `parallel_tool_calls` is false. The server guesses the arguments from the message. A string argument is the city or
  the whole message. The argument `code` is a program that draws the numbers in the message.

- The message contains `count to 20` (up to 10000): the server counts.

- The message contains `instructions`: the server repeats the system and developer messages.

- The message contains `before` or `remember`: the server repeats the user's earlier messages in the same request.

- Any other message: the server answers `You said: …`, with the number of messages.

The server sends `reasoning_content` first if the model is `demo-reasoner`, if the request has `reasoning_effort`, or if
the message contains `think`. Each word counts as a token, for `max_tokens` and for `usage`. A stream sends one word at
a time, `pause` seconds apart. `/v1/models` lists the two models. A request for any other model gets a 404.

Invariant: an answer depends only on the request. The server stores nothing, and the same request gets the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

MODELS = ("demo", "demo-reasoner")

_CREATED = 1_700_000_000
_MAX_COUNTED = 10_000
_BODY_BYTES = 64 << 20
_PLACE = re.compile(r"(?:\bin|\band|\bor|\bfor|,)\s+([A-Z][\w'-]*(?:\s[A-Z][\w'-]*)*)")
_WORD = re.compile(r"\s*\S+\s*?(?=\s|$)")
_PAUSE = web.AppKey("pause", float)

Object = dict[str, Any]


class DemoError(Exception):
    """An error answer to a request: the HTTP status, and an error object with OpenAI's four fields."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class DemoReply:
    """The content of an answer, before its conversion to a completion or to chunks."""

    id: str
    model: str
    text: str = ""
    reasoning: str = ""
    calls: tuple[Object, ...] = ()
    finish_reason: str = "stop"
    breaks_off: bool = False
    usage: Object = field(default_factory=dict)


# The answers


def reply(request: Object) -> DemoReply:
    """The answer to a Chat Completions request. Raises `DemoError`."""
    model = request.get("model")
    if model not in MODELS:
        known = ", ".join(MODELS)
        raise DemoError(404, f"The model {model!r} does not exist. This server has: {known}.", "model_not_found")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise DemoError(400, "'messages' must be a list with at least one message.", param="messages")
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]

    text, calls, breaks_off = _answer(request, messages, key)
    reasoning = ""
    thinks = model == "demo-reasoner" or request.get("reasoning_effort") not in (None, "none")
    if thinks or re.search(r"\bthink\b", _last_user_text(messages), re.IGNORECASE):
        plan = f"I call {len(calls)} tool(s)." if calls else "I answer from the script."
        reasoning = f"The last message has {len(_words(_text(messages[-1])))} words. {plan}"
    finish_reason = "tool_calls" if calls else "stop"
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if isinstance(limit, int) and not calls and len(_words(text)) > limit:
        text, finish_reason = "".join(_words(text)[:limit]), "length"
    return DemoReply(
        id=f"chatcmpl-demo-{key}",
        model=model,
        text=text,
        reasoning=reasoning,
        calls=calls,
        finish_reason=finish_reason,
        breaks_off=breaks_off,
        usage=_usage(messages, text, reasoning, calls),
    )


def _answer(request: Object, messages: list[Object], key: str) -> tuple[str, tuple[Object, ...], bool]:
    """The text, the tool calls, and whether the server must cut the connection."""
    if messages[-1].get("role") == "tool":
        results: list[str] = []
        for message in reversed(messages):
            if message.get("role") != "tool":
                break
            results.insert(0, _text(message))
        return "The tool said: " + "; ".join(results), (), False
    last = _last_user_text(messages)
    if failure := re.search(r"\bfail\b|\berror ([45]\d\d)\b", last, re.IGNORECASE):
        raise DemoError(int(failure[1] or 500), f"The message requests this error: {failure[0]}.", "scripted_failure")
    if re.search(r"\bbreak\b", last, re.IGNORECASE):
        return "This answer will not be", (), True
    calls = _calls(request, last, key)
    if calls:
        return "", calls, False
    if number := re.search(r"\bcount to (\d+)\b", last, re.IGNORECASE):
        return " ".join(str(n) for n in range(1, min(int(number[1]), _MAX_COUNTED) + 1)), (), False
    if re.search(r"\binstructions\b", last, re.IGNORECASE):
        told = [_text(message) for message in messages if message.get("role") in ("system", "developer")]
        return ("My instructions: " + " ".join(told)) if told else "I have no instructions.", (), False
    if re.search(r"\bbefore\b|\bremember\b", last, re.IGNORECASE):
        said = [_text(message) for message in messages if message.get("role") == "user"]
        earlier = " ".join(f'"{one}"' for one in said[:-1])
        return (f"Before, you said: {earlier}" if earlier else "You said nothing before."), (), False
    sent = f" (I was sent {len(messages)} messages.)" if len(messages) > 1 else ""
    return f"You said: {last}{sent}", (), False


def _calls(request: Object, last: str, key: str) -> tuple[Object, ...]:
    """The tool calls for the message `last`: none, one, or one per city that the message names."""
    offered = [tool["function"] for tool in request.get("tools") or () if tool.get("type") == "function"]
    choice = request.get("tool_choice", "auto")
    if not offered or choice == "none":
        return ()
    if isinstance(choice, dict):
        wanted = choice.get("function", {}).get("name")
        chosen = next((function for function in offered if function["name"] == wanted), None)
    else:
        chosen = next((function for function in offered if _is_about(last, function["name"])), None)
        if chosen is None and (choice == "required" or (len(offered) == 1 and "?" in last)):
            chosen = offered[0]
    if chosen is None:
        return ()
    places = _PLACE.findall(last) or [last]
    if request.get("parallel_tool_calls") is False:
        places = places[:1]
    return tuple(
        {
            "id": f"call_demo_{key}_{number}",
            "type": "function",
            "function": {"name": chosen["name"], "arguments": json.dumps(_arguments(chosen, place, last))},
        }
        for number, place in enumerate(places)
    )


def _is_about(text: str, name: str) -> bool:
    words = set(re.findall(r"[a-z0-9]+", text.lower()))
    parts = [part for part in re.findall(r"[a-z0-9]+", name.lower().replace("_", " ")) if part not in _VERBS]
    return name.lower() in text.lower() or any(part in words for part in parts)


_VERBS = frozenset({"get", "set", "find", "fetch", "look", "up", "current", "the", "a", "for", "in", "of", "to"})


def _arguments(function: Object, place: str, said: str) -> Object:
    """A value for each required parameter of the function. Strings and lists of strings get `place`, a city or the
    whole message. Numbers come from the message `said`."""
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties") or {}
    numbers = [int(number) for number in re.findall(r"-?\d+", said)]
    arguments: Object = {}
    for name in parameters.get("required") or list(properties)[:1]:
        schema = properties.get(name) or {}
        kind = schema.get("type", "string")
        if schema.get("enum"):
            arguments[name] = schema["enum"][0]
        elif name == "code" and kind == "string":
            # A program that draws the numbers, as text and as an SVG file.
            arguments[name] = _DRAWING.format(numbers=numbers) if numbers else f"print({said!r})"
        elif kind == "array" and (schema.get("items") or {}).get("type") == "string":
            arguments[name] = [place]
        elif kind in ("integer", "number"):
            arguments[name] = numbers.pop(0) if numbers else 1
        else:
            arguments[name] = {"boolean": True, "array": [], "object": {}}.get(str(kind), place)
    return arguments


_DRAWING = """\
numbers = {numbers}
most = max(map(abs, numbers)) or 1
bars = ""
for place, number in enumerate(numbers):
    print(f"{{number:>6}} " + "█" * round(30 * abs(number) / most))
    height = 100 * abs(number) / most
    bars += f'<rect x="{{20 + 40 * place}}" y="{{120 - height}}" width="30" height="{{height}}"/>'
with open("plot.svg", "w") as file:
    width = 40 + 40 * len(numbers)
    file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{{width}}" height="140">{{bars}}</svg>')
"""


def _last_user_text(messages: list[Object]) -> str:
    return next((_text(message) for message in reversed(messages) if message.get("role") == "user"), "")


def _text(message: Object) -> str:
    """The text of a message, whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", f"[{part.get('type')}]")) for part in content if isinstance(part, dict))
    return str(content or "")


def _words(text: str) -> list[str]:
    """Split the text into words, each with the white space around it. The joined words are equal to the text."""
    pieces = _WORD.findall(text)
    rest = text[sum(len(piece) for piece in pieces) :]
    return [*pieces, rest] if rest else pieces


def _usage(messages: list[Object], text: str, reasoning: str, calls: tuple[Object, ...]) -> Object:
    prompt = sum(len(_words(_text(message))) + 1 for message in messages)
    thought = len(_words(reasoning))
    written = len(_words(text)) + thought + sum(len(_words(call["function"]["arguments"])) for call in calls)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


# The form


def completion(answer: DemoReply) -> Object:
    """The JSON body of an answer without streaming."""
    message: Object = {"role": "assistant", "content": answer.text or None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = list(answer.calls)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return {**_begun(answer, "chat.completion"), "choices": [choice], "usage": answer.usage}


def chunks(answer: DemoReply, *, usage: bool) -> Iterator[Object]:
    """The chunks of a streamed answer. With `usage`, the last chunk holds the token counts."""
    yield _chunk(answer, {"role": "assistant", "content": ""})
    for word in _words(answer.reasoning):
        yield _chunk(answer, {"reasoning_content": word})
    for word in _words(answer.text):
        yield _chunk(answer, {"content": word})
    if answer.breaks_off:
        return
    for index, call in enumerate(answer.calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        start = {"index": index, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        yield _chunk(answer, {"tool_calls": [start]})
        for piece in _words(arguments):
            yield _chunk(answer, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield _chunk(answer, {}, answer.finish_reason)
    if usage:
        yield {**_begun(answer, "chat.completion.chunk"), "choices": [], "usage": answer.usage}


def _chunk(answer: DemoReply, delta: Object, finish_reason: str | None = None) -> Object:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**_begun(answer, "chat.completion.chunk"), "choices": [choice]}


def _begun(answer: DemoReply, kind: str) -> Object:
    return {"id": answer.id, "object": kind, "created": _CREATED, "model": answer.model}


# The server


def make_app(*, pause: float = 0.03) -> web.Application:
    """Build the HTTP server. `pause` is the number of seconds between two words of a stream."""
    app = web.Application(client_max_size=_BODY_BYTES, middlewares=[_errors])
    app[_PAUSE] = pause
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_get("/health", _health)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except DemoError as error:
        return web.json_response(error.body, status=error.status)
    except web.HTTPException as error:
        return web.json_response(DemoError(error.status, error.reason).body, status=error.status)


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _models(_: web.Request) -> web.Response:
    data = [{"id": name, "object": "model", "created": _CREATED, "owned_by": "antiphon-demo"} for name in MODELS]
    return web.json_response({"object": "list", "data": data})


async def _chat(request: web.Request) -> web.StreamResponse:
    try:
        asked = json.loads(await request.read())
    except ValueError:
        raise DemoError(400, "The body is not valid JSON.") from None
    if not isinstance(asked, dict):
        raise DemoError(400, "The body must be a JSON object.")
    answer = reply(asked)
    if not asked.get("stream"):
        if answer.breaks_off:
            return _break_off(request, web.Response())
        return web.json_response(completion(answer))
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(request)
    usage = bool((asked.get("stream_options") or {}).get("include_usage"))
    pause = request.app[_PAUSE]
    for chunk in chunks(answer, usage=usage):
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if pause:
            await asyncio.sleep(pause)
    if answer.breaks_off:
        return _break_off(request, response)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _break_off(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Cut the connection in the middle of the response."""
    if request.transport is not None:
        request.transport.abort()
    return response
