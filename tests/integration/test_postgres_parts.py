"""A database whose user and password come in the driver's own variables, as the Helm chart gives them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.errors import StoreError
from antiphon.stores import open_stores
from tests.support.postgres import PostgresServer

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

_PASSWORD = "p@ss/w:rd %41#?&=+"


async def test_characters_that_mean_something_in_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await asyncio.to_thread(PostgresServer)
    try:
        await server.statement(f"CREATE ROLE app LOGIN PASSWORD '{_PASSWORD}'")
        await server.statement("CREATE DATABASE parts OWNER app")
        server.let_in("host all app all scram-sha-256")
        await server.statement("SELECT pg_reload_conf()")
        state = StateSettings(url=SecretStr(f"postgresql://127.0.0.1:{server.port}/parts?sslmode=prefer"))
        monkeypatch.setenv("PGUSER", "app")
        monkeypatch.setenv("PGPASSWORD", _PASSWORD)
        async with aclosing(await open_stores(state, tmp_path, chain_items=100)) as stores:
            await stores.responses.ping()
        monkeypatch.setenv("PGPASSWORD", "another")
        with pytest.raises(StoreError, match="refused the password"):
            await open_stores(state, tmp_path, chain_items=100)
    finally:
        await asyncio.to_thread(server.close)
