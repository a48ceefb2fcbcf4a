"""The entry point of `antiphon` and `python -m antiphon`.

Lives here: a fast start of `health`, which containers run every few seconds, and handling SIGTERM during the start of a
container. Not here: the command line (`cli.py`), the commands (`commands/`), the drain of a server
(`supervisor/process.py`).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command of this process. Returns the exit status."""
    if os.getpid() == 1:
        # The kernel does not end the first process of a container by a signal without a handler. Without this handler,
        # a SIGTERM during the start would be lost, and the pod would stay for its whole grace period.
        signal.signal(signal.SIGTERM, _ended)
    words = sys.argv[1:]
    # Only the whole command line has the descriptions for the help.
    if words[:1] == ["health"] and not {"-h", "--help"} & set(words):
        from antiphon.commands import health

        return health.main(words[1:])
    # Enabled again after the command's import (`cli.py`), which creates hardly any garbage.
    gc.disable()
    from antiphon import cli

    return cli.main(words)


def _ended(number: int, _: FrameType | None) -> None:
    """End like a process without a handler, with the status that a shell reports for the signal."""
    os._exit(128 + number)
