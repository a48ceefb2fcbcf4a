"""Stores the counters of quotas, and the leases of processes on these counters, in SQLite or PostgreSQL.

Lives here: the SQL of the counters and of the leases. Not here: which limits apply to a request
(`engine/ports/quotas.py`), the leases in the memory of a process (`engine/running/quotas.py`), the settings
(`config/limits.py`).

A process leases a part of a limit, and then serves requests within this lease without a query. The closer a counter is
to its limit, the smaller are the leases that the store grants. So the unused leases of one process delay few requests
of other processes.

A background response reports a refund as a negative debt. The refund may arrive before the estimate that it refunds,
because another process reports the estimate. Until then `used` may be negative.

Invariants: the sum `used + leased` of a counter exceeds the limit only by debts. A debt is the usage of a request above
the request's estimate. The database's clock decides to which period a grant belongs. When a process has sent no
heartbeat for `dead_after` seconds, the store counts its leases as used. Each transaction updates counters in the order
of their keys, so that two processes never deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from antiphon.engine.ports.quotas import Grant, Measure, Report, Wanted
from antiphon.ids import Clock, now
from antiphon.stores.tables import Row, RowsMissing, Statement, Tables, milliseconds

MINUTE = 60_000
_SHRINK = 16
_MOST = 10**15
_SWEPT = 100
_KEPT_DAYS = 40

JOIN = "INSERT INTO quota_holders (holder, seen_at) VALUES (:holder, now_ms())"
ALIVE = "UPDATE quota_holders SET seen_at = now_ms() WHERE holder = :holder"

_PERIOD = f"""CASE
  WHEN :period = 'minute' THEN now_ms() / {MINUTE} * {MINUTE}
  WHEN :period = 'none' THEN 0
  WHEN now_ms() >= CAST(:next AS bigint) THEN CAST(:next AS bigint)
  WHEN now_ms() >= CAST(:this AS bigint) THEN CAST(:this AS bigint)
  ELSE CAST(:last AS bigint) END"""


def _granted(taken: str) -> str:
    """Return the SQL expression for the amount that the store grants. `taken`: the SQL expression for the amount that
    is already used or leased."""
    free = f"(CAST(:limit AS bigint) - ({taken}))"
    need, want = "CAST(:need AS bigint)", "CAST(:want AS bigint)"
    return f"CASE WHEN {free} < {need} THEN 0 ELSE least({want}, greatest({need}, {free} / {_SHRINK})) END"


_TAKEN = "c.used + c.leased"
# The granted amount that exceeds the need is not in use yet.
_WARNED = """CASE WHEN {taken} + least({granted}, CAST(:need AS bigint)) < CAST(:warn_at AS bigint) THEN 0
             WHEN {warned} = 0 THEN 1 ELSE 2 END"""
GRANT = f"""
INSERT INTO quota_counters AS c (subject, measure, starts, used, leased, granted, warned)
VALUES (:subject, :measure, {_PERIOD}, 0, {_granted("0")}, {_granted("0")},
        {_WARNED.format(taken="0", granted=_granted("0"), warned="0")})
ON CONFLICT (subject, measure) DO UPDATE SET
  starts = greatest(c.starts, excluded.starts),
  used = CASE WHEN excluded.starts > c.starts THEN 0 ELSE c.used END,
  leased = CASE WHEN excluded.starts > c.starts THEN excluded.leased ELSE c.leased + {_granted(_TAKEN)} END,
  granted = CASE WHEN excluded.starts > c.starts THEN excluded.granted ELSE {_granted(_TAKEN)} END,
  warned = CASE WHEN excluded.starts > c.starts THEN excluded.warned
                ELSE {_WARNED.format(taken=_TAKEN, granted=_granted(_TAKEN), warned="c.warned")} END
RETURNING granted, starts, used, leased, warned, now_ms() AS date
"""
LEASE = """
INSERT INTO quota_leases AS l (holder, subject, measure, starts, amount)
SELECT :holder, subject, measure, starts, granted FROM quota_counters
WHERE subject = :subject AND measure = :measure AND granted > 0
ON CONFLICT (holder, subject, measure) DO UPDATE SET
  amount = CASE WHEN excluded.starts > l.starts THEN excluded.amount ELSE l.amount + excluded.amount END,
  starts = excluded.starts
"""
SETTLE = f"""
UPDATE quota_counters SET
  used = greatest(least(used + CAST(:spent AS bigint) + CAST(:debt AS bigint), {_MOST}), -{_MOST}),
  leased = greatest(leased - (CAST(:spent AS bigint) + CAST(:back AS bigint)), 0)
WHERE subject = :subject AND measure = :measure AND starts = :starts
"""
RETURN = """
UPDATE quota_leases SET amount = greatest(amount - (CAST(:spent AS bigint) + CAST(:back AS bigint)), 0)
WHERE holder = :holder AND subject = :subject AND measure = :measure AND starts = :starts
"""

DEAD = f"SELECT holder FROM quota_holders WHERE seen_at < now_ms() - CAST(:age AS bigint) LIMIT {_SWEPT}"
BURY = "DELETE FROM quota_holders WHERE holder = :holder AND seen_at < now_ms() - CAST(:age AS bigint)"
HELD = "SELECT subject, measure, starts, amount FROM quota_leases WHERE holder = :holder ORDER BY subject, measure"
SHARED = """
SELECT subject, c.leased FROM quota_leases AS l JOIN quota_counters AS c USING (subject, measure)
WHERE l.holder = :holder AND measure = 'parallel_requests' AND c.leased > l.amount
"""
FORGET_LEASES = "DELETE FROM quota_leases WHERE holder = :holder"
FORGET = f"""
DELETE FROM quota_counters WHERE (subject, measure) IN (
  SELECT subject, measure FROM quota_counters
  WHERE starts > 0
    AND starts < now_ms() - CASE WHEN measure LIKE '%month' THEN {_KEPT_DAYS * 86_400_000} ELSE 600000 END
  LIMIT 1000
)
"""
LIST = """
SELECT subject, measure, starts, used, leased FROM quota_counters
WHERE (:subject = '' OR subject = :subject) ORDER BY subject, measure LIMIT :most
"""


class StoredCounter(msgspec.Struct, frozen=True):
    """One stored counter of a limit.

    `subject` is the id of the owner, key, team or model with the limit, for example `owner:n:anna`. `measure` is the
    measured amount, for example `tokens_per_minute`. `starts` is the start of the period in milliseconds since the
    epoch, or 0 if the limit has no period. `used` is the amount that requests have used, and `leased` the amount that
    processes reserve in leases. Costs are in millionths of the prices' currency.
    """

    subject: str
    measure: str
    starts: int
    used: int
    leased: int


class QuotaStore:
    """Implements `QuotaCounters`, the counters that all processes share. The caller closes the database. Every method
    raises `StoreError` when the database fails."""

    def __init__(self, tables: Tables, clock: Clock = now) -> None:
        """`clock`: the function that returns the current time on SQLite. PostgreSQL uses the server's clock."""
        self._tables = tables
        self._clock = clock

    async def join(self, holder: str) -> None:
        """See `QuotaCounters.join`."""
        await self._tables.run([Statement(JOIN, {"holder": holder, **self._now})])

    async def grant(self, holder: str, wanted: Sequence[Wanted]) -> list[Grant] | None:
        """See `QuotaCounters.grant`."""
        months = _months(self._clock())
        rows: list[list[Row]] = [[] for _ in wanted]
        unit = [Statement(ALIVE, {"holder": holder, **self._now}, rows=1)]
        for number in sorted(range(len(wanted)), key=lambda one: _key(wanted[one])):
            one = wanted[number]
            key = {"subject": one.limit.subject, "measure": one.limit.measure}
            asked = {"limit": one.limit.amount, "need": one.need, "want": max(one.need, one.want)}
            period = {"period": _period(one.limit.measure), **months, "warn_at": one.warn_at}
            unit.append(Statement(GRANT, {**key, **asked, **period, **self._now}, into=rows[number]))
            unit.append(Statement(LEASE, {**key, "holder": holder}))
        try:
            await self._tables.run(unit)
        except RowsMissing:
            return None
        return [_grant(one.limit.measure, found[0]) for one, found in zip(wanted, rows, strict=True)]

    async def report(self, holder: str, reports: Sequence[Report]) -> bool:
        """See `QuotaCounters.report`."""
        rows = [
            {name: getattr(one, name) for name in Report.__struct_fields__}
            for one in sorted(reports, key=lambda one: (one.subject, one.measure))
        ]
        unit = [Statement(ALIVE, {"holder": holder, **self._now}, rows=1)]
        if rows:
            leased = [{name: row[name] for name in row if name != "debt"} | {"holder": holder} for row in rows]
            unit += [Statement(SETTLE, rows, many=True), Statement(RETURN, leased, many=True)]
        try:
            await self._tables.run(unit)
        except RowsMissing:
            return False
        return True

    async def sweep(self, dead_after: float) -> tuple[int, ...]:
        """End the leases of processes without a heartbeat for `dead_after` seconds, and delete counters of old periods.
        Returns a tuple with one element, the number of these processes."""
        named = {"age": milliseconds(dead_after), **self._now}
        dead = await self._tables.fetch(DEAD, named)
        for (holder,) in dead:
            await self._settle_all(holder, named)
        while (await self._tables.run([Statement(FORGET, self._now)], again=True))[0]:
            pass
        return (len(dead),)

    async def held(self, holder: str) -> list[Report]:
        """See `QuotaCounters.held`."""
        rows = await self._tables.fetch(HELD, {"holder": holder})
        return [Report(row["subject"], row["measure"], row["starts"], back=row["amount"]) for row in rows]

    async def shared(self, holder: str) -> dict[str, int]:
        """See `QuotaCounters.shared`."""
        return {row["subject"]: row["leased"] for row in await self._tables.fetch(SHARED, {"holder": holder})}

    async def leave(self, holder: str) -> None:
        """See `QuotaCounters.leave`."""
        if await self.report(holder, await self.held(holder)):
            named = {"holder": holder, "age": -MINUTE, **self._now}
            await self._tables.run([Statement(BURY, named), Statement(FORGET_LEASES, {"holder": holder})])

    async def counters(self, subject: str = "", *, most: int = 10_000) -> list[StoredCounter]:
        """Return the counters of this subject, or of all subjects, sorted by subject and measure. The result includes a
        counter whose period is over, until a request resets the counter or a sweep deletes it."""
        rows = await self._tables.fetch(LIST, {"subject": subject, "most": most})
        return [StoredCounter(*(row[number] for number in range(5))) for row in rows]

    @property
    def _now(self) -> dict[str, object]:
        return {"now_ms": milliseconds(self._clock())}

    async def _settle_all(self, holder: str, named: dict[str, object]) -> None:
        """End all leases of one dead process, unless the process has sent a heartbeat or another process ends the
        leases."""
        held = await self._tables.fetch(HELD, {"holder": holder})
        rows = []
        for row in held:
            # Concurrent requests end with their process, so their lease returns to the counter. All other leased
            # amounts count as used.
            parallel = _period(row["measure"]) == "none"
            amount = {"spent": 0, "back": row["amount"]} if parallel else {"spent": row["amount"], "back": 0}
            key = {"subject": row["subject"], "measure": row["measure"], "starts": row["starts"]}
            rows.append({**key, **amount, "debt": 0})
        unit = [Statement(BURY, {**named, "holder": holder}, rows=1)]
        if rows:
            unit += [Statement(SETTLE, rows, many=True), Statement(FORGET_LEASES, {"holder": holder}, rows=len(rows))]
        try:
            await self._tables.run(unit)
        except RowsMissing:
            return


def _key(wanted: Wanted) -> tuple[str, str]:
    return wanted.limit.subject, wanted.limit.measure


def _period(measure: str) -> str:
    return measure.rpartition("_per_")[2] if "_per_" in measure else "none"


def _months(at: float) -> dict[str, int]:
    """Return the start times of the previous, the current and the next month in UTC, in milliseconds. The SQL chooses
    one of them by the database's clock, so a wrong local clock does not begin a period."""
    today = datetime.fromtimestamp(at, UTC)
    number = today.year * 12 + today.month - 1
    return {name: _month(number + step) for name, step in (("last", -1), ("this", 0), ("next", 1))}


def _month(number: int) -> int:
    return int(datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC).timestamp() * 1000)


def _grant(measure: Measure, row: Row) -> Grant:
    amount, starts, used, leased, warned, date = row
    period = _period(measure)
    ends = starts + MINUTE if period == "minute" else 0
    if period == "month":
        begun = datetime.fromtimestamp(starts / 1000, UTC)
        ends = _month(begun.year * 12 + begun.month)
    return Grant(amount, starts, ends, date, used, leased, warn=warned == 1)
