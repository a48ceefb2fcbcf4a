"""Starts a PostgreSQL on this machine that pods can reach, for clusters whose node is this machine.

Lives here: opening the tests' server (`tests/support/postgres.py`) to a network. Not here: the clients of the server.

Invariant: the server requires a password, and ends with the run.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from tests.support.postgres import PostgresServer

_NAME = "antiphon"
T = TypeVar("T")


@dataclass(frozen=True)
class Reachable:
    """A server that pods reach at `url`, which has no database name."""

    url: str
    server: PostgresServer

    async def restart(self) -> float:
        """Restart the server cleanly, as for an update. Returns the seconds in which no client could connect."""
        begun = time.monotonic()
        await asyncio.to_thread(self.server.stop)
        await asyncio.to_thread(self.server.start)
        return time.monotonic() - begun

    async def stand_still(self, during: Awaitable[T]) -> T:
        """Stop all processes of the server with SIGSTOP, as on a host that hangs, until `during` is done."""
        self.server.freeze()
        try:
            return await during
        finally:
            self.server.thaw()


@asynccontextmanager
async def reachable_postgres(host: str, databases: Iterable[str]) -> AsyncIterator[Reachable]:
    """Start a server at this address, with these databases."""
    server = PostgresServer(durable=True)
    try:
        password = secrets.token_hex(16)
        await server.statement(f"CREATE ROLE {_NAME} LOGIN PASSWORD '{password}'")
        for database in databases:
            await server.statement(f"CREATE DATABASE {database} OWNER {_NAME}")
        await server.statement(f"ALTER SYSTEM SET listen_addresses = '127.0.0.1, {host}'")
        server.let_in(f"host all {_NAME} all scram-sha-256")
        server.stop()
        server.start()
        yield Reachable(f"postgresql://{_NAME}:{password}@{host}:{server.port}", server)
    finally:
        server.close()
