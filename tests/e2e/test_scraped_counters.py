"""The counters of `antiphon up --workers 3` at `metrics.listen`, scraped without a pause by two scrapers while workers
are killed, stand still and are replaced: no series ever goes backwards or away.

With `-s` the test says how much it has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import aiohttp
import pytest

from antiphon.supervisor.http_probe import ask
from tests.support.chat_server import ChatServer
from tests.support.counters import Watcher
from tests.support.gateway import Gateway, post, start_gateway
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]

SECONDS = 90.0
SCRAPE_SECONDS = 10.0
"""How long Prometheus waits where nobody told it otherwise."""
WORKERS = 3
CLIENTS = 4
ASK = {"model": "m", "input": "hi"}
ARGUMENTS = {"relay": ("--mode", "relay"), "http": ("--door", "http")}
ENVIRON = {
    "ANTIPHON_METRICS__LISTEN": "127.0.0.1:0",
    # Nobody but the test ends a worker that it made stand still.
    "ANTIPHON_TIMEOUTS__HUNG": "120",
    "ANTIPHON_PRICES": json.dumps([{"model": "*", "input": 0.1, "output": 0.7}]),
}


class Run:
    """A gateway, who scrapes it and who asks it."""

    def __init__(self, gateway: Gateway, url: str) -> None:
        self.gateway = gateway
        self.url = url
        self.scrapers = [Watcher(), Watcher()]
        self.sent = self.answered = self.kills = 0
        self.over = False

    async def scrape(self, watcher: Watcher) -> None:
        async with asyncio.timeout(SCRAPE_SECONDS), aiohttp.ClientSession() as session, session.get(self.url) as got:
            assert got.status == 200
            watcher.see(await got.text())

    def clients(self) -> list[Coroutine[None, None, None]]:
        return [self.ask_on() for _ in range(CLIENTS)]

    async def scrape_on(self, watcher: Watcher) -> None:
        while not self.over:
            await self.scrape(watcher)

    async def ask_on(self) -> None:
        """Requests of several kinds; what a worker's end does to them is no matter here."""
        for turn in itertools.count():
            if self.over:
                return
            self.sent += 1
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                made = await post(self.gateway.base_url + "/responses", {**ASK, "stream": turn % 2 == 0})
                self.answered += made.status == 200 and not made.cut

    @contextlib.asynccontextmanager
    async def busy(self, *work: Coroutine[None, None, None]) -> AsyncIterator[None]:
        """While clients ask, or scrapers scrape: what goes wrong there fails the test, and all end what they began."""
        self.over = False
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
            yield
            self.over = True

    async def scraped(self, more: int = 3) -> None:
        """Wait until each scraper has seen so many more."""
        wanted = [one.scrapes + more for one in self.scrapers]
        await until(
            lambda: all(one.scrapes >= least for one, least in zip(self.scrapers, wanted, strict=True)), SECONDS
        )

    async def served(self, more: int = 20) -> None:
        wanted = self.answered + more
        await until(lambda: self.answered >= wanted, SECONDS)

    def workers(self) -> list[int]:
        parent = self.gateway.process.pid
        found = {}
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            with contextlib.suppress(OSError):
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        return [pid for pid, command in found.items() if " -m antiphon " in command and "guard.py" not in command]

    async def kill(self, pid: int) -> None:
        """And wait until another one serves in its place."""
        self.kills += 1
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid not in self.workers() and len(self.workers()) == WORKERS, SECONDS)
        async with asyncio.timeout(SECONDS):
            while not await self.all_answer():
                await asyncio.sleep(0.05)

    async def all_answer(self) -> bool:
        """Whether each worker does, at the port that only `antiphon up` asks."""
        ports = [*self.gateway.data.glob("run/*/*/*http-*.sock"), *self.gateway.data.glob("run/*/*/*-*.http.sock")]
        answers = await asyncio.gather(*(ask(f"unix:{port}", "/health", SCRAPE_SECONDS) for port in ports))
        return len(answers) == WORKERS and None not in answers


async def _start(server: ChatServer, folder: Path, door: str) -> Run:
    arguments = (*ARGUMENTS[door], "--workers", str(WORKERS))
    gateway = await start_gateway(server.base_url, folder, *arguments, environ=ENVIRON)
    said = json.loads(await gateway.log_line('"metrics"'))
    return Run(gateway, f"http://{said['listen']}/metrics")


def _began(watcher: Watcher) -> float:
    return watcher.gauges["process_start_time_seconds", ()]


@pytest.mark.parametrize("door", ["relay", "http"])
async def test_scraped_counters_never_go_backwards(door: str, server: ChatServer, folder: Path) -> None:
    run = await _start(server, folder, door)
    assert await run.all_answer()
    first, second = run.scrapers

    async with run.busy(*run.clients(), *(run.scrape_on(one) for one in run.scrapers)):
        await run.served()
        await run.scraped()
        began = _began(first)

        # Workers die, each while it is asked for its numbers and serves.
        for pid in run.workers():
            await run.kill(pid)
            await run.served()
            await run.scraped()

        # One stands still: its numbers stay, and nobody who scrapes waits for it longer than Prometheus does.
        still = run.workers()[0]
        os.kill(still, signal.SIGSTOP)
        await run.scraped()
        os.kill(still, signal.SIGCONT)
        await run.served()
        await run.scraped()

        # One stands still, and dies of it.
        still = run.workers()[1]
        os.kill(still, signal.SIGSTOP)
        await run.scraped(2)
        await run.kill(still)
        await run.served()
        await run.scraped()

    # One dies and is replaced between two scrapes, while nobody asks: all that was counted is there, and once.
    async with run.busy(*run.clients()):
        await run.served()
    await run.scrape(first)
    while first.gauges["antiphon_responses_in_flight", ()]:
        await run.scrape(first)
    before = first.total("responses_total")
    await run.kill(run.workers()[2])
    await asyncio.gather(*(run.scrape(one) for one in run.scrapers))
    assert [one.total("responses_total") for one in run.scrapers] == [before, before]
    # Envoy gives a request to another worker when the one that has it stands still. Once that goes on, it counts too.
    assert first.total("response_duration_seconds_count") == before <= run.sent + CLIENTS
    assert first.total("antiphon_cost_total") > 0
    assert first.total("antiphon_process_restarts_total", cause="died") == run.kills
    # To Prometheus it is one process that never ended.
    assert _began(first) == _began(second) == began

    assert await run.gateway.stop() == 0, "\n".join(run.gateway.log[-20:])
    print(
        f"{door}: {first.scrapes} + {second.scrapes} scrapes of {len(first.counters)} series by two scrapers, "
        f"{run.kills} workers killed, {run.answered} of {run.sent} requests answered, {before:.0f} counted"
    )

    # Another `antiphon up` counts anew, all series together, and says since when.
    again = await _start(server, folder, door)
    await again.scrape(again.scrapers[0])
    assert again.scrapers[0].total("responses_total") == 0 and _began(again.scrapers[0]) > began
    assert await again.gateway.stop() == 0, "\n".join(again.gateway.log[-20:])
