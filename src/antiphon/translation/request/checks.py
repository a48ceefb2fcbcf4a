"""Checks request values that several modules read: choices, names, metadata and types. Each check itself raises the
error that the client gets.

Invariant: every error names the field with the wrong value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from antiphon.errors import (
    InvalidRequest,
    invalid_parameter,
    invalid_type,
    invalid_value,
    missing_parameter,
)
from antiphon.types.tolerance import Tolerance

_Value = TypeVar("_Value")

NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""The format of the names of tools and schemas."""

_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
_LONGEST_KEY: Final = 64
_FIRST: Final = {b"{": "object", b"[": "array", b'"': "str", b"t": "bool", b"f": "bool", b"n": "null"}
_STRING: Final = msgspec.json.Decoder(str)
# Patterns of msgspec's error messages, and the client's words for JSON types.
_EXPECTED: Final = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_MISSING: Final = re.compile(r"Object missing required field `([^`]+)`")
_KINDS: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
}


def wrong_type(name: str, error: msgspec.ValidationError, source: bytes | Raw = b"") -> InvalidRequest:
    """Return the error for a value of the wrong type, or for an object that lacks a key. `name` is the path of the
    decoded value, and is empty for the whole body. The error's `param` also has the path inside the value. `source` is
    the decoded value, in which this function finds the wrong key of a map, such as `metadata.a`."""
    problem, _, path = str(error).partition(" - at `$")
    path = path.removesuffix("`")
    key = _wrong_key(path.removesuffix("[...]"), source, problem) if path.endswith("[...]") else ""
    param = (name + path.replace("[...]", "") + key).lstrip(".")
    if found := _MISSING.fullmatch(problem):
        param = f"{param}.{found[1]}".lstrip(".")
        return missing_parameter(param)
    if found := _EXPECTED.fullmatch(problem):
        wanted = " or ".join(_KINDS.get(kind, kind) for kind in found[1].split(" | ") if kind != "null")
        problem = f"expected {wanted}, but got {_KINDS.get(found[2], found[2])} instead"
    else:
        problem = problem[:1].lower() + problem[1:].replace("`", "")
    if not param:
        return InvalidRequest(f"Invalid request body: {problem}.", code="invalid_type")
    return invalid_type(param, f"{problem}")


def _wrong_key(path: str, source: bytes | Raw, problem: str) -> str:
    """Return a dot and the first key of the wrong type in the object at `path`, or an empty text if it is unknown."""
    found = _EXPECTED.fullmatch(problem)
    try:
        members = _MEMBERS.decode(source)
        for part in path.split(".")[1:]:
            members = _MEMBERS.decode(members[part])
    except (msgspec.MsgspecError, KeyError, RecursionError):
        return ""
    wrong = (key for key, value in members.items() if found is not None and _kind(bytes(value)) == found[2])
    return "".join(f".{key[:_LONGEST_KEY]}" for key in islice(wrong, 1))


def _kind(value: bytes) -> str:
    """Return the type of a JSON value, in the words of msgspec's errors."""
    first = value[:1]
    if first in _FIRST:
        return _FIRST[first]
    return "float" if any(mark in value for mark in b".eE") else "int"


def read_value(name: str, decoder: msgspec.json.Decoder[_Value], value: Raw) -> _Value:
    """Decode a member of a body that is valid JSON. Raises `InvalidRequest` when the value has another type, or is
    nested too deeply."""
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as error:
        raise wrong_type(name, error, value) from None
    except RecursionError:
        raise invalid_parameter(name, "the value is nested too deeply") from None


def check_choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    """Raise `InvalidRequest` unless the value is None or one of `allowed`."""
    if value is not None and value not in allowed:
        raise _not_among(name, value, allowed)


def known_choice(name: str, value: str | None, allowed: tuple[str, ...], tolerance: Tolerance) -> bool:
    """Return whether the value is None or one of `allowed`. The response lists any other value as ignored. Raises
    `InvalidRequest` in strict mode."""
    if value is None or value in allowed:
        return True
    tolerance.leave_out(f"{name}:{value}", _not_among(name, value, allowed))
    return False


def _not_among(name: str, value: str, allowed: tuple[str, ...]) -> InvalidRequest:
    return invalid_value(name, f"{value[:64]!r}. Supported values are: {', '.join(allowed)}")


def read_string(name: str, value: Raw) -> str:
    """Decode a string. Raises `InvalidRequest` for any other value."""
    try:
        return _STRING.decode(value)
    except (msgspec.DecodeError, RecursionError):
        raise invalid_type(name, "expected a string") from None


# Matches the escape of one half of a surrogate pair, without the other half next to it. Escaped backslashes do not
# match.
_UNPAIRED: Final = re.compile(
    rb"(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)


def has_half_characters(data: bytes) -> bool:
    """Whether the JSON has an unpaired surrogate."""
    return _UNPAIRED.search(data) is not None


def not_json(data: bytes, problem: str = "", what: str = "The request body") -> InvalidRequest:
    """Return the error for bytes that are not JSON. `problem` is the parser's message. For an unpaired surrogate, the
    error has a separate message, since the parser would wrongly report truncated input. JavaScript clients write an
    unpaired surrogate when they cut a text."""
    if (found := _UNPAIRED.search(data)) is not None:
        problem = (
            f"an unpaired surrogate at byte {found.start(1)} ('{found[1].decode()}'), which is half a character. Send "
            "the character whole, or leave it out"
        )
    return InvalidRequest(f"{what} is not valid JSON{f': {problem}' if problem else ''}.", code="invalid_json")


def not_utf8(error: UnicodeDecodeError) -> InvalidRequest:
    """Return the error for a body that is not valid UTF-8."""
    return InvalidRequest(f"The request body is not valid UTF-8 (byte {error.start}).", code="invalid_json")


def required(where: str, name: str, value: str | None) -> str:
    """Return a required string. Raises `InvalidRequest` when the string is absent or empty."""
    if not value:
        raise missing_parameter(f"{where}.{name}")
    return value


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise `InvalidRequest` unless there are at most 16 pairs, with keys of at most 64 and values of at most 512
    characters."""
    if len(metadata) > 16:
        raise invalid_parameter("metadata", "the object may have at most 16 pairs", "object_above_max_properties")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise invalid_parameter(
                "metadata", "keys may have at most 64 characters and values at most 512", "string_above_max_length"
            )
