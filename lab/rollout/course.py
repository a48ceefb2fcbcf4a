"""Runs a rollout: clients send requests the whole time, while the replicas are replaced.

Lives here: starting the clients, the order of replacements and builds, and the result. Not here: clients
(`clients.py`), processes (`replicas.py`), the report (`report.py`).

Each replica gets SIGTERM. After its process has ended, a new process replaces it. The next replica follows when the
load balancer sends requests to the new process.

Invariant: a rollout ends by itself and stops everything that it started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from lab.rollout.builds import HERE, Build
from lab.rollout.clients import Clients, Seen
from lab.rollout.replicas import Mode, Plan, Restart, Service

_LONG = "background, longer than a drain"
_PATIENCE = 120.0
# A response that takes longer than a drain may be rerun several times.
_MOVES = 4


@dataclass
class Load:
    """The number of clients of each kind. `seconds` is the duration of a stream, and `pause` the time between two
    words. `long` clients follow responses of `long_seconds`, which exceed every drain."""

    streams: int
    others: int
    seconds: float
    pause: float = 0.5
    long: int = 0
    long_seconds: float = 0.0


@dataclass
class Result:
    """The result of one rollout. `notes` are other observations, and `wrong` the failures."""

    mode: Mode
    seen: dict[str, Seen] = field(default_factory=dict)
    restarts: list[Restart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether no client noticed the rollout, and every process ended without an error."""
        clean = not self.wrong and not any(seen.failed or seen.cut for seen in self.seen.values())
        return clean and all(seen.asked for seen in self.seen.values()) and not any(one.status for one in self.restarts)


Course = Callable[[Service, Result, float], Awaitable[None]]
"""A function that replaces replicas. The float is the pause in seconds after each replacement."""


async def restart_all(service: Service, result: Result, rest: float) -> None:
    """Restart each replica once with the same build."""
    for number in range(service.aside):
        await _replace(service, result, number, HERE, rest)


def upgrade(old: Build, first: Build, second: Build) -> Course:
    """Upgrade from the old build to a build whose schema adds, and from there to a build whose schema removes.

    In the middle of each rollout the previous build starts again, twice: once in a replica's position, and once outside
    the load balancer. For the second start the run first kills a process that runs background responses.
    """

    async def course(service: Service, result: Result, rest: float) -> None:
        await service.start_replica(service.aside, old)
        for before, after in ((old, first), (first, second)):
            await _replace(service, result, 0, after, rest)
            await _killed(service, result, before, f"{after.name} serves")
            await _replace(service, result, service.aside - 1, before, rest)
            for number in range(1, service.aside):
                await _replace(service, result, number, after, rest)
            await _killed(service, result, after, "all are replaced")
        await service.kill(service.aside)
        said = await service.refused(old)
        if "newer" not in said:
            result.wrong.append(f"{old.name} was not refused after the contract: {said or 'it started'}")
        result.notes.append(f"{old.name}, started after the contract: {said}")

    return course


async def roll(
    plan: Plan,
    load: Load,
    upstream: str,
    folder: Path,
    *,
    warm: float,
    rest: float,
    course: Course = restart_all,
    build: Build = HERE,
) -> Result:
    """Run one rollout under load, starting with this build. `warm`: seconds of load before the rollout. `rest`: the
    pause after each replica."""
    folder.mkdir(parents=True, exist_ok=True)
    service, result = Service(plan, upstream, folder, build), Result(plan.mode)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        await service.start()
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
            words, long_words = (round(seconds / load.pause) for seconds in (load.seconds, load.long_seconds))
            patience = _PATIENCE + _MOVES * load.long_seconds
            clients = Clients(service.url, words, long_words, session, patience, seen=result.seen)
            running = [
                *(("streams", clients.stream) for _ in range(load.streams)),
                *(("CRUD", clients.crud) for _ in range(load.others)),
                *(("uploads", clients.upload) for _ in range(load.others)),
                *(("background, followed", clients.follow) for _ in range(load.others)),
                *(("WebSockets", clients.websocket) for _ in range(load.others)),
                *((_LONG, clients.follow_long) for _ in range(load.long)),
            ]
            tasks = [asyncio.create_task(clients.run(kind, client)) for kind, client in running]
            try:
                await asyncio.sleep(warm)
                await course(service, result, rest)
                clients.stopping = True
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await service.stop()
    return result


async def _replace(service: Service, result: Result, number: int, build: Build, rest: float) -> None:
    result.restarts.append(await service.restart(number, build))
    # The pause varies, so that the restarts do not always fall on the same moment between two health checks.
    await asyncio.sleep(rest + 0.37 * number)


async def _killed(service: Service, result: Result, build: Build, when: str) -> None:
    """Kill the replica outside the load balancer, and start this build in its position. Raises if the start fails."""
    await service.kill(service.aside)
    await service.start_replica(service.aside, build)
    result.notes.append(f"killed beside the balancer, started again as {build.name} while {when}: it is ready")
