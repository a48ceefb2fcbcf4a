"""Measures the cost of history: the added latency of a request by the length of its history and by the number of stored
responses.

    scripts/bench --history                     chains and conversations of 1, 10, 50 and 200 turns, an empty database
    scripts/bench --history --stored 1000000    the same among a million stored responses

The upstream answers immediately, so the measured time is Antiphon's time plus the client's, which is the same for all
rows. `bare` is a request without history. The measured requests store nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from antiphon.app.keys import OWNER_KEY, SEALING_KEY
from antiphon.local_keys import local_key
from antiphon.stores.sqlite.backend import SESSIONS_FILE, open_sqlite
from tests.support.chat_server import ChatServer
from tests.support.gateway import start_gateway

TEXT = {"model": "m", "input": "And what comes next?"}
_BATCH = 20_000
_PER_CHAIN = 10


async def fill(data: Path, responses: int) -> None:
    """Store `responses` responses, in chains of ten with two items each, for a thousand owners."""
    for name in (OWNER_KEY, SEALING_KEY):
        local_key(data, name)  # A server creates these keys before it stores its first row.
    stores = await open_sqlite(data, chain_items=50_000)
    await stores.aclose()
    database = sqlite3.connect(data / SESSIONS_FILE)
    database.execute("PRAGMA synchronous=OFF")
    body = b'{"object":"response","status":"completed","model":"m"}'
    text = b'{"type":"message","role":"user","content":[{"type":"input_text","text":"%b"}]}' % (b"word " * 20)
    for start in range(0, responses, _BATCH):
        rows = range(start, min(start + _BATCH, responses))
        with database:
            database.executemany(
                "INSERT INTO chains (id, owner, updated_at) VALUES (?, ?, 0)",
                [(f"resp_{n:048x}", f"o{n // _PER_CHAIN % 1000}") for n in rows if n % _PER_CHAIN == 0],
            )
            database.executemany(
                "INSERT INTO responses (id, owner, chain_id, prev_id, history_items, status, model, created_at, body) "
                "VALUES (?, ?, ?, ?, ?, 'completed', 'm', ?, ?)",
                [
                    (
                        f"resp_{n:048x}",
                        f"o{n // _PER_CHAIN % 1000}",
                        f"resp_{n - n % _PER_CHAIN:048x}",
                        f"resp_{n - 1:048x}" if n % _PER_CHAIN else None,
                        (n % _PER_CHAIN + 1) * 2,
                        n,
                        body,
                    )
                    for n in rows
                ],
            )
            database.executemany(
                "INSERT INTO response_items (response_id, dir, seq, item_id, type, body) VALUES (?, ?, 0, ?, ?, ?)",
                [(f"resp_{n:048x}", side, f"msg_{side}{n:047x}", "message", text) for n in rows for side in (0, 1)],
            )
    database.execute("ANALYZE")
    database.close()


class Client:
    """A client of one gateway; times in milliseconds."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def create(self, **fields: Any) -> tuple[float, dict[str, Any]]:
        started = time.perf_counter()
        async with self._session.post(f"{self._url}/responses", json={**TEXT, **fields}) as answered:
            value: dict[str, Any] = await answered.json()
            assert answered.status == 200, value
        return (time.perf_counter() - started) * 1000, value

    async def chain(self, turns: int) -> dict[str, Any]:
        """Create a chain of `turns` turns. Returns the request fields that continue it."""
        last: dict[str, Any] = {}
        for _ in range(turns):
            _, made = await self.create(**last)
            last = {"previous_response_id": made["id"]}
        return last

    async def conversation(self, turns: int) -> dict[str, Any]:
        """Create a conversation of `turns` turns. Returns the request fields that continue it."""
        async with self._session.post(f"{self._url}/conversations", json={}) as answered:
            last = {"conversation": (await answered.json())["id"]}
        for _ in range(turns):
            await self.create(**last)
        return last


async def measure(client: Client, cases: dict[str, dict[str, Any]], requests: int) -> dict[str, list[float]]:
    """The times of each case in milliseconds. The order of the cases is shuffled, so that a busy moment of the machine
    affects all cases."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases.items())
    for _ in range(requests):
        random.shuffle(order)
        for name, fields in order:
            # The measured requests are not stored, because the history would grow with each of them.
            spent, _made = await client.create(**fields, store=False)
            times[name].append(spent)
    return times


@asynccontextmanager
async def gateway(data: Path) -> AsyncIterator[Client]:
    async with ChatServer() as chat:
        # Use the database of `fill`, even if the environment selects another state for tests.
        environ = {"ANTIPHON_STATE__URL": "sqlite:"}
        started = await start_gateway(chat.base_url, data, command="serve", environ=environ)
        try:
            async with aiohttp.ClientSession() as session:
                yield Client(session, started.base_url)
        finally:
            await started.stop()


def show(times: dict[str, list[float]]) -> None:
    bare = statistics.median(times["bare"])
    print(f"{'':24}{'p50 ms':>9}{'p95 ms':>9}{'added ms':>10}")
    for name, spent in times.items():
        middle, late = statistics.median(spent), statistics.quantiles(spent, n=20)[-1]
        print(f"{name:24}{middle:9.2f}{late:9.2f}{middle - bare:10.2f}")


async def run(stored: int, turns: list[int], requests: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        if stored:
            started = time.perf_counter()
            await fill(data, stored)
            size = (data / SESSIONS_FILE).stat().st_size >> 20
            print(f"{stored:,} responses stored: {size} MiB, {time.perf_counter() - started:.0f} s", file=sys.stderr)
        async with gateway(data) as client:
            cases: dict[str, dict[str, Any]] = {"bare": {}}
            for number in turns:
                cases[f"chain of {number}"] = await client.chain(number)
                cases[f"conversation of {number}"] = await client.conversation(number)
            await measure(client, cases, 5)  # Warm up the caches.
            return await measure(client, cases, requests)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench --history", description=__doc__.splitlines()[0])
    parser.add_argument("--stored", type=int, default=0, help="responses that are stored already")
    parser.add_argument("--turns", type=int, nargs="+", default=[1, 10, 50, 200])
    parser.add_argument("--requests", type=int, default=100, help="requests for each row")
    given = parser.parse_args()
    show(asyncio.run(run(given.stored, given.turns, given.requests)))


if __name__ == "__main__":
    main()
