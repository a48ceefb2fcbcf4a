"""Reads the readable names and the teams of owners from the stored keys and requests, for any backend.

Lives here: the SQL, and which source decides. Not here: the stored keys (`client_keys.py`), the rows of requests
(`journal.py`), the sums of usage that show the names (`owner_usage.py`).

An owner id of a name, a header or a claim contains a readable part. The row of an owner's last request has the name and
the team of its claims, if the console is enabled. An owner id that is a hash has no name.

Invariant: one query reads at most `_PIECE` owners, and at most one key and one request of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from antiphon.engine.ports.callers import CLAIMED, NAMED
from antiphon.engine.ports.usage_sums import OwnerName
from antiphon.stores.tables import Tables

_PIECE = 500
_READABLE = (NAMED, CLAIMED, "h:")
KEYS = """
SELECT k.owner, k.team FROM client_keys k
WHERE k.owner IN (:owners...) AND k.team <> '' AND NOT EXISTS (
  SELECT 1 FROM client_keys n
  WHERE n.owner = k.owner AND n.team <> '' AND (n.created_at, n.id) > (k.created_at, k.id)
)
"""
_LAST = "SELECT r.{column} FROM requests r WHERE r.owner = o.owner ORDER BY r.ended_at DESC, r.id DESC LIMIT 1"
REQUESTS = f"""
SELECT o.owner, ({_LAST.format(column="key_name")}) AS name, ({_LAST.format(column="team")}) AS team
FROM (SELECT DISTINCT owner FROM usage_days WHERE owner IN (:owners...)) AS o
"""


class OwnerNames:
    """The names and teams of owners with usage, in tables that the caller closes."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def of(self, owners: Iterable[str], teams: Mapping[str, str]) -> dict[str, OwnerName]:
        """Return the names of those owners that have one. `teams` has the teams of owners in the settings. They
        come before the team of the newest key. A key's team comes before the team of the last request. Raises
        `StoreError`."""
        named = sorted({owner for owner in owners if owner.startswith(_READABLE)})
        found: dict[str, OwnerName] = {}
        for start in range(0, len(named), _PIECE):
            piece = named[start : start + _PIECE]
            keys = {row["owner"]: row["team"] for row in await self._tables.fetch(KEYS, {"owners": piece})}
            last = {row["owner"]: row for row in await self._tables.fetch(REQUESTS, {"owners": piece})}
            for owner in piece:
                row = last.get(owner)
                name = row["name"] if row is not None and owner.startswith(CLAIMED) else ""
                team = teams.get(owner) or keys.get(owner) or (row["team"] if row is not None else "")
                found[owner] = OwnerName(name or owner.partition(":")[2], team or "")
        return found
