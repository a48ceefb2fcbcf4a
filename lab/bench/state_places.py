"""Where the benchmarks of state keep it: SQLite, a PostgreSQL of their own, and that behind pgbouncer.

Lives here: starting and ending them, their URLs, and the CPU time of the database's own processes. Not here: what is
measured (`state.py`, `state_stored.py`, `streams.py`).

Invariant: both databases wait for the disk, with PostgreSQL's own default sizes; all is stopped and deleted at the end.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.stores import open_stores
from antiphon.stores.responses import ResponseStore
from lab.bench import cpu
from tests.support.postgres import Pooler, PostgresServer, pooler_program

SQLITE, POSTGRES, POOLED = "SQLite", "PostgreSQL", "PostgreSQL behind pgbouncer"

# The server of tests has less, so that many fit on a machine.
_DEFAULT_SIZES = {"shared_buffers": "128MB", "max_wal_size": "1GB"}


@dataclass(frozen=True)
class Place:
    """Where state lies; `folder` is a data folder of its own, `direct` the server itself where `url` is a pooler's."""

    name: str
    url: str
    folder: Path
    processes: Sequence[int] = ()
    """The database's, which start others."""
    direct: str | None = None

    @asynccontextmanager
    async def responses(self) -> AsyncIterator[ResponseStore]:
        """Its store, opened as a server would."""
        settings = StateSettings(url=SecretStr(self.url))
        async with aclosing(await open_stores(settings, self.folder, chain_items=1000)) as stores:
            yield stores.responses

    def database_cpu(self) -> dict[int, float]:
        """CPU seconds of each process of the database that runs now."""
        found: dict[int, float] = {}
        for process in self.processes:
            for pid in (process, *cpu.children(process)):
                with contextlib.suppress(OSError):  # gone meanwhile
                    found[pid] = cpu.cpu_seconds([pid])
        return found


@asynccontextmanager
async def places() -> AsyncIterator[list[Place]]:
    """All there are on this machine; PostgreSQL and the pooler have one database in common."""
    server = PostgresServer(durable=True)
    pooler = None
    try:
        for name, size in _DEFAULT_SIZES.items():
            await server.statement(f"ALTER SYSTEM SET {name} = '{size}'")
        server.stop()
        server.start()
        with tempfile.TemporaryDirectory(prefix="antiphon-bench-") as folder:
            url = await server.new_database()
            found = [
                Place(SQLITE, f"sqlite:{folder}/sqlite", Path(folder, "sqlite")),
                Place(POSTGRES, url, Path(folder, "postgres"), [server.pid]),
            ]
            if pooler_program():
                pooler = Pooler(server.port)
                found.append(Place(POOLED, pooler.url(url), Path(folder, "pooled"), [server.pid, pooler.pid], url))
            for place in found:
                place.folder.mkdir()
            yield found
    finally:
        if pooler is not None:
            pooler.close()
        server.close()
