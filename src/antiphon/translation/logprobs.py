"""Log probabilities of tokens, in Responses' form.

Lives here: reading a chat choice's `logprobs`. Not here: whether they were asked for (`chat_stream.py`).

Source: OpenAI's observed streams: `{token, bytes, logprob, top_logprobs}`, where Chat allows `bytes` to be null.

Invariant: every entry has all four keys with the right types, or is left out.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from antiphon.types.json import decode_any, encode


def read_logprobs(data: Raw) -> list[Raw]:
    """The entries for the tokens of the content; those of reasoning and refusals are no part of a text."""
    try:
        value = decode_any(bytes(data))
    except ValueError:
        return []
    entries = value.get("content") if isinstance(value, dict) else None
    return [Raw(encode(made)) for entry in _objects(entries) if (made := _entry(entry)) is not None]


def last_logprobs(entries: list[Raw], text: str) -> list[Raw]:
    """Those entries at the end that make up the text: servers list the tokens of hidden reasoning before them."""
    left = len(text.encode("utf-8", "replace"))
    number = len(entries)
    while number and left > 0:
        number -= 1
        left -= len(decode_any(bytes(entries[number]))["bytes"])
    return entries[number:] if left >= 0 else entries[number + 1 :]


def _entry(entry: dict[str, Any]) -> dict[str, Any] | None:
    made = _token(entry)
    if made is None:
        return None
    made["top_logprobs"] = [top for other in _objects(entry.get("top_logprobs")) if (top := _token(other)) is not None]
    return made


def _token(entry: dict[str, Any]) -> dict[str, Any] | None:
    token, logprob, octets = entry.get("token"), entry.get("logprob"), entry.get("bytes")
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return None
    if not isinstance(octets, list) or not all(isinstance(octet, int) and 0 <= octet < 256 for octet in octets):
        octets = list(token.encode("utf-8", "replace"))
    # JSON knows no infinity, and no float holds every integer; OpenAI's own floor is -9999.
    return {"token": token, "bytes": octets, "logprob": float(min(max(logprob, -9999.0), 9999.0))}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
