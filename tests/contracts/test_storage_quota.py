"""The contract tests of `StorageQuota` for containers, and of the bytes that owners store, on every state that
operators use.

The containers of a data folder are records, and those of several machines are rows of the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from antiphon.engine.ports.callers import Access, Caller, ClientKey
from antiphon.engine.ports.containers import ContainerRows
from antiphon.engine.ports.quotas import QuotaRules
from antiphon.engine.ports.state import PromptChange
from antiphon.errors import OwnerFull
from antiphon.stores import Stores
from antiphon.stores.choice import backend_of
from antiphon.stores.owner_usage import STORED
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from tests.contracts.container_contract import made
from tests.contracts.states import BODIES, open_state, settings_of

pytestmark = pytest.mark.usefixtures("seen_by_others")

RULES = QuotaRules(
    {"owner": {"containers": 2}},
    {"owner": {"cleo": {}}, "team": {"research": {"containers": 3}}},
)
TEAMS = {"research": ["n:anna"]}
ANNA, CLEO = Caller("n:anna", "anna", "research"), Caller("n:cleo", "cleo", "research")


@pytest.fixture
async def limited(state_url: str, tmp_path: Path) -> AsyncIterator[Stores]:
    async with aclosing(await open_state(state_url, tmp_path, storage=(RULES, TEAMS))) as opened:
        yield opened


@pytest.fixture
def rows(limited: Stores, tmp_path: Path) -> ContainerRows:
    found = limited.containers or RecordedRows(Records(tmp_path / "records"))
    assert limited.owner_room is not None
    limited.owner_room.count_containers = found.count
    return found


async def _refusal(stores: Stores, caller: Caller) -> str:
    """The message of the refusal of one more container, or an empty text."""
    assert stores.owner_room is not None
    try:
        await stores.owner_room.check(caller.owner, caller, "containers")
    except OwnerFull as full:
        return full.message
    return ""


async def test_containers_of_an_owner_and_of_a_team_are_limited(limited: Stores, rows: ContainerRows) -> None:
    # The settings assign anna to the team, and a managed key assigns cleo.
    key = ClientKey("key_1", "laptop", CLEO.owner, "research", "ant_abcd", Access(), 0.0)
    await limited.client_keys.create(key, hashlib.sha256(b"1").digest(), None)
    assert await _refusal(limited, ANNA) == await _refusal(limited, CLEO) == ""
    first = [await made(rows, ANNA.owner) for _ in range(2)]
    assert "'quotas.each_owner.containers'" in await _refusal(limited, ANNA)
    assert await _refusal(limited, CLEO) == ""
    await made(rows, CLEO.owner)
    message = await _refusal(limited, CLEO)
    assert "containers" in message and "(3, 'quotas.teams.research.containers')" in message
    # Another owner's containers do not count.
    assert await _refusal(limited, Caller("n:dora", "dora")) == ""
    row = await rows.take(first[0].id, "h", 60.0)
    assert row is not None
    await rows.delete(row, "h")
    assert await _refusal(limited, ANNA) == await _refusal(limited, CLEO) == ""


async def test_owners_with_a_claimed_team_count_together(
    limited: Stores, rows: ContainerRows, state_url: str, tmp_path: Path
) -> None:
    ada, bea = (Caller(f"j:{name}", name, "research") for name in ("ada", "bea"))
    for one in (ada, ada, bea):
        assert await _refusal(limited, one) == ""
        await made(rows, one.owner)
    assert "'quotas.teams.research.containers'" in await _refusal(limited, bea)
    # The newest token has another team, which has no limit.
    bea_moved = Caller("j:bea", "bea", "sales")
    assert await _refusal(limited, bea_moved) == ""
    await made(rows, bea.owner)
    assert await _refusal(limited, Caller("j:cid", "cid", "research")) == "", "only ada's containers count"
    if rows is limited.containers:
        async with aclosing(await backend_of(settings_of(state_url), tmp_path).open_owner_data(BODIES)) as data:
            assert await data.delete(ada.owner) == 1, "the team"


async def test_without_containers_no_limit_is_reached(limited: Stores) -> None:
    assert await _refusal(limited, ANNA) == ""


async def test_an_owner_leaves_a_team_with_the_last_valid_key_of_this_team(
    limited: Stores, rows: ContainerRows
) -> None:
    def key(number: int, owner: str, team: str) -> ClientKey:
        return ClientKey(f"key_{number}", "laptop", owner, team, "ant_abcd", Access(), 0.0)

    async def create(number: int, owner: str, team: str) -> None:
        await limited.client_keys.create(key(number, owner, team), hashlib.sha256(b"%d" % number).digest(), None)

    dora = Caller("n:dora", "dora", "research")
    await create(1, CLEO.owner, "research")
    await create(2, dora.owner, "research")
    for owner in (CLEO.owner, CLEO.owner, dora.owner):
        await made(rows, owner)
    assert "'quotas.teams.research.containers'" in await _refusal(limited, dora)
    # Without a valid key, the data still count for the team of the last key.
    await limited.client_keys.revoke("key_1")
    assert "'quotas.teams.research.containers'" in await _refusal(limited, dora)
    await create(3, CLEO.owner, "")
    assert await _refusal(limited, dora) == ""
    await create(4, CLEO.owner, "research")
    assert "'quotas.teams.research.containers'" in await _refusal(limited, dora)


async def _bytes(stores: Stores, owner: str) -> int:
    """The bytes that count for the limit `stored_bytes`."""
    return int((await stores.owner_room._tables.fetch(STORED, {"owners": [owner]}))[0][0])  # type: ignore[union-attr]


async def test_metadata_of_conversations_counts(limited: Stores, state_url: str, tmp_path: Path) -> None:
    store = limited.conversations
    await store.create("n:anna", "conv_1", b"{}", ())
    empty = await _bytes(limited, "n:anna")
    assert empty >= 256
    await store.create("n:anna", "conv_2", b'{"k":"%s"}' % (b"x" * 4000), ())
    assert 2 * empty + 4000 <= await _bytes(limited, "n:anna") <= 2 * empty + 4100
    await store.update("n:anna", "conv_1", b'{"k":"%s"}' % (b"x" * 3000))
    assert await _bytes(limited, "n:anna") >= 2 * empty + 7000
    await store.update("n:anna", "conv_1", b"{}")
    await store.delete("n:anna", "conv_2")
    assert await _bytes(limited, "n:anna") == empty
    # A move and a deletion by the operator.
    async with aclosing(await backend_of(settings_of(state_url), tmp_path).open_owner_data(BODIES)) as data:
        async with aclosing(data.move("n:anna", "n:cleo")) as moving:
            assert [kind async for kind in moving]
        assert (await _bytes(limited, "n:anna"), await _bytes(limited, "n:cleo")) == (0, empty)
        await data.delete("n:cleo")
    assert await _bytes(limited, "n:cleo") == 0


async def test_prompts_and_their_versions_count(limited: Stores, state_url: str, tmp_path: Path) -> None:
    store = limited.prompts
    await store.create("n:anna", "pmpt_1", None, b"{}", b"{}")
    least = await _bytes(limited, "n:anna")
    assert least >= 512
    await store.create("n:anna", "pmpt_2", "é" * 100, b"{}", b"x" * 4000)
    named = await _bytes(limited, "n:anna")
    assert named == 2 * least + 200 + 4000 - 2
    await store.change("n:anna", "pmpt_1", PromptChange(metadata=b'{"k":"%s"}' % (b"x" * 3000)))
    assert await _bytes(limited, "n:anna") >= named + 3000
    await store.change("n:anna", "pmpt_1", PromptChange(body=b"y" * 2000, metadata=b"{}"))
    assert named + 2256 <= await _bytes(limited, "n:anna") <= named + 2400
    await store.delete("n:anna", "pmpt_2")
    left = await _bytes(limited, "n:anna")
    assert least + 2256 <= left <= least + 2400
    async with aclosing(await backend_of(settings_of(state_url), tmp_path).open_owner_data(BODIES)) as data:
        async with aclosing(data.move("n:anna", "n:cleo")) as moving:
            assert [kind async for kind in moving]
        assert (await _bytes(limited, "n:anna"), await _bytes(limited, "n:cleo")) == (0, left)
        await data.delete("n:cleo")
    assert await _bytes(limited, "n:cleo") == 0
