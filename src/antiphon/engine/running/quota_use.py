"""Reports how much of each quota is used in its current period.

Lives here: a counter as operators see it. Not here: the counters (`stores/quotas.py`), the limits that apply
(`engine/ports/quotas.py`), the output (`commands/admin/command.py`, `api/admin.py`).
"""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct

from antiphon.engine.ports.quotas import QuotaRules
from antiphon.stores.quotas import QuotaStore, StoredCounter

_COST = "cost_per_month"


class QuotaUse(Struct, frozen=True):
    """The use of one limit. `period` is the start of the current period; None: the limit has no period. `held` is the
    amount that processes hold for requests. `maximum` is the limit of the settings; None: there is none now. Cost is in
    the currency of the prices."""

    subject: str
    limit: str
    period: str | None
    used: float
    held: float
    maximum: float | None


async def quota_use(store: QuotaStore, rules: QuotaRules, subject: str = "", *, most: int = 10_000) -> list[QuotaUse]:
    """Return at most `most` counters of this subject, or of all subjects. Raises `StoreError`."""
    return [_use(one, rules.limit_of(one.subject, one.measure)) for one in await store.counters(subject, most=most)]


def _use(one: StoredCounter, limit: int | None) -> QuotaUse:
    begun = datetime.fromtimestamp(one.starts / 1000, UTC) if one.starts else None
    period = begun.strftime("%Y-%m-%dT%H:%MZ") if begun is not None else None
    used, held = _amount(one.measure, one.used), _amount(one.measure, one.leased)
    maximum = None if limit is None else _amount(one.measure, limit)
    return QuotaUse(one.subject, one.measure, period, used, held, maximum)


def _amount(measure: str, amount: int) -> float:
    """The amount as the settings write it."""
    return amount / 1e6 if measure == _COST else amount
