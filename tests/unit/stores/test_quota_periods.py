"""When a quota's counter begins a new period. SQLite has no clock of its own, so that a test can set it."""

from __future__ import annotations

from pathlib import Path

from antiphon.engine.ports.quotas import Grant, Limit, Measure, Wanted
from antiphon.stores.quotas import QuotaStore
from antiphon.stores.sqlite.backend import open_sqlite


def _wanted(measure: Measure) -> Wanted:
    return Wanted(Limit("owner", "owner:n:anna", "anna", measure, 1000), 1000, 1000, 800)


class _Clock:
    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


async def test_a_new_period_begins_at_zero(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=10)
    clock = _Clock(1_790_000_000.0)
    store = QuotaStore(stores.tables, clock)
    await store.join("a")

    async def grant() -> list[Grant]:
        granted = await store.grant("a", [_wanted("tokens_per_minute"), _wanted("tokens_per_month")])
        assert granted is not None
        return granted

    first = await grant()
    clock.at += 60
    second = await grant()
    assert [one.amount for one in first] == [1000, 1000] and [one.amount for one in second] == [1000, 0]
    assert second[0].starts == first[0].ends
    clock.at = first[1].ends / 1000
    third = await grant()
    assert [one.amount for one in third] == [1000, 1000]
    assert third[1].starts == first[1].ends
    # A clock that goes back begins no period.
    clock.at -= 3600
    assert [one.amount for one in await grant()] == [0, 0]
    # A sweep deletes the counters of old periods only.
    clock.at += 3600 + 700
    await store.sweep(1e9)
    assert [one.measure for one in await store.counters()] == ["tokens_per_month"]
    await stores.aclose()
