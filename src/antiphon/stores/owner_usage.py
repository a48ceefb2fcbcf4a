"""Stores daily sums of token usage per owner, reads the owners' names, and checks their storage quotas.

Lives here: the SQL of usage sums, names and storage quotas. This module also decides which source gives the name and
the team of an owner. Not here: the choice of the model calls to count (`observability/observation.py`), the schedule of
writes (`engine/running/usage_recorder.py`), the stored keys (`client_keys.py`), the rows of requests (`journal.py`).
Triggers in each backend's migrations count an owner's stored bytes.

An owner id may come from a key's name, a request header or a token's claim. Then the text after the colon in the id is
the owner's name. If the console is enabled, the journal row of an owner's last request has the name and the team from
the token's claims. An owner whose id is a hash has no name.

Invariants: every amount that this module adds to a sum is at most 10^15, so that the sum never overflows its column.
One transaction adds the sums of all upstreams. Without the maximum, absurd token counts of one upstream would make the
whole transaction fail. Statements update rows in the order of the rows' keys (day, owner, model, upstream). So
processes that add to the same days wait for each other but never deadlock. One query for names reads at most `_OWNERS`
owners. For each owner, the query reads at most one key and one request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Literal

import structlog

from antiphon.engine.ports.callers import CLAIMED, NAMED, NO_CALLER, Caller
from antiphon.engine.ports.quotas import QuotaRules, Stock, listed_names
from antiphon.engine.ports.usage_sums import KEY, NUMBERS, By, OwnerName, UsageSum
from antiphon.errors import OwnerFull
from antiphon.ids import now
from antiphon.stores.client_keys import IS_VALID
from antiphon.stores.files import LEAST_ROOM
from antiphon.stores.tables import Statement, Tables, milliseconds

_log = structlog.get_logger(__name__)
MOST = 10**15
"""The maximum of an amount that is added to a stored sum."""
MOST_SUMS = 1_000_000
"""The maximum number of sums in one list."""
_COLUMNS = (*KEY, *NUMBERS)
ADD = f"""
INSERT INTO usage_days AS u ({", ".join(_COLUMNS)}) VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
ON CONFLICT ({", ".join(KEY)})
DO UPDATE SET {", ".join(f"{name} = least(u.{name} + excluded.{name}, {MOST})" for name in NUMBERS)}
"""
_PIECE = 1000
FORGET = f"""
DELETE FROM usage_days WHERE ({", ".join(KEY)}) IN (
  SELECT {", ".join(KEY)} FROM usage_days WHERE day < :before LIMIT {_PIECE}
)
"""
_DATA = ("chains", "conversations", "prompts", "files", "usage_days")
_TRACES = ("idempotency", "requests", "request_records")
HAS_DATA, HAS_DATA_OR_TRACES = (
    "SELECT " + " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE owner = :owner)" for table in tables)
    for tables in (_DATA, _DATA + _TRACES)
)
# Valid keys decide to which teams an owner belongs. If no key is valid, the newest key decides. So the stored data of
# an owner whose last key was revoked still count.
TEAM = f"""
SELECT owner FROM client_keys WHERE team = :team AND {IS_VALID}
UNION SELECT k.owner FROM client_keys k
WHERE k.team = :team AND NOT EXISTS (SELECT 1 FROM client_keys WHERE owner = k.owner AND {IS_VALID})
  AND NOT EXISTS (
    SELECT 1 FROM client_keys n WHERE n.owner = k.owner AND (n.created_at, n.id) > (k.created_at, k.id)
  )
UNION SELECT owner FROM owner_teams WHERE team = :team
"""
CLAIMED_TEAM = "SELECT team FROM owner_teams WHERE owner = :owner"
JOIN_TEAM = """
INSERT INTO owner_teams (owner, team) VALUES (:owner, :team) ON CONFLICT (owner) DO UPDATE SET team = excluded.team
"""
STORED = "SELECT CAST(coalesce(sum(bytes), 0) AS bigint) FROM owner_bytes WHERE owner IN (:owners...)"
FILES = f"""
SELECT CAST(coalesce(sum(greatest(size, {LEAST_ROOM})), 0) AS bigint) FROM files WHERE owner IN (:owners...)
"""


class UsageStore:
    """Stores the usage sums in a database that the caller closes. Every method raises `StoreError` when the database
    fails."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def add(self, sums: Sequence[UsageSum]) -> None:
        """Add these usage amounts to the stored sums of the same day, owner, model and upstream, in one transaction."""
        rows = [
            {name: getattr(one, name) for name in KEY} | {name: min(getattr(one, name), MOST) for name in NUMBERS}
            for one in sorted(sums, key=attrgetter(*KEY))
        ]
        await self._tables.run([Statement(ADD, rows, many=True, light=True)])

    async def sums(
        self, by: Sequence[By], *, since: str = "", until: str = "", owner: str = "", most: int = MOST_SUMS
    ) -> list[UsageSum]:
        """Return the sums of the days from `since` to `until` (`YYYY-MM-DD`, both included; empty: no limit). The
        result is grouped and sorted by the fields in `by`, and has at most `most` sums. A key field (such as owner or
        model) that `by` does not name is empty in the result. `by` cannot contain `team`, because the stored sums have
        no team."""
        told_apart = ", ".join(dict.fromkeys(by))
        selected = ", ".join("substr(day, 1, 7) AS month" if name == "month" else name for name in dict.fromkeys(by))
        sql = f"""
        SELECT {selected + "," if by else ""} {", ".join(f"CAST(sum({name}) AS bigint)" for name in NUMBERS)}
        FROM usage_days
        WHERE (:since = '' OR day >= :since) AND (:until = '' OR day <= :until) AND (:owner = '' OR owner = :owner)
        {f"GROUP BY {told_apart} ORDER BY {told_apart}" if by else "HAVING count(*) > 0"}
        LIMIT :most
        """
        rows = await self._tables.fetch(sql, {"since": since, "until": until, "owner": owner, "most": most})
        names = (*dict.fromkeys(by), *NUMBERS)
        return [UsageSum(**{name: row[number] for number, name in enumerate(names)}) for row in rows]

    async def has_data(self, owner: str, *, traces: bool = False) -> bool:
        """Return whether the owner has usage sums or other stored data. This check ignores vector stores and
        containers. `traces`: also check for idempotency keys and recorded requests."""
        sql = HAS_DATA_OR_TRACES if traces else HAS_DATA
        return bool((await self._tables.fetch(sql, {"owner": owner}, own=True))[0][0])

    async def forget(self, before: str) -> int:
        """Delete the sums of all days before the day `before` (`YYYY-MM-DD`). Returns the number of deleted rows."""
        gone = 0
        while count := (await self._tables.run([Statement(FORGET, {"before": before})], again=True))[0]:
            gone += count
        return gone


class OwnerQuota:
    """Checks the storage quota `limits.owner_bytes`: each owner may store `limit` bytes. The caller closes the
    database.

    The engine checks the quota before a model call. A check before the engine saves the response would be too late,
    because the model call has then already cost money. So an owner may exceed the limit by the responses that run
    concurrently.
    """

    def __init__(self, tables: Tables, limit: int) -> None:
        self._tables = tables
        self._limit = limit

    async def check(self, owner: str) -> None:
        """Raise `OwnerFull` (429, `storage_limit_exceeded`) when the owner has stored `limit` bytes or more.

        Raises `StoreError` when the database fails.
        """
        if (await self._tables.fetch(STORED, {"owners": [owner]}))[0][0] >= self._limit:
            raise OwnerFull(self._limit)


class StorageQuota:
    """Checks the limits of stored data: the setting `limits.owner_bytes` (`general`), and the limits of owners and
    teams in the setting `quotas`.

    A check counts the data that is already stored, and a new file of known size. So an owner may exceed a limit by the
    operations that run concurrently. `teams` has the owners of each team in the settings. Client keys in the database
    add further owners to a team. If an owner's team comes from a claim, a check stores the owner's newest team.
    """

    def __init__(
        self,
        tables: Tables,
        rules: QuotaRules,
        teams: Mapping[str, Sequence[str]],
        *,
        general: OwnerQuota | None = None,
    ) -> None:
        self._tables = tables
        self._rules = rules
        self._limits_teams = rules.limits_storage_of("team")
        self._teams = teams
        self._general = general
        self.count_chunks: Callable[[Sequence[str]], Awaitable[int]] | None = None
        """Returns the number of chunks in the vector stores of these owners. None means that there are no vector
        stores."""
        self.count_containers: Callable[[Sequence[str]], Awaitable[int]] | None = None
        """Returns the number of containers of these owners. None means that there are no containers."""
        self.shadow = False
        """Whether the limits in the setting `quotas` only log and count the operations that they would refuse."""
        self.refused: Callable[[str, Stock, Literal["refused", "shadow"]], None] = lambda kind, stock, refusal: None
        """Called for each refusal by a limit in the setting `quotas`, with the kind of subject (`owner` or `team`)."""

    async def check(
        self, owner: str, caller: Caller = NO_CALLER, stock: Stock = "stored_bytes", file: int | None = None
    ) -> None:
        """Raise `OwnerFull` (429, `storage_limit_exceeded`) when the owner, or the caller's team, has reached a limit.

        `stock` is the kind of data that the operation creates: bytes of responses, conversations and prompts, bytes of
        files, chunks of vector stores, or containers. `file` is the size of the file that the operation creates; None:
        the size is not known yet, or the operation creates other data. In shadow mode, only the setting
        `limits.owner_bytes` raises `OwnerFull`. Raises `StoreError`.
        """
        if self._general is not None and stock == "stored_bytes":
            await self._general.check(owner)
        found = self._rules.stock("owner", listed_names(owner), stock)
        if found is not None:
            full = await self._compare((owner,), stock, file, *found)
            if full is not None:
                self._refuse(full, "owner", owner, caller.name or owner, stock, file, found[0])
        if not (caller.team and self._limits_teams):
            return
        if owner.startswith(CLAIMED):
            await self._join(owner, caller.team)
        found = self._rules.stock("team", (caller.team,), stock)
        if found is not None:
            others = await self._tables.fetch(TEAM, {"team": caller.team, "now_ms": milliseconds(now())})
            owners = {owner, *self._teams.get(caller.team, ()), *(row[0] for row in others)}
            full = await self._compare(sorted(owners), stock, file, *found)
            if full is not None:
                self._refuse(full, "team", caller.team, caller.team, stock, file, found[0])

    async def _join(self, owner: str, team: str) -> None:
        """Store the team in the claims of this owner, unless it is stored already. Only the newest team counts the
        owner's data."""
        stored = await self._tables.fetch(CLAIMED_TEAM, {"owner": owner})
        if not stored or stored[0][0] != team:
            await self._tables.run([Statement(JOIN_TEAM, {"owner": owner, "team": team})], again=True)

    async def _compare(
        self, owners: Sequence[str], stock: Stock, file: int | None, limit: int, setting: str
    ) -> OwnerFull | None:
        """Return the error if the data of these owners has reached the limit."""
        if stock in ("vector_chunks", "containers"):
            count = self.count_chunks if stock == "vector_chunks" else self.count_containers
            used = await count(owners) if count is not None else 0
        else:
            sql = STORED if stock == "stored_bytes" else FILES
            used = (await self._tables.fetch(sql, {"owners": list(owners)}))[0][0]
        if file is not None and used + max(file, LEAST_ROOM) > limit:
            return OwnerFull(limit, setting, "files, including this one,", "Delete files")
        return OwnerFull(limit, setting, *_WORDS.get(stock, ())) if used >= limit else None

    def _refuse(
        self,
        full: OwnerFull,
        kind: Literal["owner", "team"],
        subject: str,
        name: str,
        stock: Stock,
        file: int | None,
        limit: int,
    ) -> None:
        """Count and raise the error. In shadow mode, log the refusal instead."""
        if not self.shadow:
            self.refused(kind, stock, "refused")
            raise full
        # An upload is checked twice, and only the second check knows the size.
        if stock != "file_bytes" or file is not None:
            self.refused(kind, stock, "shadow")
            _log.info("quota_would_refuse", subject=f"{kind}:{subject}", name=name, measure=stock, limit=limit)


_WORDS: dict[Stock, tuple[str, str]] = {
    "file_bytes": ("files", "Delete some files"),
    "containers": ("containers", "Delete some containers, or wait until unused containers expire"),
    "vector_chunks": ("chunks in vector stores", "Remove files from vector stores"),
}
"""For each kind of data, the noun in an error message, and the advice to a client that has reached the limit. The
default arguments of `OwnerFull` are the texts for `stored_bytes`."""


_OWNERS = 500
_READABLE = (NAMED, CLAIMED, "h:")
TEAMS_OF_KEYS = """
SELECT k.owner, k.team FROM client_keys k
WHERE k.owner IN (:owners...) AND k.team <> '' AND NOT EXISTS (
  SELECT 1 FROM client_keys n
  WHERE n.owner = k.owner AND n.team <> '' AND (n.created_at, n.id) > (k.created_at, k.id)
)
"""
_LAST = "SELECT r.{column} FROM requests r WHERE r.owner = o.owner ORDER BY r.ended_at DESC, r.id DESC LIMIT 1"
LAST_REQUESTS = f"""
SELECT o.owner, ({_LAST.format(column="key_name")}) AS name, ({_LAST.format(column="team")}) AS team
FROM (SELECT DISTINCT owner FROM usage_days WHERE owner IN (:owners...)) AS o
"""


class OwnerNames:
    """Finds the names and teams of owners with usage, in a database that the caller closes."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def of(self, owners: Iterable[str], teams: Mapping[str, str]) -> dict[str, OwnerName]:
        """Return the name and the team of each owner that has a name, by owner id. An owner with a hashed id (`b:…`)
        has no name.

        `teams`: the teams of owners in the settings. A team in the settings has priority over the team of the owner's
        newest key. The key's team has priority over the team of the last request. Raises `StoreError`.
        """
        named = sorted({owner for owner in owners if owner.startswith(_READABLE)})
        found: dict[str, OwnerName] = {}
        for start in range(0, len(named), _OWNERS):
            piece = named[start : start + _OWNERS]
            keys = {row["owner"]: row["team"] for row in await self._tables.fetch(TEAMS_OF_KEYS, {"owners": piece})}
            last = {row["owner"]: row for row in await self._tables.fetch(LAST_REQUESTS, {"owners": piece})}
            for owner in piece:
                row = last.get(owner)
                name = row["name"] if row is not None and owner.startswith(CLAIMED) else ""
                team = teams.get(owner) or keys.get(owner) or (row["team"] if row is not None else "")
                found[owner] = OwnerName(name or owner.partition(":")[2], team or "")
        return found
