"""Tests archives of a data folder: an archive made under load is complete or does not exist, and is restored only with
its keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from antiphon.errors import StoreError
from antiphon.stores.backend import KeyName
from antiphon.stores.sqlite.backend import SESSIONS_FILE, VECTORS_FILE, SqliteStores, open_sqlite, open_vector_database
from antiphon.stores.sqlite.backup import make_archive, open_archive
from antiphon.stores.sqlite.migrate import migrate, packaged_steps
from tests.contracts.file_contract import content, fields, keep
from tests.contracts.store_contract import ALICE, item, record

KEYS: dict[KeyName, tuple[bytes, ...]] = {"owner.key": (b"o" * 64,), "sealing.key": (b"s" * 64,)}


async def _opened(data: Path) -> SqliteStores:
    return await open_sqlite(data, chain_items=100)


async def _filled(data: Path) -> SqliteStores:
    """An open data folder with its keys, two responses and a file."""
    stores = await _opened(data)
    for name, (key,) in KEYS.items():
        (data / name).write_bytes(key)
    await stores.responses.save(record("1", outputs=(item("msg_1", "kept"),)))
    await stores.responses.save(record("2", prev="1", outputs=(item("msg_2"),)))
    await keep(stores.files, fields("a"), b"hello ", b"files")
    return stores


async def _check(data: Path) -> None:
    stores = await _opened(data)
    try:
        assert await stores.responses.get(ALICE, "resp_1") is not None
        chain = await stores.responses.load_chain(ALICE, "resp_2")
        assert chain is not None and [one.id for one in chain.items][-1] == "msg_2"
        assert await content(stores.files, "file-a") == b"hello files"
    finally:
        await stores.aclose()


async def test_what_is_in_use_is_backed_up_and_comes_back(tmp_path: Path) -> None:
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "deep" / "again"
    stores = await _filled(data)
    try:
        made = await asyncio.to_thread(make_archive, data, archive, KEYS, with_keys=True)
        await stores.responses.save(record("3"))
    finally:
        await stores.aclose()
    assert (made.contents, made.keys, made.vanished) == (1, ("owner.key", "sealing.key"), 0)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "data"]
    assert not (data / ".backup").exists()
    restored = open_archive(archive, again, {})
    assert (restored.contents, restored.keys) == (1, ())
    assert {name: (again / name).read_bytes() for name in KEYS} == {name: key for name, (key,) in KEYS.items()}
    assert stat.S_IMODE(again.stat().st_mode) == 0o700
    await _check(again)
    stores = await _opened(again)
    assert await stores.responses.get(ALICE, "resp_3") is None
    await stores.aclose()


async def test_writers_do_not_keep_it_from_ending(tmp_path: Path) -> None:
    """Turns and files are added and deleted while backups run. Each backup has only whole turns, and every file has its
    content."""
    data = tmp_path / "data"
    stores = await _filled(data)
    going = True

    async def write() -> int:
        number = 0
        while going:
            number += 1
            await stores.responses.save(record(f"w{number}"))
            await keep(stores.files, fields(f"w{number}"), b"x" * 1000)
            if number % 2:
                await stores.files.delete(ALICE, f"file-w{number}")
        return number

    writing = asyncio.ensure_future(write())
    try:
        for number in range(5):
            archive, again = tmp_path / f"{number}.tar", tmp_path / str(number)
            await asyncio.to_thread(make_archive, data, archive, KEYS, with_keys=True)
            await asyncio.to_thread(open_archive, archive, again, {})
    finally:
        going = False
        written = await writing
        await stores.aclose()
    assert written > 5
    for number in range(5):
        await _check(tmp_path / str(number))
        copy = await _opened(tmp_path / str(number))
        everything = [f"resp_w{one}" for one in range(1, written + 1)]
        turns = [one for one in everything if await copy.responses.get(ALICE, one) is not None]
        assert turns == [f"resp_w{one + 1}" for one in range(len(turns))]
        opened = 0
        for one in range(len(turns) + 1):
            if await copy.files.get(ALICE, f"file-w{one}") is not None:
                assert await content(copy.files, f"file-w{one}") == b"x" * 1000
                opened += 1
        assert opened >= len(turns) // 2 - 1
        await copy.aclose()


async def test_without_its_keys_nothing_is_restored(tmp_path: Path) -> None:
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again"
    await (await _filled(data)).aclose()
    make_archive(data, archive, KEYS, with_keys=False)
    wrong: list[dict[KeyName, tuple[bytes, ...]]] = [
        {},
        {"owner.key": KEYS["owner.key"]},
        {**KEYS, "sealing.key": (b"another" * 8,)},
    ]
    for given in wrong:
        with pytest.raises(StoreError, match=r"backup lacks the key (owner|sealing)\.key.*--config"):
            open_archive(archive, again, given)
        assert not again.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "data"]
    # If the settings contain the keys, the restored folder does not contain them.
    open_archive(archive, again, {**KEYS, "sealing.key": (b"newer" * 10, *KEYS["sealing.key"])})
    assert not (again / "owner.key").exists()
    await _check(again)


def _cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


def _changed(body: bytes) -> bytes:
    at = body.index(b"hello files")
    return body[:at] + b"jello" + body[at + 5 :]


def _manifest(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """A function that changes the archive's manifest, and removes the contents of files that the new manifest omits."""

    def changed(body: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(body)) as source, tarfile.open(fileobj=out, mode="w") as archive:
            members = {member.name: archive_bytes(source, member) for member in source}
            manifest = change(json.loads(members.pop("manifest.json")))
            if isinstance(manifest, dict) and isinstance(manifest.get("members"), dict):
                members = {name: content for name, content in members.items() if name in manifest["members"]}
            told = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
            for name, content in {**members, "manifest.json": told}.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return out.getvalue()

    return changed


def archive_bytes(source: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = source.extractfile(member)
    assert content is not None
    return content.read()


def _with(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(body)) as source, tarfile.open(fileobj=out, mode="w") as archive:
            for member in source:
                archive.addfile(member, source.extractfile(member))
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info, io.BytesIO(b""))
        return out.getvalue()

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"",
        lambda body: b"not an archive" * 100,
        _cut,
        _changed,
        _with("../outside"),
        _with("/etc/antiphon-was-here"),
        _with("files/../../x"),
        _with("sessions.db"),
        _with("owner.key", tarfile.SYMTYPE),
        _with("other.key"),
        _manifest(lambda told: {**told, "keys": {"owner.key": 5}}),
        _manifest(lambda told: {**told, "keys": {"owner.key": [["a"]]}}),
        _manifest(lambda told: {**told, "keys": {"../owner.key": ["a"]}}),
        _manifest(lambda told: {**told, "format": 2}),
        _manifest(lambda told: b"[" * 100_000),
        _manifest(
            lambda told: {**told, "members": {n: m for n, m in told["members"].items() if not n.startswith("files/")}}
        ),
    ],
)
async def test_a_damaged_or_foreign_archive_is_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again"
    await (await _filled(data)).aclose()
    make_archive(data, archive, KEYS, with_keys=True)
    archive.write_bytes(change(archive.read_bytes()))
    with pytest.raises(StoreError):
        open_archive(archive, again, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "data"]


def _with_a_damaged_page(database: bytes, path: Path) -> bytes:
    """Damage a page, so that a row of `responses` begins beyond the page's end. Code that reads only the schema does
    not notice."""
    path.write_bytes(database)
    with closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'responses'").fetchone()
    at = (page - 1) * size + 8
    return database[:at] + b"\xff\xff" + database[at + 2 :]


async def test_a_database_whose_pages_are_damaged_is_not_restored(tmp_path: Path) -> None:
    """The archive matches its manifest, but its database was damaged before the backup."""
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again"
    await (await _filled(data)).aclose()
    make_archive(data, archive, KEYS, with_keys=True)
    with tarfile.open(archive) as source:
        members = {member.name: archive_bytes(source, member) for member in source}
    damaged = _with_a_damaged_page(members[SESSIONS_FILE], tmp_path / "damaged.db")
    manifest = json.loads(members["manifest.json"])
    manifest["members"][SESSIONS_FILE] = {"size": len(damaged), "sha256": hashlib.sha256(damaged).hexdigest()}
    with tarfile.open(archive, mode="w") as out:
        for name, body in {**members, SESSIONS_FILE: damaged, "manifest.json": json.dumps(manifest).encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            out.addfile(info, io.BytesIO(body))
    with pytest.raises(StoreError, match=f"{SESSIONS_FILE} of the backup is damaged"):
        open_archive(archive, again, {})
    assert not again.exists()


async def _with_vectors(data: Path) -> None:
    """Add a vector store to the data folder."""
    await (await _filled(data)).aclose()
    opened = await open_vector_database(data)
    for name in ("vs_1", "vs_2"):
        await opened.stores.create(ALICE, name, name=None, description=None, metadata=b"{}", expires_days=None)
    await opened.aclose()


@pytest.mark.parametrize("change", ["", "ANALYZE", "DELETE FROM schema_migrations WHERE version = 99"])
async def test_what_an_operator_may_have_done_is_restored(tmp_path: Path, change: str) -> None:
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again"
    await _with_vectors(data)
    for name in (SESSIONS_FILE, VECTORS_FILE):
        with closing(sqlite3.connect(data / name)) as connection:
            connection.executescript(change)
    make_archive(data, archive, KEYS, with_keys=True)
    open_archive(archive, again, {})
    await _check(again)


async def test_an_older_version_is_compared_with_what_it_was(tmp_path: Path) -> None:
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again"
    await _with_vectors(data)
    (data / SESSIONS_FILE).unlink()
    with closing(sqlite3.connect(data / SESSIONS_FILE, isolation_level=None)) as connection:
        migrate(connection, packaged_steps()[:-1])
    make_archive(data, archive, KEYS, with_keys=True)
    open_archive(archive, again, {})
    await (await _opened(again)).aclose()


FOREIGN = {
    "the trigger 'spy'": "CREATE TRIGGER spy AFTER INSERT ON {table} BEGIN SELECT 1; END",
    "the view 'v'": "CREATE VIEW v AS SELECT 1",
    "the table 'more'": "CREATE TABLE more (x)",
    "the table 'fts_more'": "CREATE TABLE fts_more (x)",
    "the index 'slow'": "CREATE INDEX slow ON {table} (owner, created_at)",
    "the table '{table}'": "ALTER TABLE {table} ADD COLUMN more TEXT AS (hex(id))",
    "lacks the index 'idempotency_expiry'": "DROP INDEX idempotency_expiry",
}


@pytest.mark.parametrize("name", [SESSIONS_FILE, VECTORS_FILE])
@pytest.mark.parametrize("said", FOREIGN)
async def test_a_database_that_holds_anything_else_is_not_restored(tmp_path: Path, name: str, said: str) -> None:
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again"
    await _with_vectors(data)
    table = "files" if name == SESSIONS_FILE else "vector_stores"
    with closing(sqlite3.connect(data / name)) as connection:
        connection.execute(FOREIGN[said].format(table=table))
    make_archive(data, archive, KEYS, with_keys=True)
    with pytest.raises(StoreError, match=f"{name} of the backup cannot be used: its .*{said.format(table=table)}"):
        open_archive(archive, again, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "data"]


async def test_an_index_of_a_vector_store_that_is_something_else_is_not_restored(tmp_path: Path) -> None:
    data, archive, again = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "again"
    await _with_vectors(data)
    with closing(sqlite3.connect(data / VECTORS_FILE)) as connection:
        connection.executescript("DROP TABLE fts_vs_1; CREATE TABLE fts_vs_1 (title, text)")
    make_archive(data, archive, KEYS, with_keys=True)
    with pytest.raises(
        StoreError, match="the table 'fts_vs_1', which differs from the table that this version of Antiphon"
    ):
        open_archive(archive, again, {})


async def test_what_is_there_is_kept(tmp_path: Path) -> None:
    data, archive, full = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "full"
    await (await _filled(data)).aclose()
    make_archive(data, archive, KEYS, with_keys=True)
    before = archive.read_bytes()
    with pytest.raises(StoreError, match="already"):
        make_archive(data, archive, KEYS, with_keys=True)
    full.mkdir()
    (full / "mine").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        open_archive(archive, full, {})
    assert archive.read_bytes() == before and [path.name for path in full.iterdir()] == ["mine"]


async def test_what_a_killed_backup_left_goes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    await (await _filled(data)).aclose()
    (data / ".backup" / "files").mkdir(parents=True)
    (data / ".backup" / "sessions.db").write_bytes(b"half")
    make_archive(data, tmp_path / "backup.tar", KEYS, with_keys=True)
    assert not (data / ".backup").exists()
    open_archive(tmp_path / "backup.tar", tmp_path / "again", {})
    await _check(tmp_path / "again")
