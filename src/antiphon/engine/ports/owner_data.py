"""Defines the port through which an operator counts, exports, moves and deletes the stored data of one owner or of all.

Lives here: the port, and the values of counts and exports. Not here: the command line
(`commands/admin/command.py`), the contents of files (their own store), containers.

Invariant: the operations cover every stored object that has an owner.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class OwnerCounts:
    """The number of one owner's stored objects, by kind."""

    owner: str
    responses: int = 0
    conversations: int = 0
    prompts: int = 0
    files: int = 0
    vector_stores: int = 0


@dataclass(frozen=True, slots=True)
class ExportedRow:
    """One exported row of an owner: its type, the two values that identify the row, and its decoded JSON."""

    kind: str
    id: Any
    of: Any
    data: Any


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The result of a vacuum of one database: its size in bytes before and after the vacuum."""

    name: str
    before: int
    after: int


class NotMovable(Exception):
    """Data of one owner cannot move to another owner now. The message tells the operator why."""


class OwnerData(Protocol):
    """Access to the data of all owners.

    Only commands use this port, so a method may take long and block the event loop. Every method raises `StoreError`.
    """

    async def owners(self) -> list[OwnerCounts]:
        """Return the counts of every owner that has stored objects, sorted by owner."""

    def export(self, owner: str) -> AsyncIterator[ExportedRow]:
        """Yield an owner's stored rows except files, kind by kind. The rows of one database come from one snapshot."""

    async def delete(self, owner: str) -> int:
        """Delete an owner's stored rows except files. Batches let other requests write between two deletions.

        Returns how many chains, conversations, prompts, vector stores, keys and days of usage were deleted.
        """

    async def obstacles(self, old: str, new: str) -> list[str]:
        """Return the reasons why `move` refuses to move the data of `old` to `new` now, one sentence each. If the list
        is empty, `move` can begin.

        Ids that both owners have are an obstacle, because clients may choose ids. Work in progress is an obstacle,
        because a running request stores its result for the owner that it began with.
        """

    def move(self, old: str, new: str) -> AsyncGenerator[str]:
        """Move all data of the owner `old` to the owner `new`, except containers. Works in units
        of one transaction each, and yields the kind of the moved data after each unit.

        After an interruption, a second call moves the remaining data. Raises `NotMovable` before the
        first unit if there are obstacles. Raises `NotMovable` at the end if requests kept some of the data in use.
        """

    async def vacuum(self) -> list[Shrunk]:
        """Return the unused space in the database files to the file system. Other writers wait until the vacuum
        ends."""

    async def aclose(self) -> None:
        """Close the databases."""
