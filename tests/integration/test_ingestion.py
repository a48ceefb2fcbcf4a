"""Ingestion when things go wrong: files that harm their reader, an embeddings server that fails, processes that die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.state import VectorStoreSettings
from antiphon.engine.ports.vector_stores import Chunking, EmbeddingFailed
from antiphon.errors import StoreError
from antiphon.search.ingest import IngestPace
from antiphon.search.readers import DocumentReaders, ReadingFailed
from antiphon.stores.sqlite.backend import open_vector_database
from antiphon.stores.tables import Statement
from tests.contracts.store_process import child_environment
from tests.support.memory_files import MemoryFileStore
from tests.support.vector_stores import ALICE, VectorStoreSetup, WordEmbedder, open_vector_store_setup
from tests.support.waiting import until


async def read(documents: DocumentReaders, path: Path, name: str) -> list[str]:
    return [chunk.text async for piece in documents.read(path, name, Chunking()) for chunk in piece.chunks]


async def last_error(setup: VectorStoreSetup, store_id: str, file_id: str) -> dict[str, str]:
    file = await setup.ask("GET", f"/{store_id}/files/{file_id}")
    assert file["status"] == "failed", file
    error: dict[str, str] = file["last_error"]
    return error


async def add(setup: VectorStoreSetup, store_id: str, file_id: str) -> None:
    await setup.ask("POST", f"/{store_id}/files", {"file_id": file_id})


async def test_a_bomb_fails_alone(tmp_path: Path) -> None:
    """An archive that unpacks to too much, beside files that do not."""
    path = tmp_path / "bomb.docx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"a" * (16 << 20))
    limits = VectorStoreSettings(text_bytes=1 << 20)
    async with open_vector_store_setup(tmp_path / "data", limits=limits) as setup:
        store_id = await setup.store(birds="Birds fly.")
        bomb = await setup.file("bomb.docx", path.read_bytes())
        await add(setup, store_id, bomb)
        await add(setup, store_id, await setup.file("more.txt", "More birds."))
        await setup.ingested(store_id)
        assert await last_error(setup, store_id, bomb) == {
            "code": "invalid_file",
            "message": "The decompressed file is too large.",
        }
        assert sorted(await setup.names(store_id, "birds")) == ["birds", "more"]


@pytest.mark.full
async def test_memory_is_limited(tmp_path: Path) -> None:
    """A page of millions of elements, and less memory than a setting can say."""
    (tmp_path / "x").write_bytes(b"<p>word" * 3_000_000)
    documents = DocumentReaders(VectorStoreSettings.model_construct(file_seconds=20.0, file_memory_bytes=100 << 20))
    try:
        with pytest.raises(ReadingFailed) as raised:
            await read(documents, tmp_path / "x", "a.html")
        assert raised.value.error.message == "The file needs too much memory to be read."
        # The next file gets a reader that works.
        (tmp_path / "y").write_text("fine")
        assert await read(documents, tmp_path / "y", "a.txt") == ["fine"]
    finally:
        await documents.aclose()


@pytest.mark.full
async def test_time_is_limited(tmp_path: Path) -> None:
    """Fifteen seconds of work for a quick machine, and no limit that ends it earlier."""
    (tmp_path / "x").write_text("a b. " * 6_000_000)
    documents = DocumentReaders(VectorStoreSettings(file_seconds=1.0, tokens=1_000_000_000))
    try:
        with pytest.raises(ReadingFailed) as raised:
            await read(documents, tmp_path / "x", "a.txt")
        assert "too long" in raised.value.error.message
    finally:
        await documents.aclose()


async def test_a_reader_that_stands_still_is_ended(tmp_path: Path) -> None:
    """Its own limit counts the processor's time; the wait for it ends by the clock."""
    documents = DocumentReaders(VectorStoreSettings(file_seconds=1.0))
    os.mkfifo(tmp_path / "never.txt")
    try:
        with pytest.raises(ReadingFailed, match="takes too long"):
            await read(documents, tmp_path / "never.txt", "a.txt")
        assert children() == []
    finally:
        await documents.aclose()


async def test_a_reader_that_is_killed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("Sentence. " * 500_000)
    documents = DocumentReaders(VectorStoreSettings())
    try:
        pieces = documents.read(tmp_path / "x", "a.txt", Chunking())
        await anext(pieces)
        (child,) = children()
        os.kill(child, signal.SIGKILL)
        with pytest.raises(ReadingFailed, match="the process that read the file ended"):
            async for _ in pieces:
                pass
        (tmp_path / "y").write_text("fine")
        assert await read(documents, tmp_path / "y", "a.txt") == ["fine"]
    finally:
        await documents.aclose()
    assert children() == []


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_reader_that_died_while_it_was_idle_is_no_judgement_on_the_next_file(
    tmp_path: Path, noticed: bool
) -> None:
    """Killed by an operator or for want of memory: whether the event loop knows of it already, or not yet."""
    (tmp_path / "y").write_text("fine")
    documents = DocumentReaders(VectorStoreSettings())
    try:
        await read(documents, tmp_path / "y", "a.txt")
        (child,) = children()
        os.kill(child, signal.SIGKILL)
        if noticed:
            # Who is waited for is gone.
            await until(lambda: not Path(f"/proc/{child}").exists())
        assert await read(documents, tmp_path / "y", "a.txt") == ["fine"]
        assert not Path(f"/proc/{child}").exists()
        assert await read(documents, tmp_path / "y", "a.txt") == ["fine"]
    finally:
        await documents.aclose()
    assert children() == []


async def test_a_file_that_kills_its_reader_gets_no_more_than_one_new_one(tmp_path: Path) -> None:
    (tmp_path / "y").write_text("fine")
    documents = DocumentReaders(VectorStoreSettings())
    await read(documents, tmp_path / "y", "a.txt")
    (first,) = children()
    # Whoever opens it stands still until it is killed.
    os.mkfifo(tmp_path / "kills")
    reading = asyncio.create_task(read(documents, tmp_path / "kills", "a.txt"))
    killed: list[int] = []
    for _ in range(2):
        end: list[int] = []
        await until(lambda end=end: _opens(tmp_path / "kills", end))  # type: ignore[misc]
        (child,) = children()
        killed.append(child)
        os.kill(child, signal.SIGKILL)
        os.close(*end)
        await until(lambda child=child: not Path(f"/proc/{child}").exists())  # type: ignore[misc]
    with pytest.raises(ReadingFailed, match="the process that read the file ended"):
        await reading
    assert killed[0] == first != killed[1] and children() == []


def _opens(pipe: Path, end: list[int]) -> bool:
    """Whether somebody wants to read this named pipe: its writing end is the first of `end` then."""
    with suppress(OSError):
        end.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    return bool(end)


async def test_who_stops_reading_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("Sentence. " * 500_000)
    documents = DocumentReaders(VectorStoreSettings())
    pieces = documents.read(tmp_path / "x", "a.txt", Chunking())
    await anext(pieces)
    assert len(children()) == 1
    await pieces.aclose()
    assert children() == []
    await documents.aclose()


async def test_readers_are_kept_and_given_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTIPHON_UPSTREAM__API_KEY", "sk-secret")
    (tmp_path / "y").write_text("fine")
    documents = DocumentReaders(VectorStoreSettings(), files_per_process=3)
    await read(documents, tmp_path / "y", "a.txt")
    (child,) = children()
    assert b"sk-secret" not in Path(f"/proc/{child}/environ").read_bytes()
    limits = Path(f"/proc/{child}/limits").read_text()
    for limit in ("Max file size", "Max core file size", "Max processes"):
        (line,) = (line for line in limits.splitlines() if line.startswith(limit))
        assert line.removeprefix(limit).split()[:2] == ["0", "0"]
    await read(documents, tmp_path / "y", "a.txt")
    assert children() == [child]
    await read(documents, tmp_path / "y", "a.txt")
    assert children() == []
    await documents.aclose()


async def test_readers_that_have_nothing_to_do_are_ended(tmp_path: Path) -> None:
    pace = IngestPace(idle=0.5, rest=0.2)
    async with open_vector_store_setup(tmp_path, limits=VectorStoreSettings(), pace=pace) as setup:
        # It may be over before the store says that it was read.
        seen = asyncio.create_task(until(lambda: len(children()) == 1))
        store_id = await setup.store(birds="Birds fly.")
        await seen
        await until(lambda: not children())
        await add(setup, store_id, await setup.file("more.txt", "More birds."))
        await setup.ingested(store_id)
        assert sorted(await setup.names(store_id, "birds")) == ["birds", "more"]


def children() -> list[int]:
    """This process's reading processes."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    reading: list[int] = []
    for child in found:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if b"antiphon.search.reader_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                reading.append(int(child))
    return reading


async def test_a_file_that_was_deleted_meanwhile(tmp_path: Path) -> None:
    async with open_vector_store_setup(tmp_path, start=False) as setup:
        store_id = (await setup.ask("POST", "", {}))["id"]
        gone = await setup.file("a.txt", "Birds.")
        await add(setup, store_id, gone)
        await setup.files.delete(ALICE, gone)
        setup.ingester.start()
        await setup.ingested(store_id)
        assert (await last_error(setup, store_id, gone))["code"] == "invalid_file"


async def test_an_embeddings_server_that_comes_back(tmp_path: Path) -> None:
    words = WordEmbedder()
    words.fails = EmbeddingFailed("the embeddings server answered 503")
    async with open_vector_store_setup(tmp_path, embedder=words) as setup:
        store_id = (await setup.ask("POST", "", {}))["id"]
        file_id = await setup.file("a.txt", "An aeroplane.")
        await add(setup, store_id, file_id)
        await asyncio.sleep(0.1)
        assert (await setup.ask("GET", f"/{store_id}/files/{file_id}"))["status"] == "in_progress"
        words.fails = None
        await setup.ingested(store_id)
        assert await setup.names(store_id, "aircraft") == ["a"]


@pytest.mark.parametrize("retry", [True, False])
async def test_an_embeddings_server_that_does_not(tmp_path: Path, retry: bool) -> None:
    words = WordEmbedder()
    words.fails = EmbeddingFailed("the embeddings server answered 400", retry=retry)
    pace = IngestPace(idle=0.02, pause=0.01, attempts=3)
    async with open_vector_store_setup(tmp_path, embedder=words, pace=pace) as setup:
        store_id = (await setup.ask("POST", "", {}))["id"]
        file_id = await setup.file("a.txt", "An aeroplane.")
        await add(setup, store_id, file_id)
        await setup.ingested(store_id)
        error = await last_error(setup, store_id, file_id)
        assert error["code"] == "server_error" and "answered 400" in error["message"]
        ((attempts,),) = await setup.database.tables.readers.fetch("SELECT attempts FROM vector_files", {})
        assert attempts == (3 if retry else 1)


@pytest.mark.parametrize("times", [2, 3])
async def test_a_content_on_another_machine_is_left_to_that(tmp_path: Path, times: int) -> None:
    class Files(MemoryFileStore):
        left = times

        async def open(self, owner: str, file_id: str) -> Any:
            self.left -= 1
            if self.left >= 0:
                raise StoreError("Opening a file failed.", reason="elsewhere")
            return await super().open(owner, file_id)

    pace = IngestPace(idle=0.02, pause=0.01, attempts=3)
    async with open_vector_store_setup(tmp_path, pace=pace, files=Files(clock=time.time)) as setup:
        store_id = (await setup.ask("POST", "", {}))["id"]
        file_id = await setup.file("a.txt", "Birds.")
        await add(setup, store_id, file_id)
        await setup.ingested(store_id)
        if times == pace.attempts:
            assert "on the disk of another machine" in (await last_error(setup, store_id, file_id))["message"]
        else:
            assert await setup.names(store_id, "birds") == ["a"]


class _Failing:
    """A store of what is indexed; its first writes fail."""

    def __init__(self, store: Any, *failures: Exception) -> None:
        self._store = store
        self._failures = list(failures)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def append(self, *given: Any) -> bool:
        if self._failures:
            raise self._failures.pop()
        kept: bool = await self._store.append(*given)
        return kept


async def test_a_full_disk_costs_an_attempt(tmp_path: Path) -> None:
    full = StoreError("Writing failed: the disk is full.")
    pace = IngestPace(idle=0.05)
    async with open_vector_store_setup(
        tmp_path, pace=pace, lease=0.3, indexing=lambda store: _Failing(store, full, full)
    ) as setup:
        store_id = await setup.store(birds="Birds fly.")
        rows = await setup.database.tables.readers.fetch("SELECT attempts, status FROM vector_files", {})
        assert [tuple(row) for row in rows] == [(3, "completed")]
        assert await setup.names(store_id, "birds") == ["birds"]


async def test_a_bug_fails_the_file(tmp_path: Path) -> None:
    async with open_vector_store_setup(tmp_path, indexing=lambda store: _Failing(store, RuntimeError("oh"))) as setup:
        store_id = (await setup.ask("POST", "", {}))["id"]
        file_id = await setup.file("a.txt", "Birds.")
        await add(setup, store_id, file_id)
        await setup.ingested(store_id)
        assert await last_error(setup, store_id, file_id) == {
            "code": "server_error",
            "message": "An internal error occurred.",
        }


async def test_stopping_gives_files_back(tmp_path: Path) -> None:
    words = WordEmbedder()
    words.gate = asyncio.Event()
    async with open_vector_store_setup(tmp_path, embedder=words, limits=VectorStoreSettings()) as setup:
        store_id = (await setup.ask("POST", "", {}))["id"]
        file_id = await setup.file("a.txt", "An aeroplane.")
        await add(setup, store_id, file_id)
        await until(children)
    assert children() == []
    database = await open_vector_database(tmp_path)
    (job,) = await database.ingestion.claim(["next"], 60)
    assert job.file_id == file_id
    await database.aclose()


async def test_a_file_that_is_removed_while_it_is_read(tmp_path: Path) -> None:
    words = WordEmbedder()
    words.gate = asyncio.Event()
    async with open_vector_store_setup(tmp_path, embedder=words) as setup:
        store_id = (await setup.ask("POST", "", {}))["id"]
        file_id = await setup.file("a.txt", "An aeroplane.")
        await add(setup, store_id, file_id)
        await asyncio.sleep(0.1)
        await setup.ask("DELETE", f"/{store_id}/files/{file_id}")
        words.gate.set()
        await add(setup, store_id, await setup.file("b.txt", "Another aeroplane."))
        await setup.ingested(store_id)
        assert await setup.names(store_id, "aeroplane") == ["b"]


async def test_a_long_file_is_renewed(tmp_path: Path) -> None:
    """Its reading takes longer than a claim holds, and nobody else takes it up."""
    words = WordEmbedder()
    words.gate = asyncio.Event()
    pace = IngestPace(idle=0.05, pause=0.01)
    async with (
        open_vector_store_setup(tmp_path, embedder=words, pace=pace, lease=0.3) as setup,
        open_vector_store_setup(tmp_path, embedder=words, pace=pace, lease=0.3) as other,
    ):
        other.files.all = setup.files.all
        store_id = (await setup.ask("POST", "", {}))["id"]
        await add(setup, store_id, await setup.file("a.txt", "An aeroplane."))
        await asyncio.sleep(1.0)
        words.gate.set()
        await setup.ingested(store_id)
        rows = await setup.database.tables.readers.fetch("SELECT attempts, status FROM vector_files", {})
        assert [tuple(row) for row in rows] == [(1, "completed")]


CHILD = """
import asyncio, sys
from pathlib import Path
from antiphon.config.state import VectorStoreSettings
from tests.support.memory_files import MemoryFileStore
from tests.support.vector_stores import open_vector_store_setup

async def main():
    async with open_vector_store_setup(Path(sys.argv[1]), limits=VectorStoreSettings()) as setup:
        store_id = (await setup.ask("POST", "", {"name": "x"}))["id"]
        ids = [await setup.file(f"{n}.txt", f"Document {n}. " + "Many words of it. " * 5000) for n in range(20)]
        await setup.ask("POST", f"/{store_id}/file_batches", {"file_ids": ids})
        while True:
            counts = (await setup.ask("GET", f"/{store_id}"))["file_counts"]
            if counts["completed"] >= 3:
                print(store_id, flush=True)
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


def ingest_and_die(folder: Path) -> str:
    """A process ingests twenty files and is killed after some of them; the store's id."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        env=child_environment(),
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    with child.stdout as lines:
        found = next(line.strip() for line in lines if line.startswith("vs_"))
        child.kill()
        child.wait()
    return found


@pytest.mark.slow
async def test_a_killed_process_loses_nothing_but_time(tmp_path: Path) -> None:
    found = await asyncio.to_thread(ingest_and_die, tmp_path)
    async with open_vector_store_setup(tmp_path, start=False, limits=VectorStoreSettings()) as setup:
        # The files were in the memory of the one that died; these say the same.
        for file_id, name in await setup.database.tables.readers.fetch(
            "SELECT file_id, filename FROM vector_files", {}
        ):
            number = name.removesuffix(".txt")
            made = await setup.file(name, f"Document {number}. " + "Many words of it. " * 5000)
            file, content = setup.files.all.pop((ALICE, made))
            setup.files.all[(ALICE, file_id)] = (file, content)
        before = (await setup.ask("GET", f"/{found}"))["file_counts"]
        assert before["completed"] >= 3 and before["in_progress"] > 0
        # Their claims hold for a minute; nobody wants to wait that long here.
        writer = setup.database.tables.writer
        await writer.run([Statement("UPDATE vector_files SET lease_until = 0 WHERE status = 'in_progress'")])
        setup.ingester.start()
        store = await setup.ingested(found, seconds=50)
        assert store["file_counts"]["completed"] == 20
        while await setup.database.ingestion.sweep():
            pass
        per_file = await setup.database.tables.readers.fetch(
            "SELECT f.no, f.chunks, (SELECT count(*) FROM chunks c WHERE c.id >> 20 = f.no) FROM vector_files f", {}
        )
        assert len(per_file) == 20 and all(expected == there for _, expected, there in per_file)
        ((total,),) = await setup.database.tables.readers.fetch("SELECT count(*) FROM chunks", {})
        assert total == sum(expected for _, expected, _ in per_file)
