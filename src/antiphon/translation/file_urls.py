"""Which files a request wants fetched.

Lives here: finding `file_url` in the content parts of items. Not here: fetching, and the parts files become
(`chat_content.py`).

Invariant: a request without `file_url` costs one search of its bytes; what cannot be read is left to whoever
translates it, and is an error there.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT, first

__all__ = ["file_urls", "names_files", "stored_file_urls"]

_MARK = b'"file_url"'


class _Part(Struct):
    type: str | None = None
    file_url: str | None = None


class _Stored(Struct):
    content: Raw = ABSENT
    output: Raw = ABSENT


_PARTS = msgspec.json.Decoder(list[_Part])
_STORED = msgspec.json.Decoder(_Stored)


def names_files(body: bytes) -> bool:
    """Whether a request body may name files by URL at all; one search, so that others pay nothing."""
    return _MARK in body


def file_urls(items: Iterable[InputItem]) -> list[str]:
    """The URLs in messages and tool outputs, in their order, with repetitions."""
    return [url for item in items for raw in (item.content, item.output) for url in _urls(raw)]


def stored_file_urls(bodies: Iterable[bytes]) -> list[str]:
    """The same for items as they are stored."""
    found: list[str] = []
    for body in bodies:
        if _MARK in body:
            item = _STORED.decode(body)
            found += _urls(item.content)
            found += _urls(item.output)
    return found


def _urls(raw: Raw) -> list[str]:
    if first(raw) != b"[" or _MARK not in bytes(raw):
        return []
    try:
        parts = _PARTS.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return []
    return [part.file_url for part in parts if part.type == "input_file" and part.file_url]
