"""Reads token usage from every field name and spelling that providers use.

This module converts a chat usage object into a Responses usage object, and adds the usage of several model calls. The
module also finds the usage in an answer that Antiphon forwards unchanged.

Invariant: an answer without usage gives None, never zeros, and every number is a non-negative integer. Antiphon never
mistakes text of a model or a client for the upstream's count. This module reads only complete events and answers in
which upstreams report usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from antiphon.types.chat import ChatUsage, UsageDetails
from antiphon.types.json import decode_object, raw, try_decode
from antiphon.types.response import InputTokensDetails, OutputTokensDetails, UsageObject
from antiphon.types.views import PassedAnswer

_USAGE: Final = msgspec.json.Decoder(ChatUsage)
_DETAILS: Final = tuple(name for name in ChatUsage.__struct_fields__ if name.endswith("_details"))
_COUNTS: Final = tuple(name for name in ChatUsage.__struct_fields__ if name not in _DETAILS)
_NO_DETAILS: Final = UsageDetails()


def read_usage(data: Raw) -> UsageObject | None:
    """Return the usage object, or None if the data contains no counts.

    Details come from `prompt_tokens_details` / `completion_tokens_details`, or from the flat spellings of DeepSeek,
    Together, Databricks and SGLang.
    """
    found = try_decode(_USAGE, data) or _read_leniently(bytes(data))
    prompt = _first(found.prompt_tokens, found.input_tokens)
    completion = _first(found.completion_tokens, found.output_tokens)
    if prompt is None and completion is None:
        return None
    prompt, completion, total = prompt or 0, completion or 0, found.total_tokens
    inputs = found.prompt_tokens_details or found.input_tokens_details or _NO_DETAILS
    outputs = found.completion_tokens_details or found.output_tokens_details or _NO_DETAILS
    cached = _first(
        inputs.cached_tokens, found.prompt_cache_hit_tokens, found.cached_tokens, found.cache_read_input_tokens
    )
    written = _first(inputs.cache_write_tokens, found.cache_write_tokens, found.cache_creation_input_tokens)
    reasoning = _first(outputs.reasoning_tokens, found.reasoning_tokens)
    return usage_object(
        prompt,
        completion,
        prompt + completion if total is None else total,
        cached or 0,
        written or 0,
        reasoning or 0,
    )


def _first(*counts: int | None) -> int | None:
    for count in counts:
        if count is not None:
            return count
    return None


def _read_leniently(data: bytes) -> ChatUsage:
    """Return the valid numbers of a malformed usage object."""
    value = decode_object(data)
    details: dict[str, Any] = {name: _details(value.get(name)) for name in _DETAILS}
    return ChatUsage(**_counts(value, _COUNTS), **details)


def _details(value: object) -> UsageDetails | None:
    return UsageDetails(**_counts(value, UsageDetails.__struct_fields__)) if isinstance(value, dict) else None


def _counts(value: dict[str, object], names: Sequence[str]) -> dict[str, Any]:
    return {name: _count(value.get(name)) for name in names}


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if 0 <= value < 2**53 else None


def read_groq_usage(data: bytes) -> UsageObject | None:
    """Return the usage in a chunk's member `x_groq`, which older versions of Groq send."""
    usage = decode_object(data).get("usage")
    return read_usage(raw(usage)) if isinstance(usage, dict) else None


def usage_object(
    input_tokens: int, output_tokens: int, total_tokens: int, cached: int, cache_write: int, reasoning: int
) -> UsageObject:
    """Make a usage object, including the objects with details of input and output tokens."""
    inputs, outputs = InputTokensDetails(cached, cache_write), OutputTokensDetails(reasoning)
    return UsageObject(input_tokens, inputs, output_tokens, outputs, total_tokens)


def add_usage(one: UsageObject, other: UsageObject | None) -> UsageObject:
    """Add the usage of two model calls."""
    if other is None:
        return one
    return usage_object(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.total_tokens + other.total_tokens,
        one.input_tokens_details.cached_tokens + other.input_tokens_details.cached_tokens,
        one.input_tokens_details.cache_write_tokens + other.input_tokens_details.cache_write_tokens,
        one.output_tokens_details.reasoning_tokens + other.output_tokens_details.reasoning_tokens,
    )


def with_reasoning(usage: UsageObject, written: int, reasoned: int) -> UsageObject:
    """Return the server's usage. If the server did not count the answer's reasoning tokens, the function estimates
    their number. The estimate is `reasoned / written` (both in bytes) times the number of output tokens. Changes
    `usage` in place."""
    if reasoned and not usage.output_tokens_details.reasoning_tokens:
        usage.output_tokens_details.reasoning_tokens = round(usage.output_tokens * (reasoned / written))
    return usage


_PASSED: Final = msgspec.json.Decoder(PassedAnswer)


def usage_of_answer(body: bytes) -> UsageObject | None:
    """Return the usage in a whole JSON answer or in the data of one event. Returns None if the body reports no
    usage."""
    passed = try_decode(_PASSED, body)
    if passed is None:
        return None
    used = read_usage(passed.usage) if passed.usage else None
    return used or (read_usage(passed.response.usage) if passed.response is not None else None)


def usage_of_stream(tail: bytes) -> UsageObject | None:
    """Return the usage in the last complete event that reports usage. `tail` may begin in the middle of an event."""
    for line in reversed(tail.splitlines()[1:]):
        if line.startswith(b"data:") and b'"usage"' in line:
            used = usage_of_answer(line[5:])
            if used is not None:
                return used
    return None
