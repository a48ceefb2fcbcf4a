"""`scripts/bench state`: how many turns a second are stored, on SQLite, on PostgreSQL, and through pgbouncer.

Lives here: callers that each store one turn after another of a chain of their own, and the table. Not here: what a
request costs (`run.py`), how fast histories are read (`history.py`).

All states run the same turns in turn, round by round, so that a slow moment of the machine meets all of them; of the
rounds the median counts. Both databases wait for the disk (`fsync`), and run on this machine.

Invariant: every turn that counts is there afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.engine.ports.actions import ResponseRecord, StoredItem, Usage
from antiphon.engine.ports.state import ResponseStore
from antiphon.ids import new_id
from antiphon.stores import open_stores
from tests.support.postgres import Pooler, PostgresServer, pooler_program

_OWNERS = 20
_LENGTH = 20
"""Turns of a chain."""
_BODY = b'{"text":"%b"}' % (b"instructions and settings " * 34)
_ASKED = b'{"content":"%b"}' % (b"what is the weather like in a town by the river " * 17)
_SAID = b'{"content":"%b"}' % (b"it rains, and tomorrow it will rain a little less " * 34)


@dataclass(frozen=True)
class Round:
    """Turns a second, what one takes of this process (µs), and how long its caller waits (ms)."""

    rate: float
    cpu: float
    p50: float
    p99: float


def _turn(owner: str, previous: str | None) -> ResponseRecord:
    now = time.time()
    asked = StoredItem(new_id("msg"), "message", _ASKED)
    said = StoredItem(new_id("msg"), "message", _SAID)
    return ResponseRecord(
        new_id("resp"), owner, previous, "completed", "model", now, now, _BODY, (asked,), (said,), Usage(100, 100, 200)
    )


async def _round(store: ResponseStore, callers: int, seconds: float) -> Round:
    taken: list[float] = []
    last: dict[str, str] = {}
    ends = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        owner, previous, turns = f"b:{number % _OWNERS}", "", 0
        while (began := time.perf_counter()) < ends:
            turn = _turn(owner, previous if turns % _LENGTH else None)
            await store.save(turn)
            taken.append(time.perf_counter() - began)
            previous, turns = turn.id, turns + 1
            last[turn.id] = owner

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*[caller(number) for number in range(callers)])
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    for response_id, owner in last.items():
        assert await store.get(owner, response_id) is not None
    taken.sort()
    return Round(
        len(taken) / took,
        cpu / len(taken) * 1e6,
        taken[len(taken) // 2] * 1e3,
        taken[min(len(taken) - 1, len(taken) * 99 // 100)] * 1e3,
    )


@asynccontextmanager
async def _stores(url: str, folder: Path) -> AsyncIterator[ResponseStore]:
    async with aclosing(await open_stores(StateSettings(url=SecretStr(url)), folder, chain_items=1000)) as stores:
        yield stores.responses


async def _measure(given: argparse.Namespace, urls: dict[str, str], folder: Path) -> dict[tuple[str, int], list[Round]]:
    results: defaultdict[tuple[str, int], list[Round]] = defaultdict(list)
    for number in range(given.rounds + 1):
        for callers in given.callers:
            for name, url in urls.items():
                place = folder / name.replace(" ", "-")
                place.mkdir(exist_ok=True)
                async with _stores(url, place) as store:
                    result = await _round(store, callers, given.seconds)
                if number:  # the first one warms up
                    results[name, callers].append(result)
                print(f"{number} {name}, {callers} callers: {result.rate:.0f}/s", file=sys.stderr, flush=True)
    return results


def _table(results: dict[tuple[str, int], list[Round]], names: Sequence[str], callers: Sequence[int]) -> str:
    heads = [f"{number} callers" if number > 1 else "1 caller" for number in callers]
    lines = [
        f"| turns/s (CPU µs of this process; p50 / p99 ms) | {' | '.join(heads)} |",
        f"| --- |{' --- |' * len(callers)}",
    ]
    for name in names:
        cells = []
        for number in callers:
            rounds = results[name, number]

            rate = statistics.median(each.rate for each in rounds)
            cpu = statistics.median(each.cpu for each in rounds)
            p50 = statistics.median(each.p50 for each in rounds)
            p99 = statistics.median(each.p99 for each in rounds)
            cells.append(f"{rate:,.0f} ({cpu:.0f}; {p50:.1f} / {p99:.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


async def _run(given: argparse.Namespace) -> None:
    server = PostgresServer(durable=True)
    pooler = Pooler(server.port) if pooler_program() else None
    try:
        with tempfile.TemporaryDirectory(prefix="antiphon-bench-") as folder:
            urls = {"SQLite": f"sqlite:{folder}/SQLite", "PostgreSQL": await server.new_database()}
            if pooler is not None:
                urls["PostgreSQL behind pgbouncer"] = pooler.url(await server.new_database())
            results = await _measure(given, urls, Path(folder))
        print(_table(results, list(urls), given.callers))
        if given.json:
            figures = {
                f"{name}, {callers}": [asdict(each) for each in rounds] for (name, callers), rounds in results.items()
            }
            given.json.write_text(json.dumps(figures, indent=1))
    finally:
        if pooler is not None:
            pooler.close()
        server.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench state", description="How many turns a second are stored.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--callers", default="1,32,200")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of all rounds")
    given = parser.parse_args(arguments)
    given.callers = [int(number) for number in given.callers.split(",")]
    uvloop.run(_run(given))


if __name__ == "__main__":
    main()
