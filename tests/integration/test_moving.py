"""Everything of a data folder is moved into a PostgreSQL database: killed in the middle it goes on, and what clients
read afterwards is what they read before, byte for byte."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import asyncpg
import pytest

from antiphon.config.state import BlobSettings, StateSettings
from antiphon.engine.ports.files import FileFields
from antiphon.engine.ports.vector_stores import DocumentChunk, NewFile
from antiphon.errors import ConfigError, StoreError
from antiphon.stores import examine_state, open_stores
from antiphon.stores.backend import StateNeeds
from antiphon.stores.blobs.memory import MemoryBlobs
from antiphon.stores.compatibility import MOVING, KeyFingerprints, keys_to_record
from antiphon.stores.move import CONTENTS, move
from antiphon.stores.move_format import COLUMNS, MARK_FILE
from antiphon.stores.postgres.importing import DatabaseImport
from antiphon.stores.sqlite.backend import SESSIONS_FILE, VECTORS_FILE, open_sqlite, open_vector_database
from tests.contracts.store_contract import ALICE, BOB, item, record
from tests.support.gateway import start_gateway
from tests.support.postgres import PostgresServer, free_port
from tests.support.strict_upstream import StrictUpstream

ODD = "\0 \x1a 漢字"


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database(empty=True)
    yield url
    await postgres.drop_database(url)


async def fill(data: Path) -> None:
    """Something of every kind, of two owners, with texts that are odd."""
    async with aclosing(await open_sqlite(data, chain_items=1000)) as stores:
        for owner, name in ((ALICE, "a"), (BOB, "b")):
            await stores.responses.save(record(name, owner=owner))
            for number in range(5):
                await stores.responses.save(record(f"{name}{number}", prev=name, owner=owner))
            await stores.conversations.create(
                owner, f"conv_{ODD}", b'{"k":"v"}', (item(f"msg_{name}"), item(f"n_{name}"))
            )
            async with stores.files.uploading() as upload:
                await upload.write(b"content of " + name.encode())
                await upload.keep(owner, FileFields(f"file-{name}", f"{ODD}.txt", "user_data", "text/plain", 1.0, 9e9))
        with closing(sqlite3.connect(data / SESSIONS_FILE)) as other:
            other.execute("INSERT INTO idempotency VALUES ('o', 'k', 'f', 'both', 5, 9223372036854775807, x'00')")
            other.execute("INSERT INTO usage_days VALUES ('2026-01-01', 'o', 'm', 'u', 1, 2, 3, 4, 5, 6, 7, 8, 9)")
            other.execute(
                "INSERT INTO client_keys VALUES "
                "('key', x'00ff', 'n', 'n:o', 't', 'ant_', '[\"m*\"]', '[]', 1, 2, NULL, 7)"
            )
            other.execute("INSERT INTO owner_teams VALUES ('j:o', 't')")
            other.execute("INSERT INTO audit VALUES ('audit_1', 5, 'cli:me', 'purge', '', 'n:o', '{}')")
            other.execute("INSERT INTO quota_counters VALUES ('owner:n:o', 'tokens_per_month', 5, 7, 3, 2, 0)")
            other.execute("INSERT INTO quota_leases VALUES ('process_1', 'owner:n:o', 'tokens_per_month', 5, 3)")
            other.execute("INSERT INTO quota_holders VALUES ('process_1', 9)")
            other.execute(
                "INSERT INTO requests VALUES ('req_1', 9, 'n:o', 'job-1', 'k', 'n', 't', 'http', 'm', 'u', 'r', 'p', "
                "'c', 'failed', 'upstream', 'server_error', 502, 1, 1, 7, NULL, 1, 2, 3, 4, 5, 0, 6, "
                '\'{"message":"x"}\')'
            )
            other.execute("INSERT INTO request_batches VALUES ('entry_1', 9, 1, x'90')")
            other.execute("INSERT INTO request_records VALUES ('req_1', 'n:o', 'resp_a', 'resp_a', 9, 4096, x'00ff')")
            other.execute("INSERT INTO prompts VALUES ('p', 'o', NULL, 1, 2, 3, 4, x'7b7d')")
            other.execute("INSERT INTO prompt_versions VALUES ('p', 1, 3, x'7b7d')")
            other.execute("INSERT INTO pending_blobs VALUES ('taken', 0), ('late', 99)")
            (response,) = other.execute("SELECT id FROM responses LIMIT 1").fetchone()
            other.execute("INSERT INTO response_events VALUES (?, 4, x'00', 1)", (response,))
            other.execute(
                "INSERT INTO jobs (response_id, owner, request, created_at, attempts, claim, needs) "
                "VALUES (?, 'o', x'7b7d', 5, 1, 2, '[\"a\", \"b\"]')",
                (response,),
            )
            other.commit()
    async with aclosing(await open_vector_database(data)) as database:
        for owner, name in ((ALICE, "a"), (BOB, "b")):
            await database.stores.create(
                owner,
                f"vs_{name}",
                name=ODD,
                description=None,
                metadata=b"{}",
                expires_days=3,
                files=[NewFile(f"file-{name}", "x.txt", {"n": 1.5, "s": ODD, "b": True, "big": 12345678901234567})],
            )
        for job in await database.ingestion.claim(["1", "2"], 60):
            vector = bytes(range(60, 76))
            await database.ingestion.append(
                job, 0, "a title", [DocumentChunk("words of it 漢字", 3, vector), DocumentChunk("more", 1)]
            )
            await database.ingestion.complete(job, chunks=2, usage_bytes=1, model="m")
        await database.stores.create(
            BOB,
            "vs_waits",
            name=None,
            description="d",
            metadata=b"{}",
            expires_days=None,
            files=[NewFile("w", "w", {})],
        )
    with closing(sqlite3.connect(data / VECTORS_FILE)) as other:
        (number,) = other.execute("SELECT min(no) FROM vector_files").fetchone()
        (store,) = other.execute("SELECT store_no FROM vector_files WHERE no = ?", (number,)).fetchone()
        other.execute("INSERT INTO vector_batches VALUES ('batch', ?, 5, 1)", (store,))
        other.execute("INSERT INTO vector_batch_files VALUES ('batch', ?)", (number,))
        other.execute("INSERT INTO idempotency VALUES ('o', 'k', 'f', 'hidden', NULL, 1700000000123, NULL)")
        other.execute("INSERT INTO idempotency VALUES ('o', 'l', 'f', 'vs', NULL, 1700000000123, NULL)")
        other.commit()


async def test_everything_arrives_however_often_it_is_broken_off(url: str, tmp_path: Path) -> None:
    await fill(tmp_path)
    adds = 0

    class BreaksOff(DatabaseImport):
        async def add(self, kind: str, rows: list[Any], position: int) -> None:
            nonlocal adds
            adds += 1
            if adds % 7 == 0:
                raise ConnectionAbortedError
            await super().add(kind, rows, position)

    broken = 0
    while True:
        try:
            moved = await move(tmp_path, url, data=tmp_path, blobs=BlobSettings(), importing=BreaksOff, rows=2)
            break
        except ConnectionAbortedError:
            broken += 1
    assert broken > 3
    assert {one.kind: one.source.rows > 0 for one in moved} == dict.fromkeys(COLUMNS, True)
    assert all(one.source == one.target for one in moved)
    connection = await asyncpg.connect(url)
    try:
        (job,) = await connection.fetch("SELECT needs, turn, last_seq, worker FROM jobs")
        assert tuple(job) == (["a", "b"], 1, 4, None)
        assert await connection.fetchval("SELECT jobs FROM owner_queue") == 1
        assert await connection.fetchval("SELECT min(bytes) FROM owner_files") == 4096
        assert await connection.fetchval("SELECT min(bytes) FROM conversations") > 0
        assert await connection.fetchval("SELECT min(vector_width) FROM vector_files") == 8
        last = await connection.fetchval("SELECT max(number) FROM vector_files")
        assert await connection.fetchval("SELECT nextval('vector_numbers')") > last
        assert await connection.fetchval("SELECT to_regclass('moving')") is None
        assert await connection.fetch("SELECT * FROM deployment") == []
    finally:
        await connection.close()
    with pytest.raises(StoreError, match="already has chains"):
        await move(tmp_path, url, data=tmp_path, blobs=BlobSettings())


async def test_a_difference_is_seen_and_no_process_starts_before_the_end(url: str, tmp_path: Path) -> None:
    await fill(tmp_path)

    class Changes(DatabaseImport):
        async def finish(self, numbers: int) -> None:
            await super().finish(numbers)
            other = await asyncpg.connect(url)
            await other.execute("UPDATE prompts SET name = 'other'")
            await other.close()

    with pytest.raises(StoreError, match="prompts: the 1 rows in the data folder and the 1 rows in"):
        await move(tmp_path, url, data=tmp_path, blobs=BlobSettings(), importing=Changes)
    connection = await asyncpg.connect(url)
    rows = {row["name"]: row["value"] for row in await connection.fetch("SELECT name, value FROM deployment")}
    await connection.close()
    assert MOVING in rows
    with pytest.raises(ConfigError, match="antiphon admin move"):
        keys_to_record(rows, KeyFingerprints(None, ("s",)))
    other = tmp_path / "other"
    await (await open_sqlite(other, chain_items=1)).aclose()
    with pytest.raises(StoreError, match="is unfinished"):
        await move(other, url, data=other, blobs=BlobSettings())


async def test_a_bucket_is_looked_at_before_anything_is_touched(url: str, tmp_path: Path) -> None:
    await fill(tmp_path)
    nowhere = {"endpoint": f"http://127.0.0.1:{free_port()}", "key_id": "k", "secret": "s"}
    blobs = BlobSettings.model_validate({"url": "s3://bucket", "seconds": 1, **nowhere})
    with pytest.raises(StoreError, match="s3://bucket"):
        await move(tmp_path, url, data=tmp_path, blobs=blobs)
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT to_regclass('deployment')") is None
    await connection.close()
    assert not (tmp_path / MARK_FILE).exists()


async def test_contents_are_read_back_from_the_bucket_and_counted(url: str, tmp_path: Path) -> None:
    await fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / SESSIONS_FILE)) as database:
        keys = [key for (key,) in database.execute("SELECT blob FROM files")]
    bucket = MemoryBlobs()
    for key, text in zip(keys, (b"content", b"Content of x"), strict=True):
        # Of one there is a part, the other came as something else of the same size.
        async with bucket.writing(key) as writer:
            await writer.write(text)
            await writer.seal()
    with pytest.raises(StoreError, match="in the bucket differs from the content in the data folder"):
        await move(
            tmp_path, url, data=tmp_path, blobs=BlobSettings(url="s3://bucket"), bucket=AsyncMock(return_value=bucket)
        )
    *_, contents = await move(
        tmp_path, url, data=tmp_path, blobs=BlobSettings(url="s3://bucket"), bucket=AsyncMock(return_value=bucket)
    )
    assert contents.kind == CONTENTS and contents.source == contents.target and contents.target.checksum
    assert (contents.target.rows, contents.target.content_bytes) == (2, 2 * len(b"content of x"))


class _Aborted(DatabaseImport):
    """Killed before the first row."""

    async def add(self, kind: str, rows: list[Any], position: int) -> None:
        raise ConnectionAbortedError


class _AbortedAtTheEnd(DatabaseImport):
    async def end(self) -> None:
        raise ConnectionAbortedError


async def test_no_process_starts_on_a_folder_that_is_or_was_moved(url: str, tmp_path: Path) -> None:
    async def start() -> None:
        await (await open_stores(StateSettings(), tmp_path, chain_items=10)).aclose()

    async def go(importing: type[DatabaseImport] = DatabaseImport) -> None:
        await move(tmp_path, url, data=tmp_path, blobs=BlobSettings(), importing=importing)

    await fill(tmp_path)
    with pytest.raises(ConnectionAbortedError):
        await go(_Aborted)
    with pytest.raises(ConfigError, match=r"The move of .* to postgresql://.*is unfinished.*delete .*moved\.json"):
        await start()
    said = [
        one
        async for one in examine_state(
            StateSettings(), tmp_path, StateNeeds(KeyFingerprints(None, ()), 1, vectors=False)
        )
    ]
    assert [one.verdict for one in said] == ["problem"] and "is unfinished" in said[0].what
    # Given up, and used again: what is there does not go with it any more.
    (tmp_path / MARK_FILE).unlink()
    await start()
    with pytest.raises(StoreError, match=r"Another move .*is unfinished.*empty the database"):
        await go()
    await start()
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA public CASCADE")
    await connection.execute("CREATE SCHEMA public")
    await connection.close()
    # Killed at the very end it goes on.
    with pytest.raises(ConnectionAbortedError):
        await go(_AbortedAtTheEnd)
    await go()
    with pytest.raises(
        ConfigError, match=r"was moved to postgresql://.*Set state\.url to the URL.*delete .*moved\.json"
    ):
        await start()
    with pytest.raises(StoreError, match="already has chains"):
        await go()
    with pytest.raises(ConfigError, match="was moved to"):
        await start()
    (tmp_path / MARK_FILE).write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        await start()
    (tmp_path / MARK_FILE).unlink()
    await start()


async def test_what_is_in_use_stays_where_it_is(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no database in"):
        await move(tmp_path, url, data=tmp_path, blobs=BlobSettings())
    with pytest.raises(ConfigError, match="postgresql://"):
        await move(tmp_path, "sqlite:", data=tmp_path, blobs=BlobSettings())
    async with aclosing(await open_sqlite(tmp_path, chain_items=1)):
        with pytest.raises(StoreError, match="in use"):
            await move(tmp_path, url, data=tmp_path, blobs=BlobSettings())


_REQUEST = re.compile(rb"req_[0-9a-f]+")
ALICES = {"authorization": "Bearer key-of-alice"}


class Client:
    """A client of a gateway; `read` gives what it is answered, byte for byte."""

    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self._url = base_url
        self._session = session

    async def make(self, path: str, **sent: Any) -> Any:
        """What is made of a POST."""
        async with self._session.post(self._url + path, headers=ALICES, **sent) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def read(self, path: str) -> tuple[int, bytes]:
        async with self._session.get(self._url + path, headers=ALICES) as answer:
            # Every request has a name of its own.
            return answer.status, _REQUEST.sub(b"", await answer.read())

    async def settle(self, path: str) -> None:
        """Wait until what runs there is over."""
        async with asyncio.timeout(30):
            while json.loads((await self.read(path))[1])["status"] in ("queued", "in_progress"):
                await asyncio.sleep(0.02)


async def _talk(client: Client) -> list[str]:
    """Make something of everything; the paths to read it by."""
    form = aiohttp.FormData()
    form.add_field("file", b"Pears grow on trees. " * 50, filename="pears.txt", content_type="text/plain")
    form.add_field("purpose", "user_data")
    file = (await client.make("/files", data=form))["id"]
    conversation = (await client.make("/conversations", json={"metadata": {"k": "v"}}))["id"]
    store = (await client.make("/vector_stores", json={"name": "fruit", "file_ids": [file]}))["id"]
    first = (await client.make("/responses", json={"model": "m", "input": "one"}))["id"]
    chained = (await client.make("/responses", json={"model": "m", "input": "two", "previous_response_id": first}))[
        "id"
    ]
    held = (await client.make("/responses", json={"model": "m", "input": "three", "conversation": conversation}))["id"]
    behind = (await client.make("/responses", json={"model": "m", "input": "four", "background": True}))["id"]
    await client.settle(f"/responses/{behind}")
    await client.settle(f"/vector_stores/{store}/files/{file}")
    made = [first, chained, held, behind]
    return [
        *(f"/responses/{one}" for one in made),
        *(f"/responses/{one}/input_items" for one in made),
        f"/responses/{behind}?stream=true",
        *(f"/conversations/{conversation}", f"/conversations/{conversation}/items"),
        *("/files", f"/files/{file}", f"/files/{file}/content"),
        *("/vector_stores", f"/vector_stores/{store}", f"/vector_stores/{store}/files"),
        *(f"/vector_stores/{store}/files/{file}", f"/vector_stores/{store}/files/{file}/content"),
        "/responses/resp_not_there",
    ]


@pytest.mark.slow
async def test_clients_read_the_same_bytes_and_go_on(url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    upstream = StrictUpstream()
    await upstream.start()
    local = {"ANTIPHON_STATE__URL": "sqlite:"}
    gateway = await start_gateway(upstream.base_url, data, "--door", "http", environ=local)
    try:
        async with aiohttp.ClientSession() as session:
            client = Client(gateway.base_url, session)
            paths = await _talk(client)
            before = [await client.read(path) for path in paths]
            chained = paths[1].rpartition("/")[2]
        await gateway.stop()

        keys = {
            "ANTIPHON_OWNER__KEY": (data / "owner.key").read_text(),
            "ANTIPHON_SEALING__KEYS": json.dumps([(data / "sealing.key").read_text()]),
            "ANTIPHON_STATE__URL": url,
        }
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")} | keys
        command = (sys.executable, "-m", "antiphon", "admin", "move", "--data", str(data), "--from", "sqlite:")
        for place in ("response_items: copying begins", "files: copying begins", ""):
            moving = await asyncio.create_subprocess_exec(
                *command, env=plain, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            assert moving.stdout is not None and moving.stderr is not None
            lines = []
            async for line in moving.stderr:
                lines.append(line.decode())
                if place and place in lines[-1]:
                    moving.send_signal(signal.SIGKILL)
            said = (await moving.stdout.read()).decode()
            assert await moving.wait() == (-signal.SIGKILL if place else 0), lines
        assert "compared every row and the contents of every file" in said and "responses " in said
        connection = await asyncpg.connect(url)
        rows = await connection.fetch("SELECT actor, action, detail FROM audit WHERE action = 'move'")
        await connection.close()
        assert len(rows) == 1 and rows[0]["actor"].startswith("cli:") and str(data) in rows[0]["detail"]
        assert any("copying continues after" in line for line in lines)

        gateway = await start_gateway(upstream.base_url, data, "--door", "http", environ=keys)
        async with aiohttp.ClientSession() as session:
            client = Client(gateway.base_url, session)
            after = [await client.read(path) for path in paths]
            for path, one, other in zip(paths, before, after, strict=True):
                assert one == other, path
            store = next(path for path in paths if re.fullmatch("/vector_stores/[^/]+", path))
            found = await client.make(f"{store}/search", json={"query": "pears"})
            assert found["data"], "its words are in the index"
            more = await client.make(
                "/responses", json={"model": "m", "input": "go on", "previous_response_id": chained}
            )
            assert more["status"] == "completed"
    finally:
        await gateway.stop()
        await upstream.stop()
