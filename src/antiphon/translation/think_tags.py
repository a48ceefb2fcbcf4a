"""Separates the reasoning between `<think>` and `</think>` from an answer's text while the answer streams.

The parser works on streamed fragments. The profiles (`profiles/`) list the servers that send `<think>` tags.

A *tagged* answer begins with `<think>`, and blanks may precede the tag. In an *opened* answer the chat template wrote
the opening tag, so everything up to `</think>` is reasoning. A `<think>` tag anywhere else is text.

Invariant: the parser returns all input once and in order, as reasoning or as text, except the tags and the blanks
around them. The parser holds back only bytes that could be the beginning of a tag.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

_OPEN, _CLOSE = b"<think>", b"</think>"
_MAX_HELD: Final = 1_024
_BLANKS: Final = re.compile(rb"(?: |\\n|\\r|\\t)*")
# Some servers send `<` and `>` as `\u003c` and `\u003e`. Behind an escaped backslash, `u003c` is text.
_ESCAPED: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u003([cCeE])")
_MAY_START: Final = (b"<", b" ", b"\\", b"")


_ONLY: Final = re.compile(
    rb"(?: |\\n|\\r|\\t)*<think>(?:\\n|\\r)*(.*?)(?:\\n|\\r)*</think>(?: |\\n|\\r|\\t)*", re.DOTALL
)


_BEFORE_THOUGHT: Final = (b"<", b" ", b"\\")


def only_thought(text: bytes) -> bytes | None:
    """Return the text between the tags if the whole text is one `<think>` block, or else None. Some clients send
    reasoning back as a `<think>` block."""
    if not text.startswith(_BEFORE_THOUGHT):
        return None
    found = _ONLY.fullmatch(text)
    return None if found is None or _CLOSE in found[1] else found[1]


class _ThinkState(Enum):
    START = auto()
    THINKING = auto()
    TEXT = auto()


class ThinkTags:
    """The parser for one answer's text. If `opened` is true, the chat template wrote the opening tag."""

    def __init__(self, *, opened: bool) -> None:
        self._state = _ThinkState.THINKING if opened else _ThinkState.START
        self._held = b""
        self._fresh = True
        self._unclosed: list[bytes] | None = [] if opened else None

    @property
    def done(self) -> bool:
        """Whether all further content is text, and the parser holds no bytes back."""
        return self._state is _ThinkState.TEXT and not self._fresh

    def feed(self, fragment: bytes) -> tuple[bytes, bytes]:
        """Parse the next fragment of the answer's text. Returns the reasoning and the text in this fragment, both as
        escaped JSON text."""
        if self._state is _ThinkState.START and not self._held and fragment[:1] not in _MAY_START:
            # The usual answer has no `<think>` tag.
            self._state, self._fresh = _ThinkState.TEXT, False
            return b"", fragment
        if b"\\u003" in fragment:
            fragment = _ESCAPED.sub(lambda m: m[1] + (b"<" if m[2] in b"cC" else b">"), fragment)
        data, self._held = self._held + fragment, b""
        if self._state is _ThinkState.START:
            start = _after_blanks(data)
            # The parser holds back at most 1,024 bytes. Otherwise it would read a long run of blanks again with every
            # fragment.
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
        """End the stream, and return the reasoning and the text that the parser held back."""
        held, self._held = self._held, b""
        if self._state is _ThinkState.THINKING:
            if held and self._unclosed is not None:
                self._unclosed.append(held)
            return held, b""
        return b"", held

    @property
    def unclosed(self) -> bytes:
        """All text that the parser returned as reasoning, if the answer is *opened* and the end tag is missing. In all
        other cases, the value is empty."""
        return b"".join(self._unclosed or ()) if self._state is _ThinkState.THINKING else b""

    def _think(self, data: bytes) -> tuple[bytes, bytes]:
        if self._fresh:
            data = data[_after_blanks(data) :]
            while data.startswith(_OPEN):
                # The chat template wrote the opening tag, and the model wrote that tag again.
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
        """Return the text after the closing tag, without leading blanks and without a repeated closing tag (seen:
        MAI-DS-R1)."""
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
