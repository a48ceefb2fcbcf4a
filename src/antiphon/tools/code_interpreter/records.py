"""What is known of each container: one small file each, below the data folder.

Lives here: reading, writing, listing, deleting them. Not here: the containers' own files (`port.Sandbox`), what the
records mean (`recorded_rows.py`). All of it blocks: call it in a thread.

A file is two lines of JSON: whose it is and how long it lives, then what is in it. Whoever asks for somebody else's
reads no more than the first line, however much is in the container.

Invariant: a record is there whole or not at all; names of files are ids of ours.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from antiphon.engine.ports.container_rows import ContainerHead, ContainerRow, RowContents
from antiphon.errors import StoreError, file_failure
from antiphon.ids import is_id

PREFIX = "cntr"


_READ_HEAD, _READ_CONTENTS = msgspec.json.Decoder(ContainerHead), msgspec.json.Decoder(RowContents)


class Records:
    """All records, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, container_id: str, owner: str | None = None) -> ContainerRow | None:
        """The record, or None; with `owner` only when it is his."""
        found = self._open(container_id, owner)
        if found is None:
            return None
        head, rest = found
        record = msgspec.convert(head, ContainerRow, from_attributes=True)
        try:
            record.contents = _READ_CONTENTS.decode(rest)
        except msgspec.DecodeError as error:
            raise StoreError("A container's record cannot be read.") from error
        return record

    def head(self, container_id: str) -> ContainerHead | None:
        """The record without what is in the container, or None."""
        found = self._open(container_id, None, rest=False)
        return found[0] if found is not None else None

    def put(self, record: ContainerRow) -> None:
        """Write it, in place of what is there."""
        path = self._folder / f"{record.id}.json"
        incoming = path.with_suffix(f".{os.urandom(8).hex()}")
        head = msgspec.json.encode(msgspec.convert(record, ContainerHead, from_attributes=True))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            incoming.write_bytes(head + b"\n" + msgspec.json.encode(record.contents))
            incoming.replace(path)
        except OSError as error:
            with suppress(OSError):
                incoming.unlink()
            raise file_failure("A container's record cannot be written", error) from error

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
            raise file_failure("A container cannot be locked", error) from error
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(opened).st_ino == path.stat().st_ino:
                return opened
        except OSError:
            pass
        # Somebody has it, or has just deleted it.
        os.close(opened)
        return None

    def every(self) -> list[ContainerHead]:
        """All of them, oldest first; one that cannot be read is left out."""
        found = []
        with suppress(FileNotFoundError):
            for name in os.listdir(self._folder):
                if name.endswith(".json"):
                    with suppress(StoreError):
                        head = self.head(name.removesuffix(".json"))
                        if head is not None:
                            found.append(head)
        return sorted(found, key=lambda head: (head.created_at, head.id))

    def _open(self, container_id: str, owner: str | None, *, rest: bool = True) -> tuple[ContainerHead, bytes] | None:
        if not is_id(container_id, PREFIX):
            return None
        try:
            with open(self._folder / f"{container_id}.json", "rb") as file:
                head = _READ_HEAD.decode(file.readline())
                if owner is not None and head.owner != owner:
                    return None
                return head, file.read() if rest else b""
        except FileNotFoundError:
            return None
        except OSError as error:
            raise file_failure("A container's record cannot be read", error) from error
        except msgspec.DecodeError as error:
            raise StoreError("A container's record cannot be read.") from error
