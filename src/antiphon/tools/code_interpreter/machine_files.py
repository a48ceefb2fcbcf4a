"""Copies a container's files into and out of its sandboxed process, and counts files. All methods block, so call them
in a thread.

This module copies files between the container's folder and the process's file system in memory. This module also
computes how many files code may create, and reads pictures. `machine.py` decides when to copy and when to run code.
`disk.py` has operations on one folder, and `space.py` mounts the file system.

Invariant: a descriptor that an operation in a thread uses stays open until the operation ends. The descriptor stays
open even if the task that waits for the thread is cancelled.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import structlog

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter import disk
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.starting import MORE_FILES, Room, file_bytes, user_of

_log = structlog.get_logger(__name__)
_PICTURE = re.compile(r"picture-\d{1,9}-\d{1,3}\.png")
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_PICTURES = 10
_OWN_FOLDERS = 2
"""A container's folders `files` and `scratch`, which `disk.use_of` counts together with their contents."""


class MachineFiles:
    """The files of one container in `home`. In mode `memory`, code works on copies in the file system whose descriptor
    `enter` receives."""

    def __init__(self, home: Path, limits: CodeInterpreterSettings, room: Room) -> None:
        self._home = home
        self._limits = limits
        self._room = room
        self._user = user_of(home.name)
        self._inside: int | None = None
        # If a call is cancelled, its thread continues to run. The lock prevents `leave` from closing the descriptor
        # while a thread uses it.
        self._inside_lock = threading.Lock()
        self._known: tuple[dict[str, str], dict[str, str]] = ({}, {})

    @property
    def copied(self) -> bool:
        """Whether the code works on copies in memory instead of the files in `home`."""
        return self._inside is not None

    @property
    def cut_off(self) -> bool:
        """Whether code created folders so deep that their contents were not copied out."""
        return disk.is_cut_off(self._known[1])

    def enter(self, inside: int) -> None:
        """Set the descriptor of the process's file system in memory. `leave` closes the descriptor."""
        with self._inside_lock:
            self._inside = inside

    def bring_in(self) -> None:
        """Copy files that changed in `home` into the process's file system. Raises `SandboxFailed`."""
        outside, limit = self._known[0], 2 * (self._limits.files + MORE_FILES)
        with self.inner("files") as inner:
            now = disk.scan(self._home / "files", limit)
            try:
                disk.carry(self._home / "files", inner, outside, now, self._user)
            except OSError as error:
                why = f"The container's files cannot be copied to the interpreter: {error.strerror}."
                raise SandboxFailed(why) from None
            self._known = now, disk.scan(inner, limit)

    def take_out(self) -> None:
        """Copy files that code has changed to `home`. The process must be stopped or dead. Raises `SandboxFailed`."""
        inside, limit = self._known[1], 2 * (self._limits.files + MORE_FILES)
        with self.inner("files") as inner:
            now = disk.scan(inner, limit)
            if now == inside:
                return
            try:
                disk.carry(inner, self._home / "files", inside, now, self._user)
            except OSError as error:
                _log.error("container_files_not_kept", error=error.strerror, container=self._home.name)
                raise SandboxFailed(f"The container's files could not be saved: {error.strerror}.") from None
            self._known = disk.scan(self._home / "files", limit), now

    @contextmanager
    def inner(self, name: str) -> Iterator[int]:
        """Open a folder of the process's file system in memory, and yield its descriptor. The file system stays open
        inside the block. Raises `SandboxFailed` if `leave` has closed the file system."""
        with self._inside_lock:
            if self._inside is None:
                raise SandboxFailed("The container was stopped.")
            opened = disk.open_folder(self._inside, name)
            try:
                yield opened
            finally:
                os.close(opened)

    def leave(self) -> None:
        """Close the descriptor of the process's file system. The kernel deletes the file system when the process
        ends."""
        with self._inside_lock:
            if self._inside is not None:
                os.close(self._inside)
                self._inside = None

    def left(self) -> int:
        """Return how many files code may create in mode `counted`, assuming that each file grows to its maximum size.
        Raises `SandboxFailed` if the container has too many files."""
        one = file_bytes(self._limits, "counted")
        most = self._limits.files + _OWN_FOLDERS
        use = disk.use_of(self._home, 2 * self._limits.files + MORE_FILES, one)
        if use.count > most:
            raise SandboxFailed(
                "The container has more files than its limit. Delete some files, or use another container."
            )
        if use.deep:
            return 0
        return max(0, min((self._limits.disk_bytes - use.bytes) // one, most - use.count))

    def pictures(self, answer: dict[str, object]) -> tuple[bytes, ...]:
        """Read and delete the PNG files that the interpreter's answer names. Skips pictures that exceed the limit of
        their total size."""
        names = answer.get("pictures")
        wanted = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        wanted = [name for name in wanted[:_MAX_PICTURES] if _PICTURE.fullmatch(name)]
        if not wanted:
            return ()
        in_memory = self._room == "memory"
        with self.inner("scratch") if in_memory else nullcontext(self._home / "scratch") as scratch:
            return _read_pictures(scratch, wanted, self._limits.picture_bytes)


def _read_pictures(scratch: disk.Folder, names: list[str], limit: int) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for name in names:
        with suppress(SandboxFailed):
            data = disk.read_file(scratch, name, 0, limit + 1)
            if data.startswith(_PNG) and len(data) <= limit:
                found.append(data)
                limit -= len(data)
        disk.remove_file(scratch, name)
    return tuple(found)
