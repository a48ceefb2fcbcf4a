"""The keys in the memory of one process: what it accepts after a change, and without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.engine.ports.callers import Caller
from antiphon.engine.running.client_keys import KeyRing
from antiphon.errors import StoreError, Unavailable
from antiphon.stores.client_keys import ClientKeyStore, ValidKeys
from tests.support.waiting import until

FIXED, STORED = Caller("n:fixed"), Caller("n:stored")


class Scripted(ClientKeyStore):
    """A store whose rows a test sets. `fails` makes every query fail, `hangs` lets it wait for ever."""

    def __init__(self) -> None:
        self.callers: dict[bytes, Caller] = {}
        self.expires_at: int | None = None
        self.number = self.date = self.loads = 0
        self.fails = self.hangs = False

    def change(self, callers: dict[bytes, Caller], expires_at: int | None = None) -> None:
        self.callers, self.expires_at = callers, expires_at
        self.number += 1

    async def state(self) -> tuple[int, int]:
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            raise StoreError("The database is unreachable.")
        return self.number, self.date

    async def valid(self) -> ValidKeys:
        self.loads += 1
        return ValidKeys(dict(self.callers), self.expires_at)


@asynccontextmanager
async def opened(store: Scripted, *, stale: float = 60.0, poll: float = 0.001) -> AsyncIterator[KeyRing]:
    ring = KeyRing(store, {b"fixed": FIXED}, stale=stale, poll=poll)
    await ring.open()
    try:
        yield ring
    finally:
        await ring.aclose()


async def test_keys_of_the_settings_and_stored_ones_are_accepted() -> None:
    store = Scripted()
    store.change({b"stored": STORED, b"fixed": STORED})
    async with opened(store) as ring:
        assert (ring.get(b"fixed"), ring.get(b"stored"), ring.get(b"other")) == (FIXED, STORED, None)


async def test_a_change_is_found_and_keys_are_read_only_after_one() -> None:
    store = Scripted()
    async with opened(store, poll=3600) as ring:
        assert (ring.get(b"stored"), store.loads) == (None, 1)
        await ring.refresh()
        assert store.loads == 1
        store.change({b"stored": STORED})
        await ring.refresh()
        assert (ring.get(b"stored"), store.loads) == (STORED, 2)
        store.change({})
        await ring.refresh()
        assert (ring.get(b"stored"), store.loads) == (None, 3)


async def test_keys_are_read_again_when_one_expires() -> None:
    store = Scripted()
    store.change({b"stored": STORED}, expires_at=500)
    async with opened(store, poll=3600) as ring:
        store.date = 499
        await ring.refresh()
        assert (ring.get(b"stored"), store.loads) == (STORED, 1)
        store.date, store.callers, store.expires_at = 500, {}, None
        await ring.refresh()
        assert (ring.get(b"stored"), store.loads) == (None, 2)


async def test_a_change_during_a_read_is_found_by_the_next_one() -> None:
    store = Scripted()

    class Slow(Scripted):
        async def valid(self) -> ValidKeys:
            found = await super().valid()
            if self.loads == 1:
                self.change({b"stored": STORED})
            return found

    store = Slow()
    async with opened(store, poll=3600) as ring:
        assert ring.get(b"stored") is None
        await ring.refresh()
        assert ring.get(b"stored") == STORED


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_stored_keys_are_valid_for_a_while_without_a_database(how: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Scripted()
    store.change({b"stored": STORED})
    async with opened(store, stale=0.05) as ring:
        setattr(store, how, True)
        assert ring.get(b"stored") == STORED
        with pytest.raises(Unavailable) as refused:
            async with asyncio.timeout(60):
                while ring.get(b"stored"):
                    await asyncio.sleep(0.001)
        assert refused.value.code == "keys_unavailable" and ("retry-after", "1") in refused.value.headers
        # It cannot tell an unknown key from a stored one, and needs no database for those of the settings.
        with pytest.raises(Unavailable):
            ring.get(b"other")
        assert ring.get(b"fixed") == FIXED
        setattr(store, how, False)

        def is_back() -> bool:
            try:
                return ring.get(b"stored") == STORED
            except Unavailable:
                return False

        await until(is_back)
        assert ring.get(b"other") is None


async def test_a_ring_does_not_open_without_its_keys() -> None:
    store = Scripted()
    store.fails = True
    ring = KeyRing(store, {}, stale=60.0)
    with pytest.raises(StoreError):
        await ring.open()
    await ring.aclose()
