"""Whether anything comes of what an upstream sends: comments, empty deltas, and what nobody asked for do not count,
however much of them comes.

Lives here: the count, and how an answer ends that has too many. Not here: when it is asked (`chat_stream.py`).
"""

from __future__ import annotations

from typing import Final

from antiphon.translation.answer_ending import failed
from antiphon.translation.values import Ending

_BYTES_PER_BYTE: Final = 1024
"""What an upstream may send for each byte of its output, beside what it may send without any."""


class IdleBytes:
    """`idle`: bytes that came since there was any output to speak of; `output`: bytes of output; `limit`: how many may
    be idle."""

    __slots__ = ("idle", "limit", "output")

    def __init__(self, limit: int, output: int) -> None:
        self.limit = limit
        self.output = output
        self.idle = 0

    def exceeds(self, received: int, output: int) -> bool:
        """So many bytes came, and there are so many of output now: whether too many are idle."""
        idle = self.idle + received
        if output != self.output:
            # What came is paid for by what was emitted: a token with all that a server says of it is a kilobyte or so.
            idle = max(0, idle - (output - self.output) * _BYTES_PER_BYTE)
            self.output = output
        self.idle = idle
        return idle > self.limit

    def failure(self) -> Ending:
        """How an answer ends that has too many."""
        limit = f"more than {self.limit} bytes (limits.no_output_bytes)"
        return failed(f"The upstream sent {limit} without any output to speak of.", "upstream_no_output")
