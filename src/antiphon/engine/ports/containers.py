"""Containers in which code runs, as the tool and the API see them.

Lives here: what a file in a container is, and the port `Containers`. Not here: what is known of a container
(`container_rows.py`), running code (`tools/code_interpreter/`), the HTTP side (`api/containers.py`).

Invariant: a container belongs to one owner; one that is missing, expired or somebody else's is the same answer: None.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from antiphon.engine.ports.container_rows import ContainerHead
from antiphon.errors import InvalidRequest

MEMORY_LIMITS = {"1g": 1 << 30, "4g": 4 << 30, "16g": 16 << 30, "64g": 64 << 30}
"""The values of `memory_limit`, in bytes."""


class ContainerFailed(Exception):
    """It cannot be done in this container (a file too large, a name that cannot be); the message is for the client."""


@dataclass(frozen=True, slots=True)
class ContainerFile:
    """A file in a container: `path` below its working folder, `source` is `user` or `assistant`."""

    id: str
    container_id: str
    path: str
    size: int
    created_at: float
    source: str


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """What a new container is to be; `file_ids` are uploaded files of the owner's."""

    name: str
    memory: int
    idle_seconds: float
    file_ids: tuple[str, ...] = ()


class Containers(Protocol):
    """Containers of all owners. Every method raises `StoreError` when the storage cannot do it."""

    async def create(self, owner: str, request: ContainerRequest) -> ContainerHead:
        """Make one with these files in it. Raises `ContainerFailed`, `NotFound` for a file."""

    async def get(self, owner: str, container_id: str) -> ContainerHead | None:
        """The container, or None."""

    async def list(self, owner: str) -> Sequence[ContainerHead]:
        """All of the owner's, oldest first."""

    async def delete(self, owner: str, container_id: str) -> bool:
        """End it and delete its files; False when there is none."""

    async def files(self, owner: str, container_id: str) -> Sequence[ContainerFile] | None:
        """Its files, oldest first."""

    async def put(self, owner: str, container_id: str, name: str, pieces: AsyncIterator[bytes]) -> ContainerFile | None:
        """Write a file of the user's into it. Raises `ContainerFailed`."""

    async def put_uploaded(self, owner: str, container_id: str, file_id: str) -> ContainerFile | None:
        """Copy an uploaded file into it. Raises `ContainerFailed`, `NotFound` for the file."""

    async def read(self, owner: str, container_id: str, file_id: str, start: int, limit: int) -> bytes | None:
        """Bytes of a file; None when there is no such file."""

    async def remove(self, owner: str, container_id: str, file_id: str) -> bool:
        """Delete a file; False when there is none."""


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
