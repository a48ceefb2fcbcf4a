"""The clients of `scripts/lab kubernetes`, in a separate pod; at the end they print their observations as one line of
JSON.

Lives here: the set of clients, and when they stop. Not here: the requests and checks of each client
(`lab/rollout/clients.py`, from the same ConfigMap), the changes to the pods.

Invariant: the program needs only aiohttp and the standard library. The program ends by itself after its stop file
exists.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path

import aiohttp

from lab.rollout.clients import Clients, Seen

STOP = Path("/tmp/stop")
_POLL = 0.1
_RETRY_AFTER = 1.0
_PATIENCE = 10.0


async def _patient(clients: Clients, seen: Seen) -> None:
    """Run a client that repeats a failed or unanswered request until it succeeds. The time since its first attempt is a
    gap."""
    failed = 0.0
    while True:
        body = {"model": "demo", "input": "count to 2"}
        begun = time.monotonic()
        try:
            async with (
                asyncio.timeout(_PATIENCE),
                clients.session.post(f"{clients.url}/v1/responses", json=body) as got,
            ):
                text = await got.text()
                if got.status == 200:
                    break
                seen.cut.append(f"{got.status} {text}"[:200])
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            seen.cut.append(f"{type(error).__name__}: {error}"[:200])
        failed = failed or begun
        seen.asked += 1
        await asyncio.sleep(_POLL)
    if failed:
        seen.gaps.append(time.monotonic() - failed)
    await asyncio.sleep(_POLL)


async def _stream(clients: Clients, seen: Seen) -> None:
    """Request a stream. If the server refuses the stream, wait for `retry-after` and repeat the request."""
    try:
        await clients.stream(seen)
    except Exception:
        await asyncio.sleep(_RETRY_AFTER)
        raise


async def _main(given: argparse.Namespace) -> None:
    headers = {"authorization": "Bearer load"}
    connector = aiohttp.TCPConnector(limit=0)
    no_end = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=no_end, headers=headers) as session:
        clients = Clients(given.url, given.words, given.long, session, patience=300.0)
        long = Clients(given.url, given.long, given.long, session, patience=300.0, seen=clients.seen)
        fifth = given.streams // 5
        running = [
            *(clients.run("streams", lambda seen: _stream(clients, seen)) for _ in range(given.streams - fifth)),
            *(long.run("long streams", lambda seen: _stream(long, seen)) for _ in range(fifth)),
            *(clients.run("CRUD", clients.crud) for _ in range(given.others)),
            *(clients.run("background, followed", clients.follow) for _ in range(given.others)),
            *(clients.run("WebSockets", clients.websocket) for _ in range(given.sockets)),
            *(clients.run("asked again", lambda seen: _patient(clients, seen)) for _ in range(given.patient)),
        ]
        tasks = [asyncio.ensure_future(one) for one in running]
        print("running", flush=True)
        while not STOP.exists():
            await asyncio.sleep(_POLL)
        clients.stopping = long.stopping = True
        await asyncio.gather(*tasks)
    print(json.dumps({kind: asdict(seen) for kind, seen in clients.seen.items()}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    for name in ("streams", "others", "sockets", "patient", "words", "long"):
        parser.add_argument(f"--{name}", type=int, default=0)
    asyncio.run(_main(parser.parse_args()))
