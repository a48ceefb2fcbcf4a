"""Implements `antiphon admin quotas`: prints how much of each quota is used in its current period.

Lives here: the output. Not here: the counters (`stores/quotas.py`), the limits that apply (`engine/ports/quotas.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from antiphon.app.quotas import quota_rules
from antiphon.commands.tables import printable, write_table
from antiphon.config.settings import Settings
from antiphon.engine.ports.quotas import KINDS, QuotaRules
from antiphon.stores.quotas import QuotaStore, StoredCounter

_COST = "cost_per_month"


async def show_quotas(settings: Settings, store: QuotaStore, *, as_json: bool) -> int:
    """Print one row for each counter. Returns the exit status. Raises `StoreError`.

    A row has the used amount, the amount that processes hold for requests, and the limit of the settings. The limit of
    a named owner whose settings entry uses another name than the counter's id is that of all owners.
    """
    rules = quota_rules(settings.quotas)
    found = [(one, _limit(rules, one)) for one in await store.counters()]
    if as_json:
        for one, limit in found:
            shown = dict(zip(_NAMES, _row(one, limit), strict=True))
            print(json.dumps(shown))
        return 0
    rows = [list(_NAMES)]
    for one, limit in found:
        rows.append([printable(str(value)) if value is not None else "-" for value in _row(one, limit)])
    write_table(rows, sys.stdout)
    return 0


_NAMES = ("subject", "limit", "period", "used", "held", "maximum")


def _row(one: StoredCounter, limit: int | None) -> tuple[str | float | None, ...]:
    period = datetime.fromtimestamp(one.starts / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ") if one.starts else None
    return (one.subject, one.measure, period, *_amounts(one.measure, one.used, one.leased, limit))


def _amounts(measure: str, *amounts: int | None) -> Iterator[float | None]:
    """The amounts as the settings write them: cost in the currency."""
    for amount in amounts:
        yield amount / 1e6 if measure == _COST and amount is not None else amount


def _limit(rules: QuotaRules, one: StoredCounter) -> int | None:
    kind, _, subject = one.subject.partition(":")
    for known in KINDS:
        if known == kind:
            named = rules.named.get(known, {})
            plain = subject.partition(":")[2] if known == "owner" else subject
            amounts = named.get(plain) or named.get(subject) or rules.each.get(known, {})
            return {str(measure): amount for measure, amount in amounts.items()}.get(one.measure)
    return None
