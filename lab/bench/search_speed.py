"""Implements `scripts/bench search`: measures the speed of search and ingestion by the number of chunks in a store.

Lives here: the generated documents, the measurements, the table. Not here: quality (`ir.py`).

Chunks are 220 words of a vocabulary in which, as in language, few words are frequent and most are rare; vectors are
random. The benchmark writes chunks through the store, as ingestion does. The benchmark measures the whole ingestion
separately, with text files.

Invariant: every figure is from one process on one machine, with searches one after another. The first searches, which
fill the caches, are measured separately.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from antiphon.config.state import VectorStoreSettings
from antiphon.engine.ports.vector_stores import DocumentChunk, NewFile
from antiphon.search.searcher import VectorStoreSearcher
from antiphon.single_threaded_numpy import np
from antiphon.stores.sqlite.backend import SqliteVectorDatabase, open_vector_database
from antiphon.types.search import Filter, Ranking
from tests.support.vector_stores import ALICE, open_vector_store_setup

_WORDS = 60_000
_CHUNK_WORDS = 220
_CHUNKS_PER_FILE = 10
_QUERIES = 200
STOP_WORDS = 30  # Queries skip this many of the most frequent words.
_KEYWORD = Ranking(0.0, 0.0, 1.0)
_TENTH, _THOUSANDTH = Filter("eq", "tenth", 3), Filter("eq", "one", True)


class _Random:
    """Random vectors."""

    model = "random"

    def __init__(self, width: int, seed: int) -> None:
        self._width = width
        self._random = np.random.default_rng(seed)

    def make(self, count: int) -> list[bytes]:
        block = self._random.standard_normal((count, self._width), np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        return [row.tobytes() for row in block.astype("<f2")]

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        return self.make(len(texts))

    async def aclose(self) -> None:
        pass


def vocabulary(seed: int, first: int = 0) -> Callable[[int], str]:
    """A function that makes a text of a given number of words. The word of rank r has a frequency of about 1/r.
    `first`: the number of most frequent words to skip. The vocabulary is the same for every seed."""
    chooser = np.random.default_rng(seed)
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randint(3, 10))) for _ in range(_WORDS)]
    weights = 1.0 / np.arange(1, _WORDS + 1)
    weights[:first] = 0.0
    ends = np.cumsum(weights / weights.sum())
    return lambda count: " ".join(words[place] for place in np.searchsorted(ends, chooser.random(count)))


async def _fill(database: SqliteVectorDatabase, store_id: str, chunks: int, vectors: _Random) -> float:
    """Write `chunks` chunks. Returns the seconds, without the time to generate the chunks."""
    text = vocabulary(1)
    files = chunks // _CHUNKS_PER_FILE
    spent = 0.0
    for start in range(0, files, 500):
        new = [
            NewFile(f"file-{number}", f"{number}.txt", {"tenth": number % 10, "one": number % 1_000 == 7})
            for number in range(start, min(start + 500, files))
        ]
        begun = time.perf_counter()
        await database.stores.add_files(ALICE, store_id, new)
        jobs = await database.ingestion.claim([f"c{start}-{n}" for n in range(len(new))], 1e9)
        spent += time.perf_counter() - begun
        for job in jobs:
            pieces = [
                DocumentChunk(text(_CHUNK_WORDS), _CHUNK_WORDS, vector) for vector in vectors.make(_CHUNKS_PER_FILE)
            ]
            begun = time.perf_counter()
            await database.ingestion.append(job, 0, Path(job.filename).stem, pieces)
            await database.ingestion.complete(job, chunks=len(pieces), usage_bytes=0, model=vectors.model)
            spent += time.perf_counter() - begun
    return spent


async def _times(
    searcher: VectorStoreSearcher, store_id: str, ranking: Ranking, filters: Filter | None
) -> tuple[list[float], float]:
    """The milliseconds of each search, sorted, and the processor time per search."""
    text = vocabulary(2, first=STOP_WORDS)
    spent = []
    used = time.process_time()
    for _ in range(_QUERIES):
        query = text(6)
        begun = time.perf_counter()
        await searcher.search(ALICE, [store_id], [query], limit=10, ranking=ranking, filters=filters)
        spent.append((time.perf_counter() - begun) * 1000)
    return sorted(spent), (time.process_time() - used) / _QUERIES * 1000


def _memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    return 0


async def measure(chunks: int, width: int) -> dict[str, float]:
    """Print the speed of searches in a store of `chunks` chunks. Returns the CPU milliseconds of each search."""
    found = {}
    vectors = _Random(width, 3)
    with tempfile.TemporaryDirectory() as folder:
        database = await open_vector_database(Path(folder))
        store = "vs_" + "1" * 48
        await database.stores.create(ALICE, store, name=None, description=None, metadata=b"{}", expires_days=None)
        seconds = await _fill(database, store, chunks, vectors)
        await database.aclose()
        before = _memory()
        begun = time.perf_counter()
        database = await open_vector_database(Path(folder), matrix_bytes=4 << 30)
        opened = (time.perf_counter() - begun) * 1000
        searcher = VectorStoreSearcher(database.index, embedder=vectors)
        begun = time.perf_counter()
        await searcher.search(ALICE, [store], ["anything at all"])
        first = (time.perf_counter() - begun) * 1000
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        print(
            f"\n{chunks:,} chunks x {width}: written in {seconds:.1f} s ({chunks / seconds:,.0f}/s), {size:,.0f} MB on "
            f"disk; opened in {opened:.0f} ms, first search {first:.0f} ms; "
            f"process +{_memory() - before} MB"
        )
        print(f"{'':28} p50 ms   p99 ms    CPU ms")
        for name, ranking, filters in (
            ("keyword", _KEYWORD, None),
            ("keyword, a tenth fits", _KEYWORD, _TENTH),
            ("keyword, 1 of 1000 fits", _KEYWORD, _THOUSANDTH),
            ("dense", Ranking(0.0, 1.0, 0.0), None),
            ("dense, a tenth fits", Ranking(0.0, 1.0, 0.0), _TENTH),
            ("hybrid", Ranking(), None),
            ("hybrid, a tenth fits", Ranking(), _TENTH),
        ):
            times, used = await _times(searcher, store, ranking, filters)
            found[name] = used
            p99 = times[int(len(times) * 0.99) - 1]
            print(f"{name:28} {times[len(times) // 2]:6.1f} {p99:8.1f} {used:9.1f}", flush=True)
        await database.aclose()
    return found


async def _ingest(megabytes: int) -> None:
    """Ingest text files of 1 MB."""
    text = vocabulary(4)
    with tempfile.TemporaryDirectory() as folder:
        async with open_vector_store_setup(Path(folder), limits=VectorStoreSettings(), start=False) as setup:
            store_id = (await setup.ask("POST", "", {}))["id"]
            ids, size = [], 0
            for number in range(megabytes):
                content = ". ".join(text(20) for _ in range(7_000))[: 1 << 20]
                size += len(content)
                ids.append(await setup.file(f"{number}.txt", content))
            await setup.ask("POST", f"/{store_id}/file_batches", {"file_ids": ids})
            begun = time.perf_counter()
            setup.ingester.start()
            await setup.ingested(store_id, seconds=3_600)
            seconds = time.perf_counter() - begun
            ((chunks,),) = await setup.database.tables.readers.fetch("SELECT count(*) FROM chunks", {})
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"ingestion: {size / 1e6:.0f} MB of text, {chunks:,} chunks of 800/400 tokens in {seconds:.1f} s: "
        f"{size / 1e6 / seconds:.1f} MB/s; the readers took {children.ru_utime + children.ru_stime:.1f} s and at most "
        f"{children.ru_maxrss // 1024} MB each"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench search", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--width", type=int, default=384, help="numbers per vector")
    parser.add_argument("--megabytes", type=int, default=20, help="text for the measurement of ingestion")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(_ingest(options.megabytes))
    for chunks in options.chunks:
        asyncio.run(measure(chunks, options.width))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
