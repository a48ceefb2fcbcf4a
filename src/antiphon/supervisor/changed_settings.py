"""Reloads changed settings while a gateway serves, and reports what cannot change.

This module handles SIGHUP and watches the settings file. This module knows which settings cannot change at run time,
and logs the result of each reload. `antiphon up` starts the processes with the new settings (`generation.py`).

Invariants: new settings apply completely or not at all. Each reload writes one log line, which names settings and never
their values. The parent reads a file only after it was stable for a moment. If the content is the same as before, the
parent does not reload.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import reduce
from pathlib import Path

import structlog

from antiphon.config.section import field_paths, parse_address
from antiphon.config.settings import Settings
from antiphon.errors import AntiphonError, ConfigError
from antiphon.supervisor.process import tell_service_manager

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 1.0

FIXED = {
    "listen": "clients use this address",
    "door": "the HTTP server and Envoy cannot hand their port to each other",
    "data": "the running processes use the files in this folder",
    "console.enabled": "the console's listener opens only at the start",
    "console.listen": "browsers use this address",
    "metrics.listen": "the parent of the workers listens there",
    "reload.watch": "Antiphon reads this setting only at the start",
}
"""The settings that cannot change at run time, each with the reason."""
_OF_ONE_SET = ("sidecar.grpc", "sidecar.http", "sidecar.model_door", "envoy.admin")


class SettingsFile:
    """Watches a file by its path, through all symbolic links. So the watch notices when another file replaces the
    watched one, as Kubernetes does for a ConfigMap."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = self._seen = self._digest()

    @classmethod
    def of(cls, path: Path | None) -> SettingsFile | None:
        """Return the watch of a process's settings file, or None without a file. The caller creates the watch before it
        reads the file, so that the watch notices every later change."""
        return cls(path) if path is not None else None

    def has_changed(self) -> bool:
        """Whether the file has new content that was the same at the last two checks. The second check gives a writer
        time to finish. The method reports each content once, and treats a deleted file as new content."""
        former, self._seen = self._seen, self._digest()
        if self._seen != former or self._seen == self._told:
            return False
        self._told = self._seen
        return True

    def was_read(self) -> None:
        """Mark the present content as reported."""
        self._told = self._seen = self._digest()

    def _digest(self) -> bytes:
        try:
            return hashlib.sha256(self._path.read_bytes()).digest()
        except OSError:
            return b""


async def reasons(
    hangup: asyncio.Event,
    file: SettingsFile | None,
    tell: Callable[[str], Awaitable[None]],
    look: float = _LOOK_SECONDS,
) -> None:
    """Call `tell` with the reason whenever the settings must be read again, one call at a time. The function never
    returns."""
    while True:
        try:
            async with asyncio.timeout(look if file is not None else None):
                await hangup.wait()
        except TimeoutError:
            assert file is not None
            # The check runs in a thread, because the file's disk may hang.
            if await asyncio.to_thread(file.has_changed):
                await tell("the file has changed")
            continue
        hangup.clear()
        if file is not None:
            await asyncio.to_thread(file.was_read)
        await tell("SIGHUP")


class ReloadCounts:
    """Counts the results of reloads, and remembers the last result."""

    def __init__(self) -> None:
        self.results = {"accepted": 0, "refused": 0}
        self.last = "accepted"

    async def of(self, because: str, reload: Awaitable[tuple[str, ...]]) -> None:
        """Await the reload, count its result, log it in one line and notify the service manager. Raises no error."""
        tell_service_manager("RELOADING=1")
        try:
            changed = await reload
        except AntiphonError as error:
            self._refused(because, str(error))
        except Exception as bug:
            self._refused(because, f"a bug stopped the reload: {type(bug).__name__}", exc_info=True)
        else:
            self._count("accepted")
            _log.info("settings_reloaded", because=because, changed=list(changed))
        # After either result the process serves, with the old or the new settings.
        tell_service_manager("READY=1")

    def _count(self, result: str) -> None:
        self.results[result] += 1
        self.last = result

    def _refused(self, because: str, problem: str, *, exc_info: bool = False) -> None:
        self._count("refused")
        advice = "the previous settings stay in use"
        _log.error("settings_refused", because=because, problem=problem, advice=advice, exc_info=exc_info or None)


@asynccontextmanager
async def saying_that_a_restart_is_needed(hangup: asyncio.Event, file: SettingsFile | None) -> AsyncIterator[None]:
    """While the block runs, log that a restart is needed whenever the settings should be read again. A process that
    `antiphon up` did not start uses this context manager, because no parent can replace the process."""

    async def say(because: str) -> None:
        tell_service_manager("RELOADING=1")
        advice = "restart the process, or use 'antiphon up', which can reload settings without a restart"
        _log.warning("settings_need_a_restart", because=because, advice=advice)
        tell_service_manager("READY=1")

    task = asyncio.ensure_future(reasons(hangup, file, say))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def check_change(before: Settings, after: Settings) -> tuple[str, ...]:
    """Return the names of the changed settings. Raises `ConfigError` when a change needs a restart."""
    changed = changed_settings(before, after)
    for name in changed:
        if name in FIXED:
            raise ConfigError(
                f"{name} cannot change while Antiphon runs ({FIXED[name]}). Restart Antiphon, or undo the change"
            )
    if "memory" in (before.state.place.kind, after.state.place.kind):
        raise ConfigError(
            "state.url: with 'memory:', the state is in the workers' memory, and a reload would lose it. Restart "
            "Antiphon, or undo the change"
        )
    for name in _OF_ONE_SET if after.door == "envoy" else ():
        address = str(reduce(getattr, name.split("."), after))
        if parse_address(address)[0] != "unix" and address == str(reduce(getattr, name.split("."), before)):
            raise ConfigError(
                f"{name}: the running workers listen on {address}, so new workers cannot listen there. Restart "
                f"Antiphon, or set unix:{{data}}/…, which gives each set of workers its own folder"
            )
    return changed


def changed_settings(before: Settings, after: Settings) -> tuple[str, ...]:
    """Return the names of the settings that differ, in order. If sections in a list differ, the result
    has the name of the list."""
    paths = (path for path, _ in field_paths(Settings))
    return tuple(".".join(path) for path in paths if reduce(getattr, path, before) != reduce(getattr, path, after))
