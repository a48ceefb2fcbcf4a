"""Builds parts of answers to Envoy: headers, body parts, metadata and early refusals.

Lives here: values and small functions. Not here: when Envoy accepts an answer (`stream.py`, `relay_state.py`,
`immediate_response.py`), sending one (`peer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from antiphon.doors.extproc import wire
from antiphon.engine.ports.actions import Finish, Usage
from antiphon.errors import ApiError
from antiphon.types.transport import OWN_JSON, Headers, header_value

PART = 256 * 1024
"""The maximum bytes of a body in one message."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """How Envoy learns what a response used. `cost_of`: the cost of a model's tokens, in millionths of the prices'
    currency; 0 when unknown. `record_seconds`: the time between two records of a running stream's tokens."""

    cost_of: Callable[[str, Usage], int]
    record_seconds: float = 5.0


def with_request_id(headers: Headers, request_id: str) -> Headers:
    """A response's headers with the id of its request, unless a passed-through upstream response has its own."""
    if not request_id or header_value(headers, "x-request-id") is not None:
        return headers
    return (*headers, ("x-request-id", request_id))


def in_parts(body: bytes, part: int = PART) -> Iterator[tuple[bytes | memoryview, bool]]:
    """A whole body in parts of moderate size; several parts are views of it. The flag marks the last part (the only one
    of an empty body)."""
    last = max(0, len(body) - 1) // part
    if not last:
        yield body, True
        return
    view = memoryview(body)
    for number in range(last + 1):
        yield view[number * part : (number + 1) * part], number == last


def whole_answer(
    status: int, headers: Headers, body: bytes, head_told: wire.Metadata | None, end_told: wire.Metadata | None
) -> Iterator[bytes]:
    """The messages of a complete response, after the request's end. (An operator's `local_reply_config` never rewrites
    this form.)"""
    yield wire.local_head(status, headers, head_told)
    for part, last in in_parts(body):
        yield wire.local_body(part, last, end_told if last else None)


def head_metadata(model: str) -> wire.Metadata:
    """The metadata for Envoy with a head."""
    return {"model": model} if model else {}


def final_metadata(response_id: str, finish: Finish, accounting: Accounting) -> wire.Metadata:
    """The metadata for Envoy at the end: for access logs, rate limits, metrics. (The numbers cover all calls of the
    response; `cost` is in millionths of the prices' currency.)"""
    metadata: wire.Metadata = {"status": finish.outcome}
    if response_id:
        metadata["response_id"] = response_id
    if finish.model:
        metadata["model"] = finish.model
    usage = finish.usage
    if usage is not None:
        metadata["input_tokens"] = usage.input_tokens
        metadata["output_tokens"] = usage.output_tokens
        metadata["total_tokens"] = usage.total_tokens
        if usage.cached_tokens:
            metadata["cached_tokens"] = usage.cached_tokens
        if cost := accounting.cost_of(finish.model, usage):
            metadata["cost"] = cost
        metadata[wire.TOKEN_USAGE] = wire.TokenRecord(finish.model, usage)
    return metadata


def running_metadata(model: str, usage: Usage | None) -> wire.Metadata | None:
    """The metadata for Envoy in the middle of a long stream: the tokens so far, as an estimate. If the stream is cut,
    this is Envoy's last record of them. None: this process does not make the response."""
    if usage is None:
        return None
    return {wire.TOKEN_USAGE: wire.TokenRecord(model, usage, estimated=True)}


def refusal_message(error: ApiError, request_id: str) -> bytes:
    """An immediate error response: Envoy accepts it as the first answer, even during an upload."""
    headers = with_request_id((("content-type", "application/json"), *error.headers), request_id)
    details = f"{OWN_JSON}{error.code or 'refused'}"
    return wire.immediate(error.status, headers, error.body(request_id), details, {"status": "error"})
