"""Reads the items of a request's `input`, and items that a client adds to a conversation.

Lives here: reading a list of items, and finding the item that asks for a compaction. Not here: what an item means to a
model (`translation/chat/messages.py`), whether one could ever be shown to a model (`translation/chat/check_item.py`).

Invariant: each item keeps the bytes that it came in (`source`).
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import array_too_long, wrong_value
from antiphon.translation.request.checks import read_value
from antiphon.types.items import InputItem
from antiphon.types.json import given

_SOURCES: Final = msgspec.json.Decoder(list[Raw])
_ITEM: Final = msgspec.json.Decoder(InputItem)


def read_items(name: str, value: Raw, limit: int) -> list[InputItem]:
    """The items of a list, each with its `source`; null and absent are no items. Raises `InvalidRequest`."""
    if not given(value):
        return []
    sources = read_value(name, _SOURCES, value)
    if len(sources) > limit:
        raise array_too_long(name, limit, len(sources))
    items = []
    for number, source in enumerate(sources):
        item = read_value(f"{name}[{number}]", _ITEM, source)
        item.source = source
        items.append(item)
    return items


def take_trigger(items: list[InputItem]) -> bool:
    """Whether the input ends in a `compaction_trigger`, which is taken out. Raises `InvalidRequest` for any other."""
    asked = bool(items) and items[-1].type == "compaction_trigger"
    if asked:
        items.pop()
    for number, item in enumerate(items):
        if item.type == "compaction_trigger":
            raise wrong_value(
                f"Invalid 'input[{number}]': a 'compaction_trigger' must be the last item.", f"input[{number}]"
            )
    return asked
