"""Reads annotations, log probabilities and reasoning details from chat chunks.

Lives here: reading the formats that chat servers use, and assigning each annotation to one of an answer's texts.

- Annotations: OpenAI's nested and flat `url_citation`, Perplexity's list of `citations`.
- Log probabilities, in the form of the Responses API: `{token, bytes, logprob, top_logprobs}`, as in recorded
  answers of OpenAI. Chat Completions also allows `bytes` to be null.
- The text in `reasoning_details`, and the details that the next turn needs.

Not here: using the values (`stream.py`), the events (`translation/events/builder.py`, which seals details too).

Invariants: every emitted annotation is a `url_citation` with all its keys, and its offsets lie in the text. An entry of
log probabilities has all four keys with the right types, or is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Raw

from antiphon.types.json import ABSENT, decode_any, encode, fragment_of

_MAX_FOUND: Final = 1000


class Annotations:
    """The annotations of one answer. Annotations get their offsets when the text is complete."""

    def __init__(self) -> None:
        self._found: list[dict[str, object]] = []
        self._placed = 0
        self._sources = self._titles = ABSENT

    def __bool__(self) -> bool:
        return bool(self._found) or self._sources is not ABSENT

    def receive(self, data: Raw) -> None:
        """Read the `annotations` of a delta or message. The list may hold only new annotations, or all annotations so
        far."""
        for entry in _objects(_list(data)):
            inner = entry.get("url_citation")
            citation = inner if isinstance(inner, dict) else entry
            url = citation.get("url")
            # Annotations of files that a server read (`type: file`) have no offsets in a text.
            if entry.get("type") == "url_citation" and isinstance(url, str) and len(self._found) < _MAX_FOUND:
                found = {key: citation.get(key) for key in ("url", "title", "start_index", "end_index")}
                if found not in self._found:
                    self._found.append(found)

    def receive_sources(self, urls: Raw, results: Raw) -> None:
        """Store the URLs to which `[1]`, `[2]`, … in the text refer, and the search results, which have the titles.

        Each chunk repeats both lists, so the class decodes the lists only when the text is complete.
        """
        self._sources, self._titles = urls, results

    def place(self, text: str) -> list[Raw]:
        """The annotations of this text, in the form of the Responses API. Annotations that an earlier text of the
        answer got are left out."""
        found, self._placed = self._found[self._placed :], len(self._found)
        made = [self._citation(one, len(text)) for one in found]
        if not self._found:
            # A server that sends annotations and a list of URLs names the same sources twice, so the URLs are not used.
            made += self._marked(text)
        return [Raw(encode(citation)) for citation in made]

    def _marked(self, text: str) -> Iterator[dict[str, object]]:
        sources = [source for source in _list(self._sources) if isinstance(source, str)]
        titles = {str(result.get("url")): result.get("title") for result in _objects(_list(self._titles))}
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
            # An annotation without offsets applies to the whole text.
            end = length
        return {
            "type": "url_citation",
            "url": found["url"],
            "title": title if isinstance(title, str) else "",
            "start_index": min(start, end),
            "end_index": end,
        }


def _offset(value: object, length: int) -> int:
    return min(max(value, 0), length) if isinstance(value, int) and not isinstance(value, bool) else 0


def _list(data: Raw) -> list[object]:
    value = _decoded(data)
    return value[:_MAX_FOUND] if isinstance(value, list) else []


def _objects(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _decoded(data: Raw) -> object:
    """The decoded value, or None if the data is not JSON."""
    try:
        return decode_any(bytes(data)) if data is not ABSENT else None
    except ValueError:
        return None


# Log probabilities


def read_logprobs(data: Raw) -> list[Raw]:
    """The entries for the tokens of the content. Entries for reasoning and refusals are left out, because they belong
    to no text."""
    value = _decoded(data)
    entries = value.get("content") if isinstance(value, dict) else None
    return [Raw(encode(made)) for entry in _objects(entries) if (made := _entry(entry)) is not None]


def last_logprobs(entries: list[Raw], text: str) -> list[Raw]:
    """The last entries, whose tokens make up the text. Servers list the tokens of hidden reasoning before the text's
    tokens."""
    left = len(text.encode("utf-8", "replace"))
    number = len(entries)
    while number and left > 0:
        number -= 1
        left -= len(decode_any(bytes(entries[number]))["bytes"])
    return entries[number:] if left >= 0 else entries[number + 1 :]


def _entry(entry: dict[str, Any]) -> dict[str, Any] | None:
    made = _token(entry)
    if made is None:
        return None
    made["top_logprobs"] = [top for other in _objects(entry.get("top_logprobs")) if (top := _token(other)) is not None]
    return made


def _token(entry: dict[str, Any]) -> dict[str, Any] | None:
    token, logprob, octets = entry.get("token"), entry.get("logprob"), entry.get("bytes")
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        return None
    if not isinstance(octets, list) or not all(isinstance(octet, int) and 0 <= octet < 256 for octet in octets):
        octets = list(token.encode("utf-8", "replace"))
    # JSON has no infinity, and a float cannot hold every integer. OpenAI's lowest log probability is -9999.
    return {"token": token, "bytes": octets, "logprob": float(min(max(logprob, -9999.0), 9999.0))}


# Reasoning details

_JOINED: Final = ("text", "summary")


class ReasoningDetails:
    """The reasoning details that some servers send in addition to the reasoning's text. The next request must return
    these details. The class joins streamed fragments of one detail."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []

    def receive(self, data: Raw) -> bytes:
        """Add the details of a delta. Returns the text of the details as a fragment."""
        parts = []
        for detail in _objects(_decoded(data)):
            text = detail.get("text") or detail.get("summary")
            if isinstance(text, str):
                parts.append(text)
            self._keep(detail)
        return fragment_of("".join(parts))

    def take(self) -> list[Raw]:
        """The details that the next request must return. Clears them."""
        kept, self._kept = self._kept, []
        return [Raw(encode(detail)) for detail in kept]

    def _keep(self, detail: dict[str, Any]) -> None:
        last = self._kept[-1] if self._kept else None
        if last is not None and all(last.get(key) == detail.get(key) for key in ("type", "index", "id")):
            for key, value in detail.items():
                if key in _JOINED and isinstance(value, str) and isinstance(last.get(key), str):
                    last[key] += value
                elif value is not None:
                    last[key] = value
        else:
            self._kept.append(dict(detail))
