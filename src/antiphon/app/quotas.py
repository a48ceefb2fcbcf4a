"""Builds the quotas of a process from the settings.

Lives here: the conversion of the settings into rules, and building the object that applies them. Not here: the settings
(`config/quotas.py`), which rules apply to a request (`engine/ports/quotas.py`), counting (`engine/running/quotas.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from antiphon.config.quotas import QuotaLimits, QuotaSettings
from antiphon.config.settings import Settings
from antiphon.config.upstreams import PriceSettings
from antiphon.engine.ports.callers import NAMED
from antiphon.engine.ports.quotas import MEASURES, STOCKS, Amounts, Kind, Measure, QuotaCounters, QuotaRules, Stock
from antiphon.engine.running.quotas import Quotas
from antiphon.ids import new_id
from antiphon.observability.metrics import Metrics


def quota_rules(settings: QuotaSettings) -> QuotaRules:
    """Return all limits of the settings. Every named entry contains the limits that it inherits."""
    each: dict[Kind, QuotaLimits] = {
        "owner": settings.each_owner,
        "key": settings.each_key,
        "team": settings.each_team,
        "model": QuotaLimits(),
    }
    named: dict[Kind, Mapping[str, QuotaLimits]] = {
        "owner": settings.owners,
        "key": settings.keys,
        "team": settings.teams,
        "model": settings.models,
    }
    return QuotaRules(
        {kind: _amounts(limits) for kind, limits in each.items()},
        {
            kind: {name: _amounts(limits.over(each[kind])) for name, limits in given.items()}
            for kind, given in named.items()
        },
    )


def storage_limits(settings: Settings) -> tuple[QuotaRules, Mapping[str, Sequence[str]]]:
    """Return the limits of the settings, and the owners that the settings assign to each team."""
    teams: dict[str, list[str]] = {}
    for name, owner in (settings.owner.keys or {}).items():
        if owner.team:
            teams.setdefault(owner.team, []).append(f"{NAMED}{name}")
    return quota_rules(settings.quotas), teams


def make_quotas(
    settings: QuotaSettings,
    counters: QuotaCounters,
    price_of: Callable[[str], PriceSettings | None],
    metrics: Metrics,
) -> Quotas | None:
    """Return the quotas of a process, or None when the settings limit nothing."""
    if not settings.in_force:
        return None

    def cost(model: str, read: int, written: int) -> int:
        price = price_of(model)
        return price.cost(read, 0, written) if price is not None else 0

    return Quotas(
        quota_rules(settings),
        counters,
        new_id,
        cost=cost,
        expected_output=settings.expected_output_tokens,
        shadow=settings.shadow,
        refuses=settings.when_unavailable == "refuse",
        warn_share=settings.warn_share,
        refused=metrics.quota_refusals.add,
    )


def _amounts(limits: QuotaLimits) -> Amounts:
    """Return the limits that are set, by measure. Cost is in millionths of the currency."""
    found: dict[Measure | Stock, int] = {}
    for name in (*MEASURES, *STOCKS):
        value = getattr(limits, name, None)
        if value is not None:
            found[name] = round(value * 1_000_000) if name == "cost_per_month" else value
    return found
