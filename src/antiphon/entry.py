"""Where the program begins: `antiphon` and `python -m antiphon`.

Lives here: that `health`, which containers run every few seconds, starts without the rest of the program. Not here: the
command line (`cli.py`), what a command does (`commands/`).
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command that the process was given; returns the exit status."""
    words = sys.argv[1:]
    if words[:1] == ["health"]:
        from antiphon.commands import health

        return health.main(words[1:])
    from antiphon import cli

    return cli.main(words)
