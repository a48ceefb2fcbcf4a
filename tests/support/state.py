"""Where the state of tests lies: in SQLite, or with `--state` in PostgreSQL, directly or behind pgbouncer.

Lives here: one server for a test process, a database for each data folder (whatever is started on one folder shares its
state), and the settings that lead there. Not here: tests of one backend, which open it themselves.

Invariant: with `--state sqlite`, the default, nothing is started and every setting is as without this.
"""

from __future__ import annotations

import asyncio
import atexit
import json
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack

import asyncpg
import pytest
from pydantic import SecretStr

from antiphon.config.owners import OwnerSettings, SealingSettings
from antiphon.config.state import StateSettings
from antiphon.stores import StoreOptions, Stores, open_stores
from tests.support.postgres import Pooler, PostgresServer

T = TypeVar("T")
Kind = Literal["sqlite", "postgresql", "pgbouncer"]

OWNER_KEY = "owner-key-of-tests-that-share-a-database"
SEALING_KEY = "ab" * 32


class _Chosen:
    """What `--state` says, and what was started for it."""

    kind: Kind = "sqlite"
    server: PostgresServer | None = None
    pooler: Pooler | None = None

    def __init__(self) -> None:
        self.urls: dict[Path, str] = {}

    def start(self) -> PostgresServer:
        if self.server is None:
            self.server = PostgresServer()
            atexit.register(self.server.close)
            if self.kind == "pgbouncer":
                self.pooler = Pooler(self.server.port)
                atexit.register(self.pooler.close)
        return self.server


chosen = _Chosen()


def on_postgres() -> bool:
    """Whether tests run on PostgreSQL."""
    return chosen.kind != "sqlite"


def needs_sqlite() -> None:
    """For what looks behind the ports."""
    if on_postgres():
        pytest.skip("looks into SQLite's file")


async def state_url(folder: Path) -> str:
    """The URL of the state of this data folder."""
    if not on_postgres():
        return "sqlite:"
    direct = chosen.urls.get(folder)
    if direct is None:
        direct = chosen.urls[folder] = await chosen.start().new_database()
    return direct if chosen.pooler is None else chosen.pooler.url(direct)


async def state_settings(folder: Path, url: str = "sqlite:") -> dict[str, Any]:
    """The sections of `Settings` that lead there, or to this URL when it is not SQLite's."""
    if url == "sqlite:":
        url = await state_url(folder)
    if not url.startswith("postgresql:"):
        return {"state": StateSettings(url=SecretStr(url))}
    return {
        "state": StateSettings(url=SecretStr(url)),
        "owner": OwnerSettings(key=SecretStr(OWNER_KEY)),
        "sealing": SealingSettings(keys=(SecretStr(SEALING_KEY),)),
    }


async def state_environ(folder: Path) -> dict[str, str]:
    """The same for another process."""
    if not on_postgres():
        return {}
    return {
        "ANTIPHON_STATE__URL": await state_url(folder),
        "ANTIPHON_OWNER__KEY": OWNER_KEY,
        "ANTIPHON_SEALING__KEYS": json.dumps([SEALING_KEY]),
    }


async def open_state(folder: Path, **options: Unpack[StoreOptions]) -> Stores:
    """The stores of this data folder."""
    return await open_stores(StateSettings(url=SecretStr(await state_url(folder))), folder, **options)


def change(folder: Path, sql: str) -> None:
    """Change the database of this folder behind everybody's back; of PostgreSQL."""

    async def run() -> None:
        connection = await asyncpg.connect(chosen.urls[folder])
        await connection.execute(sql)
        await connection.close()

    _at_once(run())


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """Within an event loop, which waits."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result(60)
