"""Creates the trace spans of one response: the request, and each model call.

This module sets the attributes of a response's spans. Tools, retrieval and stores create child spans of the request's
span themselves (`tracing.span`). `observation.py` collects times and numbers for metrics.

Invariant: a span contains messages of the conversation only if the setting `tracing.content` is on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import Usage
from antiphon.observability import span_names as names
from antiphon.observability.metric_values import NAME_LENGTH
from antiphon.observability.span_names import Value
from antiphon.observability.tracing import set_current
from antiphon.types.transport import Headers

if TYPE_CHECKING:
    from antiphon.observability.otel import Span, Tracer

_Begun = tuple[str, names.Kind, Mapping[str, Value]]
_REQUEST: Final[_Begun] = (names.REQUEST, "server", {names.METHOD: "POST", names.ROUTE: "/v1/responses"})
_SPANS: Final[Mapping[str, _Begun]] = {
    "background": (names.JOB, "consumer", {}),
    "websocket": (names.TURN, "server", {names.ROUTE: "/v1/responses"}),
}
"""Maps the value of `door` to the name, kind and attributes of the request's span."""


class ResponseSpans:
    """The spans of one sampled response. While the response runs, the request's span is the current span of its
    task."""

    def __init__(self, span: Span) -> None:
        self.request = span
        """The span of the request."""
        self._content = span.content
        self._call: Span | None = None
        self._call_ended_at = 0
        self._call_error = ""
        set_current(span)

    @classmethod
    def begin(cls, tracer: Tracer, door: str, headers: Headers) -> ResponseSpans | None:
        """Begin the request's span. Returns None when the request is not sampled."""
        name, kind, said = _SPANS.get(door, _REQUEST)
        span = tracer.begin(name, kind, headers, linked=kind == "consumer")
        if span is None:
            return None
        span.set(said)
        return cls(span)

    def begin_call(self, upstream: str, model: str, body: bytes) -> Headers:
        """Begin the span of a model call. Returns the headers that continue the trace in the call."""
        self._close_call()
        model = model[:NAME_LENGTH]
        said: dict[str, Value] = {
            names.OPERATION: names.CHAT,
            names.PROVIDER: "openai_compatible",
            names.MODEL: model,
            names.UPSTREAM: upstream,
        }
        if self._content:
            said[names.INPUT_MESSAGES] = _asked(body)
        self._call = self.request.child(f"{names.CHAT} {model}", "client", said)
        return self._call.headers()

    def drop_call(self) -> None:
        """Forget the span of the current call, because Antiphon does not make the call. The collector never gets this
        span."""
        self._call = None

    def first_data(self, seconds: float) -> None:
        """Record the seconds from the call's start to its first bytes."""
        if self._call is not None:
            self._call.set({names.FIRST_CHUNK: round(seconds, 6)})

    def call_over(self, upstream: str, status: int, fault: str, at: float | None = None) -> None:
        """Record the end of the call, now or at `at` (seconds since the epoch). The span stays open until the exchange
        knows the call's token usage."""
        if self._call is not None:
            self._call_ended_at = time.time_ns() if at is None else int(at * 1e9)
            self._call_error = fault or (str(status) if status >= 400 else "")
            self._call.set({names.UPSTREAM: upstream} | ({names.STATUS: status} if status else {}))

    def call_used(self, usage: Usage) -> None:
        """Record the tokens of the call."""
        if self._call is not None:
            told: dict[str, Value] = {
                names.INPUT_TOKENS: usage.input_tokens,
                names.OUTPUT_TOKENS: usage.output_tokens,
                names.CACHED_TOKENS: usage.cached_tokens,
                names.CACHE_WRITE_TOKENS: usage.cache_write_tokens,
                names.REASONING_TOKENS: usage.reasoning_tokens,
            }
            self._call.set({name: value for name, value in told.items() if value})

    def end(
        self, exchange: ResponseExchange, door: str, request_id: str, outcome: str, failure: Failure | None, at: float
    ) -> None:
        """End the spans, because the response ended at `at` (seconds since the epoch)."""
        self._close_call()
        told: dict[str, Value] = {
            names.DOOR: door,
            names.OUTCOME: outcome,
            names.REQUEST_ID: request_id,
            names.RESPONSE_ID: exchange.known.response_id,
            names.MODEL: exchange.known.model[:NAME_LENGTH],
            names.STREAMED: exchange.known.streaming,
        }
        if failure is not None:
            told |= {names.FAULT: failure.fault, names.CODE: failure.code, names.STATUS: failure.status or 200}
        if self._content:
            told[names.OUTPUT_MESSAGES] = _answered(exchange.known.output_items)
        self.request.set({name: value for name, value in told.items() if value != ""})
        error = (failure.code or failure.fault) if failure is not None and failure.fault != "client" else ""
        self.request.end(error, int(at * 1e9))
        set_current(None)

    def drop(self) -> None:
        """End the spans of a request that was not read completely."""
        self._close_call()
        self.request.end()
        set_current(None)

    def _close_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.end(self._call_error, self._call_ended_at)
        self._call_ended_at, self._call_error = 0, ""


def _asked(body: bytes) -> str:
    """Return the messages of a chat request as JSON, in the form of OpenTelemetry's conventions."""
    try:
        messages = json.loads(body).get("messages") or []
    except (ValueError, AttributeError):
        return "[]"
    return json.dumps([_message(each) for each in messages if isinstance(each, dict)])


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    parts: list[dict[str, object]] = []
    if message.get("role") == "tool":
        parts.append({"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content})
    elif isinstance(content, str):
        parts.append({"type": "text", "content": content})
    elif isinstance(content, list):
        parts += [
            {"type": "text", "content": part.get("text")} if part.get("type") == "text" else {"type": part.get("type")}
            for part in content
            if isinstance(part, dict)
        ]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        named = {key: function.get(key) for key in ("name", "arguments")}
        parts.append({"type": "tool_call", "id": call.get("id"), **named})
    return {"role": message.get("role"), "parts": parts}


def _answered(items: bytes) -> str:
    """Return the output items as JSON, in the form of OpenTelemetry's conventions: one message of the assistant."""
    parts: list[dict[str, object]] = []
    for item in json.loads(items):
        if item.get("type") == "message":
            parts += [
                {"type": "text", "content": part.get("text", part.get("refusal"))} for part in item.get("content", ())
            ]
        elif item.get("type") == "function_call":
            parts.append(
                {"type": "tool_call", "id": item.get("call_id"), "name": item["name"], "arguments": item["arguments"]}
            )
        elif item.get("type") == "reasoning":
            parts += [{"type": "reasoning", "content": part.get("text")} for part in item.get("content") or ()]
    return json.dumps([{"role": "assistant", "parts": parts}])
