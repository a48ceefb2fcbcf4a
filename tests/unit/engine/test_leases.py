"""Leases: renewed while they are held, by one task that ends with the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.idempotency import in_progress
from antiphon.engine.running.idempotency import HeldKeys
from antiphon.errors import ApiError, StoreError
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.leases import Leases


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


async def test_what_is_taken_at_once_after_the_last_was_dropped_is_renewed(leases: Leases, time: Time) -> None:
    store = Store()
    leases.hold(store, "resp_1")
    await asyncio.sleep(0)
    leases.drop(store, "resp_1")
    leases.hold(store, "resp_2")
    await asyncio.sleep(0)
    await time.pass_by()
    assert store.renewed == [({"resp_2"}, 30.0)]


async def test_a_drop_of_what_nobody_holds_ends_no_renewal(leases: Leases, time: Time) -> None:
    store, other = Store(), Store()
    leases.hold(store, "resp_1")
    leases.drop(other, "resp_1")
    leases.hold(other, "resp_2")
    leases.drop(other, "resp_2")
    await time.pass_by()
    assert store.renewed == [({"resp_1"}, 30.0)] and other.renewed == []


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


class Keys(Store, IdempotencyStore):
    """Keys that nobody else holds, unless `claimed` says what becomes of a claim."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed: ApiError | str | None = None
        self.given_back: list[tuple[str, str]] = []
        self.claimed_calls_of: dict[str, bytes] = {}
        self.stayed: list[tuple[str, str]] = []
        self.unspent: list[tuple[str, str]] = []

    async def claim(self, once: OnceOnly, object_id: str, seconds: float) -> str | None:
        if isinstance(self.claimed, ApiError):
            raise self.claimed
        return self.claimed

    async def made(self, once: OnceOnly) -> str | None:
        return None

    async def sweep(self) -> tuple[int]:
        return (0,)

    async def stay(self, once: OnceOnly, object_id: str) -> None:
        self.stayed.append((once.key, object_id))

    async def spend(self, owner: str, requests: Collection[str], response_id: str) -> dict[str, str]:
        return {each: "resp_0" for each in requests if each == "used"}

    async def unspend(self, owner: str, response_id: str) -> None:
        self.unspent.append((owner, response_id))

    async def claim_calls(
        self, owner: str, response_id: str, record: bytes, seconds: float, *, by: str, once: OnceOnly | None = None
    ) -> bool:
        self.claimed_calls_of[response_id] = record
        return True

    async def claimed_calls(self, owner: str, response_id: str) -> bytes | None:
        return self.claimed_calls_of.get(response_id)

    async def left_calls(self) -> list[tuple[str, str]]:
        return [("owner", each) for each in self.claimed_calls_of]

    async def end_calls(self, owner: str, response_id: str) -> None:
        self.claimed_calls_of.pop(response_id, None)

    async def release(self, once: OnceOnly, object_id: str) -> None:
        self.given_back.append((once.key, object_id))
        if self.fails:
            raise StoreError("not now")


async def test_a_key_is_renewed_until_its_response_is_stored_or_will_not_be(leases: Leases, time: Time) -> None:
    store = Keys()
    keys = HeldKeys(store, leases)
    for number in range(3):
        assert await keys.claim(OnceOnly("owner", f"key_{number}", "f"), f"resp_{number}") is None
    await time.pass_by()
    keys.hand_to_store("resp_0")
    await keys.release("resp_1")
    await time.pass_by()
    assert [holders for holders, _ in store.renewed] == [{"resp_0", "resp_1", "resp_2"}, {"resp_2"}]


@pytest.mark.parametrize("claimed", [in_progress(), "resp_0"], ids=["another request has it", "it made something"])
async def test_a_key_that_was_not_got_is_neither_held_nor_renewed(
    leases: Leases, time: Time, claimed: ApiError | str
) -> None:
    store = Keys()
    store.claimed = claimed
    keys = HeldKeys(store, leases)
    once = OnceOnly("owner", "key", "f")
    if isinstance(claimed, str):
        assert await keys.claim(once, "resp_1") == claimed
    else:
        with pytest.raises(ApiError):
            await keys.claim(once, "resp_1")
    assert keys.of("resp_1") is None
    await time.pass_by()
    assert store.renewed == []


@pytest.mark.parametrize("fails", [False, True])
async def test_a_key_is_given_back_at_most_once_whatever_the_store_says(leases: Leases, fails: bool) -> None:
    store = Keys()
    keys = HeldKeys(store, leases)
    once = OnceOnly("owner", "key", "f")
    await keys.claim(once, "resp_1")
    assert keys.of("resp_1") == once
    store.fails = fails
    for _ in range(2):
        await keys.release("resp_1")
    await keys.release("resp_2")
    assert store.given_back == [("key", "resp_1")] and keys.of("resp_1") is None
    await keys.claim(once, "resp_1")
    keys.hand_to_store("resp_1")
    assert keys.of("resp_1") is None
    await keys.release("resp_1")
    assert store.given_back == [("key", "resp_1")], "it is the stored response's now"


@pytest.mark.parametrize("counts", [False, True])
async def test_what_a_response_holds_is_given_back_or_stays(leases: Leases, counts: bool) -> None:
    store = Keys()
    keys = HeldKeys(store, leases)
    await keys.claim(OnceOnly("owner", "key", "f"), "resp_1")
    assert await keys.use_approvals("owner", ("mcpr_1", "used"), "resp_1") == {"used": "resp_0"}
    assert await keys.use_approvals("owner", ("mcpr_2",), "resp_2") == {}
    assert keys.holds("resp_1") and keys.holds("resp_2") and not keys.holds("resp_3")
    for response_id in ("resp_1", "resp_2", "resp_3", "resp_1"):
        await keys.release(response_id, counts=counts)
    assert not keys.holds("resp_1") and not keys.holds("resp_2")
    key = [("key", "resp_1")]
    given = (store.stayed, store.given_back, store.unspent)
    assert given == ((key, [], []) if counts else ([], key, [("owner", "resp_1"), ("owner", "resp_2")]))
    await keys.use_approvals("owner", ("mcpr_3",), "resp_4")
    keys.hand_to_store("resp_4")
    assert not keys.holds("resp_4")


async def test_with_its_keys_closed_nothing_is_renewed(time: Time) -> None:
    store, before = Keys(), asyncio.all_tasks()
    keys = HeldKeys(store, Leases(30.0, time.sleep))
    await keys.claim(OnceOnly("owner", "key", "f"), "resp_1")
    await keys.aclose()
    assert asyncio.all_tasks() == before
