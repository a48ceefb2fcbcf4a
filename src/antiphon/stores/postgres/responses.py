"""How PostgreSQL stores a response, and finds items by their ids.

Lives here: which queue a response goes to, and that SQL. Not here: what is alike in all backends (`../responses.py`),
storing responses (`turns.py`, in groups: `turn_groups.py`), whether the database can be written to (`readiness.py`).
"""

from __future__ import annotations

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.stores.postgres.readiness import DatabaseReadiness
from antiphon.stores.postgres.turn_groups import Groups
from antiphon.stores.postgres.turns import Turn

# One item per wanted id, however often clients have used the id: an output before an input, the newest before older
# ones.
LOAD_ITEMS = """
WITH found AS MATERIALIZED (
  SELECT f.* FROM (SELECT DISTINCT id FROM unnest(CAST(:ids AS text[])) AS w (id)) AS wanted CROSS JOIN LATERAL (
    SELECT i.response_id, i.dir, i.seq, length(i.body) + coalesce(length(i.shown), 0) AS size
    FROM response_items i JOIN responses r ON r.id = i.response_id
    WHERE i.item_id = wanted.id AND r.owner = :owner
    ORDER BY i.dir DESC, r.number DESC, i.seq DESC LIMIT 1
  ) AS f
),
whole AS MATERIALIZED (SELECT coalesce(sum(size), 0) <= CAST(:bytes AS bigint) AS fits FROM found)
SELECT i.item_id, i.type, CASE WHEN whole.fits THEN i.body END AS body, CASE WHEN whole.fits THEN i.shown END AS shown
FROM found JOIN response_items i USING (response_id, dir, seq) CROSS JOIN whole
"""


class PostgresResponseWriter:
    """`ResponseWriter` on groups of turns that the caller closes."""

    def __init__(self, turns: Groups[Turn], readiness: DatabaseReadiness) -> None:
        self._turns = turns
        self.ping = readiness.ping

    async def save(self, record: ResponseRecord) -> None:
        """Store a finished response with its items, all or nothing; see `History.save`."""
        await self._turns.run(Turn(record))
