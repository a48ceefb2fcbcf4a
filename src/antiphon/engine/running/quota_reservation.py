"""Reserves a request's estimated usage in its quotas before the first model call, and settles the actual usage at the
end.

A `Lease` is the amount of one limit that a process has leased. A `QuotaReservation` is what one request reserves in the
leases. Not here: leasing, refusing and reporting (`quotas.py`), the choice of the limits that apply to a request
(`engine/ports/quotas.py`).

Invariant: a request holds a reservation in all of its limits, or in none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Final

from antiphon.engine.ports.actions import Usage
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.quotas import Grant, Limit, Measure
from antiphon.engine.running.quota_estimates import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from antiphon.engine.running.quotas import Quotas

FOREVER: Final = float("inf")
_MOST: Final = 10**12
_CHUNKS: Final = 100

Headers = tuple[tuple[str, str], ...]


class Lease:
    """The amount of one limit that this process leases in one period.

    `amount` is the limit's amount as a text. `left` is the free amount of the lease. `users` is the number of
    requests in flight that use the lease, and `reserved` is the amount that they have reserved. `spent` (used from
    the lease) and `debt` (used beyond the lease) wait for the next report. `known` is the used and leased amount of
    all processes at the last grant, and for a limit on parallel requests at the last report. `least` is the
    smallest free amount since the last report, for parallel requests only. `early`: at the last refusal, other
    processes held a large enough part of the limit that they had not reported as used. Requests wait until
    `reported_at` for these reports. `ends` and `reported_at` are in seconds of `time.monotonic`.
    `settled`: another process has counted the lease as used, because this process seemed dead.
    `counts` is the index in `Amounts` of the amount that this limit counts. `shown` is the index in `_SHOWN` of the
    headers that show the limit, or -1.
    """

    __slots__ = (
        *("amount", "asked_again_at", "chunk", "counts", "debt", "early", "ends", "idle", "known", "later", "least"),
        *("left", "limit", "parallel", "refused_need", "reported_at", "reserved", "settled", "shown", "spent"),
        *("starts", "users"),
    )

    def __init__(self, limit: Limit, debt: int = 0) -> None:
        self.limit = limit
        self.amount = str(limit.amount)
        self.chunk = limit.amount // _CHUNKS
        self.counts = _COUNTS[limit.measure]
        self.shown = _SHOWN_FOR.get(limit.measure, -1)
        self.parallel = limit.measure == "parallel_requests"
        self.starts = -1
        self.ends = FOREVER
        self.debt = debt
        self.left = self.reserved = self.spent = 0
        self.known = self.least = self.users = 0
        self.idle, self.early, self.settled = True, False, False
        self.asked_again_at = self.reported_at = 0.0
        self.refused_need = 0
        self.later: list[tuple[float, int]] = []

    def add(self, grant: Grant, now: float) -> None:
        """Add the amount of a grant to this lease."""
        self.starts = grant.starts
        for queued_at, more in self.later:
            self.correct(queued_at, more)
        self.later.clear()
        self.left += grant.amount
        self.pay()
        self.known = max(0, grant.used + grant.leased)
        if grant.amount:
            self.early = False
        if grant.ends:
            self.ends = now + (grant.ends - grant.now) / 1000

    def refuse(self, grant: Grant, missing: int, now: float, wait: float) -> None:
        """Note that the counters granted nothing to a request that lacks the amount `missing`. `wait`: the seconds
        until the other processes have reported the amounts that they have used by now."""
        own = self.reserved + self.spent + self.debt
        early = grant.used + own + missing <= self.limit.amount
        if early and not self.early:
            self.reported_at = now + wait
        self.early = early

    def awaits_others(self, now: float) -> bool:
        """Whether another process may soon return an amount, or report that it has used the amount."""
        return self.others if self.parallel else self.early and now < self.reported_at

    def correct(self, queued_at: float, more: int) -> None:
        """Settle the difference between the usage and the estimate of a job that was queued at the time `queued_at`. If
        the usage is smaller than the estimate, the difference is refunded only in the period in which the estimate was
        settled."""
        if self.starts == -1:
            self.later.append((queued_at, more))
        elif more > 0 or queued_at * 1000 >= self.starts:
            self.debt += more
            self.pay()

    def pay(self) -> None:
        """Cover the debt with the free amount. So while a lease has a debt, no request gets an amount of the lease."""
        if self.debt > 0 and self.left > 0:
            paid = min(self.debt, self.left)
            self.debt -= paid
            self.left -= paid
            self.spent += paid

    def learn(self, known: int) -> None:
        """Set `known`. If the other processes use less than before, requests ask the counters again at once."""
        if known < self.known:
            self.asked_again_at = 0.0
        self.known = known

    @property
    def remaining(self) -> int:
        """The amount that requests can still use, as far as this process knows."""
        free = self.limit.amount - self.known - max(0, self.debt)
        return free + self.left if free > 0 else self.left

    @property
    def used(self) -> int:
        """The amount that is used or reserved, as far as this process knows. Usage above the estimates may exceed the
        limit."""
        return self.known - self.left + self.debt

    @property
    def others(self) -> bool:
        """Whether other processes hold slots of this limit on parallel requests, as far as this process knows."""
        return self.parallel and self.known > self.left + self.reserved

    @property
    def scarce(self) -> bool:
        """Whether this process returns a free slot for parallel requests at once. It does when the processes hold more
        than half of the limit's slots, because another process may need the slot."""
        return self.parallel and self.known * 2 > self.limit.amount

    @property
    def surplus(self) -> int:
        """The free amount that this process returns with its next report. A free slot for parallel requests was not
        needed since the last report, or another process may need it. Of other amounts the process keeps one chunk, if a
        request has used the lease since then."""
        if not self.parallel:
            return self.left if self.idle else max(0, self.left - self.chunk)
        return self.left if self.scarce else min(self.least, self.left)

    @property
    def monthly(self) -> bool:
        """Whether the limit's period is a month."""
        return self.limit.measure.endswith("_month")

    @property
    def carried(self) -> int:
        """The amount of a month's lease that waits for the next report. If the month ends before this report, the
        amount counts in the next month."""
        return max(0, self.spent + self.debt) if self.monthly else 0

    @property
    def empty(self) -> bool:
        """Whether the lease has nothing to report, and no request needs it."""
        return not (self.left or self.users or self.spent or self.debt or self.later)


Amounts = tuple[int, int, int]
"""The amounts that a request needs: 1 request, its tokens, and its cost in millionths. `Lease.counts` is an index into
this tuple."""
_REQUEST, _TOKENS, _COST = range(3)
_COUNTS: Final[dict[Measure, int]] = {
    "parallel_requests": _REQUEST,
    "requests_per_minute": _REQUEST,
    "tokens_per_minute": _TOKENS,
    "tokens_per_month": _TOKENS,
    "cost_per_month": _COST,
}
_SHOWN: Final = (
    ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
)
# The headers show limits per minute only.
_SECONDS: Final = tuple(f"{seconds}s" for seconds in range(61))
_SHOWN_FOR: Final[dict[Measure, int]] = {"requests_per_minute": 0, "tokens_per_minute": 1}


class Plan:
    """The leases that apply to all requests of one caller for one model, until the period of one lease ends.

    `ends` is in seconds of `time.monotonic`. `queued` has the leases that apply to a request that only queues a
    response. `shown` has, for each group of headers, their names and the leases from which the group shows one.
    `slots` has the positions in `leases` of the limits on parallel requests. A request that needs more than `large` is
    large for one of the limits: it needs more than a hundredth of the limit. `costs`: whether a limit counts the cost.
    """

    __slots__ = ("costs", "ends", "large", "leases", "queued", "shown", "slots")

    def __init__(self, leases: Sequence[Lease]) -> None:
        self.leases = leases
        self.queued = [lease for lease in leases if not lease.parallel]
        self.costs = any(lease.counts == _COST for lease in leases)
        self.slots = [at for at, lease in enumerate(leases) if lease.parallel]
        tokens, cost = (
            min((lease.chunk for lease in leases if lease.counts == counts), default=_MOST)
            for counts in (_TOKENS, _COST)
        )
        self.large: Amounts = (_MOST, tokens, cost)
        self.ends = min((lease.ends for lease in leases), default=FOREVER)
        groups = [(names, [lease for lease in leases if lease.shown == at]) for at, names in enumerate(_SHOWN)]
        self.shown = [(names, of_group) for names, of_group in groups if of_group]


_NO_PLAN: Final = Plan(())


class QuotaReservation:
    """The amounts that one request reserves in all limits that apply to the request (`Reservation`)."""

    __slots__ = (
        *("_background", "_choices", "_closed", "_held", "_model", "_parts", "_plan", "_quotas", "_short", "_size"),
        *("abandoned", "amounts", "caller", "leases", "others"),
    )

    def __init__(self, quotas: Quotas, caller: Caller) -> None:
        self._quotas = quotas
        self.caller = caller
        self._background = self._closed = self._short = False
        self._model, self._choices, self._size = "", 1, 0
        self.others: Sequence[str] = ()
        self.amounts: Amounts = (1, 0, 0)
        self._plan = _NO_PLAN
        # The leases in which the request has a reservation, and the reserved amount in each of them.
        self._held: Sequence[Lease] = ()
        self._parts: list[int] = []
        self.abandoned = False
        """Whether the request has stopped waiting for a grant of the shared counters."""
        self.leases: Sequence[Lease] = ()
        """This process's leases of the limits that apply to the request, in their current periods."""

    def take_now(
        self, model: str, *, size: int, output: int | None, background: bool = False, choices: int = 1
    ) -> bool:
        """See `Reservation.take_now`."""
        self._choices = choices
        self._estimate(model, size, output, background)
        amounts = self.amounts
        if amounts[_TOKENS] > self._plan.large[_TOKENS] or amounts[_COST] > self._plan.large[_COST]:
            # The usage of requests that have just ended may exceed their estimates.
            self._quotas.settle()
        for lease in self.leases:
            if lease.left < amounts[lease.counts]:
                return False
        self.reserve()
        return True

    def add_now(self, size: int) -> bool:
        """See `Reservation.add_now`."""
        if not self._held:
            # No limit applies, or the request is a background job, whose estimate was charged when it was queued.
            return True
        before = self._size // BYTES_PER_TOKEN
        self._size += size
        read = self._size // BYTES_PER_TOKEN
        tokens = self.amounts[_TOKENS]
        cost = self._cost(read, tokens - before)
        self.amounts = (1, tokens + read - before, min(max(cost, self.amounts[_COST]), _MOST))
        self.refresh()
        if self.lacking() and not (self._short or self.abandoned):
            return False
        self.reserve()
        return True

    def take(self) -> Awaitable[None]:
        """See `Reservation.take`."""
        return self._quotas.fill(self)

    def _estimate(self, model: str, size: int, output: int | None, background: bool) -> None:
        self._model, self._background, self._size = model, background, size
        self.refresh()
        if self.leases:
            # A client may send any number, so limit it.
            output = None if output is None else _bounded(output)
            read, written = self._quotas.estimates.estimate(
                model, size, output, steady=background, choices=self._choices
            )
            self.amounts = (1, min(read + written, _MOST), min(self._cost(read, written), _MOST))

    def _cost(self, read: int, written: int) -> int:
        """The cost of these tokens at the prices of the named model with the highest cost. The result is 0 if no limit
        of the request counts the cost."""
        if not self._plan.costs:
            return 0
        if not self.others:
            return self._quotas.estimates.cost(self._model, read, written)
        return max(self._quotas.estimates.cost(one, read, written) for one in (self._model, *self.others))

    @property
    def estimate(self) -> tuple[int, int]:
        """The input and the output tokens that the request reserves."""
        read = min(self._size // BYTES_PER_TOKEN, self.amounts[_TOKENS])
        return read, self.amounts[_TOKENS] - read

    def refresh(self) -> None:
        """Look up the leases again, because the period of a limit may have ended."""
        self._plan = plan = self._quotas.plan(self.caller, self._model, self.others)
        self.leases = plan.queued if self._background else plan.leases

    def missing(self, lease: Lease) -> int:
        """The amount that the request needs beyond its reservation in the lease."""
        return self.amounts[lease.counts] - self._part(lease)

    def is_refused(self, lease: Lease, now: float) -> bool:
        """Whether the request exceeds the whole limit, or the counters refused an equal or smaller amount a moment ago.
        In both cases the process does not ask the counters."""
        if self.amounts[lease.counts] > lease.limit.amount:
            return True
        return now < lease.asked_again_at and self.missing(lease) - lease.left >= lease.refused_need

    def lacking(self) -> list[Lease]:
        """The leases whose free amount is smaller than the amount that the request still needs."""
        return [lease for lease in self.leases if lease.left < self.missing(lease)]

    def reserve(self) -> None:
        """Reserve the missing amount in each lease, or the lease's free amount if that is smaller.

        In shadow mode, or while the database fails, Antiphon serves even a request that gets less than its missing
        amount.
        """
        leases = self.leases
        if self._held is not leases:
            self._begin_again()
        amounts, parts = self.amounts, self._parts
        for at, lease in enumerate(leases):
            part = amounts[lease.counts] - parts[at]
            if part > lease.left:
                part = lease.left
                self._short = True
            lease.left -= part
            lease.reserved += part
            lease.idle = False
            parts[at] += part

    def _begin_again(self) -> None:
        """Reserve in the current leases from now on. A lease's period may have ended while the request loaded its
        history. Then the request counts in the new period."""
        held, leases = self._held, self.leases
        for lease in leases:
            lease.users += 1
        if not held:
            self._held, self._parts = leases, [0] * len(leases)
            return
        parts = [self._part(lease) for lease in leases]
        for lease, part in zip(held, self._parts, strict=True):
            lease.users -= 1
            if lease not in leases:
                lease.left += part
                lease.reserved -= part
        self._held, self._parts = leases, parts

    def _part(self, lease: Lease) -> int:
        """The amount that the request has reserved in this lease."""
        return self._parts[self._held.index(lease)] if lease in self._held else 0

    def release(self) -> None:
        """Give all reserved amounts back to the leases, because the request is refused."""
        if self._held:
            for lease, part in zip(self._held, self._parts, strict=True):
                lease.left += part
                lease.reserved -= part
                lease.users -= 1
                lease.pay()
            self._quotas.changed(soon=any(lease.scarce for lease in self._held))
            self._held, self._parts = (), []

    def free_slots(self) -> None:
        """See `Reservation.free_slots`."""
        held, soon = self._held, False
        for at in self._plan.slots if held is self._plan.leases else range(len(held)):
            lease, part = held[at], self._parts[at]
            if part and lease.parallel:
                lease.least = min(lease.least, lease.left)
                lease.left += part
                lease.reserved -= part
                self._parts[at] = 0
                soon = soon or lease.scarce
        if soon:
            self._quotas.changed(soon=True)

    def close(self, tokens: int, output: int, cost: int, *, queued: bool = False) -> None:
        """See `Reservation.close`."""
        if self._closed:
            return
        self._closed = True
        if not self._held:
            return
        if output > 0:
            self._quotas.estimates.learn(self._model, min(output, _MOST) // self._choices)
        if self.others:
            cost = max(cost, self._cost(tokens - output, output))
        # An upstream may report any number, so limit it.
        amounts = self.amounts if queued else (1, _bounded(tokens), _bounded(cost))
        self.free_slots()
        now = monotonic()
        for lease, part in zip(self._held, self._parts, strict=True):
            lease.users -= 1
            if lease.parallel:
                continue
            lease.reserved -= part
            used = amounts[lease.counts]
            if lease.settled or now >= lease.ends:
                # The lease counts no more. What another process has not counted yet counts in the current period.
                late = used - part if lease.settled else used
                if late > 0 and (lease.monthly or now < lease.ends):
                    self._quotas.lease(lease.limit).correct(0.0, late)
                continue
            left = lease.left + part - used
            if left < 0:
                lease.debt -= left
                used += left
                left = 0
            lease.left = left
            lease.spent += used
            if lease.debt > 0:
                lease.pay()
        self._quotas.changed()

    def close_read(self, read: int, written: int) -> None:
        """See `Reservation.close_read`."""
        self.close(read + written, written, self._cost(read, written))

    def close_as_estimated(self, sent: int = 0) -> None:
        """See `Reservation.close_as_estimated`."""
        used, tokens, cost = Usage.estimated(self._size, sent), self.amounts[_TOKENS], self.amounts[_COST]
        if used.total_tokens > tokens:
            tokens = used.total_tokens
            cost = max(cost, self._cost(used.input_tokens, used.output_tokens))
        self.close(tokens, 0, cost)

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
        """See `Reservation.close_job`."""
        if self._closed:
            return
        self._closed = True
        self._estimate(model, size, output, True)
        if self.others:
            cost = max(cost, self._cost(tokens - written, written))
        settled = self.amounts if ended else (0, 0, 0)
        used = (0, _bounded(tokens), _bounded(cost))
        for lease in self.leases:
            if lease.counts != _REQUEST:
                lease.correct(queued_at, used[lease.counts] - settled[lease.counts])
        self._quotas.changed()

    @property
    def by_model(self) -> bool:
        """See `Reservation.by_model`."""
        return self._quotas.by_model

    @property
    def headers(self) -> Headers:
        """The `x-ratelimit-*` headers of the answer. Each group of headers shows the limit with the smallest remaining
        amount."""
        shown = self._plan.shown
        if not shown:
            return ()
        found: list[tuple[str, str]] = []
        now = monotonic()
        for (limit, remaining, reset), leases in shown:
            lease = leases[0] if len(leases) == 1 else min(leases, key=_remaining)
            seconds = lease.ends - now
            left = _SECONDS[round(seconds)] if 0 < seconds <= 60 else "0s"
            found += ((limit, lease.amount), (remaining, str(lease.remaining)), (reset, left))
        return tuple(found)


_remaining = attrgetter("remaining")


def _bounded(amount: int) -> int:
    """The amount between 0 and `_MOST`."""
    return 0 if amount < 0 else min(amount, _MOST)
