"""Reading an entry of `tools` into a tool's own struct.

Lives here: the decoding, and the error that names the field. Not here: what the values may be (each tool).

Invariant: the error says where and what kind of value is wrong, never the value: it may be a secret.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from antiphon.engine.hosted import HostedTool
from antiphon.errors import InvalidRequest

__all__ = ["read_declared"]

T = TypeVar("T")


def read_declared(tool: HostedTool, kind: type[T]) -> T:
    """The declaration as a `kind`. Raises `InvalidRequest` whose `param` is the field."""
    try:
        return msgspec.json.decode(tool.declaration, type=kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$")
        param = f"tools[{tool.index}]" + place.rstrip("`")
        raise InvalidRequest(f"Invalid '{param}': {what}.", param=param, code="invalid_type") from None
