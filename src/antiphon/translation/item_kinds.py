"""Which types of items are known here.

Lives here: the whole list, and leaving out what is not on it. Not here: what each kind becomes (`chat_messages.py`),
items that only refer to others.

Invariant: what passes has a type that `chat_messages.py` knows, or none (a message by its role, a reference by its id).
"""

from __future__ import annotations

from collections.abc import Iterable

from antiphon.errors import InvalidRequest, invalid_value
from antiphon.translation.call_items import CALLS, OUTPUTS
from antiphon.translation.compaction import COMPACTIONS
from antiphon.translation.foreign_items import FOREIGN_MESSAGES, FOREIGN_REASONING
from antiphon.translation.hosted_items import HOSTED
from antiphon.types.items import InputItem
from antiphon.types.tolerance import Tolerance

READ_BEFORE = frozenset({"additional_tools", "configuration_update"})
"""Items that say something about the request, not to the model."""

KNOWN_ITEMS = (CALLS | OUTPUTS | HOSTED | COMPACTIONS | FOREIGN_MESSAGES | FOREIGN_REASONING | READ_BEFORE) | {
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


def unknown_item(where: str, kind: str) -> InvalidRequest:
    """The error for an item of a type that nobody here knows."""
    return invalid_value(f"{where}.type", f"items of type {kind[:64]!r} are not supported")
