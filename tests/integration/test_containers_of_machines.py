"""Containers of two machines with one PostgreSQL and one storage: files are found on the other one, variables are not,
and nothing is left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.containers import ContainerFailed, ContainerRequest
from antiphon.engine.ports.files import FileFields
from antiphon.errors import StoreError
from antiphon.stores.blobs.disk import DiskBlobReader, DiskBlobs
from antiphon.stores.blobs.pending import PendingBlobs, PendingRows
from antiphon.stores.postgres.containers import PostgresContainerRows
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.owners import OwnersContainers
from antiphon.tools.code_interpreter.sharing import Snapshots
from tests.support.memory_files import MemoryFileStore
from tests.support.memory_sandbox import MemorySandbox
from tests.support.postgres import PATIENT

OWNER = "b:alice"
REQUEST = ContainerRequest("n", 1 << 30, 600.0)
ROOM = 1_000


class Blobs(DiskBlobs):
    """Contents that can be out of reach, and that are counted."""

    away = False
    opened = 0

    async def open(self, key: str) -> DiskBlobReader:
        if self.away:
            raise StoreError("The bucket cannot be reached.")
        self.opened += 1
        return await super().open(key)

    def writing(self, key: str) -> Any:
        if self.away:
            raise StoreError("The bucket cannot be reached.")
        return super().writing(key)


class Setup:
    """Two machines: everything of theirs but the database and the storage is their own."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.blobs = Blobs(folder / "blobs")
        self.pending = PendingBlobs(PendingRows(PostgresTables(database)), self.blobs, lease=900.0)
        self.shared = PostgresContainerRows(PostgresTables(database), self.pending)
        self.uploaded = MemoryFileStore(clock=lambda: 0.0)
        self.sandboxes = [MemorySandbox(), MemorySandbox()]
        self.rooms = [self.rooms_of(machine) for machine in range(2)]

    def rooms_of(self, machine: int, **lease: Any) -> ContainerRooms:
        """A process of this machine."""
        sandbox = self.sandboxes[machine]
        snapshots = Snapshots(sandbox, self.pending, f"machine-{machine}", ROOM)
        return ContainerRooms(sandbox, self.shared, self.uploaded, snapshots=snapshots, **lease)

    async def keys(self) -> set[str]:
        """What lies in the storage."""
        listed = self.blobs.keys()
        return {key async for keys in listed for key in keys}

    async def named(self) -> set[str]:
        """What rows name."""
        rows = [await self.shared.get(head.id) for head in await self.shared.every(OWNER)]
        return {key for row in rows if row is not None for key in row.contents.blobs}

    async def run(self, machine: int, container_id: str, code: str) -> tuple[str, bool]:
        """What it printed, and whether the model is told of a new interpreter."""
        ran = await self.rooms[machine].run(OWNER, container_id, code)
        assert ran is not None
        return ran.run.output, ran.forgot


@pytest.fixture
async def setup(postgres_url: str, tmp_path: Path) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as opened:
        database = await opened.enter_async_context(aclosing(Database(postgres_url, PATIENT)))
        made = Setup(database, tmp_path)
        await opened.enter_async_context(aclosing(made.pending))
        for rooms in made.rooms:
            await opened.enter_async_context(aclosing(rooms))
        yield made
        # Whatever happened: nothing lies there that no row names, and nothing is pending.
        await made.pending.sweep()
        assert await made.keys() == await made.named()


async def _bytes(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_files_go_with_the_container_and_variables_stay_behind(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    assert await setup.run(0, made.id, "x = 1; open('a', 'w').write('A'); open('b', 'w').write('B')") == ("1\n", False)
    assert await setup.run(0, made.id, "x") == ("1\n", False)
    # One content for a run, and none where nothing changed.
    assert len(await setup.keys()) == 1
    assert await setup.run(1, made.id, "print('x' in globals(), open('a').read(), open('b').read())") == (
        "False A B\n",
        True,
    )
    assert await setup.run(1, made.id, "y = 2; open('a', 'w').write('AA')") == ("2\n", False)
    assert await setup.run(0, made.id, "print('y' in globals(), open('a').read(), open('b').read())") == (
        "False AA B\n",
        True,
    )
    listed = await setup.rooms[1].files(OWNER, made.id)
    assert listed is not None and [(one.path, one.size) for one in listed] == [("a", 2), ("b", 1)]


async def test_a_run_that_changes_a_file_ends_with_a_snapshot_of_all(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    await setup.run(0, made.id, "for n in range(9): _ = open(f'f{n}', 'w').write(str(n))")
    (first,) = await setup.keys()
    # Nothing changed: it stays.
    await setup.run(0, made.id, "1")
    assert await setup.keys() == {first}
    await setup.run(1, made.id, "_ = open('f1', 'w').write('changed')")
    (second,) = await setup.keys()
    assert second != first and (await setup.blobs.open(second)).size == 8 + len("changed")
    # A machine that has not the newest one fetches it whole, by one reader.
    setup.blobs.opened = 0
    await setup.run(0, made.id, "1")
    assert setup.blobs.opened == 1
    await setup.run(0, made.id, "1")
    assert setup.blobs.opened == 1 and await setup.keys() == {second}


async def test_what_is_deleted_there_is_deleted_here(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    file = await setup.rooms[0].put(OWNER, made.id, "gone", _bytes(b"x"))
    await setup.run(0, made.id, "_ = open('kept', 'w').write('k')")
    await setup.run(1, made.id, "1")
    assert file is not None and await setup.rooms[1].remove(OWNER, made.id, file.id)
    await setup.run(0, made.id, "1")
    assert set(setup.sandboxes[0].files[made.id]) == {"kept"}
    # The content that held it alone is gone too.
    assert len(await setup.keys()) == 1


async def test_a_file_is_read_wherever_it_lies(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    await setup.rooms[0].put(OWNER, made.id, "first", _bytes(b"0123456789"))
    await setup.run(0, made.id, "_ = open('second', 'w').write('abcdef')")
    files = await setup.rooms[1].files(OWNER, made.id)
    assert files is not None and setup.sandboxes[1].files == {}
    for file, data in zip(files, (b"0123456789", b"abcdef"), strict=True):
        for rooms in setup.rooms:
            assert await rooms.read(OWNER, made.id, file.id, 0, 99) == data
            assert await rooms.read(OWNER, made.id, file.id, 2, 3) == data[2:5]
            assert await rooms.read(OWNER, made.id, file.id, 99, 3) == b""
            assert await rooms.read("b:bob", made.id, file.id, 0, 99) is None


async def test_copies_stay_within_their_room(setup: Setup) -> None:
    """However runs change files: contents with little left in them are written anew."""
    made = await setup.rooms[0].create(OWNER, REQUEST)
    # Each content keeps one file that no later one has.
    for turn in range(9):
        await setup.run(0, made.id, f"for n in range({turn}, 9): _ = open(f'f{{n}}', 'w').write('{turn}' * 100)")
        assert sum([(await setup.blobs.open(key)).size for key in await setup.keys()]) <= ROOM
    output, _ = await setup.run(1, made.id, "print(*(open(f'f{n}').read()[-1] for n in range(9)))")
    assert output == "0 1 2 3 4 5 6 7 8\n"


async def test_what_is_larger_than_the_room_has_no_copy(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    await setup.run(0, made.id, f"_ = open('large', 'w').write('x' * {ROOM + 1}); _ = open('small', 'w').write('s')")
    await setup.run(0, made.id, "1")
    assert len(await setup.keys()) == 1
    ran = await setup.rooms[1].run(OWNER, made.id, "open('small').read()")
    assert ran is not None and (ran.run.output, ran.forgot, ran.left_behind) == ("'s'\n", True, ("large",))
    files = await setup.rooms[1].files(OWNER, made.id)
    assert files is not None and [file.path for file in files] == ["small"]


async def test_a_machine_waits_for_another_one_and_not_for_ever(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    setup.sandboxes[0].hangs = True
    running = asyncio.create_task(setup.rooms[0].run(OWNER, made.id, "1"))
    await asyncio.wait_for(setup.sandboxes[0].begun.wait(), 30)
    async with setup.rooms[1].uses.alone(made.id, patience=0.1) as use:
        with pytest.raises(ContainerFailed, match="in use"):
            await use.take(lambda holder, seconds: setup.shared.take(made.id, holder, seconds, OWNER))
    waiting = asyncio.create_task(setup.run(1, made.id, "2"))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    assert await asyncio.wait_for(waiting, 30) == ("2\n", False)


async def test_what_a_machine_does_after_its_lease_is_lost_changes_nothing(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    await setup.run(0, made.id, "_ = open('a', 'w').write('before')")
    setup.sandboxes[0].hangs = True
    running = asyncio.create_task(setup.rooms[0].run(OWNER, made.id, "1"))
    setup.sandboxes[0].begun.clear()
    await asyncio.wait_for(setup.sandboxes[0].begun.wait(), 30)
    # It stands still, and its lease is over.
    await setup.database.write("UPDATE containers SET held_until = now() - interval '1 second'")
    assert await setup.run(1, made.id, "_ = open('a', 'w').write('after')") == ("", True)
    running.cancel()
    await asyncio.wait({running})
    setup.sandboxes[0].hangs = False
    assert await setup.run(0, made.id, "open('a').read()") == ("'after'\n", True)


async def test_a_late_end_is_an_error_and_leaves_no_copy(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    setup.sandboxes[0].hangs = True
    running = asyncio.create_task(setup.rooms[0].run(OWNER, made.id, "_ = open('a', 'w').write('late')"))
    await asyncio.wait_for(setup.sandboxes[0].begun.wait(), 30)
    await setup.database.write("UPDATE containers SET held_by = 'another'")
    setup.sandboxes[0].go_on.set()
    with pytest.raises(ContainerFailed, match="was stalled for so long"):
        await running
    assert await setup.named() == set()
    # No row names it: it goes when its lease is over.
    await setup.database.write("UPDATE pending_blobs SET lease_until = now() - interval '1 second'")
    await setup.pending.sweep()
    assert await setup.keys() == set()
    await setup.database.write("UPDATE containers SET held_by = NULL")


async def test_uploads_of_a_new_container_are_found_elsewhere(setup: Setup) -> None:
    async with setup.uploaded.uploading() as upload:
        await upload.write(b"from files")
        await upload.keep(OWNER, FileFields("file-1", "in.txt", "user_data", "text/plain", 0.0))
    made = await setup.rooms[0].create(OWNER, ContainerRequest("n", 1 << 30, 600.0, ("file-1",)))
    assert await setup.run(1, made.id, "open('in.txt').read()") == ("'from files'\n", False)


async def test_a_storage_out_of_reach(setup: Setup) -> None:
    """The run is the client's all the same; a machine without the files says so; the next use copies them."""
    made = await setup.rooms[0].create(OWNER, REQUEST)
    await setup.run(0, made.id, "_ = open('a', 'w').write('old')")
    await setup.run(0, made.id, "_ = open('b', 'w').write('old')")
    setup.blobs.away = True
    with pytest.raises(ContainerFailed, match="on another machine, and this machine cannot copy"):
        await setup.run(1, made.id, "1")
    assert await setup.run(0, made.id, "open('a', 'w').write('new')") == ("3\n", False)
    assert await setup.run(0, made.id, "open('a').read()") == ("'new'\n", False)
    setup.blobs.away = False
    assert await setup.run(0, made.id, "1") == ("1\n", False)
    assert await setup.run(1, made.id, "open('a').read()") == ("'new'\n", True)


@pytest.mark.parametrize("way", ["deleted", "expired", "by the operator"])
async def test_what_goes_leaves_nothing_anywhere(setup: Setup, way: str) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    await setup.run(0, made.id, "_ = open('a', 'w').write('A')")
    await setup.run(1, made.id, "_ = open('b', 'w').write('B')")
    if way == "deleted":
        assert await setup.rooms[1].delete(OWNER, made.id)
    elif way == "expired":
        await setup.database.write("UPDATE containers SET last_active_at = now() - interval '1 day'")
        assert await setup.rooms[1].sweep() == (1,)
    else:
        owners = OwnersContainers(setup.folder, setup.shared)
        assert await owners.count() == {OWNER: 1}
        assert [(row[0], row[3].get("path")) for row in await owners.export(OWNER)] == [
            ("containers", None),
            ("container_files", "a"),
            ("container_files", "b"),
        ]
        copied = [(path, b"".join([part async for part in parts])) async for _, path, parts in owners.contents(OWNER)]
        assert copied == [("a", b"A"), ("b", b"B")]
        assert await owners.delete(OWNER) == 1
    assert await setup.keys() == set()
    for rooms in setup.rooms:
        assert await rooms.sweep() == (0,)
    assert [sandbox.files for sandbox in setup.sandboxes] == [{}, {}]


async def test_a_crash_while_a_copy_is_written_leaves_it_to_the_sweep(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    key = "0" * 48
    await PendingRows(PostgresTables(setup.database)).begin(key, 60)
    async with setup.blobs.writing(key) as half:
        await half.write(b"half a copy")
        await half.seal()
    await setup.run(0, made.id, "_ = open('a', 'w').write('A')")
    await setup.database.write("UPDATE pending_blobs SET lease_until = now() - interval '1 second'")
    assert await setup.pending.sweep() == 1 and len(await setup.keys()) == 1


async def test_leases_are_renewed_while_code_runs(setup: Setup) -> None:
    made = await setup.rooms[0].create(OWNER, REQUEST)
    setup.sandboxes[0].hangs = True
    async with aclosing(setup.rooms_of(0, lease=3.0)) as rooms:
        running = asyncio.create_task(rooms.run(OWNER, made.id, "1"))
        await asyncio.wait_for(setup.sandboxes[0].begun.wait(), 30)
        ((first,),) = await setup.database.fetch("SELECT held_until FROM containers")
        async with asyncio.timeout(30):
            while not (await setup.database.fetch("SELECT held_until > $1 FROM containers", first))[0][0]:
                await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.wait({running})
