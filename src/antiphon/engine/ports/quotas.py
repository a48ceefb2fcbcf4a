"""Defines quotas: limits on requests, tokens and cost per owner, client key, team and model, as values and ports.

Lives here: the limits that apply to a request, the counted subjects, and the ports of the shared counters and of a
request's reservation. Not here: the settings (`config/quotas.py`), the counters in the memory of a process
(`engine/running/quotas.py`), the stored counters (`stores/quotas.py`).

Invariants: an amount is a whole number: requests, tokens, or millionths of the prices' currency. A subject's id has a
prefix of its kind, so an owner and a team of one name have separate counters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal, Protocol

from msgspec import Struct

from antiphon.engine.ports.actions import Usage
from antiphon.engine.ports.callers import Caller

Measure = Literal["requests_per_minute", "tokens_per_minute", "tokens_per_month", "cost_per_month", "parallel_requests"]
Kind = Literal["owner", "key", "team", "model"]
MEASURES: Final[tuple[Measure, ...]] = (
    "parallel_requests",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_month",
    "cost_per_month",
)
_MOST_CACHED: Final = 10_000


class Limit(Struct, frozen=True):
    """One limit of one subject, for example 60 requests per minute of the owner `anna`.

    `subject` is the id of the counter, such as `owner:n:anna`. `name` is the readable name of the subject. `amount` is
    the maximum of `measure`; cost is in millionths of the prices' currency.
    """

    kind: Kind
    subject: str
    name: str
    measure: Measure
    amount: int

    @property
    def whose(self) -> str:
        """The subject in an error message, such as `owner 'anna'`."""
        return f"{'API key' if self.kind == 'key' else self.kind} '{self.name}'"


Amounts = Mapping[Measure, int]
"""The limits of one subject. A measure that is not in the mapping has no limit."""


class QuotaRules(Struct, frozen=True):
    """All limits of the settings. `each` has the limits of every owner, key or team. `named` has the limits of single
    subjects. Owners are listed by name or id, keys by id, teams by name, and models by name or glob. An entry in
    `named` already contains the limits that it inherits from `each`."""

    each: Mapping[Kind, Amounts] = {}
    named: Mapping[Kind, Mapping[str, Amounts]] = {}

    def limits(self, caller: Caller, model: str) -> tuple[Limit, ...]:
        """Return the limits that apply to this caller's requests for this model. A request must fit into all of
        them."""
        found = [
            *self._limits("key", caller.key_id, (caller.key_id,)),
            *self._limits("owner", caller.owner, (caller.name, caller.owner)),
            *self._limits("team", caller.team, (caller.team,)),
        ]
        models = self.named.get("model", {})
        # The counter of a model is the counter of its entry in the settings, because clients choose model names.
        pattern = model if model in models else next((one for one in models if fnmatchcase(model, one)), None)
        if pattern is not None:
            found += _of("model", pattern, pattern, models[pattern])
        return tuple(found)

    def _limits(self, kind: Kind, subject: str, names: Sequence[str]) -> list[Limit]:
        if not subject:
            return []
        named = self.named.get(kind, {})
        amounts = next((named[name] for name in names if name in named), self.each.get(kind, {}))
        return _of(kind, subject, next(name for name in names if name), amounts)


def _of(kind: Kind, subject: str, name: str, amounts: Amounts) -> list[Limit]:
    return [
        Limit(kind, f"{kind}:{subject}", name, measure, amounts[measure]) for measure in MEASURES if measure in amounts
    ]


class CachedRules:
    """`QuotaRules` with a cache of the limits by caller and model. The cache is bounded."""

    def __init__(self, rules: QuotaRules) -> None:
        self._rules = rules
        self._cache: dict[tuple[str, str, str, str], tuple[Limit, ...]] = {}

    def limits(self, caller: Caller, model: str) -> tuple[Limit, ...]:
        """See `QuotaRules.limits`."""
        key = (caller.owner, caller.key_id, caller.team, model)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
            found = self._cache[key] = self._rules.limits(caller, model)
        return found


class Wanted(Struct, frozen=True):
    """A process asks for a part of a limit. It needs at least `need`, and would like `want`, which is at least
    `need`. The counter asks for a warning at the grant with which the used and leased amount reaches `warn_at`."""

    limit: Limit
    need: int
    want: int
    warn_at: int


class Grant(Struct, frozen=True):
    """The shared counter's answer. `amount` is 0 when less than `need` was free.

    `starts` and `ends` bound the counter's period, and `now` is the time, in milliseconds of the database's clock. The
    limit `parallel_requests` has no period; `starts` and `ends` are 0. `used` is the settled amount, and `leased` the
    amount that all processes hold, this grant included. `warn` is true for the one grant of a period that crossed the
    share for a warning.
    """

    amount: int
    starts: int
    ends: int
    now: int
    used: int
    leased: int
    warn: bool = False


class Report(Struct, frozen=True):
    """What a process did with its part of a limit since its last report, in the period that began at `starts`.

    `spent`: the amount to settle out of the lease. `back`: the unused amount that returns to the limit. `debt`: the
    amount to settle that no lease covers.
    """

    subject: str
    measure: Measure
    starts: int
    spent: int = 0
    back: int = 0
    debt: int = 0


class QuotaCounters(Protocol):
    """The counters that all processes share. Every method raises `StoreError`."""

    async def join(self, holder: str) -> None:
        """Register a process under a new id."""

    async def grant(self, holder: str, wanted: Sequence[Wanted]) -> list[Grant] | None:
        """Lease parts of these limits, in order. Returns None when the holder is not registered any more, because it
        gave no sign of life for too long. Its leases were then settled as used."""

    async def report(self, holder: str, reports: Sequence[Report]) -> bool:
        """Settle and return parts of leases, and give a sign of life. Returns False like `grant` returns None."""


class Reservation(Protocol):
    """One request's part of all limits that apply to it."""

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """The `x-ratelimit-*` headers of the answer. Empty without a limit on requests or tokens per minute."""

    async def take(self, model: str, *, size: int, output: int | None) -> None:
        """Reserve the request before its first model call. `size`: the bytes of the request's body. `output`: the
        maximum of output tokens that the request allows. Raises `QuotaExceeded` and `Unavailable`."""

    def add(self, size: int) -> None:
        """Reserve tokens for `size` more bytes of history or files. The reservation may exceed the limits."""

    def spent(self, usage: Usage, cost: int) -> None:
        """Note the usage of one model call. `cost`: its cost in millionths."""

    def close(self) -> None:
        """Settle the reservation by the noted usage. A second call has no effect."""
