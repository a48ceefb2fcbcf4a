"""Writes log lines to standard error without blocking the caller.

This module writes complete lines. `log_lines.py` formats the lines.

While the pipe has room, `write` writes a line to the pipe immediately. When the pipe is full, the line waits in a queue
for a thread. All lines to a file use the queue, because a disk may hang.

Invariants: no caller waits. The queue holds at most `max_bytes`. Further lines, and lines that a full disk rejects, are
dropped and counted. When there is room again, a separate line reports the number. Lines are complete and in order; only
the last line before a full disk may be truncated.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_MAX_BYTES: Final = 1 << 20
_AT_ONCE: Final = 64 << 10
_EXIT_SECONDS: Final = 1.0


class LogOutput:
    """Writes lines to one file descriptor, from any thread. `tell` returns the line that reports a number of dropped
    lines."""

    def __init__(self, descriptor: int, tell: Callable[[int], bytes], *, max_bytes: int = _MAX_BYTES) -> None:
        # `dup` protects queued lines, because other code may close the descriptor and the system may reuse its number.
        self._descriptor = os.dup(descriptor)
        self._direct = _open_without_waiting(descriptor)
        self._tell = tell
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        # The number of lines that the file rejected, and whether the file ends in the middle of a line.
        self._failed = 0
        self._torn = False
        self.lost = 0
        """The total number of dropped lines."""
        self._writing = False
        self._closed = False
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        atexit.register(self.flush, _EXIT_SECONDS)

    def write(self, line: bytes, lines: int = 1) -> None:
        """Write one line without its line end. `lines` is the number of lines that `line` contains."""
        data = line + b"\n"
        with self._changed:
            if self._direct is not None and not self._lines and not self._writing and not self._dropped:
                try:
                    data = data[os.write(self._direct, data) :]
                except BlockingIOError:
                    pass
                except OSError:
                    # The reader has closed the pipe. A closed pipe must not fail a request.
                    return
                if not data:
                    return
            elif self._size + len(data) > self._max_bytes:
                self._dropped += lines
                self.lost += lines
                return
            self._lines.append(data)
            self._size += len(data)
            if self._writer is None:
                self._writer = threading.Thread(target=self._run, name="antiphon-log", daemon=True)
                self._writer.start()
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all lines are written. Returns False after `seconds`."""
        last = time.monotonic() + seconds
        with self._changed:
            while self._lines or self._writing or self._dropped:
                left = last - time.monotonic()
                if left <= 0 or self._writer is None:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Stop the writer thread after it has written the queued lines."""
        self.flush(_EXIT_SECONDS)
        atexit.unregister(self.flush)
        with self._changed:
            self._closed = True
            if self._writer is None:
                self._close_files()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._dropped:
                    if self._closed:
                        self._close_files()
                        return
                    self._changed.wait()
                head = (b"\n" if self._torn else b"") + (self._tell(self._failed) + b"\n" if self._failed else b"")
                taken = bytearray()
                while self._lines and len(taken) < _AT_ONCE:
                    taken += self._lines.popleft()
                if self._dropped:
                    # The dropped lines were newer than all queued lines, so the report follows them.
                    told = self._tell(self._dropped) + b"\n"
                    self._lines.append(told)
                    self._size += len(told)
                    self._dropped = 0
                self._writing = True
            written = self._write(head + taken)
            with self._changed:
                self._size -= len(taken)
                if written:
                    self._torn = not (head + taken)[:written].endswith(b"\n")
                failed = taken[max(0, written - len(head)) :].count(b"\n")
                self.lost += failed
                self._failed = failed + (self._failed if written < len(head) else 0)
                self._writing = False
                self._changed.notify_all()

    def _close_files(self) -> None:
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def _write(self, data: bytes) -> int:
        """Write the data and return the number of written bytes. The number is smaller than the size of the data if the
        disk is full or the reader has closed."""
        done = 0
        with contextlib.suppress(OSError), memoryview(data) as view:
            while done < len(view):
                done += os.write(self._descriptor, view[done:])
        return done


def _open_without_waiting(descriptor: int) -> int | None:
    """Open the same pipe or terminal again in non-blocking mode. Other descriptors of this pipe or terminal keep their
    mode. Returns None for other kinds of files."""
    try:
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
            return None
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
