"""Whether the files that a database has open are still those that its path names.

Lives here: what the three files of a database looked like when it was opened, and the comparison; how large they are,
and how much room there is beside them. Not here: when they are compared (`writer.py`: before and after each
commit).

A file that is deleted, or put in another's place, under a process that has it open stays writable: everything that is
written then goes into a file without a name and is lost with the process. SQLite does not notice. The number of an
inode cannot come again as long as somebody has it open, so the comparison is exact.

Invariant: what `check` let pass was, at that moment, where the next process that opens the database will find it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from antiphon.errors import StoreError

# Without its log a database lacks what was committed last; without the index beside it two processes would use two.
_SUFFIXES = ("", "-wal", "-shm")


class DatabaseFiles:
    """The files of the database at `path`."""

    def __init__(self, path: Path) -> None:
        self._paths = [f"{path}{suffix}" for suffix in _SUFFIXES]
        self._seen: list[tuple[str, int, int]] = []

    def remember(self) -> None:
        """They are open now; called once, by whoever opened them. Raises `OSError`."""
        self._seen = []
        for path in self._paths:
            found = os.stat(path)
            self._seen.append((path, found.st_dev, found.st_ino))

    def check(self) -> None:
        """Raises `StoreError` unless all of them are still in their places."""
        for path, device, inode in self._seen:
            try:
                found = os.stat(path)
            except FileNotFoundError:
                raise _gone(path, "was deleted or moved away") from None
            except OSError as error:
                raise _gone(path, f"cannot be looked at ({error.strerror})") from None
            if found.st_ino != inode or found.st_dev != device:
                raise _gone(path, "was replaced by another file")


def free_bytes(folder: Path) -> int:
    """Bytes that are free where the folder is; 0 when it cannot be looked at."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bfree * found.f_frsize


def size_of_files(path: Path) -> int:
    """Bytes of all files of the database at `path`; those that are not there count nothing."""
    size = 0
    for suffix in _SUFFIXES:
        with suppress(OSError):
            size += os.stat(f"{path}{suffix}").st_size
    return size


def _gone(path: str, what: str) -> StoreError:
    return StoreError(
        f"The file {path} {what} while this process has it open: what was written now would be lost. Put it back, or "
        "restart the process on what is there.",
        reason="gone",
    )
