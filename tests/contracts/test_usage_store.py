"""The contract tests of every `UsageStore`, which run on every state, and on PostgreSQL directly and behind
pgbouncer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from msgspec import structs

from antiphon.engine.ports.callers import Access, ClientKey
from antiphon.engine.ports.usage_sums import OwnerName, UsageSum
from antiphon.stores import Stores
from antiphon.stores.owner_usage import UsageStore
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from tests.contracts.test_journal import entry
from tests.support.postgres import PATIENT


def _sum(day: str, owner: str, model: str, upstream: str, number: int) -> UsageSum:
    return UsageSum(day, owner, model, upstream, *(number * factor for factor in range(1, 10)))


class UsageStoreContract:
    """The suite. Subclasses provide `store`."""

    async def test_sums_add_up(self, store: UsageStore) -> None:
        await store.add([_sum("2026-01-01", "o", "m", "u", 1), _sum("2026-01-02", "o", "m", "u", 10)])
        await store.add([_sum("2026-01-01", "o", "m", "u", 100)])
        assert await store.sums(("day",)) == [
            UsageSum("2026-01-01", "", "", "", *(101 * factor for factor in range(1, 10))),
            UsageSum("2026-01-02", "", "", "", *(10 * factor for factor in range(1, 10))),
        ]
        assert await store.sums(()) == [UsageSum("", "", "", "", *(111 * factor for factor in range(1, 10)))]

    async def test_days_of_a_month_add_up(self, store: UsageStore) -> None:
        await store.add([_sum(day, "o", "m", "u", 1) for day in ("2026-01-01", "2026-01-31", "2026-02-01")])
        found = await store.sums(("model", "month"))
        assert [(one.model, one.month, one.day, one.calls) for one in found] == [
            ("m", "2026-01", "", 2),
            ("m", "2026-02", "", 1),
        ]

    async def test_nothing_is_no_sum(self, store: UsageStore) -> None:
        assert await store.sums(()) == [] and await store.sums(("model",)) == []

    async def test_sums_are_told_apart_by_what_was_asked_and_within_days_and_owner(self, store: UsageStore) -> None:
        await store.add(
            [
                _sum(day, owner, model, "u", 1)
                for day in ("2026-01-01", "2026-01-02", "2026-01-03")
                for owner in ("o", "p")
                for model in ("m", "n")
            ]
        )
        by_both = await store.sums(("owner", "model"), since="2026-01-02", until="2026-01-02")
        assert [(one.owner, one.model, one.calls, one.day) for one in by_both] == [
            ("o", "m", 1, ""),
            ("o", "n", 1, ""),
            ("p", "m", 1, ""),
            ("p", "n", 1, ""),
        ]
        first = await store.sums(("owner", "model"), most=2)
        assert [(one.owner, one.model) for one in first] == [("o", "m"), ("o", "n")]
        assert [one.calls for one in await store.sums((), since="2026-01-02", owner="p")] == [4]
        assert [one.calls for one in await store.sums((), until="2026-01-01")] == [4]

    async def test_old_days_are_forgotten(self, store: UsageStore) -> None:
        await store.add([_sum("2026-01-01", "o", "m", "u", 1), _sum("2026-01-02", "o", "m", "u", 1)])
        assert await store.forget("2026-01-02") == 1
        assert [one.day for one in await store.sums(("day",))] == ["2026-01-02"]

    async def test_many_that_add_at_once_lose_nothing(self, store: UsageStore) -> None:
        several = [_sum("2026-01-01", "o", model, "u", 1) for model in "abc"]
        await asyncio.gather(*[store.add(several[:: (-1) ** n]) for n in range(20)])
        assert [(one.model, one.calls) for one in await store.sums(("model",))] == [("a", 20), ("b", 20), ("c", 20)]

    async def test_a_number_beyond_measure_spoils_no_other(self, store: UsageStore) -> None:
        for _ in range(2):
            await store.add([_sum("2026-01-01", "o", "m", "u", 10**17), _sum("2026-01-01", "o", "n", "u", 1)])
        assert [one.calls for one in await store.sums(("model",))] == [10**15, 2]


class TestUsage(UsageStoreContract):
    @pytest.fixture
    def store(self, state: Stores) -> UsageStore:
        return state.usage


class TestPostgresUsage(UsageStoreContract):
    @pytest.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[UsageStore]:
        async with aclosing(Database(postgres_url, PATIENT)) as database:
            yield UsageStore(PostgresTables(database))


DAY = ("2026-01-01", "m", "u")
TEAMS = {"n:anna": "lab"}


async def _key(state: Stores, number: int, owner: str, team: str) -> None:
    key = ClientKey(f"key_{number}", "laptop", owner, team, "ant_abcd", Access(), 0.0)
    assert await state.client_keys.create(key, b"%032d" % number, None)


async def _request(state: Stores, number: int, owner: str, name: str, team: str) -> None:
    await state.journal.add([structs.replace(entry(number, owner=owner), key_name=name, team=team)], {})


async def test_names_and_teams_of_owners(state: Stores) -> None:
    owners = ["n:anna", "n:bo", "j:company|1", "j:company|2", "h:cleo", "b:0123", "anonymous", "single"]
    await state.usage.add([UsageSum(DAY[0], owner, *DAY[1:], calls=1) for owner in owners])
    # The settings decide before keys, and keys before requests. The newest key with a team decides.
    await _key(state, 1, "n:anna", "sales")
    await _key(state, 2, "n:bo", "sales")
    await _key(state, 3, "n:bo", "research")
    await _key(state, 4, "n:bo", "")
    await _request(state, 1, "j:company|1", "Dora", "sales")
    await _request(state, 2, "j:company|1", "Dora D.", "research")
    await _request(state, 3, "n:bo", "bo", "of-requests")
    assert await state.owner_names.of(owners, TEAMS) == {
        "n:anna": OwnerName("anna", "lab"),
        "n:bo": OwnerName("bo", "research"),
        "j:company|1": OwnerName("Dora D.", "research"),
        "j:company|2": OwnerName("company|2"),
        "h:cleo": OwnerName("cleo"),
    }
    assert await state.owner_names.of([], TEAMS) == {}


async def test_names_of_many_owners(state: Stores) -> None:
    owners = [f"n:owner{number}" for number in range(1_100)]
    await _key(state, 1, owners[0], "first")
    await _key(state, 2, owners[-1], "last")
    found = await state.owner_names.of([*owners, *owners], {})
    assert len(found) == len(owners)
    assert (found[owners[0]].team, found[owners[-1]].team, found[owners[5]]) == ("first", "last", OwnerName("owner5"))
