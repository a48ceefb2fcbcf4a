"""What a chat server really supports, found out by asking it: a few small requests.

Lives here: the probes and what their answers mean. Not here: printing (`doctor.py`), and using what was found (an
operator does, by settings).

Invariant: a probe never raises and costs at most `_TOKENS` tokens; what it reports holds no credential.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from antiphon.engine.actions import UpstreamRequest
from antiphon.engine.ports import UpstreamCallFailed
from antiphon.redaction import redacted
from antiphon.types.json import decode_any
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget

__all__ = ["Answer", "ChatProbes", "Support", "identify"]

_TOKENS = 256
_SECONDS = 60.0
_KINDS = "application/json, text/event-stream"
_SIGNS = (("/api/version", "version", "ollama"), ("/props", "default_generation_settings", "llamacpp"))
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


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
        try:
            value = decode_any(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

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
    """One thing the server can or cannot do; `detail` says how it was seen."""

    name: str
    works: bool
    detail: str


class ChatProbes:
    """Asks one server about one model."""

    def __init__(self, upstream: HttpUpstream, headers: tuple[tuple[str, str], ...]) -> None:
        self._upstream = upstream
        self._headers = headers
        self.limit_field = "max_tokens"
        self.thinking = ""

    async def get(self, path: str) -> Answer:
        return await self._call("GET", path, b"")

    async def chat(self, model: str, said: str, **fields: Any) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": said}], self.limit_field: _TOKENS, **fields}
        return await self._call("POST", "/chat/completions", json.dumps(body).encode())

    async def run(self, model: str) -> list[Support]:
        """All probes; the first tells whether the others make sense."""
        plain = await self.chat(model, "Say hello.")
        if plain.status == 400 and "max_completion_tokens" in plain.body.decode("utf-8", "replace"):
            self.limit_field = "max_completion_tokens"
            plain = await self.chat(model, "Say hello.")
        found = [
            Support("answers", _message(plain) is not None, plain.problem if plain.status != 200 else self.limit_field)
        ]
        if not found[0].works:
            return found
        self._note_thinking(plain)
        found += [
            await self._stream(model),
            *await self._tools(model),
            *await self._formats(model),
            await self._flag(model, "logprobs", logprobs=True, top_logprobs=1),
            await self._flag(model, "reasoning_effort", reasoning_effort="low"),
        ]
        found.append(Support("thinking aloud", bool(self.thinking), self.thinking or "none was seen"))
        return found

    async def _stream(self, model: str) -> Support:
        answer = await self.chat(model, "Say hello.", stream=True, stream_options={"include_usage": True})
        if answer.status != 200:
            return Support("streaming", False, answer.problem)
        if "text/event-stream" not in answer.content_type:
            return Support("streaming", False, f"the answer is {answer.content_type or 'of no type'}")
        usage = b'"prompt_tokens"' in answer.body
        return Support("streaming", True, "with usage" if usage else "without usage (token counts will be missing)")

    async def _tools(self, model: str) -> list[Support]:
        said = "What is the weather in Paris? Use the tool."
        offered = await self.chat(model, said, tools=[_TOOL])
        named = await self.chat(
            model, said, tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}
        )
        self._note_thinking(offered)
        return [self._called("tools", offered), self._called("a named tool_choice", named)]

    @staticmethod
    def _called(name: str, answer: Answer) -> Support:
        message = _message(answer)
        if message is None:
            return Support(name, False, answer.problem)
        calls = message.get("tool_calls")
        return Support(name, bool(calls), "the tool was called" if calls else "taken, but no call was made")

    async def _formats(self, model: str) -> list[Support]:
        said = 'Answer with JSON: {"ok": true}'
        schema = {"type": "json_schema", "json_schema": {"name": "probe", "schema": _SCHEMA, "strict": True}}
        found = []
        for name, response_format in (("json_schema", schema), ("json_object", {"type": "json_object"})):
            answer = await self.chat(model, said, response_format=response_format)
            message = _message(answer)
            if message is None:
                found.append(Support(name, False, answer.problem))
                continue
            fits = _is_json(message.get("content"))
            found.append(Support(name, fits, "the answer is JSON" if fits else "taken, but the answer is no JSON"))
        return found

    async def _flag(self, model: str, name: str, **fields: Any) -> Support:
        answer = await self.chat(model, "Say hello.", **fields)
        self._note_thinking(answer)
        if answer.status != 200:
            return Support(name, False, answer.problem)
        if name == "logprobs":
            choices = answer.json.get("choices") or [{}]
            present = isinstance(choices[0], dict) and bool(choices[0].get("logprobs"))
            return Support(name, present, "present" if present else "taken, but there are none")
        return Support(name, True, "taken")

    def _note_thinking(self, answer: Answer) -> None:
        message = _message(answer) or {}
        content = message.get("content")
        for name in ("reasoning_content", "reasoning"):
            if message.get(name):
                self.thinking = name
        if isinstance(content, str) and not self.thinking:
            if content.lstrip().startswith("<think>"):
                self.thinking = "<think> in the content"
            elif "</think>" in content:
                self.thinking = "</think> alone in the content"

    async def _call(self, method: str, path: str, body: bytes) -> Answer:
        headers = (
            ("content-type", "application/json"),
            ("accept", _KINDS),
            *self._headers,
        )
        request = UpstreamRequest(method, path, headers, body, "", stream=False)
        try:
            async with asyncio.timeout(_SECONDS), self._upstream.call(request) as answer:
                parts = [part async for part in answer.body()]
                told = dict(answer.headers)
                return Answer(answer.status, b"".join(parts), told.get("content-type", ""), told)
        except UpstreamCallFailed as failure:
            return Answer(0, failure=f"{failure.error.fault.value}: {failure.error.detail}")
        except TimeoutError:
            return Answer(0, failure=f"no answer within {_SECONDS:g} seconds")


async def identify(target: UpstreamTarget, root: str, listed: Answer) -> str:
    """Which profile the server itself suggests; empty when it does not say what it is."""
    owners = json.dumps(listed.json).lower()
    server = listed.headers.get("server", "").lower()
    for sign, profile in (("vllm", "vllm"), ("sglang", "sglang"), ("llamacpp", "llamacpp"), ("llama.cpp", "llamacpp")):
        if sign in server or f'"owned_by": "{sign}"' in owners:
            return profile
    probe = HttpUpstream(
        UpstreamTarget(root, target.unix_path, target.headers, target.ssl), connect_seconds=3.0, head_seconds=5.0
    )
    try:
        asks = ChatProbes(probe, ())
        for path, key, profile in _SIGNS:
            if key in (await asks.get(path)).json:
                return profile
        if "vllm" in (await asks.get("/version")).body.decode("utf-8", "replace").lower():
            return "vllm"
    finally:
        await probe.aclose()
    return ""


def _message(answer: Answer) -> dict[str, Any] | None:
    if answer.status != 200:
        return None
    choices = answer.json.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    message = choices[0].get("message")
    return message if isinstance(message, dict) else None


def _is_json(content: object) -> bool:
    if isinstance(content, dict):
        return True
    try:
        return isinstance(decode_any(content), dict) if isinstance(content, str) else False
    except ValueError:
        return False
