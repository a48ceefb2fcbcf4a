"""Leases amounts of the shared quotas for one process, and reports the used amounts.

This module leases more when a request does not fit, refuses the request when no amount is free, and reports to the
shared counters. Not here: a request's reservation (`quota_reservation.py`), the use that operators see
(`quota_use.py`), the limits of a request (`engine/ports/quotas.py`), the shared counters (`stores/quotas.py`).

A request that fits into the leases of its process needs no database query. Otherwise the process leases more. About
once a second, the process reports its usage to the shared counters, and returns leases that no request needs.

Invariants: a request begins only if its estimate fits into all limits, except in shadow mode or while the database
fails. `QuotaStore.sweep` counts the leases of a killed process as used. A request waits at most `GRANT_SECONDS` for the
database. After a failure of the database, a process retries the database at most once a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from math import ceil
from time import monotonic
from typing import Final, Literal, NoReturn

import structlog

from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.quotas import Limit, Measure, QuotaCounters, QuotaExceeded, QuotaRules, Report, Wanted
from antiphon.engine.running.quota_estimates import Estimates
from antiphon.engine.running.quota_reservation import FOREVER, Lease, Plan, QuotaReservation
from antiphon.engine.waiting import look_at
from antiphon.errors import StoreError, Unavailable
from antiphon.ids import IdFactory
from antiphon.observability.repeated_failures import Outage

GRANT_SECONDS: Final = 5.0
"""Seconds that a request waits for the database to grant a lease. A shorter time would let requests of a busy machine
exceed limits."""
HEARTBEAT: Final = 10.0
"""Seconds between two heartbeats of a process that holds leases."""
DEAD_AFTER: Final = 30.0
"""Seconds without a heartbeat after which the store counts the leases of a process as used."""
_TRY_AGAIN: Final = 1.0
_LAST_REPORTS: Final = 3
"""The maximum number of reports that a stopping process sends. A debt may need two reports: the first finds the limit's
current period, and the second settles the debt."""
_ASK_AGAIN: Final = 0.2
_RETURN: Final = 0.05
_REPORT_WAIT: Final = 0.25
_PAUSE: Final = 0.1
_MOST_PLANS: Final = 10_000
_WARN_AGAIN: Final = 600.0
"""Seconds between two warnings of one process about one limit on parallel requests. Such a limit has no period."""

Refusal = Literal["refused", "early", "shadow", "unavailable"]
_log = structlog.get_logger(__name__)


class Quotas:
    """The quotas of one process. The caller calls `start` before the first request, and `aclose` after the last one."""

    def __init__(
        self,
        rules: QuotaRules,
        counters: QuotaCounters,
        new_id: IdFactory,
        *,
        cost: Callable[[str, int, int], int],
        expected_output: int,
        shadow: bool = False,
        refuses: bool = False,
        warn_share: float = 0.8,
        refused: Callable[[str, str, Refusal], None] = lambda kind, measure, refusal: None,
        settle: Callable[[], None] = lambda: None,
        seconds: float = 1.0,
        grant_seconds: float = GRANT_SECONDS,
    ) -> None:
        """`cost` returns the cost of a model call in millionths, for a model and its numbers of input and output
        tokens. `expected_output`: the output tokens to reserve for a model from which this process has had no answer
        yet. `refuses`: whether requests get a 503 while the database fails. `refused` is called for each refusal, with
        the kind of subject, the measure and the kind of refusal. `settle` closes the reservations of all requests that
        have ended. `seconds`: the time between two reports to the shared counters. `grant_seconds`: the time that a
        request waits for the database."""
        self._rules = rules
        self.by_model = rules.limits_models
        self._counters = counters
        self._new_id = new_id
        self.estimates = Estimates(cost, expected_output)
        self._shadow = shadow
        self._refuses = refuses
        # As a decimal number, 0.07 of 100 is exactly 7.
        self._warn_share = Fraction(str(warn_share))
        self._refused = refused
        self.settle = settle
        self._seconds = seconds
        self._grant_seconds = grant_seconds
        # By then, another process has returned the slots of ended requests and reported the used amounts.
        self._report_seconds = min(seconds, _TRY_AGAIN) + _REPORT_WAIT
        self._holder = ""
        self._leases: dict[tuple[str, Measure], Lease] = {}
        self._plans: dict[tuple[str, str, str, str | tuple[str, ...]], Plan] = {}
        self._warned_at: dict[str, float] = {}
        self._lock = asyncio.Lock()
        self._dirty, self._soon = asyncio.Event(), asyncio.Event()
        self._failed_until, self._failing, self._closing = 0.0, False, False
        # The reports whose outcome is unknown, and whether the outcome of a report or grant is unknown.
        self._unknown: list[Report] = []
        self._unsure = False
        self._task: asyncio.Task[None] | None = None
        self._grants: set[asyncio.Task[Sequence[Limit]]] = set()
        self._outage = Outage(_log, "quotas_not_counted", "quotas_counted_again")

    def start(self) -> None:
        """Start the task that reports to the shared counters."""
        self._task = asyncio.get_running_loop().create_task(self._report_on())

    async def aclose(self) -> None:
        """Report the remaining usage, and give all leases back to the shared counters."""
        self._closing = True
        if self._task is not None:
            # Do not cancel a running report, because its outcome would be unknown.
            self._dirty.set()
            self._soon.set()
            await self._task
        for lease in self._leases.values():
            lease.idle = True
        reported = True
        for _ in range(_LAST_REPORTS):
            self._dirty.clear()
            reported = await self.flush()
            if not reported or not self._dirty.is_set():
                break
        if reported and self._holder:
            with suppress(StoreError):
                await self._counters.leave(self._holder)

    def open(self, caller: Caller) -> QuotaReservation:
        """Return an empty reservation for a request of this caller."""
        return QuotaReservation(self, caller)

    def plan(self, caller: Caller, model: str, others: Sequence[str] = ()) -> Plan:
        """The leases of all limits that apply to this caller's requests for these models, in their current periods."""
        key = (caller.owner, caller.key_id, caller.team, self._rules.entries((model, *others)) if others else model)
        plan = self._plans.get(key)
        if plan is None or monotonic() >= plan.ends:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            limits = self._rules.limits(caller, model, others)
            plan = self._plans[key] = Plan([self.lease(limit) for limit in limits])
        return plan

    def lease(self, limit: Limit) -> Lease:
        """The lease of the current period of this limit."""
        key = (limit.subject, limit.measure)
        found = self._leases.get(key)
        if found is None or monotonic() >= found.ends:
            # The amounts of the old lease belong to a period that is over. The next grant resets these amounts to zero.
            found = self._leases[key] = Lease(limit, found.carried if found is not None else 0)
        return found

    def _begin_again(self) -> None:
        """Begin with empty leases, after another process has settled this process's leases. Debts stay."""
        old, now = list(self._leases.values()), monotonic()
        self._leases.clear()
        self._plans.clear()
        for lease in old:
            lease.settled = True
            if now < lease.ends and (lease.debt or lease.later):
                again = self.lease(lease.limit)
                again.debt += lease.debt
                again.later += lease.later
                self._dirty.set()

    def _put_back(self, taken: Sequence[tuple[Lease, Report]]) -> None:
        """Keep the amounts of a report that failed. During the report, a lease may have ended or been settled."""
        for lease, report in taken:
            current = self.lease(lease.limit)
            if current is lease:
                lease.left += report.back
                lease.spent += report.spent
                lease.debt += report.debt
                lease.pay()
            elif lease.monthly or monotonic() < lease.ends:
                current.correct(0.0, max(0, report.debt if lease.settled else report.spent + report.debt))

    def changed(self, *, soon: bool = False) -> None:
        """Schedule a report to the shared counters within `seconds`. With `soon`, the process sends the report earlier,
        because another process may need the freed slot of a parallel request (`Lease.scarce`)."""
        self._dirty.set()
        if soon:
            self._soon.set()

    async def fill(self, reservation: QuotaReservation) -> None:
        """Lease the amounts that the reservation lacks, and reserve these amounts. Raises `QuotaExceeded` and
        `Unavailable`."""
        self.settle()
        until = monotonic() + self._report_seconds
        while refused := await self._fill_in_time(reservation):
            if self._shadow:
                self._note_shadow(reservation, refused)
                return
            lease, now = self.lease(refused[0]), monotonic()
            whole = reservation.amounts[lease.counts] > lease.limit.amount
            if whole or now >= until or not lease.awaits_others(now):
                self._refuse(reservation, lease)
            await asyncio.sleep(_PAUSE)

    async def _fill_in_time(self, reservation: QuotaReservation) -> Sequence[Limit]:
        """Lease and reserve the missing amounts, or return the limits that have no free amount."""
        if self._failing and self._lock.locked():
            # One request checks whether the database works again. The other requests do not wait for the database.
            self._without(reservation)
            reservation.reserve()
            return ()
        task = asyncio.get_running_loop().create_task(self._fill(reservation))
        # The grant continues if the request ends, because the grant changes the leases of this process.
        self._grants.add(task)
        task.add_done_callback(self._grants.discard)
        try:
            async with asyncio.timeout(self._grant_seconds):
                return await asyncio.shield(task)
        except TimeoutError:
            reservation.abandoned = True
            task.add_done_callback(look_at)
            self._fail("the database does not answer")
            self._without(reservation)
            reservation.reserve()
            return ()
        except asyncio.CancelledError:
            reservation.abandoned = True
            task.add_done_callback(look_at)
            raise

    async def _fill(self, reservation: QuotaReservation) -> Sequence[Limit]:
        async with self._lock:
            refused: list[Limit] = []
            for _ in range(3):
                if reservation.abandoned:
                    return ()
                reservation.refresh()
                lacking = reservation.lacking()
                if not lacking:
                    break
                now = monotonic()
                known = [lease for lease in lacking if reservation.is_refused(lease, now)]
                refused = [lease.limit for lease in known]
                # Shadow mode names all limits that would refuse the request.
                if now < self._failed_until or (known and (known == lacking or not self._shadow)):
                    break
                refused += await self._lease_more(reservation, [one for one in lacking if one not in known])
                if refused:
                    break
            if reservation.abandoned:
                return ()
            if reservation.lacking():
                if refused:
                    return refused
                self._without(reservation)
            reservation.reserve()
            return ()

    async def _lease_more(self, reservation: QuotaReservation, lacking: Sequence[Lease]) -> list[Limit]:
        """Lease more of these limits. Returns the limits that granted nothing. If the database fails, the method
        returns an empty list, and for a short time `fill` does not try the database again."""
        wanted = []
        for lease in lacking:
            limit, need = lease.limit, max(1, reservation.missing(lease) - lease.left + max(0, lease.debt))
            wanted.append(Wanted(limit, need, max(need, lease.chunk), ceil(limit.amount * self._warn_share)))
        try:
            grants = await self._counters.grant(self._holder, wanted) if self._holder else None
            if grants is None:
                await self._join()
                grants = await self._counters.grant(self._holder, wanted) or []
        except StoreError as error:
            self._fail(str(error))
            if error.reason == "unknown":
                # The counters may have granted an amount. The next report finds and returns this amount.
                self._unsure = True
                self._dirty.set()
            return []
        self._recovered()
        # The grants may begin a new period, so the cached plans may be out of date.
        self._plans.clear()
        self._dirty.set()
        refused: list[Limit] = []
        now = monotonic()
        for one, grant in zip(wanted, grants, strict=False):
            lease = self.lease(one.limit)
            if lease.starts not in (-1, grant.starts):
                lease.ends = now
                lease = self.lease(one.limit)
            lease.add(grant, now)
            if grant.warn and not (lease.parallel and self._warned_lately(lease.limit.subject, now)):
                _log.warning(
                    "quota_warning",
                    **one.limit.fields,
                    used=grant.used + grant.leased - max(0, grant.amount - one.need),
                )
            if not grant.amount:
                lease.asked_again_at, lease.refused_need = now + _ASK_AGAIN, one.need
                lease.refuse(grant, reservation.missing(lease), now, self._report_seconds)
                refused.append(one.limit)
        reservation.refresh()
        return refused

    def _warned_lately(self, subject: str, now: float) -> bool:
        """Whether this process has warned about the subject's parallel requests. If not, the caller warns now."""
        if now < self._warned_at.get(subject, now):
            return True
        if len(self._warned_at) >= _MOST_PLANS:
            self._warned_at.clear()
        self._warned_at[subject] = now + _WARN_AGAIN
        return False

    async def _learn_periods(self, leases: Sequence[Lease]) -> None:
        """Find the current periods of leases that have a debt but no grant, so that the next report can settle the
        debt."""
        grants = await self._counters.grant(self._holder, [Wanted(one.limit, 0, 0, one.limit.amount) for one in leases])
        for lease, grant in zip(leases, grants or (), strict=False):
            lease.add(grant, monotonic())
        # The cached plans do not have the ends of these periods yet.
        self._plans.clear()
        self._dirty.set()

    async def _join(self, *, keep: bool = False) -> None:
        """Register this process under a new id. Unless `keep` is true, drop this process's leases except debts, because
        another process has settled the leases of the old id. If the database fails, the leases stay."""
        holder = self._new_id("process")
        await self._counters.join(holder)
        if not keep:
            self._begin_again()
        self._holder = holder

    def _note_shadow(self, reservation: QuotaReservation, refused: Sequence[Limit]) -> None:
        """Log and count the refusal by each of these limits, and reserve the amounts."""
        for limit in refused:
            self._refused(limit.kind, limit.measure, "shadow")
            _log.info("quota_would_refuse", **limit.fields)
        reservation.reserve()

    def _refuse(self, reservation: QuotaReservation, lease: Lease) -> NoReturn:
        """Raise `QuotaExceeded`."""
        limit, need = lease.limit, reservation.amounts[lease.counts]
        # The request would fit if no other process held a lease of the limit. A slot of a parallel request is in use,
        # because other processes have returned their free slots meanwhile.
        early = lease.early and not lease.parallel and need <= limit.amount
        self._refused(limit.kind, limit.measure, "early" if early else "refused")
        reservation.release()
        raise QuotaExceeded(
            limit.whose,
            limit.measure,
            limit.amount,
            need,
            used=lease.used,
            estimate=reservation.estimate,
            seconds=None if lease.ends == FOREVER else max(0.0, lease.ends - monotonic()),
            early=early,
            headers=reservation.headers,
        )

    def _without(self, reservation: QuotaReservation) -> None:
        """Raise `Unavailable` for a request whose limits cannot be checked, unless the settings allow the process to
        serve such a request."""
        if self._refuses and not self._shadow:
            limit = reservation.leases[0].limit
            self._refused(limit.kind, limit.measure, "unavailable")
            reservation.release()
            raise Unavailable(
                "The server cannot check your quota, because its database is unreachable. Try again later.",
                code="quotas_unavailable",
                headers=(("retry-after", "1"),),
            )

    def _fail(self, cause: str) -> None:
        self._failing, self._failed_until = True, monotonic() + _TRY_AGAIN
        self._outage.failed(cause=cause, served=not self._refuses)

    def _recovered(self) -> None:
        self._failing, self._failed_until = False, 0.0
        self._outage.recovered()

    async def _report_on(self) -> None:
        while not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._dirty.wait()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._seconds):
                            await self._soon.wait()
                            await asyncio.sleep(_RETURN)
            self._dirty.clear()
            self._soon.clear()
            try:
                if not await self.flush() and not self._closing:
                    await asyncio.sleep(min(self._seconds, _TRY_AGAIN))
                    self._dirty.set()
            except Exception:
                _log.error("quotas_failed", exc_info=True)
                await asyncio.sleep(min(self._seconds, _TRY_AGAIN))

    async def flush(self) -> bool:
        """Report the used amounts of all leases, and give the unused amounts of idle leases back to the shared
        counters. Returns False when the database fails. A later call retries the report, unless the report's outcome is
        unknown."""
        if self._unsure and self._holder:
            try:
                await self._find_out()
            except StoreError as error:
                self._fail(str(error))
                return False
        taken: list[tuple[Lease, Report]] = []
        unknown: list[Lease] = []
        for key, lease in list(self._leases.items()):
            if lease.carried and monotonic() >= lease.ends:
                lease = self.lease(lease.limit)
            if monotonic() >= lease.ends or lease.empty:
                if not lease.users:
                    del self._leases[key]
                    self._plans.clear()
                continue
            back = lease.surplus
            lease.idle, lease.least = True, lease.left - back
            if lease.left:
                # If no request uses this lease until the next report, that report returns its free amount.
                self._dirty.set()
            if lease.starts == -1 and (lease.debt or lease.later):
                unknown.append(lease)
            if lease.starts == -1 or not (lease.spent or lease.debt or back):
                continue
            taken.append((lease, Report(*key, lease.starts, lease.spent, back, lease.debt)))
            lease.left -= back
            lease.spent = lease.debt = 0
        if not taken and not self._leases:
            return True
        try:
            if not self._holder:
                await self._join(keep=True)
            holder = self._holder
            if not await self._counters.report(holder, [report for _, report in taken]):
                self._put_back(taken)
                if self._holder == holder:
                    self._holder = ""
                    self._begin_again()
                return True
        except StoreError as error:
            self._fail(str(error))
            if error.reason == "unknown":
                # A second report could settle the usage twice. First find out whether this report has been stored.
                self._unknown += [report for _, report in taken]
                self._unsure = True
                _log.warning("quota_report_unknown", cause=str(error), reports=len(taken))
                return False
            self._put_back(taken)
            return False
        for lease, report in taken:
            lease.learn(lease.known + report.debt - report.back)
        try:
            if unknown:
                await self._learn_periods(unknown)
            await self._learn_shared([lease for lease in self._leases.values() if lease.parallel])
        except StoreError as error:
            # The report is stored, and a later call asks again.
            self._fail(str(error))
            self._dirty.set()
            return True
        self._recovered()
        return True

    async def _learn_shared(self, leases: Sequence[Lease]) -> None:
        """Learn how many slots for parallel requests all processes hold. If slots are scarce, return the free ones."""
        if leases:
            shared = await self._counters.shared(self._holder)
            for lease in leases:
                lease.learn(shared.get(lease.limit.subject, lease.left + lease.reserved))
                if lease.left and lease.scarce:
                    self.changed(soon=True)

    async def _find_out(self) -> None:
        """After an unknown outcome, compare the stored leases with this process's leases. Repeat the reports that were
        not stored, and return amounts that were granted without an answer. Raises `StoreError`."""
        async with self._lock:
            reports = {(one.subject, one.measure, one.starts): one for one in self._unknown}
            repeated: list[Report] = []
            for stored in await self._counters.held(self._holder):
                lease = self._leases.get((stored.subject, stored.measure))
                same = lease is not None and lease.starts == stored.starts
                # Requests that begin or end do not change this sum.
                surplus = stored.back - (lease.left + lease.reserved + lease.spent if lease is not None and same else 0)
                lost = reports.get((stored.subject, stored.measure, stored.starts))
                if lost is not None and 0 < lost.spent + lost.back <= surplus:
                    repeated.append(lost)
                    surplus -= lost.spent + lost.back
                if surplus > 0:
                    repeated.append(Report(stored.subject, stored.measure, stored.starts, back=surplus))
            if repeated:
                await self._counters.report(self._holder, repeated)
            self._unknown.clear()
            self._unsure = False
