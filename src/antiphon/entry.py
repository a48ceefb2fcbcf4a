"""The entry point of `antiphon` and `python -m antiphon`: runs one command, and turns its errors into exit statuses.

The module starts the command `health` fast, because containers run `health` every few seconds. The module also handles
a SIGTERM during the start of a container. `commands/command_line.py` defines the commands and flags, the package
`commands` implements them, and `supervisor/process.py` drains a server.

Invariants: the process imports the module of a command only when that command runs. If settings are wrong, the process
prints them to standard error, one setting per line, and exits with status 2. Without an error, the process exits with
the status that the command returns.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

_FUNCTIONS = {
    "admin": "admin.command:run",
    "completion": "command_line:run_completion",
    "demo-upstream": "chat_servers:run_demo_upstream",
    "doctor": "doctor.command:run",
    "record": "chat_servers:run_recorder",
    "replay": "chat_servers:run_replayer",
    "run": "run_client:run",
    "show": "journal:run_show",
    "tail": "journal:run_tail",
    "try": "try_request:run",
    "version": "command_line:run_version",
}
"""The module and the function of each command. For a command that is not listed, the function is `run` in the module
with the command's name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name. The default is the process's command line. Returns the exit status."""
    if os.getpid() == 1:
        # The kernel ignores a signal to process 1 of a container if the process has no handler for it. Without this
        # handler, a SIGTERM during the start would be lost, and the pod would stay for its whole grace period.
        signal.signal(signal.SIGTERM, _ended)
    words = sys.argv[1:] if arguments is None else list(arguments)
    # The help needs the descriptions of all commands, which only the parser of the whole command line imports.
    if words[:1] == ["health"] and not {"-h", "--help"} & set(words):
        from antiphon.commands import health

        return health.main(words[1:])
    # Imports create hardly any garbage. `run_command` enables the collector again after it has imported the command.
    gc.disable()
    return run_command(words)


def import_command(name: str) -> Callable[[Namespace], int]:
    """Import the module of a command. Returns the function that runs the command."""
    module, _, function = _FUNCTIONS.get(name, f"{name.replace('-', '_')}:run").partition(":")
    command: Callable[[Namespace], int] = getattr(import_module(f"antiphon.commands.{module}"), function)
    return command


def run_command(words: Sequence[str]) -> int:
    """Parse the arguments of a command line and run the command. Returns the exit status."""
    from antiphon.commands.command_line import make_parser
    from antiphon.commands.terminal import escape_unencodable
    from antiphon.config.problems import without_keys
    from antiphon.errors import AntiphonError, ConfigError, unusable_path

    escape_unencodable()
    parsed = make_parser().parse_args(words)
    command = import_command(parsed.command)
    # Imported modules live as long as the process, so the garbage collector need not scan them.
    gc.freeze()
    gc.enable()
    try:
        status = command(parsed)
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
        # The command did not check this path itself. For example, the folder belongs to another user, or a name is too
        # long.
        if error.filename is None:
            raise
        print(f"antiphon: {unusable_path(error)}", file=sys.stderr)
        return 1
    return int(status)


def _ended(number: int, _: FrameType | None) -> None:
    """Exit immediately, as a process without a handler does, with the status that a shell reports for the signal."""
    os._exit(128 + number)
