"""The port for an operator's work on stored data: count, export and delete, for one owner or all.

Lives here: the port, and how an owner's data are counted and exported. Not here: the command line
(`commands/admin/command.py`), the contents of files (their own store), containers.

Invariant: everything that has an owner is counted, exported and deleted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class OwnerCounts:
    """How much there is of one owner."""

    owner: str
    responses: int = 0
    conversations: int = 0
    prompts: int = 0
    files: int = 0
    vector_stores: int = 0


@dataclass(frozen=True, slots=True)
class ExportedRow:
    """One row of an owner's: its kind, the two values that name it, and its JSON, decoded."""

    kind: str
    id: Any
    of: Any
    data: Any


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A database that was rewritten: its size in bytes before and after."""

    name: str
    before: int
    after: int


class OwnerData(Protocol):
    """The data of all owners. For commands: a method may take long, and block the event loop meanwhile.

    Every method raises `StoreError`.
    """

    async def owners(self) -> list[OwnerCounts]:
        """Every owner of anything, in the order of their names."""

    def export(self, owner: str) -> AsyncIterator[ExportedRow]:
        """Everything of an owner but files, kind by kind, each database as it was at one moment."""

    async def delete(self, owner: str) -> int:
        """Delete everything of an owner but files, in pieces that let requests through; how many chains,
        conversations, prompts, vector stores, keys and days of usage went."""

    async def vacuum(self) -> list[Shrunk]:
        """Give unused space back; writers wait while it runs."""

    async def aclose(self) -> None:
        """Close what was opened."""
