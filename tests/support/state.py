"""Selects the database of tests: SQLite, or with `--state` PostgreSQL, directly or behind pgbouncer.

Lives here: one server for each test process, a database for each data folder (all processes on one folder share its
state), the settings for it, and direct access to the database. Not here: tests of one backend, which open it
themselves.

Invariant: with `--state sqlite`, the default, this module starts no server and changes no setting.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import re
import sqlite3
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack

import asyncpg
import pytest
from pydantic import SecretStr

from antiphon.config.owners import OwnerSettings, SealingSettings
from antiphon.config.state import StateSettings
from antiphon.stores import StoreOptions, Stores, open_stores
from antiphon.stores.sqlite.backend import SESSIONS_FILE
from tests.support.postgres import PATIENT, Pooler, PostgresServer

T = TypeVar("T")
Kind = Literal["sqlite", "postgresql", "pgbouncer"]

PAST = "now() - interval '1 second'"
# Searches the files of tables, of their TOAST tables and of indexes.
IN_FILES = """
SELECT coalesce(bool_or(position($1::bytea IN pg_read_binary_file(pg_relation_filepath(oid))) > 0), false)
FROM pg_class WHERE pg_relation_filenode(oid) IS NOT NULL
"""
OWNER_KEY = "owner-key-of-tests-that-share-a-database"
SEALING_KEY = "ab" * 32


class _Chosen:
    """The value of `--state`, and the servers that were started for it."""

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
    """Skip a test that accesses SQLite's files directly, if tests run on PostgreSQL."""
    if on_postgres():
        pytest.skip("looks into SQLite's file")


async def state_url(folder: Path) -> str:
    """The URL of the state for this data folder."""
    if not on_postgres():
        return "sqlite:"
    direct = chosen.urls.get(folder)
    if direct is None:
        direct = chosen.urls[folder] = await chosen.start().new_database()
    return direct if chosen.pooler is None else chosen.pooler.url(direct)


async def state_settings(folder: Path, url: str = "sqlite:") -> dict[str, Any]:
    """The sections of `Settings` for this state, or for `url` if it is not SQLite's."""
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
    """The same settings as environment variables for another process."""
    if not on_postgres():
        return {}
    return {
        "ANTIPHON_STATE__URL": await state_url(folder),
        "ANTIPHON_OWNER__KEY": OWNER_KEY,
        "ANTIPHON_SEALING__KEYS": json.dumps([SEALING_KEY]),
    }


async def open_state(folder: Path, **options: Unpack[StoreOptions]) -> Stores:
    """Open the stores of this data folder."""
    state = StateSettings(url=SecretStr(await state_url(folder)), deadline=PATIENT.deadline)
    return await open_stores(state, folder, **options)


def look(folder: Path, sql: str, *parameters: Any) -> list[Any]:
    """Run an SQL statement on the database of this folder, bypassing the stores. `?` stands for a parameter. Returns
    the rows."""
    if folder not in chosen.urls:
        with closing(sqlite3.connect(folder / SESSIONS_FILE, timeout=10)) as database, database:
            return database.execute(sql, parameters).fetchall()
    numbers = count(1)
    return [tuple(row) for row in _ask(folder, re.sub(r"\?", lambda _: f"${next(numbers)}", sql), *parameters)]


def lapse(folder: Path, table: str, column: str, where: str = "true") -> None:
    """Set the time in this column to the past, so that it counts as expired."""
    look(folder, f"UPDATE {table} SET {column} = {PAST if folder in chosen.urls else 1} WHERE {where}")


def at_rest(folder: Path, texts: Iterable[str]) -> set[str]:
    """The texts among `texts` that any file of the folder contains, or its PostgreSQL database, including deleted
    rows."""
    forms = {text: (text.encode(), text.encode("utf-16-le")) for text in texts}
    contents = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    found = {text for text, each in forms.items() if any(form in content for form in each for content in contents)}
    if folder in chosen.urls:
        _ask(folder, "CHECKPOINT")
        found |= {text for text, each in forms.items() if any(_ask(folder, IN_FILES, form)[0][0] for form in each)}
    return found


def _ask(folder: Path, sql: str, *parameters: Any) -> list[Any]:
    async def run() -> list[Any]:
        connection = await asyncpg.connect(chosen.urls[folder])
        try:
            found: list[Any] = await connection.fetch(sql, *parameters)
            return found
        finally:
            await connection.close()

    return _at_once(run())


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from code inside an event loop, which blocks meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result(60)
