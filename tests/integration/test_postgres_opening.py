"""Opening the stores of a PostgreSQL database by its URL, and what an operator does with an owner's data in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from pydantic import SecretStr

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.config.state import StateSettings
from antiphon.engine.ports.actions import Usage
from antiphon.engine.ports.state import OwnerCounts
from antiphon.engine.ports.usage_sums import CallUsage, UsageSum
from antiphon.errors import OwnerFull, StoreError
from antiphon.stores import Stores, examine_state, open_stores
from antiphon.stores.backend import StateNeeds
from antiphon.stores.bodies import Bodies
from antiphon.stores.compatibility import KeyFingerprints
from antiphon.stores.owner_usage import OwnerQuota
from antiphon.stores.postgres import owner_data
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.health import TABLES
from antiphon.stores.postgres.owner_data import open_postgres_owners
from antiphon.stores.postgres.tables import PostgresTables
from tests.contracts.file_contract import fields, keep
from tests.contracts.store_contract import ALICE, BOB, item, record
from tests.support.postgres import PATIENT, PostgresServer

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database(empty=True)
    yield url
    await postgres.drop_database(url)


@pytest.fixture
def state(url: str) -> StateSettings:
    return StateSettings(url=SecretStr(url), deadline=PATIENT.deadline)


@pytest.fixture
async def stores(state: StateSettings, tmp_path: Path) -> AsyncIterator[Stores]:
    async with aclosing(await open_stores(state, tmp_path, chain_items=100)) as opened:
        yield opened


async def _fill(stores: Stores, owner: str) -> None:
    """One of everything that has an owner."""
    name = owner.removeprefix("b:")
    await stores.responses.save(record(name, owner=owner))
    await stores.conversations.create(owner, f"conv_{name}", b'{"a":"b"}', (item(f"msg_{name}"),))
    await stores.prompts.create(owner, f"pmpt_{name}", "n\0", b"{}", b'{"instructions":"x"}')
    await keep(stores.files, fields(name), b"x", owner=owner)
    spent = UsageSum("2026-01-01", owner, "m\0", "u")
    spent.add(CallUsage(owner, "m\0", "u", Usage(1, 2, 3)))
    await stores.usage.add([spent])
    vectors = await stores.open_vectors()
    await vectors.stores.create(owner, f"vs_{name}", name="v", description=None, metadata=b"{}", expires_days=None)
    await vectors.aclose()


async def test_eight_that_open_an_empty_database_at_once_serve_from_it(state: StateSettings, tmp_path: Path) -> None:
    opened = await asyncio.gather(*[open_stores(state, tmp_path, chain_items=100) for _ in range(8)])
    await asyncio.gather(*[one.responses.save(record(f"r{n}")) for n, one in enumerate(opened)])
    for n in range(8):
        assert await opened[n - 1].responses.get(ALICE, f"resp_r{n}") is not None
    for one in opened:
        await one.aclose()


async def test_closed_stores_refuse(state: StateSettings, tmp_path: Path) -> None:
    stores = await open_stores(state, tmp_path, chain_items=100)
    await stores.aclose()
    for call in (stores.responses.save(record("a")), stores.conversations.get(ALICE, "c"), stores.files.used(ALICE)):
        with pytest.raises(StoreError):
            await call


async def test_figures(stores: Stores) -> None:
    await stores.responses.save(record("a"))
    (figures,) = stores.statistics
    assert (figures.name, figures.waiting, figures.busy) == ("postgresql", 0, 0)
    assert dict(figures.groups) == {1: 1}


async def test_what_a_database_and_its_server_say_of_themselves(stores: Stores, url: str) -> None:
    vectors = await stores.open_vectors()
    await vectors.check_vectors()
    await vectors.aclose()
    (figures,) = stores.statistics
    said = await figures.look()
    assert set(said.tables) == TABLES, "every table of the schema, and none besides, has a name of its own"
    assert 0 < max(said.tables.values()) < sum(said.tables.values()) < said.size
    assert said.connections["active"] >= 1 and said.most_connections is not None
    assert sum(said.connections.values()) <= said.most_connections
    async with aclosing(Database(url, PATIENT)) as other:

        async def hold(connection: Connection) -> int:
            """What is seen while a transaction is open and others begin and end."""
            await connection.fetchval("SELECT pg_current_xact_id()::text")
            await connection.execute("CREATE TABLE somebody_elses ()")
            for n in range(5):
                await stores.responses.save(record(f"r{n}"))
            held = await figures.look()
            assert held.connections["idle_in_transaction"] == 1 and "other" not in held.tables
            assert held.oldest_xmin is not None
            return held.oldest_xmin

        assert await other.transaction(hold) >= 5
        after = await figures.look()
        assert after.tables["other"] == 0 and after.tables["responses"] >= said.tables["responses"]


async def test_an_owner_is_full_at_the_limit(stores: Stores, url: str) -> None:
    """Whatever connections have counted it."""
    for n in range(8):
        await stores.responses.save(record(f"r{n}"))
    async with aclosing(Database(url, PATIENT)) as database:
        ((total,),) = await database.fetch("SELECT sum(own_bytes)::bigint FROM responses")
        await OwnerQuota(PostgresTables(database), total + 1).check(ALICE)
        with pytest.raises(OwnerFull):
            await OwnerQuota(PostgresTables(database), total).check(ALICE)
        await OwnerQuota(PostgresTables(database), 1).check("b:nobody")


async def test_an_owners_data_are_counted_exported_and_deleted(stores: Stores, state: StateSettings) -> None:
    for owner in (ALICE, BOB):
        await _fill(stores, owner)
    for n in range(5):
        await stores.responses.save(record(f"more{n}"))
    opened = await open_postgres_owners(state, Bodies((), seals=False), at_once=2)
    async with aclosing(opened) as owners:
        assert await owners.owners() == sorted(
            [OwnerCounts(ALICE, 6, 1, 1, 1, 1), OwnerCounts(BOB, 1, 1, 1, 1, 1)], key=lambda one: one.owner
        )
        rows = [row async for row in owners.export(ALICE)]
        kinds = [row.kind for row in rows]
        counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
        assert counts == {
            "responses": 6,
            "response_items": 18,
            "conversations": 1,
            "conversation_items": 1,
            "prompts": 1,
            "prompt_versions": 1,
            "usage_days": 1,
            "vector_stores": 1,
        }
        found = {row.kind: row for row in rows}
        assert found["prompts"].of == "n\0" and found["conversations"].data == {"a": "b"}
        assert found["usage_days"].of == "m\0" and found["usage_days"].data["calls"] == 1
        # Chain by chain, and a conversation, a prompt, a vector store and a day.
        assert await owners.delete(ALICE) == 10 and await owners.delete(ALICE) == 0
        assert [row async for row in owners.export(ALICE)] == []
        assert [(one.owner, one.files, one.responses) for one in await owners.owners()] == [(ALICE, 1, 0), (BOB, 1, 1)]
        (shrunk,) = await owners.vacuum()
        assert "postgres" in shrunk.name and shrunk.after > 0


async def test_every_table_with_an_owner_is_known_to_operators(stores: Stores, url: str) -> None:
    async with aclosing(Database(url, PATIENT)) as database:
        rows = await database.fetch(
            "SELECT table_name::text FROM information_schema.columns WHERE column_name = 'owner' "
            "AND table_schema = current_schema()"
        )
    assert {row[0] for row in rows} <= {*owner_data.OWNED, *owner_data.ELSEWHERE}


async def test_with_embeddings_a_database_without_the_extension_is_refused(url: str, tmp_path: Path) -> None:
    """The role may not create the extension. Without embeddings the server starts, and doctor reports the same."""
    name = url.rsplit("/", 1)[1]
    async with aclosing(Database(url, PATIENT)) as admin:
        await admin.write(f"CREATE ROLE {name} LOGIN")
        await admin.write(f"GRANT ALL ON SCHEMA public TO {name}")
        limited = url.replace("postgres@", f"{name}@")
        try:
            await _words_alone(limited, tmp_path)
        finally:
            await admin.write(f"DROP OWNED BY {name}")
            await admin.write(f"DROP ROLE {name}")


async def _words_alone(url: str, folder: Path) -> None:
    said = "Have an administrator run `CREATE EXTENSION vector`"
    given = {"data": folder, "state": {"url": url}, "owner": {"key": "k" * 40}, "sealing": {"keys": ["s" * 40]}}
    app = await build(load_settings(given), door="http")
    await app.aclose()
    with pytest.raises(StoreError, match=said):
        await build(load_settings({**given, "embeddings": {"url": "http://127.0.0.1:9", "model": "m"}}), door="http")

    assert said in (await _vector_findings(url, folder, needed=True))[0]
    assert await _vector_findings(url, folder, needed=False) == []


async def _vector_findings(url: str, folder: Path, *, needed: bool) -> list[str]:
    state, wanted = StateSettings(url=SecretStr(url)), StateNeeds(KeyFingerprints(None, ()), 4, vectors=needed)
    return [one.what async for one in examine_state(state, folder, wanted) if "vector'" in one.what]


async def test_doctor_names_an_extension_that_can_be_used(url: str, tmp_path: Path) -> None:
    assert await _vector_findings(url, tmp_path, needed=True) == ["the extension 'vector' can be used"]
