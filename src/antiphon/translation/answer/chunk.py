"""Reads a chat chunk or a whole completion: its fields, the data that comes with the text, and how the answer ends. The
module tolerates values of the wrong type.

This module has a fast typed decoder, and a slow path for chunks that the fast decoder refuses. The fast decoder refuses
wrong types, content as an array of parts or as an object, invalid UTF-8, and lone surrogates. The module also reads:

- annotations, in the form of OpenAI's `url_citation` (nested or flat) or of Perplexity's list `citations`. Each
  annotation belongs to one text of the answer.
- log probabilities, in the form of the Responses API (`{token, bytes, logprob, top_logprobs}`), as in recorded answers
  of OpenAI. Chat Completions also allows `bytes` to be null.
- the text in `reasoning_details`, and the details that the next request must return.
- how an answer ended, with the many spellings of `finish_reason`.

`stream.py` passes a chunk's content to the response builder, and decides how an answer ended.
`translation/events/builder.py` makes the events and seals reasoning details.

Invariants: after `read_chunk`, every text field is absent, null or a valid raw JSON string. `read_chunk` raises only
`NotAChunk`. Every emitted annotation is a `url_citation` with all keys, and the annotation's offsets lie in the text.
Every returned entry of log probabilities has all four keys with the right types. `plain_finish` returns a finish reason
in lower case. Chat Completions' own name replaces other known names for a cut answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, Final, TypeVar, get_args

import msgspec
from msgspec import Raw, Struct, structs

from antiphon.errors import ApiError
from antiphon.translation.answer.upstream_errors import as_event_failure
from antiphon.translation.values import Ending
from antiphon.types.chat import Chunk, Delta
from antiphon.types.json import ABSENT, decode_any, decode_object, encode, fragment_of, is_utf8, quoted

_decode: Final = msgspec.json.Decoder(Chunk).decode

_TEXT_OR_NULL: Final = tuple(b'"n')
_TEXTS: Final = frozenset({"content", "refusal", "reasoning_content", "reasoning", "text", "input"})
"""Keys whose values the slow path reads as text. `_arguments` reads the key `arguments`."""

_Shape = TypeVar("_Shape", bound=Struct)


class NotAChunk(ValueError):
    """The data is not a JSON object."""


def read_chunk(data: bytes) -> Chunk:
    """Decode a chunk. Raises `NotAChunk` when the data is not a JSON object."""
    try:
        return decode_chunk(data)
    except NotAChunk:
        pass
    try:
        value = decode_any(data)
        if (chunk := _loose(Chunk, value)) is not None:
            return chunk
    except (ValueError, RecursionError):
        raise NotAChunk("not JSON, or nested too deeply") from None
    raise NotAChunk("not a JSON object")


def decode_chunk(data: bytes) -> Chunk:
    """Decode a chunk whose values all have the expected types. Raises `NotAChunk` for any other chunk."""
    if data.isascii() or is_utf8(data):
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            for choice in chunk.choices or ():
                if not _plain(choice.delta) or (choice.message is not None and not _plain(choice.message)):
                    break
            else:
                return chunk
    raise NotAChunk("the upstream's chunk is not valid JSON, or a field has the wrong type")


def fragment(value: Raw) -> bytes:
    """Return the content of a text field as a fragment: the escaped text between the quotation marks of a JSON string.
    The fragment is empty if the field is absent, null or an empty string."""
    if value is ABSENT:
        return b""
    data = bytes(value)
    return data[1:-1] if data[:1] == b'"' else b""


def read_transcript(data: bytes) -> bytes:
    """Return the transcript of an audio answer, as escaped JSON text. The audio data is dropped, because the Responses
    API has no content part for it."""
    transcript = decode_object(data).get("transcript")
    return fragment_of(transcript) if isinstance(transcript, str) else b""


def _plain(delta: Delta | None) -> bool:
    """Whether every text field is a string or null, as the fast path requires."""
    if delta is None:
        return True
    # Most fields are absent in most chunks, and every absent field is the same object.
    for value in (delta.content, delta.refusal, delta.reasoning_content, delta.reasoning):
        if value is not ABSENT and memoryview(value)[0] not in _TEXT_OR_NULL:
            return False
    for call in delta.tool_calls or ():
        value = call.function.arguments if call.function is not None else ABSENT
        if value is not ABSENT and memoryview(value)[0] not in _TEXT_OR_NULL:
            return False
        value = call.custom.input if call.custom is not None else ABSENT
        if value is not ABSENT and memoryview(value)[0] not in _TEXT_OR_NULL:
            return False
    return True


def _loose(kind: type[_Shape], value: object) -> _Shape | None:
    """Make an object of the type `kind` from the JSON object `value`. The function leaves out members of a wrong type.
    Returns None if `value` is not a JSON object."""
    if not isinstance(value, dict):
        return None
    found: dict[str, Any] = {name: read(value.get(name)) for name, read in _readers(kind)}
    if kind is Delta:
        found["content"], thinking = _content(value.get("content"))
        if not fragment(found["reasoning_content"]):
            found["reasoning_content"] = thinking
    return kind(**found)


@lru_cache(maxsize=8)
def _readers(kind: type[Struct]) -> tuple[tuple[str, Callable[[object], object]], ...]:
    """Return the name of each field of a type, with the function that reads the field. The field's type annotation
    determines the function. For a field with raw JSON, the field's name determines the function."""
    return tuple((field.name, _reader(field.name, field.type)) for field in structs.fields(kind))


def _reader(name: str, kind: object) -> Callable[[object], object]:
    if kind is Raw:
        return _arguments if name == "arguments" else _text if name in _TEXTS else _raw
    inner = get_args(kind)[0]
    if isinstance(inner, type) and issubclass(inner, Struct):
        return partial(_loose, inner)
    return {str: _str, int: _int}.get(inner) or partial(_each, get_args(inner)[0])


def _each(kind: type[_Shape], value: object) -> list[_Shape] | None:
    return [made for one in value if (made := _loose(kind, one)) is not None] if isinstance(value, list) else None


def _content(value: object) -> tuple[Raw, Raw]:
    """Return the text and the reasoning in `content`. Some servers send an array of parts (seen: mistral) or a JSON
    value (seen: cloudflare) instead of a string."""
    if value is None or isinstance(value, str):
        return _text(value), ABSENT
    if not isinstance(value, list):
        return quoted(fragment_of(encode(value).decode())), ABSENT
    text, thinking = [], []
    for part in value:
        if isinstance(part, str):
            text.append(part)
        elif isinstance(part, dict) and part.get("type") == "thinking":
            inner = part.get("thinking")
            pieces = inner if isinstance(inner, list) else [inner]
            for piece in pieces:
                words = piece.get("text") if isinstance(piece, dict) else piece
                if isinstance(words, str):
                    thinking.append(words)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            text.append(part["text"])
    return _text("".join(text)), _text("".join(thinking))


def _arguments(value: object) -> Raw:
    """Return the arguments of a call as text. Some servers send an object instead of a string with JSON."""
    return _text(value if value is None or isinstance(value, str) else encode(value).decode())


def _text(value: object) -> Raw:
    return quoted(fragment_of(value)) if isinstance(value, str) else ABSENT


def _str(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _raw(value: object) -> Raw:
    """Encode a value that the slow path decoded. The value has only JSON's types and no surrogates."""
    return ABSENT if value is None else Raw(encode(value))


_MAX_FOUND: Final = 1000


class Annotations:
    """The annotations of one answer. The class computes the annotations' offsets when the text is complete."""

    def __init__(self) -> None:
        self._found: list[dict[str, object]] = []
        self._placed = 0
        self._sources = self._titles = ABSENT

    def __bool__(self) -> bool:
        return bool(self._found) or self._sources is not ABSENT

    def receive(self, data: Raw) -> None:
        """Read the `annotations` of a delta or message. Servers send either only the new annotations, or all
        annotations so far."""
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
        """Return the annotations of this text, in the form of the Responses API. The result leaves out the annotations
        of earlier texts of the answer."""
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
    def _citation(found: dict[str, object], length: int) -> dict[str, object]:
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
    """Return the decoded value, or None if the data is not JSON."""
    try:
        return decode_any(bytes(data)) if data is not ABSENT else None
    except ValueError:
        return None


# Log probabilities


def read_logprobs(data: Raw) -> list[Raw]:
    """Return the log probabilities of the text's tokens, one entry per token. The result has no entries for the tokens
    of reasoning and refusals."""
    value = _decoded(data)
    entries = value.get("content") if isinstance(value, dict) else None
    return [Raw(encode(made)) for entry in _objects(entries) if (made := _entry(entry)) is not None]


def last_logprobs(entries: list[Raw], text: str) -> list[Raw]:
    """Return the entries for the tokens of `text`, which are the last entries of the list. Servers list the tokens of
    hidden reasoning first."""
    left = len(text.encode("utf-8", "replace"))
    number = len(entries)
    while number and left > 0:
        number -= 1
        left -= len(decode_any(bytes(entries[number]))["bytes"])
    return entries[number:] if left >= 0 else entries[number + 1 :]


def _entry(entry: dict[str, object]) -> dict[str, object] | None:
    made = _token(entry)
    if made is None:
        return None
    made["top_logprobs"] = [top for other in _objects(entry.get("top_logprobs")) if (top := _token(other)) is not None]
    return made


def _token(entry: dict[str, object]) -> dict[str, object] | None:
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
    these details. If a server streams a detail in fragments, the class joins the fragments."""

    def __init__(self) -> None:
        self._kept: list[dict[str, object]] = []

    def receive(self, data: Raw) -> bytes:
        """Add the details of a delta. Returns the text of the details, as escaped JSON text."""
        parts = []
        for detail in _objects(_decoded(data)):
            text = detail.get("text") or detail.get("summary")
            if isinstance(text, str):
                parts.append(text)
            self._keep(detail)
        return fragment_of("".join(parts))

    def take(self) -> list[Raw]:
        """Return the details that the next request must return, and clear the stored details."""
        kept, self._kept = self._kept, []
        return [Raw(encode(detail)) for detail in kept]

    def _keep(self, detail: dict[str, object]) -> None:
        last = self._kept[-1] if self._kept else None
        if last is not None and all(last.get(key) == detail.get(key) for key in ("type", "index", "id")):
            for key, value in detail.items():
                before = last.get(key)
                if key in _JOINED and isinstance(value, str) and isinstance(before, str):
                    last[key] = before + value
                elif value is not None:
                    last[key] = value
        else:
            self._kept.append(dict(detail))


# Other names for a cut answer, from `finish_details` (old vision models), Mistral, and gateways in front of Gemini or
# Claude.
_FINISHES: Final = {
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "safety": "content_filter",
    "recitation": "content_filter",
}


def failed(message: str, code: str = "server_error") -> Ending:
    """Return the ending of a failed answer, with the code and message that the client gets."""
    return Ending("failed", code=code, message=message)


def reported(error: ApiError) -> Ending:
    """Return the ending for an error that the upstream put into its answer."""
    code, message = as_event_failure(error)
    return Ending("failed", code=code, message=message, error=error)


def ending_by(finish: str) -> Ending:
    """Convert a finish reason of Chat Completions to an ending."""
    if finish == "length":
        return Ending("incomplete", reason="max_output_tokens")
    if finish == "content_filter":
        return Ending("incomplete", reason="content_filter")
    if finish == "error":
        return failed("The upstream reported an error.")
    return Ending("completed")


def plain_finish(reason: str) -> str:
    """Return Chat Completions' name for this finish reason. Some servers send another name, or upper case."""
    reason = reason.lower()
    return _FINISHES.get(reason, reason)


def finish_of(details: Raw) -> str:
    """Return the finish reason in `finish_details`, which old vision models send. The result is empty if
    `finish_details` names no reason."""
    kind = decode_object(bytes(details)).get("type")
    return kind if isinstance(kind, str) else ""
