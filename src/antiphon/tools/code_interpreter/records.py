"""What is known of each container: one small file of JSON each, below the data folder.

Lives here: reading, writing, listing, deleting them. Not here: the containers' own files (`port.Sandbox`), what the
records mean (`containers.py`). All of it blocks: call it in a thread.

Invariant: a record is there whole or not at all; names of files are ids of ours.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from antiphon.errors import StoreError
from antiphon.ids import is_id

__all__ = ["PREFIX", "Record", "RecordedFile", "Records"]

PREFIX = "cntr"


class RecordedFile(Struct):
    """A file that was given an id. `version` is the sandbox's."""

    id: str
    path: str
    size: int
    version: str
    created_at: float
    source: str


class Record(Struct):
    """A container."""

    id: str
    owner: str
    name: str
    created_at: float
    last_active_at: float
    idle_seconds: float
    memory: int
    files: list[RecordedFile] = []
    copied: list[str] = []
    """Ids of the uploaded files that were copied into it: each only once, whatever code has done to the copy."""

    runs: int = 0
    process: str = ""
    """How often code was run, and by which process last: its interpreter alone has the variables."""

    def expired(self, now: float) -> bool:
        """Whether nobody has used it for too long."""
        return now > self.last_active_at + self.idle_seconds

    def file(self, file_id: str) -> RecordedFile | None:
        """The file of this id."""
        return next((file for file in self.files if file.id == file_id), None)


_READ = msgspec.json.Decoder(Record)


class Records:
    """All records, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, container_id: str) -> Record | None:
        """The record, or None."""
        if not is_id(container_id, PREFIX):
            return None
        try:
            return _READ.decode((self._folder / f"{container_id}.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise StoreError("A container's record cannot be read.") from error

    def put(self, record: Record) -> None:
        """Write it, in place of what is there."""
        path = self._folder / f"{record.id}.json"
        incoming = path.with_suffix(f".{os.urandom(8).hex()}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            incoming.write_bytes(msgspec.json.encode(record))
            incoming.replace(path)
        except OSError as error:
            with suppress(OSError):
                incoming.unlink()
            raise StoreError("A container's record cannot be written.") from error

    def delete(self, container_id: str) -> None:
        """Delete it, if it is there."""
        for ending in ("json", "lock"):
            with suppress(FileNotFoundError):
                (self._folder / f"{container_id}.{ending}").unlink()

    def lock(self, container_id: str) -> int | None:
        """Keep all other processes from this container until the descriptor is closed; None when one has it."""
        path = self._folder / f"{container_id}.lock"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError("A container cannot be locked.") from error
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(opened).st_ino == path.stat().st_ino:
                return opened
        except OSError:
            pass
        # Somebody has it, or has just deleted it.
        os.close(opened)
        return None

    def every(self) -> list[Record]:
        """All of them, oldest first; one that cannot be read is left out."""
        found = []
        with suppress(FileNotFoundError):
            for name in os.listdir(self._folder):
                if name.endswith(".json"):
                    with suppress(StoreError):
                        record = self.get(name.removesuffix(".json"))
                        if record is not None:
                            found.append(record)
        return sorted(found, key=lambda record: (record.created_at, record.id))
