"""Encrypts data into a sealed text, which a client stores and sends back but can neither read nor change.

This module defines the format of a sealed text, and rotates keys. The exchange seals reasoning and compactions.
`app/keys.py` and `local_keys.py` supply the keys.

Format: `as1_` and url-safe base64 of `key id (4 bytes) | nonce (12) | AES-256-GCM of zlib(payload), with its tag (16)`.
The version of the format, the key id, the owner and the kind of data are the associated data of AES-GCM. Therefore a
sealed text opens only for the owner and the kind for which it was sealed.

Invariants: `open` raises the same `InvalidRequest` for every text that it cannot decrypt, so an attacker does not learn
which part was wrong. `open` never returns more than `max_bytes`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from antiphon.errors import InvalidRequest

_PREFIX = "as1_"
_KEY_ID = 4
_NONCE = 12
_TAG = 16
_MAX_PAYLOAD = 1 << 28


class Sealer:
    """Seals payloads with the first secret, and opens texts that were sealed with any of the secrets.

    `secrets` must hold at least one secret. A secret may have any length, because the sealer hashes it to the key size.
    `random_bytes` returns the nonces. With random nonces one key is safe for 2**32 texts. `max_bytes` limits the size
    of a payload.
    """

    def __init__(
        self,
        secrets: Sequence[bytes],
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
        max_bytes: int = _MAX_PAYLOAD,
    ) -> None:
        if not secrets:
            raise ValueError("a sealer needs a key")
        keys = [_Key(secret) for secret in secrets]
        self._first = keys[0]
        # Two keys may have the same 4-byte id, which is very unlikely. In that case `open` tries both keys.
        self._keys: dict[bytes, list[_Key]] = {}
        for key in keys:
            self._keys.setdefault(key.id, []).append(key)
        self._random_bytes = random_bytes
        self._max_bytes = max_bytes

    def seal(self, owner: str, kind: str, payload: bytes) -> str:
        """Encrypt the payload into a text that only this owner can use, for this `kind` of data. Raises `ValueError` if
        the payload is larger than `max_bytes`."""
        if len(payload) > self._max_bytes:
            raise ValueError("the payload is too large to be sealed")
        key = self._first
        nonce = self._random_bytes(_NONCE)
        # The length of compressed data reveals something about the content. Only the client sees the length, and the
        # client knows most of the content.
        closed = key.cipher.encrypt(nonce, zlib.compress(payload), _associated(key.id, owner, kind))
        return _PREFIX + base64.urlsafe_b64encode(key.id + nonce + closed).rstrip(b"=").decode()

    def open(self, owner: str, kind: str, text: str, *, param: str | None = None) -> bytes:
        """Decrypt the text and return its payload. Raises `InvalidRequest` with the code `invalid_encrypted_content`;
        `param` is the path of the text in the request."""
        payload = self._open(owner, kind, text)
        if payload is None:
            raise InvalidRequest(
                "The encrypted content cannot be decrypted. This server did not make the content for you, the "
                "content was changed, or the server no longer has the key. Leave this item out, or start a "
                "new conversation.",
                param=param,
                code="invalid_encrypted_content",
            )
        return payload

    def _open(self, owner: str, kind: str, text: str) -> bytes | None:
        blob = _decoded(text)
        if blob is None:
            return None
        from cryptography.exceptions import InvalidTag

        key_id, nonce, closed = blob[:_KEY_ID], blob[_KEY_ID : _KEY_ID + _NONCE], blob[_KEY_ID + _NONCE :]
        for key in self._keys.get(key_id, ()):
            try:
                packed = key.cipher.decrypt(nonce, closed, _associated(key_id, owner, kind))
            except InvalidTag:
                continue
            return _unpacked(packed, self._max_bytes)
        return None


def is_sealed(text: str) -> bool:
    """Whether the text begins with the prefix of Antiphon's sealed texts. Encrypted content of other servers begins
    differently."""
    return text.startswith(_PREFIX)


class _Key:
    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.sha256(b"antiphon sealing key\0" + secret).digest()
        self.id = hashlib.sha256(b"antiphon sealing key id\0" + self._key).digest()[:_KEY_ID]

    @cached_property
    def cipher(self) -> AESGCM:
        # The import happens at the first use, because the module takes 8 MiB and most processes never need it.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._key)


def _associated(key_id: bytes, owner: str, kind: str) -> bytes:
    """The associated data of a sealed text. The length of each name precedes the name, so different names never give
    equal bytes."""
    names = [name.encode(errors="surrogateescape") for name in (owner, kind)]
    return _PREFIX.encode() + key_id + b"".join(len(name).to_bytes(8, "big") + name for name in names)


def _decoded(text: str) -> bytes | None:
    if not text.startswith(_PREFIX) or not text.isascii():
        return None
    body = text[len(_PREFIX) :].encode()
    try:
        blob = base64.b64decode(body + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    # Base64 can encode the same bytes in several ways, because its last bits may be unused. This function accepts only
    # the canonical encoding.
    if base64.urlsafe_b64encode(blob).rstrip(b"=") != body or len(blob) < _KEY_ID + _NONCE + _TAG:
        return None
    return blob


def _unpacked(packed: bytes, limit: int) -> bytes | None:
    """The decompressed data. None if `packed` is not exactly one complete zlib stream, or exceeds `limit` bytes."""
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(packed, limit + 1)
    except zlib.error:
        return None
    if len(payload) > limit or not stream.eof or stream.unused_data:
        return None
    return payload
