"""Builds parts of answers to Envoy: headers, body chunks, metadata and early refusals.

This module has values and pure functions. `stream.py`, `relay_state.py` and `immediate_response.py` know when Envoy
accepts an answer. `peer.py` sends the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from antiphon.doors.extproc import wire
from antiphon.engine.ports.actions import Finish, Usage
from antiphon.errors import ApiError
from antiphon.types.transport import OWN_JSON, Headers, header_value

PART = 256 * 1024
"""The maximum number of body bytes in one ext_proc message."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """Settings for the token counts and costs that the sidecar reports to Envoy as metadata.

    `cost_of` returns the cost of a model's tokens, in millionths of the currency of the configured prices, or 0 when
    the price is unknown. `record_seconds` is the time between two token records of a running stream.
    """

    cost_of: Callable[[str, Usage], int]
    record_seconds: float = 5.0


def with_request_id(headers: Headers, request_id: str) -> Headers:
    """Return the headers with the request's id as `x-request-id`. Headers that have an `x-request-id` already, from a
    passed-through upstream response, stay unchanged."""
    if not request_id or header_value(headers, "x-request-id") is not None:
        return headers
    return (*headers, ("x-request-id", request_id))


def in_parts(body: bytes, part: int = PART) -> Iterator[tuple[bytes | memoryview, bool]]:
    """Split a body into chunks of at most `part` bytes. If the body needs several chunks, they are views of the body
    and no copies. The flag marks the last chunk; an empty body gives one empty chunk."""
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
    """Build the messages of a complete response, for use after the request's end. Envoy's `local_reply_config` never
    rewrites a response in this form, unlike an immediate response."""
    yield wire.local_head(status, headers, head_told)
    for part, last in in_parts(body):
        yield wire.local_body(part, last, end_told if last else None)


def head_metadata(model: str) -> wire.Metadata:
    """Build the metadata that accompanies a response head for Envoy."""
    return {"model": model} if model else {}


def final_metadata(response_id: str, finish: Finish, accounting: Accounting) -> wire.Metadata:
    """Build the metadata for Envoy's access logs, rate limits and metrics at the end of a response. The token counts
    cover all model calls of the response. `cost` is in millionths of the currency of the configured prices."""
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
    """Build the metadata for Envoy in the middle of a long stream: the estimated tokens so far. If the stream is cut,
    this estimate is Envoy's last token record. Returns None without an estimate."""
    if usage is None:
        return None
    return {wire.TOKEN_USAGE: wire.TokenRecord(model, usage, estimated=True)}


def refusal_message(error: ApiError, request_id: str) -> bytes:
    """Build an immediate error response. Envoy accepts such a response as the first answer, even during an upload."""
    headers = with_request_id((("content-type", "application/json"), *error.headers), request_id)
    details = f"{OWN_JSON}{error.code or 'refused'}"
    return wire.immediate(error.status, headers, error.body(request_id), details, {"status": "error"})
