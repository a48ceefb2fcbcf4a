"""Token usage, in every place and spelling a provider puts it.

Lives here: reading a chat usage object into ours, and the sum of several model calls. Not here: when it is read
(`chat_stream.py`), when it is summed (`engine/exchange/made_response.py`).

Invariant: absent counts stay absent as a whole (no usage at all is None, never zeros), and every number is a
non-negative integer.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from antiphon.types.json import decode_any, encode
from antiphon.types.response import InputTokensDetails, OutputTokensDetails, UsageObject


def read_usage(data: Raw) -> UsageObject | None:
    """The usage object, or None when the data holds no counts.

    Details come from `prompt_tokens_details` / `completion_tokens_details`, or from the flat spellings of DeepSeek,
    Together, Databricks and SGLang.
    """
    try:
        value = decode_any(bytes(data))
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    prompt = _count(value, "prompt_tokens", "input_tokens")
    completion = _count(value, "completion_tokens", "output_tokens")
    total = _count(value, "total_tokens")
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    inputs = _details(value, "prompt_tokens_details", "input_tokens_details")
    outputs = _details(value, "completion_tokens_details", "output_tokens_details")
    cached = _count(inputs, "cached_tokens")
    if cached is None:
        cached = _count(value, "prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
    written = _count(inputs, "cache_write_tokens")
    if written is None:
        written = _count(value, "cache_write_tokens", "cache_creation_input_tokens")
    reasoning = _count(outputs, "reasoning_tokens")
    if reasoning is None:
        reasoning = _count(value, "reasoning_tokens")
    return usage_object(
        prompt,
        completion,
        prompt + completion if total is None else total,
        cached or 0,
        written or 0,
        reasoning or 0,
    )


def _details(value: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        details = value.get(name)
        if isinstance(details, dict):
            return details
    return {}


def _count(value: dict[str, Any], *names: str) -> int | None:
    for count in map(value.get, names):
        if count is not None and isinstance(count, (int, float)) and count.__class__ is not bool and 0 <= count < 2**53:
            return int(count)
    return None


def read_groq_usage(data: bytes) -> UsageObject | None:
    """Usage inside `x_groq` (older Groq)."""
    try:
        value = decode_any(data)
    except ValueError:
        return None
    usage = value.get("usage") if isinstance(value, dict) else None
    return read_usage(Raw(encode(usage))) if isinstance(usage, dict) else None


def usage_object(
    input_tokens: int, output_tokens: int, total_tokens: int, cached: int, cache_write: int, reasoning: int
) -> UsageObject:
    """The usage object with both of its details objects."""
    return UsageObject(
        input_tokens=input_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=cached, cache_write_tokens=cache_write),
        output_tokens=output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
        total_tokens=total_tokens,
    )


def add_usage(one: UsageObject, other: UsageObject | None) -> UsageObject:
    """What two model calls of one response cost together."""
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
    """The server's counts; reasoning that it gave and did not count is estimated, by its share of the output:
    `reasoned` of `written` bytes."""
    if reasoned and not usage.output_tokens_details.reasoning_tokens:
        usage.output_tokens_details.reasoning_tokens = round(usage.output_tokens * (reasoned / written))
    return usage
