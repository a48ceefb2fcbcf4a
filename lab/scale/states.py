"""Provides the state that all replicas of a run share.

Lives here: starting the state's server, and the faults that a run can cause in it. Not here: the replicas
(`replicas.py`).

The state is the URL of an existing database, or one of `KINDS`. `postgres` starts a server that survives being killed.
`pgbouncer` also starts a pooler with four connections in front of it. `sqlite` is a folder.

Invariant: every server that this module started ends with the run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.postgres import Pooler, PostgresServer

KINDS = ("sqlite", "postgres", "pgbouncer")


@dataclass(frozen=True)
class State:
    """The shared state. `url` is for `state.url`. `server` and `pooler` are the processes that this module started."""

    kind: str
    url: str
    server: PostgresServer | None = None
    pooler: Pooler | None = None


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[State]:
    """Open the state of this kind, or at this URL."""
    if "://" in kind or kind.startswith("sqlite:"):
        yield State("given", kind)
        return
    if kind == "sqlite":
        yield State(kind, f"sqlite:{folder / 'state'}")
        return
    server = PostgresServer(durable=True)
    try:
        url = await server.new_database()
        if kind == "postgres":
            yield State(kind, url, server)
            return
        pooler = Pooler(server.port)
        try:
            yield State(kind, pooler.url(url), server, pooler)
        finally:
            pooler.close()
    finally:
        server.close()
