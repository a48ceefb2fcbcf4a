"""What every `ClientKeyStore` must do, on every state."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing

import pytest

from antiphon.engine.ports.callers import Access, Caller, ClientKey
from antiphon.engine.ports.state import PageQuery
from antiphon.errors import InvalidRequest
from antiphon.stores import Stores
from antiphon.stores.client_keys import ClientKeyStore
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.tables import PostgresTables
from tests.support.postgres import PATIENT

ACCESS = Access(("qwen*",), ("function",))


def _digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def _key(number: int, owner: str = "n:anna", access: Access = ACCESS) -> ClientKey:
    return ClientKey(f"key_{number}", f"laptop {number}", owner, "research", "ant_abcd", access, 0.0)


@pytest.fixture
def store(state: Stores) -> ClientKeyStore:
    return state.client_keys


async def test_a_created_key_is_found_by_the_digest_of_its_token(store: ClientKeyStore) -> None:
    assert (await store.valid()).callers == {}
    made = await store.create(_key(1), _digest(1), None)
    assert made is not None and made.created_at > 1e9 and made.expires_at is made.revoked_at is None
    assert await store.get("key_1") == made
    assert await store.list() == await store.list("n:anna") == [made]
    valid = await store.valid()
    assert valid.callers == {_digest(1): Caller("n:anna", "anna", "research", "key_1", ACCESS)}
    assert valid.expires_at is None
    assert await store.has(_digest(1)) and not await store.has(_digest(2))
    assert await store.owner_of(_digest(1)) == "n:anna" and await store.owner_of(_digest(2)) is None
    assert await store.get("key_2") is None and await store.list("n:bo") == []


async def test_each_change_has_a_number(store: ClientKeyStore) -> None:
    numbers = [(await store.state())[0]]
    await store.create(_key(1), _digest(1), None)
    numbers.append((await store.state())[0])
    await store.rotate("key_1", "key_2", "ant_efgh", _digest(2), lifetime=None, overlap=0.0)
    numbers.append((await store.state())[0])
    await store.revoke("key_2")
    numbers.append((await store.state())[0])
    assert len(set(numbers)) == 4
    # What changes nothing has none.
    assert not await store.revoke("key_2") and not await store.revoke("key_none")
    assert await store.rotate("key_2", "key_3", "ant_ijkl", _digest(3), lifetime=None, overlap=9.0) is None
    assert (await store.state())[0] == numbers[-1] and await store.get("key_3") is None


async def test_a_revoked_key_is_valid_no_more_and_stays_listed(store: ClientKeyStore) -> None:
    await store.create(_key(1), _digest(1), None)
    await store.create(_key(2, "n:bo"), _digest(2), None)
    assert await store.revoke("key_1")
    assert list((await store.valid()).callers) == [_digest(2)]
    assert [key.id for key in await store.list()] == ["key_2"]
    assert [(key.id, key.revoked_at is None) for key in await store.list(all_keys=True)] == [
        ("key_1", False),
        ("key_2", True),
    ]


async def test_a_successor_has_the_access_of_its_key_and_both_are_valid_for_a_while(store: ClientKeyStore) -> None:
    await store.create(_key(1), _digest(1), None)
    made = await store.rotate("key_1", "key_2", "ant_efgh", _digest(2), lifetime=3600.0, overlap=60.0)
    assert made is not None and (made.owner, made.name, made.team) == ("n:anna", "laptop 1", "research")
    assert (made.access, made.prefix) == (ACCESS, "ant_efgh")
    former = await store.get("key_1")
    assert former is not None and former.expires_at is not None and made.expires_at is not None
    assert former.expires_at == pytest.approx(made.created_at + 60, abs=1)
    assert made.expires_at == pytest.approx(made.created_at + 3600, abs=1)
    valid = await store.valid()
    assert set(valid.callers) == {_digest(1), _digest(2)}
    assert valid.expires_at == round(former.expires_at * 1000)
    # An overlap extends no life.
    await store.rotate("key_1", "key_3", "ant_ijkl", _digest(3), lifetime=None, overlap=600.0)
    assert (await store.get("key_1")) == former


@pytest.mark.parametrize("lifetime", [3600.0, None])
async def test_a_second_rotation_finds_the_lifetime_from_before_the_first(
    store: ClientKeyStore, lifetime: float | None
) -> None:
    made = await store.create(_key(1), _digest(1), lifetime)
    assert made is not None and made.lifetime == lifetime
    for number in (2, 3):
        rotated = await store.rotate("key_1", f"key_{number}", "ant_", _digest(number), lifetime=lifetime, overlap=60.0)
        assert rotated is not None and rotated.lifetime == lifetime
        former = await store.get("key_1")
        assert former is not None and former.lifetime == lifetime and former.expires_at is not None
        assert former.expires_at == pytest.approx(made.created_at + 60, abs=5)
    assert [one.lifetime for one in await store.list()] == [lifetime] * 3
    assert [one.lifetime for one in (await store.page(PageQuery())).items] == [lifetime] * 3


async def test_a_key_expires_by_the_clock_of_the_database(store: ClientKeyStore) -> None:
    await store.create(_key(1), _digest(1), 0.01)
    valid = await store.valid()
    async with asyncio.timeout(60):
        while (await store.valid()).callers:
            await asyncio.sleep(0.001)
    assert (await store.state())[1] >= (valid.expires_at or 0)
    assert await store.list() == [] and len(await store.list(all_keys=True)) == 1
    assert await store.rotate("key_1", "key_2", "ant_efgh", _digest(2), lifetime=None, overlap=9.0) is None
    assert not await store.revoke("key_1")


async def test_a_page_begins_after_its_cursor(store: ClientKeyStore) -> None:
    for number in range(5):
        await store.create(_key(number, "n:bo" if number == 2 else "n:anna"), _digest(number), None)
    order = [(await store.page(PageQuery(limit=100, descending=False))).items, (await store.page(PageQuery())).items]
    ids = [key.id for key in order[0]]
    assert sorted(ids) == [f"key_{number}" for number in range(5)] and [key.id for key in order[1]] == ids[::-1]
    page = await store.page(PageQuery(limit=2, after=ids[0], descending=False))
    assert [key.id for key in page.items] == ids[1:3] and page.has_more
    page = await store.page(PageQuery(limit=2, before=ids[2], descending=False))
    assert [key.id for key in page.items] == ids[:2] and not page.has_more
    page = await store.page(PageQuery(after=ids[0], before=ids[3], descending=False))
    assert [key.id for key in page.items] == ids[1:3] and not page.has_more
    page = await store.page(PageQuery(limit=2, after=ids[4], before=ids[0]))
    assert [key.id for key in page.items] == [ids[3], ids[2]] and page.has_more
    assert [key.id for key in (await store.page(PageQuery(), "n:bo")).items] == ["key_2"]
    await store.revoke(ids[4])
    assert len((await store.page(PageQuery())).items) == 4
    page = await store.page(PageQuery(limit=1, after=ids[3], descending=False), all_keys=True)
    assert [key.id for key in page.items] == [ids[4]]
    with pytest.raises(InvalidRequest) as unknown:
        await store.page(PageQuery(before="key_none"))
    assert unknown.value.param == "before"


async def test_changes_at_the_same_time_are_all_counted(store: ClientKeyStore) -> None:
    before = (await store.state())[0]
    await asyncio.gather(*(store.create(_key(number), _digest(number), None) for number in range(20)))
    assert (await store.state())[0] == before + 20
    assert len((await store.valid()).callers) == 20


async def test_at_the_maximum_no_key_is_created_or_rotated(postgres_url: str) -> None:
    async with aclosing(Database(postgres_url, PATIENT)) as database:
        store = ClientKeyStore(PostgresTables(database), most=2)
        assert await store.create(_key(1), _digest(1), None) and await store.create(_key(2), _digest(2), None)
        assert await store.create(_key(3), _digest(3), None) is None
        assert await store.rotate("key_1", "key_4", "ant_", _digest(4), lifetime=None, overlap=9.0) is None
        assert [key.expires_at for key in await store.list()] == [None, None]
        await store.revoke("key_2")
        assert await store.rotate("key_1", "key_4", "ant_", _digest(4), lifetime=None, overlap=0.0)
        assert [key.id for key in await store.list()] == ["key_4"]
