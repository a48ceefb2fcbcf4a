"""Which files a request wants fetched.

Lives here: finding `file_url` in the content parts of items, once the translation has met one, and which of them may
be missing. Not here: fetching, and the parts files become (`chat_content.py`).

Invariant: a request without `file_url` costs nothing; what cannot be read is left to whoever translates it, and is an
error there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Raw, Struct

from antiphon.errors import ApiError, InvalidRequest
from antiphon.types.files import FetchedFile
from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT, first

__all__ = ["FileNotFetched", "file_urls", "forgive_history", "stored_file_urls"]

_GONE = FetchedFile("unavailable.txt", "text/plain", b"[This file could not be fetched again.]")


class _Part(Struct):
    type: str | None = None
    file_url: str | None = None


class _Stored(Struct):
    content: Raw = ABSENT
    output: Raw = ABSENT


_PARTS = msgspec.json.Decoder(list[_Part])
_STORED = msgspec.json.Decoder(_Stored)


class FileNotFetched(InvalidRequest):
    """The translation met a `file_url` whose file is not there (yet): the files are to be fetched, and it begins again.

    A client sees it only for a URL that a second translation still misses.
    """

    def __init__(self, where: str) -> None:
        super().__init__(f"The file of '{where}' was not fetched.", param=where, code="file_download_failed")


def file_urls(items: Iterable[InputItem]) -> list[str]:
    """The URLs in messages and tool outputs, in their order, with repetitions."""
    return [url for item in items for raw in (item.content, item.output) for url in _urls(raw)]


def stored_file_urls(bodies: Iterable[bytes]) -> list[str]:
    """The same for items as they are stored."""
    found: list[str] = []
    for body in bodies:
        item = _STORED.decode(body)
        found += _urls(item.content)
        found += _urls(item.output)
    return found


def forgive_history(
    files: Mapping[str, FetchedFile | ApiError], input_urls: Iterable[str]
) -> dict[str, FetchedFile | ApiError]:
    """The files, with a note for the model in place of each that could not be fetched and that only history names.

    A conversation must go on after a signed URL has expired; what this request itself names stays an error.
    """
    named = set(input_urls)
    return {url: _GONE if isinstance(file, ApiError) and url not in named else file for url, file in files.items()}


def _urls(raw: Raw) -> list[str]:
    if first(raw) != b"[":
        return []
    try:
        parts = _PARTS.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return []
    return [part.file_url for part in parts if part.type == "input_file" and part.file_url]
