"""How `antiphon up` starts a worker: what it is given.

Not here: a child process (`children.py`), when one is started (`supervisor.py`), which workers there are
(`generation.py`).

Invariant: a worker's settings are whole: what is no secret in a file that this user alone reads, the secrets in its
environment.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from antiphon.commands.child_settings import file_values, worker_environment
from antiphon.commands.children import Child, ParentPipe
from antiphon.commands.run_folder import write_private
from antiphon.config.settings import Settings


class WorkerStarts:
    """Starts workers whose settings lie in `folder`; `write_line` gets their output."""

    def __init__(self, folder: Path, pipe: ParentPipe, write_line: Callable[[str, str], None]) -> None:
        self._file = folder / "settings.json"
        self._pipe = pipe
        self._write_line = write_line

    async def start(
        self, name: str, command: Sequence[str], settings: Settings, sockets: Sequence[socket.socket] = ()
    ) -> Child:
        """One worker with these settings. `sockets`: where it accepts."""
        write_private(self._file, json.dumps(file_values(settings)))
        words = [sys.executable, "-m", "antiphon", *command, "--config", str(self._file)]
        files = [one.fileno() for one in sockets]
        words += ["--sockets", ",".join(map(str, files))] if files else []
        return await Child.start(
            name, words, worker_environment(settings), pipe=self._pipe, write_line=self._write_line, files=files
        )
