"""The entry point of `antiphon` and `python -m antiphon`.

Lives here: that `health`, which containers run every few seconds, starts without the rest of the program; that a
container which is told to leave while it starts does. Not here: the command line (`cli.py`), what a command does
(`commands/`), how a server leaves that serves (`supervisor/process.py`).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command that the process was given; returns the exit status."""
    if os.getpid() == 1:
        # The first process of a container is not ended by a signal that it does not handle: one that came while it
        # starts would be lost, and the pod stays for all its time to drain.
        signal.signal(signal.SIGTERM, _ended)
    words = sys.argv[1:]
    if words[:1] == ["health"]:
        from antiphon.commands import health

        return health.main(words[1:])
    # It is on again once the command is imported (`cli.py`): hardly any of that is garbage.
    gc.disable()
    from antiphon import cli

    return cli.main(words)


def _ended(number: int, _: FrameType | None) -> None:
    """End as any other process would that handles it not, with the status that a shell tells of it."""
    os._exit(128 + number)
