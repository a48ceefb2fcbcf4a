"""Transactions whose outcome is known in the end, though the connection was lost at their commit.

Lives here: asking the server what became of one. Not here: connections (`database.py`), what is written.

A write that may be repeated needs none of this. For the others the transaction's number is noted before anything else
is done; when nobody said whether it has committed, a new connection asks the server by that number (`pg_xact_status`),
which also survives its crash.

Invariant: the work takes effect once, or not at all with an error; only when the server cannot be asked in time does
the error say `unknown`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from antiphon.errors import StoreError
from antiphon.stores.postgres.database import Connection, Database

T = TypeVar("T")

_NUMBER = "SELECT pg_current_xact_id()::text"
_STATUS = "SELECT pg_xact_status($1::text::xid8)"
_TRIES = 3
_PAUSE = 0.05


async def certainly(database: Database, work: Callable[[Connection], Awaitable[T]]) -> T:
    """As `Database.transaction`, and what became of the commit is found out; where it did not happen the work is done
    again. Raises `StoreError`, and what `work` raises."""
    number = ""
    result: T

    async def numbered(connection: Connection) -> T:
        nonlocal number, result
        number = (await connection.fetch(_NUMBER))[0][0]
        result = await work(connection)
        return result

    for last in [False] * (_TRIES - 1) + [True]:
        try:
            return await database.transaction(numbered)
        except StoreError as error:
            if error.reason != "unknown":
                raise
            if await _committed(database, number, error):
                return result
            if last:
                raise StoreError(str(error), reason="unavailable") from error
    raise AssertionError("unreachable")


async def _committed(database: Database, number: str, unknown: StoreError) -> bool:
    """Whether that transaction has committed; waits for it while it runs. Raises `unknown` where that is not found
    out."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + database.limits.deadline
    while loop.time() < ends:
        try:
            status = (await database.fetch(_STATUS, number))[0][0]
        except StoreError:
            status = "in progress"
        if status is None:
            break
        if status != "in progress":
            return bool(status == "committed")
        await asyncio.sleep(_PAUSE)
    raise unknown
