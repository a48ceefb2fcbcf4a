"""A PostgreSQL that state cannot be kept on: a sentence that says what to do, at a start and in `antiphon doctor`, and
no password in either."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import structlog

from antiphon.app.build import build
from antiphon.config.settings import Settings, load_settings
from antiphon.entry import main
from antiphon.errors import StoreError
from antiphon.stores.postgres.checks import indexes_of, lost_indexes
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.failures import connecting_failed
from antiphon.stores.postgres.migrate import Server, check, migrate, packaged_steps
from tests.support.postgres import PATIENT, Pooler, PostgresServer, free_port, pooler_program

CANARY = "canary-" + "p" * 20
SECRETS = {"owner": {"key": "owner-" + CANARY}, "sealing": {"keys": ["seal-" + CANARY]}}


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database()
    yield url
    await postgres.drop_database(url)


@pytest.fixture(scope="module")
def roles(postgres: PostgresServer) -> str:
    """Makes roles that are let in nowhere, or may do nothing; host and port of the server."""

    async def make() -> None:
        for sql in (
            f"CREATE ROLE with_password LOGIN PASSWORD 'not-{CANARY}'",
            *(f"CREATE ROLE {name} LOGIN" for name in ("rejected", "with_tls", "poor")),
        ):
            # A process that comes back to this module makes them a second time, on the same server.
            await postgres.statement(f"DO $$BEGIN {sql}; EXCEPTION WHEN duplicate_object THEN NULL; END$$")

    asyncio.run(make())
    return f"127.0.0.1:{postgres.port}"


def settings(data: Path, url: str, **more: Any) -> Settings:
    given = {"data": str(data), "state": {"url": url, "start_within": 0}, "upstream": {"auth": "none"}, "door": "http"}
    return load_settings({**given, **SECRETS, **more})


async def refusal(data: Path, url: str) -> str:
    """What a start says."""
    with pytest.raises(StoreError) as told:
        await build(settings(data, url), door="http")
    error: BaseException | None = told.value
    assert CANARY not in str(told.value)
    # Tracebacks and logs show the causes, too.
    while error is not None:
        assert CANARY not in str(error)
        error = error.__cause__
    return str(told.value)


async def doctor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, **more: Any
) -> tuple[list[str], list[dict[str, str]]]:
    """What it says of the state: each verdict with its words, and all of it."""
    config = tmp_path / "settings.json"
    given = {"door": "http", "state": {"url": url}, **SECRETS, **more}
    config.write_text(json.dumps(given))
    arguments = ["doctor", "--json", "--config", str(config), "--data", str(tmp_path / "data")]
    await asyncio.to_thread(main, [*arguments, "--upstream", f"http://127.0.0.1:{free_port()}/v1"])
    captured = capsys.readouterr()
    assert CANARY not in captured.out + captured.err
    findings = [one for one in json.loads(captured.out) if one["where"] == "database"]
    return [f"{one['verdict']}: {one['what']}" for one in findings], findings


@pytest.mark.parametrize(
    ("user", "place", "words"),
    [
        ("with_password", "", r"refused the password; check state\.url"),
        ("rejected", "", r"refused the user or a connection without TLS.*pg_hba\.conf"),
        ("with_tls", "?sslmode=disable", r"without TLS.*sslmode"),
        ("postgres", "?sslmode=require", r"does not support TLS.*sslmode=disable"),
        ("postgres", "?sslmode=verify-full&sslrootcert=/nope", r"a certificate file in state\.url cannot be read"),
        ("postgres", "?sslmode=sometimes", r"sslmode in state\.url must be"),
        ("postgres", "?nonsense=1", r"does not know a parameter"),
    ],
)
async def test_who_is_not_let_in_is_told_why(
    roles: str, url: str, tmp_path: Path, user: str, place: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"postgresql://{user}:{CANARY}@{roles}/{url.rsplit('/', 1)[1]}{place}"
    assert re.search(words, await refusal(tmp_path, given))
    said, _ = await doctor(tmp_path, capsys, given)
    assert len(said) == 1 and said[0].startswith("problem: Connecting failed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", "Unset default_transaction_read_only"),
        ("ALTER DATABASE {name} SET search_path = nowhere", "set search_path to an"),
        (
            "ALTER DATABASE {name} CONNECTION LIMIT 0",
            "raise max_connections, or the CONNECTION LIMIT of the role or database, or",
        ),
        ("REVOKE CONNECT ON DATABASE {name} FROM PUBLIC", "GRANT CONNECT"),
        ("", "must own the tables, or have SELECT"),
    ],
)
async def test_a_database_that_will_not_do(
    postgres: PostgresServer, roles: str, url: str, tmp_path: Path, change: str, words: str
) -> None:
    name = url.rsplit("/", 1)[1]
    if change:
        await postgres.statement(change.format(name=name))
    assert words in await refusal(tmp_path, f"postgresql://poor:{CANARY}@{roles}/{name}")


async def test_a_role_that_may_make_no_tables(
    postgres: PostgresServer, roles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = await postgres.new_database(empty=True)
    given = f"postgresql://poor:{CANARY}@{roles}/{empty.rsplit('/', 1)[1]}"
    assert "grant the role CREATE on the schema" in await refusal(tmp_path, given)
    # Somebody else makes them.
    checking = settings(tmp_path, given, state={"url": given, "migrate": "check"})
    with pytest.raises(StoreError, match="antiphon migrate up"):
        await build(checking, door="http")
    await postgres.drop_database(empty)


async def test_a_replica_is_no_place_to_write(
    replica: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Point state.url at the primary" in await refusal(tmp_path, replica.url())
    said, _ = await doctor(tmp_path, capsys, replica.url())
    assert said == ["problem: PostgreSQL: this server is a read-only replica. Point state.url at the primary."]


def _run(*command: str) -> int:
    return subprocess.run(command, check=False).returncode


@pytest.fixture
async def small_disk(postgres: PostgresServer) -> AsyncIterator[str]:
    """A database on a disk of its own, which is soon full."""
    folder = Path(tempfile.mkdtemp(prefix="antiphon-small-", dir="/tmp"))
    if await asyncio.to_thread(_run, "mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)):
        folder.rmdir()
        pytest.skip("only root may mount a small disk")
    owner = postgres.user
    os.chown(folder, owner, owner)
    name = folder.name.replace("-", "_")
    await postgres.statement(f"CREATE TABLESPACE {name} LOCATION '{folder}'")
    await postgres.statement(f"CREATE DATABASE {name} TEMPLATE template0 TABLESPACE {name}")
    yield postgres.url(name)
    await postgres.drop_database(postgres.url(name))
    await postgres.statement(f"DROP TABLESPACE {name}")
    assert await asyncio.to_thread(_run, "umount", str(folder)) == 0
    folder.rmdir()


async def test_a_full_disk_is_named(small_disk: str) -> None:
    database = Database(small_disk)
    await migrate(database, packaged_steps())
    with pytest.raises(StoreError, match="the server's disk is full") as told:
        for _ in range(100):
            await database.write(
                "INSERT INTO prompts SELECT gen_random_uuid(), 'o', NULL, 1, 1, 0, 0, "
                "convert_to(repeat(md5(n::text), 60), 'UTF8') FROM generate_series(1, 500) AS n"
            )
    assert told.value.reason == "full"
    assert (await database.fetch("SELECT 1"))[0][0] == 1, "what is there can be read"
    await database.aclose()


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (Server(140_011, "14.11", "public", "UTF8"), "14.11 is too old: 15 or newer"),
        (Server(150_000, "15.0", "public", "LATIN1"), "LATIN1"),
        (Server(150_000, "15.0", "public", "UTF8"), ""),
    ],
)
def test_what_a_server_says_of_itself(server: Server, words: str) -> None:
    with pytest.raises(StoreError, match=words) if words else nullcontext():
        check(server)


async def test_where_nobody_answers_the_wait_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        given = f"postgresql://x:{CANARY}@127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(StoreError, match="did not answer in time"):
            await build(
                settings(tmp_path, given, state={"url": given, "deadline": 0.3, "start_within": 0}), door="http"
            )


@pytest.mark.parametrize(
    ("user", "at", "words"),
    [
        ("with_password", "{server}/{name}", "refused the password; check state.direct_url"),
        (
            "postgres",
            "{server}/not-there",
            "no such database; create the database, or check the name in state.direct_url",
        ),
        (
            "postgres",
            "127.0.0.1:{closed}/{name}",
            "listens on that address (listen_addresses, port), and check host ",
        ),
        ("postgres", "nowhere.invalid/{name}", "host is not known; check host and port in state.direct_url"),
        ("postgres", "{server}/postgres", "state.direct_url leads to another database than state.url"),
        ("postgres", "{replica}/postgres", "Point state.direct_url at the primary"),
    ],
)
async def test_a_wrong_direct_url_is_what_is_blamed(
    replica: PostgresServer,
    roles: str,
    url: str,
    tmp_path: Path,
    user: str,
    at: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"server": roles, "closed": free_port(), "replica": f"127.0.0.1:{replica.port}"}
    place = at.format(name=url.rsplit("/", 1)[1], **places)
    state = {"url": url, "direct_url": f"postgresql://{user}:{CANARY}@{place}"}
    said, _ = await doctor(tmp_path, capsys, url, state=state)
    assert said[-1].startswith("problem: ") and words in said[-1] and "state.url at" not in said[-1]
    if "Connecting failed" in said[-1]:
        with pytest.raises(StoreError, match=r"state\.direct_url"):
            await build(settings(tmp_path, url, state={**state, "migrate": "check", "start_within": 0}), door="http")


async def test_where_a_direct_url_leads(
    postgres: PostgresServer,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    said, _ = await doctor(tmp_path, capsys, url, state={"url": url, "direct_url": url})
    assert "ok: state.direct_url bypasses the pooler" in said
    if pooler_program() is None:
        pytest.skip("pgbouncer is not installed")
    pooled = request.getfixturevalue("pgbouncer").url(url)
    said, _ = await doctor(tmp_path, capsys, url, state={"url": pooled, "direct_url": pooled})
    assert any(one.startswith("note: state.direct_url leads through a pooler") for one in said)
    given_up = "note: behind the pooler, a cancelled statement continues"
    assert any(one.startswith(given_up) for one in said)
    name = url.rsplit("/", 1)[1]
    await postgres.statement(f"ALTER DATABASE {name} SET client_connection_check_interval = '1s'")
    await postgres.statement(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    said, _ = await doctor(tmp_path, capsys, url, state={"url": pooled})
    assert not any(one.startswith(given_up) for one in said)


@pytest.mark.skipif(pooler_program() is None, reason="pgbouncer is not installed")
async def test_poolers_in_the_wrong_mode(
    postgres: PostgresServer, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(Pooler(postgres.port, mode="statement")) as pooler:
        assert "set pool_mode = transaction" in await refusal(tmp_path, pooler.url(url))
        # pgbouncer 1.26 says it with the server's own code (3D000), by which the pooler is not told apart any more.
        assert "there is no such database" in await refusal(tmp_path, pooler.url("x/not-there"))
    with closing(Pooler(postgres.port, mode="session")) as pooler:
        said, _ = await doctor(tmp_path, capsys, pooler.url(url))
    assert any("pool_mode = session" in one for one in said)


async def test_the_doctor_says_what_there_is(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    said, _ = await doctor(tmp_path, capsys, url)
    for words in (
        *("PostgreSQL 1", "round trip", "differ by", "connections of the server", "no pooler"),
        *("extension 'vector'", "postgresql: schema", "no process has started"),
    ):
        assert any(one.startswith("ok: ") and words in one for one in said), (words, said)
    await (await build(settings(tmp_path / "data", url), door="http")).aclose()
    said, _ = await doctor(tmp_path, capsys, url)
    assert "ok: owner.key and sealing.keys are the same as on the other machines" in said
    said, _ = await doctor(tmp_path, capsys, url, owner={"key": "another"})
    assert any(one.startswith("problem: owner.key differs") for one in said)
    if pooler_program() is not None:
        through = request.getfixturevalue("pgbouncer").url(url)
        said, findings = await doctor(tmp_path, capsys, through)
        assert "ok: there is a pooler in front of the server" in said and not any("session" in one for one in said)
        assert any("server_login_retry = 1" in one["advice"] for one in findings)
        assert any("direct_url" in one for one in said)


async def test_an_index_that_is_gone_is_named_with_what_makes_it_again(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = indexes_of(packaged_steps())
    async with aclosing(Database(url, PATIENT)) as database:
        there = "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'schema_migrations'"
        assert {row[0] for row in await database.fetch(there)} == set(made), "the steps' text was read otherwise"
        said, _ = await doctor(tmp_path, capsys, url)
        assert f"ok: all {len(made)} indexes of the schema exist" in said
        for index in ("jobs_waiting", "files_gone"):
            await database.write(f"DROP INDEX {index}")
        await database.write("ALTER TABLE usage_days DROP CONSTRAINT usage_days_pkey")
        # As making it concurrently leaves it, when that is broken off.
        await database.write("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'jobs_owner'::regclass")
        said, findings = await doctor(tmp_path, capsys, url)
        lost = {one.split()[3]: one.split(":")[1].split(",")[0] for one in said if one.startswith("note: the index ")}
        assert lost == {
            "jobs_waiting": " the index jobs_waiting is missing",
            "files_gone": " the index files_gone is missing",
            "usage_days_pkey": " the index usage_days_pkey is missing",
            "jobs_owner": " the index jobs_owner is invalid",
        }
        # What is advised is what is needed.
        advised = {one["what"].split()[2]: one["advice"] for one in findings if one["what"].startswith("the index ")}
        for index in ("jobs_waiting", "files_gone", "jobs_owner"):
            for statement in re.findall(r"(?:DROP|CREATE) INDEX [^;]+", advised[index]):
                await database.write(statement)
        assert list(await lost_indexes(database, list(made))) == ["usage_days_pkey"]
        assert "usage_days" in advised["usage_days_pkey"] and "0001_state.sql" in advised["usage_days_pkey"]


async def test_the_doctor_looks_at_a_data_folder_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, _ = await doctor(tmp_path, capsys, "sqlite:")
    assert said == [f"ok: {name} is new: the first start creates its schema" for name in ("sessions.db", "vectors.db")]
    await (await build(settings(tmp_path / "data", "sqlite:"), door="http")).aclose()
    said, _ = await doctor(tmp_path, capsys, "sqlite:")
    assert all(one.startswith("ok: ") for one in said)
    assert [one.split()[1] for one in said if "can use this database" in one] == ["sessions.db:", "vectors.db:"]
    assert sum("tables and indexes of the schema exist" in one for one in said) == 2


async def test_a_database_file_without_an_index_or_a_table_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await (await build(settings(tmp_path / "data", "sqlite:"), door="http")).aclose()
    file = tmp_path / "data" / "sessions.db"
    with closing(sqlite3.connect(file)) as connection:
        ask = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql > '' ORDER BY 1 LIMIT 1"
        (index,) = connection.execute(ask).fetchone()
        connection.execute(f"DROP INDEX {index}")
    said, findings = await doctor(tmp_path, capsys, "sqlite:")
    assert f"note: sessions.db: the index {index} is missing, so queries that need it are slow" in said
    (made,) = [one["advice"].partition("sqlite3: ")[2] for one in findings if index in one["what"]]
    with closing(sqlite3.connect(file)) as connection:
        # What is advised mends it.
        connection.execute(made)
        connection.execute("DROP TABLE prompt_versions")
    said, _ = await doctor(tmp_path, capsys, "sqlite:")
    assert "problem: sessions.db lacks the table prompt_versions" in said and not any(index in one for one in said)


async def test_no_password_is_logged_or_shown(
    roles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    given = f"postgresql://with_password:{CANARY}@{roles}/postgres?sslpassword={CANARY}"
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as lines:
        await refusal(tmp_path, given)
    assert CANARY not in str(lines) + caplog.text
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"state": {"url": given, "direct_url": given}, **SECRETS}))
    assert await asyncio.to_thread(main, ["config", "--config", str(config)]) == 0
    for command in (["migrate", "status"], ["migrate", "up"], ["admin", "owners"], ["admin", "deployment-keys"]):
        arguments = [*command, "--config", str(config), "--data", str(tmp_path / "data")]
        assert await asyncio.to_thread(main, arguments) == 1, command
    captured = capsys.readouterr()
    assert CANARY not in captured.out + captured.err


def test_what_no_server_said_is_told_in_words() -> None:
    of_both = OSError(
        "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed"
    )
    for error in (ConnectionRefusedError(111, "Connect call failed"), of_both):
        assert "Connection refused; check that the server runs and listens on" in str(connecting_failed(error))
    assert "host is not known" in str(connecting_failed(socket.gaierror(-2, "Name or service not known")))
    assert "speak PostgreSQL's protocol" in str(connecting_failed(RuntimeError("unexpected message type")))
