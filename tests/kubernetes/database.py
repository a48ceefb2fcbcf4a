"""A PostgreSQL on this machine that pods can reach, for clusters whose node it is.

Lives here: opening the tests' server (`tests/support/postgres.py`) to a network. Not here: who uses it.

Invariant: it asks for a password, and is gone with the run.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from tests.support.postgres import PostgresServer

_NAME = "antiphon"


@asynccontextmanager
async def reachable_postgres(host: str, databases: Iterable[str]) -> AsyncIterator[str]:
    """The URL of the server without a database's name, as pods reach it at this address; the databases are there."""
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
        yield f"postgresql://{_NAME}:{password}@{host}:{server.port}"
    finally:
        server.close()
