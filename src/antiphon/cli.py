"""Runs one command of the command line, and turns its errors into exit statuses.

Lives here: the dispatch of arguments to a command, and the exit status after an error. Not here: the definition of
commands and flags (`commands/command_line.py`), the commands (`commands/`). The module of a command is imported only
when that command runs.

Invariant: wrong settings are printed to standard error, one setting per line, and the exit status is then 2. Without an
error, the exit status is the one that the command returns.
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

_MODULES = {"admin": "admin.command", "doctor": "doctor.command", "run": "run_client", "try": "try_request"}
"""The modules of the commands whose module has another name than the command."""


def import_command(name: str) -> Any:
    """Import and return the module of a command."""
    return import_module(f"antiphon.commands.{_MODULES.get(name, name.replace('-', '_'))}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parsed = make_parser().parse_args(arguments)
    module = import_command(parsed.command)
    # Imported modules live as long as the process, so the garbage collector need not scan them.
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
        # The reader closed the pipe. Python flushes standard output at exit, and that flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # A path that the command did not check itself, such as a folder of another user or a name that is too long.
        if error.filename is None:
            raise
        print(f"antiphon: {unusable_path(error)}", file=sys.stderr)
        return 1
    return int(status)
