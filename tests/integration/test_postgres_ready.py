"""Whether a process is ready, over a real PostgreSQL that is slow, away, or there again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.errors import StoreError
from antiphon.stores import Stores, open_stores
from tests.contracts.store_contract import record
from tests.support.postgres import PostgresServer

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full

AWAY = "ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}"
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database()
    yield url
    await postgres.drop_database(url)


@asynccontextmanager
async def ready(url: str, folder: Path, unready_after: float) -> AsyncIterator[Stores]:
    state = StateSettings(url=SecretStr(url), deadline=0.5, unready_after=unready_after)
    async with aclosing(await open_stores(state, folder, chain_items=100)) as opened:
        await opened.responses.ping()
        # As if that had been a while ago.
        opened.database.written -= 10.0  # type: ignore[attr-defined]
        yield opened


@pytest.mark.parametrize("patient", [True, False])
async def test_a_database_that_does_not_answer_in_time(url: str, tmp_path: Path, patient: bool) -> None:
    async with ready(url, tmp_path, 0.0 if patient else 1e-6) as stores:
        other = await asyncpg.connect(url)
        async with other.transaction():
            await other.execute("LOCK TABLE sweeps")
            if patient:
                await stores.responses.ping()
            else:
                with pytest.raises(StoreError) as raised:
                    await stores.responses.ping()
                assert raised.value.reason == "slow"
            # What requests write is evidence, whatever becomes of the question.
            await stores.responses.save(record("a"))
            await stores.responses.ping()
        await other.close()


async def test_one_that_cannot_be_reached_and_comes_back(postgres: PostgresServer, url: str, tmp_path: Path) -> None:
    name = url.rsplit("/", 1)[1]
    async with ready(url, tmp_path, 1e-6) as stores:
        await postgres.statement(AWAY.format(name, "false"))
        await postgres.statement(CUT.format(name))
        with pytest.raises(StoreError, match="Connecting failed"):
            await stores.responses.ping()
        with pytest.raises(StoreError):
            await open_stores(
                StateSettings(url=SecretStr(url), deadline=0.5, start_within=0.0), tmp_path, chain_items=100
            )
        await postgres.statement(AWAY.format(name, "true"))
        async with aclosing(await open_stores(StateSettings(url=SecretStr(url)), tmp_path, chain_items=100)) as again:
            await again.responses.ping()
