"""Kills the primary and promotes its standby under load, several times, and checks that no acknowledged turn is lost.

Lives here: the rounds, the clients' view of each, and the verdict. Not here: the servers (`standby.py`), the
conversations (`talks.py`).

A round has these steps: `kill -9` of the primary, `pg_ctl promote` of the standby, and the clients' switch to the new
primary. The old primary comes back fenced (read-only, with its old data). Then it becomes the new standby. With
`behind` the replication is asynchronous, and the standby is stopped for that many turns before the kill. Such a
failover loses the turns that were acknowledged meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lab.scale.replicas import Replicas
from lab.scale.report import Report, milliseconds
from lab.scale.standby import Pair, way_to
from lab.scale.talks import Talks

_WAITS = 120.0
_LENGTH = 10
_ENOUGH = 1_000_000
"""A number of turns that no run reaches."""


@dataclass
class Run:
    """The parameters of a run. `between`: the acknowledged turns before each round and after the last round."""

    way: str
    rounds: int
    between: int
    clients: int
    chance: random.Random
    behind: int = 0
    changes: list[tuple[float, float]] = field(default_factory=list)
    """For each round: the times of the kill and of the switch to the new primary (by `time.monotonic`)."""


async def failover(run: Run, pair: Pair, replicas: Replicas, lead: Callable[[], None]) -> Report:
    """Run all rounds. Returns their report."""
    talks = Talks(replicas, _ENOUGH, _LENGTH, run.clients, run.chance, what="")
    began = time.monotonic()
    load = asyncio.create_task(talks.all())
    try:
        await _acknowledged(talks, run.between, load)
        for _ in range(run.rounds):
            await _round(run, pair, talks, lead, load)
    finally:
        talks.stopping = True
        await asyncio.wait({load})
    took = time.monotonic() - began
    await load
    await talks.check()
    return _report(run, talks, took, replicas)


async def _round(run: Run, pair: Pair, talks: Talks, lead: Callable[[], None], load: asyncio.Task[None]) -> None:
    if run.behind:
        await asyncio.to_thread(pair.standby.stop)
        await _acknowledged(talks, run.behind, load)
    killed = time.monotonic()
    await asyncio.to_thread(pair.primary.kill)
    if run.behind:
        await asyncio.to_thread(pair.standby.start)
    await pair.change()
    lead()
    run.changes.append((killed, time.monotonic()))
    await asyncio.to_thread(pair.standby.come_back_fenced)
    await _acknowledged(talks, run.between, load)
    await asyncio.to_thread(pair.standby.stop)
    await pair.rejoin()
    await _acknowledged(talks, run.between, load)


async def _acknowledged(talks: Talks, more: int, load: asyncio.Task[None]) -> None:
    """Wait for `more` further acknowledged turns."""
    wanted, end = talks.acknowledged + more, time.monotonic() + _WAITS
    while talks.acknowledged < wanted:
        if time.monotonic() > end or load.done():
            raise AssertionError(f"no {more} turns within {_WAITS:g} s: {talks.seen.wrong[:3]}")
        await asyncio.sleep(0.02)


def _report(run: Run, talks: Talks, took: float, replicas: Replicas) -> Report:
    seen = talks.seen
    mode = f"asynchronous, {run.behind} turns behind" if run.behind else "synchronous"
    title = f"The primary is killed, its standby promoted ({run.way}, {mode}, {len(replicas)} replicas)"
    report = Report(title, ("acknowledged turns", str(talks.acknowledged)))
    ends = sorted(end for _, end in seen.at)
    promoted = [led - killed for killed, led in run.changes]
    # Turns that were stored before the kill may still be acknowledged while no server accepts writes.
    again = [min(end for end in ends if end > led) - led for _, led in run.changes]
    report.row("failovers", len(run.changes))
    report.row("turns a second", talks.acknowledged / took)
    report.row("requests that failed, and were made again", seen.attempts - talks.acknowledged)
    report.row("from the kill to the new primary, median / longest", _seconds(promoted))
    report.row("served again after that, median / longest", _seconds(again))
    report.row("a turn with all its attempts, p50 / p99 / longest", milliseconds(seen.lasted))
    report.row("acknowledged turns lost", seen.gone)
    report.row("doubled in a conversation", seen.doubled)
    report.row("hung", seen.hung)
    report.wrong += replicas.failed
    if not run.behind:
        report.wrong += seen.wrong
    elif seen.hung or seen.doubled:
        report.wrong.append(f"{seen.hung} hung, {seen.doubled} doubled")
    return report


def _seconds(values: list[float]) -> str:
    ranked = sorted(values)
    return f"{ranked[len(ranked) // 2]:.2f} / {ranked[-1]:.2f} s"


@asynccontextmanager
async def pair_of(run: Run) -> AsyncIterator[tuple[Pair, str, Callable[[], None]]]:
    """The servers of a run, the URL through which clients reach them, and the function that switches to the new
    primary."""
    pair = await asyncio.to_thread(Pair, synchronous=not run.behind)
    try:
        await pair.start()
        async with way_to(pair, run.way) as (url, lead):
            yield pair, url, lead
    finally:
        await asyncio.to_thread(pair.close)
