"""Runs one command of the command line, and turns its errors into exit statuses.

Lives here: the way from arguments to a command, and how an error ends the process. Not here: which commands and flags
there are (`commands/command_line.py`), what a command does (`commands/`). A command is imported only when it runs.

Invariant: every wrong setting is one line on standard error, and the exit status is then 2. Otherwise it is the
command's own.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from antiphon.commands.command_line import make_parser
from antiphon.config.problems import without_keys
from antiphon.errors import AntiphonError, ConfigError, unusable_path


def import_command(name: str) -> Any:
    """The module of a command. A command with separate parts has them in a folder."""
    module = name.replace("-", "_")
    return import_module(f"antiphon.commands.{module}{'.command' if name in ('admin', 'doctor') else ''}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parsed = make_parser().parse_args(arguments)
    module = import_command(parsed.command)
    # Imported modules stay for good: the collector never has to visit them, not even at the end of the start.
    gc.freeze()
    gc.enable()
    try:
        status = module.run(parsed)
        sys.stdout.flush()
    except ConfigError as error:
        print(f"antiphon: {without_keys(str(error))}", file=sys.stderr)
        return 2
    except AntiphonError as error:
        print(f"antiphon: {without_keys(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed the pipe. The rest of the output must not fail when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # A path that no check of a command foresaw: another user's folder, a name that is too long.
        if error.filename is None:
            raise
        print(f"antiphon: {unusable_path(error)}", file=sys.stderr)
        return 1
    return int(status)
