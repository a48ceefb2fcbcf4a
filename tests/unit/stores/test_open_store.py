"""The data folder: what is created and with which rights, and what a folder or file that cannot serve says."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from antiphon.engine.ports.state import PageQuery
from antiphon.errors import StoreError
from antiphon.stores.bodies import PLAIN
from antiphon.stores.sqlite.backend import SESSIONS_FILE, VECTORS_FILE, open_sqlite, open_vector_database
from antiphon.stores.sqlite.owner_data import SqliteOwnerData
from antiphon.stores.sqlite.readers import SqliteReaders
from tests.contracts.store_contract import ALICE, record, save_chain
from tests.contracts.store_process import child_environment


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_folder_and_files_are_created_for_the_user_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        stores = await open_sqlite(tmp_path / "deep" / "data", chain_items=10)
        store = stores.responses
        await store.save(record("a"))
    finally:
        os.umask(old)
    data = tmp_path / "deep" / "data"
    assert mode(data) == 0o700
    files = {path.name: mode(path) for path in data.iterdir()}
    assert files[SESSIONS_FILE] == 0o600
    assert set(files.values()) == {0o600}
    await stores.aclose()
    assert [path.name for path in data.iterdir()] == [SESSIONS_FILE]


async def test_what_exists_keeps_its_rights(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o750)
    await (await open_sqlite(data, chain_items=10)).aclose()
    (data / SESSIONS_FILE).chmod(0o640)
    await (await open_sqlite(data, chain_items=10)).aclose()
    assert (mode(data), mode(data / SESSIONS_FILE)) == (0o750, 0o640)


@pytest.mark.parametrize("name", [SESSIONS_FILE, VECTORS_FILE])
async def test_a_trigger_that_is_not_ours_is_refused_by_name(tmp_path: Path, name: str) -> None:
    await (await open_sqlite(tmp_path, chain_items=10)).aclose()
    await (await open_vector_database(tmp_path)).aclose()
    table = "responses" if name == SESSIONS_FILE else "vector_stores"
    with closing(sqlite3.connect(tmp_path / name)) as connection:
        connection.execute(f"CREATE TRIGGER spy AFTER INSERT ON {table} BEGIN SELECT 1; END")
    with pytest.raises(StoreError, match="the trigger 'spy', which Antiphon did not create"):
        await (open_sqlite(tmp_path, chain_items=10) if name == SESSIONS_FILE else open_vector_database(tmp_path))


async def test_a_relative_folder_with_odd_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stores = await open_sqlite(Path("a b?c#d%20ü"), chain_items=10)
    store = stores.responses
    await store.save(record("a"))
    assert await store.get(ALICE, "resp_a") is not None
    await stores.aclose()
    assert (tmp_path / "a b?c#d%20ü" / SESSIONS_FILE).is_file()


async def test_it_is_all_there_after_reopening(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=100)
    store = stores.responses
    expected = await save_chain(store, "t", 5)
    await stores.aclose()
    stores = await open_sqlite(tmp_path, chain_items=100)
    store = stores.responses
    chain = await store.load_chain(ALICE, "resp_t4")
    assert chain is not None and [item.id for item in chain.items] == expected
    await stores.aclose()


@pytest.mark.parametrize("data", ["file", "file/below", "/proc/antiphon"])
async def test_a_folder_that_cannot_be(tmp_path: Path, data: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"folder|cannot be created"):
        await open_sqlite(tmp_path / data, chain_items=10)


async def test_a_database_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / SESSIONS_FILE).mkdir()
    with pytest.raises(StoreError):
        await open_sqlite(tmp_path, chain_items=10)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / SESSIONS_FILE).write_bytes(b"this is not a database, it only lies in its place\n" * 100)
    with pytest.raises(StoreError, match="not a database"):
        await open_sqlite(tmp_path, chain_items=10)


async def test_a_damaged_database(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=1000)
    store = stores.responses
    await save_chain(store, "t", 100)
    await stores.aclose()
    path = tmp_path / SESSIONS_FILE
    healthy = path.read_bytes()
    # Everything after the schema's page is overwritten.
    path.write_bytes(healthy[:4096] + b"\xff" * (len(healthy) - 4096))
    try:
        stores = await open_sqlite(tmp_path, chain_items=1000)
        store = stores.responses
    except StoreError as error:
        assert "damaged" in str(error)
        return
    for call in (
        store.get(ALICE, "resp_t1"),
        store.load_chain(ALICE, "resp_t99"),
        store.load_items(ALICE, ("msg_t1_in0",)),
        store.input_items(ALICE, "resp_t1", PageQuery()),
        store.save(record("new")),
        store.delete(ALICE, "resp_t1"),
        store.ping(),
    ):
        with pytest.raises(StoreError, match="damaged"):
            await call
    await stores.aclose()


async def test_a_database_of_a_newer_antiphon(tmp_path: Path) -> None:
    await (await open_sqlite(tmp_path, chain_items=10)).aclose()
    database = sqlite3.connect(tmp_path / SESSIONS_FILE)
    database.execute("INSERT INTO schema_migrations (version, sha256) VALUES (9999, 'x')")
    database.commit()
    database.close()
    with pytest.raises(StoreError, match="newer"):
        await open_sqlite(tmp_path, chain_items=10)


_UNPRIVILEGED = """
import asyncio, ctypes, os, struct, sys
from pathlib import Path
from antiphon.errors import StoreError
from antiphon.stores.sqlite.backend import open_sqlite

if os.geteuid() == 0:
    # Root, but for writing where modes do not let it (CAP_DAC_OVERRIDE): so it reads the installation wherever that is.
    libc, header, rights = ctypes.CDLL(None), struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, rights) == 0
    words = list(struct.unpack("=6I", rights.raw))
    words[0] &= ~2
    words[1] &= ~2
    assert libc.capset(header, struct.pack("=6I", *words)) == 0

async def main():
    stores = await open_sqlite(Path(sys.argv[1]), chain_items=10)
    store = stores.responses
    try:
        await store.ping()
    finally:
        await stores.aclose()

try:
    asyncio.run(main())
except StoreError as error:
    print(error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach (pytest's own are private)."""
    folder = Path(tempfile.mkdtemp(prefix="antiphon-test-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    shutil.rmtree(folder)


async def test_a_read_only_data_folder(open_folder: Path) -> None:
    data = open_folder / "data"
    await (await open_sqlite(data, chain_items=10)).aclose()
    (data / SESSIONS_FILE).chmod(0o444)
    data.chmod(0o555)
    for folder in (data, open_folder / "data" / "new"):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _UNPRIVILEGED, str(folder)],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        assert "permissions" in done.stdout or "Permission denied" in done.stdout


async def test_readers_cannot_write(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=10)
    readers = SqliteReaders(tmp_path / SESSIONS_FILE)
    await readers.start()
    with pytest.raises(StoreError):
        await readers.fetch("DELETE FROM responses", {})
    await readers.aclose()
    await stores.aclose()


async def test_readers_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        await SqliteReaders(tmp_path / "none.db").start()
    assert os.listdir(tmp_path) == []


async def test_closing_waits_for_reads_that_were_accepted(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=10)
    store = stores.responses
    await store.save(record("a"))
    reads = [asyncio.create_task(store.get(ALICE, "resp_a")) for _ in range(50)]
    await asyncio.sleep(0)
    await stores.aclose()
    assert all(read is not None for read in await asyncio.gather(*reads))


async def test_closing_while_saves_are_queued_loses_none(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=10)
    store = stores.responses
    saves = [asyncio.create_task(store.save(record(f"q{n}"))) for n in range(300)]
    await asyncio.sleep(0)
    await stores.aclose()
    assert await asyncio.gather(*saves) == [None] * 300
    stores = await open_sqlite(tmp_path, chain_items=10)
    store = stores.responses
    assert None not in await asyncio.gather(*[store.get(ALICE, f"resp_q{n}") for n in range(300)])
    await stores.aclose()


async def test_a_read_whose_caller_left_frees_its_connection(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=10)
    store = stores.responses
    await store.save(record("a"))
    reads = [asyncio.create_task(store.get(ALICE, "resp_a")) for _ in range(20)]
    await asyncio.sleep(0)
    for read in reads:
        read.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    assert await store.get(ALICE, "resp_a") is not None
    await stores.aclose()


async def test_pings_at_once_are_one_write(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=10)
    store = stores.responses
    frames = tmp_path / f"{SESSIONS_FILE}-wal"
    await store.ping()
    before = frames.stat().st_size
    await asyncio.gather(*[store.ping() for _ in range(50)])
    assert before < frames.stat().st_size <= before + 2 * (4096 + 24)
    await stores.aclose()


async def test_a_program_that_forgets_to_close_still_ends(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom antiphon.stores.sqlite.backend import open_sqlite\n"
        "async def main():\n    global stores\n    stores = await open_sqlite(Path(sys.argv[1]), chain_items=10)\n"
        "    raise SystemExit(3)\nasyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, str(tmp_path)], env=child_environment(), timeout=20
    )
    assert done.returncode == 3


async def test_who_looks_into_vector_stores_makes_none_and_leaves_no_thread_behind(tmp_path: Path) -> None:
    await (await open_sqlite(tmp_path, chain_items=10)).aclose()
    data = SqliteOwnerData(tmp_path, PLAIN)
    assert await data.owners() == [] and not (tmp_path / VECTORS_FILE).exists()
    made = await open_vector_database(tmp_path)
    await made.aclose()
    before = threading.active_count()
    assert await data.owners() == [] and [row async for row in data.export(ALICE)] == []
    assert threading.active_count() <= before
