"""Kills replicas and the state's server while clients use them.

Lives here: the kills, at random times, for as long as a run requests. Not here: the killed processes (`replicas.py`,
`states.py`), the checks (the runs).

Invariant: when the context ends, every process that served before serves again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lab.scale.replicas import Replicas
from lab.scale.states import State

_DOWN_SECONDS = 1.0


@dataclass
class Killed:
    """The number of kills of replicas and of the state's server."""

    replicas: int = 0
    states: int = 0


@asynccontextmanager
async def chaos(
    replicas: Replicas, state: State, chance: random.Random, *, replica_every: float, state_every: float = 0.0
) -> AsyncIterator[Killed]:
    """Kill a replica every `replica_every` seconds, and the state's server every `state_every` seconds, while the
    context lasts. The server is back after one second. 0 means never."""
    killed = Killed()
    tasks = [asyncio.create_task(_replicas(replicas, chance, replica_every, killed))] if replica_every else []
    stop = asyncio.Event()
    if state_every and state.server is not None:
        tasks.append(asyncio.create_task(_server(state, chance, state_every, killed, stop)))
    try:
        yield killed
    finally:
        stop.set()
        if replica_every:
            tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await replicas.all_up()


async def _replicas(replicas: Replicas, chance: random.Random, every: float, killed: Killed) -> None:
    while True:
        await asyncio.sleep(every * (0.5 + chance.random()))
        killed.replicas += await replicas.kill_one(chance)


async def _server(state: State, chance: random.Random, every: float, killed: Killed, stop: asyncio.Event) -> None:
    assert state.server is not None
    while True:
        try:
            await asyncio.wait_for(stop.wait(), every * (0.5 + chance.random()))
            return
        except TimeoutError:
            # Wait until the server is up again. Otherwise it would stay down after the run.
            await asyncio.to_thread(state.server.kill)
            killed.states += 1
            await asyncio.sleep(_DOWN_SECONDS)
            await asyncio.to_thread(state.server.start)
