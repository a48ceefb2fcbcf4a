"""Checks that several readers of a request share, each with its error.

Invariant: every error names the field it is about.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest

__all__ = ["NAME", "check_choice", "read_string", "required", "wrong_type"]

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Names of tools and schemas."""

_STRING = msgspec.json.Decoder(str)


def wrong_type(name: str, error: msgspec.ValidationError) -> InvalidRequest:
    """The error for a value of the wrong type, with its path below `name`."""
    problem, _, path = str(error).partition(" - at `$")
    param = name + path.removesuffix("`").replace("[...]", "")
    return InvalidRequest(f"Invalid type for '{param}': {_lower(problem)}.", param=param, code="invalid_type")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].replace("`", "")


def check_choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    """Raise unless the value is absent or one of these."""
    if value is not None and value not in allowed:
        raise InvalidRequest(
            f"Invalid value for '{name}': {value[:64]!r}. Supported values are: {', '.join(allowed)}.",
            param=name,
            code="invalid_value",
        )


def read_string(name: str, value: Raw) -> str:
    """A string. Raises `InvalidRequest` for anything else."""
    try:
        return _STRING.decode(value)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(
            f"Invalid type for '{name}': expected a string.", param=name, code="invalid_type"
        ) from None


def required(where: str, name: str, value: str | None) -> str:
    """The value. Raises `InvalidRequest` when it is absent or empty."""
    if not value:
        raise InvalidRequest(
            f"Missing required parameter: '{where}.{name}'.",
            param=f"{where}.{name}",
            code="missing_required_parameter",
        )
    return value
