"""`scripts/bench streams`: connections to PostgreSQL and memory while very many streams are open.

Lives here: an HTTP door as a process, a slow model server, clients that each read one stream which is then stored, and
looking at `pg_stat_activity` meanwhile. Not here: what a chunk costs (`run.py`), memory of one stream (`apart.py`).

Invariant: every stream ended with `response.completed`, and every response is stored afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import uvloop

from lab.bench import cpu
from lab.bench.state_places import SQLITE, Place, places
from lab.bench.variants import Process
from tests.support.gateway import start_gateway
from tests.support.state import OWNER_KEY, SEALING_KEY

_OPENED_PER_SECOND = 250
_LOOKS_PER_SECOND = 4
_GRACE_SECONDS = 120.0
_CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND datname = $1 AND application_name <> 'bench'
"""


@dataclass(frozen=True)
class Look:
    """One moment: connections to PostgreSQL (None: there is none) and MiB of the serving process."""

    connections: int | None
    memory: float


@dataclass
class Streams:
    """The clients' side, as it is now."""

    open: int = 0
    finished: int = 0
    looks: dict[str, list[Look]] = field(default_factory=dict)


async def _stream(url: str, model: str, streams: Streams) -> None:
    place = urlsplit(url)
    assert place.hostname is not None
    body = json.dumps({"model": model, "input": "Say something.", "stream": True}).encode()
    head = (
        f"POST {place.path}/responses HTTP/1.1\r\nhost: {place.netloc}\r\nconnection: close\r\n"
        f"content-type: application/json\r\nauthorization: Bearer bench\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(head.encode() + body)
        tail = await reader.read(1 << 16)
        if not tail.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"bench: {tail[:500]!r}")
        streams.open += 1
        while part := await reader.read(1 << 16):
            tail = (tail + part)[-4096:]
        streams.open -= 1
        if b"event: response.completed" not in tail:
            raise SystemExit(f"bench: a stream ended with {tail!r}")
        streams.finished += 1
    finally:
        writer.close()


async def _watched(streams: Streams, many: int, look: Callable[[], Any]) -> None:
    """Look again and again until all have finished."""
    while streams.finished < many:
        phase = "opening" if streams.open + streams.finished < many else "ending" if streams.finished else "open"
        streams.looks.setdefault(phase, []).append(await look())
        await asyncio.sleep(1 / _LOOKS_PER_SECOND)


async def _measure(place: Place, upstream: str, many: int, seconds: int) -> dict[str, list[Look]]:
    environ = {
        "ANTIPHON_STATE__URL": place.url,
        "ANTIPHON_OWNER__KEY": OWNER_KEY,
        "ANTIPHON_SEALING__KEYS": json.dumps([SEALING_KEY]),
    }
    if place.direct is not None:
        environ["ANTIPHON_STATE__DIRECT_URL"] = place.direct
    database = None
    if place.name != SQLITE:
        url = place.direct or place.url
        database = await asyncpg.connect(url, server_settings={"application_name": "bench"})
        before = await database.fetchval("SELECT count(*) FROM responses")
    gateway = await start_gateway(upstream, place.folder, command="serve", environ=environ)
    try:

        async def look() -> Look:
            name = url.rpartition("/")[2] if database is not None else ""
            counted = await database.fetchval(_CONNECTIONS, name) if database is not None else None
            return Look(counted, cpu.rss_bytes([gateway.process.pid]) / (1 << 20))

        streams = Streams()
        await _stream(gateway.base_url, "paced-1-1ms", streams)
        streams.finished = 0
        streams.looks["before"] = [await look()]
        async with asyncio.timeout(many / _OPENED_PER_SECOND + seconds + _GRACE_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(_watched(streams, many, look))
            for _ in range(many):
                group.create_task(_stream(gateway.base_url, f"paced-{seconds}-1000ms", streams))
                await asyncio.sleep(1 / _OPENED_PER_SECOND)
        streams.looks["after"] = [await look()]
        if database is not None:
            stored = await database.fetchval("SELECT count(*) FROM responses WHERE status = 'completed'") - before
            if stored != many + 1:
                raise SystemExit(f"bench: {stored} responses are stored")
        return streams.looks
    finally:
        await gateway.stop()
        if database is not None:
            await database.close()


def _told(looks: Sequence[Look]) -> str:
    counted = [each.connections for each in looks if each.connections is not None]
    memory = f"{max(each.memory for each in looks):.0f} MiB"
    return f"{max(counted)}; {memory}" if counted else f"-; {memory}"


async def _run(given: argparse.Namespace) -> None:
    phases = ("before", "opening", "open", "ending", "after")
    with tempfile.TemporaryDirectory(prefix="antiphon-bench-") as folder:
        upstream = await Process.start(Path(folder, "upstream.log"), sys.executable, "-m", "lab.bench.upstream")
        try:
            async with places() as found:
                print(f"| connections at most; memory at most, {given.streams:,} streams | {' | '.join(phases)} |")
                print(f"| --- |{' --- |' * len(phases)}")
                for place in found:
                    began = time.perf_counter()
                    url = f"http://127.0.0.1:{upstream.ready}/v1"
                    looks = await _measure(place, url, given.streams, given.seconds)
                    cells = [_told(looks[phase]) if phase in looks else "" for phase in phases]
                    print(f"| {place.name} | {' | '.join(cells)} |", flush=True)
                    print(f"{place.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        finally:
            await upstream.stop()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench streams", description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=2000, help="open at the same time (default 2000)")
    parser.add_argument("--seconds", type=int, default=30, help="length of a stream; one piece of text a second")
    given = parser.parse_args()
    # A stream has a descriptor here, two in the server and one in the model server; they inherit the limit.
    wanted = 1000 + 3 * given.streams
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    uvloop.run(_run(given))


if __name__ == "__main__":
    main()
