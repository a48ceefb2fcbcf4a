"""Reloads the settings of a running gateway after SIGHUP or a change of the settings file.

This module watches the settings file, refuses changes that need a restart, and logs the result of each reload.
`generation.py` starts new processes with the new settings.

Invariants: new settings apply completely or not at all. Each reload writes one log line, which contains names of
settings but no values. The parent process reads a changed file only after two equal checks, because another program may
still write the file. If the file's content is unchanged, the parent process does not reload.
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
    "listen": "clients would lose the address that they use",
    "door": "the HTTP server and Envoy cannot hand their port to each other",
    "data": "the running processes would still use the files in the old folder",
    "console.enabled": "the console's listener opens only at the start",
    "console.listen": "browsers would lose the address that they use",
    "metrics.listen": "the parent process listens there, and a reload does not replace it",
    "reload.watch": "Antiphon reads this setting only at the start",
}
"""The settings that a reload cannot change, each with the reason."""
_OF_ONE_SET = ("sidecar.grpc", "sidecar.http", "sidecar.model_door", "envoy.admin")


class SettingsFile:
    """Watches the settings file. The watch follows symbolic links, because Kubernetes updates a ConfigMap by changing a
    symbolic link."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = self._seen = self._digest()

    @classmethod
    def of(cls, path: Path | None) -> SettingsFile | None:
        """Return a watch of the settings file, or None if there is no file. The caller creates the watch before it
        reads the file, so that the watch notices every later change."""
        return cls(path) if path is not None else None

    def has_changed(self) -> bool:
        """Whether the file has changed and then stayed equal for one more check, because another program may still
        write the file. The method returns True once for each change. Deleting the file is a change too."""
        former, self._seen = self._seen, self._digest()
        if self._seen != former or self._seen == self._told:
            return False
        self._told = self._seen
        return True

    def was_read(self) -> None:
        """Record that the caller reads the file now, so that `has_changed` does not report its present content."""
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
    """Call `tell` after each SIGHUP and after each change of the settings file, with the reason as text. The function
    runs until its task is cancelled, and never makes two calls at the same time."""
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
        """Await the reload, count and log its result, and notify the service manager. Raises no error."""
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
    """While the block runs, log after each SIGHUP and each change of the settings file that the process needs a
    restart. This context manager is for processes without `antiphon up`, because only a parent process can replace
    them."""

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
            "state.url: with 'memory:', the state is in the workers' memory, and a reload would replace the workers "
            "and lose the state. Restart Antiphon, or undo the change"
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
    """Return the names of the settings that differ, in the order of the code. For a list of sections, such as `models`,
    the result has only the name of the list."""
    paths = (path for path, _ in field_paths(Settings))
    return tuple(".".join(path) for path in paths if reduce(getattr, path, before) != reduce(getattr, path, after))
