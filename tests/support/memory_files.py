"""A `FileStore` in memory, for tests of all code above the store.

Lives here: the semantics of the store on disk, without durability. The store passes the contract tests of files, so
code that works with it also works with the real store.

Invariant: stored values are immutable, so a caller cannot change stored data.
"""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.files import FileFields, FileQuery, StoredFile
from antiphon.engine.ports.state import Page
from antiphon.errors import OwnerFull
from antiphon.stores.files import FileStore, FileUpload

LEAST_ROOM = 4096


class MemoryFileStore(FileStore):
    """Stores files in a dict."""

    def __init__(self, *, owner_bytes: int | None = None, clock: Callable[[], float]) -> None:
        self.all: dict[tuple[str, str], tuple[StoredFile, bytes]] = {}
        self.limit = owner_bytes
        self.on_expired: Callable[[str, str], Awaitable[None]] | None = None
        self._clock = clock

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[_Upload]:
        yield _Upload(self)

    async def get(self, owner: str, file_id: str) -> StoredFile | None:
        found = self._present(owner, file_id)
        return found[0] if found else None

    async def open(self, owner: str, file_id: str) -> _Open | None:
        found = self._present(owner, file_id)
        return _Open(*found) if found else None

    async def list(self, owner: str, query: FileQuery) -> Page[StoredFile] | None:
        files = [file for (whose, name), (file, _) in self.all.items() if whose == owner and self._present(owner, name)]
        files.sort(key=lambda file: (file.created_at, file.id), reverse=query.descending)
        if query.after is not None:
            places = [place for place, file in enumerate(files) if file.id == query.after]
            if not places:
                return None
            files = files[places[0] + 1 :]
        kept = [file for file in files if query.purpose in (None, file.purpose)]
        return Page(tuple(kept[: query.limit]), has_more=len(kept) > query.limit)

    async def delete(self, owner: str, file_id: str) -> bool:
        return self._present(owner, file_id) is not None and bool(self.all.pop((owner, file_id)))

    async def used(self, owner: str) -> int:
        return self.total(owner)

    async def stored_bytes(self) -> int:
        return sum(file.size for file, _ in self.all.values())

    async def aclose(self) -> None:
        pass

    async def sweep(self) -> tuple[int, int]:
        expired = [name for name in self.all if self._present(*name) is None]
        for name in expired:
            if self.on_expired is not None:
                await self.on_expired(*name)
            del self.all[name]
        return len(expired), 0

    def total(self, owner: str) -> int:
        return sum(max(file.size, LEAST_ROOM) for (whose, _), (file, _) in self.all.items() if whose == owner)

    def _present(self, owner: str, file_id: str) -> tuple[StoredFile, bytes] | None:
        found = self.all.get((owner, file_id))
        if found is not None and found[0].expires_at is not None and found[0].expires_at <= self._clock():
            return None
        return found


class _Upload(FileUpload):
    def __init__(self, store: MemoryFileStore) -> None:
        self._store = store
        self._parts: builtins.list[bytes] = []
        self._size = 0

    @property
    def size(self) -> int:
        return self._size

    async def write(self, data: bytes) -> None:
        self._parts.append(bytes(data))
        self._size += len(data)

    async def keep(
        self,
        owner: str,
        fields: FileFields,
        once: OnceOnly | None = None,
        *,
        check: Callable[[int], Awaitable[None]] | None = None,
    ) -> StoredFile:
        if check is not None:
            await check(self.size)
        limit = self._store.limit
        if limit is not None and max(self.size, LEAST_ROOM) + self._store.total(owner) > limit:
            raise OwnerFull(limit, "files.owner_bytes", "files, including this one,", "Delete files")
        data = b"".join(self._parts)
        file = StoredFile(
            fields.id,
            fields.name,
            fields.purpose,
            fields.media_type,
            len(data),
            hashlib.sha256(data).hexdigest(),
            round(fields.created_at, 3),
            round(fields.expires_at, 3) if fields.expires_at is not None else None,
        )
        self._store.all[owner, fields.id] = file, data
        return file


class _Open:
    def __init__(self, file: StoredFile, data: bytes) -> None:
        self.file = file
        self._data = data

    @property
    def path(self) -> Path | None:
        return None

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        return self._data[start:] if limit is None else self._data[start : start + limit]

    async def aclose(self) -> None:
        self._data = b""
