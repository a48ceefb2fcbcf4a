"""Builds the HTTP answer to the client: head, events, whole bodies, errors.

This module also records whether the exchange has sent the answer's head. The phases of the exchange decide when to send
an answer, and `translation/events/builder.py` encodes the events.

Invariant: an exchange emits `SendHead` once, before any `SendBody`.
"""

from __future__ import annotations

from typing import Final

from antiphon.engine.exchange.call_headers import JSON_TYPE
from antiphon.engine.ports.actions import Action, SendBody, SendHead
from antiphon.engine.ports.quotas import Reservation, with_limits
from antiphon.errors import ApiError, UpstreamFailed
from antiphon.translation.answer.upstream_errors import passed_headers
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.values import Ending
from antiphon.types.transport import UPSTREAM_HEADER, Headers

SSE_HEADERS: Final = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
_LONGEST_IGNORED: Final = 1024
REPLAYED: Final = ("idempotent-replayed", "true")
"""The response header of a replayed answer: the stored answer to an earlier request with the same idempotency key."""


class Answering:
    """Appends the actions that send the HTTP answer to an exchange's list of actions.

    `streamed`: whether the exchange has sent the head of an event stream. `ignored`: the request fields without effect.
    `upstream`: the headers of the upstream's answer. `answered_by`: if the route has several upstreams, the name of the
    upstream that answered. `reservation`: the request's quota reservation, whose headers replace the upstream's rate
    limit headers.
    """

    def __init__(self, actions: list[Action]) -> None:
        self._actions = actions
        self.head_sent = False
        self.streamed = False
        self.ignored: tuple[str, ...] = ()
        self.upstream: Headers = ()
        self.reservation: Reservation | None = None
        self.answered_by = ""

    def open_stream(self, builder: ResponseBuilder) -> None:
        """Send the head of a stream and its first events, unless the exchange has already sent a head."""
        if self.head_sent:
            return
        builder.start()
        self.open_followed()
        self.events(builder)

    def open_followed(self, more: Headers = ()) -> None:
        """Send only the head of an event stream. The caller then sends the events, for example from the store."""
        self.head_sent = self.streamed = True
        headers = (*SSE_HEADERS, *more, *self._ignored_header(), *self._source(), *self._remaining())
        self._actions.append(SendHead(200, headers, streamed=True))

    def events(self, builder: ResponseBuilder, end: bytes = b"") -> None:
        """Send all events that the builder has created since the last call of this method, and then `end`."""
        out = builder.take() + end
        if out:
            self._actions.append(SendBody(out))

    def whole(self, body: bytes, headers: Headers = ()) -> None:
        """Send a complete JSON answer with status 200."""
        self.head_sent = True
        length = ("content-length", str(len(body)))
        told = (JSON_TYPE, length, *headers, *self._ignored_header(), *self._source(), *self._remaining())
        self._actions.append(SendHead(200, told))
        self._actions.append(SendBody(body))

    def refuse(self, error: ApiError, request_id: str = "") -> None:
        """Send an HTTP error as the complete answer."""
        self.head_sent = True
        body = error.body(request_id)
        told = (JSON_TYPE, ("content-length", str(len(body))), *self._source(), *self.limited(error.headers))
        self._actions.append(SendHead(error.status, told))
        self._actions.append(SendBody(body))

    def as_http_error(self, ending: Ending) -> ApiError:
        """Return the HTTP error for a response that failed before the exchange sent the head. The status of the error
        depends on whether the client, the upstream or this server caused the failure."""
        error = ending.error
        if error is None:
            failed = UpstreamFailed(ending.message, code=ending.code)
            if ending.code.startswith("upstream_"):
                # Antiphon wrote this message. The message quotes nothing of the upstream's answer, so the log may
                # contain the message.
                failed.cause = ending.message
            return failed
        headers = error.headers or passed_headers(self.upstream)
        return ApiError(
            error.message, status=error.status, type=error.type, code=error.code, param=error.param, headers=headers
        )

    def _remaining(self) -> Headers:
        """Return the headers about retries and remaining quotas."""
        return self.limited(passed_headers(self.upstream))

    def limited(self, passed: Headers) -> Headers:
        """Return these headers with those of the quotas (`with_limits`)."""
        return with_limits(passed, self.reservation)

    def _source(self) -> Headers:
        """Return the header with the name of the upstream that answered, or no header if the route has only one
        upstream."""
        return ((UPSTREAM_HEADER, self.answered_by),) if self.answered_by else ()

    def _ignored_header(self) -> Headers:
        """Return the header `antiphon-ignored` with the request fields without effect, in at most 1 KB. Return no
        header if every field has an effect."""
        if not self.ignored:
            return ()
        names = ", ".join(_token(name) for name in self.ignored[:_LONGEST_IGNORED])
        if len(names) > _LONGEST_IGNORED:
            names = names[: _LONGEST_IGNORED - 3].rpartition(",")[0] + ",..."
        return (("antiphon-ignored", names),)


def _token(name: str) -> str:
    """Percent-encode a field name for a header. Letters, digits and `_-.:[]` stay unchanged."""
    return "".join(ch if ch.isascii() and (ch.isalnum() or ch in "_-.:[]") else f"%{ord(ch):02X}" for ch in name[:128])
