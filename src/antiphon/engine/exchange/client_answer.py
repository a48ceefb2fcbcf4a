"""Builds the HTTP answer to the client: head, events, whole bodies, errors.

Lives here: the forms of an answer, and the rule of one head. Not here: when it is sent and its content
(the phases), events (`translation/events/builder.py`).

Invariant: `SendHead` comes once, before any `SendBody`.
"""

from __future__ import annotations

from typing import Final

from antiphon.engine.exchange.call_headers import JSON_TYPE
from antiphon.engine.ports.actions import Action, SendBody, SendHead
from antiphon.errors import ApiError, UpstreamFailed
from antiphon.translation.answer.upstream_errors import passed_headers
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.values import Ending
from antiphon.types.transport import UPSTREAM_HEADER, Headers

SSE_HEADERS: Final = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))
_LONGEST_IGNORED: Final = 1024
REPLAYED: Final = ("idempotent-replayed", "true")
"""The header that marks the answer of an earlier request with the same key."""


class Answering:
    """Appends the actions for the client to an exchange's list of actions.

    `streamed`: the head of an event stream was sent. `ignored` names the parts of the request that have no effect.
    `upstream` are the headers of the model's answer, and `answered_by` names which of several upstreams sent it.
    """

    def __init__(self, actions: list[Action]) -> None:
        self._actions = actions
        self.head_sent = False
        self.streamed = False
        self.ignored: tuple[str, ...] = ()
        self.upstream: Headers = ()
        self.answered_by = ""

    def open_stream(self, builder: ResponseBuilder) -> None:
        """Send the head of a stream and its first events. A second call does nothing."""
        if self.head_sent:
            return
        builder.start()
        self.open_followed()
        self.events(builder)

    def open_followed(self, more: Headers = ()) -> None:
        """Send the head of a stream whose events come from the store."""
        self.head_sent = self.streamed = True
        headers = (*SSE_HEADERS, *more, *self._ignored_header(), *self._source(), *passed_headers(self.upstream))
        self._actions.append(SendHead(200, headers, streamed=True))

    def events(self, builder: ResponseBuilder, end: bytes = b"") -> None:
        """Send all events that the builder has made since the last call."""
        out = builder.take() + end
        if out:
            self._actions.append(SendBody(out))

    def whole(self, body: bytes, headers: Headers = ()) -> None:
        """Send a whole JSON answer."""
        self.head_sent = True
        length = ("content-length", str(len(body)))
        told = (JSON_TYPE, length, *headers, *self._ignored_header(), *self._source(), *passed_headers(self.upstream))
        self._actions.append(SendHead(200, told))
        self._actions.append(SendBody(body))

    def refuse(self, error: ApiError, request_id: str = "") -> None:
        """An HTTP error."""
        self.head_sent = True
        body = error.body(request_id)
        told = (JSON_TYPE, ("content-length", str(len(body))), *self._source(), *error.headers)
        self._actions.append(SendHead(error.status, told))
        self._actions.append(SendBody(body))

    def as_http_error(self, ending: Ending) -> ApiError:
        """A failure before the head: the status that tells the client whose fault it was."""
        error = ending.error
        if error is None:
            failed = UpstreamFailed(ending.message, code=ending.code)
            if ending.code.startswith("upstream_"):
                # What is wrong with the answer, in our words, which quote nothing of it.
                failed.cause = ending.message
            return failed
        headers = error.headers or passed_headers(self.upstream)
        return ApiError(
            error.message, status=error.status, type=error.type, code=error.code, param=error.param, headers=headers
        )

    def _source(self) -> Headers:
        """The header that names which of several upstreams has answered."""
        return ((UPSTREAM_HEADER, self.answered_by),) if self.answered_by else ()

    def _ignored_header(self) -> Headers:
        """The header that lists the fields of the request that have no effect (at most 1 KB)."""
        if not self.ignored:
            return ()
        names = ", ".join(_token(name) for name in self.ignored[:_LONGEST_IGNORED])
        if len(names) > _LONGEST_IGNORED:
            names = names[: _LONGEST_IGNORED - 3].rpartition(",")[0] + ",..."
        return (("antiphon-ignored", names),)


def _token(name: str) -> str:
    """Escape a name for a header: everything but plain characters."""
    return "".join(ch if ch.isascii() and (ch.isalnum() or ch in "_-.:[]") else f"%{ord(ch):02X}" for ch in name[:128])
