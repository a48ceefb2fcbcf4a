"""Manages containers. A container is a sandbox with files and variables that belongs to one owner and expires.

This module creates, lists, uses and deletes containers, and decides when a container expires. This module also copies
uploaded files into containers, and assigns ids to files.

`local.py` implements the sandbox. `sharing.py` gives one request exclusive use of a container, and copies files between
machines. `neighbours.py` runs code in another process. Implementations of `ContainerRows` store a container's row.
`tool.py` implements the tool.

A container's files live as long as the container. A container's variables live as long as its interpreter process. The
interpreter ends when its code exceeds a limit, when the sandbox needs its slot for another container, or when the
worker process ends. All worker processes of a machine run a container's code in the same interpreter. Only one request
at a time uses a container.

Invariant: each method with an `owner` first checks that the container belongs to this owner and has not expired.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import structlog

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.containers import (
    ContainerFailed,
    ContainerHead,
    ContainerRequest,
    ContainerRow,
    ContainerRows,
    RowFile,
    shown_path,
)
from antiphon.engine.ports.files import OpenFile
from antiphon.engine.waiting import to_the_end
from antiphon.errors import NotFound, StoreError
from antiphon.ids import Clock, is_name, new_id, now
from antiphon.local_keys import local_key
from antiphon.stores.files import FileStore
from antiphon.tools.code_interpreter.disk import SandboxFailed, SandboxFile
from antiphon.tools.code_interpreter.local import HOLDS, LocalSandbox, try_out
from antiphon.tools.code_interpreter.machine import CodeRun
from antiphon.tools.code_interpreter.neighbours import Neighbours
from antiphon.tools.code_interpreter.records import PREFIX, RecordedRows, Records
from antiphon.tools.code_interpreter.sharing import LEASE_SECONDS, PATIENCE, ContainerUse, InUse, Snapshots, Uses

_log = structlog.get_logger(__name__)

_PIECE = 1 << 20
_MAX_NAME = 255
_MACHINE_DIGITS = 16
_Files = list[RowFile]


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of running code. `files`: the files that the code created or changed. `forgot`: whether the variables
    of earlier runs were lost before this run. `left_behind`: the paths of files that Antiphon could not copy from
    another machine."""

    run: CodeRun
    files: tuple[RowFile, ...]
    forgot: bool = False
    left_behind: tuple[str, ...] = ()


class ContainerRooms:
    """Manages all containers. `limit`: the maximum number of containers of all owners together. `per_owner`: the
    maximum number of containers of one owner."""

    def __init__(
        self,
        sandbox: LocalSandbox,
        rows: ContainerRows,
        files: FileStore | None,
        *,
        limit: int = 200,
        per_owner: int = 50,
        clock: Clock = now,
        neighbours: Neighbours | None = None,
        snapshots: Snapshots | None = None,
        lease: float = LEASE_SECONDS,
    ) -> None:
        """`files`: the store of uploaded files; None: containers cannot use uploaded files. `neighbours`: runs code in
        other worker processes; None: all code runs in this process. `aclose` closes `neighbours`. Without `snapshots`,
        all processes that share `rows` must share the containers' folder. `lease`: seconds for which a request reserves
        a container without renewal."""
        self._sandbox = sandbox
        self._rows = rows
        self._uploaded = files
        self._limit = limit
        self._per_owner = per_owner
        self._neighbours = neighbours or Neighbours(sandbox, CodeInterpreterSettings())
        self._snapshots = snapshots or Snapshots(sandbox)
        self.uses = Uses(rows, self._neighbours.process, lease=lease)
        """The current uses of containers."""
        self._clock = clock

    @property
    def interpreters(self) -> int:
        """The number of interpreter processes that this process started and that still run."""
        return self._sandbox.interpreters

    def new_container_id(self) -> str:
        """Generate an id for a container that the first run creates."""
        return new_id(PREFIX)

    async def create(self, owner: str, request: ContainerRequest) -> ContainerHead:
        """Create a container and copy the requested uploaded files into it. Raises `ContainerFailed`, and `NotFound` if
        an uploaded file does not exist."""
        async with self.uses.alone(self.new_container_id()) as use:
            row = await self._make(use, owner, request)
            await self._snapshots.keep(row, use)
            return row

    async def get(self, owner: str, container_id: str) -> ContainerHead | None:
        """Return the owner's container, or None if it does not exist or has expired."""
        return await self._rows.get(container_id, owner)

    async def list(self, owner: str) -> Sequence[ContainerHead]:
        """Return all unexpired containers of the owner, oldest first."""
        return await self._rows.every(owner, expired=False)

    async def count(self, owners: Sequence[str]) -> int:
        """Return the number of unexpired containers of these owners together."""
        return await self._rows.count(owners)

    async def delete(self, owner: str, container_id: str) -> bool:
        """Delete a container: end its interpreter and delete its files. Returns False if the owner has no such
        container. Raises `ContainerFailed`."""
        if await self._rows.get(container_id, owner) is None:
            return False
        return await self.drop(container_id, owner)

    async def run(
        self,
        owner: str,
        container_id: str,
        code: str,
        file_ids: Sequence[str] = (),
        make: ContainerRequest | None = None,
    ) -> Ran | None:
        """Run code in a container. The method first copies the uploaded files `file_ids` into the container, unless it
        already has them. Returns None if the owner has no such container. Raises `ContainerFailed`.

        `make`: the properties with which this call creates the container if it does not exist. With `make`, the
        `container_id` must come from `new_container_id`.
        """
        async with self._using(owner, container_id, make) as row:
            if row is None:
                return None
            left_behind = await self._bring(row)
            for file_id in file_ids:
                if file_id not in row.contents.copied:
                    await self._copy(row, file_id)
            await self._look(row)
            run, process = await self._neighbours.run(row.process, container_id, code, row.memory)
            forgot = run.fresh and row.runs > 0
            row.runs, row.process = row.runs + 1, process
            changed = await self._look(row)
        return Ran(run, tuple(changed), forgot, left_behind)

    async def files(self, owner: str, container_id: str) -> Sequence[RowFile] | None:
        """Return the files of a container. Returns None if the owner has no such container. Raises
        `ContainerFailed`."""
        async with self._using(owner, container_id) as row:
            if row is None:
                return None
            if self._snapshots.is_here(row):
                await self._look(row)
        return row.contents.files

    async def put(self, owner: str, container_id: str, name: str, pieces: AsyncIterator[bytes]) -> RowFile | None:
        """Write a file from the client into a container, and replace a file of the same name. Returns None if the owner
        has no such container. Raises `ContainerFailed`."""
        async with self._using(owner, container_id) as row:
            if row is None:
                return None
            await self._bring(row)
            return await self._write(row, name, pieces)

    async def put_uploaded(self, owner: str, container_id: str, file_id: str) -> RowFile | None:
        """Copy an uploaded file into a container. Returns None if the owner has no such container. Raises
        `ContainerFailed`, and `NotFound` if the file does not exist."""
        async with self._using(owner, container_id) as row:
            if row is None:
                return None
            await self._bring(row)
            return await self._copy(row, file_id)

    async def read(self, owner: str, container_id: str, file_id: str, start: int, limit: int) -> bytes | None:
        """Return at most `limit` bytes of a container's file from offset `start`, or None if there is no such file."""
        row = await self._rows.get(container_id, owner)
        file = row.file(file_id) if row is not None else None
        if row is None or file is None:
            return None
        return await self._snapshots.read(row, file, start, limit)

    async def remove(self, owner: str, container_id: str, file_id: str) -> bool:
        """Delete a file of a container. Returns False if there is no such file. Raises `ContainerFailed`."""
        async with self._using(owner, container_id) as row:
            file = row.file(file_id) if row is not None else None
            if row is None or file is None:
                return False
            await self._bring(row)
            if file not in row.contents.files:
                return False
            row.contents.files.remove(file)
            await self._sandbox.remove(container_id, file.path)
        return True

    async def check_uploaded(self, owner: str, file_id: str) -> str:
        """Return the name of an owner's uploaded file. Raises `NotFound`."""
        found = None
        if self._uploaded is not None and is_name(file_id):
            found = await self._uploaded.get(owner, file_id)
        if found is None:
            raise _no_file(file_id)
        return found.name

    async def sweep(self) -> tuple[int, ...]:
        """Delete expired containers that are not in use, and files on this machine that belong to no container. Returns
        the number of deleted containers, as a tuple with one element."""
        gone = 0
        for head in await self._rows.every(expired=True):
            with suppress(InUse):
                gone += await self.drop(head.id, patience=0.0, expired=True)
        # Files without a row remain when a process dies during a deletion, or when another machine deletes the
        # container.
        left = set(await self._sandbox.keys())
        for key in left.difference(head.id for head in await self._rows.every()) if left else ():
            with suppress(InUse, StoreError):
                async with self.uses.alone(key, patience=0.0):
                    if await self._rows.get(key) is None:
                        await self._sandbox.delete(key)
        return (gone,)

    async def finished(self, seconds: float) -> bool:
        """Wait at most `seconds` until this process has finished the code that other worker processes sent to it.
        Returns False on a timeout."""
        return await self._neighbours.finished(seconds)

    async def aclose(self) -> None:
        """End all interpreters. The files of the containers stay."""
        await self._neighbours.aclose()
        await self._sandbox.aclose()
        await self.uses.leases.aclose()

    async def drop(
        self, container_id: str, owner: str | None = None, *, expired: bool = False, patience: float = PATIENCE
    ) -> bool:
        """Wait until no request uses the container, then delete it. Returns False if there is no such container.
        `owner`: delete only a container of this owner. `expired`: delete only an expired container. Raises
        `ContainerFailed`."""
        async with self.uses.alone(container_id, patience=patience) as use:
            row = await use.take(
                lambda holder, seconds: self._rows.take(container_id, holder, seconds, owner, expired=expired)
            )
            if row is not None:
                await self._drop(row, use)
            return row is not None

    async def _drop(self, row: ContainerRow, use: ContainerUse) -> None:
        await use.delete(row)
        await self._neighbours.delete(row.process, row.id)
        await self._snapshots.forget(row.contents.blobs)

    @asynccontextmanager
    async def _using(
        self, owner: str, container_id: str, make: ContainerRequest | None = None
    ) -> AsyncIterator[ContainerRow | None]:
        """Wait for exclusive use of a container. Yields the container's row, or None if the owner has no such
        container. Each use restarts the idle time after which the container expires."""
        if make is None and await self._rows.get(container_id, owner) is None:
            yield None
            return
        async with self.uses.alone(container_id) as use:
            row = await use.take(lambda holder, seconds: self._rows.take(container_id, holder, seconds, owner))
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
            await self._snapshots.keep(row, use)

    async def _put_back_after_failure(self, row: ContainerRow, use: ContainerUse) -> None:
        # The caller gets the original error, so an error here only goes to the log.
        try:
            await use.put_back(row)
        except (ContainerFailed, StoreError) as error:
            _log.warning("container_not_kept", container=row.id, error=str(error))

    async def _bring(self, row: ContainerRow) -> tuple[str, ...]:
        """Copy the container's current files to this machine if another machine has them. Returns the paths of files
        that no snapshot contains."""
        try:
            return tuple(shown_path(path) for path in await self._snapshots.bring(row))
        except (SandboxFailed, StoreError) as failure:
            _log.error("container_files_not_brought", container=row.id, machine=row.machine, error=str(failure))
            raise ContainerFailed(
                "The container's files are on another machine, and this machine cannot copy them at the moment. Try "
                "again."
            ) from None

    async def _make(self, use: ContainerUse, owner: str, request: ContainerRequest) -> ContainerRow:
        """Create a container that `use` reserves, and copy the requested uploaded files into it."""
        for file_id in request.file_ids:
            await self.check_uploaded(owner, file_id)
        new = ContainerRow(use.container_id, owner, request.name, 0.0, 0.0, request.idle_seconds, request.memory)
        limits = {"limit": self._limit, "per_owner": self._per_owner}
        row = await use.take(lambda holder, seconds: self._rows.make(new, holder, seconds, **limits))
        assert row is not None
        await self._bring(row)
        try:
            for file_id in request.file_ids:
                await self._copy(row, file_id)
        except BaseException:
            await to_the_end(self._drop(row, use))
            raise
        return row

    async def _look(self, row: ContainerRow) -> _Files:
        """Update the row's list of files from the disk. Returns the files that are new or changed since the last
        update."""
        known = {file.path: file for file in row.contents.files}
        changed: _Files = []
        row.contents.files = []
        for found in await self._sandbox.list(row.id):
            file = known.get(found.path)
            if file is None or file.version != found.version:
                file = self._recorded(found, "assistant")
                changed.append(file)
            row.contents.files.append(file)
        return changed

    async def _copy(self, row: ContainerRow, file_id: str) -> RowFile:
        opened = None
        if self._uploaded is not None and is_name(file_id):
            opened = await self._uploaded.open(row.owner, file_id)
        if opened is None:
            raise _no_file(file_id)
        async with aclosing(opened):
            file = await self._write(row, opened.file.name, _pieces(opened))
        row.contents.copied.append(file_id)
        return file

    async def _write(self, row: ContainerRow, name: str, pieces: AsyncIterator[bytes]) -> RowFile:
        name = PurePosixPath(name).name
        if not name or name == ".." or len(name.encode("utf-8", "replace")) > _MAX_NAME or not name.isprintable():
            raise ContainerFailed("A file in a container cannot have this name.")
        file = self._recorded(await self._sandbox.put(row.id, name, pieces), "user")
        row.contents.files = [one for one in row.contents.files if one.path != file.path] + [file]
        return file

    def _recorded(self, found: SandboxFile, source: str) -> RowFile:
        return RowFile(new_id("cfile"), found.path, found.size, found.version, self._clock(), source)


async def open_rooms(
    chosen: CodeInterpreterSettings, folder: Path, files: FileStore | None, shared: ContainerRows | None = None
) -> ContainerRooms | None:
    """Open the containers in `folder`. Returns None if the settings disable the sandbox, or if this machine cannot
    confine code. Antiphon's log reports the second case. `shared`: the storage for container rows that several machines
    share. Without `shared`, the rows are in `folder`.

    Raises `ConfigError`.
    """
    if chosen.sandbox == "none":
        return None
    # Run the trial instead of checking versions, because kernels and container runtimes differ.
    trial = await try_out(chosen.python, folder)
    if trial.reason:
        _log.error("code_interpreter_unavailable", reason=trial.reason)
        return None
    _log.info("code_interpreter_ready", room=trial.room, holds=HOLDS[trial.room])
    sandbox = LocalSandbox(folder / "machines", chosen, trial.room)
    neighbours = Neighbours(sandbox, chosen, chosen.sockets)
    await neighbours.start()
    # The machine's name is a random key in its folder, so a machine with a new disk gets a new name.
    machine = local_key(folder, "machine").decode()[:_MACHINE_DIGITS] if shared is not None else ""
    rows = shared if shared is not None else RecordedRows(Records(folder / "records"))
    return ContainerRooms(
        sandbox,
        rows,
        files,
        limit=chosen.containers,
        per_owner=chosen.per_owner,
        neighbours=neighbours,
        snapshots=Snapshots(sandbox, rows.contents, machine, chosen.disk_bytes),
    )


async def _pieces(opened: OpenFile) -> AsyncIterator[bytes]:
    start = 0
    while piece := await opened.read(start, _PIECE):
        start += len(piece)
        yield piece


def _no_file(file_id: str) -> NotFound:
    return NotFound(f"No such File object: {file_id[:128]}", param="file_ids")
