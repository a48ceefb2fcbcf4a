"""Reloads changed settings while a gateway serves, and reports what cannot change.

Lives here: SIGHUP and the watch on the settings file, what cannot change, and the line that says what came of it. Not
here: what serves with the new settings (`generation.py`, which `antiphon up` starts).

Invariants: settings are taken whole or refused whole, and each try leaves one line, which names settings and never
their values; a file is read when it has kept still for a moment, and what has the same content is no change.
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
from antiphon.supervisor.service_manager import tell as tell_manager

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 1.0

FIXED = {
    "listen": "clients know it",
    "door": "the HTTP door cannot hand its port to Envoy, nor Envoy to it",
    "data": "the running processes use what is in the folder",
    "metrics.listen": "the parent of the workers listens there",
    "reload.watch": "it is decided at the start",
}
"""What cannot change while it runs, and why."""
_OF_ONE_SET = ("sidecar.grpc", "sidecar.http", "sidecar.model_door", "envoy.admin")


class SettingsFile:
    """Looks at a file by its path, through all symbolic links: where one is put in place of another (a ConfigMap of
    Kubernetes), the file is another one too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = self._seen = self._digest()

    @classmethod
    def of(cls, path: Path | None) -> SettingsFile | None:
        """Of a process that may have none. Made before the file is read: what changes from then on is seen."""
        return cls(path) if path is not None else None

    def has_changed(self) -> bool:
        """Whether it has another content since it was told last, and had it at the last look already: who writes it in
        pieces is given time to end. A file that is gone has changed too, once."""
        former, self._seen = self._seen, self._digest()
        if self._seen != former or self._seen == self._told:
            return False
        self._told = self._seen
        return True

    def was_read(self) -> None:
        """Its content of this moment is no news any more."""
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
    """Call `tell` with the reason, one after the other, whenever settings are to be read: for ever."""
    while True:
        try:
            async with asyncio.timeout(look if file is not None else None):
                await hangup.wait()
        except TimeoutError:
            assert file is not None
            # In a thread: its disk may stand still.
            if await asyncio.to_thread(file.has_changed):
                await tell("the file has changed")
            continue
        hangup.clear()
        if file is not None:
            await asyncio.to_thread(file.was_read)
        await tell("SIGHUP")


class ReloadCounts:
    """What came of it until now: how often each, and what last."""

    def __init__(self) -> None:
        self.results = {"accepted": 0, "refused": 0}
        self.last = "accepted"

    async def of(self, because: str, reload: Awaitable[tuple[str, ...]]) -> None:
        """Wait for it, count it, say it in one line and to the service manager; no error is raised."""
        tell_manager("RELOADING=1")
        try:
            changed = await reload
        except AntiphonError as error:
            self._refused(because, str(error))
        except Exception as bug:
            self._refused(because, f"it failed here: {type(bug).__name__}", exc_info=True)
        else:
            self._count("accepted")
            _log.info("settings_reloaded", because=because, changed=list(changed))
        # Whatever came of it: it serves, with the settings from before or with these.
        tell_manager("READY=1")

    def _count(self, result: str) -> None:
        self.results[result] += 1
        self.last = result

    def _refused(self, because: str, problem: str, *, exc_info: bool = False) -> None:
        self._count("refused")
        advice = "the settings from before stay in use"
        _log.error("settings_refused", because=because, problem=problem, advice=advice, exc_info=exc_info or None)


@asynccontextmanager
async def saying_that_a_restart_is_needed(hangup: asyncio.Event, file: SettingsFile | None) -> AsyncIterator[None]:
    """While this lasts, a process that has no parent says so when its settings are to be read."""

    async def say(because: str) -> None:
        tell_manager("RELOADING=1")
        advice = "restart it, or run 'antiphon up', which takes other settings while it serves"
        _log.warning("settings_need_a_restart", because=because, advice=advice)
        tell_manager("READY=1")

    task = asyncio.ensure_future(reasons(hangup, file, say))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def check_change(before: Settings, after: Settings) -> tuple[str, ...]:
    """The names of the settings that change. Raises `ConfigError` where that takes a restart."""
    changed = changed_settings(before, after)
    for name in changed:
        if name in FIXED:
            raise ConfigError(f"{name} cannot change while it runs ({FIXED[name]}): restart, or take the change back")
    if "memory" in (before.state.place.kind, after.state.place.kind):
        raise ConfigError("state.url: memory: is in the workers' memory, and would be gone with them: restart")
    for name in _OF_ONE_SET if after.door == "envoy" else ():
        address = str(reduce(getattr, name.split("."), after))
        if parse_address(address)[0] != "unix" and address == str(reduce(getattr, name.split("."), before)):
            raise ConfigError(
                f"{name}: the workers in use listen on {address}, and others beside them cannot: restart, or set "
                "unix:{data}/…, which is another place for each set of workers"
            )
    return changed


def changed_settings(before: Settings, after: Settings) -> tuple[str, ...]:
    """The settings that differ, by name, in their order; of a list of sections the list."""
    paths = (path for path, _ in field_paths(Settings))
    return tuple(".".join(path) for path in paths if reduce(getattr, path, before) != reduce(getattr, path, after))
