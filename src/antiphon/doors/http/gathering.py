"""What is written to a connection in one turn of the event loop leaves in one write.

Lives here: a transport in front of the real one. Not here: what is written, and what happens when it is not taken
(`connection.py`).

A write is a system call that wakes the client, and dearer than translating what it carries. A stream's head, its first
events and its last chunk with the end of the body come one by one, but in the same turn.

Invariants: the bytes and their order are those that were written; nothing waits longer than to the end of the turn, and
never more than `MOST` bytes; what was written before the connection is closed goes out before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

MOST: Final = 64 * 1024
"""So many bytes go out at once: only the real transport says that its client does not take them."""

Bytes = bytes | bytearray | memoryview


class GatheringTransport(asyncio.Transport):
    """The real transport, but for its writes."""

    def __init__(self, real: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._below = real
        self._loop = loop
        self._written: list[Bytes] = []
        self._size = 0

    def write(self, data: Bytes) -> None:
        """Write it with all else of this turn."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)
        self._size += len(data)
        if self._size >= MOST:
            self._flush()

    def writelines(self, parts: Iterable[Any]) -> None:
        """Write them with all else of this turn."""
        self.write(b"".join(parts))

    def _flush(self) -> None:
        written = self._written
        if written:
            self._written, self._size = [], 0
            self._below.write(written[0] if len(written) == 1 else b"".join(written))

    def close(self) -> None:
        """Close it behind what was written."""
        self._flush()
        self._below.close()

    def abort(self) -> None:
        """Close it at once; what the client takes of what was written is not waited for."""
        self._flush()
        self._below.abort()

    def get_write_buffer_size(self) -> int:
        """What was written and not taken."""
        return self._size + self._below.get_write_buffer_size()

    # The rest is the real one's.

    def is_closing(self) -> bool:
        return self._below.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    def is_reading(self) -> bool:
        return self._below.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._below.get_write_buffer_limits()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._below.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._below.get_protocol()

    def can_write_eof(self) -> bool:
        return self._below.can_write_eof()

    def write_eof(self) -> None:
        self._flush()
        self._below.write_eof()
