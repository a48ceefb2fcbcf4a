"""Containers: machines of a sandbox that belong to somebody, and expire.

Lives here: files in from `/v1/files`, the ids of files, runs, expiry. Not here: the sandbox (`port.py`), who may use a
container now (`uses.py`), what is known of it (`ContainerRows`), in which process code runs (`neighbours.py`), files of
containers that several machines share (`mirror.py`), what the model sees (`tool.py`).

A container's variables live as long as its interpreter: until it fails, is ended to make room for others, or its
process ends; whichever process of a machine is asked, the code runs there. Its files live as long as the container. The
same container is never used twice at once.

Invariant: no method touches a container before it is known to be the owner's and not expired.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

import structlog

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.container_rows import (
    ContainerHead,
    ContainerRow,
    ContainerRows,
    NewContainer,
    RowFile,
    TooManyContainers,
)
from antiphon.engine.ports.containers import Container, ContainerFailed, ContainerFile, ContainerRequest
from antiphon.engine.ports.files import FileStore, OpenFile
from antiphon.engine.running.waiting import to_the_end
from antiphon.errors import NotFound, StoreError
from antiphon.ids import Clock, IdFactory, is_name, new_id, now
from antiphon.tools.code_interpreter.mirror import Mirror
from antiphon.tools.code_interpreter.neighbours import Neighbours
from antiphon.tools.code_interpreter.port import Run, Sandbox, SandboxFailed, SandboxFile, shown_path
from antiphon.tools.code_interpreter.records import PREFIX
from antiphon.tools.code_interpreter.uses import PATIENCE, InUse, Use, Uses

_log = structlog.get_logger(__name__)

_PIECE = 1 << 20
_MAX_NAME = 255
_Files = list[RowFile]


@dataclass(frozen=True, slots=True)
class Ran:
    """Code that was run: how it went, and the files that it made or changed. `forgot`: the variables of earlier runs
    were gone already; `left_behind` are paths of files that could not be brought from another machine."""

    run: Run
    files: tuple[ContainerFile, ...]
    forgot: bool = False
    left_behind: tuple[str, ...] = ()


class ContainerRooms:
    """`Containers` over a sandbox. `limit` is how many there may be at once, `per_owner` how many of one owner."""

    def __init__(
        self,
        sandbox: Sandbox,
        rows: ContainerRows,
        files: FileStore | None,
        *,
        limit: int = 200,
        per_owner: int = 50,
        make_id: IdFactory = new_id,
        clock: Clock = now,
        neighbours: Neighbours | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """Without `files` there are no uploaded files to copy; without `neighbours`, which close with this, code runs
        in this process alone; without `mirror` all who see the rows see the same files."""
        self._sandbox = sandbox
        self._rows = rows
        self._uploaded = files
        self._limit = limit
        self._per_owner = per_owner
        self._neighbours = neighbours or Neighbours(sandbox, CodeInterpreterSettings())
        self._mirror = mirror
        self._uses = Uses(rows, self._neighbours.process)
        self._new_id = make_id
        self._clock = clock

    @property
    def interpreters(self) -> int:
        """How many interpreters live."""
        return self._sandbox.interpreters

    def new_container_id(self) -> str:
        """An id for a container that is made when it is first used."""
        return self._new_id(PREFIX)

    async def create(self, owner: str, request: ContainerRequest) -> Container:
        """See `Containers.create`."""
        async with self._uses.alone(self.new_container_id()) as use:
            row = await self._make(use, owner, request)
            await self._keep(row, use)
            return _shown(row)

    async def get(self, owner: str, container_id: str) -> Container | None:
        """See `Containers.get`."""
        row = await self._rows.get(owner, container_id)
        return _shown(row) if row is not None else None

    async def list(self, owner: str) -> Sequence[Container]:
        """See `Containers.list`."""
        return [_shown(head) for head in await self._rows.list(owner)]

    async def delete(self, owner: str, container_id: str) -> bool:
        """See `Containers.delete`."""
        if await self._rows.get(owner, container_id) is None:
            return False
        async with self._uses.alone(container_id) as use:
            row = await use.take(lambda *held: self._rows.take(owner, container_id, *held))
            if row is None:
                return False
            await self._drop(row, use)
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
        if make is None and await self._rows.get(owner, container_id) is None:
            return None
        async with self._using(owner, container_id, make) as record:
            if record is None:
                return None
            left_behind = await self._bring(record)
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
        return Ran(run, tuple(_shown_file(record, file) for file in changed), forgot, left_behind)

    async def files(self, owner: str, container_id: str) -> Sequence[ContainerFile] | None:
        """See `Containers.files`."""
        if await self._rows.get(owner, container_id) is None:
            return None
        async with self._using(owner, container_id) as record:
            if record is None:
                return None
            if self._is_here(record):
                await self._look(record)
        return [_shown_file(record, file) for file in record.contents.files]

    async def put(self, owner: str, container_id: str, name: str, pieces: AsyncIterator[bytes]) -> ContainerFile | None:
        """See `Containers.put`."""
        if await self._rows.get(owner, container_id) is None:
            return None
        async with self._using(owner, container_id) as record:
            if record is None:
                return None
            await self._bring(record)
            file = await self._write(record, name, pieces, "user")
        return _shown_file(record, file)

    async def put_uploaded(self, owner: str, container_id: str, file_id: str) -> ContainerFile | None:
        """See `Containers.put_uploaded`."""
        if await self._rows.get(owner, container_id) is None:
            return None
        async with self._using(owner, container_id) as record:
            if record is None:
                return None
            await self._bring(record)
            file = await self._copy(record, file_id)
        return _shown_file(record, file)

    async def read(self, owner: str, container_id: str, file_id: str, start: int, limit: int) -> bytes | None:
        """See `Containers.read`."""
        record = await self._rows.get(owner, container_id)
        file = record.file(file_id) if record is not None else None
        if record is None or file is None:
            return None
        if self._mirror is not None and not self._mirror.is_here(record):
            return await self._mirror.read(file, start, limit)
        try:
            return await self._sandbox.read(container_id, file.path, start, limit)
        except SandboxFailed:
            return None

    async def remove(self, owner: str, container_id: str, file_id: str) -> bool:
        """See `Containers.remove`."""
        if await self._rows.get(owner, container_id) is None:
            return False
        async with self._using(owner, container_id) as record:
            file = record.file(file_id) if record is not None else None
            if record is None or file is None:
                return False
            await self._bring(record)
            if file not in record.contents.files:
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
        for container_id in await self._rows.expired():
            with suppress(InUse):
                gone += await self._dropped(container_id, patience=0.0, expired=True)
        # Left behind by a process that died while it deleted them, or deleted by another machine.
        for key in await self._rows.missing(await self._sandbox.keys()):
            with suppress(InUse):
                async with self._uses.alone(key, patience=0.0):
                    if await self._rows.missing([key]):
                        await self._sandbox.delete(key)
        return (gone,)

    async def drop(self, container_id: str) -> None:
        """Delete a container, whoever's it is, when nobody uses it any more. Raises `ContainerFailed`."""
        await self._dropped(container_id)

    async def finished(self, seconds: float) -> bool:
        """Wait for code that other processes have running here; False when so many seconds were not enough."""
        return await self._neighbours.finished(seconds)

    async def aclose(self) -> None:
        """End all interpreters."""
        await self._neighbours.aclose()
        await self._sandbox.aclose()
        await self._uses.aclose()

    def _is_here(self, row: ContainerRow) -> bool:
        return self._mirror is None or self._mirror.is_here(row)

    async def _dropped(self, container_id: str, *, expired: bool = False, patience: float = PATIENCE) -> bool:
        async with self._uses.alone(container_id, patience=patience) as use:
            row = await use.take(lambda *held: self._rows.take_to_delete(container_id, *held, expired=expired))
            if row is not None:
                await self._drop(row, use)
            return row is not None

    async def _drop(self, row: ContainerRow, use: Use) -> None:
        await use.delete(row)
        await self._neighbours.delete(row.process, row.id)
        if self._mirror is not None:
            await self._mirror.forget(row.contents.blobs)

    @asynccontextmanager
    async def _using(
        self, owner: str, container_id: str, make: ContainerRequest | None = None
    ) -> AsyncIterator[ContainerRow | None]:
        """The row, as it is once nobody else uses it; using it keeps it from expiring."""
        async with self._uses.alone(container_id) as use:
            row = await use.take(lambda *held: self._rows.take(owner, container_id, *held))
            if row is None and make is not None:
                row = await self._make(use, owner, make)
            if row is None:
                yield None
                return
            try:
                yield row
            except BaseException:
                await self._put_back_after_failure(row, use)
                raise
            await self._keep(row, use)

    async def _put_back_after_failure(self, row: ContainerRow, use: Use) -> None:
        # What failed is what the caller is told.
        try:
            await use.put_back(row)
        except (ContainerFailed, StoreError) as error:
            _log.warning("container_not_kept", container=row.id, error=str(error))

    async def _bring(self, row: ContainerRow) -> tuple[str, ...]:
        """Have the files on this machine; the paths of those that cannot be had."""
        if self._mirror is None:
            return ()
        try:
            return tuple(shown_path(path) for path in await self._mirror.bring(row))
        except (SandboxFailed, StoreError) as failure:
            _log.error("container_files_not_brought", container=row.id, machine=row.machine, error=str(failure))
            raise ContainerFailed(
                "The container's files are on another machine and cannot be brought here at the moment. Try again."
            ) from None

    async def _keep(self, row: ContainerRow, use: Use) -> None:
        if self._mirror is not None and self._mirror.is_here(row):
            await self._mirror.keep(row, use)
        else:
            await use.put_back(row)

    async def _make(self, use: Use, owner: str, request: ContainerRequest) -> ContainerRow:
        """A container that is in use from now on."""
        for file_id in request.file_ids:
            await self.check_uploaded(owner, file_id)
        new = NewContainer(use.container_id, owner, request.name, request.idle_seconds, request.memory)

        async def make(holder: str, seconds: float) -> ContainerRow:
            return await self._rows.make(new, holder, seconds, limit=self._limit, per_owner=self._per_owner)

        try:
            row = await use.take(make)
        except TooManyContainers as error:
            if error.of_owner:
                raise ContainerFailed("You have too many containers. Delete those that you no longer need.") from None
            raise ContainerFailed("There are too many containers at the moment. Try again later.") from None
        assert row is not None
        await self._bring(row)
        try:
            for file_id in request.file_ids:
                await self._copy(row, file_id)
        except BaseException:
            await to_the_end(self._drop(row, use))
            raise
        return row

    async def _look(self, record: ContainerRow) -> _Files:
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

    async def _copy(self, record: ContainerRow, file_id: str) -> RowFile:
        name = await self.check_uploaded(record.owner, file_id)
        opened = await self._uploaded.open(record.owner, file_id) if self._uploaded is not None else None
        if opened is None:
            raise NotFound(f"No such File object: {file_id[:128]}", param="file_ids")
        async with opened:
            file = await self._write(record, name, _pieces(opened), "user")
        record.contents.copied.append(file_id)
        return file

    async def _write(self, record: ContainerRow, name: str, pieces: AsyncIterator[bytes], source: str) -> RowFile:
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

    def _recorded(self, found: SandboxFile, source: str) -> RowFile:
        return RowFile(self._new_id("cfile"), found.path, found.size, found.version, self._clock(), source)


async def _pieces(opened: OpenFile) -> AsyncIterator[bytes]:
    start = 0
    while piece := await opened.read(start, _PIECE):
        start += len(piece)
        yield piece


def _shown(record: ContainerHead) -> Container:
    return Container(
        record.id, record.name, record.created_at, record.last_active_at, record.idle_seconds, record.memory
    )


def _shown_file(record: ContainerRow, file: RowFile) -> ContainerFile:
    return ContainerFile(file.id, record.id, shown_path(file.path), file.size, file.created_at, file.source)
