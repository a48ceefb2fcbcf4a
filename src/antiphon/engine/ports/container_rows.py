"""What is known of each container, and who may use it now: as the sandbox and the stores see it.

Lives here: a container's row, the port `ContainerRows`, and the port `ContainerContents` for snapshots of files that
other machines must find. Not here: running code (`tools/code_interpreter/`), what clients see (`containers.py`), SQL.

Whoever uses a container holds it by a lease, under a name that is used for this once; `Leases` renews it. Where one
machine has all of the state the files lie beside the rows and that is all. Where several share it, the row says which
machine has the files as they are, and where their snapshot lies.

Invariants: one holder at a time, by the store's clock; who has lost the lease changes nothing any more. A container
that has expired does not exist, but for those who delete it. In the unit in which a row begins to name a content its
pending row goes (`files.py`), and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import Struct

from antiphon.engine.ports.files import BlobReader, BlobWriter
from antiphon.engine.ports.state import Leased


class ContainerInUse(Exception):
    """Somebody else holds the container."""


class ContainerLost(Exception):
    """Who wanted to write holds the container no longer: the lease ran out, and others may have used it since."""


class TooManyContainers(Exception):
    """There may be no more containers: of this owner (`of_owner`), or of all."""

    def __init__(self, of_owner: bool) -> None:
        super().__init__("too many containers")
        self.of_owner = of_owner


class RowFile(Struct):
    """A file that was given an id. `version` is the sandbox's on the row's machine. `blob` is the snapshot that has its
    content, from `at` on; empty: there is none."""

    id: str
    path: str
    size: int
    version: str
    created_at: float
    source: str
    blob: str = ""
    at: int = 0


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


class ContainerRows(Leased, Protocol):
    """The rows of all containers. Every method raises `StoreError`; leases are in seconds from now."""

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


@dataclass(frozen=True, slots=True)
class SharedContainers:
    """Containers of several machines."""

    rows: ContainerRows
    contents: ContainerContents
