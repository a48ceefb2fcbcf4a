"""Defines container records, and the port that stores them and grants exclusive use of a container.

Lives here: a container's row, the port `ContainerRows`, and the values of a client's request for a new container. Not
here: running code (`tools/code_interpreter/`), the HTTP endpoints (`api/containers.py`), SQL.

A process that uses a container holds a lease on the container. Each lease has a new, unique holder name. `Leases`
(`stores/leases.py`) renews the lease. With SQLite, the container files are in the data folder of this machine.
With PostgreSQL, a row names the machine that has the current files. The row also names the snapshot with a copy of
these files.

Invariants: A container belongs to one owner. A lookup returns None for a container that is missing, expired or another
owner's. By the store's clock, a container has at most one holder at any time. A holder whose lease has expired can no
longer change the container. Only the code that deletes containers sees expired containers. A snapshot that no container
uses has a pending row, so that a sweep deletes the snapshot (`files.py` defines pending rows). When a container's row
begins to name a snapshot, the same transaction deletes the snapshot's pending row. When a container's row stops naming
a snapshot, the same transaction adds a pending row for the snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import Struct

from antiphon.engine.ports.files import BlobReader, BlobWriter
from antiphon.engine.ports.state import Leased
from antiphon.errors import InvalidRequest

_NO_TEXT = re.compile("\0([0-9a-f]{2})")

MEMORY_LIMITS = {"1g": 1 << 30, "4g": 4 << 30, "16g": 16 << 30, "64g": 64 << 30}
"""Maps each value of the API field `memory_limit` to its number of bytes."""


class ContainerFailed(InvalidRequest):
    """The container refuses an operation, for example because a file is too large: a 400 with `container_error`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="container_error")


class ContainerInUse(Exception):
    """Another holder has the lease on the container."""


class ContainerLost(Exception):
    """The caller's lease on the container expired before the caller changed the container. Another holder may have used
    the container since."""


class TooManyContainers(ContainerFailed):
    """A new container would exceed the owner's limit (`of_owner` is true) or the limit for all owners."""

    def __init__(self, of_owner: bool) -> None:
        super().__init__(
            "You have reached your limit of containers. Delete containers that you no longer need."
            if of_owner
            else "The server has reached its limit of containers. Try again later."
        )
        self.of_owner = of_owner


class RowFile(Struct):
    """A file of a container. `id` begins with `cfile_`, and changes when code writes the file again.

    `path` and `version` come from the sandbox of the machine `ContainerHead.machine`. The sandbox changes `version`
    when the file's content changes. `size` is in bytes. `source` is `user` or `assistant`. `blob` is the key of the
    snapshot that contains the file, starting at the byte offset `at`. `blob` is empty when no snapshot contains the
    file.
    """

    id: str
    path: str
    size: int
    version: str
    created_at: float
    source: str
    blob: str = ""
    at: int = 0

    @property
    def shown_path(self) -> str:
        """The file's path below the working folder, readable by people and models."""
        return shown_path(self.path)


class ContainerHead(Struct):
    """A container (`cntr_…`) without its contents.

    Times are seconds since the epoch, by the store's clock. `memory` is in bytes. The container expires when no client
    and no code has used it for `idle_seconds`.
    """

    id: str
    owner: str
    name: str
    created_at: float
    last_active_at: float
    idle_seconds: float
    memory: int
    runs: int = 0
    process: str = ""
    """The process that last ran code in the container. Only this process's interpreter has the variables of earlier
    runs. `runs` counts all runs of code in the container."""
    machine: str = ""
    """The machine that has the current files. Empty with SQLite."""

    def expired(self, now: float) -> bool:
        """Return whether the container was unused for longer than `idle_seconds` at the time `now`."""
        return now > self.last_active_at + self.idle_seconds


class RowContents(Struct):
    """The contents of a container: its files, and the snapshots that hold copies of them."""

    files: list[RowFile] = []
    copied: list[str] = []
    """Ids of the uploaded files that Antiphon has copied into the container. Antiphon copies no file again, even if
    code has changed the copy."""
    blobs: dict[str, int] = {}
    """Maps a snapshot's key to its size in bytes. Rows that an older version of Antiphon wrote may name several
    snapshots."""


class ContainerRow(ContainerHead):
    """A container with its contents."""

    contents: RowContents = msgspec.field(default_factory=RowContents)

    def file(self, file_id: str) -> RowFile | None:
        """Return the file with this id, or None."""
        return next((file for file in self.contents.files if file.id == file_id), None)


class SnapshotWriter(BlobWriter, Protocol):
    """Writes one snapshot. When the `async with` block ends, the store deletes the snapshot unless the caller has set
    `settled`."""

    key: str
    settled: bool


class ContainerContents(Protocol):
    """Stores snapshots in object storage, where all machines can read them. Every method raises `StoreError`."""

    def uploading(self) -> AbstractAsyncContextManager[SnapshotWriter]:
        """Begin a snapshot, and add a pending row for the snapshot."""

    async def open(self, key: str) -> BlobReader:
        """Open a snapshot."""

    async def forget(self, key: str) -> None:
        """Delete a snapshot that no row names. If the deletion fails, the store writes a log line, and the next sweep
        deletes the snapshot."""


class ContainerRows(Leased, Protocol):
    """Stores the rows of all containers. Every method may raise `StoreError`. `seconds` is the duration of a lease.

    A caller changes a container in three steps:

        row = await rows.take(container_id, holder, 30.0, owner)
        …
        await rows.put_back(row, holder)
    """

    @property
    def contents(self) -> ContainerContents | None:
        """The storage of the containers' snapshots. None with SQLite, because no other machine then needs a copy
        of the files."""

    async def make(self, row: ContainerRow, holder: str, seconds: float, *, limit: int, per_owner: int) -> ContainerRow:
        """Create a container and lease it to `holder`. The store's clock sets its creation time and its last use.

        `limit` is the maximum number of containers of all owners, and `per_owner` that of one owner. Raises
        `TooManyContainers` if a new container would exceed a maximum. Raises `ContainerInUse` if a container with this
        id exists.
        """

    async def get(self, container_id: str, owner: str | None = None) -> ContainerRow | None:
        """Return the owner's container, or None. Without `owner`, the container may belong to any owner and may have
        expired."""

    async def every(self, owner: str | None = None, *, expired: bool | None = None) -> Sequence[ContainerHead]:
        """Return containers of one or all owners, oldest first. True for `expired` selects expired containers, False
        selects unexpired containers."""

    async def count(self, owners: Sequence[str]) -> int:
        """Return the number of unexpired containers of these owners together."""

    async def take(
        self, container_id: str, holder: str, seconds: float, owner: str | None = None, *, expired: bool = False
    ) -> ContainerRow | None:
        """Take a lease on the owner's container and set its last use to now. Returns None if the owner has no such
        container.

        A caller that deletes containers passes no `owner`. Without `owner`, the method leases any owner's container.
        With `expired`, the method leases only an expired container. Raises `ContainerInUse`.
        """

    async def put_back(
        self, row: ContainerRow, holder: str, *, came: Sequence[str] = (), went: Sequence[str] = ()
    ) -> None:
        """Store the changed row, set its last use to now, and release the lease.

        `came` are the keys of the snapshots that the row newly names. `went` are the keys that the row no longer names.
        Raises `ContainerLost` if `holder` has lost the lease, or if a sweep has claimed a snapshot in `came` for
        deletion.
        """

    async def let_go(self, container_id: str, holder: str) -> None:
        """Release the lease, if `holder` has it. The row does not change."""

    async def give(self, row: ContainerRow, holder: str, owner: str) -> None:
        """Change the owner of the container. `holder` must hold the lease. The container's time of last use does not
        change. Raises `ContainerLost`."""

    async def delete(self, row: ContainerRow, holder: str) -> None:
        """Delete the container. A later sweep deletes the snapshots of the container. Raises `ContainerLost`."""


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """A client's request for a new container. `memory` is in bytes. `file_ids` are the uploaded files to copy into the
    container."""

    name: str
    memory: int
    idle_seconds: float
    file_ids: tuple[str, ...] = ()


def shown_path(path: str) -> str:
    """Return a file's sandbox path in a form that people and models can read.

    The sandbox encodes a byte that is not UTF-8 as a NUL and two hexadecimal digits. The result shows such a byte as
    `\\xff`.
    """
    return _NO_TEXT.sub(r"\\x\1", path)


def read_memory(where: str, asked: str | None, limit: int) -> int:
    """Return the number of bytes of the `memory_limit` in a client's request, at most `limit`. Without a `memory_limit`
    (`asked`), return `limit`. `where` names the request field in error messages. Raises `InvalidRequest`:
    `invalid_value` for a value that is not in `MEMORY_LIMITS`, `unsupported_value` for a value above `limit`. The
    smallest value, `1g`, is always valid.
    """
    if asked is None:
        return limit
    if asked not in MEMORY_LIMITS:
        raise InvalidRequest(
            f"Invalid value for '{where}'. Supported values are: {', '.join(MEMORY_LIMITS)}.",
            param=where,
            code="invalid_value",
        )
    if MEMORY_LIMITS[asked] > max(limit, MEMORY_LIMITS["1g"]):
        raise InvalidRequest(
            f"This server gives a container at most {limit >> 20} MiB of memory, so '{where}' cannot be {asked}.",
            param=where,
            code="unsupported_value",
        )
    return min(MEMORY_LIMITS[asked], limit)


def memory_limit(memory: int) -> str:
    """Return the smallest `memory_limit` (`1g`, `4g`, …) that is at least `memory` bytes."""
    return next((name for name, size in MEMORY_LIMITS.items() if memory <= size), "64g")
