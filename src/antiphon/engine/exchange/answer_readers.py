"""Reads the bytes of upstream answers, with one reader for each form: a stream, a whole body, an error body.

Lives here: the handling of the bytes of one model call's answer. Not here: the choice of the form (`model_turn.py`),
what happens after its end (`made_response.py`). An answer that is not translated has a reader of its
own (`native_request.py`).

Invariant: no reader holds more than its limit.
"""

from __future__ import annotations

from antiphon.engine.ports.actions import Action, SendBody
from antiphon.translation.answer.stream import ChatStream
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.values import Ending


class AnswerReader:
    """The reader of a call whose answer has not begun, and the base of all readers.

    `output` is any number that changes with the model's output. `idle` is the number of bytes since the last output.
    """

    __slots__ = ()

    @property
    def output(self) -> int:
        return 0

    @property
    def idle(self) -> int:
        return 0

    def receive(self, data: bytes) -> bool:
        """Take more bytes. Returns True when the reader needs no more: the answer is complete, or too large."""
        return False

    def read_whole(self) -> None:
        """Read the collected body, because the answer is over."""

    def end(self, cut: Ending | None) -> Ending:
        """Return how the model's turn ended. `cut` is the reason if its answer was broken off."""
        return cut or Ending("failed", code="server_error", message="There was no answer.")


class BodyReader(AnswerReader):
    """Collects a body, up to a limit."""

    __slots__ = ("_parts", "_room")

    def __init__(self, limit: int) -> None:
        self._parts: list[bytes] = []
        self._room = limit

    @property
    def body(self) -> bytes:
        """The body so far, within the limit."""
        return b"".join(self._parts)

    def receive(self, data: bytes) -> bool:
        full = len(data) > self._room
        self._parts.append(data[: self._room])
        self._room -= min(len(data), self._room)
        return full


class ChatReader(AnswerReader):
    """The base of the readers that read a model's answer with a `ChatStream`."""

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
    """Translates a stream as it comes. `builder` makes the client's events."""

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
    """Collects a model's answer without the content type of a stream, and reads it at its end."""

    __slots__ = ("_collected",)

    def __init__(self, chat: ChatStream, builder: ResponseBuilder, limit: int) -> None:
        super().__init__(chat, builder)
        self._collected = BodyReader(limit)

    def receive(self, data: bytes) -> bool:
        return self._collected.receive(data)

    def read_whole(self) -> None:
        body = self._collected.body
        self._collected = BodyReader(0)
        # The first events come before any item. They are sent only if the body is a valid answer.
        self._builder.start()
        if body.lstrip()[:1] in (b"d", b":", b"e") and (b"data:" in body[:4096]):
            # An event stream without the content type (or one that was not requested).
            self._chat.receive_data(body)
        else:
            self._chat.receive_completion(body)
