"""What a process does with its parts of the shared quotas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from structlog.testing import capture_logs

from antiphon.app.owners import quota_rules
from antiphon.config.limits import QuotaSettings
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.quotas import Grant, QuotaExceeded, Report, Wanted, listed_names
from antiphon.engine.running.quota_reservation import QuotaReservation
from antiphon.engine.running.quotas import Quotas
from antiphon.errors import StoreError, Unavailable
from antiphon.stores.quotas import QuotaStore
from antiphon.stores.sqlite.backend import SqliteStores, open_sqlite

T = TypeVar("T")
ANNA = Caller("n:anna", "anna", "research", "key_1")
BO = Caller("n:bo", "bo", "research", "key_2")
NOW = 1_790_000_041.0
FAR = 1e9
"""Seconds between reports in tests that report by closing."""


class _Counters(QuotaStore):
    """A store that can fail, or wait."""

    fault: Exception | None = None
    gate: asyncio.Event | None = None
    lost: Literal["", "before", "after"] = ""
    """Whether the next write fails with an unknown outcome: before or after the database has stored it."""
    grants = 0

    async def grant(self, holder: str, wanted: Sequence[Wanted]) -> list[Grant] | None:
        self.grants += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return await self._lose(super().grant(holder, wanted))

    async def report(self, holder: str, reports: Sequence[Report]) -> bool:
        if self.fault is not None:
            raise self.fault
        return await self._lose(super().report(holder, reports))

    async def _lose(self, write: Coroutine[Any, Any, T]) -> T:
        lost, self.lost = self.lost, ""
        if lost == "before":
            write.close()
        else:
            made = await write
            if not lost:
                return made
        raise StoreError("the connection is lost", reason="unknown")


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    opened = await open_sqlite(tmp_path, chain_items=10)
    yield opened
    await opened.aclose()


@pytest.fixture
def counters(stores: SqliteStores) -> _Counters:
    # The first second of a minute: no test sees the next one.
    return _Counters(stores.tables, lambda: NOW)


class Ids:
    def __init__(self) -> None:
        self.number = 0

    def __call__(self, kind: str) -> str:
        self.number += 1
        return f"{kind}_{self.number}"


REFUSED: list[tuple[str, str, str]] = []


def _quotas(
    counters: QuotaStore,
    ids: Ids | None = None,
    *,
    seconds: float = FAR,
    grant_seconds: float = 5.0,
    settle: Callable[[], None] = lambda: None,
    cost: Callable[[str, int, int], int] = lambda model, read, written: read + 3 * written,
    **settings: Any,
) -> Quotas:
    given = QuotaSettings(**settings)
    REFUSED.clear()
    return Quotas(
        quota_rules(given),
        counters,
        ids or Ids(),
        cost=cost,
        expected_output=given.expected_output_tokens,
        shadow=given.shadow,
        refuses=given.when_unavailable == "refuse",
        warn_share=given.warn_share,
        refused=lambda *words: REFUSED.append(words),
        settle=settle,
        seconds=seconds,
        grant_seconds=grant_seconds,
    )


async def _take(
    quotas: Quotas, caller: Caller = ANNA, *, size: int = 400, output: int | None = 100, model: str = "qwen3"
) -> QuotaReservation:
    made = quotas.open(caller)
    if not made.take_now(model, size=size, output=output):
        await made.take()
    return made


async def _used(counters: QuotaStore) -> dict[tuple[str, str], tuple[int, int]]:
    return {(one.subject, one.measure): (one.used, one.leased) for one in await counters.counters()}


async def test_requests_over_the_limit_are_refused_with_the_limit_and_its_end(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"requests_per_minute": 3})
    for _ in range(3):
        await _take(quotas)
    with pytest.raises(QuotaExceeded) as refused:
        await _take(quotas)
    error = refused.value
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert (
        "owner 'anna' on requests per minute: limit 3, 3 used or reserved, this request needs 1. Try again in"
        in error.message
    )
    headers = dict(error.headers)
    assert 1 <= int(headers["retry-after"]) <= 61 and "x-should-retry" not in headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("3", "0")
    # Another owner has a counter of its own.
    await _take(quotas, BO)
    assert REFUSED == [("owner", "requests_per_minute", "refused")]


async def test_a_refused_request_takes_nothing_of_its_other_limits(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"requests_per_minute": 10, "tokens_per_month": 150})
    with pytest.raises(QuotaExceeded) as refused:
        await _take(quotas)
    headers = dict(refused.value.headers)
    assert refused.value.code == "insufficient_quota" and headers["x-should-retry"] == "false"
    # Waiting does not help a request that is larger than the whole limit.
    assert "retry-after" not in headers
    assert "Send a smaller request" in refused.value.message
    await quotas.aclose()
    assert set((await _used(counters)).values()) <= {(0, 0)}


async def test_usage_replaces_the_estimate(counters: _Counters) -> None:
    quotas = _quotas(counters, owners={"anna": {"tokens_per_month": 1000, "cost_per_month": 1}})
    reservation = await _take(quotas)
    assert (await _used(counters))["owner:n:anna", "tokens_per_month"] == (0, 200)
    reservation.close(350, 50, 77)
    reservation.close(350, 50, 77)
    await quotas.aclose()
    assert await _used(counters) == {
        ("owner:n:anna", "tokens_per_month"): (350, 0),
        ("owner:n:anna", "cost_per_month"): (77, 0),
    }


async def test_absurd_usage_neither_lifts_a_limit_nor_breaks_the_counter(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 1000})
    (await _take(quotas)).close(-5000, -5000, -1)
    await quotas.flush()
    assert (await _used(counters))["owner:n:anna", "tokens_per_month"][0] == 0
    (await _take(quotas)).close(10**30, 0, 0)
    await quotas.aclose()
    assert (await _used(counters))["owner:n:anna", "tokens_per_month"][0] == 10**12


async def test_every_level_has_a_counter_and_named_entries_inherit(counters: _Counters) -> None:
    quotas = _quotas(
        counters,
        each_key={"requests_per_minute": 5},
        each_owner={"requests_per_minute": 50, "tokens_per_month": 10_000},
        owners={"anna": {"requests_per_minute": None}, "bo": {"tokens_per_month": 7}},
        teams={"research": {"requests_per_minute": 6}},
        models={"qwen*": {"tokens_per_minute": 9_000}, "qwen-big": {"tokens_per_minute": 1}},
    )
    (await _take(quotas)).close(10, 5, 0)
    with pytest.raises(QuotaExceeded, match="owner 'bo' on tokens per month: limit 7"):
        await _take(quotas, BO)
    with pytest.raises(QuotaExceeded, match="model 'qwen-big' on tokens per minute: limit 1"):
        await _take(quotas, model="qwen-big")
    (await _take(quotas, Caller("b:hash"), model="other")).close(4, 2, 0)
    await quotas.aclose()
    assert {subject: used for subject, used in (await _used(counters)).items() if used != (0, 0)} == {
        ("key:key_1", "requests_per_minute"): (1, 0),
        ("owner:n:anna", "tokens_per_month"): (10, 0),
        ("team:research", "requests_per_minute"): (1, 0),
        ("model:qwen*", "tokens_per_minute"): (10, 0),
        ("owner:b:hash", "requests_per_minute"): (1, 0),
        ("owner:b:hash", "tokens_per_month"): (4, 0),
    }


@pytest.mark.parametrize(
    ("caller", "limit"),
    [
        (Caller("n:anna", "anna"), 9),
        (Caller("j:anna", "Anna A."), 9),
        (Caller("j:mallory", "anna"), 2),
        (Caller("b:hash"), 8),
        (Caller("j:bo", "b:hash"), 2),
    ],
)
def test_the_limits_of_an_owner_are_found_by_its_id_and_not_by_a_name_of_its_choice(caller: Caller, limit: int) -> None:
    owners = {"anna": {"requests_per_minute": 9, "file_bytes": 90}, "b:hash": {"requests_per_minute": 8}}
    each = {"requests_per_minute": 2, "file_bytes": 20}
    rules = quota_rules(QuotaSettings.model_validate({"each_owner": each, "owners": owners}))
    (found,) = rules.limits(caller, "m")
    assert (found.amount, found.name) == (limit, caller.name or caller.owner)
    assert rules.limit_of(found.subject, "requests_per_minute") == limit


def test_an_entry_without_a_limit_is_an_entry() -> None:
    settings = {"each_owner": {"requests_per_minute": 2}, "owners": {"anna": {"requests_per_minute": None}}}
    rules = quota_rules(QuotaSettings.model_validate(settings))
    assert rules.limits(Caller("n:anna", "anna"), "m") == ()
    assert rules.limit_of("owner:n:anna", "requests_per_minute") is None


def test_a_name_that_looks_like_an_owner_id_has_not_its_limits() -> None:
    owners = {"h:boss": {"requests_per_minute": 100}}
    rules = quota_rules(QuotaSettings.model_validate({"each_owner": {"requests_per_minute": 5}, "owners": owners}))
    amounts = {owner: rules.limits(Caller(owner), "m")[0].amount for owner in ("h:boss", "h:h:boss", "n:boss")}
    assert amounts == {"h:boss": 100, "h:h:boss": 5, "n:boss": 5}


def test_a_request_is_limited_for_each_model_that_it_names() -> None:
    models = {"gpt-5": {"requests_per_minute": 1}, "qwen*": {"requests_per_minute": 2}, "*": {"requests_per_minute": 3}}
    rules = quota_rules(QuotaSettings.model_validate({"models": models}))
    assert rules.limits_models and not quota_rules(QuotaSettings()).limits_models
    found = rules.limits(ANNA, "qwen3", ("qwen2", "GPT-5", "gpt-5", "QWEN1", "other"))
    assert [(one.subject, one.amount) for one in found] == [("model:qwen*", 2), ("model:gpt-5", 1), ("model:*", 3)]


async def test_every_named_model_is_charged_the_usage(counters: _Counters) -> None:
    limits = {"requests_per_minute": 1, "tokens_per_month": 10_000, "parallel_requests": 1}
    quotas = _quotas(counters, models={"gpt-5": limits, "qwen*": {"tokens_per_month": 10_000}})
    made = quotas.open(ANNA)
    made.others = ("gpt-5",)
    if not made.take_now("qwen3", size=400, output=100):
        await made.take()
    with pytest.raises(QuotaExceeded, match="model 'gpt-5' on parallel requests"):
        await _take(quotas, model="gpt-5")
    made.close(70, 10, 0)
    job = quotas.open(ANNA)
    job.others = ("gpt-5",)
    job.close_job("qwen3", size=400, output=100, tokens=230, written=1, cost=0, queued_at=NOW, ended=True)
    await quotas.aclose()
    assert await _used(counters) == {
        ("model:gpt-5", "parallel_requests"): (0, 0),
        ("model:gpt-5", "requests_per_minute"): (1, 0),
        ("model:gpt-5", "tokens_per_month"): (100, 0),
        ("model:qwen*", "tokens_per_month"): (100, 0),
    }


async def test_a_request_that_names_several_models_costs_the_highest_price(counters: _Counters) -> None:
    quotas = _quotas(
        counters,
        cost=lambda model, read, written: (read + 3 * written) * (10 if model == "dear" else 1),
        models={"dear": {"cost_per_month": 1}},
    )
    made = quotas.open(ANNA)
    made.others = ("dear",)
    if not made.take_now("cheap", size=400, output=100):
        await made.take()
    assert made.amounts == (1, 200, 4_000)
    assert made.add_now(40) and made.amounts == (1, 210, 4_100)
    made.close(70, 10, 90)
    for written in (0, 10):
        job = quotas.open(ANNA)
        job.others = ("dear",)
        job.close_job("cheap", size=0, output=0, tokens=10, written=written, cost=1, queued_at=NOW, ended=False)
    await quotas.aclose()
    assert await _used(counters) == {("model:dear", "cost_per_month"): (900 + 100 + 300, 0)}


async def test_the_slot_of_a_parallel_request_is_free_after_its_end(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"parallel_requests": 2})
    first, _ = await _take(quotas), await _take(quotas)
    with pytest.raises(QuotaExceeded, match="Wait until one of the requests ends"):
        await _take(quotas)
    first.close(0, 0, 0)
    await _take(quotas)


async def test_a_slot_is_free_before_the_other_amounts_are_settled(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"parallel_requests": 1, "tokens_per_month": 1000})
    first = await _take(quotas)
    first.free_slots()
    second = await _take(quotas)
    with pytest.raises(QuotaExceeded, match="parallel"):
        await _take(quotas)
    first.close(70, 10, 0)
    second.free_slots()
    second.close(30, 10, 0)
    await quotas.aclose()
    assert await _used(counters) == {
        ("owner:n:anna", "parallel_requests"): (0, 0),
        ("owner:n:anna", "tokens_per_month"): (100, 0),
    }


async def test_requests_that_have_ended_are_settled_before_a_refusal(counters: _Counters) -> None:
    ended: list[QuotaReservation] = []

    def settle() -> None:
        for one in ended:
            one.close(10, 5, 0)
        ended.clear()

    quotas = _quotas(counters, settle=settle, each_owner={"tokens_per_month": 300})
    ended.append(await _take(quotas))
    await _take(quotas, size=600)
    assert not ended and not REFUSED


async def test_usage_above_the_estimate_counts_for_the_next_large_request(counters: _Counters) -> None:
    ended: list[QuotaReservation] = []

    def settle() -> None:
        for one in ended:
            one.close(400, 5, 0)
        ended.clear()

    quotas = _quotas(counters, settle=settle, each_owner={"tokens_per_month": 1000})
    for _ in range(2):
        # Each request reserves 200 tokens, and uses 400.
        ended.append(await _take(quotas))
    with pytest.raises(QuotaExceeded) as refused:
        await _take(quotas, size=800)
    assert "800 used or reserved, this request needs 300" in str(refused.value)
    (await _take(quotas, size=200)).close(150, 5, 0)
    await quotas.aclose()
    assert await _used(counters) == {("owner:n:anna", "tokens_per_month"): (950, 0)}


async def test_a_slot_that_another_process_returns_is_found_within_the_wait(counters: _Counters) -> None:
    ids = Ids()
    here, there = (_quotas(counters, ids, each_owner={"parallel_requests": 2}) for _ in range(2))
    _, other = await _take(here), await _take(there)
    waiting = asyncio.ensure_future(_take(here))
    while counters.grants < 3:
        await asyncio.sleep(0)
    other.close(0, 0, 0)
    assert await there.flush() and await there.flush(), "the second report returns the slot"
    assert await here.flush(), "this process learns that no other process holds a slot"
    await waiting
    assert not REFUSED


async def test_a_process_keeps_one_chunk_of_an_amount(counters: _Counters) -> None:
    ids = Ids()
    here, there = (_quotas(counters, ids, each_owner={"tokens_per_month": 10_000}) for _ in range(2))
    for quotas in (here, there):
        (await _take(quotas, size=0, output=1000)).close(30, 20, 0)
    with pytest.raises(QuotaExceeded) as early:
        await _take(here, size=0, output=9500)
    assert REFUSED == [("owner", "tokens_per_month", "early")]
    told = dict(early.value.headers)
    assert told["retry-after"] == "2" and "x-should-retry" not in told
    assert early.value.code == "rate_limit_exceeded"
    assert await there.flush()
    assert (await _used(counters))["owner:n:anna", "tokens_per_month"] == (30, 100 + 1000)
    assert await here.flush()
    await _take(here, size=0, output=9500)


async def test_what_another_process_has_used_and_not_reported_is_no_early_refusal(counters: _Counters) -> None:
    ids = Ids()
    here, there = (_quotas(counters, ids, seconds=0.3, each_owner={"requests_per_minute": 10}) for _ in range(2))
    there.start()
    for number in range(10):
        (await _take((here, there)[number % 2])).close(1, 1, 0)
    with pytest.raises(QuotaExceeded) as refused:
        await _take(here)
    assert REFUSED == [("owner", "requests_per_minute", "refused")]
    assert int(dict(refused.value.headers)["retry-after"]) > 10, "the minute ends in 19 seconds"
    await there.aclose()


async def test_requests_wait_once_for_the_reports_of_other_processes(counters: _Counters) -> None:
    ids = Ids()
    here, there = (_quotas(counters, ids, seconds=0.75, each_owner={"tokens_per_month": 1000}) for _ in range(2))
    held = await _take(there, size=0, output=900)
    began, times = time.monotonic(), []
    for _ in range(2):
        with pytest.raises(QuotaExceeded):
            await _take(here, size=0, output=200)
        times.append(time.monotonic() - began)
    assert REFUSED == [("owner", "tokens_per_month", "early")] * 2
    assert times[0] >= 1.0 and times[1] - times[0] < 0.9, "the second request need not wait"
    held.close(0, 0, 0)


async def test_parallel_requests_are_warned_about_once_in_a_while(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"parallel_requests": 2})
    with capture_logs() as logged:
        for _ in range(3):
            for one in [await _take(quotas), await _take(quotas)]:
                one.close(0, 0, 0)
            assert await quotas.flush() and await quotas.flush()
    assert [one["event"] for one in logged] == ["quota_warning"]


async def test_another_process_gets_the_slot_that_this_one_returns(counters: _Counters) -> None:
    ids = Ids()
    here, there = (_quotas(counters, ids, each_owner={"parallel_requests": 1}) for _ in range(2))
    here.start()
    (await _take(here)).close(0, 0, 0)
    await _take(there)
    await here.aclose()


async def test_a_request_waits_for_the_slots_that_another_process_no_longer_needs(counters: _Counters) -> None:
    ids = Ids()
    here, there = (_quotas(counters, ids, seconds=0.2, each_owner={"parallel_requests": 4}) for _ in range(2))
    here.start()
    for one in [await _take(here), await _take(here)]:
        assert not one.leases[0].scarce, "half of the slots are free elsewhere"
        one.close(0, 0, 0)
    held = [await _take(there) for _ in range(4)]
    assert held[-1].leases[0].scarce and not REFUSED
    with pytest.raises(QuotaExceeded):
        await _take(here)
    assert REFUSED == [("owner", "parallel_requests", "refused")], "one refusal, however often the process asked"
    await here.aclose()


async def test_a_process_keeps_the_slots_that_its_requests_need_all_the_time(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"parallel_requests": 20})
    for expected in (3, 3, 3):
        for one in [await _take(quotas) for _ in range(3)]:
            one.close(0, 0, 0)
        assert await quotas.flush()
        assert counters.grants == expected, "the first requests lease the slots, and no later request"
    for held in (1, 1, 0):
        if held:
            (await _take(quotas)).close(0, 0, 0)
        assert await quotas.flush()
        assert (await _used(counters))["owner:n:anna", "parallel_requests"] == (0, held)
    assert counters.grants == 3


async def test_a_process_returns_free_slots_when_the_processes_hold_most_of_them(counters: _Counters) -> None:
    ids = Ids()
    here, there = (_quotas(counters, ids, each_owner={"parallel_requests": 4}) for _ in range(2))
    first, second = await _take(here), await _take(here)
    held = [await _take(there) for _ in range(2)]
    first.close(0, 0, 0)
    assert not second.leases[0].scarce, "the other process has leased its slots later"
    for leased in (4, 3):
        # The first report learns that the slots are scarce.
        assert await here.flush()
        assert (await _used(counters))["owner:n:anna", "parallel_requests"] == (0, leased)
    held.append(await _take(there))
    assert not REFUSED


@pytest.mark.parametrize("reason", ["unavailable", "unknown"])
async def test_a_query_that_fails_after_a_report_settles_nothing_twice(
    counters: _Counters, monkeypatch: pytest.MonkeyPatch, reason: Literal["unavailable", "unknown"]
) -> None:
    quotas = _quotas(counters, each_owner={"parallel_requests": 4, "tokens_per_month": 10_000})
    (await _take(quotas)).close(70, 10, 0)

    async def fails(holder: str) -> dict[str, int]:
        raise StoreError("the connection is lost", reason=reason)

    with monkeypatch.context() as patch:
        patch.setattr(counters, "shared", fails)
        assert await quotas.flush(), "the report is stored"
    (await _take(quotas)).close(30, 10, 0)
    await quotas.aclose()
    assert (await _used(counters))["owner:n:anna", "tokens_per_month"] == (100, 0)


async def test_the_headers_know_what_this_process_has_returned(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"requests_per_minute": 1000})
    (await _take(quotas)).close(0, 0, 0)
    for _ in range(2):
        # The first report settles the request, and the second one returns the lease, which is idle.
        assert await quotas.flush()
    assert (await _used(counters))["owner:n:anna", "requests_per_minute"] == (1, 0)
    reservation = quotas.open(ANNA)
    assert not reservation.take_now("qwen3", size=400, output=100), "nothing is leased"
    assert dict(reservation.headers)["x-ratelimit-remaining-requests"] == "999"


async def test_two_processes_share_one_limit(counters: _Counters) -> None:
    ids = Ids()
    both = [_quotas(counters, ids, each_owner={"requests_per_minute": 100}) for _ in range(2)]
    served = 0
    for number in range(150):
        try:
            await _take(both[number % 2])
            served += 1
        except QuotaExceeded:
            pass
    assert 98 <= served <= 100


async def test_a_large_limit_needs_few_grants(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_minute": 10_000_000, "requests_per_minute": 100_000})
    for _ in range(400):
        (await _take(quotas)).close(150, 50, 0)
    assert counters.grants <= 2


async def test_shadow_mode_serves_and_counts(counters: _Counters) -> None:
    quotas = _quotas(counters, shadow=True, each_owner={"requests_per_minute": 1})
    with capture_logs() as lines:
        for _ in range(3):
            (await _take(quotas)).close(1, 1, 0)
    assert [line["event"] for line in lines] == ["quota_warning", "quota_would_refuse", "quota_would_refuse"]
    assert REFUSED == [("owner", "requests_per_minute", "shadow")] * 2
    await quotas.aclose()
    assert await _used(counters) == {("owner:n:anna", "requests_per_minute"): (3, 0)}


async def test_shadow_mode_names_every_limit_that_refuses(counters: _Counters) -> None:
    limits = {"requests_per_minute": 1, "tokens_per_month": 150}
    quotas = _quotas(counters, shadow=True, each_owner=limits, models={"qwen3": {"requests_per_minute": 1}})
    await _take(quotas)
    with capture_logs() as lines:
        await _take(quotas)
    refused = [(one["subject"], one["measure"]) for one in lines if one["event"] == "quota_would_refuse"]
    assert sorted(refused) == [
        ("model:qwen3", "requests_per_minute"),
        ("owner:n:anna", "requests_per_minute"),
        ("owner:n:anna", "tokens_per_month"),
    ]


@pytest.mark.parametrize(
    ("limit", "share", "at"),
    [(6, 0.8, 5), (5, 0.8, 4), (1, 0.8, 1), (100, 0.07, 7), (2000, 0.8, 1600), (300, 1.0, 300)],
)
async def test_the_warning_comes_when_the_use_reaches_the_share(
    counters: _Counters, limit: int, share: float, at: int
) -> None:
    quotas = _quotas(counters, warn_share=share, each_owner={"requests_per_minute": limit})
    warned = []
    for number in range(1, limit + 1):
        with capture_logs() as lines:
            await _take(quotas)
        warned += [(number, line["event"], line["used"]) for line in lines]
    # Requests within a lease need no query, so the warning may be late by the size of a lease.
    ((number, event, used),) = warned
    assert at <= number <= at + limit // 100 and event == "quota_warning" and used == number


async def test_a_refused_request_is_no_use(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 1000})
    with capture_logs() as lines:
        await _take(quotas, output=300)
        with pytest.raises(QuotaExceeded):
            await _take(quotas, output=700)
    assert not lines


async def test_a_failing_database_serves_and_counts_later(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 1000})
    counters.fault = StoreError("gone")
    with capture_logs() as lines:
        reservations = [await _take(quotas) for _ in range(3)]
    assert counters.grants == 1
    assert [line["event"] for line in lines] == ["quotas_not_counted"]
    assert not await quotas.flush()
    for one in reservations:
        one.close(20, 10, 0)
    counters.fault = None
    # The first report finds the current period, and the second one settles.
    assert await quotas.flush() and await quotas.flush()
    assert await _used(counters) == {("owner:n:anna", "tokens_per_month"): (60, 0)}


async def test_a_request_after_a_long_outage_drops_no_usage(
    counters: _Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000})
    (await _take(quotas)).close(20, 10, 0)
    # The second report returns the lease, which is idle.
    assert await quotas.flush() and await quotas.flush()
    monkeypatch.setattr("antiphon.engine.running.quotas._TRY_AGAIN", 0.0)
    counters.fault = StoreError("gone")
    for _ in range(2):
        (await _take(quotas)).close(20, 10, 0)
    counters.fault = None
    assert await counters.sweep(-60.0) == (1,), "another process ends this process's leases"

    async def fails(holder: str) -> None:
        raise StoreError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(counters, "join", fails)
        (await _take(quotas)).close(20, 10, 0)
    # This request comes before the next report.
    (await _take(quotas)).close(20, 10, 0)
    await quotas.aclose()
    assert await _used(counters) == {("owner:n:anna", "tokens_per_month"): (100, 0)}


async def test_requests_in_flight_at_the_end_of_an_outage_are_counted(
    counters: _Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000})
    monkeypatch.setattr("antiphon.engine.running.quotas._TRY_AGAIN", 0.0)
    before = await _take(quotas)
    counters.fault = StoreError("gone")
    during = await _take(quotas)
    counters.fault = None
    assert await counters.sweep(-60.0) == (1,), "another process counts the estimate of 200 as used"
    (await _take(quotas)).close(7, 1, 0)
    before.close(230, 10, 0)
    during.close(50, 10, 0)
    await quotas.aclose()
    assert await _used(counters) == {("owner:n:anna", "tokens_per_month"): (230 + 7 + 50, 0)}


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "finds no holder"])
async def test_a_report_that_ends_after_its_process_has_joined_again_drops_nothing(
    counters: _Counters, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000})
    (await _take(quotas)).close(250, 10, 0)
    report, gate = counters.report, asyncio.Event()

    async def slow(holder: str, reports: Sequence[Report]) -> bool:
        await gate.wait()
        if fails:
            raise StoreError("gone")
        return await report(holder, reports)

    with monkeypatch.context() as patch:
        patch.setattr(counters, "report", slow)
        flush = asyncio.create_task(quotas.flush())
        await asyncio.sleep(0)
        assert await counters.sweep(-60.0) == (1,), "another process counts the estimate of 200 as used"
        (await _take(quotas)).close(7, 1, 0)
        gate.set()
        assert await flush is not fails
    await quotas.aclose()
    assert await _used(counters) == {("owner:n:anna", "tokens_per_month"): (250 + 7, 0)}


async def test_a_request_over_the_end_of_a_month_counts_in_the_month_in_which_it_ends(stores: SqliteStores) -> None:
    clock = [1_796_083_199.9]  # A tenth of a second before December.
    counters = _Counters(stores.tables, lambda: clock[0])
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000})
    stream = await _take(quotas)
    (await _take(quotas)).close(9, 1, 0)
    clock[0] += 1
    await asyncio.sleep(0.2)
    stream.close(800, 700, 0)
    assert await quotas.flush() and await quotas.flush()
    (row,) = await counters.counters()
    # The process had not reported the 9 tokens before the end of November.
    assert (row.starts, row.used, row.leased) == (1_796_083_200_000, 800 + 9, 0)
    await quotas.aclose()


async def test_a_period_that_a_report_finds_ends(stores: SqliteStores) -> None:
    clock = [1_790_000_039.9]
    counters = _Counters(stores.tables, lambda: clock[0])
    quotas = _quotas(counters, each_owner={"tokens_per_minute": 1000})
    counters.fault = StoreError("gone")
    (await _take(quotas)).close(900, 10, 0)
    counters.fault = None
    # A tenth of a second before the minute's end, the first report finds the period.
    assert await quotas.flush()
    clock[0] += 1
    async with asyncio.timeout(30):
        while (await _take(quotas, size=3600)).headers[1][1] != "0":
            await asyncio.sleep(0.01)
    # The new minute counts from zero, so 1000 tokens fit.
    assert (await _used(counters))["owner:n:anna", "tokens_per_minute"][1] == 1000


async def test_a_failing_database_refuses_if_the_settings_say_so(counters: _Counters) -> None:
    quotas = _quotas(counters, when_unavailable="refuse", each_owner={"tokens_per_month": 1000})
    counters.fault = StoreError("gone")
    with pytest.raises(Unavailable, match="cannot check your quota"):
        await _take(quotas)
    assert REFUSED == [("owner", "tokens_per_month", "unavailable")]


async def test_a_hanging_database_delays_requests_once(counters: _Counters) -> None:
    quotas = _quotas(counters, grant_seconds=0.2, each_owner={"tokens_per_month": 1000})
    counters.gate = asyncio.Event()
    with capture_logs() as lines:
        await asyncio.gather(*(_take(quotas) for _ in range(20)))
        # The first call still hangs, so no later request waits.
        await asyncio.gather(*(_take(quotas) for _ in range(20)))
    assert counters.grants == 1
    assert [line["event"] for line in lines] == ["quotas_not_counted"]
    counters.gate.set()


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("measure", ["parallel_requests", "tokens_per_month"])
async def test_a_grant_with_an_unknown_outcome_holds_nothing_for_ever(
    counters: _Counters, measure: str, lost: Literal["before", "after"]
) -> None:
    quotas = _quotas(counters, each_owner={measure: 1000})
    first = await _take(quotas, BO)
    counters.lost = lost
    served = await _take(quotas)
    assert await quotas.flush()
    key = ("owner:n:anna", measure)
    assert (await _used(counters)).get(key, (0, 0)) == (0, 0), "the process returns what it does not know of"
    held = (await _used(counters))["owner:n:bo", measure][1]
    assert held == sum(lease.left + lease.reserved for lease in first.leases)
    served.close(7, 1, 0)
    first.close(5, 1, 0)
    await quotas.aclose()
    assert all(leased == 0 for _, leased in (await _used(counters)).values())


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_a_report_with_an_unknown_outcome_is_settled_once(
    counters: _Counters, lost: Literal["before", "after"]
) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000})
    running = await _take(quotas)
    (await _take(quotas)).close(70, 10, 0)
    counters.lost = lost
    assert not await quotas.flush()
    (await _take(quotas)).close(30, 10, 0)
    assert await quotas.flush()
    assert (await _used(counters))["owner:n:anna", "tokens_per_month"][0] == 100
    running.close(11, 1, 0)
    await quotas.aclose()
    assert await _used(counters) == {("owner:n:anna", "tokens_per_month"): (111, 0)}


async def test_a_process_whose_leases_were_settled_begins_again(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000})
    reservation = await _take(quotas)
    assert await counters.sweep(-60.0) == (1,)
    (await _take(quotas, size=4000)).close(7, 1, 0)
    reservation.close(3, 1, 0)
    await quotas.aclose()
    # The settled lease was charged, and the usage behind it was not charged again.
    used, leased = (await _used(counters))["owner:n:anna", "tokens_per_month"]
    assert leased == 0 and used == 200 + 7


async def test_a_background_response_is_charged_its_estimate_and_then_its_usage(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000, "parallel_requests": 1})
    queued = quotas.open(ANNA)
    if not queued.take_now("qwen3", size=400, output=None, background=True):
        await queued.take()
    queued.close(0, 0, 0, queued=True)
    # An attempt that another worker continues, and the last one.
    quotas.open(ANNA).close_job(
        "qwen3", size=400, output=None, tokens=30, written=0, cost=0, queued_at=NOW, ended=False
    )
    quotas.open(ANNA).close_job("qwen3", size=400, output=None, tokens=50, written=0, cost=0, queued_at=NOW, ended=True)
    await quotas.aclose()
    assert await _used(counters) == {("owner:n:anna", "tokens_per_month"): (80, 0)}


async def test_a_job_that_ends_in_a_later_period_refunds_nothing(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_minute": 10_000, "tokens_per_month": 10_000})
    quotas.open(ANNA).close_job(
        "m", size=400, output=900, tokens=5, written=0, cost=0, queued_at=NOW - 3600, ended=True
    )
    quotas.open(BO).close_job(
        "m", size=400, output=900, tokens=1200, written=0, cost=0, queued_at=NOW - 3600, ended=True
    )
    assert await quotas.flush() and await quotas.flush()
    used = {key: used for key, (used, _) in (await _used(counters)).items() if used}
    # The same month, and a later minute. The process that queued the jobs reports the estimates of 1000.
    assert used == {
        ("owner:n:anna", "tokens_per_month"): -995,
        ("owner:n:bo", "tokens_per_minute"): 200,
        ("owner:n:bo", "tokens_per_month"): 200,
    }


async def test_a_request_that_never_fits_is_refused_without_a_query(counters: _Counters) -> None:
    quotas = _quotas(counters, each_team={"tokens_per_month": 1000})
    for output in (10**19, 5000):
        with pytest.raises(QuotaExceeded, match="Send a smaller request"):
            await _take(quotas, output=output)
    assert counters.grants == 0
    # Nor does it hold up the requests of others.
    await _take(quotas, BO)
    await _take(quotas, output=-(10**6))


async def test_a_refused_request_does_not_hold_up_a_smaller_one(counters: _Counters) -> None:
    quotas = _quotas(counters, each_team={"tokens_per_month": 1000})
    (await _take(quotas, output=500)).close(600, 0, 0)
    with pytest.raises(QuotaExceeded):
        await _take(quotas, output=800)
    await _take(quotas, BO, output=200)


async def test_debts_stay_when_the_leases_were_settled(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000})
    (await _take(quotas)).close(150, 0, 0)
    await counters.sweep(-60.0)
    (await _take(quotas, size=40, output=0)).close(5000, 0, 0)
    assert await quotas.flush()
    await quotas.aclose()
    assert (await _used(counters))["owner:n:anna", "tokens_per_month"][0] >= 5000


async def test_the_estimate_follows_the_answers_of_the_model(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 100_000}, expected_output_tokens=900)
    for _ in range(2):
        (await _take(quotas, output=None)).close(150, 50, 0)
    await quotas.aclose()
    quotas = _quotas(counters, each_owner={"tokens_per_month": 1_300}, expected_output_tokens=900)
    (await _take(quotas, output=None)).close(150, 50, 0)
    # 100 of the body and 50 as the last answer.
    (await _take(quotas, output=None)).close(150, 50, 0)


async def test_headers_have_the_least_remaining(counters: _Counters) -> None:
    quotas = _quotas(
        counters,
        each_owner={"requests_per_minute": 60, "tokens_per_minute": 10_000},
        each_key={"requests_per_minute": 9},
    )
    reservation = await _take(quotas)
    headers = dict(reservation.headers)
    assert headers["x-ratelimit-limit-requests"] == "9" and headers["x-ratelimit-remaining-requests"] == "8"
    assert headers["x-ratelimit-limit-tokens"] == "10000" and headers["x-ratelimit-remaining-tokens"] == "9800"
    assert 0 <= float(headers["x-ratelimit-reset-tokens"].removesuffix("s")) <= 60
    assert (await _take(_quotas(counters, each_team={"tokens_per_month": 9000}))).headers == ()


async def test_loaded_history_must_fit_too(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"requests_per_minute": 10, "tokens_per_month": 1000, "cost_per_month": 1})
    first, second = await _take(quotas), await _take(quotas)
    assert not first.add_now(800)
    await first.take()
    key = ("owner:n:anna", "tokens_per_month")
    assert (await _used(counters))[key] == (0, 600)
    assert not second.add_now(2000)
    with pytest.raises(QuotaExceeded, match="limit 1000, 400 used or reserved, this request needs 700 "):
        await second.take()
    # A refusal returns the whole reservation, and settles nothing.
    second.close(0, 0, 0)
    assert not first.add_now(1600)
    await first.take()
    first.close(650, 50, 1200)
    await quotas.aclose()
    assert await _used(counters) == {
        ("owner:n:anna", "requests_per_minute"): (1, 0),
        key: (650, 0),
        ("owner:n:anna", "cost_per_month"): (1200, 0),
    }


async def test_history_that_fits_into_the_lease_needs_no_query(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 1_000_000})
    reservation = await _take(quotas)
    grants = counters.grants
    assert reservation.add_now(4000) and reservation.add_now(3)
    assert counters.grants == grants
    # Without a limit there is nothing to reserve.
    assert (await _take(_quotas(counters))).add_now(10**9)


async def test_the_cost_of_history_counts(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"cost_per_month": 0.001})
    reservation = await _take(quotas)
    assert not reservation.add_now(4000)
    with pytest.raises(
        QuotaExceeded,
        match=r"0\.001000, this request needs 0\.001400 \(an estimate: 1100 input and 100 output tokens\)",
    ):
        await reservation.take()


async def test_history_of_a_request_that_is_served_anyway_is_not_refused(counters: _Counters) -> None:
    shadowed = _quotas(counters, shadow=True, each_owner={"tokens_per_month": 150})
    with capture_logs() as lines:
        assert (await _take(shadowed)).add_now(4000)
    assert [line["event"] for line in lines] == ["quota_would_refuse"]
    failing = _quotas(counters, each_owner={"tokens_per_month": 1000})
    counters.fault = StoreError("gone")
    assert (await _take(failing)).add_now(4000)


async def test_a_database_that_fails_before_the_history_is_reserved(counters: _Counters) -> None:
    quotas = _quotas(counters, when_unavailable="refuse", each_owner={"tokens_per_month": 1000})
    reservation = await _take(quotas)
    counters.fault = StoreError("gone")
    assert not reservation.add_now(800)
    with pytest.raises(Unavailable):
        await reservation.take()
    reservation.close(0, 0, 0)
    counters.fault = None
    await quotas.aclose()
    assert await _used(counters) == {("owner:n:anna", "tokens_per_month"): (0, 0)}


async def test_history_after_the_leases_were_settled_is_reserved_with_its_request(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 10_000})
    reservation = await _take(quotas)
    assert await counters.sweep(-60.0) == (1,)
    (await _take(quotas, size=4000)).close(7, 1, 0)
    if not reservation.add_now(4000):
        await reservation.take()
    reservation.close(300, 1, 0)
    await quotas.aclose()
    # The settled lease was charged, and the request has moved to the new lease.
    assert (await _used(counters))["owner:n:anna", "tokens_per_month"] == (200 + 7 + 300, 0)


@pytest.mark.parametrize(("limit", "shown"), [(500, "0.000500"), (1_234_500, "1.234500"), (2_500_000, "2.50")])
def test_the_message_of_a_limit_on_cost_has_the_whole_limit(limit: int, shown: str) -> None:
    refused = QuotaExceeded("owner 'o'", "cost_per_month", limit, 238, seconds=9.0, used=limit)
    assert f"limit {shown}, {limit / 1e6:.6f} used or reserved, this request needs 0.000238." in str(refused)


def test_the_message_tells_when_a_month_ends_and_that_the_need_is_an_estimate() -> None:
    ends = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(days=2)
    seconds = (ends - datetime.now(UTC)).total_seconds()
    refused = QuotaExceeded("owner 'o'", "tokens_per_month", 9000, 7051, seconds=seconds, estimate=(15, 7036))
    assert (
        "this request needs 7051 (an estimate: 15 input and 7036 output tokens; set a smaller 'max_output_tokens' to "
        f"reserve less). Try again in 1d23h: the limit counts until {ends:%Y-%m-%d %H:%M} UTC." in str(refused)
    )
    minute = QuotaExceeded("owner 'o'", "requests_per_minute", 9, 1, seconds=9.0, estimate=(15, 7036))
    assert str(minute).endswith("this request needs 1. Try again in 9.000s.")
    early = QuotaExceeded("owner 'o'", "tokens_per_month", 9000, 15, seconds=seconds, early=True, estimate=(15, 0))
    assert str(early).endswith("needs 15 (an estimate: 15 input tokens). Try again in 2.000s.")


async def test_the_message_tells_usage_above_the_limit(counters: _Counters) -> None:
    quotas = _quotas(counters, each_owner={"tokens_per_month": 1000})
    (await _take(quotas)).close(1240, 40, 0)
    await quotas.flush()
    with pytest.raises(QuotaExceeded, match="limit 1000, 1240 used or reserved"):
        await _take(quotas)


@pytest.mark.parametrize("measure", ["requests_per_minute", "parallel_requests", "tokens_per_minute", "cost_per_month"])
def test_a_limit_of_zero_gives_no_advice_that_cannot_help(measure: str) -> None:
    refused = QuotaExceeded("owner 'o'", measure, 0, 1, seconds=9.0)
    assert str(refused).endswith("No request fits into this limit. Ask the operator to raise the limit.")


def test_a_claim_with_a_colon_has_the_limits_of_its_name() -> None:
    assert listed_names("j:f:1234:anna") == ("f:1234:anna", "j:f:1234:anna")
    assert listed_names("j:h:anna") == ("j:h:anna",)
