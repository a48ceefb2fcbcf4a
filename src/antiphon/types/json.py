"""Handles JSON strings as bytes, without decoding them, for code that runs for every chunk of a stream.

A *fragment* is the escaped text of a JSON string without its quotes. A caller can join several fragments and put quotes
around them, to form a JSON string.

Invariant: a fragment is valid UTF-8 and contains no unescaped quote or control character.
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
"""An undecoded JSON string. `extra_json_schema` is the type that the OpenAPI document of Antiphon's API shows."""

JsonObject = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object"})]
"""An undecoded JSON object."""

JsonObjects = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "array", "items": {"type": "object"}})]
"""An undecoded JSON array of objects."""

ABSENT: Final = msgspec.Raw()
"""The value of a raw JSON field that is absent from the data. The value cannot be None, because msgspec cannot decode a
union of raw JSON and None."""

_NOTHING: Final = msgspec.Raw(b"")

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def raw(value: object) -> msgspec.Raw:
    """Encode any value as raw JSON."""
    return msgspec.Raw(encode(value))


def quoted(fragment: bytes) -> msgspec.Raw:
    """Return the JSON string for a fragment: the fragment in quotes."""
    return msgspec.Raw(b'"%b"' % fragment)


def fragment_of(text: str) -> bytes:
    """Return the text as a fragment (escaped JSON text without quotes). A lone surrogate becomes U+FFFD, because UTF-8
    has no encoding for it."""
    try:
        return encode(text)[1:-1]
    except UnicodeEncodeError:
        return encode(_SURROGATE.sub("\ufffd", text))[1:-1]


def first(value: msgspec.Raw) -> bytes:
    """Return the first byte of a raw JSON value, which identifies the value's JSON type. Return empty bytes if the
    value is absent."""
    return bytes(memoryview(value)[:1])


def given(value: msgspec.Raw) -> bool:
    """Return whether the value is present and not null."""
    return value is not ABSENT and value != NULL and value != _NOTHING


def text_of(fragment: bytes) -> str:
    """Return the text of a fragment, with decoded escapes."""
    text = msgspec.json.decode(b'"%b"' % fragment)
    assert isinstance(text, str)
    return text


def try_decode(decoder: msgspec.json.Decoder[_Value], data: bytes | str | msgspec.Raw) -> _Value | None:
    """Return the decoded value. Return None if the JSON is invalid or nested too deeply, or does not match the type of
    the decoder."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def decode_any(data: bytes | str) -> Any:
    """Decode JSON leniently: replace invalid UTF-8, and accept lone surrogates and NaN.

    This function is for an upstream's data that the strict decoder of msgspec has refused. Raises ValueError when the
    data is not JSON, or is nested too deeply.
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
    """Decode a JSON object with `decode_any`. Return an empty dict for data that is not a JSON object."""
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
    """Return whether these bytes are valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
