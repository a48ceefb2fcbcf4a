"""Building blocks of answers to Envoy: headers, body parts, metadata and early refusals.

Lives here: values and small functions. Not here: when an answer is legal (`stream.py`, `relay_state.py`,
`immediate_response.py`), and sending one (`peer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from antiphon.doors.extproc import wire
from antiphon.engine.ports.actions import Finish, Usage
from antiphon.errors import ApiError
from antiphon.types.transport import OWN_JSON, Headers, header_value

PART = 256 * 1024
"""Bytes of a body in one message, at most."""

CostOf = Callable[[str, Usage], int]
"""What the tokens of a model cost, in millionths of the prices' currency; 0 where nobody knows."""


def with_request_id(headers: Headers, request_id: str) -> Headers:
    """A response's headers with the id of its request, unless an upstream whose bytes pass untouched named its own."""
    if not request_id or header_value(headers, "x-request-id") is not None:
        return headers
    return (*headers, ("x-request-id", request_id))


def in_parts(body: bytes, part: int = PART) -> Iterator[tuple[bytes | memoryview, bool]]:
    """A whole body as messages of a moderate size, of which several are views of it; the last (the only one of an empty
    body) is marked."""
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
    """The messages of a whole answer, after the request's end. (An operator's `local_reply_config` never rewrites this
    form.)"""
    yield wire.local_head(status, headers, head_told)
    for part, last in in_parts(body):
        yield wire.local_body(part, last, end_told if last else None)


def head_metadata(model: str) -> wire.Metadata:
    """What Envoy is told with a head."""
    return {"model": model} if model else {}


def final_metadata(response_id: str, finish: Finish, cost_of: CostOf) -> wire.Metadata:
    """What Envoy is told with the end: for access logs, rate limits, metrics. (Numbers are those of the response, so of
    all its calls; `cost` is in millionths of the prices' currency.)"""
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
        if cost := cost_of(finish.model, usage):
            metadata["cost"] = cost
    return metadata


def refusal_message(error: ApiError, request_id: str) -> bytes:
    """An error object at once: legal as the first answer, even in the middle of an upload."""
    headers = with_request_id((("content-type", "application/json"), *error.headers), request_id)
    details = f"{OWN_JSON}{error.code or 'refused'}"
    return wire.immediate(error.status, headers, error.body(request_id), details, {"status": "error"})
