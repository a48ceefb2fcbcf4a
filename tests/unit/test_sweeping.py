"""Sweeping beside requests: one process of several does it, and a failure ends nothing."""

from __future__ import annotations

import asyncio

from antiphon.app.sweeping import Sweeper
from antiphon.errors import StoreError


class _Store:
    """What two processes share: whose turn it is, and how often it was swept."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.asked = 0
        self.swept: list[str] = []
        self.changed = asyncio.Event()

    async def take_turn(self, what: str, seconds: float) -> bool:
        self.asked += 1
        self.changed.set()
        if what in self.taken:
            return False
        self.taken.add(what)
        return True

    async def until_asked(self, times: int) -> None:
        while self.asked < times:
            self.changed.clear()
            await self.changed.wait()


async def test_one_of_two_processes_sweeps() -> None:
    store = _Store()

    def sweeper(name: str) -> Sweeper:
        async def sweep() -> tuple[int, ...]:
            store.swept.append(name)
            return (1,)

        return Sweeper("files", sweep, 3600.0, store.take_turn)

    first, second = sweeper("first"), sweeper("second")
    first.start()
    second.start()
    async with asyncio.timeout(10):
        await store.until_asked(2)
    # The one that was refused would sweep in the same step of the loop.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await first.aclose()
    await second.aclose()
    assert store.swept == ["first"]


async def test_a_failed_sweep_is_tried_again() -> None:
    done = asyncio.Event()
    tries = 0

    async def sweep() -> tuple[int, ...]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreError("not now")
        done.set()
        return ()

    sweeper = Sweeper("files", sweep, 0.0)
    sweeper.start()
    async with asyncio.timeout(10):
        await done.wait()
    await sweeper.aclose()
