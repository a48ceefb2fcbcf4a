"""Reserves a request's part of its quotas before the first model call, and settles it by the usage at the end.

Lives here: the part of one limit that a process leases, and the parts of one request. Not here: leasing, refusing and
reporting (`quotas.py`), which limits apply to a request (`engine/ports/quotas.py`).

Invariant: a request holds a reservation in all of its limits, or in none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.quotas import Grant, Limit, Measure, QuotaExceeded

if TYPE_CHECKING:
    from antiphon.engine.running.quotas import Quotas

BYTES_PER_TOKEN: Final = 4
"""The bytes of a request's body that count as one token before the upstream reports the usage."""
FOREVER: Final = float("inf")
_PARALLEL_TRIES: Final = 4
_PARALLEL_PAUSE: Final = 0.1

Headers = tuple[tuple[str, str], ...]


def loop_time() -> float:
    return asyncio.get_running_loop().time()


class Lease:
    """This process's part of one limit in one period.

    `left` is leased and free, and `reserved` belongs to the `users` requests in flight. `spent` and `debt` wait for the
    next report. `known` is the used and leased amount of all processes at the last grant. `ends` is in seconds of the
    loop's clock.
    """

    __slots__ = (
        "asked_again_at",
        "debt",
        "ends",
        "idle",
        "known",
        "left",
        "limit",
        "reserved",
        "spent",
        "starts",
        "users",
    )

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.starts = -1
        self.ends = FOREVER
        self.left = self.reserved = self.spent = self.debt = 0
        self.known = self.users = 0
        self.idle = True
        self.asked_again_at = 0.0

    def add(self, grant: Grant, now: float) -> None:
        """Add a grant of the same period."""
        self.starts = grant.starts
        self.left += grant.amount
        self.known = grant.used + grant.leased
        if grant.ends:
            self.ends = now + (grant.ends - grant.now) / 1000

    @property
    def remaining(self) -> int:
        """The amount that requests can still use, as far as this process knows."""
        return max(0, self.limit.amount - self.known) + self.left

    @property
    def empty(self) -> bool:
        """Whether the lease has nothing to report, and no request needs it."""
        return not (self.left or self.users or self.spent or self.debt)


class QuotaReservation:
    """One request's part of all limits that apply to it (`Reservation`)."""

    __slots__ = ("_closed", "_cost", "_model", "_parts", "_quotas", "_tokens", "abandoned", "caller", "limits")

    def __init__(self, quotas: Quotas, caller: Caller) -> None:
        self._quotas = quotas
        self.caller = caller
        self._model = ""
        self._tokens = self._cost = 0
        self._parts: list[tuple[Lease, int]] = []
        self._closed = False
        self.abandoned = False
        """Whether the request no longer waits for a grant."""
        self.limits: tuple[Limit, ...] = ()

    async def take(self, model: str, *, size: int, output: int | None, background: bool = False) -> None:
        """See `Reservation.take`."""
        self._estimate(model, size, output, background=background)
        if not self.limits:
            return
        if not self.lacking():
            self.reserve()
            return
        for tries in range(_PARALLEL_TRIES):
            try:
                await self._quotas.fill(self)
            except QuotaExceeded as error:
                # Another process may return the slot of a request that has just ended.
                if error.measure != "parallel_requests" or tries == _PARALLEL_TRIES - 1:
                    raise
                await asyncio.sleep(_PARALLEL_PAUSE)
            else:
                return

    def _estimate(self, model: str, size: int, output: int | None, *, background: bool) -> None:
        limits = self._quotas.limits(self.caller, model)
        if background:
            limits = tuple(limit for limit in limits if limit.measure != "parallel_requests")
        self.limits, self._model = limits, model
        if limits:
            self._tokens, self._cost = self._quotas.estimate(model, size, output, steady=background)

    def amount(self, measure: Measure) -> int:
        """The amount of this measure that the request reserves."""
        if measure in ("tokens_per_minute", "tokens_per_month"):
            return self._tokens
        return self._cost if measure == "cost_per_month" else 1

    def lacking(self) -> list[tuple[Lease, int]]:
        """The leases that have less left than the request needs, each with the needed amount."""
        found = []
        for limit in self.limits:
            lease, need = self._quotas.lease(limit), self.amount(limit.measure)
            if lease.left < need:
                found.append((lease, need))
        return found

    def reserve(self) -> None:
        """Reserve as much as is left of what the request needs."""
        for limit in self.limits:
            lease = self._quotas.lease(limit)
            part = min(lease.left, self.amount(limit.measure))
            lease.left -= part
            lease.reserved += part
            lease.users += 1
            lease.idle = False
            self._parts.append((lease, part))

    def add(self, size: int) -> None:
        """Reserve tokens for `size` more bytes of history or files, as far as they are left in the leases."""
        tokens = size // BYTES_PER_TOKEN
        for number, (lease, part) in enumerate(self._parts):
            if lease.limit.measure in ("tokens_per_minute", "tokens_per_month"):
                more = min(lease.left, tokens)
                lease.left -= more
                lease.reserved += more
                self._parts[number] = (lease, part + more)

    def close(self, tokens: int, output: int, cost: int, *, queued: bool = False) -> None:
        """See `Reservation.close`."""
        if self._closed:
            return
        self._closed = True
        if output:
            self._quotas.learn(self._model, output)
        for lease, part in self._parts:
            measure = lease.limit.measure
            if measure == "parallel_requests":
                used = 0
            elif queued or measure == "requests_per_minute":
                used = self.amount(measure)
            else:
                used = cost if measure == "cost_per_month" else tokens
            lease.reserved -= part
            lease.users -= 1
            covered = min(used, part + lease.left)
            lease.left += part - covered
            lease.spent += covered
            lease.debt += used - covered
            self._quotas.changed(lease)

    def close_read(self, read: int, written: int) -> None:
        """See `Reservation.close_read`."""
        self.close(read + written, written, self._quotas.cost(self._model, read, written))

    def close_as_estimated(self) -> None:
        """See `Reservation.close_as_estimated`."""
        self.close(self._tokens, 0, self._cost)

    def close_job(self, model: str, *, size: int, output: int | None, tokens: int, cost: int, ended: bool) -> None:
        """See `Reservation.close_job`."""
        if self._closed:
            return
        self._closed = True
        self._estimate(model, size, output, background=True)
        settled = (self._tokens, self._cost) if ended else (0, 0)
        for limit in self.limits:
            if limit.measure != "requests_per_minute":
                lease = self._quotas.lease(limit)
                lease.debt += cost - settled[1] if limit.measure == "cost_per_month" else tokens - settled[0]
                self._quotas.changed(lease)

    @property
    def headers(self) -> Headers:
        """The `x-ratelimit-*` headers of the answer. Each pair is that of the limit with the least remaining."""
        found: list[tuple[str, str]] = []
        for unit, measure in (("requests", "requests_per_minute"), ("tokens", "tokens_per_minute")):
            leases = [self._quotas.lease(limit) for limit in self.limits if limit.measure == measure]
            if leases:
                least = min(leases, key=lambda lease: lease.remaining)
                reset = 0.0 if least.ends == FOREVER else max(0.0, least.ends - loop_time())
                found += [
                    (f"x-ratelimit-limit-{unit}", str(least.limit.amount)),
                    (f"x-ratelimit-remaining-{unit}", str(least.remaining)),
                    (f"x-ratelimit-reset-{unit}", f"{reset:.3f}s"),
                ]
        return tuple(found)
