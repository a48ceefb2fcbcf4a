"""Undoing a content-encoding that an upstream used although none was accepted.

Lives here: gzip and deflate, in any split. Not here: who decides what a broken body means (the exchange does).

Invariant: a fault is remembered, never raised, and one part of the input makes no more than `MOST_PER_PART` bytes.
"""

from __future__ import annotations

import zlib

__all__ = ["MOST_PER_PART", "Inflate", "decoder_for"]

MOST_PER_PART = 64 << 20
_EITHER_FORMAT = zlib.MAX_WBITS | 32


def decoder_for(encoding: str | None) -> Inflate | None:
    """The decoder for a `content-encoding`, None when there is nothing to undo."""
    name = (encoding or "").strip().lower()
    return None if name in ("", "identity") else Inflate(name)


class Inflate:
    """One body. `fault` names what is wrong with it, once something is."""

    __slots__ = ("_decoder", "fault")

    def __init__(self, encoding: str) -> None:
        self._decoder = zlib.decompressobj(_EITHER_FORMAT)
        self.fault = "" if encoding in ("gzip", "x-gzip", "deflate") else f"content-encoding {encoding[:32]!r}"

    def feed(self, data: bytes) -> bytes:
        """The plain bytes that these bytes add."""
        if self.fault:
            return b""
        try:
            plain = self._decoder.decompress(data, MOST_PER_PART)
        except zlib.error:
            self.fault = "a broken gzip body"
            return b""
        if self._decoder.unconsumed_tail:
            self.fault = "a gzip body that grows out of all proportion"
        return plain

    def end(self) -> None:
        """No more bytes come: a body that stops in the middle is a fault."""
        if not self.fault and not self._decoder.eof:
            self.fault = "a gzip body that stops in the middle"
