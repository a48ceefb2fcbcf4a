"""How `antiphon up` starts a worker.

Lives here: what a worker is given, and the choice between forking and executing it. Not here: the two
(`forked_workers.py`, `children.py`), when one is started (`supervisor.py`), which there are (`up.py`).

Invariant: a single worker is executed; of several, one that cannot be forked is executed, with a line in the log. It is
the same either way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from antiphon.commands.child_settings import file_values, plain_environment, worker_environment
from antiphon.commands.children import Child, ParentPipe
from antiphon.commands.forked_workers import CannotFork, ForkServer, can_fork
from antiphon.commands.run_folder import write_private
from antiphon.config.settings import Settings

_log = structlog.get_logger(__name__)


class WorkerStarts:
    """Starts workers whose settings lie in `folder`; `write_line` gets their output."""

    def __init__(
        self, settings: Settings, folder: Path, pipe: ParentPipe, write_line: Callable[[str, str], None]
    ) -> None:
        self._file = folder / "settings.json"
        self._pipe = pipe
        self._write_line = write_line
        self._forks: ForkServer | None = None
        # A single worker shares nothing: the fork server would only be one process more.
        if settings.workers > 1 and can_fork():
            command = "extproc" if settings.door == "envoy" else "serve"
            told = (command, settings.state.place.kind, settings.sidecar.transport)
            self._forks = ForkServer(*told, pipe=pipe, write_line=write_line)

    async def prepare(self) -> None:
        """Have imported what workers need, beside what is done until the first is started."""
        if self._forks is not None:
            await self._forks.open(plain_environment())

    async def start(self, name: str, command: Sequence[str], settings: Settings) -> Child:
        """One worker with these settings."""
        write_private(self._file, json.dumps(file_values(settings)))
        arguments = [*command, "--config", str(self._file)]
        environ = worker_environment(settings)
        if self._forks is not None:
            try:
                return await self._forks.start(name, arguments, environ, plain=plain_environment())
            except CannotFork as problem:
                _log.warning("worker_not_forked", name=name, problem=str(problem), advice="it is started anew, slower")
        words = [sys.executable, "-m", "antiphon", *arguments]
        return await Child.start(name, words, environ, pipe=self._pipe, write_line=self._write_line)

    async def close(self) -> None:
        """Start no more."""
        if self._forks is not None:
            await self._forks.close()
