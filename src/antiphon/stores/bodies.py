"""Encrypts stored bodies at rest (sealing), or leaves them as they are.

Lives here: the form of a sealed body, its keys and their rotation, and which parts of an item or a response are bodies.
Not here: the stores that seal what they are given and open what they give; where keys come from (`app/keys.py`), what
clients carry sealed (`antiphon/sealing.py`). Ids, types, times, names and numbers are never sealed: a database must see
them to find and to count.

Form: `\\x01as1 | key id (4 bytes) | salt (16) | AES-256-GCM of the body, with its tag (16)`. No JSON and no event
begins with that byte, so what is sealed is told from what is not. Every body has a key of its own, made of one of ours
and the salt: no number of bodies is too many for a key. Nothing is compressed: what a store counts is what a body takes
in memory, so limits of bytes hold.

Invariants: what is not exactly a body sealed with one of our keys raises `StoreError`, and is never taken for a body. A
body goes into a store sealed, or, without `state.seal`, as it is; either comes out as it was given. So a database may
hold both, and the setting can be turned on and off.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.engine.ports.stored_bodies import with_status
from antiphon.errors import StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MARK = b"\x01as1"
_KEY_ID, _SALT, _TAG = 4, 16, 16
_HEAD = len(_MARK) + _KEY_ID + _SALT
# A key is used for one body.
_NONCE = bytes(12)


def is_sealed(stored: bytes) -> bool:
    """Whether a body, or what a store has for one, is sealed."""
    return stored.startswith(_MARK)


class Bodies:
    """Seals with the first secret, if at all (`seals`), and opens with all of them."""

    def __init__(self, secrets: Sequence[bytes], *, seals: bool) -> None:
        keys = [hashlib.sha256(b"antiphon key of stored bodies\0" + secret).digest() for secret in secrets]
        named = [(hashlib.sha256(b"antiphon id of that key\0" + key).digest()[:_KEY_ID], key) for key in keys]
        # Of two keys with one id (4 bytes: next to never) both are tried.
        self._keys: dict[bytes, list[bytes]] = {}
        for name, key in named:
            self._keys.setdefault(name, []).append(key)
        self._first = named[0] if seals else None

    def seal(self, body: bytes) -> bytes:
        """The body as it is stored."""
        if self._first is None:
            return body
        name, key = self._first
        head = _MARK + name + os.urandom(_SALT)
        return head + _cipher(key, head).encrypt(_NONCE, body, head)

    def open(self, stored: bytes) -> bytes:
        """The body that was stored. Raises `StoreError`."""
        if not is_sealed(stored):
            return stored
        from cryptography.exceptions import InvalidTag

        head, closed = stored[:_HEAD], stored[_HEAD:]
        keys = self._keys.get(head[len(_MARK) : len(_MARK) + _KEY_ID], ()) if len(closed) >= _TAG else ()
        for key in keys:
            try:
                return _cipher(key, head).decrypt(_NONCE, closed, head)
            except InvalidTag:
                continue
        raise StoreError(
            "A stored body is sealed with a key that this process does not have, or was changed. Put the key with "
            "which it was sealed into 'sealing.keys' again, behind the first one (or restore sealing.key in the data "
            "folder).",
            reason="sealed",
        )

    def open_response(self, stored: bytes, status: str) -> bytes:
        """The object of a response with this status: while it runs, its row has the body that it was queued with.
        Raises `StoreError`."""
        body = self.open(stored)
        return with_status(body, status) if status == "in_progress" else body

    def seal_item(self, item: StoredItem) -> StoredItem:
        """The item as it is stored."""
        if self._first is None:
            return item
        return StoredItem(
            item.id, item.type, self.seal(item.body), None if item.shown is None else self.seal(item.shown)
        )

    def open_item(self, item: StoredItem) -> StoredItem:
        """The item that was stored. Raises `StoreError`."""
        if not is_sealed(item.body) and (item.shown is None or not is_sealed(item.shown)):
            return item
        return StoredItem(
            item.id, item.type, self.open(item.body), None if item.shown is None else self.open(item.shown)
        )

    def open_items(self, items: tuple[StoredItem, ...]) -> tuple[StoredItem, ...]:
        """These items as they were stored. Raises `StoreError`."""
        return tuple([self.open_item(item) for item in items])

    def seal_record(self, record: ResponseRecord) -> ResponseRecord:
        """The response as it is stored."""
        if self._first is None:
            return record
        return replace(
            record,
            body=self.seal(record.body),
            input_items=tuple([self.seal_item(item) for item in record.input_items]),
            output_items=tuple([self.seal_item(item) for item in record.output_items]),
        )


PLAIN = Bodies((), seals=False)
"""Bodies as they are."""


def _cipher(key: bytes, head: bytes) -> AESGCM:
    # Imported when something is sealed for the first time: it weighs 8 MiB.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hmac.digest(key, head, "sha256"))
