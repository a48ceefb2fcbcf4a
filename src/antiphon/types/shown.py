"""Stores the text that the model saw for an item, if the model saw more than the item holds.

Lives here: the record that is stored next to an item, and an item that was loaded with its record. Not here: the
record's form in a chat request (`translation/chat/messages.py`), and storing the record (`engine/exchange/`,
`stores/`).

A model server finds a conversation in its prefix cache only if the conversation's beginning is the same, byte for byte,
every time. The item of a search tells a client the queries. The item holds the results only if the client requested
them, but the model has read all results. So Antiphon stores the text that the model has read for later requests, and
never sends it to a client.

Invariant: the record never comes from a client. `HistoryItem` joins a stored item and its stored record.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT


class ShownCall(Struct, omit_defaults=True):
    """A call of a hosted tool, with its result. `arguments` and `output` are JSON strings.

    `output` is absent if the item holds the same text. `asked` is the id of the approval request for this call. Calls
    with the same `round` come from one answer of the model.
    """

    call_id: str
    name: str
    arguments: Raw
    output: Raw = ABSENT
    images: tuple[str, ...] = ()
    asked: str | None = None
    round: str = ""


class Shown(Struct, omit_defaults=True):
    """The calls that the model sees in place of an item.

    - `call_id` is the id by which the model knows the item's call, if the item has a different id.
    - `marks` is the highest citation number that the sources of the conversation have so far.
    - `beside` has the ids of the client's calls that the model made in the same answer, after these calls.
    """

    calls: tuple[ShownCall, ...] = ()
    call_id: str | None = None
    marks: int = 0
    beside: tuple[str, ...] = ()


class HistoryItem(InputItem):
    """A stored item, with the stored record of the text that the model saw."""

    shown: Shown | None = None


_SHOWN = msgspec.json.Decoder(Shown)


def read_shown(kept: bytes | None) -> Shown | None:
    """Decode the record that is stored next to an item. None if `kept` is None."""
    return None if kept is None else _SHOWN.decode(kept)


def shown_of(item: InputItem) -> Shown | None:
    """The record of the text that the model saw for this item. None if the item has no record."""
    return item.shown if isinstance(item, HistoryItem) else None


def with_shown(item: InputItem, shown: Shown) -> HistoryItem:
    """The item, joined with the record of the text that the model saw."""
    fields = {name: getattr(item, name) for name in InputItem.__struct_fields__}
    return HistoryItem(**fields, shown=shown)


def highest_mark(items: Iterable[tuple[str, InputItem]]) -> int:
    """The highest citation number of any source in this conversation, or 0."""
    return max((shown.marks for _, item in items if (shown := shown_of(item)) is not None), default=0)
