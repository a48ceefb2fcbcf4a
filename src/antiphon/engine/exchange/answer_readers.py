"""Readers for upstream answers, one per form: a stream, a whole body, an error body.

Lives here: what is done with the bytes of one model call's answer. Not here: which form it is (`model_turn.py`), what
follows from its end (`made_response.py`). An answer that is not translated has a reader of its
own (`native_request.py`).

Invariant: no reader holds more than its limit.
"""

from __future__ import annotations

from antiphon.engine.ports.actions import Action, SendBody
from antiphon.translation.answer.stream import ChatStream
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.values import Ending


class AnswerReader:
    """The reader of a call whose answer has not begun. `output` is any number that changes with the model's output,
    `idle` how many bytes came since the last of it."""

    __slots__ = ()

    @property
    def output(self) -> int:
        return 0

    @property
    def idle(self) -> int:
        return 0

    def receive(self, data: bytes) -> bool:
        """More bytes. Whether no more are to be read: it is complete, or too large."""
        return False

    def read_whole(self) -> None:
        """The answer is over: what was only collected is read now."""

    def end(self, cut: Ending | None) -> Ending:
        """How the model's turn has ended; `cut` says why its answer was broken off."""
        return cut or Ending("failed", code="server_error", message="There was no answer.")


class BodyReader(AnswerReader):
    """A body that is looked at when it is whole, or when there is as much of it as may be."""

    __slots__ = ("_parts", "_room")

    def __init__(self, limit: int) -> None:
        self._parts: list[bytes] = []
        self._room = limit

    @property
    def body(self) -> bytes:
        """What has come so far, within the limit."""
        return b"".join(self._parts)

    def receive(self, data: bytes) -> bool:
        full = len(data) > self._room
        self._parts.append(data[: self._room])
        self._room -= min(len(data), self._room)
        return full


class ChatReader(AnswerReader):
    """The base of those that read a model's answer with a `ChatStream`."""

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
    """A stream, translated as it comes; `builder` makes the client's events."""

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
    """A model's answer that is no stream, or does not say so: judged when it is whole."""

    __slots__ = ("_collected",)

    def __init__(self, chat: ChatStream, builder: ResponseBuilder, limit: int) -> None:
        super().__init__(chat, builder)
        self._collected = BodyReader(limit)

    def receive(self, data: bytes) -> bool:
        return self._collected.receive(data)

    def read_whole(self) -> None:
        body = self._collected.body
        self._collected = BodyReader(0)
        # The first events come before any item; they are sent only if this is an answer.
        self._builder.start()
        if body.lstrip()[:1] in (b"d", b":", b"e") and (b"data:" in body[:4096]):
            # An event stream that does not say so (or came although none was asked for).
            self._chat.receive_data(body)
        else:
            self._chat.receive_completion(body)
