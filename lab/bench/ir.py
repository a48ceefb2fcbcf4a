"""Implements `scripts/bench ir --folder FOLDER`: measures search quality on a test collection with judgements.

Lives here: the collection's files, the measures, the table. Not here: speed (`search_speed.py`).

The folder is in BEIR's layout: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`), `qrels.tsv`
(query, document, gain). The program uploads every document as a Markdown file, which passes the whole ingestion:
reading process, chunks, index. The program sends every query to the searcher. With `--embeddings URL` (a server of
OpenAI's `POST /embeddings`) the store also has vectors, and the program compares keyword, dense and hybrid search.

Invariant: the rank of a document is that of its best chunk. Each measure is the mean over all queries that have a
judged document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from antiphon.config.state import EmbeddingSettings, VectorStoreSettings
from antiphon.engine.ports.vector_stores import Embedder
from antiphon.types.search import Ranking
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from antiphon.upstream.embeddings import HttpEmbedder
from tests.support.vector_stores import ALICE, VectorStoreSetup, open_vector_store_setup

_DEPTH = 100
Judgements = dict[str, dict[str, float]]


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def _judgements(path: Path) -> Judgements:
    found: Judgements = {}
    for line in path.read_text().splitlines():
        query, document, gain = line.split("\t")
        if gain.lstrip("-").isdigit() and int(gain) > 0:
            found.setdefault(query, {})[document] = float(gain)
    return found


def ndcg(ranked: Sequence[str], judged: dict[str, float], depth: int) -> float:
    """The normalised discounted cumulative gain of the first `depth` results."""
    found = sum(judged.get(document, 0.0) / math.log2(place + 2) for place, document in enumerate(ranked[:depth]))
    best = sorted(judged.values(), reverse=True)[:depth]
    return found / sum(gain / math.log2(place + 2) for place, gain in enumerate(best))


def recall(ranked: Sequence[str], judged: dict[str, float], depth: int) -> float:
    """The share of the judged documents that are among the first `depth` results."""
    return len(judged.keys() & set(ranked[:depth])) / len(judged)


async def _measure(
    setup: VectorStoreSetup, store_id: str, queries: list[dict[str, str]], judgements: Judgements, ranking: Ranking
) -> tuple[float, float, float, float]:
    sums = [0.0, 0.0, 0.0]
    asked = [query for query in queries if query["_id"] in judgements]
    started = time.perf_counter()
    for query in asked:
        hits = await setup.searcher.search(ALICE, [store_id], [query["text"]], limit=_DEPTH, ranking=ranking)
        ranked = list(dict.fromkeys(hit.filename.removesuffix(".md") for hit in hits))
        judged = judgements[query["_id"]]
        for number, value in enumerate(
            (ndcg(ranked, judged, 10), recall(ranked, judged, 20), recall(ranked, judged, 100))
        ):
            sums[number] += value
    milliseconds = (time.perf_counter() - started) / len(asked) * 1000
    ndcg10, recall20, recall100 = (value / len(asked) for value in sums)
    return ndcg10, recall20, recall100, milliseconds


async def _run(folder: Path, embedder: Embedder | None) -> None:
    corpus, queries = _lines(folder / "corpus.jsonl"), _lines(folder / "queries.jsonl")
    judgements = _judgements(folder / "qrels.tsv")
    with tempfile.TemporaryDirectory() as data:
        async with open_vector_store_setup(
            Path(data), embedder=embedder, limits=VectorStoreSettings(), matrix_bytes=1 << 30
        ) as setup:
            store_id = (await setup.ask("POST", "", {"name": folder.name}))["id"]
            ids = []
            for document in corpus:
                text = f"# {document.get('title', '')}\n\n{document['text'] or '.'}"
                ids.append(await setup.file(f"{document['_id']}.md", text))
            started = time.perf_counter()
            for start in range(0, len(ids), 2_000):
                await setup.ask("POST", f"/{store_id}/file_batches", {"file_ids": ids[start : start + 2_000]})
            store = await setup.ingested(store_id, seconds=7_200)
            seconds = time.perf_counter() - started
            print(f"{folder.name}: {len(corpus)} documents in {seconds:.1f} s, {store['file_counts']}")
            print(f"{'':10} nDCG@10  recall@20  recall@100  ms per query")
            ways = [("keyword", Ranking(0.0, 0.0, 1.0))]
            if embedder is not None:
                ways += [("dense", Ranking(0.0, 1.0, 0.0)), ("hybrid", Ranking())]
            for name, ranking in ways:
                found = await _measure(setup, store_id, queries, judgements, ranking)
                print(f"{name:10} {found[0]:7.3f}  {found[1]:9.3f}  {found[2]:10.3f}  {found[3]:12.1f}", flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench ir", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, required=True, help="a test collection in BEIR's layout")
    parser.add_argument("--embeddings", metavar="URL", help="base URL of an embeddings server")
    parser.add_argument("--model", default="embeddings", help="its model's name")
    options = parser.parse_args()
    if not (options.folder / "qrels.tsv").is_file():
        print(f"bench ir: there is no collection in {options.folder}: nothing was measured", file=sys.stderr)
        return 2
    embedder = None
    if options.embeddings:
        upstream = HttpUpstream(UpstreamTarget(options.embeddings), head_seconds=300.0)
        embedder = HttpEmbedder(upstream, EmbeddingSettings(model=options.model, seconds=300.0, batch=32))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(_run(options.folder, embedder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
