"""Parses the bytes of an upstream's answer: an event stream, a JSON body, or an error body.

A parser object receives the answer to one model call. `made_response.py` chooses the parser, and continues the response
after the end of the answer. `native_request.py` has the parser for answers that Antiphon does not translate.

Invariant: no parser buffers more bytes than its limit.
"""

from __future__ import annotations

from antiphon.engine.ports.actions import Action, SendBody
from antiphon.translation.answer.stream import ChatStream
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.values import Ending


class AnswerReader:
    """The parser that a model call has until its answer begins, and the base class of all parsers.

    `output` is the size of the model's output so far. `idle` is the number of bytes that the upstream has sent without
    model output.
    """

    __slots__ = ()

    @property
    def output(self) -> int:
        return 0

    @property
    def idle(self) -> int:
        return 0

    def receive(self, data: bytes) -> bool:
        """Receive more bytes of the answer. Returns True when the answer is complete or too large, so that the caller
        can stop reading."""
        return False

    def read_whole(self) -> None:
        """Parse the collected body, after the last byte of the answer has arrived."""

    def end(self, cut: Ending | None) -> Ending:
        """Return how the answer ended. `cut` is the reason why the answer is incomplete, or None for a complete
        answer."""
        return cut or Ending("failed", code="server_error", message="The request ended without a response.")


class BodyReader(AnswerReader):
    """Collects the first `limit` bytes of a body. `receive` returns True when the body exceeds the limit."""

    __slots__ = ("_parts", "_room")

    def __init__(self, limit: int) -> None:
        self._parts: list[bytes] = []
        self._room = limit

    @property
    def body(self) -> bytes:
        """The bytes that have arrived so far, at most `limit`."""
        return b"".join(self._parts)

    def receive(self, data: bytes) -> bool:
        full = len(data) > self._room
        self._parts.append(data[: self._room])
        self._room -= min(len(data), self._room)
        return full


class ChatReader(AnswerReader):
    """Base class of the parsers that pass a model's answer to a `ChatStream`."""

    __slots__ = ("_builder", "_chat")

    def __init__(self, chat: ChatStream, builder: ResponseBuilder) -> None:
        self._chat = chat
        self._builder = builder

    @property
    def output(self) -> int:
        return self._chat.idle.output

    @property
    def idle(self) -> int:
        return self._chat.idle.idle

    def end(self, cut: Ending | None) -> Ending:
        return self._chat.end(cut)


class StreamReader(ChatReader):
    """Translates the bytes of a model's event stream as they arrive, and appends the client's events to `actions`.
    `builder` creates these events."""

    __slots__ = ("_actions",)

    def __init__(self, chat: ChatStream, builder: ResponseBuilder, actions: list[Action]) -> None:
        super().__init__(chat, builder)
        self._actions = actions

    def receive(self, data: bytes) -> bool:
        chat = self._chat
        chat.receive_data(data)
        out = self._builder.take()
        if out:
            self._actions.append(SendBody(out))
        return chat.ended


class ChatBodyReader(ChatReader):
    """Collects a model's answer whose content type is not that of an event stream, and parses the answer at its end."""

    __slots__ = ("_collected",)

    def __init__(self, chat: ChatStream, builder: ResponseBuilder, limit: int) -> None:
        super().__init__(chat, builder)
        self._collected = BodyReader(limit)

    def receive(self, data: bytes) -> bool:
        return self._collected.receive(data)

    def read_whole(self) -> None:
        body = self._collected.body
        self._collected = BodyReader(0)
        # Create the response's first events, which come before any item. The client gets the events only if the body
        # is a valid answer.
        self._builder.start()
        if body.lstrip()[:1] in (b"d", b":", b"e") and (b"data:" in body[:4096]):
            # The body is an event stream, although the upstream did not send the content type `text/event-stream`.
            self._chat.receive_data(body)
        else:
            self._chat.receive_completion(body)
