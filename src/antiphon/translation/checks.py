"""Checks that several readers of a request share, each with its error.

Invariant: every error names the field it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest

__all__ = ["NAME", "check_choice", "check_include", "check_metadata", "read_string", "required", "wrong_type"]

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Names of tools and schemas."""

_STRING = msgspec.json.Decoder(str)
# How msgspec says what is wrong, and the words for it.
_EXPECTED = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_KINDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
}


def wrong_type(name: str, error: msgspec.ValidationError) -> InvalidRequest:
    """The error for a value of the wrong type, or one that lacks a key, with its path below `name`."""
    problem, _, path = str(error).partition(" - at `$")
    param = name + path.removesuffix("`").replace("[...]", "")
    if found := _MISSING.fullmatch(problem):
        param = f"{param}.{found[1]}"
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if found := _EXPECTED.fullmatch(problem):
        wanted = " or ".join(_KINDS.get(kind, kind) for kind in found[1].split(" | ") if kind != "null")
        problem = f"expected {wanted}, but got {_KINDS.get(found[2], found[2])} instead"
    else:
        problem = problem[:1].lower() + problem[1:].replace("`", "")
    return InvalidRequest(f"Invalid type for '{param}': {problem}.", param=param, code="invalid_type")


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


ENCRYPTED, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"
IGNORABLE_INCLUDES = frozenset(
    {
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    }
)
"""Values of `include` that speak of hosted tools, of which there are none yet."""


def check_include(values: Iterable[str]) -> None:
    """Raise for a value of `include` that OpenAI does not have."""
    for number, include in enumerate(values):
        if include not in IGNORABLE_INCLUDES and include not in (LOGPROBS, ENCRYPTED):
            raise InvalidRequest(
                f"Invalid value for 'include[{number}]': {include[:64]!r}. "
                f"Supported: {', '.join(sorted((LOGPROBS, ENCRYPTED, *IGNORABLE_INCLUDES)))}.",
                param="include",
                code="invalid_value",
            )


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise unless there are at most 16 pairs, of at most 64 and 512 characters."""
    if len(metadata) > 16:
        raise InvalidRequest(
            "Invalid 'metadata': it may have at most 16 pairs.", param="metadata", code="object_above_max_properties"
        )
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise InvalidRequest(
                "Invalid 'metadata': keys may have at most 64 characters and values at most 512.",
                param="metadata",
                code="string_above_max_length",
            )
