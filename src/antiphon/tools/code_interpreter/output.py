"""Collects the output of a run, limits its size, and finds where the output ends.

Lives here: limiting the output, and finding the mark that the interpreter writes after a run. Not here: reading the
output from the process (`machine.py`).

Invariant: the object stores at most `limit` bytes of output, however much the code prints.
"""

from __future__ import annotations

import asyncio


class Output:
    """The output of a run up to the mark. If the output exceeds `limit` bytes, the object stores only its beginning
    (3/4 of `limit`) and its end (1/4 of `limit`)."""

    def __init__(self, limit: int) -> None:
        self._max_head = limit * 3 // 4
        self._max_tail = limit - self._max_head
        self.marked = asyncio.Event()
        self._mark = b""
        self._begin()

    def _begin(self) -> None:
        self._head, self._tail, self._held, self._left_out = bytearray(), bytearray(), b"", 0

    def begin(self, mark: bytes) -> None:
        """Reset for a new run. `mark`: the random bytes that end the run's output."""
        self._begin()
        self._mark = mark
        self.marked.clear()

    def feed(self, data: bytes) -> None:
        """Add data that the process has printed. Sets `marked` when the mark is complete. Ignores data after the
        mark."""
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
        # Keep back the last bytes, which may be the beginning of the mark.
        sure = max(0, len(data) - max(0, len(self._mark) - 1))
        self._held = data[sure:]
        self._keep(data[:sure])

    def take(self) -> str:
        """Return the collected output as text. A line in the middle tells how many bytes were left out."""
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
