"""Decodes a tool's declaration and call arguments into the tool's own structs.

Lives here: the decoding, and the errors that name the field. Not here: the allowed values (each tool).

Invariant: an error says where and what kind of value is wrong, never the value: it may be a secret.
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
    """The declaration as a `kind`. Raises `InvalidRequest` whose `param` is the field."""
    try:
        return msgspec.json.decode(tool.declaration, type=kind)
    except msgspec.ValidationError as error:
        raise wrong_type(f"tools[{tool.index}]", error) from None


def read_arguments(arguments: str, kind: type[T]) -> T | None:
    """The arguments that a model wrote as a `kind`; None where they are none."""
    return try_decode(msgspec.json.Decoder(kind), arguments)


def check_length(where: str, entries: list[str], limit: int) -> None:
    """Raises `InvalidRequest` where a list has more than `limit` entries."""
    if len(entries) > limit:
        raise too_many_entries(where, len(entries), limit)
