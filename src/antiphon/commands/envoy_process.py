"""Envoy's command line and configuration file, and what its hot restart needs.

Lives here: files and arguments. Not here: the configuration (`envoy/`), when an Envoy is started (`generation.py`,
`supervisor.py`).

Hot restart: the next Envoy finds the former by its base id and number, takes its listeners and counters, and has it
drain. After `RELEASE_SECONDS` it tells the former to end by SIGTERM, and speaks to it no more; one that cannot be
spoken to until then would abort it. How long a drain may take is not known at the start, so SIGTERM is blocked for
Envoys (`guard.py`), and the parent ends them by SIGINT. An Envoy that follows one which died begins anew. Linux alone
has all this.

Invariant: only this user can speak to a running Envoy about its restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from antiphon.commands.child_settings import envoy_environment
from antiphon.commands.run_folder import write_private
from antiphon.config.settings import Settings
from antiphon.envoy.binary import find_envoy, version_of
from antiphon.envoy.bootstrap import bootstrap, fill_in_secret, to_yaml
from antiphon.envoy.sidecars import endpoints
from antiphon.envoy.versions import EnvoyVersion
from antiphon.errors import ConfigError

_LOG = '{"timestamp":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","logger":"envoy.%n","message":"%j"}'
_FLUSH_MILLISECONDS = "200"
_VALIDATE_SECONDS = 30.0
_SHARED = Path("/dev/shm")
RELEASE_SECONDS = 3
_COUNTERS_SECONDS = "1s"
"""How often an Envoy takes what the former has counted."""


@dataclass
class EnvoyProcess:
    """How the Envoy of one generation is started, again where it died. `follows`: base id and number of the one whose
    place it takes when it is started first."""

    options: list[str]
    config: Path
    version: EnvoyVersion
    base: Path
    follows: tuple[str, int] | None = None
    epoch: int = -1

    @classmethod
    async def prepare(
        cls, settings: Settings, folder: Path, run_folder: Path, former: EnvoyProcess | None
    ) -> EnvoyProcess:
        """Write its configuration. Raises `ConfigError` where it cannot be one, or cannot follow the former Envoy."""
        binary = find_envoy(settings.envoy.binary)
        version = await asyncio.to_thread(version_of, binary)
        made = cls(_options(settings, binary, run_folder), folder / "envoy.yaml", version, run_folder / "envoy-base")
        made.write(settings)
        if former is not None:
            made.follows = former.place()
            await asyncio.to_thread(made._validate, settings)
        return made

    def write(self, settings: Settings) -> None:
        """Write the configuration that is read at the next start."""
        whole = bootstrap(settings, sidecars=endpoints(settings), version=self.version)
        whole["stats_flush_interval"] = _COUNTERS_SECONDS
        write_private(self.config, fill_in_secret(to_yaml(whole), settings))

    def next_command(self) -> list[str]:
        """The command of the next start."""
        if self.follows is not None:
            (base, number), self.follows = self.follows, None
            self.epoch = number + 1
            return [*self.options, "-c", str(self.config), "--base-id", base, "--restart-epoch", str(self.epoch)]
        self.forget()
        self.epoch = 0
        return [
            *(*self.options, "-c", str(self.config), "--use-dynamic-base-id", "--base-id-path", str(self.base)),
            *("--restart-epoch", "0"),
        ]

    def place(self) -> tuple[str, int]:
        """Its base id and number, for the one that takes its place. Raises `ConfigError`."""
        try:
            return self.base.read_text().strip(), self.epoch
        except OSError:
            raise ConfigError("this Envoy knows no hot restart (it is there on Linux alone): restart") from None

    def forget(self) -> None:
        """Take away the shared memory that an Envoy leaves behind."""
        with contextlib.suppress(OSError):
            (_SHARED / f"envoy_shared_memory_{self.base.read_text().strip()}0").unlink()

    def _validate(self, settings: Settings) -> None:
        command = [self.options[0], "--mode", "validate", "-c", str(self.config), "--log-level", "error"]
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_VALIDATE_SECONDS, env=envoy_environment(settings)
        )
        if ran.returncode:
            said = (ran.stderr or ran.stdout).strip().splitlines()
            raise ConfigError(f"Envoy does not take its configuration: {said[-1] if said else ran.returncode}")


def _options(settings: Settings, binary: Path, run_folder: Path) -> list[str]:
    command = [str(binary), "--log-level", settings.envoy.log_level]
    # Sidecars wait for some of Envoy's lines, and its default is ten seconds.
    command += ["--file-flush-interval-msec", _FLUSH_MILLISECONDS]
    # When another one takes its place each answer says that its connection ends, and we end it, when it is quiet.
    command += ["--socket-path", str(run_folder / "hot"), "--drain-strategy", "immediate"]
    command += ["--parent-shutdown-time-s", str(RELEASE_SECONDS)]
    if settings.log.format == "json":
        command += ["--log-format", _LOG]
    if settings.envoy.log_level in ("info", "warning"):
        # It tells of every stream that a dead sidecar leaves, and each such request has a line with the same words.
        command += ["--component-log-level", "ext_proc:error"]
    if settings.envoy.concurrency is not None:
        command += ["--concurrency", str(settings.envoy.concurrency)]
    return command
