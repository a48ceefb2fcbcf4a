"""Operations on JSON text as bytes, without decoding, for the hot path.

Lives here: functions for fragments of JSON text. A *fragment* is the inside of a JSON string, still escaped, without
its quotes. Fragments can be joined and put between quotes to make a JSON string again. Not here: the classes of
requests, items and events (`types/request.py`, `types/items.py`, `types/events.py`).

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
"""An undecoded JSON string. `extra_json_schema` is the type that the API's OpenAPI document shows."""

JsonObject = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object"})]
"""An undecoded JSON object."""

JsonObjects = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array", "items": {"type": "object"}})]
"""An undecoded JSON array of objects."""

ABSENT: Final = msgspec.Raw()
"""The default of raw fields that the data may omit. msgspec cannot decode a union of raw JSON and None."""

_NOTHING: Final = msgspec.Raw(b"")

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def raw(value: object) -> msgspec.Raw:
    """Any value, encoded as raw JSON."""
    return msgspec.Raw(encode(value))


def quoted(fragment: bytes) -> msgspec.Raw:
    """The JSON string that holds this fragment."""
    return msgspec.Raw(b'"%b"' % fragment)


def fragment_of(text: str) -> bytes:
    """The fragment for a text. A lone surrogate becomes U+FFFD, because UTF-8 cannot encode it."""
    try:
        return encode(text)[1:-1]
    except UnicodeEncodeError:
        return encode(_SURROGATE.sub("\ufffd", text))[1:-1]


def first(value: msgspec.Raw) -> bytes:
    """The first byte of a raw value, which identifies its JSON type. Empty when the value is absent. Copies no data."""
    return bytes(memoryview(value)[:1])


def given(value: msgspec.Raw) -> bool:
    """Whether the value is present and not null."""
    return value is not ABSENT and value != NULL and value != _NOTHING


def text_of(fragment: bytes) -> str:
    """The text of a fragment, with its escapes decoded."""
    text = msgspec.json.decode(b'"%b"' % fragment)
    assert isinstance(text, str)
    return text


def try_decode(decoder: msgspec.json.Decoder[_Value], data: bytes | str | msgspec.Raw) -> _Value | None:
    """The decoded value. None for a value of another type, for invalid JSON, and for too deep nesting."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def decode_any(data: bytes | str) -> Any:
    """Decode JSON leniently: replace invalid UTF-8, and accept lone surrogates and NaN.

    The function is for an upstream's data that the strict decoder refused. Raises ValueError when the data is not JSON,
    or is nested too deeply.
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
    """The object that `decode_any` returns. An empty dict for any other value, and for data that is not JSON."""
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
    """Whether these bytes are valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
