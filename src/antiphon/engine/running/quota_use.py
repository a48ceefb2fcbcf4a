"""Reads the use of the quotas in their current periods, as operators see it.

The counters are in `stores/quotas.py`, and the leases of a process in `quotas.py`. Invariant: a cost is in the currency
of the prices, and any other amount is a count.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct, structs

from antiphon.engine.ports.quotas import MEASURES, QuotaRules
from antiphon.stores.quotas import QuotaStore, StoredCounter

_COST = "cost_per_month"


class QuotaUse(Struct, frozen=True):
    """The use of one limit. `period` is the start of the current period. `period` is None if the limit has no
    period, or if no request has used the limit in the current period. `held` is the
    amount that processes hold for requests. `maximum` is the limit of the settings; None: the settings have no limit
    any more. Cost is in the currency of the prices."""

    subject: str
    limit: str
    period: str | None
    used: float
    held: float
    maximum: float | None


async def quota_use(store: QuotaStore, rules: QuotaRules, subject: str = "", *, most: int = 10_000) -> list[QuotaUse]:
    """Return the use of at most `most` limits of this subject, or of all subjects. Raises `StoreError`."""
    return [_use(one, rules.limit_of(one.subject, one.measure)) for one in await store.counters(subject, most=most)]


def with_unused(found: Sequence[QuotaUse], rules: QuotaRules, subject: str = "") -> list[QuotaUse]:
    """Return `found` and the limits of the same subjects that no request has used. The result also has the limits of
    the subject `subject`, or of each subject that the settings name."""
    counted = {(one.subject, one.limit): one for one in found}
    subjects = dict.fromkeys([one.subject for one in found] + ([subject] if subject else rules.named_subjects()))
    every = {(each, measure): rules.limit_of(each, measure) for each in subjects for measure in MEASURES}
    unused = {
        key: QuotaUse(*key, None, 0, 0, _amount(key[1], limit))
        for key, limit in every.items()
        if limit is not None and key not in counted
    }
    return sorted((counted | unused).values(), key=lambda one: one.subject)


def _use(one: StoredCounter, limit: int | None) -> QuotaUse:
    begun = datetime.fromtimestamp(one.starts / 1000, UTC) if one.starts else None
    if begun is not None and _is_over(one, begun):
        # The next request resets the counter.
        begun, one = None, structs.replace(one, used=0, leased=0)
    period = begun.strftime("%Y-%m-%dT%H:%MZ") if begun is not None else None
    used, held = _amount(one.measure, max(0, one.used)), _amount(one.measure, one.leased)
    maximum = None if limit is None else _amount(one.measure, limit)
    return QuotaUse(one.subject, one.measure, period, used, held, maximum)


def _is_over(one: StoredCounter, begun: datetime) -> bool:
    now = datetime.now(UTC)
    if one.measure.endswith("_minute"):
        return now - begun >= timedelta(minutes=1)
    return (begun.year, begun.month) < (now.year, now.month)


def _amount(measure: str, amount: int) -> float:
    """The amount in the unit that the settings use: a cost in the currency, any other amount unchanged."""
    return amount / 1e6 if measure == _COST else amount
