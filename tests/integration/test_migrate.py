"""`antiphon migrate` on both kinds of databases: what it prints, what it leaves, who waits for whom."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from antiphon.config.state import StateSettings
from antiphon.entry import main
from antiphon.errors import StoreError
from antiphon.stores import check_migrated, open_stores
from antiphon.stores.compatibility import SchemaStep
from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.migrate import LOCK, Patience, applied_steps, migrate, packaged_steps, undo
from tests.support.postgres import PATIENT, PostgresServer, blocked

ONE = SchemaStep(1, "0001_one.sql", "CREATE TABLE one (n integer)")
TWO = SchemaStep(
    2, "0002_two.sql", "-- serves: 1\nALTER TABLE one ADD COLUMN more text", "ALTER TABLE one DROP COLUMN more"
)
SLOW = SchemaStep(2, "0002_slow.sql", "SELECT pg_sleep(60)")


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database(empty=True)
    yield url
    await postgres.drop_database(url)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url, PATIENT)
    yield database
    await database.aclose()


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateSettings:
    """An empty state, which the settings name."""
    given = "sqlite:" if request.param == "sqlite" else request.getfixturevalue("url")
    monkeypatch.setenv("ANTIPHON_STATE__URL", given)
    monkeypatch.setenv("ANTIPHON_DATA", str(tmp_path))
    monkeypatch.setenv("ANTIPHON_OWNER__KEY", "o" * 32)
    monkeypatch.setenv("ANTIPHON_SEALING__KEYS", '["' + "s" * 32 + '"]')
    return StateSettings.model_validate({"url": given})


async def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = await asyncio.to_thread(main, ["migrate", *arguments])
    out, err = capsys.readouterr()
    return status, out + err


async def test_up_applies_what_status_says_is_missing(
    state: StateSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = await run(capsys, "status")
    assert status == 1 and "missing" in said and "run 'antiphon migrate up'" in said
    assert not list(tmp_path.iterdir()), "looking makes nothing"
    status, said = await run(capsys, "up")
    assert status == 0 and "applied 0001_" in said
    status, said = await run(capsys, "status")
    assert status == 0 and "missing" not in said and "or newer can use this database" in said
    status, said = await run(capsys, "up")
    assert status == 0 and "nothing was missing" in said


async def test_results_as_json(state: StateSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def told(*words: str, status: int = 0) -> list[dict[str, Any]]:
        found, said = await run(capsys, *words, "--json")
        assert found == status, said
        return [json.loads(line) for line in said.splitlines()]

    before = await told("status", status=1)
    assert all(one["missing"] == len(one["steps"]) == one["known_schema"] for one in before)
    applied = await told("up")
    assert [one["database"] for one in applied] == [one["database"] for one in before]
    assert applied[0]["applied"] == [step["step"] for step in before[0]["steps"]]
    after = await told("status")
    assert {step["state"] for one in after for step in one["steps"]} == {"applied"}
    assert [(one["missing"], one["problem"]) for one in after] == [(0, None)] * len(after)


async def test_a_start_that_only_checks_refuses_until_somebody_applied(
    state: StateSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await check_migrated(state, tmp_path)
    checking = state.model_copy(update={"migrate": "check"})
    with pytest.raises(StoreError, match=r"from 0001_.*antiphon migrate up"):
        await open_stores(checking, tmp_path, chain_items=10)
    assert not list(tmp_path.iterdir())
    await run(capsys, "up")
    await check_migrated(checking, tmp_path)


async def test_what_cannot_be_undone_says_so(state: StateSettings, capsys: pytest.CaptureFixture[str]) -> None:
    await run(capsys, "up")
    status, said = await run(capsys, "down")
    assert status == 1 and "cannot be undone" in said and "backup" in said
    status, said = await run(capsys, "down", "--database", "nope")
    assert status == 2 and "choose one of" in said


@pytest.mark.full
async def test_eight_processes_at_once_apply_each_step_once(state: StateSettings, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "antiphon", "migrate", "up"]
    several = await asyncio.gather(
        *[
            asyncio.create_subprocess_exec(
                *command, env=dict(os.environ), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            for _ in range(8)
        ]
    )
    said = [(await one.communicate())[0].decode() for one in several]
    assert [one.returncode for one in several] == [0] * 8, said
    applied = [line for text in said for line in text.splitlines() if ": applied " in line]
    assert len(applied) == len(set(applied)) > 0, json.dumps(said)


async def test_a_step_is_undone_and_applied_again(database: Database) -> None:
    await migrate(database, [ONE, TWO])
    assert await undo(database, [ONE, TWO]) == TWO
    assert [one.version for one in await applied_steps(database)] == [1]
    with pytest.raises(StoreError, match="cannot be undone"):
        await undo(database, [ONE, TWO])
    assert await migrate(database, [ONE, TWO]) == [TWO]
    # A build that knows the first alone goes on.
    assert await migrate(database, [ONE]) == []


async def test_a_step_that_fails_leaves_nothing(database: Database) -> None:
    broken = SchemaStep(2, "0002_broken.sql", "CREATE TABLE two (n integer); CREATE TABLE one (n integer)")
    with pytest.raises(StoreError):
        await migrate(database, [ONE, broken])
    assert [one.version for one in await applied_steps(database)] == [1]
    assert (await database.fetch("SELECT to_regclass('two') IS NULL"))[0][0]


async def test_a_step_that_takes_too_long_says_what_gives_it_more_time(url: str) -> None:
    database = Database(url, DatabaseLimits(size=1, deadline=1.0))
    with pytest.raises(StoreError, match=r"0002_slow\.sql takes longer than 1 s.*migrate up"):
        await migrate(database, [ONE, SLOW])
    await database.aclose()


async def test_a_step_lets_others_pass_and_tries_again(database: Database, url: str) -> None:
    patience = Patience(lock=0.1, pauses=(0.0,) * 4)
    await migrate(database, [ONE])
    other = await asyncpg.connect(url)
    holding = other.transaction()
    await holding.start()
    await other.execute("LOCK TABLE one IN ACCESS SHARE MODE")
    with pytest.raises(StoreError, match=r"0002_two\.sql.*5 tries.*pg_stat_activity") as raised:
        await migrate(database, [ONE, TWO], patience=patience)
    assert raised.value.reason == "locked"
    trying = asyncio.create_task(migrate(database, [ONE, TWO], patience=patience))
    await blocked(other)
    await holding.rollback()
    assert await trying == [TWO]
    await other.close()


async def test_a_start_waits_for_another_and_not_for_ever(database: Database, url: str) -> None:
    other = await asyncpg.connect(url)
    holding = other.transaction()
    await holding.start()
    await other.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    waiting = asyncio.create_task(migrate(database, [ONE]))
    while not database.open:
        await asyncio.sleep(0)
    await holding.rollback()
    assert await waiting == [ONE]
    await other.execute("SELECT pg_advisory_lock($1)", LOCK)
    short = Database(url, DatabaseLimits(deadline=0.5))
    with pytest.raises(StoreError, match="another process is changing the schema"):
        await migrate(short, [ONE, TWO], patience=Patience(others=0.0))
    await short.aclose()
    await other.close()


def test_the_steps_shipped_say_whom_they_serve() -> None:
    assert all(step.sql.startswith("-- serves: ") for step in packaged_steps())
