"""Annotations of a text: where what it says comes from.

Lives here: reading the shapes chat servers use (OpenAI's nested and flat `url_citation`, Perplexity's list of
`citations`). Not here: the events (`builder.py`).

Invariant: every annotation that is emitted is a `url_citation` with all its keys, and its offsets lie in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Raw

from antiphon.types.json import ABSENT, decode_any, encode

_MAX_FOUND: Final = 1000


class Annotations:
    """What one answer was annotated with; placed in the text when that is whole."""

    def __init__(self) -> None:
        self._found: list[dict[str, Any]] = []
        self._placed = 0
        self._sources = self._titles = ABSENT

    def __bool__(self) -> bool:
        return bool(self._found) or self._sources is not ABSENT

    def receive(self, data: Raw) -> None:
        """The `annotations` of a delta or message: new ones, or all so far."""
        for entry in _objects(data):
            inner = entry.get("url_citation")
            citation = inner if isinstance(inner, dict) else entry
            url = citation.get("url")
            # Files that a server read (`type: file`) have no place in a text.
            if entry.get("type") == "url_citation" and isinstance(url, str) and len(self._found) < _MAX_FOUND:
                found = {key: citation.get(key) for key in ("url", "title", "start_index", "end_index")}
                if found not in self._found:
                    self._found.append(found)

    def receive_sources(self, urls: Raw, results: Raw) -> None:
        """A list of URLs to which `[1]`, `[2]`, … in the text refer, and what was found there (it has the titles).

        Each chunk repeats all of it, so it is read when the text is whole.
        """
        self._sources, self._titles = urls, results

    def place(self, text: str) -> list[Raw]:
        """The annotations of this text, in Responses' form: all that no earlier text of the answer got."""
        found, self._placed = self._found[self._placed :], len(self._found)
        made = [self._citation(one, len(text)) for one in found]
        if not self._found:
            # A server that sends both says the same twice.
            made += self._marked(text)
        return [Raw(encode(citation)) for citation in made]

    def _marked(self, text: str) -> Iterator[dict[str, Any]]:
        sources = [source for source in _list(self._sources) if isinstance(source, str)]
        titles = {str(result.get("url")): result.get("title") for result in _objects(self._titles)}
        for marker in re.finditer(r"\[(\d{1,3})\]", text):
            number = int(marker[1])
            if 1 <= number <= len(sources):
                url = sources[number - 1]
                place = {"start_index": marker.start(), "end_index": marker.end()}
                yield self._citation({"url": url, "title": titles.get(url), **place}, len(text))

    @staticmethod
    def _citation(found: dict[str, Any], length: int) -> dict[str, Any]:
        title = found.get("title")
        start, end = (_offset(found.get(key), length) for key in ("start_index", "end_index"))
        if end == 0 and start == 0:
            # Said of the whole text, not of a place in it.
            end = length
        return {
            "type": "url_citation",
            "url": found["url"],
            "title": title if isinstance(title, str) else "",
            "start_index": min(start, end),
            "end_index": end,
        }


def _offset(value: Any, length: int) -> int:
    return min(max(value, 0), length) if isinstance(value, int) and not isinstance(value, bool) else 0


def _objects(data: Raw) -> list[dict[str, Any]]:
    return [item for item in _list(data) if isinstance(item, dict)]


def _list(data: Raw) -> list[Any]:
    try:
        value = decode_any(bytes(data)) if data is not ABSENT else None
    except ValueError:
        return []
    return value[:_MAX_FOUND] if isinstance(value, list) else []
