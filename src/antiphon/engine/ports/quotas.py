"""Defines quotas: limits on requests, tokens and cost per owner, client key, team and model, as values and ports.

This module finds the limits that apply to a request. The module also defines the subjects with a limit, the error of a
refused request, and the port of the shared counters. Not here: the settings (`config/limits.py`), the counters in the
memory of a process (`engine/running/quotas.py`), the stored counters (`stores/quotas.py`).

To *settle* an amount means to count it as used for good. Invariants: an amount is a whole number: requests, tokens, or
millionths of the prices' currency. A subject's id starts with the subject's kind, so an owner and a team with the same
name have separate counters.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final, Literal, Protocol

from msgspec import Struct

from antiphon.engine.ports.callers import NAMED, OWNER_PREFIXES, Caller
from antiphon.errors import ApiError
from antiphon.types.transport import Headers

Measure = Literal["requests_per_minute", "tokens_per_minute", "tokens_per_month", "cost_per_month", "parallel_requests"]
Stock = Literal["stored_bytes", "file_bytes", "vector_chunks", "containers"]
"""A limit of stored data. Antiphon measures the stored data itself, whereas shared counters count the usage of a
`Measure`."""
STOCKS: Final[tuple[Stock, ...]] = ("stored_bytes", "file_bytes", "vector_chunks", "containers")
Kind = Literal["owner", "key", "team", "model"]
KINDS: Final[tuple[Kind, ...]] = ("owner", "key", "team", "model")
MEASURES: Final[tuple[Measure, ...]] = (
    "parallel_requests",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_month",
    "cost_per_month",
)


class Limit(Struct, frozen=True):
    """One limit of one subject, for example 60 requests per minute of the owner `anna`.

    `subject` is the id of the counter: the kind, a colon, and an owner id, key id, team, or model name or glob. `name`
    is the readable name of the subject. `amount` is the maximum of `measure`. A cost is in millionths of the currency
    in which the settings give the prices. A month is a calendar month in UTC.

        Limit("owner", "owner:n:anna", "anna", "requests_per_minute", 60)
        Limit("team", "team:ops", "ops", "cost_per_month", 25_000_000)  # 25.00
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

    @property
    def fields(self) -> dict[str, str | int]:
        """The fields of the limit in log lines."""
        return {"subject": self.subject, "name": self.name, "measure": self.measure, "limit": self.amount}


Amounts = Mapping[Measure | Stock, int]
"""The limits of one subject: `{"requests_per_minute": 60, "stored_bytes": 1 << 30}`. A missing measure has no limit."""


class QuotaRules(Struct, frozen=True):
    """All quota limits in the settings. `each` has the limits that apply to every single owner, key or team. `named`
    has the limits of single subjects. The settings list owners by name or id, keys by id, teams by name, and models by
    name or glob. An entry in `named` already contains the limits that it inherits from `each`.

        QuotaRules(
            each={"owner": {"requests_per_minute": 60}},
            named={"model": {"qwen*": {"parallel_requests": 8}}},
        )
    """

    each: Mapping[Kind, Amounts] = {}
    named: Mapping[Kind, Mapping[str, Amounts]] = {}

    def limits(self, caller: Caller, model: str, others: Sequence[str] = ()) -> tuple[Limit, ...]:
        """Return the limits that apply to this caller's requests for this model. `others` are the other models that the
        request names. A request must fit into all of these limits."""
        found = [
            *self._limits("key", caller.key_id, caller.key_id, (caller.key_id,)),
            *self._limits("owner", caller.owner, caller.name or caller.owner, listed_names(caller.owner)),
            *self._limits("team", caller.team, caller.team, (caller.team,)),
        ]
        for entry in self.entries((model, *others)):
            # The counter belongs to the entry in the settings, because clients choose model names.
            found += _of("model", entry, entry, self.named["model"][entry])
        return tuple(found)

    def entries(self, models: Sequence[str]) -> tuple[str, ...]:
        """Return the names and globs in the settings that limit these models, each once. Letters match in upper and
        lower case, because some upstreams ignore the case."""
        listed = self.named.get("model", {})
        found: dict[str, None] = {}
        for model in models:
            folded, entry = model.casefold(), model if model in listed else None
            if entry is None:
                entry = next((one for one in listed if fnmatchcase(folded, one.casefold())), None)
            if entry is not None:
                found[entry] = None
        return tuple(found)

    @property
    def limits_models(self) -> bool:
        """Whether any limit of a model is set."""
        return any(self.named.get("model", {}).values())

    @property
    def limits_storage(self) -> bool:
        """Whether any limit of stored data is set."""
        return any(self.limits_storage_of(kind) for kind in KINDS)

    def limits_storage_of(self, kind: Kind) -> bool:
        """Whether a limit of stored data is set for any subject of this kind."""
        every = (self.each.get(kind, {}), *self.named.get(kind, {}).values())
        return any(stock in amounts for amounts in every for stock in STOCKS)

    def stock(self, kind: Literal["owner", "team"], names: Sequence[str], stock: Stock) -> tuple[int, str] | None:
        """Return the limit `stock` of an owner or a team with one of these names, and the name of the setting with this
        limit.

        The setting's name is dotted, such as `quotas.each_owner.stored_bytes`. Returns None without a limit.
        """
        named, each = self.named.get(kind, {}), self.each.get(kind, {})
        name = next((one for one in names if one and one in named), "")
        amount = (named[name] if name else each).get(stock)
        if amount is None:
            return None
        section = f"quotas.{kind}s.{name}" if name and amount != each.get(stock) else f"quotas.each_{kind}"
        return amount, f"{section}.{stock}"

    def limit_of(self, subject: str, measure: str) -> int | None:
        """Return the limit of the counter of this subject, such as `owner:n:anna`, or None without such a limit.

        If the settings list an owner under another name than `subject` uses, the method returns the limit of all
        owners.
        """
        kind, _, name = subject.partition(":")
        for known in KINDS:
            if known == kind:
                named = self.named.get(known, {})
                names = listed_names(name) if known == "owner" else (name,)
                amounts = next((named[one] for one in names if one in named), self.each.get(known, {}))
                return {str(one): amount for one, amount in amounts.items()}.get(measure)
        return None

    def named_subjects(self) -> list[str]:
        """Return the subjects that the settings name, such as `owner:n:anna`. A name of an owner without a colon stands
        for the owner of client keys with this name."""
        return [
            f"{kind}:{NAMED}{name}" if kind == "owner" and ":" not in name else f"{kind}:{name}"
            for kind, named in self.named.items()
            for name in named
        ]

    def _limits(self, kind: Kind, subject: str, shown: str, names: Sequence[str]) -> list[Limit]:
        if not subject:
            return []
        named = self.named.get(kind, {})
        amounts = next((named[name] for name in names if name in named), self.each.get(kind, {}))
        return _of(kind, subject, shown, amounts)


def listed_names(owner: str) -> tuple[str, ...]:
    """Return the names under which the settings may list an owner: the owner id without its prefix, and the owner id.

    The readable name of a caller is not among them. With an identity provider, people may choose that name themselves.
    A name that looks like an owner id, such as `h:anna`, is not among them either. Otherwise it would match the limits
    of this owner id.

    Example: `listed_names("n:anna")` is `("anna", "n:anna")`.
    """
    name = owner.partition(":")[2]
    return (owner,) if name.startswith(OWNER_PREFIXES) else (name, owner)


def _of(kind: Kind, subject: str, name: str, amounts: Amounts) -> list[Limit]:
    return [
        Limit(kind, f"{kind}:{subject}", name, measure, amounts[measure]) for measure in MEASURES if measure in amounts
    ]


class Wanted(Struct, frozen=True):
    """A process's request for a lease of a limit. The process needs at least `need`, and prefers `want`, which is at
    least `need`. `warn_at` is the used and leased amount from which the counter sets `Grant.warn`."""

    limit: Limit
    need: int
    want: int
    warn_at: int


class Grant(Struct, frozen=True):
    """The shared counter's answer. `amount` is 0 when less than `need` was free. With a `need` of 0, the process only
    reads the counter.

    `starts` and `ends` bound the counter's period, and `now` is the time, in milliseconds of the database's clock. The
    limit `parallel_requests` has no period, so `starts` and `ends` are 0. `used` is the settled amount, and `leased`
    the amount that all processes hold, this grant included. `warn` is true for one grant in a period: the grant with
    which the used and leased amount reaches `Wanted.warn_at`. In this comparison, the counter adds only `Wanted.need`,
    not the whole granted amount.
    """

    amount: int
    starts: int
    ends: int
    now: int
    used: int
    leased: int
    warn: bool = False


class Report(Struct, frozen=True):
    """The usage of a process's lease since the last report, in the period that began at `starts`.

    `spent`: the leased amount to settle (to count as used for good). `back`: the unused amount that returns to the
    limit. `debt`: the amount to settle that no lease covers.
    """

    subject: str
    measure: Measure
    starts: int
    spent: int = 0
    back: int = 0
    debt: int = 0


_MEASURED = {
    "requests_per_minute": "requests per minute",
    "tokens_per_minute": "tokens per minute",
    "tokens_per_month": "tokens per month",
    "cost_per_month": "cost per month",
    "parallel_requests": "parallel requests",
}


class QuotaExceeded(ApiError):
    """A request does not fit into a limit of the settings' `quotas`: a 429.

    The code is `insufficient_quota` for a monthly limit, else `rate_limit_exceeded`. `type` is `insufficient_quota`,
    `tokens` or `requests`, as at OpenAI. The header `retry-after` has the seconds until the limit's period ends. A
    request that can never fit gets no `retry-after`. For a monthly limit, or a request that can never fit,
    `x-should-retry: false` tells SDKs not to retry. An early refusal has the code `rate_limit_exceeded` and a
    `retry-after` of two seconds, also for a monthly limit.
    """

    status = 429
    type = "rate_limit_exceeded"

    def __init__(
        self,
        whose: str,
        measure: str,
        amount: int,
        need: int,
        *,
        seconds: float | None,
        early: bool = False,
        used: int = 0,
        estimate: tuple[int, int] | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """`amount` is the limit, and `need` the amount that the request needs. `used` is the amount that is used or
        reserved, or 0 if it is unknown. `estimate` has the input and output tokens in the estimate. `seconds` is the
        time until the period ends, or None if the limit has no period. `early`: other processes hold unused parts of
        the limit, and return these parts within two seconds."""
        words, monthly, never = _MEASURED[measure], measure.endswith("_month") and not early, need > amount
        exact = measure == "cost_per_month"
        shown = (f"{amount / 1e6:.2f}" if amount % 10_000 == 0 else f"{amount / 1e6:.6f}") if exact else str(amount)
        wanted, taken = (f"{one / 1e6:.6f}" if exact else str(one) for one in (need, used))
        limit = f"limit {shown}" + (f", {taken} used or reserved" if used > 0 and not never else "")
        about = "" if estimate is None or "requests" in measure else _estimated(*estimate, advise=not never)
        wait = 2.0 if early else 1.0 if seconds is None else seconds
        if never and (amount <= 0 or "requests" in measure):
            then = "No request fits into this limit. Ask the operator to raise the limit."
        elif never:
            then = "Send a smaller request, or set a smaller 'max_output_tokens'."
        elif seconds is None:
            then = "Wait until one of the requests ends, then try again."
        else:
            then = f"Try again in {_duration(wait)}{_end(wait)}."
        super().__init__(
            f"Rate limit reached for {whose} on {words}: {limit}, this request needs {wanted}{about}. {then}",
            code="insufficient_quota" if monthly else "rate_limit_exceeded",
            headers=(
                *headers,
                *(() if never else (("retry-after", str(max(1, round(wait + 0.5)))),)),
                *((("x-should-retry", "false"),) if monthly or never else ()),
            ),
        )
        self.measure = measure
        if monthly:
            self.type = "insufficient_quota"
        elif measure.startswith("tokens"):
            self.type = "tokens"
        else:
            self.type = "requests"


def _estimated(read: int, written: int, *, advise: bool) -> str:
    if not written:
        return f" (an estimate: {read} input tokens)"
    advice = "; set a smaller 'max_output_tokens' to reserve less" if advise else ""
    return f" (an estimate: {read} input and {written} output tokens{advice})"


def _end(seconds: float) -> str:
    """The UTC time in `seconds` seconds, if that is more than an hour away. Otherwise an empty text."""
    if seconds <= 3600:
        return ""
    # The end of a month is a full minute, but the database's clock may differ by a moment.
    ends = datetime.now(UTC) + timedelta(seconds=seconds + 30)
    return f": the limit counts until {ends:%Y-%m-%d %H:%M} UTC"


def _duration(seconds: float) -> str:
    """Format a number of seconds as `2d3h`, `5m7s` or `1.250s`."""
    if seconds < 60:
        return f"{seconds:.3f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    return (
        f"{whole // 86_400}d{whole % 86_400 // 3600}h" if whole >= 86_400 else f"{whole // 3600}h{whole % 3600 // 60}m"
    )


class Reservation(Protocol):
    """The amounts that one request reserves in all limits that apply to the request. The runner reserves the amounts,
    and the observer settles them.

    `others` are the models that the request names in addition to its `model`. The request counts for each of them. If
    `by_model` is true, the caller sets `others` before the first reservation.
    """

    caller: Caller
    others: Sequence[str]

    @property
    def by_model(self) -> bool:
        """Whether any quota limits a model. If not, `others` has no effect."""

    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """The `x-ratelimit-*` headers of the answer. The result is empty if no limit on requests or tokens per minute
        applies."""

    def take_now(
        self, model: str, *, size: int, output: int | None, background: bool = False, choices: int = 1
    ) -> bool:
        """Reserve the request's amounts from this process's leases, before the first model call. Returns False if the
        leases are too small. The caller then calls `take`.

        `size`: the bytes of the request's body. `output`: the maximum of output tokens that the request allows.
        `background`: the request only queues a response, so it does not count as a parallel request. `choices`: the
        number of answers that the request asks for (`n`). Each answer may have `output` tokens.
        """

    def add_now(self, size: int) -> bool:
        """Reserve tokens and cost for `size` bytes of history or files that the runner has loaded, before the first
        model call. Returns False if the leases of this process are too small. The caller then calls `take`."""

    def take(self) -> Awaitable[None]:
        """Lease the missing amounts from the shared counters, and reserve the amounts that `take_now` or `add_now`
        could not reserve.

        Raises `QuotaExceeded` (429), and `Unavailable` (503) when the process cannot reach the counters. After an
        error, the request holds no reservation.
        """

    def free_slots(self) -> None:
        """Return the slots for parallel requests, because the request is over. The caller calls `close` up to a moment
        later."""

    def close(self, tokens: int, output: int, cost: int, *, queued: bool = False) -> None:
        """Settle the reservation with the actual usage of all model calls. A second call has no effect.

        `output`: the output tokens among `tokens`. `cost`: the cost in millionths of the prices' currency. `queued`:
        the response is queued, so its estimate counts as used until the response ends.
        """

    def close_read(self, read: int, written: int) -> None:
        """Settle a forwarded request with the input and output tokens of its answer. The cost is computed from the
        prices of the request's model."""

    def close_as_estimated(self, sent: int = 0) -> None:
        """Settle a forwarded request whose answer reports no usage. The request costs its estimate, or more if the
        answer's text is longer. `sent`: the bytes of this text."""

    def close_job(
        self,
        model: str,
        *,
        size: int,
        output: int | None,
        tokens: int,
        written: int,
        cost: int,
        queued_at: float,
        ended: bool,
    ) -> None:
        """Settle an attempt of a background response. The estimate of the response was settled when the response was
        queued.

        `written`: the output tokens among `tokens`. `queued_at` is the time of the estimate in seconds since the epoch.
        If `ended` is true, the response is over, so its actual usage replaces the estimate. `take_now` and `close`
        explain the other parameters.
        """


def with_limits(headers: Headers, reservation: Reservation | None) -> Headers:
    """Return the headers of an answer with those of the quotas. If quotas of this gateway apply, their headers replace
    the upstream's `x-ratelimit-*` headers."""
    own = reservation.headers if reservation is not None else ()
    if not own or not headers:
        return (*own, *headers)
    return (*own, *(pair for pair in headers if not pair[0].startswith("x-ratelimit-")))


class QuotaCounters(Protocol):
    """The counters that all processes share. Every method raises `StoreError`."""

    async def join(self, holder: str) -> None:
        """Register a process under the new id `holder`."""

    async def grant(self, holder: str, wanted: Sequence[Wanted]) -> list[Grant] | None:
        """Lease amounts of these limits. Returns one grant for each element of `wanted`, in order.

        Returns None when the holder is no longer registered, because its heartbeat was too late. In that case, the
        store has counted the holder's leases as used.
        """

    async def report(self, holder: str, reports: Sequence[Report]) -> bool:
        """Settle used amounts, return unused amounts, and record a heartbeat. Returns False when the holder is no
        longer registered."""

    async def held(self, holder: str) -> list[Report]:
        """Return the leases of a process, each as the report that would return the whole lease."""
        ...

    async def shared(self, holder: str) -> dict[str, int]:
        """Return the leased slots for parallel requests, by subject, of all limits in which both this process and
        another process hold slots."""
        ...

    async def leave(self, holder: str) -> None:
        """Remove the registration of a process that has reported all its usage. The amounts that the process leased
        become free."""
