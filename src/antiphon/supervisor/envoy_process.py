"""Builds Envoy's command line and configuration file, with the options of its hot restart.

This module writes files and builds arguments. The package `envoy` generates the configuration. `generation.py` and
`supervision.py` decide when an Envoy starts.

In a hot restart, the next Envoy finds the former one by a base id and a restart number. The next Envoy takes over the
former Envoy's listeners and counters, and makes the former Envoy drain. After `RELEASE_SECONDS` the next Envoy sends
SIGTERM to the former one and stops communicating with it. If the former Envoy ends earlier, the next Envoy aborts. The
duration of a drain is unknown at the start. So Envoys run with SIGTERM blocked (`parent_guard.py`), and the parent ends
them with SIGINT. An Envoy that replaces a dead Envoy starts without hot restart. Hot restart needs Linux with shared
memory (`/dev/shm`).

An Envoy that is killed during its start leaves a mark in the shared memory, and every later Envoy exits because of this
mark. Only an Envoy with restart number 0 can remove the mark, because it recreates the memory of its base id. So before
the next attempt, the parent starts and ends an Envoy without listeners (`renewing_command`). The Envoy without
listeners uses a different socket, and the serving Envoy keeps its mapped memory.

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
"""The name of the file with the base id that all Envoys of the run share."""
RELEASE_SECONDS = 3
_COUNTERS_SECONDS = "1s"
"""The interval at which an Envoy takes over the counters of the former one."""


class EnvoyProcess:
    """The start commands of one generation's Envoy, also for restarts after a crash. At its first start this Envoy
    replaces the Envoy of the former generation (`_follows`)."""

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
        """Write Envoy's configuration file and return the object for its start. Raises `ConfigError` when Envoy rejects
        the configuration, or when hot restart is not possible."""
        binary = find_envoy(settings.envoy.binary)
        version = await asyncio.to_thread(version_of, binary)
        made = cls(binary, version, settings, folder, shared)
        made.write(settings)
        if former is not None:
            if not former._base_id():
                raise ConfigError(
                    "this Envoy does not support hot restart (it needs Linux and a writable /dev/shm): restart"
                )
            made._follows = former
            await asyncio.to_thread(made._validate, settings)
        return made

    def write(self, settings: Settings) -> None:
        """Write the configuration file for the next start."""
        whole = bootstrap(settings, sidecars=endpoints(settings), version=self._version)
        whole["stats_flush_interval"] = _COUNTERS_SECONDS
        write_private(self._config, fill_in_secret(to_yaml(whole), settings))

    @property
    def renewing_admin(self) -> str:
        """The admin address of the Envoy that recreates the shared memory."""
        return f"unix:{self._base.parent}/new.sock"

    def renewing_command(self) -> list[str] | None:
        """Return the command of the Envoy that recreates the shared memory before the next start. Returns None when the
        memory has no mark to remove."""
        if self._follows is None or not self._follows._was_followed:
            return None
        config = f"admin: {{address: {{pipe: {{path: {self.renewing_admin.removeprefix('unix:')}}}}}}}"
        # The name of the other socket is as long as that of the serving Envoy's socket, because a longer path would not
        # fit.
        own = ["--config-yaml", config, "--socket-path", str(self._base.with_name("new")), "--log-level", "error"]
        return [self._command[0], *own, "--base-id", self._base_id(), "--restart-epoch", "0", "--concurrency", "1"]

    def next_command(self) -> list[str]:
        """Return the command of the next start."""
        former, self._follows = self._follows, None
        self._was_followed = False
        if former is not None:
            former._was_followed = True
            self._epoch = former._epoch + 1
            chosen = ["--base-id", self._base_id()]
        elif not os.access(_SHARED, os.W_OK | os.X_OK):
            # Some containers have no writable `/dev/shm`. Without `/dev/shm`, a change of settings needs a restart.
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
        """Remove the shared memory of this run's Envoys."""
        forget(self._base.parent)

    def _validate(self, settings: Settings) -> None:
        command = [*self._command[:3], "--mode", "validate", "--log-level", "error"]
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_VALIDATE_SECONDS, env=envoy_environment(settings)
        )
        if ran.returncode:
            said = (ran.stderr or ran.stdout).strip().splitlines()
            raise ConfigError(f"Envoy rejects its configuration: {said[-1] if said else ran.returncode}")


def forget(shared: Path) -> None:
    """Remove the shared memory of the Envoys of the run with this folder. All these Envoys must have ended."""
    with contextlib.suppress(OSError):
        if base := (shared / _BASE).read_text().strip():
            (_SHARED / f"envoy_shared_memory_{base}0").unlink()


def _options(settings: Settings, shared: Path) -> list[str]:
    command = ["--log-level", settings.envoy.log_level]
    # Sidecars wait for some of Envoy's log lines, and Envoy's default interval of ten seconds is too long for them.
    command += ["--file-flush-interval-msec", _FLUSH_MILLISECONDS]
    # After a replacement, each response of the former Envoy closes its connection. The parent ends the former Envoy
    # when that Envoy has no requests.
    command += ["--socket-path", str(shared / "hot"), "--drain-strategy", "immediate"]
    command += ["--parent-shutdown-time-s", str(RELEASE_SECONDS)]
    if settings.log.format == "json":
        command += ["--log-format", _LOG]
    if settings.envoy.log_level in ("info", "warning"):
        # With the default level Envoy logs every stream that a dead sidecar leaves. The access log already has a line
        # for each request of a dead sidecar.
        command += ["--component-log-level", "ext_proc:error"]
    if settings.envoy.concurrency is not None:
        command += ["--concurrency", str(settings.envoy.concurrency)]
    return command
