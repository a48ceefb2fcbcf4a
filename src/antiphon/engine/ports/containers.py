"""Container records, and the port that stores them and grants exclusive use.

Lives here: a container's row, the port `ContainerRows`, what a client asks for when it makes one. Not
here: running code (`tools/code_interpreter/`), the HTTP side (`api/containers.py`), SQL.

Whoever uses a container holds it by a lease, under a name that is used for this once; `Leases` renews it. Where one
machine has all of the state the files lie beside the rows and that is all. Where several share it, the row says which
machine has the files as they are, and where their snapshot lies.

Invariants: a container belongs to one owner; one that is missing, expired or somebody else's is the same answer: None.
One holder at a time, by the store's clock; who has lost the lease changes nothing any more. A container that has
expired does not exist, but for those who delete it. In the unit in which a row begins to name a content its pending row
goes (`files.py`), and the other way round.
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
"""The values of `memory_limit`, in bytes."""


class ContainerFailed(InvalidRequest):
    """It cannot be done in this container (a file too large, a name that cannot be); the message is for the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="container_error")


class ContainerInUse(Exception):
    """Somebody else holds the container."""


class ContainerLost(Exception):
    """Who wanted to write holds the container no longer: the lease ran out, and others may have used it since."""


class TooManyContainers(ContainerFailed):
    """There may be no more containers: of this owner (`of_owner`), or of all."""

    def __init__(self, of_owner: bool) -> None:
        super().__init__(
            "You have too many containers. Delete those that you no longer need."
            if of_owner
            else "There are too many containers at the moment. Try again later."
        )
        self.of_owner = of_owner


class RowFile(Struct):
    """A file that was given an id. `path` is the sandbox's, and so is `version`, on the row's machine. `source` is
    `user` or `assistant`. `blob` is the snapshot that has its content, from `at` on; empty: there is none."""

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
        """Its path below the working folder as people and models read it."""
        return shown_path(self.path)


class ContainerHead(Struct):
    """A container, without what is in it. Times in seconds since the epoch, by the store's clock; `memory` in bytes."""

    id: str
    owner: str
    name: str
    created_at: float
    last_active_at: float
    idle_seconds: float
    memory: int
    runs: int = 0
    process: str = ""
    """How often code was run, and by which process last: its interpreter alone has the variables."""
    machine: str = ""
    """Where the files are as they are now; empty: where the row is."""

    def expired(self, now: float) -> bool:
        """Whether nobody has used it for too long."""
        return now > self.last_active_at + self.idle_seconds


class RowContents(Struct):
    """What is in a container."""

    files: list[RowFile] = []
    copied: list[str] = []
    """Ids of the uploaded files that were copied into it: each only once, whatever code has done to the copy."""
    blobs: dict[str, int] = {}
    """The snapshot, with its bytes; in rows of an older version there may be several, each with some of the files."""


class ContainerRow(ContainerHead):
    """A container with what is in it."""

    contents: RowContents = msgspec.field(default_factory=RowContents)

    def file(self, file_id: str) -> RowFile | None:
        """The file of this id."""
        return next((file for file in self.contents.files if file.id == file_id), None)


class SnapshotWriter(BlobWriter, Protocol):
    """A content on its way in. What is not `settled` when its `async with` ends is deleted."""

    key: str
    settled: bool


class ContainerContents(Protocol):
    """Where snapshots lie for all machines. Every method raises `StoreError`."""

    def uploading(self) -> AbstractAsyncContextManager[SnapshotWriter]:
        """Begin a content, with a pending row of its own."""

    async def open(self, key: str) -> BlobReader:
        """Open one."""

    async def forget(self, key: str) -> None:
        """Delete one that no row names; where that fails it is for the next sweep, and in the log."""


class ContainerRows(Leased, Protocol):
    """The rows of all containers. Every method raises `StoreError`; leases are in seconds from now."""

    @property
    def contents(self) -> ContainerContents | None:
        """Where snapshots lie, if several machines share the rows; else files lie beside the rows and that is all."""

    async def make(self, row: ContainerRow, holder: str, seconds: float, *, limit: int, per_owner: int) -> ContainerRow:
        """Make it, held, created and used now. Raises `TooManyContainers` where that would be more than `limit` of all
        or `per_owner` of its owner's, `ContainerInUse` when there is one of this id."""

    async def get(self, container_id: str, owner: str | None = None) -> ContainerRow | None:
        """The owner's container; without `owner` whoever's it is, though it has expired."""

    async def every(self, owner: str | None = None, *, expired: bool | None = None) -> Sequence[ContainerHead]:
        """All, or all of one owner; of these only those that have expired, or that have not. Oldest first."""

    async def take(
        self, container_id: str, holder: str, seconds: float, owner: str | None = None, *, expired: bool = False
    ) -> ContainerRow | None:
        """Hold the owner's container, which is a use of it; None when there is none. Without `owner` to delete it:
        whoever's it is, with `expired` only one that is. Raises `ContainerInUse`."""

    async def put_back(
        self, row: ContainerRow, holder: str, *, came: Sequence[str] = (), went: Sequence[str] = ()
    ) -> None:
        """Keep the row as it is now, its last use being now, and hold it no longer. `came` and `went` are contents that
        it names since, or no longer. Raises `ContainerLost`, also when a sweep took a content that came."""

    async def let_go(self, container_id: str, holder: str) -> None:
        """Hold it no longer, if it was held; nothing of it changes."""

    async def delete(self, row: ContainerRow, holder: str) -> None:
        """Delete it; its contents become pending ones that are taken. Raises `ContainerLost`."""


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """What a new container is to be; `file_ids` are uploaded files of the owner's."""

    name: str
    memory: int
    idle_seconds: float
    file_ids: tuple[str, ...] = ()


def shown_path(path: str) -> str:
    """The sandbox's path of a file as people and models read it: a byte that is no UTF-8, which is a NUL and two
    hexadecimal digits in the path, as an escape."""
    return _NO_TEXT.sub(r"\\x\1", path)


def read_memory(where: str, asked: str | None, limit: int) -> int:
    """Bytes for a `memory_limit`; `1g` means at most that. Raises `InvalidRequest`."""
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
            f"A container can have {limit >> 20} MiB of memory here, not {asked}.",
            param=where,
            code="unsupported_value",
        )
    return min(MEMORY_LIMITS[asked], limit)


def memory_limit(memory: int) -> str:
    """The smallest `memory_limit` that is enough for so many bytes."""
    return next((name for name, size in MEMORY_LIMITS.items() if memory <= size), "64g")
