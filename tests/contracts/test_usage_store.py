"""The contract tests of every `UsageStore`, which run on every state, and on PostgreSQL directly and behind
pgbouncer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from antiphon.engine.ports.usage_sums import UsageSum
from antiphon.stores import Stores
from antiphon.stores.owner_usage import UsageStore
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
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
