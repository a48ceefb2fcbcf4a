"""Converts bodies of items, responses and recorded requests to their stored form and back.

Lives here: the encryption of bodies ("sealing"), the rotation of the sealing keys, and the choice of the fields that
are encrypted. The setting `state.seal` turns the encryption on. This module also encodes and compresses the recorded
contents (inputs and outputs) of a request. Not here: the stores that call this module, the source of the keys
(`app/keys.py`), sealed data that clients hold (`antiphon/sealing.py`). The stores never seal ids, types, times, names
and numbers, because the database searches and counts by them.

Format: `\\x01as1 | key id (4 bytes) | salt (16) | AES-256-GCM of the body, with its tag (16)`. No JSON text and no
event begins with byte 1, so the first byte distinguishes sealed bodies from plain ones. The store encrypts each body
with a separate key, which it derives from a configured key and the salt. So one configured key can seal any number of
bodies. The store does not compress bodies. So a sealed body has almost the size of the plain body, and a limit in bytes
allows as much data with sealing as without. Only recorded contents are compressed. Their format is msgpack, compressed
with zstd, and then sealed.

Invariants: a read of a sealed body that no key decrypts raises `StoreError` and never returns the encrypted bytes. With
`state.seal` on, a store seals each body that it writes. With `state.seal` off, the store writes the body unchanged. A
read returns the original body, whether or not the stored body is sealed. So one database may hold sealed and plain
bodies, and an operator can turn the setting on and off. This module refuses to decompress recorded contents of more
than `MOST_RECORDED_BYTES`, so a damaged row cannot exhaust the memory.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.engine.ports.jobs import with_status
from antiphon.engine.ports.journal import Recording
from antiphon.engine.waiting import Pool
from antiphon.errors import StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM


_MARK = b"\x01as1"
_KEY_ID, _SALT, _TAG = 4, 16, 16
_HEAD = len(_MARK) + _KEY_ID + _SALT
# Each derived key encrypts one body, so a constant nonce is safe.
_NONCE = bytes(12)


def is_sealed(stored: bytes) -> bool:
    """Return whether a stored value is a sealed body."""
    return stored.startswith(_MARK)


class Bodies:
    """Encrypts and decrypts stored bodies. `secrets` are the values of `sealing.keys`. If `seals` is set, the first
    secret encrypts. Every secret decrypts.

    The cipher is AES-256-GCM with a derived key for each body. `open` returns an unsealed body unchanged, so an
    operator can turn `state.seal` on or off.
    """

    def __init__(self, secrets: Sequence[bytes], *, seals: bool) -> None:
        keys = [hashlib.sha256(b"antiphon key of stored bodies\0" + secret).digest() for secret in secrets]
        named = [(hashlib.sha256(b"antiphon id of that key\0" + key).digest()[:_KEY_ID], key) for key in keys]
        # If two keys have the same 4-byte id, which is very unlikely, `open` tries both keys.
        self._keys: dict[bytes, list[bytes]] = {}
        for name, key in named:
            self._keys.setdefault(name, []).append(key)
        self._first = named[0] if seals else None

    def seal(self, body: bytes) -> bytes:
        """Return the stored form of a body: encrypted if `seals` was set, otherwise unchanged."""
        if self._first is None:
            return body
        name, key = self._first
        head = _MARK + name + os.urandom(_SALT)
        return head + _cipher(key, head).encrypt(_NONCE, body, head)

    def open(self, stored: bytes) -> bytes:
        """Return the original body of a stored value. Raises `StoreError` (reason `sealed`) if no key decrypts the
        value."""
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
            "A stored body cannot be decrypted: this process lacks the key, or the body was changed. Append the key "
            "that encrypted the body to 'sealing.keys' (or restore sealing.key in the data folder).",
            reason="sealed",
        )

    def open_response(self, stored: bytes, status: str) -> bytes:
        """Decrypt the response object. The stored body of a running response still has the status `queued`, so this
        method sets the status of a running response. Raises `StoreError`."""
        body = self.open(stored)
        return with_status(body, status) if status == "in_progress" else body

    def seal_item(self, item: StoredItem) -> StoredItem:
        """Return the item with its fields `body` and `shown` in stored form (encrypted if `seals` was set)."""
        if self._first is None:
            return item
        return StoredItem(
            item.id, item.type, self.seal(item.body), None if item.shown is None else self.seal(item.shown)
        )

    def open_item(self, item: StoredItem) -> StoredItem:
        """Return the stored item with its fields `body` and `shown` decrypted. Raises `StoreError`."""
        if not is_sealed(item.body) and (item.shown is None or not is_sealed(item.shown)):
            return item
        return StoredItem(
            item.id, item.type, self.open(item.body), None if item.shown is None else self.open(item.shown)
        )

    def open_items(self, items: tuple[StoredItem, ...]) -> tuple[StoredItem, ...]:
        """Return the stored items, each decrypted. Raises `StoreError`."""
        for item in items:
            if is_sealed(item.body) or item.shown is not None:
                return tuple([self.open_item(item) for item in items])
        return items

    def seal_record(self, record: ResponseRecord) -> ResponseRecord:
        """Return the response with its body and its items in stored form."""
        if self._first is None:
            return record
        return replace(
            record,
            body=self.seal(record.body),
            input_items=tuple([self.seal_item(item) for item in record.input_items]),
            output_items=tuple([self.seal_item(item) for item in record.output_items]),
        )


PLAIN = Bodies((), seals=False)
"""The `Bodies` of a store without sealing: bodies stay unchanged."""


def _cipher(key: bytes, head: bytes) -> AESGCM:
    # Imported at the first use, because the module takes 8 MiB of memory.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hmac.digest(key, head, "sha256"))


MOST_RECORDED_BYTES = 160 << 20
"""The maximum bytes of the recorded contents of one request. The limit is twice the largest allowed value of the
setting `console.record_request_bytes`, plus space for the metadata of the recorded parts."""
_THREAD = Pool("journal", 1)
"""The thread that compresses and decompresses recorded contents."""

_ENCODER = msgspec.msgpack.Encoder(enc_hook=repr)
_DECODER = msgspec.msgpack.Decoder(Recording)


async def pack_recording(recording: Recording, bodies: Bodies) -> bytes:
    """Return the stored form of recorded contents: msgpack, compressed with Zstandard, and sealed if `bodies` seals."""
    return await _THREAD.run(_packed, recording, bodies)


async def unpack_recording(packed: bytes, bodies: Bodies) -> Recording:
    """Return the recorded contents from their stored form. Raises `StoreError` when no key decrypts the stored form, or
    when the stored form is damaged."""
    return await _THREAD.run(_unpacked, packed, bodies)


def _packed(recording: Recording, bodies: Bodies) -> bytes:
    # Imported at the first use, because most processes record nothing.
    import zstandard

    return bodies.seal(zstandard.ZstdCompressor(level=3).compress(_ENCODER.encode(recording)))


def _unpacked(packed: bytes, bodies: Bodies) -> Recording:
    import zstandard

    plain = bodies.open(packed)
    try:
        if zstandard.frame_content_size(plain) > MOST_RECORDED_BYTES:
            raise StoreError("The recorded contents of a request are damaged: their stated size exceeds the maximum.")
        return _DECODER.decode(zstandard.ZstdDecompressor().decompress(plain, max_output_size=MOST_RECORDED_BYTES))
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise StoreError(f"The recorded contents of a request are damaged: {error}") from error
