"""Separates reasoning from content between `<think>` and `</think>` while it streams.

Lives here: telling the two apart while the content streams. Not here: which servers do that (`profiles/`).

Two kinds: *tagged*, an answer that begins with `<think>` (blanks before it are allowed). And *opened*, where the chat
template wrote the opening tag, so that everything up to `</think>` is reasoning. A tag anywhere else is text.

Invariant: all input comes out, once and in order, as reasoning or as text, except the tags and the blanks around them.
Only what could be the beginning of a tag is held back.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

_OPEN, _CLOSE = b"<think>", b"</think>"
_MAX_HELD: Final = 1_024
_BLANKS: Final = re.compile(rb"(?: |\\n|\\r|\\t)*")
# Some servers escape the brackets; an escaped backslash before them is no escape.
_ESCAPED: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u003([cCeE])")
_MAY_START: Final = (b"<", b" ", b"\\", b"")


_ONLY: Final = re.compile(
    rb"(?: |\\n|\\r|\\t)*<think>(?:\\n|\\r)*(.*?)(?:\\n|\\r)*</think>(?: |\\n|\\r|\\t)*", re.DOTALL
)


def only_thought(text: bytes) -> bytes | None:
    """The text between the tags if the whole text is one thought. Some clients send reasoning back that way."""
    found = _ONLY.fullmatch(text)
    return None if found is None or _CLOSE in found[1] else found[1]


class _ThinkState(Enum):
    START = auto()
    THINKING = auto()
    TEXT = auto()


class ThinkTags:
    """One answer's content. `done`: from now on everything is text."""

    def __init__(self, *, opened: bool) -> None:
        self._state = _ThinkState.THINKING if opened else _ThinkState.START
        self._held = b""
        self._fresh = True
        self._unclosed: list[bytes] | None = [] if opened else None

    @property
    def done(self) -> bool:
        """Whether nothing can be reasoning any more, and nothing is held."""
        return self._state is _ThinkState.TEXT and not self._fresh

    def feed(self, fragment: bytes) -> tuple[bytes, bytes]:
        """Reasoning and text that this content adds, as fragments."""
        if self._state is _ThinkState.START and not self._held and fragment[:1] not in _MAY_START:
            # The usual answer: no tags at all.
            self._state, self._fresh = _ThinkState.TEXT, False
            return b"", fragment
        if b"\\u003" in fragment:
            fragment = _ESCAPED.sub(lambda m: m[1] + (b"<" if m[2] in b"cC" else b">"), fragment)
        data, self._held = self._held + fragment, b""
        if self._state is _ThinkState.START:
            start = _after_blanks(data)
            # Blanks without end are text: to hold them for ever would be to read them again with every one that comes.
            if len(data) < _MAX_HELD and len(data) - start < len(_OPEN) and _OPEN.startswith(data[start:]):
                self._held = data
                return b"", b""
            if not data.startswith(_OPEN, start):
                self._state, self._fresh = _ThinkState.TEXT, False
                return b"", data
            self._state, data = _ThinkState.THINKING, data[start + len(_OPEN) :]
        if self._state is _ThinkState.THINKING:
            return self._think(data)
        return b"", self._text(data)

    def end(self) -> tuple[bytes, bytes]:
        """The text that was held back, at the end of the stream."""
        held, self._held = self._held, b""
        if self._state is _ThinkState.THINKING:
            if held and self._unclosed is not None:
                self._unclosed.append(held)
            return held, b""
        return b"", held

    @property
    def unclosed(self) -> bytes:
        """All text that was emitted as reasoning only because the profile says that the template opens it. No end tag
        came."""
        return b"".join(self._unclosed or ()) if self._state is _ThinkState.THINKING else b""

    def _think(self, data: bytes) -> tuple[bytes, bytes]:
        if self._fresh:
            data = data[_after_blanks(data) :]
            while data.startswith(_OPEN):
                # The template opened it, and the model did so as well.
                data = data[len(_OPEN) :]
                data = data[_after_blanks(data) :]
            if len(data) < len(_OPEN) and _OPEN.startswith(data):
                self._held = data
                return b"", b""
            self._fresh = False
        end = data.find(_CLOSE)
        if end >= 0:
            self._state, self._fresh, self._unclosed = _ThinkState.TEXT, True, None
            return data[:end], self._text(data[end + len(_CLOSE) :])
        for size in range(min(len(_CLOSE) - 1, len(data)), 0, -1):
            if _CLOSE.startswith(data[-size:]):
                self._held = data[-size:]
                data = data[:-size]
                break
        if self._unclosed is not None:
            self._unclosed.append(data)
        return data, b""

    def _text(self, data: bytes) -> bytes:
        """Text after the closing tag; blanks between them, and the tag again (seen: MAI-DS-R1), are no part of it."""
        while self._fresh:
            data = data[_after_blanks(data) :]
            if data.startswith(_CLOSE):
                data = data[len(_CLOSE) :]
            elif len(data) < len(_CLOSE) and _CLOSE.startswith(data):
                self._held = data
                return b""
            else:
                self._fresh = False
        return data


def _after_blanks(data: bytes) -> int:
    found = _BLANKS.match(data)
    assert found is not None
    return found.end()
