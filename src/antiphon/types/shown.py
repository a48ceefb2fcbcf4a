"""Keeps the model's view of an item, if the model saw more than the item holds.

Lives here: its form next to a stored item, and an item that was read back with it. Not here: its form in a chat
(`translation/chat/messages.py`), keeping it (`engine/exchange/`, `stores/`).

A model server finds a conversation in its prefix cache only if its beginning is the same, byte for byte, every time. A
search's item tells a client the queries. It holds the results only if the client asked for them, but the model has
read all of them. So Antiphon stores the text that the model has read for later requests, and never shows it to a
client.

Invariant: it never comes from a client: `HistoryItem` joins a stored item and its stored view.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT


class ShownCall(Struct, omit_defaults=True):
    """A call of a tool that runs here, with its result: `arguments` and `output` are JSON strings.

    `output` is absent if the item has the same. `asked` is the id of the request for approval that stands for the call.
    Calls of one `round` were made in one answer of the model.
    """

    call_id: str
    name: str
    arguments: Raw
    output: Raw = ABSENT
    images: tuple[str, ...] = ()
    asked: str | None = None
    round: str = ""


class Shown(Struct, omit_defaults=True):
    """`calls` is what stands for the item; `call_id` the id by which the model knows the item's call, where it is
    another now; `marks` the highest number so far by which the model could cite a source; `beside` has the ids of the
    client's calls that the model made after these, in the same answer."""

    calls: tuple[ShownCall, ...] = ()
    call_id: str | None = None
    marks: int = 0
    beside: tuple[str, ...] = ()


class HistoryItem(InputItem):
    """An item as it was stored."""

    shown: Shown | None = None


_SHOWN = msgspec.json.Decoder(Shown)


def read_shown(kept: bytes | None) -> Shown | None:
    """The value stored next to an item."""
    return None if kept is None else _SHOWN.decode(kept)


def shown_of(item: InputItem) -> Shown | None:
    """The text that the model got for this item, as far as it is known."""
    return item.shown if isinstance(item, HistoryItem) else None


def with_shown(item: InputItem, shown: Shown) -> HistoryItem:
    """The item, with the model's view of it."""
    fields = {name: getattr(item, name) for name in InputItem.__struct_fields__}
    return HistoryItem(**fields, shown=shown)


def highest_mark(items: Iterable[tuple[str, InputItem]]) -> int:
    """The highest number by which a source in this conversation can be cited."""
    return max((shown.marks for _, item in items if (shown := shown_of(item)) is not None), default=0)
