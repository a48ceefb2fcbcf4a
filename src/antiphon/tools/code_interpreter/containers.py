"""Containers: machines of a sandbox that belong to somebody, and expire.

Lives here: whose they are, one thing at a time in each, files in from `/v1/files`, the ids of files, expiry. Not here:
the sandbox (`port.py`), the records' form (`records.py`), what the model sees (`tool.py`).

A container's variables live as long as its interpreter: until it fails, is ended to make room for others, or its
process ends; whichever process is asked, the code runs there (`neighbours.py`). Its files live as long as the
container. The same container is never used twice at once, not even by two processes that share the folder of the
records.

Invariant: no method touches a container before it is known to be the owner's and not expired.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.containers import Container, ContainerFailed, ContainerFile, ContainerRequest
from antiphon.engine.ports.files import FileStore, OpenFile
from antiphon.engine.running.thread_pools import RECORDS
from antiphon.errors import NotFound
from antiphon.ids import Clock, IdFactory, is_name, new_id, now
from antiphon.tools.code_interpreter.neighbours import Neighbours
from antiphon.tools.code_interpreter.port import Run, Sandbox, SandboxFailed, SandboxFile, shown_path
from antiphon.tools.code_interpreter.records import PREFIX, Head, Record, RecordedFile, Records

_PIECE = 1 << 20
_LOOK, _PATIENCE = 0.05, 120.0
_MAX_NAME = 255
_Files = list[RecordedFile]


@dataclass(frozen=True, slots=True)
class Ran:
    """Code that was run: how it went, and the files that it made or changed. `forgot`: the variables of earlier runs
    were gone already."""

    run: Run
    files: tuple[ContainerFile, ...]
    forgot: bool = False


class _InUse(ContainerFailed):
    """Somebody else is using the container."""

    def __init__(self) -> None:
        super().__init__("The container is in use. Try again when the code that runs in it has ended.")


@dataclass(slots=True)
class _Lock:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class ContainerRooms:
    """`Containers` over a sandbox. `limit` is how many there may be at once, `per_owner` how many of one owner."""

    def __init__(
        self,
        sandbox: Sandbox,
        records: Records,
        files: FileStore | None,
        *,
        limit: int = 200,
        per_owner: int = 50,
        make_id: IdFactory = new_id,
        clock: Clock = now,
        neighbours: Neighbours | None = None,
    ) -> None:
        """Without `files` there are no uploaded files to copy; without `neighbours`, which close with this, code runs
        in this process alone."""
        self._sandbox = sandbox
        self._records = records
        self._uploaded = files
        self._limit = limit
        self._per_owner = per_owner
        self._neighbours = neighbours or Neighbours(sandbox, CodeInterpreterSettings())
        self._new_id = make_id
        self._clock = clock
        self._locks: dict[str, _Lock] = {}

    @property
    def interpreters(self) -> int:
        """How many interpreters live."""
        return self._sandbox.interpreters

    def new_container_id(self) -> str:
        """An id for a container that is made when it is first used."""
        return self._new_id(PREFIX)

    async def create(self, owner: str, request: ContainerRequest) -> Container:
        """See `Containers.create`."""
        container_id = self.new_container_id()
        async with self._alone(container_id):
            return _shown(await self._make(owner, container_id, request))

    async def get(self, owner: str, container_id: str) -> Container | None:
        """See `Containers.get`."""
        record = await self._record(owner, container_id)
        return _shown(record) if record is not None else None

    async def list(self, owner: str) -> Sequence[Container]:
        """See `Containers.list`."""
        at = self._clock()
        every = await RECORDS.run(self._records.every)
        return [_shown(record) for record in every if record.owner == owner and not record.expired(at)]

    async def delete(self, owner: str, container_id: str) -> bool:
        """See `Containers.delete`."""
        if await self._record(owner, container_id) is None:
            return False
        async with self._alone(container_id):
            if await self._record(owner, container_id) is None:
                return False
            await self._drop(container_id)
        return True

    async def run(
        self,
        owner: str,
        container_id: str,
        code: str,
        file_ids: Sequence[str] = (),
        make: ContainerRequest | None = None,
    ) -> Ran | None:
        """Run code, with these uploaded files there; None when there is no such container. Raises `ContainerFailed`.

        With `make` a container that is not there is made: its id must be one of `new_container_id`.
        """
        if make is None and await self._record(owner, container_id) is None:
            return None
        async with self._using(owner, container_id, make) as record:
            if record is None:
                return None
            for file_id in file_ids:
                if file_id not in record.contents.copied:
                    await self._copy(record, file_id)
            await self._look(record)
            try:
                run, process = await self._neighbours.run(record.process, container_id, code, record.memory)
            except SandboxFailed as failure:
                raise ContainerFailed(str(failure)) from None
            forgot = run.fresh and record.runs > 0
            record.runs, record.process = record.runs + 1, process
            changed = await self._look(record)
        return Ran(run, tuple(_shown_file(record, file) for file in changed), forgot)

    async def files(self, owner: str, container_id: str) -> Sequence[ContainerFile] | None:
        """See `Containers.files`."""
        if await self._record(owner, container_id) is None:
            return None
        async with self._using(owner, container_id) as record:
            if record is None:
                return None
            await self._look(record)
        return [_shown_file(record, file) for file in record.contents.files]

    async def put(self, owner: str, container_id: str, name: str, pieces: AsyncIterator[bytes]) -> ContainerFile | None:
        """See `Containers.put`."""
        if await self._record(owner, container_id) is None:
            return None
        async with self._using(owner, container_id) as record:
            if record is None:
                return None
            file = await self._write(record, name, pieces, "user")
        return _shown_file(record, file)

    async def put_uploaded(self, owner: str, container_id: str, file_id: str) -> ContainerFile | None:
        """See `Containers.put_uploaded`."""
        if await self._record(owner, container_id) is None:
            return None
        async with self._using(owner, container_id) as record:
            if record is None:
                return None
            file = await self._copy(record, file_id)
        return _shown_file(record, file)

    async def read(self, owner: str, container_id: str, file_id: str, start: int, limit: int) -> bytes | None:
        """See `Containers.read`."""
        record = await self._record(owner, container_id)
        file = record.file(file_id) if record is not None else None
        if file is None:
            return None
        try:
            return await self._sandbox.read(container_id, file.path, start, limit)
        except SandboxFailed:
            return None

    async def remove(self, owner: str, container_id: str, file_id: str) -> bool:
        """See `Containers.remove`."""
        if await self._record(owner, container_id) is None:
            return False
        async with self._using(owner, container_id) as record:
            file = record.file(file_id) if record is not None else None
            if record is None or file is None:
                return False
            record.contents.files.remove(file)
            try:
                await self._sandbox.remove(container_id, file.path)
            except SandboxFailed as failure:
                raise ContainerFailed(str(failure)) from None
        return True

    async def check_uploaded(self, owner: str, file_id: str) -> str:
        """The name of an uploaded file. Raises `NotFound`."""
        found = None
        if self._uploaded is not None and is_name(file_id):
            found = await self._uploaded.get(owner, file_id)
        if found is None:
            raise NotFound(f"No such File object: {file_id[:128]}", param="file_ids")
        return found.name

    async def sweep(self) -> tuple[int, ...]:
        """Delete what has expired; how many went. What somebody is using is left for the next time."""
        gone = 0
        for record in await RECORDS.run(self._records.every):
            if record.expired(self._clock()):
                with suppress(_InUse):
                    async with self._alone(record.id, patience=0.0):
                        again = await RECORDS.run(self._records.head, record.id)
                        if again is not None and again.expired(self._clock()):
                            await self._drop(record.id)
                            gone += 1
        for key in await self._sandbox.keys():
            # Left behind by a process that died while it deleted them.
            if await RECORDS.run(self._records.head, key) is None:
                with suppress(_InUse):
                    async with self._alone(key, patience=0.0):
                        if await RECORDS.run(self._records.head, key) is None:
                            await self._drop(key)
        return (gone,)

    async def drop(self, container_id: str) -> None:
        """Delete a container, whoever's it is, when nobody uses it any more. Raises `ContainerFailed`."""
        async with self._alone(container_id):
            await self._drop(container_id)

    async def finished(self, seconds: float) -> bool:
        """Wait for code that other processes have running here; False when so many seconds were not enough."""
        return await self._neighbours.finished(seconds)

    async def aclose(self) -> None:
        """End all interpreters."""
        await self._neighbours.aclose()
        await self._sandbox.aclose()

    async def _record(self, owner: str, container_id: str) -> Record | None:
        record = await RECORDS.run(self._records.get, container_id, owner)
        return record if record is not None and not record.expired(self._clock()) else None

    async def _save(self, record: Record) -> None:
        await RECORDS.run(self._records.put, record)

    async def _drop(self, container_id: str) -> None:
        head = await RECORDS.run(self._records.head, container_id)
        await RECORDS.run(self._records.delete, container_id)
        await self._neighbours.delete(head.process if head is not None else "", container_id)

    @asynccontextmanager
    async def _alone(self, container_id: str, *, patience: float = _PATIENCE) -> AsyncIterator[None]:
        """One thing at a time in a container. Raises `_InUse` when it cannot be had within so many seconds."""
        held = self._locks.setdefault(container_id, _Lock())
        held.users += 1
        deadline = asyncio.get_running_loop().time() + patience
        try:
            if held.lock.locked() and not patience:
                raise _InUse
            try:
                async with asyncio.timeout_at(deadline if patience else None):
                    await held.lock.acquire()
            except TimeoutError:
                raise _InUse from None
            try:
                # Other processes tell nobody when they are done.
                while (lock := await self._locked(container_id)) is None:
                    if asyncio.get_running_loop().time() >= deadline:
                        raise _InUse
                    await asyncio.sleep(_LOOK)
                try:
                    yield
                finally:
                    os.close(lock)
            finally:
                held.lock.release()
        finally:
            held.users -= 1
            if not held.users:
                self._locks.pop(container_id, None)

    async def _locked(self, container_id: str) -> int | None:
        """The lock that other processes see. A thread cannot be cancelled: what it got for nobody is given back."""
        taking = asyncio.ensure_future(RECORDS.run(self._records.lock, container_id))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(_give_back)
            raise

    @asynccontextmanager
    async def _using(
        self, owner: str, container_id: str, make: ContainerRequest | None = None
    ) -> AsyncIterator[Record | None]:
        """The record, read again once nobody else uses it; using it keeps it from expiring."""
        async with self._alone(container_id):
            record = await self._record(owner, container_id)
            if record is None and make is not None:
                record = await self._make(owner, container_id, make)
            if record is None:
                yield None
                return
            record.last_active_at = self._clock()
            await self._save(record)
            try:
                yield record
            finally:
                record.last_active_at = self._clock()
                await self._save(record)

    async def _make(self, owner: str, container_id: str, request: ContainerRequest) -> Record:
        for file_id in request.file_ids:
            await self.check_uploaded(owner, file_id)
        at = self._clock()
        owners = [record.owner for record in await RECORDS.run(self._records.every) if not record.expired(at)]
        if owners.count(owner) >= self._per_owner:
            raise ContainerFailed("You have too many containers. Delete those that you no longer need.")
        if len(owners) >= self._limit:
            raise ContainerFailed("There are too many containers at the moment. Try again later.")
        record = Record(container_id, owner, request.name, at, at, request.idle_seconds, request.memory)
        await self._save(record)
        try:
            for file_id in request.file_ids:
                await self._copy(record, file_id)
            await self._save(record)
        except BaseException:
            await self._drop(container_id)
            raise
        return record

    async def _look(self, record: Record) -> _Files:
        """Bring the record's files up to date; those that are new or have changed since it was looked at last."""
        known = {file.path: file for file in record.contents.files}
        changed: _Files = []
        record.contents.files = []
        for found in await self._listed(record.id):
            file = known.get(found.path)
            if file is None or file.version != found.version:
                file = self._recorded(found, "assistant")
                changed.append(file)
            record.contents.files.append(file)
        return changed

    async def _listed(self, container_id: str) -> Sequence[SandboxFile]:
        try:
            return await self._sandbox.list(container_id)
        except SandboxFailed as failure:
            raise ContainerFailed(str(failure)) from None

    async def _copy(self, record: Record, file_id: str) -> RecordedFile:
        name = await self.check_uploaded(record.owner, file_id)
        opened = await self._uploaded.open(record.owner, file_id) if self._uploaded is not None else None
        if opened is None:
            raise NotFound(f"No such File object: {file_id[:128]}", param="file_ids")
        async with opened:
            file = await self._write(record, name, _pieces(opened), "user")
        record.contents.copied.append(file_id)
        return file

    async def _write(self, record: Record, name: str, pieces: AsyncIterator[bytes], source: str) -> RecordedFile:
        name = PurePosixPath(name).name
        if not name or name == ".." or len(name.encode("utf-8", "replace")) > _MAX_NAME or not name.isprintable():
            raise ContainerFailed("This cannot be the name of a file in a container.")
        try:
            found = await self._sandbox.put(record.id, name, pieces)
        except SandboxFailed as failure:
            raise ContainerFailed(str(failure)) from None
        file = self._recorded(found, source)
        record.contents.files = [one for one in record.contents.files if one.path != found.path] + [file]
        return file

    def _recorded(self, found: SandboxFile, source: str) -> RecordedFile:
        return RecordedFile(self._new_id("cfile"), found.path, found.size, found.version, self._clock(), source)


def _give_back(taking: asyncio.Future[int | None]) -> None:
    if not taking.cancelled() and taking.exception() is None and (lock := taking.result()) is not None:
        os.close(lock)


async def _pieces(opened: OpenFile) -> AsyncIterator[bytes]:
    start = 0
    while piece := await opened.read(start, _PIECE):
        start += len(piece)
        yield piece


def _shown(record: Head) -> Container:
    return Container(
        record.id, record.name, record.created_at, record.last_active_at, record.idle_seconds, record.memory
    )


def _shown_file(record: Record, file: RecordedFile) -> ContainerFile:
    return ContainerFile(file.id, record.id, shown_path(file.path), file.size, file.created_at, file.source)
