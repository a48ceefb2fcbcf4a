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
from antiphon.engine.ports.actions import Usage
from antiphon.engine.ports.quotas import Reservation, with_limits
from antiphon.types.json import ABSENT, given, try_decode
from antiphon.types.transport import Headers

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


class PassedUsage(msgspec.Struct, frozen=True):
    """The token usage in an upstream's answer. `total_tokens` may be more than the sum of the other two."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Usage(msgspec.Struct):
    """A usage as upstreams send it: with the names of Chat Completions, or with those of Anthropic and Responses."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None

    def over(self, earlier: PassedUsage | None) -> PassedUsage | None:
        """Return the counts of this usage, and the counts of `earlier` that this usage lacks. Anthropic's first event
        has the input tokens, and a later event has the output tokens. Returns None if no count is known."""
        read = self.input_tokens if self.prompt_tokens is None else self.prompt_tokens
        wrote = self.output_tokens if self.completion_tokens is None else self.completion_tokens
        if read is None and wrote is None and self.total_tokens is None:
            return earlier
        before = earlier or PassedUsage()
        return PassedUsage(
            before.prompt_tokens if read is None else read,
            before.completion_tokens if wrote is None else wrote,
            self.total_tokens or 0,
        )


class _Inside(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    """An answer or an event. Anthropic's first event has its usage inside `message`, and an event of Responses inside
    `response`."""

    usage: _Usage | None = None
    message: msgspec.Raw = ABSENT
    response: msgspec.Raw = ABSENT

    def found(self) -> _Usage | None:
        """Return the usage of this object, or of an object inside it."""
        if self.usage is not None:
            return self.usage
        for inside in (self.message, self.response):
            whole = try_decode(_INSIDE, inside) if given(inside) else None
            if whole is not None and whole.usage is not None:
                return whole.usage
        return None


_ANSWER = msgspec.json.Decoder(_Answer)
_INSIDE = msgspec.json.Decoder(_Inside)


class PassedQuota:
    """The reservation of one forwarded request in its quotas. Without quotas, every method does nothing."""

    def __init__(self, reservation: Reservation | None) -> None:
        self._reservation = reservation

    async def take(self, fields: PassedFields, size: int, *, writes: bool) -> None:
        """Reserve the tokens that a request with these fields and a body of `size` bytes may use. `writes`: whether the
        answer has output tokens. Raises `ApiError`."""
        if self._reservation is not None:
            output = fields.output if writes else 0
            self._reservation.others = fields.others
            if not self._reservation.take_now(fields.model or "", size=size, output=output, choices=fields.choices):
                await self._reservation.take()

    def over(self, headers: Headers) -> Headers:
        """Return the headers of an answer with those of the quotas (`with_limits`)."""
        return with_limits(headers, self._reservation)

    @property
    def reads_usage(self) -> bool:
        """Whether `close` needs the usage in the answer."""
        return self._reservation is not None

    def close(self, usage: PassedUsage | None, status: int, sent: int = 0) -> None:
        """Settle the reservation with the usage in the answer. An error costs nothing.

        `sent`: the bytes of text that no usage in the answer counts. An answer without usage costs at least the
        estimated tokens.
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
            written = usage.completion_tokens + Usage.estimated(0, sent).output_tokens
            self._reservation.close_read(max(0, tokens - usage.completion_tokens), written)


class StreamUsage:
    """Finds the last `usage` object in a stream, even if a chunk ends in the middle of an event. With `counts`, the
    object also counts the bytes of text after this usage. A stream that a client cuts may lack its last usage."""

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
        """Return the last usage, and the bytes of text after it. The method first reads the last line of the stream,
        which may lack its line end."""
        self._look(bytes(self._unfinished))
        self._unfinished.clear()
        return self._found, self._sent

    def _look(self, lines: bytes) -> None:
        if not _USAGE.search(lines):
            self._count(lines)
            return
        for line in lines.split(b"\n"):
            found = _usage_in_line(line)
            usage = found.over(self._found) if found is not None else None
            if usage is None:
                self._count(line)
            else:
                self._found, self._sent = usage, 0

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
    found = whole.found() if whole is not None else None
    if found is not None:
        return found.over(None)
    stream = StreamUsage(counts=False)
    stream.feed(answer)
    return stream.end()[0]


def _usage_in_line(line: bytes) -> _Usage | None:
    whole = try_decode(_ANSWER, line.removeprefix(b"data:").strip()) if _USAGE.search(line) else None
    return whole.found() if whole is not None else None
