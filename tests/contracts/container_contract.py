"""The contract tests of `ContainerRows` in every backend.

Lives here: the tests. Each kind of rows runs this suite in `test_container_rows.py`, which also simulates the age of a
container.

Invariant: a test writes through `rows` and reads through `peer`, which is a second instance on the same data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from antiphon.engine.ports.containers import (
    ContainerInUse,
    ContainerLost,
    ContainerRow,
    ContainerRows,
    RowFile,
    TooManyContainers,
)
from antiphon.ids import new_id

ALICE, BOB = "b:alice", "b:bob"
LEASE = 60.0
IDLE = 600.0
Age = Callable[[str, float], Awaitable[None]]
"""Make a container count as unused for further seconds."""


def new(owner: str = ALICE, container_id: str = "") -> ContainerRow:
    return ContainerRow(container_id or new_id("cntr"), owner, "caf\xe9 \U0001f600", 0.0, 0.0, IDLE, 5 << 30)


async def made(rows: ContainerRows, owner: str = ALICE) -> ContainerRow:
    """Create a container that no call holds."""
    row = await rows.make(new(owner), "maker", LEASE, limit=99, per_owner=99)
    await rows.put_back(row, "maker")
    return row


class ContainerRowsContract:
    """The suite. Subclasses provide `rows`, `peer` and `age`."""

    async def test_what_is_put_back_is_read(self, rows: ContainerRows, peer: ContainerRows) -> None:
        asked = new()
        row = await rows.make(asked, "one", LEASE, limit=9, per_owner=9)
        assert (row.id, row.owner, row.name, row.idle_seconds, row.memory) == (
            asked.id,
            asked.owner,
            asked.name,
            asked.idle_seconds,
            asked.memory,
        )
        assert (row.runs, row.process, row.machine, row.contents.files) == (0, "", "", [])
        row.runs, row.process, row.machine = 3, "p", "m"
        row.contents.files = [
            RowFile("cfile_1", "a\0ff/\xe9", 1 << 40, "v", 1.5, "user", "blob", 7),
            RowFile("cfile_2", "b", 0, "", 2.0, "assistant"),
        ]
        row.contents.copied = ["file-1"]
        await rows.put_back(row, "one")
        read = await peer.get(row.id, ALICE)
        assert read is not None and read.last_active_at >= read.created_at == row.created_at
        read.last_active_at = row.last_active_at
        assert read == row and read.file("cfile_2") == row.contents.files[1] and read.file("cfile_3") is None
        assert [head.id for head in await peer.every(ALICE, expired=False)] == [row.id]
        anybodys = await peer.get(row.id)
        assert anybodys is not None and anybodys.contents == row.contents

    async def test_nobody_elses_is_there(self, rows: ContainerRows, peer: ContainerRows) -> None:
        row = await made(rows)
        for owner, container_id in ((BOB, row.id), (ALICE, "cntr_none"), (ALICE, "../x"), (ALICE, "")):
            assert await peer.get(container_id, owner) is None
            assert await peer.take(container_id, "h", LEASE, owner) is None
        assert list(await peer.every(BOB, expired=False)) == [] == list(await peer.every(BOB))
        assert await peer.take(row.id, "h", LEASE, ALICE) is not None
        await peer.let_go(row.id, "h")

    async def test_one_holds_it_at_a_time(self, rows: ContainerRows, peer: ContainerRows) -> None:
        row = await rows.make(new(), "one", LEASE, limit=9, per_owner=9)
        with pytest.raises(ContainerInUse):
            await peer.take(row.id, "two", LEASE, ALICE)
        with pytest.raises(ContainerInUse):
            await peer.take(row.id, "two", LEASE)
        with pytest.raises(ContainerInUse):
            await peer.make(new(container_id=row.id), "two", LEASE, limit=9, per_owner=9)
        # Reading a container's row does not count as a use of the container.
        assert await peer.get(row.id, ALICE) is not None and await peer.take(row.id, "two", LEASE, BOB) is None
        assert await rows.renew(["one", "two"], LEASE) == {"one"}
        await rows.let_go(row.id, "one")
        taken = await peer.take(row.id, "two", LEASE, ALICE)
        assert taken is not None and await rows.renew(["one"], LEASE) == frozenset()
        with pytest.raises(ContainerLost):
            await rows.put_back(row, "one")
        with pytest.raises(ContainerLost):
            await rows.delete(row, "one")
        await rows.let_go(row.id, "one")
        with pytest.raises(ContainerInUse):
            await rows.take(row.id, "three", LEASE, ALICE)
        await peer.put_back(taken, "two")

    async def test_of_many_that_take_it_at_once_one_gets_it(self, rows: ContainerRows, peer: ContainerRows) -> None:
        row = await made(rows)

        async def take(number: int) -> bool:
            try:
                return await (rows, peer)[number % 2].take(row.id, f"h{number}", LEASE, ALICE) is not None
            except ContainerInUse:
                return False

        got = await asyncio.gather(*(take(number) for number in range(8)))
        assert sum(got) == 1
        winner = got.index(True)
        await (rows, peer)[winner % 2].let_go(row.id, f"h{winner}")

    async def test_a_container_can_be_given_to_another_owner_by_its_holder(
        self, rows: ContainerRows, peer: ContainerRows
    ) -> None:
        row = await made(rows)
        with pytest.raises(ContainerLost):
            await rows.give(row, "nobody", BOB)
        assert await rows.take(row.id, "mover", LEASE) is not None
        await rows.give(row, "mover", BOB)
        await rows.let_go(row.id, "mover")
        given = await peer.get(row.id, BOB)
        assert given is not None and given.contents == row.contents
        assert await peer.get(row.id, ALICE) is None
        assert await peer.take(row.id, "another", LEASE, BOB) is not None
        await peer.let_go(row.id, "another")

    async def test_what_is_deleted_is_gone(self, rows: ContainerRows, peer: ContainerRows) -> None:
        row = await made(rows)
        kept = await made(rows)
        taken = await rows.take(row.id, "h", LEASE, ALICE)
        assert taken is not None
        await rows.delete(taken, "h")
        assert await peer.get(row.id, ALICE) is None and await peer.take(row.id, "i", LEASE, ALICE) is None
        assert await peer.take(row.id, "i", LEASE) is None
        assert [await peer.get(one) is None for one in (row.id, kept.id, "cntr_none")] == [True, False, True]
        assert [head.id for head in await peer.every()] == [kept.id]

    async def test_an_expired_one_is_there_for_who_deletes_it(
        self, rows: ContainerRows, peer: ContainerRows, age: Age
    ) -> None:
        row, young = await made(rows), await made(rows, BOB)
        await age(row.id, IDLE - 60)
        assert await peer.get(row.id, ALICE) is not None and list(await peer.every(expired=True)) == []
        assert await peer.take(row.id, "h", LEASE, expired=True) is None
        await age(row.id, 120)
        assert await peer.get(row.id, ALICE) is None and list(await peer.every(ALICE, expired=False)) == []
        assert await peer.take(row.id, "h", LEASE, ALICE) is None
        assert [head.id for head in await peer.every(expired=True)] == [row.id] and await peer.get(row.id) is not None
        assert {head.id for head in await peer.every()} == {row.id, young.id}
        assert [one.id for one in await peer.every(ALICE)] == [row.id]
        assert await peer.take(young.id, "h", LEASE, expired=True) is None
        taken = await peer.take(row.id, "h", LEASE, expired=True)
        assert taken is not None
        await peer.delete(taken, "h")
        assert list(await rows.every(expired=True)) == []

    async def test_use_keeps_it_from_expiring(self, rows: ContainerRows, peer: ContainerRows, age: Age) -> None:
        row = await made(rows)
        for _ in range(2):
            await age(row.id, IDLE - 60)
            assert await rows.take(row.id, "h", LEASE, ALICE) is not None
            await rows.let_go(row.id, "h")
        assert await peer.get(row.id, ALICE) is not None

    async def test_so_many_there_may_be(self, rows: ContainerRows, peer: ContainerRows, age: Age) -> None:
        first = await made(rows)
        await made(rows, BOB)
        with pytest.raises(TooManyContainers) as error:
            await peer.make(new(), "h", LEASE, limit=9, per_owner=1)
        assert error.value.of_owner
        with pytest.raises(TooManyContainers) as error:
            await peer.make(new(), "h", LEASE, limit=2, per_owner=2)
        assert not error.value.of_owner
        await age(first.id, IDLE + 60)
        again = await peer.make(new(), "h", LEASE, limit=2, per_owner=1)
        await peer.put_back(again, "h")

    async def test_containers_of_several_owners_are_counted(
        self, rows: ContainerRows, peer: ContainerRows, age: Age
    ) -> None:
        mine = [await made(rows), await made(rows)]
        await made(rows, BOB)
        assert [await peer.count(owners) for owners in ([ALICE], [BOB], [ALICE, BOB], ["b:none"])] == [2, 1, 3, 0]
        await age(mine[0].id, 2 * IDLE)
        assert await peer.count([ALICE, BOB]) == 2

    async def test_lists_are_oldest_first(self, rows: ContainerRows, peer: ContainerRows) -> None:
        ids = [(await made(rows)).id for _ in range(3)]
        at = {head.id: head.created_at for head in await peer.every()}
        assert [head.id for head in await peer.every(ALICE, expired=False)] == sorted(
            ids, key=lambda one: (at[one], one)
        )
