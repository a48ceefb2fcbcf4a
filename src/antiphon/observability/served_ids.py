"""Keeps the ids of running requests in shared memory, so that another process can read the ids if this process is
killed.

Each process has a table in shared memory (a file in `/dev/shm`), which outlives the process. This module also reads the
tables of dead processes. `observation.py` decides which requests are in the table. `commands/serve.py` logs the
requests that a dead process was serving. Sidecars behind Envoy have no table, because Envoy logs each request of a dead
sidecar (`envoy/failures.py`).

Invariants: a process holds a file lock on its table, and the kernel releases the lock when the process dies. Other
processes read only unlocked tables. The process writes the whole table once at the start, so that later writes cannot
run out of space. Without shared memory (not Linux, or no space) the process stores no ids, and no request fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
from pathlib import Path
from typing import Final

_SHARED: Final = Path("/dev/shm")
_LONGEST: Final = 128
_SLOT: Final = _LONGEST + 1
_SLOTS: Final = 2048
_SIZE: Final = _SLOT * _SLOTS


class ServedIds:
    """The table of one process, for use in the event loop's thread only. The table holds at most `_SLOTS` requests at a
    time. Further requests are not stored."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._map: mmap.mmap | None = None
        self._path: Path | None = None
        self._file = -1

    def open(self, data: Path, folder: Path = _SHARED) -> None:
        """Create the table for this data folder. If the file cannot be created, the object stores no ids."""
        path = folder / f"{_prefix(data)}{os.getpid()}-{os.urandom(4).hex()}"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(file, bytes(_SIZE)) != _SIZE:
                raise OSError("the shared memory is full")
            self._map = mmap.mmap(file, _SIZE)
        except OSError:
            path.unlink(missing_ok=True)
            os.close(file)
            return
        self._file, self._path = file, path
        self._free = list(range(_SLOTS - 1, -1, -1))

    def begin(self, request_id: str) -> int:
        """Store the id of a request. Returns its slot for `end`, or -1 if the id was not stored."""
        table = self._map
        if table is None or not self._free:
            return -1
        place = self._free.pop()
        at, text = place * _SLOT, request_id.encode("utf-8", "replace")[:_LONGEST]
        # The method writes the length last, because the process may die between the two writes.
        table[at + 1 : at + 1 + len(text)] = text
        table[at] = len(text)
        return place

    def end(self, place: int) -> None:
        """Remove the id in this slot."""
        if place >= 0 and self._map is not None:
            self._map[place * _SLOT] = 0
            self._free.append(place)

    def close(self) -> None:
        """Delete the table, at a normal end of the process."""
        if self._map is not None and self._path is not None:
            self._path.unlink(missing_ok=True)
            self._map.close()
            self._map = None
            os.close(self._file)


def take_lost(data: Path, folder: Path = _SHARED) -> list[str]:
    """Return the ids of the requests that killed processes of this data folder were serving. Each id is returned once,
    because `take_lost` deletes the tables that it reads."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(f"{_prefix(data)}*")):
            found += _of_dead(path)
    return found


def _prefix(data: Path) -> str:
    place = hashlib.sha256(os.fsencode(data.absolute())).hexdigest()[:16]
    return f"antiphon-{os.getuid()}-{place}-"


def _of_dead(path: Path) -> list[str]:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        if os.fstat(file).st_uid != os.getuid():
            return []
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may be deleted already, because another process has read the table first.
        path.unlink()
        table = os.read(file, _SIZE)
    except OSError:
        return []
    finally:
        os.close(file)
    ends = range(0, len(table) - _SLOT + 1, _SLOT)
    return [table[at + 1 : at + 1 + min(table[at], _LONGEST)].decode("utf-8", "replace") for at in ends if table[at]]
