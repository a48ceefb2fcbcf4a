"""Decodes the JSON of a tool's declaration and of call arguments into structs that the tool defines.

Lives here: decoding, and errors that name the invalid field. Not here: checking the values (each tool's module).

Invariant: an error names the field and the expected type, but never the value, which may be a secret.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from antiphon.engine.ports.hosted_tools import HostedTool
from antiphon.errors import too_many_entries
from antiphon.translation.request.checks import wrong_type
from antiphon.types.json import try_decode

T = TypeVar("T")


def read_declared(tool: HostedTool, kind: type[T]) -> T:
    """Decode a tool's declaration into the struct `kind`. Raises `InvalidRequest` whose `param` names the field."""
    try:
        return msgspec.json.decode(tool.declaration, type=kind)
    except msgspec.ValidationError as error:
        raise wrong_type(f"tools[{tool.index}]", error) from None


def read_arguments(arguments: str, kind: type[T]) -> T | None:
    """Decode the arguments of the model's call into the struct `kind`. Returns None if the text is invalid JSON or does
    not match `kind`."""
    return try_decode(msgspec.json.Decoder(kind), arguments)


def check_length(where: str, entries: list[str], limit: int) -> None:
    """Raise `InvalidRequest` if a list has more than `limit` entries. `where` names the field in the error."""
    if len(entries) > limit:
        raise too_many_entries(where, len(entries), limit)
