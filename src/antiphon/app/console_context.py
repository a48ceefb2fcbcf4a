"""Reads the items of a thread that fill the model's context, for the console's view *Threads*.

This module loads a thread from the stores, removes the items that the latest compaction replaced, and decrypts the
summary of a compaction. Not here: the rules of a compaction (`translation/chat/compaction.py`), and the size of each
kind of items (`console/views/threads.py`).

Invariant: the functions read only the data of the owner that the caller names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from antiphon.engine.exchange.loaded_request import open_sealed
from antiphon.engine.exchange.stored_items import read_history
from antiphon.engine.ports.actions import StoredItem
from antiphon.errors import ApiError
from antiphon.sealing import Sealer
from antiphon.stores import Stores
from antiphon.translation.chat.compaction import Unseal, expand_compactions
from antiphon.types.items import InputItem, shown_of
from antiphon.types.json import decode_any
from antiphon.types.views import SealedCompaction

_PAYLOAD = msgspec.json.Decoder(SealedCompaction)


class ThreadContext:
    """Reads threads from the stores. `sealer` decrypts the content that Antiphon encrypted."""

    def __init__(self, stores: Stores, sealer: Sealer) -> None:
        self._stores = stores
        self._sealer = sealer

    async def items(self, owner: str, thread: str) -> Sequence[Mapping[str, Any]] | None:
        """Return the items of a thread: a response with its history, or a conversation. The result lacks items that the
        latest compaction replaced. An item has the tool result that the model saw, even if the API hides this result.
        Returns None if the thread does not exist, or is too large to load."""
        try:
            if thread.startswith("resp_"):
                chain = await self._stores.responses.load_chain(owner, thread)
                items = None if chain is None else chain.items
            else:
                items = await self._stores.conversations.load(owner, thread)
            return None if items is None else context_items(items, partial(open_sealed, self._sealer, owner))
        except (ApiError, ValueError):
            return None

    def summary(self, owner: str, sealed: str) -> str | None:
        """Return the summary in the encrypted content of a compaction. Returns None if the content cannot be
        decrypted."""
        return _summary(sealed, partial(open_sealed, self._sealer, owner))


def context_items(items: Sequence[StoredItem], unseal: Unseal) -> list[Mapping[str, Any]]:
    """Return the items that fill the model's context, as JSON objects. The object of a compaction has the summary's
    text in `summary`."""
    named = expand_compactions([("input", item) for item in read_history(items)], unseal)
    return [_as_json(item, unseal) for _, item in named]


def _as_json(item: InputItem, unseal: Unseal) -> Mapping[str, Any]:
    made = decode_any(bytes(item.source))
    if item.encrypted_content and (text := _summary(item.encrypted_content, unseal)) is not None:
        return {"type": made.get("type"), "id": made.get("id"), "summary": text}
    if (shown := shown_of(item)) is None or not shown.calls:
        return dict(made)
    outputs = [text for call in shown.calls if (text := _text(bytes(call.output)))]
    if not outputs:
        return dict(made)
    kept = {name: value for name, value in made.items() if name not in ("results", "outputs")}
    return {**kept, "output": "\n".join(outputs)}


def _summary(sealed: str, unseal: Unseal) -> str | None:
    try:
        payload = _PAYLOAD.decode(unseal(sealed, "encrypted_content"))
        return _text(bytes(payload.text))
    except (ApiError, ValueError):
        return None


def _text(data: bytes) -> str | None:
    """Return the text of a JSON string, or None if `data` is not a JSON string."""
    found = decode_any(data) if data else None
    return found if isinstance(found, str) else None
