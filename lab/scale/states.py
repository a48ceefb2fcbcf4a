"""The state that all replicas of a run share.

Lives here: starting it, and what may be done to it while it is used. Not here: who uses it (`replicas.py`).

A kind is the URL of an existing database, or one of `KINDS`: `postgres` and `pgbouncer` start a server that survives
being killed (and a pooler of four connections before it), `sqlite` is a folder.

Invariant: what was started here ends with the run.
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
    """`url`: for `state.url`. `server` and `pooler`: those that were started."""

    kind: str
    url: str
    server: PostgresServer | None = None
    pooler: Pooler | None = None


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[State]:
    """The state of this kind, or at this URL."""
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
