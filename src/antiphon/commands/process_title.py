"""What a process is called in lists of processes.

Lives here: writing over the command line that the system shows (`/proc/PID/cmdline`). For a process that was forked and
not executed, whose command line is that of the one that forked it.

Invariant: nothing is written beyond what the system gave this process for its arguments; where it does not say where
they are (anything but Linux), nothing is written at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

# Fields of /proc/PID/stat, counted from the one behind the name (the third).
_ARG_START, _ARG_END = 48 - 3, 49 - 3


def set_title(words: Sequence[str]) -> None:
    """Show these as the arguments; what has no room is left out."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    except (OSError, ValueError, IndexError):
        return
    # The last byte stays zero: otherwise the system takes the environment behind it for a part of it.
    room = end - start - 1
    if start and room > 0:
        ctypes.memmove(start, "\0".join(words).encode()[:room].ljust(room, b"\0"), room)
