"""Reserves a request's estimated usage in its quotas before the first model call, and settles the actual usage at the
end.

A `Lease` is the amount of one limit that a process has leased. A `QuotaReservation` is what one request reserves in the
leases. Not here: leasing, refusing and reporting (`quotas.py`), the choice of the limits that apply to a request
(`engine/ports/quotas.py`).

Invariant: a request holds a reservation in all of its limits, or in none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

from antiphon.engine.ports.actions import Usage
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.quotas import Grant, Limit, Measure

if TYPE_CHECKING:
    from antiphon.engine.running.quotas import Quotas

BYTES_PER_TOKEN: Final = 4
"""The bytes of a request's body that count as one token before the upstream reports the usage."""
FOREVER: Final = float("inf")
_MOST: Final = 10**12

Headers = tuple[tuple[str, str], ...]


class Lease:
    """The amount of one limit that this process leases in one period.

    `left` is the free amount of the lease. `users` is the number of requests in flight that use the lease, and
    `reserved` is the amount that they have reserved. `spent` (used from the lease) and `debt` (used beyond the lease)
    wait for the next report. `known` is the used and leased amount of all processes at the last grant. `ends` is in
    seconds of `time.monotonic`. `counts` is the index in `Amounts` of the amount that this limit counts. `shown`
    selects the headers that show the limit.
    """

    __slots__ = (
        *(
            "asked_again_at",
            "refused_need",
            "later",
            "counts",
            "debt",
            "ends",
            "idle",
            "known",
            "left",
            "limit",
            "parallel",
            "reserved",
        ),
        *("shown", "shown_limit", "spent", "starts", "users"),
    )

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.counts = _COUNTS[limit.measure]
        self.shown = _SHOWN_FOR.get(limit.measure, -1)
        self.shown_limit = str(limit.amount)
        self.parallel = limit.measure == "parallel_requests"
        self.starts = -1
        self.ends = FOREVER
        self.left = self.reserved = self.spent = self.debt = 0
        self.known = self.users = 0
        self.idle = True
        self.asked_again_at = 0.0
        self.refused_need = 0
        self.later: list[tuple[float, int]] = []

    def add(self, grant: Grant, now: float) -> None:
        """Add the amount of a grant to this lease."""
        self.starts = grant.starts
        for queued_at, more in self.later:
            self.correct(queued_at, more)
        self.later.clear()
        self.left += grant.amount
        self.known = max(0, grant.used + grant.leased)
        if grant.ends:
            self.ends = now + (grant.ends - grant.now) / 1000

    def correct(self, queued_at: float, more: int) -> None:
        """Settle the difference between the usage and the estimate of a job that was queued at the time `queued_at`. If
        the usage is smaller than the estimate, the difference is refunded only in the period in which the estimate was
        settled."""
        if self.starts == -1:
            self.later.append((queued_at, more))
        elif more > 0 or queued_at * 1000 >= self.starts:
            self.debt += more

    @property
    def remaining(self) -> int:
        """The amount that requests can still use, as far as this process knows."""
        free = self.limit.amount - self.known
        return free + self.left if free > 0 else self.left

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
_SHOWN_FOR: Final[dict[Measure, int]] = {"requests_per_minute": 0, "tokens_per_minute": 1}


class QuotaReservation:
    """The amounts that one request reserves in all limits that apply to the request (`Reservation`)."""

    __slots__ = (
        *("_background", "_choices", "_closed", "_model", "_parts", "_quotas", "_short", "_size"),
        *("abandoned", "amounts", "caller", "leases"),
    )

    def __init__(self, quotas: Quotas, caller: Caller) -> None:
        self._quotas = quotas
        self.caller = caller
        self._model = ""
        self._background = False
        self._choices = 1
        self.amounts: Amounts = (1, 0, 0)
        self._size = 0
        self._parts: dict[Lease, int] = {}
        self._short = False
        self._closed = False
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
        for lease in self.leases:
            if lease.left < amounts[lease.counts]:
                return False
        self.reserve()
        return True

    def add_now(self, size: int) -> bool:
        """See `Reservation.add_now`."""
        if not self._parts:
            # No limit applies, or the request is a background job, whose estimate was charged when it was queued.
            return True
        before = self._size // BYTES_PER_TOKEN
        self._size += size
        read = self._size // BYTES_PER_TOKEN
        tokens = self.amounts[_TOKENS]
        cost = self._quotas.cost(self._model, read, tokens - before)
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
            tokens, cost = self._quotas.estimate(model, size, output, steady=background, choices=self._choices)
            self.amounts = (1, _bounded(tokens), _bounded(cost))

    def refresh(self) -> None:
        """Look up the leases again, because the period of a limit may have ended."""
        leases = self._quotas.leases(self.caller, self._model)
        self.leases = [lease for lease in leases if not lease.parallel] if self._background else leases

    def missing(self, lease: Lease) -> int:
        """The amount that the request needs beyond its reservation in the lease."""
        return self.amounts[lease.counts] - self._parts.get(lease, 0)

    def lacking(self) -> list[Lease]:
        """The leases whose free amount is smaller than the amount that the request still needs."""
        return [lease for lease in self.leases if lease.left < self.missing(lease)]

    def reserve(self) -> None:
        """Reserve the missing amount in each lease, or the lease's free amount if that is smaller.

        In shadow mode, or while the database fails, Antiphon serves even a request that gets less than its missing
        amount.
        """
        amounts, parts = self.amounts, self._parts
        for old in [lease for lease in parts if lease not in self.leases] if parts else ():
            # The old lease's period ended while the request loaded its history, so the request counts in the new
            # period.
            _give_back(old, parts.pop(old))
        for lease in self.leases:
            held = parts.get(lease)
            if held is None:
                lease.users += 1
                held = 0
            part = amounts[lease.counts] - held
            if part > lease.left:
                part = lease.left
                self._short = True
            lease.left -= part
            lease.reserved += part
            lease.idle = False
            parts[lease] = held + part

    def release(self) -> None:
        """Give all reserved amounts back to the leases, because the request is refused."""
        parts = self._parts
        if parts:
            for lease, part in parts.items():
                _give_back(lease, part)
            self._quotas.changed(soon=any(lease.scarce for lease in parts))
            parts.clear()

    def close(self, tokens: int, output: int, cost: int, *, queued: bool = False) -> None:
        """See `Reservation.close`."""
        if self._closed:
            return
        self._closed = True
        if not self._parts:
            return
        if output > 0:
            self._quotas.learn(self._model, _bounded(output // self._choices))
        # An upstream may report any number, so limit it.
        amounts = self.amounts if queued else (1, _bounded(tokens), _bounded(cost))
        scarce = False
        for lease, part in self._parts.items():
            lease.users -= 1
            if lease.parallel:
                scarce = scarce or lease.scarce
                lease.reserved -= part
                lease.left += part
                continue
            used = amounts[lease.counts]
            lease.reserved -= part
            most = part + lease.left
            if used > most:
                lease.debt += used - most
                used = most
            lease.left = most - used
            lease.spent += used
        self._quotas.changed(soon=scarce)

    def close_read(self, read: int, written: int) -> None:
        """See `Reservation.close_read`."""
        self.close(read + written, written, self._quotas.cost(self._model, read, written))

    def close_as_estimated(self, sent: int = 0) -> None:
        """See `Reservation.close_as_estimated`."""
        used, tokens, cost = Usage.estimated(self._size, sent), self.amounts[_TOKENS], self.amounts[_COST]
        if used.total_tokens > tokens:
            tokens = used.total_tokens
            cost = max(cost, self._quotas.cost(self._model, used.input_tokens, used.output_tokens))
        self.close(tokens, 0, cost)

    def close_job(
        self, model: str, *, size: int, output: int | None, tokens: int, cost: int, queued_at: float, ended: bool
    ) -> None:
        """See `Reservation.close_job`."""
        if self._closed:
            return
        self._closed = True
        self._estimate(model, size, output, True)
        settled = self.amounts if ended else (0, 0, 0)
        used = (0, _bounded(tokens), _bounded(cost))
        for lease in self.leases:
            if lease.counts != _REQUEST:
                lease.correct(queued_at, used[lease.counts] - settled[lease.counts])
        self._quotas.changed()

    @property
    def headers(self) -> Headers:
        """The `x-ratelimit-*` headers of the answer. Each group of headers shows the limit with the smallest remaining
        amount."""
        least: dict[int, tuple[int, Lease]] = {}
        for lease in self.leases:
            if (shown := lease.shown) >= 0:
                remaining = lease.remaining
                if shown not in least or remaining < least[shown][0]:
                    least[shown] = remaining, lease
        found: list[tuple[str, str]] = []
        now = monotonic()
        for shown, (remaining, lease) in least.items():
            names, ends = _SHOWN[shown], lease.ends
            seconds = ends - now if now < ends != FOREVER else 0.0
            found += (
                (names[0], lease.shown_limit),
                (names[1], str(remaining)),
                (names[2], f"{seconds:.0f}s"),
            )
        return tuple(found)


def _bounded(amount: int) -> int:
    """The amount between 0 and `_MOST`."""
    return 0 if amount < 0 else min(amount, _MOST)


def _give_back(lease: Lease, part: int) -> None:
    lease.left += part
    lease.reserved -= part
    lease.users -= 1
