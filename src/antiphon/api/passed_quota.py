"""Reads the token usage of forwarded answers, and settles the quotas of forwarded requests.

This module has the reservation of one forwarded request, and the search for the usage in a whole answer or in a stream.
If an answer reports no usage, the module counts the bytes of the answer's text. Not here: forwarding (`api/chat.py`),
limits and leases (`engine/running/quotas.py`).

Invariant: the search parses only lines that have a usage. The text of an answer is counted without a JSON parser,
except texts with escapes.
"""

from __future__ import annotations

import re

import msgspec

from antiphon.api.passed_fields import PassedFields
from antiphon.engine.ports.quotas import Reservation
from antiphon.types.json import try_decode

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
"""Matches a `usage` that is an object. Some servers send `"usage": null` in all chunks but the last."""
_TEXT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|thinking|refusal|text|arguments|partial_json)"\s*:\s*'
    rb'"([^"\\]*(?:\\.[^"\\]*)*)',
    re.DOTALL,
)
"""Matches the fields in which model servers send the text of an answer. The end of a text may be missing."""
_LONGEST_LINE = 1024 * 1024
"""The maximum number of bytes of an unfinished line in which Antiphon looks for the usage."""


_STRING = msgspec.json.Decoder(str)


class PassedUsage(msgspec.Struct):
    """The token usage in an upstream's answer, with the names of Chat Completions."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: PassedUsage | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


class PassedQuota:
    """The reservation of one forwarded request in its quotas. Without quotas, every method does nothing."""

    def __init__(self, reservation: Reservation | None) -> None:
        self._reservation = reservation

    async def take(self, fields: PassedFields, size: int, *, writes: bool) -> None:
        """Reserve the tokens that a request with these fields and a body of `size` bytes may use. `writes`: whether the
        answer has output tokens. Raises `ApiError`."""
        if self._reservation is not None:
            output = fields.output if writes else 0
            if not self._reservation.take_now(fields.model or "", size=size, output=output, choices=fields.choices):
                await self._reservation.take()

    @property
    def reads_usage(self) -> bool:
        """Whether `close` needs the usage in the answer."""
        return self._reservation is not None

    def close(self, usage: PassedUsage | None, status: int, sent: int = 0) -> None:
        """Settle the reservation with the usage in the answer. An error costs nothing.

        `sent`: the bytes of text in an answer without usage. Such an answer costs at least the estimated tokens.
        """
        if self._reservation is None:
            return
        if not 200 <= status < 300:
            self._reservation.close(0, 0, 0)
            return
        if usage is None:
            self._reservation.close_as_estimated(sent)
        else:
            tokens = usage.total_tokens or usage.prompt_tokens + usage.completion_tokens
            self._reservation.close_read(max(0, tokens - usage.completion_tokens), usage.completion_tokens)


class StreamUsage:
    """Finds the last `usage` object in a stream, even if a chunk ends in the middle of an event. With `counts`, the
    object also counts the bytes of text in the stream."""

    def __init__(self, *, counts: bool) -> None:
        self._counts = counts
        self._sent = 0
        self._found: PassedUsage | None = None
        self._unfinished = bytearray()

    def feed(self, part: bytes) -> None:
        """Read the next part of the stream."""
        end = part.rfind(b"\n")
        if end < 0:
            self._unfinished += part
            if len(self._unfinished) > _LONGEST_LINE:
                self._count(bytes(self._unfinished))
                self._unfinished.clear()
            return
        self._look(bytes(self._unfinished) + part[:end])
        self._unfinished[:] = part[end + 1 :]

    def end(self) -> tuple[PassedUsage | None, int]:
        """Return the last usage, and the bytes of text. The method first reads the last line of the stream, which may
        lack its line end."""
        self._look(bytes(self._unfinished))
        self._unfinished.clear()
        return self._found, self._sent

    def _look(self, lines: bytes) -> None:
        self._found = _usage_in_lines(lines) or self._found
        self._count(lines)

    def _count(self, lines: bytes) -> None:
        if self._counts:
            self._sent += text_size(lines)


def text_size(answer: bytes) -> int:
    """The number of bytes of text that the model has written in this part of an answer."""
    size = 0
    for text in _TEXT.findall(answer):
        plain = try_decode(_STRING, b'"%b"' % text) if b"\\" in text else None
        size += len(text) if plain is None else len(plain.encode())
    return size


def usage_in(answer: bytes) -> PassedUsage | None:
    """Return the usage in a whole answer, or None. In a stream, the last complete event with a usage counts."""
    whole = try_decode(_ANSWER, answer)
    usage = whole.usage if whole is not None else None
    return usage or _usage_in_lines(answer)


def _usage_in_lines(lines: bytes) -> PassedUsage | None:
    for line in reversed(lines.split(b"\n")) if _USAGE.search(lines) else ():
        found = try_decode(_ANSWER, line.removeprefix(b"data:").strip()) if _USAGE.search(line) else None
        if found is not None and found.usage is not None:
            return found.usage
    return None
