"""Operations on JSON text as bytes, without decoding, for the hot path.

Lives here: fragments. A *fragment* is the inside of a JSON string, still escaped, without its quotes. Fragments
can be joined and put between quotes to make a JSON string again. Not here: any message shape.

Invariant: a fragment is valid UTF-8 and holds no unescaped quote or control character.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, TypeVar

import msgspec

_Value = TypeVar("_Value")

encode = msgspec.json.encode

NULL: Final = msgspec.Raw(b"null")

JsonText = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "string"})]
"""A JSON string as it is on the wire; the schema is for the API's own document, as are those below."""

JsonObject = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object"})]
"""A JSON object as it is on the wire."""

JsonObjects = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array", "items": {"type": "object"}})]
"""A JSON array of objects as it is on the wire."""

ABSENT: Final = msgspec.Raw()
"""The default of raw fields (a union of raw JSON and None cannot be decoded into)."""

_NOTHING: Final = msgspec.Raw(b"")

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def raw(value: object) -> msgspec.Raw:
    """Any value as raw JSON."""
    return msgspec.Raw(encode(value))


def quoted(fragment: bytes) -> msgspec.Raw:
    """A fragment as a JSON string."""
    return msgspec.Raw(b'"%b"' % fragment)


def fragment_of(text: str) -> bytes:
    """Text as a fragment; lone surrogates, which no valid JSON text can carry as UTF-8, become U+FFFD."""
    try:
        return encode(text)[1:-1]
    except UnicodeEncodeError:
        return encode(_SURROGATE.sub("\ufffd", text))[1:-1]


def first(value: msgspec.Raw) -> bytes:
    """The first byte, which tells the kind of value; empty when absent. Copies nothing."""
    return bytes(memoryview(value)[:1])


def given(value: msgspec.Raw) -> bool:
    """Whether there is a value, and it is not null."""
    return value is not ABSENT and value != NULL and value != _NOTHING


def text_of(fragment: bytes) -> str:
    """The text of a fragment."""
    text = msgspec.json.decode(b'"%b"' % fragment)
    assert isinstance(text, str)
    return text


def try_decode(decoder: msgspec.json.Decoder[_Value], data: bytes | str | msgspec.Raw) -> _Value | None:
    """The decoded value. None for another kind of value, for text that is no JSON, and for too deep nesting."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def decode_any(data: bytes | str) -> Any:
    """Decode JSON leniently: invalid UTF-8 is replaced, lone surrogates and NaN are accepted.

    For an upstream's data that the strict decoder refused. Raises ValueError when it is not JSON at all.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    try:
        value = json.loads(text, strict=False)
        return _without_surrogates(value) if "\\u" in text or "\\U" in text else value
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def decode_object(data: bytes | str) -> dict[str, Any]:
    """The object that `decode_any` finds; empty for anything else."""
    try:
        value = decode_any(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def is_utf8(data: bytes) -> bool:
    """Whether these bytes are text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
