"""Enforces that a client masks its WebSocket frames (RFC 6455, 5.1), which aiohttp's reader (3.14.5) does not check.

Lives here: where frames begin, and the one bit that is looked at. Not here: what frames mean. A frame that is not
masked is handed on as one that the reader refuses by itself, so that the connection is closed with 1002 as for others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# A reserved opcode, masked and empty.
_REFUSED: Final = b"\x83\x80\0\0\0\0"
_MASKED: Final = 0x80


class MaskedFrames:
    """Stands between the socket and the reader, whose methods it is given. No byte of a frame is handed on before its
    mask bit was seen."""

    def __init__(self, feed_data: Callable[[bytes], tuple[bool, bytes]], feed_eof: Callable[[], None]) -> None:
        self._feed_data = feed_data
        self.feed_eof = feed_eof
        self._left = 0
        self._held = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """More bytes; whether the connection is over, and what follows it, as the reader says."""
        if self._held:
            data, self._held = self._held + data, b""
        at = self._left
        while at < len(data):
            size = _frame_size(data, at)
            if size is None:
                data, self._held = data[:at], data[at:]
                break
            if not data[at + 1] & _MASKED:
                data = data[:at] + _REFUSED
                at = len(data)
                break
            at += size
        self._left = max(at - len(data), 0)
        return self._feed_data(data) if data else (False, b"")


def _frame_size(data: bytes, at: int) -> int | None:
    """Bytes from here to the next frame; None while too little of the head is there. (A frame that is not masked has
    any size: it is the last one.)"""
    if at + 2 > len(data):
        return None
    short = data[at + 1] & 0x7F
    if not data[at + 1] & _MASKED or short < 126:
        return 6 + short
    width = 2 if short == 126 else 8
    if at + 2 + width > len(data):
        return None
    return 6 + width + int.from_bytes(data[at + 2 : at + 2 + width], "big")
