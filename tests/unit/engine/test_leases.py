"""Leases: renewed while they are held, by one task that ends with the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.running.held_keys import HeldKeys
from antiphon.engine.running.leases import Leases
from antiphon.errors import StoreError


class Store:
    """Remembers what it was asked to renew; `lost` is held no longer."""

    def __init__(self) -> None:
        self.renewed: list[tuple[set[str], float]] = []
        self.lost: set[str] = set()
        self.fails = False
        self.at_work: asyncio.Event | None = None

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        self.renewed.append((set(holders), seconds))
        if self.at_work is not None:
            await self.at_work.wait()
        if self.fails:
            raise StoreError("not now")
        return frozenset(holders) - self.lost


class Time:
    """Sleeping ends when a test says so."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self._over.wait()
        self._over.clear()

    async def pass_by(self) -> None:
        self._over.set()
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def leases(time: Time) -> AsyncIterator[Leases]:
    leases = Leases(30.0, time.sleep)
    yield leases
    await leases.aclose()


async def test_what_is_held_is_renewed_in_one_go(leases: Leases, time: Time) -> None:
    store, other = Store(), Store()
    leases.hold(store, "resp_1")
    leases.hold(store, "resp_2")
    leases.hold(other, "resp_3")
    await time.pass_by()
    await time.pass_by()
    assert time.asked[0] == 10.0
    assert store.renewed == [({"resp_1", "resp_2"}, 30.0)] * 2
    assert other.renewed == [({"resp_3"}, 30.0)] * 2


async def test_what_was_dropped_is_not_renewed(leases: Leases, time: Time) -> None:
    store = Store()
    leases.hold(store, "resp_1")
    leases.hold(store, "resp_2")
    leases.drop(store, "resp_1")
    leases.drop(store, "resp_none")
    await time.pass_by()
    assert store.renewed == [({"resp_2"}, 30.0)]


async def test_the_task_ends_with_the_last_lease_and_begins_again(leases: Leases, time: Time) -> None:
    store = Store()
    before = asyncio.all_tasks()
    for _ in range(2):
        leases.hold(store, "resp_1")
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks() - before) == 1
        leases.drop(store, "resp_1")
        await asyncio.sleep(0)
        assert asyncio.all_tasks() - before == set()
    assert store.renewed == []
    leases.hold(store, "resp_2")
    await asyncio.sleep(0)
    await time.pass_by()
    assert store.renewed == [({"resp_2"}, 30.0)]


async def test_what_was_lost_is_forgotten(leases: Leases, time: Time) -> None:
    store = Store()
    leases.hold(store, "resp_1")
    leases.hold(store, "resp_2")
    store.lost = {"resp_1"}
    await time.pass_by()
    await time.pass_by()
    assert [holders for holders, _ in store.renewed] == [{"resp_1", "resp_2"}, {"resp_2"}]


async def test_what_is_taken_while_the_store_renews_is_renewed_the_next_time(leases: Leases, time: Time) -> None:
    store = Store()
    store.at_work = asyncio.Event()
    store.lost = {"resp_1"}
    leases.hold(store, "resp_1")
    leases.hold(store, "resp_2")
    await time.pass_by()
    leases.hold(store, "resp_3")
    # Given back and taken again: what the store will say of the first one is not true of this one.
    leases.drop(store, "resp_1")
    leases.hold(store, "resp_1")
    store.at_work.set()
    for _ in range(5):
        await asyncio.sleep(0)
    await time.pass_by()
    assert [holders for holders, _ in store.renewed] == [{"resp_1", "resp_2"}, {"resp_1", "resp_2", "resp_3"}]


async def test_a_store_that_fails_is_asked_again(leases: Leases, time: Time) -> None:
    store = Store()
    leases.hold(store, "resp_1")
    store.fails = True
    await time.pass_by()
    store.fails = False
    await time.pass_by()
    assert [holders for holders, _ in store.renewed] == [{"resp_1"}, {"resp_1"}]


async def test_closing_ends_everything(time: Time) -> None:
    leases = Leases(30.0, time.sleep)
    before = asyncio.all_tasks()
    leases.hold(Store(), "resp_1")
    await leases.aclose()
    await leases.aclose()
    assert asyncio.all_tasks() == before


class Keys(Store):
    """Keys that nobody else holds."""

    async def claim(self, once: OnceOnly, object_id: str, seconds: float) -> str | None:
        return None

    async def made(self, once: OnceOnly) -> str | None:
        return None

    async def release(self, once: OnceOnly, object_id: str) -> None: ...


async def test_a_key_is_renewed_until_its_response_is_stored_or_will_not_be(leases: Leases, time: Time) -> None:
    store = Keys()
    keys = HeldKeys(store, leases)
    for number in range(3):
        assert await keys.claim(OnceOnly("owner", f"key_{number}", "f"), f"resp_{number}") is None
    await time.pass_by()
    keys.kept("resp_0")
    await keys.release("resp_1")
    await time.pass_by()
    assert [holders for holders, _ in store.renewed] == [{"resp_0", "resp_1", "resp_2"}, {"resp_2"}]
