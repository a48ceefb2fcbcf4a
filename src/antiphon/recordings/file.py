"""Opens cassettes (files with recorded exchanges): reads all entries of a file, and appends entries to a file.

This module sets file modes, locks a file for its writer, and removes a partly written entry. `format.py` defines the
content of an entry.

Invariants: a new cassette is readable only by its user, because it contains conversations. `CassetteFile` opens an
existing file for writing only if the file's entries are intact. After a failed write the file ends with its last whole
entry.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from antiphon.errors import ConfigError, unusable_path
from antiphon.recordings.format import CassetteEntry, DamagedRecording, read_entries

FILE_BYTES: Final = 1 << 30
"""The maximum size of a cassette in bytes."""


def read_file(path: Path) -> tuple[CassetteEntry, ...]:
    """The entries of a cassette. Raises `ConfigError` if the file cannot be read, has no entry, or is damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(unusable_path(error)) from None
    entries = _entries(path, data)
    if not entries:
        raise ConfigError(f"{path}: the file has no entries; record some with 'antiphon record --to {path}'")
    return entries


def _entries(path: Path, data: bytes) -> tuple[CassetteEntry, ...]:
    if len(data) > FILE_BYTES:
        raise ConfigError(f"{path}: the file is larger than {FILE_BYTES >> 20} MiB; split it into several files")
    try:
        return read_entries(data)
    except DamagedRecording as error:
        raise ConfigError(f"{path}: {error}") from None


class CassetteFile:
    """A cassette that is open for writing. One process writes to a cassette at a time."""

    def __init__(self, path: Path, *, append: bool = False) -> None:
        """Create the file, or open it with `append`. Raises `ConfigError`."""
        self._path, self._file, self._bytes, self.entries = path, -1, 0, 0
        self._ours = False
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags if append else flags | os.O_EXCL, 0o600)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise ConfigError(f"--to: {path} is not a regular file; choose another file")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(self._file), "rb") as file:
                data = file.read(FILE_BYTES + 1)
        except FileExistsError:
            raise ConfigError(f"--to: {path} exists; choose another file, or add entries to it with --append") from None
        except BlockingIOError:
            self.close()
            raise ConfigError(f"--to: another process records to {path}; choose another file") from None
        except ConfigError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise ConfigError(f"--to: {unusable_path(error)}") from None
        try:
            self.entries = len(_entries(path, data))
            if data and data.count(b"\n") != self.entries:
                raise ConfigError(
                    f"--to: {path} has no line end after its last entry, or has an entry of several lines; choose "
                    "another file"
                )
        except ConfigError:
            self.close()
            raise
        self._bytes = len(data)
        self._ours = not data

    def append(self, line: bytes) -> int:
        """Write an entry as a line. Returns the number of the entry in the file, counted from 1. Raises OSError."""
        if self._bytes + len(line) > FILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, self._bytes)
            raise
        self._bytes += len(line)
        self.entries += 1
        return self.entries

    def close(self) -> None:
        """Close the file, which also releases its lock. Delete a file without entries, so that the same command can
        run again."""
        if self._file < 0:
            return
        if self._ours and not self.entries:
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1
