"""Starts what the check of the console needs: gateways with the data of two owners, a database, the demo's servers.

Lives here: the processes of a run, and the paths of all views. Not here: the course of the check (`run.py`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from lab.console import traffic
from lab.console.traffic import Client, Made
from tests.support.gateway import Gateway, start_gateway
from tests.support.postgres import PostgresServer

ADMIN = "the-token-of-the-operators-0123456789"
KEYS = {"anna": "ant_key-of-anna-0123456789", "bo": "ant_key-of-bo-0123456789"}


@dataclass
class Place:
    """A running gateway with a console and data of two owners."""

    gateway: Gateway
    origin: str
    anna: Made
    bo: Made
    session: aiohttp.ClientSession

    def client(self, made: Made) -> Client:
        return Client(self.session, self.gateway.base_url, made.key)


@asynccontextmanager
async def place(folder: Path, upstream: str, trains: str, state: str, door: str, replicas: int) -> AsyncIterator[Place]:
    """Start the gateways on one state, and send the traffic of both owners to the first. The browser reaches the
    console of the last one. `trains` is the URL of an MCP server."""
    environ = {
        "ANTIPHON_ADMIN__TOKEN": ADMIN,
        "ANTIPHON_CONSOLE__RECORD": "all",
        "ANTIPHON_CONSOLE__RECORD_UNSTORED": "true",
        "ANTIPHON_CONSOLE__LISTEN": "127.0.0.1:0",
        "ANTIPHON_OWNER__MANAGED_KEYS": "true",
    }
    if state:
        environ |= {
            "ANTIPHON_STATE__URL": state,
            "ANTIPHON_OWNER__KEY": "o" * 32,
            "ANTIPHON_SEALING__KEYS": '["sealing-key-of-the-check"]',
        }
    config = folder / "antiphon.yaml"
    named = "".join(f"    {name}: {{keys: [{key}], team: lab}}\n" for name, key in KEYS.items())
    config.write_text(
        "upstream: {auth: none}\nquotas: {each_owner: {requests_per_minute: 100000}}\n"
        f'mcp: {{connectors: {{trains: {{url: "{trains}"}}}}}}\nowner:\n  keys:\n' + named
    )
    flags = ("--console", "--console-act", "--door", door, "--config", str(config), "--workers", "2")
    gateways: list[Gateway] = []
    try:
        for number in range(replicas):
            gateways.append(await start_gateway(upstream, folder / f"data{number}", *flags, environ=environ))
        first, last = gateways[0], gateways[-1]
        line = await last.log_line("/console")
        origin = "http://" + line.partition("http://")[2].partition("/")[0]
        async with aiohttp.ClientSession() as session:
            made = await asyncio.gather(
                *[
                    traffic.make(Client(session, first.base_url, key), name, key, f"MARK-{name.upper()}")
                    for name, key in KEYS.items()
                ]
            )
            yield Place(first, origin, made[0], made[1], session)
    finally:
        for gateway in gateways:
            await gateway.stop()


def views_of(made: Made) -> dict[str, str]:
    """The paths of every view of one owner, by name."""
    return {
        "live": "/live",
        "requests": "/requests",
        "failed": "/requests?failed=1",
        "search": f"/requests?text={made.mark}",
        "request": f"/requests/{made.responses[0]}",
        "streamed": f"/requests/{made.responses[3]}",
        "threads": "/threads",
        "chain": f"/threads/{made.responses[1]}",
        "conversation": f"/threads/{made.conversation}",
        "playground": "/playground",
        "again": f"/playground?request={made.responses[3]}",
        "background": "/background",
        "prompt-cache": "/prompt-cache",
        "files": "/files",
        "vector-stores": "/vector-stores",
        "store": f"/vector-stores/{made.store}",
        "prompts": "/prompts",
        "prompt": f"/prompts/{made.prompt}",
        "models": "/models",
        "system": "/system",
    }


@asynccontextmanager
async def database(wanted: bool) -> AsyncIterator[str]:
    """The URL of a new database on a PostgreSQL server of its run; empty if SQLite is wanted."""
    if not wanted:
        yield ""
        return
    running = PostgresServer()
    try:
        yield await running.new_database()
    finally:
        running.close()


@asynccontextmanager
async def server(*command: str) -> AsyncIterator[str]:
    """A server that this Python runs, such as the scripted model server. Yields its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ},
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        yield "http://" + line.split("http://")[1].split()[0]
    finally:
        process.terminate()
        await process.wait()
