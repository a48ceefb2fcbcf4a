"""Searches a text in the contents of requests, in the form that a page of the console shows.

This module reads the recorded texts with and without JSON's escapes, such as `\\"`, `\\n` and `\\u00fc`. `reading.py`
reads the contents from the stores, and `views/requests.py` has the page.

Invariants: a search ignores upper and lower case, and any white space matches any other. Contents have at most
`MOST_BYTES` of each side of a request, and know whether they lack bytes. The time of a search grows linearly with the
contents, also for hostile contents.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from antiphon.engine.ports.journal import PART, Recording

MOST_BYTES: Final = 2 << 20
"""The maximum number of bytes that a search reads of each side of a request."""
_SIDES: Final[dict[PART, int]] = {"request": 0, "event": 1, "call": 2, "data": 3, "tool": 3, "saved": 3}
"""The sides of a request: the client's request and its answer, the chat requests, and the answers with the results of
tools. A search reads each side up to `MOST_BYTES`, so a large request does not hide its answer."""
_WHOLE: Final = frozenset[PART]({"call", "tool", "saved"})
"""The kinds of parts that are one text each. The other parts are chunks, which may end within a word."""
_QUICK: Final = 64 << 10
"""The maximum size of contents that the event loop's thread searches. Another thread searches larger contents."""
_CODES: Final = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_SIMPLE: Final = (
    *(('\\"', '"'), ("\\/", "/"), ("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ("\\b", "\b"), ("\\f", "\f")),
)
_BACKSLASH: Final = "\ud800"
"""Stands for an escaped backslash while the other escapes are replaced. No decoded text contains a lone surrogate."""


class SearchedContents(Struct, frozen=True):
    """The contents of a request, as far as a search reads them. `cut` tells that bytes are missing, because a side is
    longer than `MOST_BYTES`, or the recording is incomplete."""

    texts: tuple[bytes, ...]
    cut: bool = False


class SearchedText:
    """The text that a user searches. The text must contain a character that is not white space."""

    def __init__(self, text: str) -> None:
        self._written = _pattern(text)
        # The user may have copied the text from the page's JSON, with its escapes.
        read = unescaped(text)
        self._read = [self._written, *([_pattern(read)] if read != text and read.split() else [])]

    def is_in(self, text: str) -> bool:
        """Whether a text without escapes contains the searched text."""
        return self._written.search(text.casefold()) is not None

    async def is_in_contents(self, contents: SearchedContents) -> bool:
        """Whether the contents contain the searched text, with or without JSON's escapes."""
        if sum(map(len, contents.texts)) <= _QUICK:
            return self._is_in_any(contents.texts)
        return await asyncio.to_thread(self._is_in_any, contents.texts)

    def _is_in_any(self, texts: Iterable[bytes]) -> bool:
        return any(self._is_in_json(one.decode(errors="replace")) for one in texts)

    def _is_in_json(self, text: str) -> bool:
        if self.is_in(text):
            return True
        if "\\" not in text:
            return False
        folded = unescaped(text).casefold()
        return any(one.search(folded) for one in self._read)


def contents_of(recording: Recording) -> SearchedContents:
    """Return the recorded contents that a search reads."""
    sides: dict[int, list[bytes]] = {side: [] for side in _SIDES.values()}
    for part in recording.parts:
        if part.kind in _SIDES and part.data:
            sides[_SIDES[part.kind]] += (part.data, b"\n") if part.kind in _WHOLE else (part.data,)
    return limited(map(b"".join, sides.values()), cut=recording.cut)


def limited(texts: Iterable[bytes], *, cut: bool = False) -> SearchedContents:
    """Return the texts without the bytes that a search does not read. `cut`: the texts already lack bytes."""
    every = tuple(texts)
    return SearchedContents(
        tuple(one[:MOST_BYTES] for one in every if one), cut or any(len(one) > MOST_BYTES for one in every)
    )


def unescaped(text: str) -> str:
    """Replace the escapes of JSON strings once. Other backslashes stay."""
    # Each replacement scans the text in C. A callback for each escape would take too long for hostile contents.
    text = text.replace("\\\\", _BACKSLASH)
    for escape, meant in _SIMPLE:
        text = text.replace(escape, meant)
    if "\\u" in text:
        text = _CODES.sub(_decoded, text)
    return text.replace(_BACKSLASH, "\\")


def _decoded(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("\\u", "")).decode("utf-16-be", errors="replace")


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(r"\s++".join(re.escape(word) for word in text.casefold().split()))
