"""Keeps the beginning and the end of a run's output, and finds where the output ends.

Lives here: the limit of the stored output, and finding the mark that ends a run. Not here: reading it from the process
(`machine.py`).

Invariant: no more than the limit is kept, however much is printed.
"""

from __future__ import annotations

import asyncio


class Output:
    """The output of a run until the mark. It keeps the beginning and the end, up to `limit` bytes together."""

    def __init__(self, limit: int) -> None:
        self._max_head = limit * 3 // 4
        self._max_tail = limit - self._max_head
        self.marked = asyncio.Event()
        self._mark = b""
        self._begin()

    def _begin(self) -> None:
        self._head, self._tail, self._held, self._left_out = bytearray(), bytearray(), b"", 0

    def begin(self, mark: bytes) -> None:
        """A new run."""
        self._begin()
        self._mark = mark
        self.marked.clear()

    def feed(self, data: bytes) -> None:
        """More of it."""
        if self.marked.is_set():
            return
        data = self._held + data
        if self._mark:
            before, mark, _ = data.partition(self._mark)
            if mark:
                self._held = b""
                self._keep(before)
                self.marked.set()
                return
        # Its end may be the beginning of the mark.
        sure = max(0, len(data) - max(0, len(self._mark) - 1))
        self._held = data[sure:]
        self._keep(data[:sure])

    def take(self) -> str:
        """All of it."""
        self._keep(self._held)
        self._held = b""
        gap = f"\n[{self._left_out} bytes are left out here.]\n".encode() if self._left_out else b""
        return (bytes(self._head) + gap + bytes(self._tail)).decode("utf-8", "replace")

    def _keep(self, data: bytes) -> None:
        room = self._max_head - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room < len(data) else b""
        if (over := len(self._tail) - self._max_tail) > 0:
            del self._tail[:over]
            self._left_out += over
