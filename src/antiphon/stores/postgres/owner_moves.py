"""The SQL that gives an owner's data to another owner in PostgreSQL.

Lives here: the statements that keep the foreign keys and the counts of bytes of a database server. Not here: the order
of the work, and the statements that all backends share (`../owner_moves.py`).

A response refers to its chain by the owner too, as an item refers to its conversation. PostgreSQL checks
foreign keys at the end of a statement, so one statement updates both tables. A unit first locks the rows in a separate
statement: the next statement then sees everything that other transactions committed before the lock.
"""

from __future__ import annotations

from antiphon.engine.ports.usage_sums import KEY, NUMBERS
from antiphon.stores.owner_moves import USAGE_COLUMNS, MoveSql
from antiphon.stores.owner_usage import MOST

_COLUMNS, _NUMBERS = ", ".join(USAGE_COLUMNS), ", ".join(NUMBERS)
_WAITING = """
status = 'in_progress' AND store_number IN (SELECT number FROM vector_stores WHERE owner IN (:both...))
"""

SQL = MoveSql(
    chains=(
        "SELECT 1 FROM chains WHERE id IN (:ids...) AND owner = :old ORDER BY id FOR UPDATE",
        # A trigger of `responses` moves the counted bytes.
        """
WITH idle (id) AS MATERIALIZED (
  SELECT id FROM chains WHERE id IN (:ids...) AND owner = :old
    AND NOT EXISTS (SELECT 1 FROM responses r JOIN jobs j ON j.response_id = r.id WHERE r.chain_id = chains.id)
),
moved AS (UPDATE chains SET owner = :new WHERE id IN (SELECT id FROM idle))
UPDATE responses SET owner = :new WHERE owner = :old AND chain_id IN (SELECT id FROM idle)
""",
    ),
    conversations=(
        "SELECT 1 FROM conversations WHERE owner = :old AND id IN (:ids...) ORDER BY id FOR UPDATE",
        """
WITH idle (id, bytes) AS MATERIALIZED (
  SELECT id, bytes FROM conversations
  WHERE owner = :old AND id IN (:ids...) AND (locked_by IS NULL OR locked_until <= lease_now())
),
items AS (
  UPDATE conversation_items SET owner = :new WHERE owner = :old AND conversation_id IN (SELECT id FROM idle)
),
moved AS (UPDATE conversations SET owner = :new WHERE owner = :old AND id IN (SELECT id FROM idle))
SELECT count_bytes(ARRAY[:old::text, :new::text], ARRAY[-total, total])
FROM (SELECT coalesce(sum(bytes), 0)::bigint AS total FROM idle) AS summed
""",
    ),
    files=(
        """
WITH moved AS (UPDATE files SET owner = :new WHERE owner = :old RETURNING greatest(size, 4096) AS bytes),
total (bytes) AS (SELECT sum(bytes)::bigint FROM moved),
taken AS (UPDATE owner_files o SET bytes = o.bytes - t.bytes FROM total t WHERE o.owner = :old AND t.bytes > 0)
INSERT INTO owner_files AS o (owner, bytes) SELECT :new, bytes FROM total WHERE bytes > 0
ON CONFLICT (owner) DO UPDATE SET bytes = o.bytes + excluded.bytes
""",
    ),
    usage=(
        f"""
WITH gone AS (DELETE FROM usage_days WHERE owner = :old RETURNING *)
INSERT INTO usage_days AS u ({_COLUMNS})
SELECT day, :new, model, upstream, {_NUMBERS} FROM gone ORDER BY day, model, upstream
ON CONFLICT ({", ".join(KEY)}) 
DO UPDATE SET {", ".join(f"{name} = least(u.{name} + excluded.{name}, {MOST})" for name in NUMBERS)}
""",
    ),
    rest=(
        "DELETE FROM owner_queue WHERE owner = :old AND jobs = 0",
        "DELETE FROM owner_files WHERE owner = :old AND bytes = 0",
        "DELETE FROM owner_bytes WHERE owner = :old AND bytes = 0",
    ),
    indexing="""
SELECT f.file_id FROM vector_files f JOIN vector_stores s ON s.number = f.store_number
WHERE s.owner = :old AND f.status = 'in_progress' AND f.claim IS NOT NULL AND f.lease_until > lease_now()
ORDER BY f.file_id
""",
    hold=f"""
UPDATE vector_files SET claim = NULL, lease_until = lease_in(:lease)
WHERE {_WAITING} AND (claim IS NULL OR lease_until IS NULL OR lease_until <= lease_now())
""",
    let_go=f"UPDATE vector_files SET lease_until = NULL WHERE {_WAITING} AND claim IS NULL",
)
