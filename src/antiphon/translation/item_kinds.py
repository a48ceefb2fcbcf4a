"""Which types of items are known here.

Lives here: the whole list, and leaving out what is not on it: items, and members of those that are. Not here: what each
kind becomes (`chat_messages.py`), items that only refer to others.

Invariant: what passes has a type that `chat_messages.py` knows, or none (a message by its role, a reference by its id).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest, invalid_value, unsupported_parameter
from antiphon.translation.call_items import CALLS, HOSTED, OUTPUTS
from antiphon.translation.compaction import COMPACTIONS
from antiphon.translation.foreign_items import FOREIGN_MESSAGES, FOREIGN_REASONING
from antiphon.types.items import InputItem, KnownItem
from antiphon.types.tolerance import Tolerance

READ_BEFORE: Final = frozenset({"additional_tools", "configuration_update"})
"""Items that say something about the request, not to the model."""

KNOWN_ITEMS: Final = (CALLS | OUTPUTS | HOSTED | COMPACTIONS | FOREIGN_MESSAGES | FOREIGN_REASONING | READ_BEFORE) | {
    "message",
    "reasoning",
    "item_reference",
    "compaction_trigger",
}
"""Every type that an item of an input may have."""


def only_known(where: str, items: Iterable[InputItem], tolerance: Tolerance) -> list[InputItem]:
    """The items of a list (called `where`) but those of unknown types. Raises `InvalidRequest` in strict mode.

    An output of an unknown type whose call is known is missed later: the call has no output then.
    """
    kept = []
    for number, item in enumerate(items):
        if item.type is None or item.type in KNOWN_ITEMS:
            kept.append(item)
        else:
            tolerance.leave_out(f"{where}.{item.type}", unknown_item(f"{where}[{number}]", item.type))
    return kept


_MEMBERS: Final = {
    **dict.fromkeys(FOREIGN_MESSAGES, frozenset({"author", "recipient"})),
    **dict.fromkeys(FOREIGN_REASONING, frozenset({"text"})),
    "configuration_update": frozenset({"reasoning", "text"}),
    "function_call": frozenset({"async", "encrypted_function_args"}),
    "custom_tool_call": frozenset({"async"}),
    "mcp_call": frozenset({"server_label", "error"}),
    "shell_call_output": frozenset({"max_output_length"}),
    "computer_call_output": frozenset({"acknowledged_safety_checks"}),
    "program_output": frozenset({"result"}),
}
"""Members that items of these types have beside those that any item may have."""
_SHOWN_WHOLE: Final = HOSTED - {"mcp_call"}
_ANY: Final = frozenset(KnownItem.__struct_fields__) - {"source"}
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])


def members_of(kind: str) -> frozenset[str]:
    """What an item of this known type may have, unless it is shown to the model as it came (a hosted tool's)."""
    return _ANY | _MEMBERS.get(kind, frozenset())


def note_members(where: str, items: Iterable[InputItem], tolerance: Tolerance) -> None:
    """Leave out members that nobody here knows, of items that have their sources. Items that are shown as they came
    have none. Raises `InvalidRequest` in strict mode."""
    for number, item in enumerate(items):
        kind = item.type or "message"
        if kind in _SHOWN_WHOLE or kind not in KNOWN_ITEMS:
            continue
        known = members_of(kind)
        for name in tolerance.unknown(_OBJECT.decode(item.source), known):
            place = f"{where}[{number}].{name}"
            tolerance.leave_out(f"{where}.{kind}.{name}", unsupported_parameter(f"Unknown member: '{place}'.", place))


def unknown_item(where: str, kind: str) -> InvalidRequest:
    """The error for an item of a type that nobody here knows."""
    return invalid_value(f"{where}.type", f"items of type {kind[:64]!r} are not supported")
