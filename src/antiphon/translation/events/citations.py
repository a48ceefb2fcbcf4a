"""Turns citation marks in the model's text into annotations.

This module defines the form of a mark. A parser removes the marks from the text while the text streams, and makes an
annotation for each mark. `translation/answer/chunk.py` reads annotations that the upstream makes itself.

A tool's result shows each source with its mark, `【3】`, and the model repeats the mark after text from that source.
Models write variants of the mark (`【3†source】`, `【3, 4】`), which the parser accepts too. Text that only looks
like a mark stays in the answer.

Invariant: no text is lost. The parser holds back text that may begin a mark, and emits it with a later fragment or at
the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from msgspec import Raw

from antiphon.types.json import decode_any, fragment_of, raw

_OPEN, _CLOSE = "【", "】"
_MAX_LENGTH: Final = 64
_LONGEST_SENTENCE: Final = 500
_MARK: Final = re.compile(r"\s*(\d{1,4}(?:\s*,\s*\d{1,4})*)\s*(?:[†:|][^【】]*)?")
_OPENERS: Final = (_OPEN.encode(), rb"\u3010")
_SENTENCE: Final = re.compile(r"(?<=[.!?。])\s+|\n+")


@dataclass(frozen=True, slots=True)
class Source:
    """A source that the model can cite. `annotation` is the annotation without its offsets in the text (`type`,
    `file_id`, …)."""

    annotation: dict[str, object]


def mark(number: int) -> str:
    """Return the mark with which a model cites the source that has this number."""
    return f"{_OPEN}{number}{_CLOSE}"


def _lenient(fragment: bytes) -> str:
    text = decode_any(b'"%b"' % fragment)
    return text if isinstance(text, str) else ""


def unmarked(text: str) -> str:
    """Replace the characters of marks in a text from outside, so that the parser finds no mark in this text."""
    return text.replace(_OPEN, "[").replace(_CLOSE, "]").replace("{cite:", "{cite :")


class Citations:
    """Stores the sources of one response, and parses the citation marks in a message's text."""

    def __init__(self, known: int = 0) -> None:
        """`known` is the highest citation number of the conversation's earlier responses. New sources get the numbers
        after `known`. A mark whose number is at most `known` gets no annotation, because this object has no source for
        it."""
        self._known = known
        self._sources: list[Source] = []
        self._held = ""
        self._length = 0
        self._tail = ""
        """The last sentence of the text that the parser has read. A citation annotates the last sentence before its
        mark."""

    @property
    def highest(self) -> int:
        """The highest citation number in the conversation."""
        return self._known + len(self._sources)

    def add(self, sources: tuple[Source, ...], output: str) -> str:
        """Add sources. Returns the tool's output with the sources' marks in place of `{cite:N}`."""
        first = self.highest + 1
        self._sources += sources
        return re.sub(
            r"\{cite:(\d{1,4})\}",
            lambda found: mark(first + int(found[1])) if int(found[1]) < len(sources) else "",
            output,
        )

    def feed(self, fragment: bytes) -> Iterator[bytes | Raw]:
        """Parse the next fragment of text. Yields fragments without marks, and an annotation in place of each mark."""
        text = _lenient(fragment)
        if not self._held and not any(opener in fragment for opener in _OPENERS):
            self._count(text)
            yield fragment
            return
        text, self._held = self._held + text, ""
        yield from self._cut(text)

    def end(self) -> bytes:
        """End the message. Returns the text that the parser held back. This text contains no mark."""
        held, self._held = self._held, ""
        self._length, self._tail = 0, ""
        return fragment_of(held)

    def _cut(self, text: str) -> Iterator[bytes | Raw]:
        while text:
            before, opener, rest = text.partition(_OPEN)
            if before:
                self._count(before)
                yield fragment_of(before)
            if not opener:
                return
            inner, closer, after = rest.partition(_CLOSE)
            if not closer and len(rest) <= _MAX_LENGTH and _OPEN not in rest:
                self._held = opener + rest
                return
            cited = self._cited(inner) if closer else None
            if cited is None:
                self._count(opener)
                yield fragment_of(opener)
                text = rest
                continue
            yield from (self._placed(source) for source in cited)
            text = after

    def _cited(self, inner: str) -> list[Source] | None:
        found = _MARK.fullmatch(inner)
        if found is None:
            return None
        numbers = [int(number) for number in found[1].split(",")]
        return [self._sources[number - self._known - 1] for number in numbers if self._known < number <= self.highest]

    def _placed(self, source: Source) -> Raw:
        annotation = dict(source.annotation)
        if annotation.get("type") == "file_citation":
            annotation["index"] = self._length
        else:
            annotation["start_index"] = self._length - len(self._tail)
            annotation["end_index"] = self._length
        return raw(annotation)

    def _count(self, text: str) -> None:
        self._length += len(text)
        tail = self._tail + text
        # A sentence counts from its first letter, not from the space before that letter. A mark directly after a full
        # stop cites the sentence before it.
        begins = max((end.end() for end in _SENTENCE.finditer(tail) if end.end() < len(tail)), default=0)
        self._tail = tail[begins:][-_LONGEST_SENTENCE:]
