"""`scripts/bench signals`: what it costs that processes hear of each other over PostgreSQL, and how fast they do.

Lives here: queries a second of a process that does nothing, runs a job or follows streams; and the time from a write in
one process to its reader in another, with the server's CPU. Not here: how fast turns are stored (`state.py`).

Processes of the first part are whole ones, in one event loop; those of the second are real ones, each with streams that
it writes and streams of its neighbour that it follows. `asking` has no `state.direct_url`, `told` has one.

Invariant: every event that was written is waited for by its reader.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

import uvloop
from pydantic import SecretStr

from antiphon.app.build import App, build
from antiphon.config.owners import OwnerSettings, SealingSettings
from antiphon.config.settings import Settings
from antiphon.config.state import BackgroundSettings, StateSettings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.engine.ports.actions import RequestHead, ResponseRecord
from antiphon.engine.ports.jobs import EventPiece
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.stores import open_stores
from antiphon.stores.postgres.database import Database
from lab.bench import cpu
from tests.support.chat_server import ChatServer, Wait, answer, text_stream
from tests.support.postgres import Pooler, PostgresServer, pooler_program

_OWNER = "owner"
_BODY = b'{"model":"m","input":"hi","background":true,"stream":true}'
_WARM_SECONDS = 6.0
_WAYS = ("asking", "told")


def _state(url: str, direct: str | None) -> StateSettings:
    return StateSettings(url=SecretStr(url), direct_url=None if direct is None else SecretStr(direct))


# Queries a second


@contextmanager
def _counted() -> Iterator[Counter[int]]:
    """How many times each `Database` was asked anything."""
    counts: Counter[int] = Counter()
    work = Database._work

    async def counted(self: Database, *given: Any, **named: Any) -> Any:
        counts[id(self)] += 1
        return await work(self, *given, **named)

    Database._work = counted  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Database._work = work  # type: ignore[method-assign]


async def _process(opened: AsyncExitStack, state: StateSettings, upstream: str, workers: int) -> App:
    folder = opened.enter_context(tempfile.TemporaryDirectory())
    app = await build(
        Settings(
            data=Path(folder),
            state=state,
            owner=OwnerSettings(source="single", key=SecretStr("key of a benchmark, of thirty-two and more bytes")),
            sealing=SealingSettings(keys=(SecretStr("ab" * 32),)),
            upstream=UpstreamSettings(url=upstream, auth=AuthMode.NONE),
            background=BackgroundSettings(workers=workers, per_owner=1000),
        ),
        door="http",
    )
    opened.push_async_callback(app.aclose)
    return app


async def _queue(app: App) -> str:
    """A queued response; its id."""
    exchange = app.context.new_exchange()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), _OWNER), _BODY)
    while (action := exchange.next_action()) is not None and not exchange.known.response_id:
        await app.context.runner.perform(exchange, action)  # type: ignore[arg-type]
    if action is not None:
        await app.context.runner.perform(exchange, action)  # type: ignore[arg-type]
    return exchange.known.response_id


async def _queries(server: PostgresServer, direct: bool, seconds: float) -> list[float]:
    """Of an idle process, of one with a job, of one that follows 100 silent streams."""
    url = await server.new_database()
    rates: list[float] = []
    async with AsyncExitStack() as opened, ChatServer() as chat:
        gate = asyncio.Event()
        chat.default = lambda _: answer(parts=[Wait(gate), *text_stream("Hello")])
        state = _state(url, url if direct else None)
        with _counted() as counts:
            app = await _process(opened, state, chat.base_url, 8)

            async def rate(one: App) -> float:
                await asyncio.sleep(_WARM_SECONDS)
                database: Any = one.stores
                before = counts[id(database.database)]
                await asyncio.sleep(seconds)
                return (counts[id(database.database)] - before) / seconds

            rates.append(await rate(app))
            await _queue(app)
            rates.append(await rate(app))
            running = await _process(opened, state, chat.base_url, 100)
            followed = [await _queue(running) for _ in range(100)]
            reader = await _process(opened, state, chat.base_url, 0)
            following = reader.workers._background.followers

            async def read(response_id: str) -> None:
                async for _ in following.follow(_OWNER, response_id):
                    pass

            tasks = [asyncio.ensure_future(read(response_id)) for response_id in followed]
            rates.append(await rate(reader))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        gate.set()
    return rates


# From one process to another


def _events(number: int, count: int = 1) -> EventPiece:
    data = b"".join(b'event: x\ndata: {"at":%.6f}\n\n' % time.monotonic() for _ in range(count))
    return EventPiece(number, data)


async def _node(name: str, other: str, url: str, direct: str | None, streams: int, rate: float, seconds: float) -> None:
    """One real process: told by a line on stdin when to go on; the latencies in ms are its last line."""
    loop, delays = asyncio.get_running_loop(), []
    with tempfile.TemporaryDirectory() as folder:
        stores = await open_stores(_state(url, direct), Path(folder), chain_items=100)
        async with aclosing(stores):
            jobs, signal_watcher = stores.background, SignalWatcher(stores.signals)
            followers = Followers(jobs, signal_watcher)
            signal_watcher.start()
            mine = [f"resp_{name}_{number}" for number in range(streams)]
            now = time.time()
            for one in mine:
                body = json.dumps({"id": one, "status": "queued", "background": True}).encode()
                record = ResponseRecord(one, _OWNER, None, "queued", "m", now, None, body, (), ())
                await jobs.enqueue(record, b"{}", _events(0), limit=100_000)

            async def step(word: str) -> None:
                print(word, flush=True)
                await loop.run_in_executor(None, sys.stdin.readline)

            await step("queued")
            held = {job.response_id for job in await jobs.claim("claimer", 3600.0, 100_000)} if name == "0" else set()
            await step(f"claimed {len(held)}")

            async def write(place: int, response_id: str) -> None:
                start = loop.time() + place / streams / rate
                for number in range(1, int(seconds * rate) + 1):
                    await asyncio.sleep(start + number / rate - loop.time())
                    assert await jobs.append("claimer", response_id, _events(number))

            async def read(response_id: str) -> None:
                left = int(seconds * rate)
                async for data in followers.follow(_OWNER, response_id, after=0):
                    seen = time.monotonic()
                    for line in data.splitlines():
                        if line.startswith(b"data: {"):
                            delays.append(1000 * (seen - json.loads(line[6:])["at"]))
                            left -= 1
                    if left <= 0:
                        return

            reading = [asyncio.ensure_future(read(f"resp_{other}_{number}")) for number in range(streams)]
            await asyncio.sleep(3.0)
            await step("following")
            await asyncio.gather(*[write(place, one) for place, one in enumerate(mine)])
            await step("written")
            async with asyncio.timeout(60):
                await asyncio.gather(*reading)
    print(json.dumps([round(delay, 2) for delay in delays]), flush=True)


def _start_node(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lab.bench.signals", "--node", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _pids(server: PostgresServer) -> list[int]:
    return [server.pid, *cpu.children(server.pid)]


async def _latency(
    server: PostgresServer, pooler: Pooler | None, way: str, streams: int, rate: float, seconds: float
) -> str:
    direct = await server.new_database()
    url = direct if pooler is None else pooler.url(direct)
    each = max(1, streams // 3)
    nodes = []
    for number in range(3):
        words = [str(number), str((number + 1) % 3), url, direct if way == "told" else "", str(each), str(rate)]
        nodes.append(_start_node([*words, str(seconds)]))

    def line(node: subprocess.Popen[str], word: str) -> str:
        assert node.stdout is not None
        for text in node.stdout:
            if text.startswith(word):
                return text
        raise RuntimeError("a process ended early")

    def step(word: str) -> None:
        for node in nodes:
            line(node, word)

    def go() -> None:
        for node in nodes:
            assert node.stdin is not None
            node.stdin.write("\n")
            node.stdin.flush()

    try:
        step("queued")
        go()
        step("claimed")
        go()
        step("following")
        before, began = cpu.cpu_seconds(_pids(server)), time.monotonic()
        go()
        step("written")
        used = (cpu.cpu_seconds(_pids(server)) - before) / (time.monotonic() - began)
        go()
        delays = [delay for node in nodes for delay in json.loads(line(node, "["))]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    cuts = statistics.quantiles(delays, n=100)
    return f"{cuts[49]:.0f} / {cuts[98]:.0f} | {used:.2f} | {len(delays)}"


async def _measure(seconds: float, parts: str, loads: list[tuple[int, float]], pooled: bool) -> None:
    server = PostgresServer(durable=True)
    try:
        if "queries" in parts:
            print("| queries a second | idle | with a job | 100 silent streams followed |\n| --- | --- | --- | --- |")
            for way in _WAYS:
                rates = await _queries(server, way == "told", seconds)
                print(f"| {way} | " + " | ".join(f"{rate:.1f}" for rate in rates) + " |", flush=True)
        if "latency" in parts:
            print("| streams x appends a second | way | p50 / p99 ms | server's cores | events |")
            print("| --- | --- | --- | --- | --- |")
            pooler = Pooler(server.port) if pooled and pooler_program() is not None else None
            try:
                for streams, rate in loads:
                    for way in _WAYS:
                        for through in (None, pooler) if pooler is not None else (None,):
                            found = await _latency(server, through, way, streams, rate, seconds)
                            name = way if through is None else f"{way}, pgbouncer"
                            print(f"| {streams} x {rate:g} | {name} | {found} |", flush=True)
            finally:
                if pooler is not None:
                    pooler.close()
    finally:
        server.close()


def main() -> int:
    """The command line."""
    if sys.argv[1:2] == ["--node"]:
        name, other, url, direct, streams, rate, seconds = sys.argv[2:]
        uvloop.run(_node(name, other, url, direct or None, int(streams), float(rate), float(seconds)))
        return 0
    parser = argparse.ArgumentParser(prog="scripts/bench signals", description="How processes hear of each other.")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each figure (default 15)")
    parser.add_argument("--parts", default="queries,latency", help="queries, latency or both")
    parser.add_argument("--load", nargs="*", default=["3x2", "200x1", "200x10"], help="streams x appends a second")
    parser.add_argument("--direct", action="store_true", help="not through pgbouncer too")
    given = parser.parse_args()
    loads = [(int(one.split("x")[0]), float(one.split("x")[1])) for one in given.load]
    asyncio.run(_measure(given.seconds, given.parts, loads, not given.direct))
    return 0


if __name__ == "__main__":
    sys.exit(main())
