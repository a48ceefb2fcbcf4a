"""Which files a request wants fetched or read here.

Lives here: finding `file_url` and `file_id` in the content parts of items, once the translation has met one, and which
of them may be missing. Not here: fetching, reading, and the parts files become (`chat_content.py`).

Invariant: a request without them costs nothing; what cannot be read is left to whoever translates it, and is an
error there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import ApiError, InvalidRequest
from antiphon.types.files import FetchedFile
from antiphon.types.items import InputItem
from antiphon.types.json import first
from antiphon.types.views import FilePart, StoredParts

_GONE: Final = FetchedFile("unavailable.txt", "text/plain", b"[This file is no longer available.]")


_PARTS: Final = msgspec.json.Decoder(list[FilePart])
_STORED: Final = msgspec.json.Decoder(StoredParts)


class FileNotFetched(InvalidRequest):
    """The translation met a `file_url` or `file_id` whose file is not there (yet): the files are to be fetched, and it
    begins again.

    A client sees it only for a file that a second translation still misses.
    """

    def __init__(self, where: str) -> None:
        super().__init__(f"The file of '{where}' was not fetched.", param=where, code="file_download_failed")


def file_urls(items: Iterable[InputItem]) -> list[str]:
    """The URLs in messages and tool outputs, in their order, with repetitions."""
    return [part.file_url for part in _in_items(items) if _is_fetched(part) and part.file_url]


def file_ids(items: Iterable[InputItem]) -> list[str]:
    """The ids of files in messages and tool outputs, pictures among them."""
    return [part.file_id for part in _in_items(items) if part.file_id and not _is_fetched(part)]


def stored_file_urls(bodies: Iterable[bytes]) -> list[str]:
    """The same for items as they are stored."""
    return [part.file_url for part in _in_bodies(bodies) if _is_fetched(part) and part.file_url]


def stored_file_ids(bodies: Iterable[bytes]) -> list[str]:
    """The same for ids."""
    return [part.file_id for part in _in_bodies(bodies) if part.file_id and not _is_fetched(part)]


def forgive_history(
    files: Mapping[str, FetchedFile | ApiError], input_names: Iterable[str]
) -> dict[str, FetchedFile | ApiError]:
    """The files, with a note for the model in place of each that could not be fetched and that only history names.

    A conversation must go on after a signed URL has expired or a file was deleted; what this request itself names stays
    an error.
    """
    named = set(input_names)
    return {name: _GONE if isinstance(file, ApiError) and name not in named else file for name, file in files.items()}


def _is_fetched(part: FilePart) -> bool:
    # A part with both is taken by its URL, as the translation does.
    return part.type == "input_file" and part.file_url is not None


def _in_items(items: Iterable[InputItem]) -> Iterator[FilePart]:
    for item in items:
        yield from _parts(item.content)
        yield from _parts(item.output)


def _in_bodies(bodies: Iterable[bytes]) -> Iterator[FilePart]:
    for body in bodies:
        item = _STORED.decode(body)
        yield from _parts(item.content)
        yield from _parts(item.output)


def _parts(raw: Raw) -> list[FilePart]:
    if first(raw) == b"{":
        # One part, not in a list.
        raw = Raw(b"[%b]" % bytes(raw))
    if first(raw) != b"[":
        return []
    try:
        return _PARTS.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return []
