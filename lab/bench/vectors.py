"""`scripts/bench vectors`: how well and how fast PostgreSQL finds vectors and words, beside SQLite.

Lives here: the made-up stores, the measurements, the tables. Not here: search as a whole (`search_speed.py`).

Vectors lie in clusters, as those of texts do, and each file's in two of them: what a filter lets through is no even
sample. Texts are as in `search_speed.py`. Recall is the share of the ten nearest by NumPy that are among the first ten
found. Latency is of the operation that a search asks of the store (`nearest`, `match`), a hundred hits each, one after
the other.

Invariant: both backends have the same chunks and get the same questions; PostgreSQL's server is this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import structlog

from antiphon.engine.ports.indexing import CHUNK_BITS, ChunkHit, DocumentChunk, KnownStore
from antiphon.engine.ports.vector_stores import NewFile
from antiphon.single_threaded_numpy import np
from antiphon.stores.backend import VectorDatabase
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.opening import open_vectors
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.sqlite.opening import open_vector_database
from antiphon.types.search import Filter
from lab.bench.search_speed import STOP_WORDS, vocabulary
from tests.support.postgres import PostgresServer
from tests.support.vector_stores import ALICE

_MODEL = "made-up"
_CHUNKS_PER_FILE = 20
_WORDS = 220
_CLUSTERS = 400
_SHARES = (100.0, 50.0, 10.0, 5.0, 1.0, 0.1)
_LIMIT = 100
_SERVER = "shared_buffers = '512MB'", "maintenance_work_mem = '512MB'"
_OPENED = "vs_" + "2" * 48

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def _vectors(files: int, width: int) -> Floats:
    """Of each file so many vectors of length 1, as float16 has them."""
    chance = np.random.default_rng(1)
    centres = np.random.default_rng(0).standard_normal((_CLUSTERS, width)).astype(np.float32)
    own = chance.integers(0, _CLUSTERS, (files, 2))
    chosen = np.take_along_axis(own, chance.integers(0, 2, (files, _CHUNKS_PER_FILE)), axis=1)
    block = centres[chosen.ravel()] + chance.standard_normal((files * _CHUNKS_PER_FILE, width), np.float32) * 0.9
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    return block.astype("<f2").astype(np.float32)


def _queries(count: int, width: int) -> Floats:
    chance = np.random.default_rng(2)
    centres = np.random.default_rng(0).standard_normal((_CLUSTERS, width)).astype(np.float32)
    block = centres[chance.integers(0, _CLUSTERS, count)] + chance.standard_normal((count, width), np.float32) * 0.9
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    return block.astype("<f2").astype(np.float32)


async def _fill(database: VectorDatabase, vectors: Floats, texts: list[str]) -> float:
    """Write the store as ingestion does; seconds."""
    begun = time.perf_counter()
    await database.stores.create(ALICE, _OPENED, name=None, description=None, metadata=b"{}", expires_days=None)
    files = len(vectors) // _CHUNKS_PER_FILE
    for start in range(0, files, 200):
        names = range(start, min(start + 200, files))
        new = [NewFile(f"file-{name:06}", "a.txt", {"part": name % 1_000}) for name in names]
        await database.stores.add_files(ALICE, _OPENED, new)
        for job in await database.ingestion.claim([f"claim-{name}" for name in names], 1e6):
            first = int(job.file_id[5:]) * _CHUNKS_PER_FILE
            rows = range(first, first + _CHUNKS_PER_FILE)
            chunks = [
                DocumentChunk(texts[row % len(texts)], _WORDS, vectors[row].astype("<f2").tobytes()) for row in rows
            ]
            await database.ingestion.append(job, 0, "a", chunks)
            await database.ingestion.complete(job, chunks=len(chunks), usage_bytes=0, model=_MODEL)
    return time.perf_counter() - begun


async def _timed(asked: list[Callable[[], Awaitable[list[ChunkHit]]]]) -> tuple[str, list[list[ChunkHit]]]:
    """p50 and p99 in milliseconds, and what was found."""
    spent, found = [], []
    for ask in asked:
        begun = time.perf_counter()
        found.append(await ask())
        spent.append((time.perf_counter() - begun) * 1000)
    spent.sort()
    return f"{spent[len(spent) // 2]:.1f} / {spent[int(len(spent) * 0.99) - 1]:.1f}", found


def _recall(found: list[list[ChunkHit]], first: int, vectors: Floats, queries: Floats, part: float) -> float:
    """`first`: the number of the first file."""
    rows = np.flatnonzero((np.arange(len(vectors)) // _CHUNKS_PER_FILE) % 1_000 < part * 10)
    shares = []
    for hits, query in zip(found, queries, strict=True):
        scores = vectors[rows] @ query
        least = np.sort(scores)[-10] - 1e-6  # what is as near as the tenth is as good
        near = set(rows[scores >= least].tolist())
        places = [
            ((hit.chunk >> CHUNK_BITS) - first) * _CHUNKS_PER_FILE + hit.chunk % (1 << CHUNK_BITS) for hit in hits
        ]
        shares.append(len(near.intersection(places[:10])) / 10)
    return float(np.mean(shares))


def _row(hit: ChunkHit, first: int) -> int:
    return ((hit.chunk >> CHUNK_BITS) - first) * _CHUNKS_PER_FILE + hit.chunk % (1 << CHUNK_BITS)


async def _measure(name: str, database: VectorDatabase, vectors: Floats, queries: Floats) -> None:
    (store,) = await database.index.known(ALICE, [_OPENED])
    # Numbers are given out one by one: the store's, then those of its files in their order.
    first = store.number + 1
    for share in _SHARES:
        filters = None if share == 100.0 else Filter("lt", "part", share * 10)
        asked = [_nearest(database, store, query.astype("<f2").tobytes(), filters) for query in queries]
        await asked[0]()
        times, found = await _timed(asked)
        print(
            f"| {name} | nearest, {share:g} % | {times} | {_recall(found, first, vectors, queries, share):.3f} |",
            flush=True,
        )
    text = vocabulary(2, first=STOP_WORDS)
    for share in (100.0, 10.0):
        filters = None if share == 100.0 else Filter("lt", "part", share * 10)
        times, _ = await _timed([_match(database, store, text(6), filters) for _ in queries])
        print(f"| {name} | match, {share:g} % | {times} | |", flush=True)


def _nearest(
    database: VectorDatabase, store: KnownStore, query: bytes, filters: Filter | None
) -> Callable[[], Awaitable[list[ChunkHit]]]:
    return lambda: database.index.nearest(store, _MODEL, query, filters, _LIMIT)


def _match(
    database: VectorDatabase, store: KnownStore, query: str, filters: Filter | None
) -> Callable[[], Awaitable[list[ChunkHit]]]:
    return lambda: database.index.match(store, query, filters, _LIMIT)


async def _compare(chunks: int, width: int, asked: int, backends: list[str], server: PostgresServer) -> None:
    vectors, queries = _vectors(chunks // _CHUNKS_PER_FILE, width), _queries(asked, width)
    text = vocabulary(1)
    texts = [text(_WORDS) for _ in range(min(chunks, 20_000))]
    print(f"\n{chunks:,} chunks x {width}\n\n| | | ms p50 / p99 | recall@10 |\n| --- | --- | --- | --- |", flush=True)
    if "sqlite" in backends:
        await _on_sqlite(chunks, vectors, queries, texts)
    if "postgresql" in backends:
        await _on_postgres(chunks, vectors, queries, texts, server)


async def _on_sqlite(chunks: int, vectors: Floats, queries: Floats, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with aclosing(await open_vector_database(Path(folder), matrix_bytes=4 << 30)) as on_sqlite:
            seconds = await _fill(on_sqlite, vectors, texts)
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
            print(f"| SQLite | {chunks / seconds:,.0f} chunks/s written, {size:,.0f} MB | | |", flush=True)
            await _measure("SQLite", on_sqlite, vectors, queries)


async def _on_postgres(chunks: int, vectors: Floats, queries: Floats, texts: list[str], server: PostgresServer) -> None:
    url = await server.new_database()
    # Whoever measures waits for a busy machine.
    async with aclosing(Database(url, DatabaseLimits(deadline=120.0))) as database:
        stores = open_vectors(database, IdempotencyStore(PostgresTables(database)), direct_url=url)
        seconds = await _fill(stores, vectors, texts)
        await database.write("ANALYZE")
        size = (await database.fetch("SELECT pg_database_size(current_database())"))[0][0] / 1e6
        print(f"| PostgreSQL | {chunks / seconds:,.0f} chunks/s written, {size:,.0f} MB | | |", flush=True)
        if chunks > stores.indexes.exact:
            await _measure("PostgreSQL, no index yet", stores, vectors, queries[: max(1, len(queries) // 10)])
            begun = time.perf_counter()
            stores.indexes.look()
            await stores.indexes.made()
            print(f"| PostgreSQL | index made in {time.perf_counter() - begun:.0f} s | | |", flush=True)
        await _measure("PostgreSQL", stores, vectors, queries)
        await stores.aclose()
    await server.drop_database(url)


async def _run(options: argparse.Namespace) -> None:
    server = PostgresServer()
    try:
        async with aclosing(Database(server.url())) as database:
            for setting in _SERVER:
                await database.write(f"ALTER SYSTEM SET {setting}")
        server.stop()
        server.start()
        for chunks in options.chunks:
            await _compare(chunks, options.width, options.queries, options.backends, server)
    finally:
        server.close()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench vectors", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--width", type=int, default=384, help="numbers per vector")
    parser.add_argument("--queries", type=int, default=100, help="how often each question is asked")
    both = ["sqlite", "postgresql"]
    parser.add_argument("--backends", nargs="+", choices=both, default=both)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(_run(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
