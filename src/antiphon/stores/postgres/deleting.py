"""Deleting one response, in a transaction of whoever wants that.

Lives here: the SQL and its order. Not here: transactions, clearing away what is old.

Invariant: a response goes with its chain locked: whoever continues the chain at that moment either was seen, or finds
its predecessor gone.
"""

from __future__ import annotations

from antiphon.stores.postgres.database import Connection

# To delete: its job is locked (whoever runs it locks that first, too), then its chain; with both held nobody can add to
# the chain any more, and a statement of its own sees all that was added before. It goes with its chain when it is the
# last one, and what belongs to it goes by foreign key. $1: id, $2: owner.
_LOCK_JOB = "SELECT 1 FROM jobs WHERE response_id = $1 AND owner = $2 FOR UPDATE"
_LOCK_CHAIN = """
SELECT c.id FROM chains c JOIN responses r ON r.chain_id = c.id WHERE r.id = $1 AND r.owner = $2 FOR UPDATE OF c
"""
_DELETE_LAST_OF_CHAIN = """
DELETE FROM chains WHERE id = (SELECT chain_id FROM responses WHERE id = $1 AND owner = $2)
  AND NOT EXISTS (SELECT 1 FROM responses other WHERE other.chain_id = chains.id AND other.id <> $1)
RETURNING 1
"""
_DELETE_RESPONSE = "DELETE FROM responses WHERE id = $1 AND owner = $2 RETURNING 1"


async def delete_response(connection: Connection, owner: str, response_id: str) -> bool:
    """Delete a response in this transaction; False when there is none for this owner."""
    for lock in (_LOCK_JOB, _LOCK_CHAIN):
        await connection.fetch(lock, response_id, owner)
    if await connection.fetch(_DELETE_LAST_OF_CHAIN, response_id, owner):
        return True
    return bool(await connection.fetch(_DELETE_RESPONSE, response_id, owner))
