"""Shared fixtures of the contract tests: the state of a test, other stores on the same state, and SQLite's stores for
tests of SQLite only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest

from antiphon.stores import Stores
from antiphon.stores.sqlite.backend import SqliteStores, open_sqlite
from tests.contracts.states import KINDS, PEERS, SEALED, open_state, parameter
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.contracts.store_process import ProcessStores, StoreProcess
from tests.support.postgres import PostgresServer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses a state on every kind of state, and a test that uses `peers` with every kind of peers."""
    if "peers" in metafunc.fixturenames:
        alone = "stays_here" in metafunc.fixturenames
        pairs = [pair for pair in PEERS if not alone or pair[1] != "process"]
        metafunc.parametrize(("kind", "peers"), [parameter(*pair) for pair in pairs], indirect=True)
    elif "kind" in metafunc.fixturenames:
        others = "seen_by_others" in metafunc.fixturenames
        kinds = [kind for kind in KINDS if not others or kind != "memory"]
        metafunc.parametrize("kind", [parameter(kind) for kind in kinds], indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The backend's name."""
    return str(request.param)


@pytest.fixture
async def state_url(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a separate state for one test."""
    sealed, backend = SEALED if kind.startswith(SEALED) else "", kind.removeprefix(SEALED)
    if backend in ("postgresql", "pgbouncer"):
        server: PostgresServer = request.getfixturevalue("postgres")
        url = await server.new_database()
        given = url if backend == "postgresql" else request.getfixturevalue("pgbouncer").url(url)
        yield f"{sealed}{given}"
        await server.drop_database(url)
    else:
        yield sealed + {"sqlite": f"sqlite:{tmp_path}", "memory": "memory:"}[backend]


@pytest.fixture
async def state(state_url: str, tmp_path: Path) -> AsyncIterator[Stores]:
    """The stores of this state."""
    async with aclosing(await open_state(state_url, tmp_path)) as opened:
        yield opened


@pytest.fixture
async def peers(request: pytest.FixtureRequest, state: Stores, state_url: str, tmp_path: Path) -> AsyncIterator[Stores]:
    """Other stores on the same state: the same objects, a second set in this process, or a set in another process."""
    if request.param == "itself":
        yield state
    elif request.param == "another":
        async with aclosing(await open_state(state_url, tmp_path)) as opened:
            yield opened
    else:
        process: StoreProcess = request.getfixturevalue("process")
        await process.open(state_url, tmp_path)
        yield cast(Stores, ProcessStores(process))
        await process.call("aclose")


@pytest.fixture
def stays_here() -> None:
    """Marks a test whose values cannot be sent to another process, so it runs with peers of this process only."""


@pytest.fixture
def seen_by_others() -> None:
    """Marks a test of other programs' access to a state, so it does not run on states in memory."""


@pytest.fixture(scope="module")
def process() -> Iterator[StoreProcess]:
    process = StoreProcess()
    yield process
    process.close()


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    async with aclosing(await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)) as opened:
        yield opened


@pytest.fixture
async def other_stores(stores: SqliteStores, tmp_path: Path) -> AsyncIterator[SqliteStores]:
    """A second set of stores on the same files as `stores`, opened after it."""
    async with aclosing(await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS)) as opened:
        yield opened


@pytest.fixture
async def open_process(stores: SqliteStores, process: StoreProcess, tmp_path: Path) -> AsyncIterator[StoreProcess]:
    """The other process, with a set of stores on the same files as `stores`."""
    await process.open(f"sqlite:{tmp_path}", tmp_path)
    yield process
    await process.call("aclose")
