"""Probes a chat server with about a dozen small requests to find its features, and identifies the server.

This module sends the probes, interprets the answers, and lists URL paths that identify a server. `command.py` prints
the results, and `upstream_report.py` judges them. `translation/profiles` identifies a server by its list of models or
its host name. This module changes no setting.

Invariants: a probe never raises, and requests at most `_TOKENS` tokens. The result of a probe contains no credential.
Requests that identify a server are `GET` requests without credentials. If these requests do not identify the server,
the result is `""` and never a guess.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.redaction import redacted
from antiphon.translation.profiles import named_by_list
from antiphon.types.json import decode_any
from antiphon.types.transport import Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget

_TOKENS = 256
_FEW = 16
"""The token limit of a probe that only checks whether the server accepts the request."""
SECONDS = 60.0
"""The timeout of a probe in seconds."""
_KINDS = "application/json, text/event-stream"
# Statuses that reject the request itself. Other errors (a rate limit, a broken server) do not depend on the request.
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

# A path outside the API, the keys that its JSON object must have, and the profile that they identify.
_SIGNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("/props", ("default_generation_settings",), "llamacpp"),
    ("/server_info", ("model_path", "version"), "sglang"),
    ("/get_server_info", ("model_path", "version"), "sglang"),
    ("/info", ("model_id", "max_total_tokens"), "tgi"),
    ("/api/version", ("version",), "ollama"),
    ("/api/v0/models", ("data",), "lmstudio"),
    ("/version", ("version",), "vllm"),
)
_PORTS = {11434: "Ollama", 8000: "vLLM", 8080: "llama.cpp", 1234: "LM Studio", 30000: "SGLang", 3000: "TGI"}

# OpenSSL's words for RFC 5280 requirements that older Python versions did not check.
_ASKED_FOR_NOW = ("Key Identifier", "Basic Constraints", "key usage")

PLAIN_HTTP_QUESTION = "does the server use http, not https?"
"""The question to the operator when the TLS handshake fails."""


@dataclass
class Answer:
    """The HTTP response to a probe. If there was no response, `status` is 0 and `failure` has the cause."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    @property
    def json(self) -> dict[str, object]:
        """The JSON object in the response. The result is empty if the body is not a JSON object."""
        try:
            value = decode_any(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def refused(self) -> bool:
        """Whether the response has one of the statuses in `_REFUSALS`, so that the probed feature is not supported."""
        return self.status in _REFUSALS

    @property
    def message(self) -> dict[str, object] | None:
        """The message of the first choice. The result is None if the response has no such message."""
        choices = objects(self.json.get("choices")) if self.status == 200 else []
        message = choices[0].get("message") if choices else None
        return message if isinstance(message, dict) else None

    @property
    def problem(self) -> str:
        """The failure in one line."""
        if self.failure:
            return self.failure
        error = self.json.get("error", self.json.get("detail", self.json.get("message", "")))
        text = error.get("message", "") if isinstance(error, dict) else error
        said = redacted(str(text), 200) if text else ""
        return f"HTTP {self.status}{': ' + said if said else ''}"


@dataclass
class ProbedFeature:
    """One feature of the server. `refused`: whether requests with this feature fail. `detail`: what the probe
    observed."""

    name: str
    works: bool
    detail: str
    refused: bool = False


def _refusal(name: str, answer: Answer) -> ProbedFeature:
    return ProbedFeature(name, False, answer.problem, refused=answer.refused)


class ChatProbes:
    """Probes one server with one model."""

    def __init__(self, upstream: HttpUpstream, headers: Headers, *, seconds: float = SECONDS) -> None:
        self._upstream = upstream
        self._seconds = seconds
        self._headers = headers
        self._limit_field = "max_tokens"
        self._thinking = ""

    async def get(self, path: str) -> Answer:
        """`GET` a path below the base URL."""
        return await self._call("GET", path, b"")

    async def run(self, model: str, *, images: bool = False) -> AsyncIterator[ProbedFeature]:
        """Run all probes, and yield each result. If the first probe, `answers`, fails, the method skips the other
        probes."""
        plain = await self._chat(model, "Say hello.")
        limit = ProbedFeature("max_tokens", True, "accepted")
        if plain.status == 400 and b"max_completion_tokens" in plain.body:
            limit = _refusal("max_tokens", plain)
            self._limit_field = "max_completion_tokens"
            plain = await self._chat(model, "Say hello.")
        message = plain.message
        if message is None:
            detail = plain.problem if plain.status != 200 else "HTTP 200, but no completion"
            yield ProbedFeature("answers", False, detail, refused=plain.refused)
            return
        said = "text" if message.get("content") else f"no text within {_TOKENS} tokens"
        yield ProbedFeature("answers", True, said)
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
        yield ProbedFeature(
            "reasoning that is shown", bool(self._thinking), self._thinking or "the model sent no reasoning"
        )

    # One probe each

    async def _stream(self, model: str) -> list[ProbedFeature]:
        asked = await self._chat(model, "Say hello.", stream=True, stream_options={"include_usage": True})
        answer = asked if asked.status == 200 else await self._chat(model, "Say hello.", stream=True)
        if answer.status != 200:
            return [_refusal("streaming", answer)]
        kind = answer.headers.get("content-type", "")
        if "text/event-stream" not in kind:
            return [
                ProbedFeature(
                    "streaming", False, f"the answer has {f'the content type {kind}' if kind else 'no content type'}"
                )
            ]
        chunks = _chunks(answer.body)
        ended = any(choice.get("finish_reason") for chunk in chunks for choice in objects(chunk.get("choices")))
        counted = any(isinstance(chunk.get("usage"), dict) for chunk in chunks)
        usage = ProbedFeature(
            "usage in streams",
            counted,
            "counted" if counted else "the server accepts the field, but its stream has no usage",
        )
        return [
            ProbedFeature("streaming", True, f"{len(chunks)} chunks"),
            usage if asked.status == 200 else _refusal("usage in streams", asked),
            ProbedFeature(
                "finish_reason in streams", ended, "present" if ended else "the stream ends without finish_reason"
            ),
        ]

    async def _tools(self, model: str) -> AsyncIterator[ProbedFeature]:
        said = "What is the weather in Paris? Use the tool."
        offered = await self._chat(model, said, tools=[_TOOL])
        yield self._called("tools", offered)
        if offered.refused:
            return
        streamed = await self._chat(model, said, tools=[_TOOL], stream=True)
        whole = _streamed_arguments(streamed)
        fits = _is_json(whole)
        detail = "the arguments are JSON" if fits else "broken JSON" if whole else "the model called no tool"
        yield ProbedFeature("tool calls in streams", fits, detail, refused=streamed.refused)
        yield self._called("tool_choice required", await self._chat(model, said, tools=[_TOOL], tool_choice="required"))
        yield self._called("a named tool_choice", await self._chat(model, said, tools=[_TOOL], tool_choice=_NAMED))
        yield await self._taken("parallel_tool_calls", model, tools=[_TOOL], parallel_tool_calls=False)

    def _called(self, name: str, answer: Answer) -> ProbedFeature:
        if (message := answer.message) is None:
            return _refusal(name, answer)
        self._note_thinking(message)
        calls = message.get("tool_calls")
        return ProbedFeature(
            name,
            bool(calls),
            "the model called the tool" if calls else "the server accepts the request, but the model called no tool",
        )

    async def _formats(self, model: str) -> AsyncIterator[ProbedFeature]:
        said = 'Answer with JSON: {"ok": true}'
        schema = {"type": "json_schema", "json_schema": {"name": "probe", "schema": _SCHEMA, "strict": True}}
        for name, response_format in (("json_schema", schema), ("json_object", {"type": "json_object"})):
            answer = await self._chat(model, said, response_format=response_format)
            fits = _is_json((answer.message or {}).get("content"))
            detail = "the answer is JSON" if fits else "the server accepts the field, but the answer is not JSON"
            yield ProbedFeature(name, fits, detail) if answer.message is not None else _refusal(name, answer)

    async def _logprobs(self, model: str) -> ProbedFeature:
        answer = await self._chat(model, "Say hello.", limit=_FEW, logprobs=True, top_logprobs=1)
        if answer.status != 200:
            return _refusal("logprobs", answer)
        present = any(choice.get("logprobs") for choice in objects(answer.json.get("choices")))
        return ProbedFeature(
            "logprobs",
            present,
            "present" if present else "the server accepts the field, but its answer has no log probabilities",
        )

    async def _role(self, model: str) -> ProbedFeature:
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
        return await self._answered("developer role", model, messages)

    async def _image(self, model: str) -> ProbedFeature:
        parts = [{"type": "text", "text": "Which colour?"}, {"type": "image_url", "image_url": {"url": _PIXEL}}]
        return await self._answered("images", model, [{"role": "user", "content": parts}])

    async def _answered(self, name: str, model: str, messages: Sequence[Mapping[str, object]]) -> ProbedFeature:
        answer = await self._chat(model, "", limit=_FEW, messages=messages)
        return ProbedFeature(name, True, "accepted") if answer.status == 200 else _refusal(name, answer)

    async def _taken(self, name: str, model: str, **fields: object) -> ProbedFeature:
        answer = await self._chat(model, "Say hello.", limit=_FEW, **fields)
        if (message := answer.message) is None:
            return _refusal(name, answer)
        self._note_thinking(message)
        return ProbedFeature(name, True, "accepted")

    def _note_thinking(self, message: dict[str, object]) -> None:
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

    async def _chat(self, model: str, said: str, *, limit: int = _TOKENS, **fields: object) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": said}], self._limit_field: limit, **fields}
        return await self._call("POST", "/chat/completions", json.dumps(body).encode())

    async def _call(self, method: str, path: str, body: bytes) -> Answer:
        headers = (("content-type", "application/json"), ("accept", _KINDS), *self._headers)
        request = UpstreamRequest(method, path, headers, body, "", stream=False)
        try:
            async with asyncio.timeout(self._seconds), self._upstream.call(request) as answer:
                parts = [part async for part in answer.body()]
                return Answer(answer.status, b"".join(parts), dict(answer.headers))
        except UpstreamCallFailed as failure:
            return Answer(0, failure=f"{failure.error.fault.value}: {failure.error.detail}")
        except TimeoutError:
            return Answer(0, failure=f"no answer within {self._seconds:g} seconds")


def objects(value: object) -> list[dict[str, object]]:
    """The objects in a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _chunks(body: bytes) -> list[dict[str, object]]:
    """The chunks of an event stream that are JSON objects."""
    found = []
    for line in body.splitlines():
        if line.startswith(b"data:"):
            try:
                found.append(decode_any(line[5:]))
            except ValueError:
                continue
    return objects(found)


def _streamed_arguments(answer: Answer) -> str:
    """The joined arguments of the first tool call in a stream."""
    pieces = []
    for chunk in _chunks(answer.body) if answer.status == 200 else ():
        for choice in objects(chunk.get("choices")):
            delta = choice.get("delta")
            for call in objects(delta.get("tool_calls")) if isinstance(delta, dict) else ():
                function = call.get("function")
                if call.get("index", 0) == 0 and isinstance(function, dict):
                    pieces.append(function.get("arguments") or "")
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _is_json(content: object) -> bool:
    """Whether the content of an answer's message is a JSON object, as text or already parsed. Some servers return an
    object in place of text."""
    if isinstance(content, dict):
        return True
    try:
        return isinstance(decode_any(content), dict) if isinstance(content, str) else False
    except ValueError:
        return False


# The kind of server, and the advice about a server that does not answer


async def url_with_prefix(probes: ChatProbes, url: str) -> str:
    """The URL with the prefix `/v1`, if the server lists models below this prefix. Otherwise the result is empty."""
    if url.endswith("/v1"):
        return ""
    below = await probes.get("/v1/models")
    return f"{url}/v1" if below.status == 200 else ""


async def identify(target: UpstreamTarget, url: str, listed: Answer) -> str:
    """The profile that the server's list of models, its headers, or special paths indicate."""
    if profile := named_by_list(listed.json, listed.headers.get("server", "")):
        return profile
    # These paths are outside the API, and the requests carry no credentials.
    headers = tuple((name, value) for name, value in target.headers if name != "authorization")
    beside = UpstreamTarget(url.removesuffix("/v1"), target.unix_path, headers, target.ssl)
    async with aclosing(HttpUpstream(beside, connect_seconds=3.0, head_seconds=5.0)) as client:
        probes = ChatProbes(client, ())
        for path, keys, profile in _SIGNS:
            answer = await probes.get(path)
            if answer.status == 200 and all(key in answer.json for key in keys):
                return profile
    return ""


def prefix_question(section: str) -> str:
    """The question to the operator when `GET /models` gets a 404. This is only a question, because some servers with
    the right prefix have no list of models."""
    return f"is the prefix of {section}.url right (…/v1)?"


def certificate_advice(failure: str, section: str) -> str:
    """The advice about a rejected certificate. For other failures the text is empty."""
    if "certificate" not in failure:
        return ""
    if "expired" in failure:
        return "the certificate has expired: renew it at the server"
    if any(word in failure for word in _ASKED_FOR_NOW):
        return (
            "Python 3.13 and newer require a field that the server's or the CA's certificate lacks: "
            "issue new certificates"
        )
    return (
        f"set {section}.ca_file to the CA certificates, or {section}.host to the host name in the server's certificate"
    )


def usual_server(url: str) -> str:
    """A hint: the server that usually listens on the port of this URL. For other ports the text is empty."""
    return _PORTS.get(urlsplit(url).port or 0, "")
