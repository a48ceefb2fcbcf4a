"""The entry point of `antiphon` and `python -m antiphon`.

Lives here: a fast start of `health`, which containers run every few seconds, and a SIGTERM handler for the start of a
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
    """Run the command that `sys.argv` names. Returns the exit status."""
    if os.getpid() == 1:
        # The kernel ignores a signal to process 1 of a container if the process has no handler for it. Without this
        # handler, a SIGTERM during the start would be lost, and the pod would stay for its whole grace period.
        signal.signal(signal.SIGTERM, _ended)
    words = sys.argv[1:]
    # The help needs the descriptions of all commands, which only `cli.py` imports.
    if words[:1] == ["health"] and not {"-h", "--help"} & set(words):
        from antiphon.commands import health

        return health.main(words[1:])
    # Imports create hardly any garbage. `cli.py` enables the collector again after it has imported the command.
    gc.disable()
    from antiphon import cli

    return cli.main(words)


def _ended(number: int, _: FrameType | None) -> None:
    """Exit immediately, as a process without a handler does, with the status that a shell reports for the signal."""
    os._exit(128 + number)
