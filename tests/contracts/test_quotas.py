"""What every `QuotaStore` must do, on every state."""

from __future__ import annotations

import asyncio

import pytest

from antiphon.engine.ports.quotas import Grant, Limit, Measure, Report, Wanted
from antiphon.stores import Stores
from antiphon.stores.quotas import QuotaStore, StoredCounter

OWNER = "owner:n:anna"


def _wanted(
    need: int, want: int = 0, *, limit: int = 1000, measure: Measure = "tokens_per_month", subject: str = OWNER
) -> Wanted:
    return Wanted(Limit("owner", subject, "anna", measure, limit), need, max(need, want), limit * 8 // 10)


@pytest.fixture
async def store(state: Stores) -> QuotaStore:
    await state.quotas.join("a")
    await state.quotas.join("b")
    return state.quotas


async def _one(store: QuotaStore, holder: str, wanted: Wanted) -> Grant:
    grants = await store.grant(holder, [wanted])
    assert grants is not None
    return grants[0]


async def _counter(store: QuotaStore, subject: str = OWNER) -> StoredCounter:
    (found,) = await store.counters(subject)
    return found


async def test_a_grant_is_the_want_far_from_the_limit_and_shrinks_near_it(store: QuotaStore) -> None:
    amounts = [(await _one(store, "a", _wanted(1, 40))).amount for _ in range(40)]
    assert amounts[0] == 40
    # From a sixteenth of what is free, down to the need.
    assert sorted(amounts, reverse=True) == amounts and amounts[-1] < 20
    while (grant := await _one(store, "a", _wanted(1, 40))).amount:
        assert grant.leased <= 1000
    assert (grant.used, grant.leased) == (0, 1000)
    assert (await _counter(store)).leased == 1000


async def test_less_than_the_need_is_not_granted(store: QuotaStore) -> None:
    assert (await _one(store, "a", _wanted(999))).amount == 999
    assert (await _one(store, "b", _wanted(2))).amount == 0
    assert (await _one(store, "b", _wanted(1, 50))).amount == 1
    assert (await _one(store, "b", _wanted(2000))).amount == 0


async def test_many_processes_never_get_more_than_the_limit(store: QuotaStore) -> None:
    async def take(holder: str) -> int:
        return sum([(await _one(store, holder, _wanted(7, 30, limit=500))).amount for _ in range(12)])

    for number in range(6):
        await store.join(f"p{number}")
    taken = await asyncio.gather(*(take(f"p{number}") for number in range(6)))
    assert 500 - 7 < sum(taken) <= 500
    assert (await _counter(store)).leased == sum(taken)


async def test_a_report_settles_and_returns(store: QuotaStore) -> None:
    grant = await _one(store, "a", _wanted(100))
    assert await store.report("a", [Report(OWNER, "tokens_per_month", grant.starts, spent=60, back=40, debt=5)])
    found = await _counter(store)
    assert (found.used, found.leased) == (65, 0)
    assert (await _one(store, "a", _wanted(935))).amount == 935


async def test_a_refund_may_arrive_before_its_estimate(store: QuotaStore) -> None:
    here, there = await _one(store, "a", _wanted(300)), await _one(store, "b", _wanted(5))
    assert await store.report("b", [Report(OWNER, "tokens_per_month", there.starts, back=5, debt=-290)])
    assert (await _counter(store)).used == -290
    assert await store.report("a", [Report(OWNER, "tokens_per_month", here.starts, spent=300)])
    assert ((await _counter(store)).used, (await _counter(store)).leased) == (10, 0)
    assert (await _one(store, "a", _wanted(990))).amount == 990


async def test_the_leases_of_a_process_can_be_read(store: QuotaStore) -> None:
    grant = await _one(store, "a", _wanted(100))
    assert await store.held("a") == [Report(OWNER, "tokens_per_month", grant.starts, back=100)]
    assert await store.held("b") == []


async def test_a_process_learns_which_slots_it_shares(store: QuotaStore) -> None:
    slots = [
        Wanted(Limit("owner", f"owner:n:{name}", name, "parallel_requests", 10), 2, 2, 8) for name in ("anna", "ben")
    ]
    assert await store.grant("a", slots)
    assert await store.shared("a") == {}
    assert await store.grant("b", [*slots[:1], _wanted(100)])
    assert await store.grant("a", [_wanted(100)])
    assert await store.shared("a") == await store.shared("b") == {"owner:n:anna": 4}, "only limits of slots"


async def test_a_report_of_another_period_changes_nothing(store: QuotaStore) -> None:
    grant = await _one(store, "a", _wanted(100))
    assert await store.report("a", [Report(OWNER, "tokens_per_month", grant.starts - 1, spent=60, debt=9)])
    found = await _counter(store)
    assert (found.used, found.leased) == (0, 100)


async def test_several_limits_are_granted_in_the_order_of_the_request(store: QuotaStore) -> None:
    wanted = [
        _wanted(3, measure="tokens_per_minute"),
        _wanted(1, measure="parallel_requests", limit=2),
        _wanted(5, measure="cost_per_month", subject="key:k"),
    ]
    grants = await store.grant("a", wanted)
    assert grants is not None and [grant.amount for grant in grants] == [3, 1, 5]
    minute, parallel, month = grants
    assert minute.starts % 60_000 == 0 and minute.ends - minute.starts == 60_000
    assert minute.starts <= minute.now < minute.ends
    assert (parallel.starts, parallel.ends) == (0, 0)
    assert month.starts <= month.now < month.ends and 28 <= (month.ends - month.starts) / 86_400_000 <= 31


async def test_one_grant_asks_for_a_warning(store: QuotaStore) -> None:
    warned = [(await _one(store, "ab"[number % 2], _wanted(100))).warn for number in range(10)]
    assert warned == [False] * 7 + [True] + [False] * 2
    assert [(await _one(store, "a", _wanted(900, subject="owner:o"))).warn] == [True]


async def test_a_dead_process_is_charged_its_leases_but_not_its_parallel_requests(store: QuotaStore) -> None:
    await store.grant("a", [_wanted(100), _wanted(1, limit=2, measure="parallel_requests", subject="key:k")])
    assert await store.sweep(30.0) == (0,)
    # Every sign of life is older than a time in the future.
    assert await store.sweep(-60.0) == (2,)
    found = {one.subject: (one.used, one.leased) for one in await store.counters()}
    assert found == {OWNER: (100, 0), "key:k": (0, 0)}
    # The process lives after all: it learns that its leases are gone.
    assert await store.grant("a", [_wanted(1)]) is None
    assert not await store.report("a", [Report(OWNER, "tokens_per_month", 0, debt=3)])
    assert {one.subject: (one.used, one.leased) for one in await store.counters()} == found


async def test_a_process_that_leaves_returns_its_leases(store: QuotaStore) -> None:
    await store.grant("a", [_wanted(100)])
    await store.leave("a")
    found = await _counter(store)
    assert (found.used, found.leased) == (0, 0)
    assert await store.grant("a", [_wanted(1)]) is None
