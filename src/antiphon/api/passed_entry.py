"""Notes forwarded requests in the journal, for the console.

Lives here: the facts of a forwarded request, and the token usage in its answer. Not here: forwarding (`chat.py`), the
entries of responses (`observability/observation.py`).

Invariant: a forwarded request has one entry, however it ends. Without a journal there is no entry.
"""

from __future__ import annotations

import time

import msgspec
from msgspec.structs import replace

from antiphon.api.http import ApiRequest
from antiphon.engine.exchange.failure import Failure, refusal
from antiphon.engine.ports.journal import Journal, Span
from antiphon.errors import ApiError
from antiphon.observability.journal_entry import plain_entry
from antiphon.types.json import try_decode

PASSED = "pass_through"
"""The door of the entries of forwarded requests."""
USAGE = b'"usage"'
_MODEL_LENGTH = 128


class ChatUsage(msgspec.Struct):
    """The token usage in an upstream's answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: ChatUsage | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def usage_in(answer: bytes) -> ChatUsage | None:
    """The usage in an answer. `answer` is the body, or the chunk of a stream that has the usage."""
    whole = try_decode(_ANSWER, answer)
    usage = whole.usage if whole is not None else None
    for line in reversed(answer.split(b"\n")) if usage is None else ():
        found = try_decode(_ANSWER, line.removeprefix(b"data:").strip()) if USAGE in line else None
        if found is not None and found.usage is not None:
            return found.usage
    return usage


class PassedEntry:
    """The entry of one forwarded request. Without a journal, no method has an effect."""

    def __init__(self, journal: Journal | None, request: ApiRequest) -> None:
        self._journal = journal
        self._request = request
        self._started = time.perf_counter()
        self._model = ""
        self._upstream = ""
        self._called = 0.0
        self._first: float | None = None

    def asks(self, model: str) -> None:
        """Record the model that the request names."""
        self._model = model[:_MODEL_LENGTH]

    def call(self, upstream: str) -> None:
        """Record that the upstream is called."""
        self._upstream, self._called = upstream, time.perf_counter() - self._started

    def answered_by(self, upstream: str) -> None:
        """Record which of several upstreams has answered."""
        self._upstream = upstream

    def came(self) -> None:
        """Record the first bytes of the answer."""
        if self._first is None:
            self._first = time.perf_counter() - self._started

    def refuse(self, error: ApiError) -> None:
        """Note that the client got this error instead of an upstream's answer. Refusals for lack of capacity are left
        out, as in `Telemetry.refused`."""
        failure = refusal(error)
        if not failure.counted:
            self._end(failure, error.message, error.status, b"", 0)

    def end(self, status: int, failure: Failure | None, answer: bytes, size: int, *, stream: bool = False) -> None:
        """Note the end of an answer. `answer` is the part of the answer that may have the usage, and `size` the size of
        the whole answer."""
        self._end(failure, "", status, answer, size, stream=stream)

    def _end(
        self, failure: Failure | None, message: str, status: int, answer: bytes, size: int, *, stream: bool = False
    ) -> None:
        journal, self._journal = self._journal, None
        if journal is None:
            return
        request, seconds = self._request, time.perf_counter() - self._started
        entry = plain_entry(PASSED, request.request_id, request.caller, request.path, failure, message)
        usage = usage_in(answer) or ChatUsage()
        spans: tuple[Span, ...] = ()
        if self._upstream:
            spans = (Span("call", self._upstream, self._called, seconds, {"operation": PASSED, "status": status}),)
        if self._upstream and self._first is not None:
            spans = (*spans, Span("first_token", self._upstream, self._called, self._first))
        detail = replace(entry.detail, spans=spans, request_bytes=len(request.body), output_bytes=size, stream=stream)
        entry = replace(
            entry,
            model=self._model,
            upstream=self._upstream,
            status=status,
            seconds=seconds,
            first=self._first,
            calls=1 if self._upstream else 0,
            input_tokens=max(0, usage.prompt_tokens),
            output_tokens=max(0, usage.completion_tokens),
            detail=detail,
        )
        journal.note(entry, None)
