"""Decompresses an upstream response that is compressed although the request did not accept that.

Lives here: gzip and deflate, for a body in any pieces. The rules are those of aiohttp in the HTTP server: several gzip
members, deflate with and without its zlib form, no bytes after the end. Not here: the consequence of a broken body (the
exchange decides it).

Invariant: a fault is stored, never raised, and one part of the input produces at most `MAX_PER_PART` bytes.
"""

from __future__ import annotations

import zlib
from typing import Final

MAX_PER_PART = 64 << 20
_GZIP: Final = zlib.MAX_WBITS | 16
_NAMES: Final = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


def decoder_for(encoding: str | None) -> Inflate | None:
    """The decoder for a `content-encoding`; None when there is none to undo."""
    name = (encoding or "").strip().lower()
    return None if name in ("", "identity") else Inflate(name)


class Inflate:
    """The decoder of one body. `fault` describes its first error, if any. One part produces at most `most` bytes."""

    __slots__ = ("_decoder", "_most", "_name", "fault")

    def __init__(self, encoding: str, most: int = MAX_PER_PART) -> None:
        self._most = most
        self._name = _NAMES.get(encoding, "")
        self._decoder: zlib._Decompress | None = None
        self.fault = "" if self._name else f"content-encoding {encoding[:32]!r}"

    def feed(self, data: bytes) -> bytes:
        """The plain bytes from these bytes."""
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
                # At least 1: for zlib, 0 means no limit.
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
        """The input has ended: a truncated body is a fault."""
        if not self.fault and (self._decoder is None or not self._decoder.eof):
            self.fault = f"a {self._name} body that stops in the middle"

    def _window(self, first: int) -> int:
        """Some servers send raw deflate; the zlib form of the standard begins with its method."""
        if self._name == "gzip":
            return _GZIP
        return zlib.MAX_WBITS if first & 15 == 8 else -zlib.MAX_WBITS
