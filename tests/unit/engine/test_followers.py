"""Following a background response's stream: what comes in silence."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

from antiphon.engine.ports.jobs import Pace
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.translation.events.encode import KEEPALIVE
from tests.contracts.job_contract import MOST, queued
from tests.contracts.store_contract import ALICE
from tests.support.memory_jobs import MemoryJobStore
from tests.support.memory_signals import MemorySignals
from tests.support.memory_store import MemoryResponseStore


async def test_comments_are_as_far_apart_as_is_set_however_often_it_looks() -> None:
    jobs = MemoryJobStore(MemoryResponseStore())
    await jobs.enqueue(queued("a"), b"{}", None, limit=MOST)
    times: list[float] = []
    followed = Followers(
        jobs, SignalWatcher(MemorySignals(jobs, Pace(0.002, 1.0, 1.0))), keepalive=0.1, look=0.002
    ).follow(ALICE, "resp_a")
    async with asyncio.timeout(30), aclosing(followed) as sent:
        async for piece in sent:
            assert piece == KEEPALIVE
            times.append(asyncio.get_running_loop().time())
            if len(times) == 5:
                break
    assert all(later - earlier >= 0.1 for earlier, later in pairwise(times))
