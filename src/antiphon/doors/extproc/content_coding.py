"""Decompresses an upstream response that is compressed although the request did not accept compression.

This module decodes gzip and deflate bodies that arrive in chunks of any size. The decoders follow the same rules as
aiohttp, which the HTTP server uses. A gzip body may have several members, deflate may lack its zlib form, and no bytes
may follow the end. The exchange decides what happens after a damaged body.

Invariant: a decoder stores a fault and never raises it. One input chunk produces at most `MAX_PER_PART` bytes.
"""

from __future__ import annotations

import zlib
from typing import Final

MAX_PER_PART = 64 << 20
_GZIP: Final = zlib.MAX_WBITS | 16
_NAMES: Final = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


def decoder_for(encoding: str | None) -> Inflate | None:
    """Return a decoder for a `content-encoding` value, or None for a body without compression. For an unknown encoding,
    the decoder's `fault` is set."""
    name = (encoding or "").strip().lower()
    return None if name in ("", "identity") else Inflate(name)


class Inflate:
    """Decodes one compressed body. `fault` describes its first error and is empty without one. One input chunk produces
    at most `most` bytes."""

    __slots__ = ("_decoder", "_most", "_name", "fault")

    def __init__(self, encoding: str, most: int = MAX_PER_PART) -> None:
        self._most = most
        self._name = _NAMES.get(encoding, "")
        self._decoder: zlib._Decompress | None = None
        self.fault = "" if self._name else f"content-encoding {encoding[:32]!r}"

    def feed(self, data: bytes) -> bytes:
        """Return the decoded bytes of one input chunk."""
        parts: list[bytes] = []
        room = self._most
        while data and not self.fault:
            if self._decoder is None:
                self._decoder = zlib.decompressobj(self._window(data[0]))
            elif self._decoder.eof:
                if self._name != "gzip":
                    self.fault = f"something behind the end of a {self._name} body"
                    break
                self._decoder = zlib.decompressobj(_GZIP)
            try:
                # `max_length` must be at least 1, because zlib takes 0 as "no limit".
                parts.append(self._decoder.decompress(data, max(room, 1)))
            except zlib.error:
                self.fault = f"a broken {self._name} body"
                break
            room -= len(parts[-1])
            if self._decoder.unconsumed_tail or room < 0:
                self.fault = f"a {self._name} body that grows out of all proportion"
            data = self._decoder.unused_data
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end(self) -> None:
        """Mark the end of the input. A truncated body sets `fault`."""
        if not self.fault and (self._decoder is None or not self._decoder.eof):
            self.fault = f"a {self._name} body that stops in the middle"

    def _window(self, first: int) -> int:
        """Choose zlib's `wbits` from the first byte. The zlib form of the standard begins with its method (8), but some
        servers send raw deflate."""
        if self._name == "gzip":
            return _GZIP
        return zlib.MAX_WBITS if first & 15 == 8 else -zlib.MAX_WBITS
