"""Envoy's command line and configuration file, with the options of its hot restart.

Lives here: files and arguments. Not here: the configuration (`envoy/`), when an Envoy starts (`generation.py`,
`supervision.py`).

Hot restart: the next Envoy finds the former one by its base id and number. It takes its listeners and counters, and
makes it drain. After `RELEASE_SECONDS` it sends SIGTERM to the former one and stops talking to it. If the former one
ends before that, the next one aborts. The duration of a drain is unknown at the start, so Envoys block SIGTERM
(`parent_guard.py`), and the parent ends them with SIGINT. An Envoy that replaces a dead one starts without hot restart.
All this needs Linux with shared memory (`/dev/shm`).

An Envoy that is killed during its start leaves a mark in the shared memory, and every later one exits because of it.
Only an Envoy can remove the mark: one with the number 0 recreates the memory of its base id. So before the next
attempt, an Envoy without listeners starts and ends (`renewing_command`). It uses a different socket, and the serving
Envoy keeps its memory.

Invariant: only this user can access the restart socket of a running Envoy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from pathlib import Path

from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap, fill_in_secret, to_yaml
from antiphon.envoy.sidecars import endpoints
from antiphon.envoy.versions import EnvoyVersion, find_envoy, version_of
from antiphon.errors import ConfigError
from antiphon.supervisor.child_settings import envoy_environment
from antiphon.supervisor.run_folder import write_private

_LOG = '{"timestamp":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","logger":"envoy.%n","message":"%j"}'
_FLUSH_MILLISECONDS = "200"
_VALIDATE_SECONDS = 30.0
_SHARED = Path("/dev/shm")
_BASE = "envoy-base"
"""The file with the base id of the run's Envoys."""
RELEASE_SECONDS = 3
_COUNTERS_SECONDS = "1s"
"""The interval at which an Envoy takes over the former one's counters."""


class EnvoyProcess:
    """The start commands of one generation's Envoy, also for restarts after a crash. At its first start it replaces the
    Envoy of the generation before (`_follows`)."""

    def __init__(self, binary: Path, version: EnvoyVersion, settings: Settings, folder: Path, shared: Path) -> None:
        self._command = [str(binary), "-c", str(folder / "envoy.yaml"), *_options(settings, shared)]
        self._version = version
        self._config = folder / "envoy.yaml"
        self._base = shared / _BASE
        self._follows: EnvoyProcess | None = None
        self._epoch = 0
        self._was_followed = False

    @classmethod
    async def prepare(cls, settings: Settings, folder: Path, shared: Path, former: EnvoyProcess | None) -> EnvoyProcess:
        """Write its configuration. Raises `ConfigError` when Envoy rejects it, or when it cannot replace the former
        Envoy."""
        binary = find_envoy(settings.envoy.binary)
        version = await asyncio.to_thread(version_of, binary)
        made = cls(binary, version, settings, folder, shared)
        made.write(settings)
        if former is not None:
            if not former._base_id():
                raise ConfigError(
                    "this Envoy knows no hot restart (it takes Linux, and a /dev/shm to write in): restart"
                )
            made._follows = former
            await asyncio.to_thread(made._validate, settings)
        return made

    def write(self, settings: Settings) -> None:
        """Write the configuration for the next start."""
        whole = bootstrap(settings, sidecars=endpoints(settings), version=self._version)
        whole["stats_flush_interval"] = _COUNTERS_SECONDS
        write_private(self._config, fill_in_secret(to_yaml(whole), settings))

    @property
    def renewing_admin(self) -> str:
        """The admin address of the Envoy that recreates the shared memory."""
        return f"unix:{self._base.parent}/new.sock"

    def renewing_command(self) -> list[str] | None:
        """The command of the Envoy that recreates the shared memory before the next start; None when that is not
        needed."""
        if self._follows is None or not self._follows._was_followed:
            return None
        config = f"admin: {{address: {{pipe: {{path: {self.renewing_admin.removeprefix('unix:')}}}}}}}"
        # The other socket's name is as long as the serving one's, because there is no room for more.
        own = ["--config-yaml", config, "--socket-path", str(self._base.with_name("new")), "--log-level", "error"]
        return [self._command[0], *own, "--base-id", self._base_id(), "--restart-epoch", "0", "--concurrency", "1"]

    def next_command(self) -> list[str]:
        """The command of the next start."""
        former, self._follows = self._follows, None
        self._was_followed = False
        if former is not None:
            former._was_followed = True
            self._epoch = former._epoch + 1
            chosen = ["--base-id", self._base_id()]
        elif not os.access(_SHARED, os.W_OK | os.X_OK):
            # Some containers have none; there a change of settings needs a restart.
            self._base.write_text("")
            return [*self._command, "--disable-hot-restart"]
        else:
            self.forget()
            self._base.touch(mode=0o600)
            self._epoch = 0
            chosen = ["--use-dynamic-base-id", "--base-id-path", str(self._base)]
        return [*self._command, *chosen, "--restart-epoch", str(self._epoch)]

    def _base_id(self) -> str:
        return self._base.read_text().strip()

    def forget(self) -> None:
        """Remove the shared memory that an Envoy leaves behind."""
        forget(self._base.parent)

    def _validate(self, settings: Settings) -> None:
        command = [*self._command[:3], "--mode", "validate", "--log-level", "error"]
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_VALIDATE_SECONDS, env=envoy_environment(settings)
        )
        if ran.returncode:
            said = (ran.stderr or ran.stdout).strip().splitlines()
            raise ConfigError(f"Envoy does not take its configuration: {said[-1] if said else ran.returncode}")


def forget(shared: Path) -> None:
    """Remove the shared memory of the Envoys of the run with this folder; they have ended."""
    with contextlib.suppress(OSError):
        if base := (shared / _BASE).read_text().strip():
            (_SHARED / f"envoy_shared_memory_{base}0").unlink()


def _options(settings: Settings, shared: Path) -> list[str]:
    command = ["--log-level", settings.envoy.log_level]
    # Sidecars wait for some of Envoy's lines, and its default interval is ten seconds.
    command += ["--file-flush-interval-msec", _FLUSH_MILLISECONDS]
    # After a replacement, each response closes its connection, and the parent ends this Envoy when it is quiet.
    command += ["--socket-path", str(shared / "hot"), "--drain-strategy", "immediate"]
    command += ["--parent-shutdown-time-s", str(RELEASE_SECONDS)]
    if settings.log.format == "json":
        command += ["--log-format", _LOG]
    if settings.envoy.log_level in ("info", "warning"):
        # Otherwise it logs every stream that a dead sidecar leaves, and each such request has a line with the same
        # content.
        command += ["--component-log-level", "ext_proc:error"]
    if settings.envoy.concurrency is not None:
        command += ["--concurrency", str(settings.envoy.concurrency)]
    return command
