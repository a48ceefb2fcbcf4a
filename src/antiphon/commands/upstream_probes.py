"""What a chat server really supports, found out by asking it: about a dozen small requests.

Lives here: the probes and what their answers mean. Not here: printing and judging (`doctor.py`), what the server is
(`upstream_identity.py`), using what was found (an operator does, by settings).

Invariant: a probe never raises and asks for at most `_TOKENS` tokens; what it reports holds no credential.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.redaction import redacted
from antiphon.types.json import decode_any
from antiphon.upstream.client import HttpUpstream

_TOKENS = 256
_FEW = 16
"""Tokens where only it matters whether the server takes the request."""
_SECONDS = 60.0
_KINDS = "application/json, text/event-stream"
# Answers that say: not like this. Others (a rate limit, a broken server) say nothing about the request.
_REFUSALS = frozenset({400, 404, 405, 415, 422, 501})
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_NAMED = {"type": "function", "function": {"name": "get_weather"}}
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


@dataclass
class Answer:
    """An HTTP answer, or why there is none (`status` 0)."""

    status: int
    body: bytes = b""
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """The answer's object; empty when it is none."""
        try:
            value = decode_any(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def refused(self) -> bool:
        """Whether the server said no to the request itself."""
        return self.status in _REFUSALS

    @property
    def problem(self) -> str:
        """What went wrong, in a line."""
        if self.failure:
            return self.failure
        error = self.json.get("error", self.json.get("detail", self.json.get("message", "")))
        text = error.get("message", "") if isinstance(error, dict) else error
        said = redacted(str(text), 200) if text else ""
        return f"HTTP {self.status}{': ' + said if said else ''}"


@dataclass
class Support:
    """One thing the server can or cannot do. `refused` says that asking for it fails; `detail` how it was seen."""

    name: str
    works: bool
    detail: str
    refused: bool = False


class ChatProbes:
    """Asks one server about one model."""

    def __init__(
        self, upstream: HttpUpstream, headers: tuple[tuple[str, str], ...], *, seconds: float | None = None
    ) -> None:
        self._upstream = upstream
        self._seconds = seconds or _SECONDS
        self._headers = headers
        self._limit_field = "max_tokens"
        self._thinking = ""

    async def get(self, path: str) -> Answer:
        """`GET` a path below the base URL."""
        return await self._call("GET", path, b"")

    async def run(self, model: str, *, images: bool = False) -> AsyncIterator[Support]:
        """All probes, each when it is over; the first, `answers`, tells whether the others make sense."""
        plain = await self._chat(model, "Say hello.")
        limit = Support("max_tokens", True, "taken")
        if plain.status == 400 and b"max_completion_tokens" in plain.body:
            limit = Support("max_tokens", False, plain.problem, refused=True)
            self._limit_field = "max_completion_tokens"
            plain = await self._chat(model, "Say hello.")
        message = _message(plain)
        if message is None:
            detail = plain.problem if plain.status != 200 else "HTTP 200, but no completion"
            yield Support("answers", False, detail, refused=plain.refused)
            return
        said = "text" if message.get("content") else f"no text within {_TOKENS} tokens"
        yield Support("answers", True, said)
        yield limit
        self._note_thinking(message)
        for support in await self._stream(model):
            yield support
        async for support in self._tools(model):
            yield support
        async for support in self._formats(model):
            yield support
        yield await self._logprobs(model)
        yield await self._taken("reasoning_effort", model, reasoning_effort="low")
        yield await self._role(model)
        if images:
            yield await self._image(model)
        yield Support("reasoning that is shown", bool(self._thinking), self._thinking or "none was seen")

    # One probe each

    async def _stream(self, model: str) -> list[Support]:
        asked = await self._chat(model, "Say hello.", stream=True, stream_options={"include_usage": True})
        answer = asked if asked.status == 200 else await self._chat(model, "Say hello.", stream=True)
        if answer.status != 200:
            return [Support("streaming", False, answer.problem, refused=answer.refused)]
        if "text/event-stream" not in answer.content_type:
            return [Support("streaming", False, f"the answer is {answer.content_type or 'of no type'}")]
        chunks = _chunks(answer.body)
        ended = any(choice.get("finish_reason") for chunk in chunks for choice in _objects(chunk.get("choices")))
        counted = any(isinstance(chunk.get("usage"), dict) for chunk in chunks)
        if asked.status != 200:
            usage = Support("usage in streams", False, asked.problem, refused=asked.refused)
        else:
            usage = Support("usage in streams", counted, "counted" if counted else "taken, but there is none")
        return [
            Support("streaming", True, f"{len(chunks)} chunks"),
            usage,
            Support("finish_reason in streams", ended, "there" if ended else "the stream just ends"),
        ]

    async def _tools(self, model: str) -> AsyncIterator[Support]:
        said = "What is the weather in Paris? Use the tool."
        offered = await self._chat(model, said, tools=[_TOOL])
        yield self._called("tools", offered)
        if offered.refused:
            return
        streamed = await self._chat(model, said, tools=[_TOOL], stream=True)
        whole = _streamed_arguments(streamed)
        yield Support(
            "tool calls in streams",
            _is_json(whole),
            "the arguments are JSON" if _is_json(whole) else ("no call was made" if not whole else "broken JSON"),
            refused=streamed.refused,
        )
        yield self._called("tool_choice required", await self._chat(model, said, tools=[_TOOL], tool_choice="required"))
        yield self._called("a named tool_choice", await self._chat(model, said, tools=[_TOOL], tool_choice=_NAMED))
        yield await self._taken("parallel_tool_calls", model, tools=[_TOOL], parallel_tool_calls=False)

    def _called(self, name: str, answer: Answer) -> Support:
        message = _message(answer)
        if message is None:
            return Support(name, False, answer.problem, refused=answer.refused)
        self._note_thinking(message)
        calls = message.get("tool_calls")
        return Support(name, bool(calls), "the tool was called" if calls else "taken, but no call was made")

    async def _formats(self, model: str) -> AsyncIterator[Support]:
        said = 'Answer with JSON: {"ok": true}'
        schema = {"type": "json_schema", "json_schema": {"name": "probe", "schema": _SCHEMA, "strict": True}}
        for name, response_format in (("json_schema", schema), ("json_object", {"type": "json_object"})):
            answer = await self._chat(model, said, response_format=response_format)
            message = _message(answer)
            if message is None:
                yield Support(name, False, answer.problem, refused=answer.refused)
                continue
            fits = _is_json(message.get("content"))
            yield Support(name, fits, "the answer is JSON" if fits else "taken, but the answer is no JSON")

    async def _logprobs(self, model: str) -> Support:
        answer = await self._chat(model, "Say hello.", limit=_FEW, logprobs=True, top_logprobs=1)
        if answer.status != 200:
            return Support("logprobs", False, answer.problem, refused=answer.refused)
        present = any(choice.get("logprobs") for choice in _objects(answer.json.get("choices")))
        return Support("logprobs", present, "present" if present else "taken, but there are none")

    async def _role(self, model: str) -> Support:
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
        answer = await self._chat(model, "", limit=_FEW, messages=messages)
        taken = answer.status == 200
        return Support("developer role", taken, "taken" if taken else answer.problem, refused=answer.refused)

    async def _image(self, model: str) -> Support:
        parts = [{"type": "text", "text": "Which colour?"}, {"type": "image_url", "image_url": {"url": _PIXEL}}]
        answer = await self._chat(model, "", limit=_FEW, messages=[{"role": "user", "content": parts}])
        taken = answer.status == 200
        return Support("images", taken, "taken" if taken else answer.problem, refused=answer.refused)

    async def _taken(self, name: str, model: str, **fields: Any) -> Support:
        answer = await self._chat(model, "Say hello.", limit=_FEW, **fields)
        message = _message(answer)
        if message is None:
            return Support(name, False, answer.problem, refused=answer.refused)
        self._note_thinking(message)
        return Support(name, True, "taken")

    def _note_thinking(self, message: dict[str, Any]) -> None:
        content = message.get("content")
        for name in ("reasoning_content", "reasoning"):
            if message.get(name):
                self._thinking = name
        if isinstance(content, str) and not self._thinking:
            if content.lstrip().startswith("<think>"):
                self._thinking = "<think> in the content"
            elif "</think>" in content:
                self._thinking = "</think> alone in the content"

    # The calls

    async def _chat(self, model: str, said: str, *, limit: int = _TOKENS, **fields: Any) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": said}], self._limit_field: limit, **fields}
        return await self._call("POST", "/chat/completions", json.dumps(body).encode())

    async def _call(self, method: str, path: str, body: bytes) -> Answer:
        headers = (("content-type", "application/json"), ("accept", _KINDS), *self._headers)
        request = UpstreamRequest(method, path, headers, body, "", stream=False)
        try:
            async with asyncio.timeout(self._seconds), self._upstream.call(request) as answer:
                parts = [part async for part in answer.body()]
                told = dict(answer.headers)
                return Answer(answer.status, b"".join(parts), told.get("content-type", ""), told)
        except UpstreamCallFailed as failure:
            return Answer(0, failure=f"{failure.error.fault.value}: {failure.error.detail}")
        except TimeoutError:
            return Answer(0, failure=f"no answer within {self._seconds:g} seconds")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _message(answer: Answer) -> dict[str, Any] | None:
    choices = _objects(answer.json.get("choices")) if answer.status == 200 else []
    message = choices[0].get("message") if choices else None
    return message if isinstance(message, dict) else None


def _chunks(body: bytes) -> list[dict[str, Any]]:
    """The chunks of an event stream, as far as they are JSON objects."""
    found = []
    for line in body.splitlines():
        if line.startswith(b"data:"):
            try:
                found.append(decode_any(line[5:]))
            except ValueError:
                continue
    return _objects(found)


def _streamed_arguments(answer: Answer) -> str:
    """The arguments of the first call in a stream, put together."""
    pieces = []
    for chunk in _chunks(answer.body) if answer.status == 200 else ():
        for choice in _objects(chunk.get("choices")):
            delta = choice.get("delta")
            for call in _objects(delta.get("tool_calls")) if isinstance(delta, dict) else ():
                function = call.get("function")
                if call.get("index", 0) == 0 and isinstance(function, dict):
                    pieces.append(function.get("arguments") or "")
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _is_json(content: object) -> bool:
    """Whether this is a JSON object; some servers give it parsed."""
    if isinstance(content, dict):
        return True
    try:
        return isinstance(decode_any(content), dict) if isinstance(content, str) else False
    except ValueError:
        return False
