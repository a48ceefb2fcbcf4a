"""Implements `ContainerRows` on one machine, with one small file per container.

This module reads, writes, lists and deletes the record files. The lease on a container is a file lock (`flock`), which
the kernel releases when the process ends. `local.py` has the files in a container, and `stores/postgres/containers.py`
has rows that several machines share.

A record has two lines of JSON: first the container's owner and times, then its list of files. A request for another
owner's container reads only the first line, however long the list is.

Invariants: a record is complete or absent. The name of a record is an id that Antiphon generated. Releasing a lock
always closes its file descriptor.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from antiphon.engine.ports.containers import (
    ContainerHead,
    ContainerInUse,
    ContainerLost,
    ContainerRow,
    RowContents,
    TooManyContainers,
)
from antiphon.engine.waiting import RECORDS
from antiphon.errors import StoreError, file_failure
from antiphon.ids import Clock, is_id, now

PREFIX = "cntr"

_READ_HEAD, _READ_CONTENTS = msgspec.json.Decoder(ContainerHead), msgspec.json.Decoder(RowContents)


class Records:
    """Reads and writes the records in a folder. All methods block, so call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, container_id: str, owner: str | None = None) -> ContainerRow | None:
        """Return the record of a container, or None if the record does not exist. With `owner`, also return None if the
        container belongs to another owner. Raises `StoreError`."""
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
        """Return the first line of the record (owner and times), or None if the record does not exist. Raises
        `StoreError`."""
        found = self._open(container_id, None, rest=False)
        return found[0] if found is not None else None

    def put(self, record: ContainerRow) -> None:
        """Write a record atomically, and replace an existing record. Raises `StoreError`."""
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
        """Delete the record and the lock file of a container, if they exist."""
        for ending in ("json", "lock"):
            with suppress(FileNotFoundError):
                (self._folder / f"{container_id}.{ending}").unlink()

    def lock(self, container_id: str) -> int | None:
        """Lock the container for this process without waiting. Returns a descriptor whose closing releases the lock, or
        None if the container is locked. Raises `StoreError`."""
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
        # Another holder has the lock, or has just deleted the lock file.
        os.close(opened)
        return None

    def every(self) -> list[ContainerHead]:
        """Return the first lines of all records, oldest container first. Skips unreadable records."""
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


class RecordedRows:
    """Implements `ContainerRows` with record files. A lease never expires: the kernel releases its file lock when the
    process ends."""

    contents = None

    def __init__(self, records: Records, clock: Clock = now) -> None:
        self._records = records
        self._clock = clock
        self._held: dict[str, int] = {}

    async def make(self, row: ContainerRow, holder: str, seconds: float, *, limit: int, per_owner: int) -> ContainerRow:
        """See `ContainerRows.make`."""
        return await RECORDS.run(self._make, row, holder, limit, per_owner)

    async def get(self, container_id: str, owner: str | None = None) -> ContainerRow | None:
        """See `ContainerRows.get`."""
        return await RECORDS.run(self._find, container_id, owner)

    async def every(self, owner: str | None = None, *, expired: bool | None = None) -> Sequence[ContainerHead]:
        """See `ContainerRows.every`."""
        heads, at = await RECORDS.run(self._records.every), self._clock()
        return [head for head in heads if owner in (None, head.owner) and expired in (None, head.expired(at))]

    async def count(self, owners: Sequence[str]) -> int:
        """See `ContainerRows.count`."""
        return sum(head.owner in owners for head in await self.every(expired=False))

    async def take(
        self, container_id: str, holder: str, seconds: float, owner: str | None = None, *, expired: bool = False
    ) -> ContainerRow | None:
        """See `ContainerRows.take`."""
        return await RECORDS.run(self._take, container_id, holder, owner, expired)

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        """See `Leased.renew`."""
        return frozenset(holder for holder in holders if holder in self._held)

    async def put_back(
        self, row: ContainerRow, holder: str, *, came: Sequence[str] = (), went: Sequence[str] = ()
    ) -> None:
        """See `ContainerRows.put_back`."""
        await RECORDS.run(self._put_back, row, holder)

    async def let_go(self, container_id: str, holder: str) -> None:
        """See `ContainerRows.let_go`."""
        self._close(holder)

    async def give(self, row: ContainerRow, holder: str, owner: str) -> None:
        """See `ContainerRows.give`."""
        await RECORDS.run(self._give, row, holder, owner)

    async def delete(self, row: ContainerRow, holder: str) -> None:
        """See `ContainerRows.delete`."""
        await RECORDS.run(self._delete, row, holder)

    # The methods below run in a thread.

    def _make(self, row: ContainerRow, holder: str, limit: int, per_owner: int) -> ContainerRow:
        with self._locking(row.id, holder):
            at = self._clock()
            if self._records.head(row.id) is not None:
                raise ContainerInUse
            owners = [head.owner for head in self._records.every() if not head.expired(at)]
            if owners.count(row.owner) >= per_owner:
                raise TooManyContainers(of_owner=True)
            if len(owners) >= limit:
                raise TooManyContainers(of_owner=False)
            row.created_at = row.last_active_at = at
            self._records.put(row)
        return row

    def _find(self, container_id: str, owner: str | None, expired: bool = False) -> ContainerRow | None:
        row = self._records.get(container_id, owner)
        if row is not None and (owner is not None or expired) and row.expired(self._clock()) is not expired:
            return None
        return row

    def _take(self, container_id: str, holder: str, owner: str | None, expired: bool) -> ContainerRow | None:
        # Check first, so that a request for a missing container creates no lock file.
        if self._find(container_id, owner, expired) is None:
            return None
        with self._locking(container_id, holder):
            row = self._find(container_id, owner, expired)
            if row is not None and owner is not None:
                row.last_active_at = self._clock()
                self._records.put(row)
        if row is None:
            self._close(holder)
        return row

    def _put_back(self, row: ContainerRow, holder: str) -> None:
        if holder not in self._held:
            raise ContainerLost
        row.last_active_at = self._clock()
        self._records.put(row)
        self._close(holder)

    def _give(self, row: ContainerRow, holder: str, owner: str) -> None:
        if holder not in self._held:
            raise ContainerLost
        row.owner = owner
        self._records.put(row)

    def _delete(self, row: ContainerRow, holder: str) -> None:
        if holder not in self._held:
            raise ContainerLost
        self._records.delete(row.id)
        self._close(holder)

    @contextmanager
    def _locking(self, container_id: str, holder: str) -> Iterator[None]:
        """Lock the container for `holder`, and keep the lock after the `with` block. An error in the block releases the
        lock. Raises `ContainerInUse`."""
        lock = self._records.lock(container_id)
        if lock is None:
            raise ContainerInUse
        self._held[holder] = lock
        try:
            yield
        except BaseException:
            self._close(holder)
            raise

    def _close(self, holder: str) -> None:
        lock = self._held.pop(holder, None)
        if lock is not None:
            os.close(lock)
