"""The sums of what model calls took, in a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from antiphon.engine.ports.usage import UsageSum
from antiphon.stores.sqlite.opening import SqliteStores, open_sqlite


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    opened = await open_sqlite(tmp_path, chain_items=10)
    yield opened
    await opened.aclose()


def _sum(day: str, owner: str, model: str, upstream: str, number: int) -> UsageSum:
    return UsageSum(day, owner, model, upstream, *(number * factor for factor in range(1, 10)))


async def test_sums_add_up(stores: SqliteStores) -> None:
    await stores.usage.add([_sum("2026-01-01", "o", "m", "u", 1), _sum("2026-01-02", "o", "m", "u", 10)])
    await stores.usage.add([_sum("2026-01-01", "o", "m", "u", 100)])
    assert await stores.usage.sums(("day",)) == [
        UsageSum("2026-01-01", "", "", "", *(101 * factor for factor in range(1, 10))),
        UsageSum("2026-01-02", "", "", "", *(10 * factor for factor in range(1, 10))),
    ]
    assert await stores.usage.sums(()) == [UsageSum("", "", "", "", *(111 * factor for factor in range(1, 10)))]


async def test_nothing_is_no_sum(stores: SqliteStores) -> None:
    assert await stores.usage.sums(()) == [] and await stores.usage.sums(("model",)) == []


async def test_sums_are_told_apart_by_what_was_asked_and_within_days_and_owner(stores: SqliteStores) -> None:
    await stores.usage.add(
        [
            _sum(day, owner, model, "u", 1)
            for day in ("2026-01-01", "2026-01-02", "2026-01-03")
            for owner in ("o", "p")
            for model in ("m", "n")
        ]
    )
    by_both = await stores.usage.sums(("owner", "model"), since="2026-01-02", until="2026-01-02")
    assert [(one.owner, one.model, one.calls, one.day) for one in by_both] == [
        ("o", "m", 1, ""),
        ("o", "n", 1, ""),
        ("p", "m", 1, ""),
        ("p", "n", 1, ""),
    ]
    assert [one.calls for one in await stores.usage.sums((), since="2026-01-02", owner="p")] == [4]
    assert [one.calls for one in await stores.usage.sums((), until="2026-01-01")] == [4]


async def test_old_days_are_forgotten(stores: SqliteStores) -> None:
    await stores.usage.add([_sum("2026-01-01", "o", "m", "u", 1), _sum("2026-01-02", "o", "m", "u", 1)])
    assert await stores.usage.forget("2026-01-02") == 1
    assert [one.day for one in await stores.usage.sums(("day",))] == ["2026-01-02"]
