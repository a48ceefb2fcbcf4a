"""Reading an entry of `tools` into a tool's own struct.

Lives here: the decoding, and the error that names the field. Not here: what the values may be (each tool).

Invariant: the error says where and what kind of value is wrong, never the value: it may be a secret.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from antiphon.engine.ports.hosted_tools import HostedTool
from antiphon.translation.request_checks import wrong_type

T = TypeVar("T")


def read_declared(tool: HostedTool, kind: type[T]) -> T:
    """The declaration as a `kind`. Raises `InvalidRequest` whose `param` is the field."""
    try:
        return msgspec.json.decode(tool.declaration, type=kind)
    except msgspec.ValidationError as error:
        raise wrong_type(f"tools[{tool.index}]", error) from None
