"""The SQL that gives an owner's data to another owner in SQLite.

Lives here: the statements that keep the foreign keys and the counts of bytes of a data folder. Not here: the order of
the work, and the statements that all backends share (`../owner_moves.py`).

A response refers to its chain by the owner too, as an item refers to its conversation. So each unit defers the checks
of foreign keys to its commit. No trigger counts bytes when an owner changes, so the units also move the counts.
"""

from __future__ import annotations

from antiphon.engine.ports.usage_sums import NUMBERS
from antiphon.stores.owner_moves import USAGE_COLUMNS, MoveSql
from antiphon.stores.owner_usage import MOST

_DEFER = "PRAGMA defer_foreign_keys = ON"
_CHAINS = """
SELECT id FROM chains WHERE owner = :old AND id IN (:ids...)
  AND NOT EXISTS (SELECT 1 FROM responses r JOIN jobs j ON j.response_id = r.id WHERE r.chain_id = chains.id)
"""
_CONVERSATIONS = """
SELECT id FROM conversations
WHERE owner = :old AND id IN (:ids...) AND (locked_by IS NULL OR locked_until <= lease_now())
"""
_NUMBERS = ", ".join(NUMBERS)


def _bytes(total: str) -> tuple[str, ...]:
    """Return the statements that move a number of bytes from the old owner's count to the new owner's. `total`: a query
    of the number, which has a WHERE clause."""
    return (
        f"""
INSERT INTO owner_bytes (owner, bytes) SELECT :new, total FROM ({total}) WHERE total > 0
ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes
""",
        f"UPDATE owner_bytes SET bytes = bytes - ({total}) WHERE owner = :old",
        "DELETE FROM owner_bytes WHERE owner = :old AND bytes <= 0",
    )


SQL = MoveSql(
    chains=(
        _DEFER,
        *_bytes(f"SELECT coalesce(sum(own_bytes), 0) AS total FROM responses WHERE chain_id IN ({_CHAINS})"),
        f"UPDATE responses SET owner = :new WHERE chain_id IN ({_CHAINS})",
        f"UPDATE chains SET owner = :new WHERE id IN ({_CHAINS})",
    ),
    conversations=(
        _DEFER,
        *_bytes(
            "SELECT coalesce(sum(bytes), 0) AS total FROM conversations "
            f"WHERE owner = :old AND id IN ({_CONVERSATIONS})"
        ),
        f"UPDATE conversation_items SET owner = :new WHERE owner = :old AND conversation_id IN ({_CONVERSATIONS})",
        f"UPDATE conversations SET owner = :new WHERE owner = :old AND id IN ({_CONVERSATIONS})",
    ),
    files=("UPDATE files SET owner = :new WHERE owner = :old",),
    usage=(
        f"""
INSERT INTO usage_days AS u ({", ".join(USAGE_COLUMNS)})
SELECT day, :new, model, upstream, {_NUMBERS} FROM usage_days WHERE owner = :old
ON CONFLICT (day, owner, model, upstream)
DO UPDATE SET {", ".join(f"{name} = least(u.{name} + excluded.{name}, {MOST})" for name in NUMBERS)}
""",
        "DELETE FROM usage_days WHERE owner = :old",
    ),
    rest=(),
    indexing="""
SELECT f.file_id FROM vector_files f JOIN vector_stores s ON s.no = f.store_no
WHERE s.owner = :old AND f.status = 'in_progress' AND f.claim IS NOT NULL AND f.lease_until > lease_now()
ORDER BY f.file_id
""",
    hold="""
UPDATE vector_files SET claim = NULL, lease_until = lease_in(:lease)
WHERE status = 'in_progress' AND (claim IS NULL OR lease_until <= lease_now())
  AND store_no IN (SELECT no FROM vector_stores WHERE owner = :old)
""",
    let_go="""
UPDATE vector_files SET lease_until = 0
WHERE status = 'in_progress' AND claim IS NULL
  AND store_no IN (SELECT no FROM vector_stores WHERE owner IN (:both...))
""",
)
