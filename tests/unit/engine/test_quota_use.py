"""The use of a quota in a period that is over counts no more."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from antiphon.engine.ports.quotas import QuotaRules
from antiphon.engine.running.quota_use import quota_use
from antiphon.stores.quotas import QuotaStore, StoredCounter


class _Rules:
    def limit_of(self, subject: str, measure: str) -> int:
        return 120


class _Counters:
    def __init__(self, *counters: StoredCounter) -> None:
        self._counters = list(counters)

    async def counters(self, subject: str, *, most: int) -> list[StoredCounter]:
        return self._counters


@pytest.mark.parametrize(
    ("measure", "seconds", "used"),
    [
        ("requests_per_minute", 1, 20),
        ("requests_per_minute", 61, 0),
        ("tokens_per_month", 0, 20),
        ("tokens_per_month", 32 * 86_400, 0),
    ],
)
async def test_a_past_period_is_not_used(measure: str, seconds: int, used: int) -> None:
    starts = round((time.time() - seconds) * 1000)
    store: Any = _Counters(StoredCounter("owner:n:anna", measure, starts, 20, 3))
    (found,) = await quota_use(cast(QuotaStore, store), cast(QuotaRules, _Rules()))
    assert (found.used, found.held, found.maximum) == (used, 3 if used else 0, 120)
    assert (found.period is None) is (used == 0)
