"""Decodes a chat chunk or completion tolerantly.

Lives here: the fast typed decoder, and the slow path for chunks that the fast decoder refuses. The fast decoder refuses
wrong types, content as an array of parts or as an object, invalid UTF-8, and lone surrogates. Not here: the effect of a
chunk (`stream.py`).

Invariant: after `read_chunk`, every text field is absent, null or a valid raw JSON string. `read_chunk` raises only
`NotAChunk`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, TypeVar, get_args

import msgspec
from msgspec import Raw, Struct, structs

from antiphon.types.chat import Chunk, Delta
from antiphon.types.json import ABSENT, decode_any, decode_object, encode, fragment_of, is_utf8, quoted

_decode: Final = msgspec.json.Decoder(Chunk).decode

_TEXT_OR_NULL: Final = tuple(b'"n')
_TEXTS: Final = frozenset({"content", "refusal", "reasoning_content", "reasoning", "text", "input"})
"""Keys whose values are read as text. The key `arguments` is handled separately."""

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
    """The fragment of a text field. Empty when the field is absent, null or the empty string."""
    if value is ABSENT:
        return b""
    data = bytes(value)
    return data[1:-1] if data[:1] == b'"' else b""


def read_transcript(data: bytes) -> bytes:
    """The transcript of an audio answer, as a fragment. The Responses API has no part for the sound itself."""
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
    """Make an object of this type from the members that fit its fields. None for a value that is not an object."""
    if not isinstance(value, dict):
        return None
    found = {name: read(value.get(name)) for name, read in _readers(kind)}
    if kind is Delta:
        found["content"], thinking = _content(value.get("content"))
        if not fragment(found["reasoning_content"]):
            found["reasoning_content"] = thinking
    return kind(**found)


@lru_cache(maxsize=8)
def _readers(kind: type[Struct]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """The reader for each field of a type. The field's annotation chooses the reader. For raw JSON, the field's name
    chooses the reader."""
    return tuple((field.name, _reader(field.name, field.type)) for field in structs.fields(kind))


def _reader(name: str, kind: Any) -> Callable[[Any], Any]:
    if kind is Raw:
        return _arguments if name == "arguments" else _text if name in _TEXTS else _raw
    inner = get_args(kind)[0]
    if isinstance(inner, type) and issubclass(inner, Struct):
        return partial(_loose, inner)
    return {str: _str, int: _int}.get(inner) or partial(_each, get_args(inner)[0])


def _each(kind: type[_Shape], value: object) -> list[_Shape] | None:
    return [made for one in value if (made := _loose(kind, one)) is not None] if isinstance(value, list) else None


def _content(value: object) -> tuple[Raw, Raw]:
    """The text and the reasoning in `content`: a string, an array of parts (seen: mistral), or parsed JSON (seen:
    cloudflare)."""
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
    """The arguments of a call as text. Some servers send an object instead of a string with JSON."""
    return _text(value if value is None or isinstance(value, str) else encode(value).decode())


def _text(value: object) -> Raw:
    return quoted(fragment_of(value)) if isinstance(value, str) else ABSENT


def _str(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _raw(value: object) -> Raw:
    """Encode a leniently decoded value. The value has no surrogates and only JSON's types."""
    return ABSENT if value is None else Raw(encode(value))
