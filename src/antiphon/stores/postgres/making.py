"""Making something, once where its request came with a key.

Lives here: the transaction around it. Not here: keys (`../idempotency.py`), what is made.

Invariant: there is neither the thing without its key, nor the key without the thing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from antiphon.engine.ports.actions import OnceOnly
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.postgres.certain import certainly
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.tables import run_steps
from antiphon.stores.tables import RowsMissing

T = TypeVar("T")


async def make(
    database: Database,
    keys: IdempotencyKeys,
    once: OnceOnly | None,
    object_id: str,
    work: Callable[[Connection], Awaitable[T]],
) -> T:
    """Do the work, which makes something, and bind its key with it, if it has one. Raises `AlreadyMade`, `ApiError` and
    `StoreError`, and what `work` raises."""

    async def unit(connection: Connection) -> T:
        if once is not None:
            await run_steps(connection, [keys.binding(once, object_id)])
        return await work(connection)

    for last in (False, True):
        try:
            return await certainly(database, unit)
        except RowsMissing:
            assert once is not None
            await keys.explain(once)
            if last:
                raise
    raise AssertionError("unreachable")
