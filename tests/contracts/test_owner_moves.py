"""The contract tests of `OwnerData.move`, on every state that an operator can access."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.state import NotMovable, OwnerCounts, OwnerData
from antiphon.engine.ports.usage_sums import UsageSum
from antiphon.engine.ports.vector_stores import NewFile
from antiphon.errors import OwnerFull
from antiphon.stores import Stores
from antiphon.stores.choice import backend_of
from tests.contracts.file_contract import fields, keep
from tests.contracts.job_contract import queued
from tests.contracts.states import BODIES, open_state, settings_of
from tests.contracts.store_contract import ALICE, BOB, item, record
from tests.contracts.test_journal import RECORDING, entry

pytestmark = pytest.mark.usefixtures("seen_by_others")

ANNA = "n:anna"
ALL = {"responses": 3, "conversations": 2, "prompts": 1, "files": 2, "vector_stores": 1}
OTHERS = {"responses": 1, "conversations": 1, "files": 1}
LONG = 1000.0
USAGE = UsageSum("2026-01-01", ALICE, "m", "u", 1, 10, cost=5)


@pytest.fixture
async def data(state: Stores, state_url: str, tmp_path: Path) -> OwnerData:
    """The data of Alice with objects of every kind, and of two owners with other ids."""
    vectors = await state.open_vectors()
    await vectors.stores.create(
        ALICE,
        "vs_a",
        name="a",
        description=None,
        metadata=b"{}",
        expires_days=None,
        files=[NewFile("file-a", "a.txt", {})],
        once=OnceOnly(ALICE, "key of a store", "print"),
    )
    await vectors.aclose()
    await state.responses.save(record("a", owner=ALICE))
    await state.responses.save(record("a2", prev="a", owner=ALICE))
    await state.prompts.create(ALICE, "pmpt_a", "a", b"{}", b'{"instructions":"x"}')
    for owner, name in ((ALICE, "a"), (ANNA, "anna"), (BOB, "b")):
        if owner != ALICE:
            await state.responses.save(record(name, owner=owner))
        once = OnceOnly(owner, f"key {name}", "print")
        await state.conversations.create(owner, f"conv_{name}", b"{}", (item(f"msg_{name}_conv"),), once)
        await keep(state.files, fields(name), b"hello", owner=owner)
    await state.usage.add([USAGE, UsageSum("2026-01-01", ANNA, "m", "u", 2, 20, cost=7)])
    return await backend_of(settings_of(state_url), tmp_path).open_owner_data(BODIES)


async def _moved(data: OwnerData, old: str = ALICE, new: str = ANNA) -> list[str]:
    return [kind async for kind in data.move(old, new)]


async def test_everything_of_one_owner_moves_and_nothing_of_another(data: OwnerData, state: Stores) -> None:
    await _moved(data)
    assert await data.owners() == [OwnerCounts(BOB, **OTHERS), OwnerCounts(ANNA, **ALL)]
    assert [row async for row in data.export(ALICE)] == []
    assert await state.responses.get(ALICE, "resp_a") is None
    # A chain continues, and a conversation takes items.
    await state.responses.save(record("a3", prev="a2", owner=ANNA))
    assert await state.responses.get(ANNA, "resp_a3") is not None
    assert await state.conversations.add_items(ANNA, "conv_a", (item("msg_more"),))
    assert len(await state.conversations.load(ANNA, "conv_a") or ()) == 2
    assert await state.conversations.load(ALICE, "conv_a") is None
    assert await state.prompts.get(ANNA, "pmpt_a") is not None
    opened = await state.files.open(ANNA, "file-a")
    assert opened is not None
    async with aclosing(opened) as content:
        assert await content.read(0, 9) == b"hello"
    for key, made in (("key a", "conv_a"), ("key anna", "conv_anna")):
        assert await state.keys.made(OnceOnly(ANNA, key, "print")) == made
    vectors = await state.open_vectors()
    assert await vectors.stores.get(ANNA, "vs_a") is not None and await vectors.stores.get(ALICE, "vs_a") is None
    assert await vectors.keys.made(OnceOnly(ANNA, "key of a store", "print")) == "vs_a"
    # Processes may index the waiting file at once, for the new owner.
    assert [job.owner for job in await vectors.ingestion.claim(["worker"], LONG)] == [ANNA]
    await vectors.aclose()
    await data.aclose()


async def test_the_journal_moves_with_its_contents(data: OwnerData, state: Stores) -> None:
    await state.journal.put(entry(1, owner=ALICE), RECORDING)
    await _moved(data)
    assert await state.journal.get("req_1", ALICE) is None and await state.journal.record("req_1", ALICE) is None
    assert await state.journal.get("req_1", ANNA) is not None and await state.journal.record("req_1", ANNA) == RECORDING
    await data.aclose()


async def test_sums_move_too(data: OwnerData, state: Stores, state_url: str, tmp_path: Path) -> None:
    files = {owner: await state.files.used(owner) for owner in (ALICE, ANNA)}
    await _moved(data)
    assert await state.usage.sums(("owner",)) == [UsageSum(owner=ANNA, calls=3, input_tokens=30, cost=12)]
    assert (await state.files.used(ALICE), await state.files.used(ANNA)) == (0, files[ALICE] + files[ANNA])
    async with aclosing(await open_state(state_url, tmp_path, owner_bytes=1)) as limited:
        assert limited.owner_room is not None
        await limited.owner_room.check(ALICE)
        with pytest.raises(OwnerFull):
            await limited.owner_room.check(ANNA)
        # The trigger subtracts what goes. Nothing stays counted.
        await data.delete(ANNA)
        await limited.owner_room.check(ANNA)
    await data.aclose()


async def test_a_move_that_was_interrupted_after_any_unit_continues(
    data: OwnerData, state: Stores, state_url: str, tmp_path: Path
) -> None:
    whole = [owner for owner in await data.owners() if owner.owner != ALICE]
    units = 0
    while True:
        # Each round leaves one unit more behind.
        done = 0
        async with aclosing(data.move(ALICE, ANNA)) as moving:
            async for _ in moving:
                done += 1
                if done > units:
                    break
            else:
                break
        units += 1
    assert units > 5
    assert await data.owners() == [OwnerCounts(BOB, **OTHERS), OwnerCounts(ANNA, **ALL)]
    assert whole[0] == OwnerCounts(BOB, **OTHERS)
    assert await state.usage.sums(("owner",)) == [UsageSum(owner=ANNA, calls=3, input_tokens=30, cost=12)]
    async with aclosing(await open_state(state_url, tmp_path, owner_bytes=1)) as limited:
        assert limited.owner_room is not None
        await limited.owner_room.check(ALICE)
        await data.delete(ANNA)
        await limited.owner_room.check(ANNA)
    await data.aclose()


async def test_equal_ids_move_nothing(data: OwnerData, state: Stores) -> None:
    await state.conversations.create(ANNA, "conv_a", b"{}", ())
    await keep(state.files, fields("a"), b"hello", owner=ANNA)
    await state.conversations.create(ANNA, "conv_x", b"{}", (), OnceOnly(ANNA, "key a", "print"))
    before = await data.owners()
    with pytest.raises(NotMovable) as caught:
        await _moved(data)
    for sentence in (
        "have files with the same id: file-a.",
        "have conversations with the same id: conv_a.",
        "used the same idempotency keys: key a.",
    ):
        assert f"Both owners {sentence}" in str(caught.value)
    assert await data.owners() == before
    assert await data.obstacles(ALICE, ALICE) == [f"The old and the new owner are the same: {ALICE}."]
    await data.aclose()


async def test_work_in_progress_stays_where_it_is(data: OwnerData, state: Stores) -> None:
    before = await data.owners()
    assert await data.obstacles(ALICE, ANNA) == []
    await state.conversations.load(ALICE, "conv_a", holder="resp_runs", seconds=LONG)
    assert "Responses are running in these conversations: conv_a." in "".join(await data.obstacles(ALICE, ANNA))
    with pytest.raises(NotMovable, match="conv_a"):
        await _moved(data)
    assert await data.owners() == before
    await state.conversations.release("resp_runs")
    await state.background.enqueue(queued("waits"), b"{}", None, limit=9)
    with pytest.raises(NotMovable, match="unfinished background responses: resp_waits"):
        await _moved(data)
    await state.responses.delete(ALICE, "resp_waits")
    vectors = await state.open_vectors()
    assert len(await vectors.ingestion.claim(["worker"], LONG)) == 1
    with pytest.raises(NotMovable, match="A process is indexing these files of vector stores: file-a"):
        await _moved(data)
    await vectors.aclose()
    assert await data.owners() == before
    await data.aclose()


async def test_what_comes_into_use_during_the_move_stays_and_moves_later(data: OwnerData, state: Stores) -> None:
    async with aclosing(data.move(ALICE, ANNA)) as moving:
        with pytest.raises(NotMovable, match="used these conversations during the move: conv_a"):
            async for kind in moving:
                if kind == "chains":
                    await state.conversations.load(ALICE, "conv_a", holder="resp_runs", seconds=LONG)
    assert await state.conversations.get(ALICE, "conv_a") is not None
    await state.conversations.release("resp_runs")
    await _moved(data)
    assert await data.owners() == [OwnerCounts(BOB, **OTHERS), OwnerCounts(ANNA, **ALL)]
    await data.aclose()
