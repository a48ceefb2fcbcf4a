"""The changes of client keys: each is noted once, after it is stored, and what is wrong changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from antiphon.engine.running.client_keys import KeyEnded, KeyManager, KeyMissing, KeyRefused, TooManyKeys, WantedKey
from antiphon.stores import Stores
from antiphon.stores.audit import AuditEntry
from antiphon.stores.client_keys import ClientKeyStore
from antiphon.stores.sqlite.backend import open_sqlite
from tests.support.state import open_state


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with aclosing(await open_state(tmp_path, chain_items=100)) as made:
        yield made


class Managed:
    """A manager, and what it told."""

    def __init__(self, stores: Stores, store: ClientKeyStore | None = None) -> None:
        self.told: list[AuditEntry] = []
        self.store = store or stores.client_keys
        self.keys = KeyManager(self.store, stores.audit, "operator", tell=self.told.append)


async def test_each_change_is_told_once_it_is_stored(stores: Stores) -> None:
    managed = Managed(stores)
    key, token = await managed.keys.create(WantedKey("anna", "laptop", "lab", ("qwen*",), ("function",), 60.0))
    assert list((await managed.store.valid()).callers) == [hashlib.sha256(token.encode()).digest()]
    after, other = await managed.keys.rotate(key.id, lifetime=None, overlap=60.0)
    assert after.access == key.access and other != token and after.prefix == other[:8]
    assert after.expires_at == pytest.approx(after.created_at + 60.0)
    await managed.keys.revoke(after.id)
    assert [(one.actor, one.action, one.object, one.owner) for one in managed.told] == [
        ("operator", "keys create", key.id, "n:anna"),
        ("operator", "keys rotate", key.id, "n:anna"),
        ("operator", "keys revoke", after.id, "n:anna"),
    ]
    assert [one.action for one in await stores.audit.list()] == [one.action for one in reversed(managed.told)]
    assert [one.id for one in await managed.keys.list("anna")] == [key.id]


@pytest.mark.parametrize(
    ("lifetime", "wanted", "expected"), [(3600.0, None, 3600.0), (3600.0, 60.0, 60.0), (None, None, None)]
)
async def test_a_successor_has_the_lifetime_of_its_key(
    stores: Stores, lifetime: float | None, wanted: float | None, expected: float | None
) -> None:
    managed = Managed(stores)
    key, _ = await managed.keys.create(WantedKey("anna", lifetime=lifetime))
    # The first rotation shortens the life of the key, but a second rotation gives the same lifetime.
    for _ in range(2):
        after, _ = await managed.keys.rotate(key.id, lifetime=wanted, overlap=9.0)
        lives = None if after.expires_at is None else after.expires_at - after.created_at
        assert lives == (None if expected is None else pytest.approx(expected))


async def test_a_token_that_is_given_is_taken_once(stores: Stores) -> None:
    managed = Managed(stores)
    assert (await managed.keys.create(WantedKey("anna"), "a-token-from-before"))[1] == "a-token-from-before"
    with pytest.raises(KeyRefused, match="already exists") as refused:
        await managed.keys.create(WantedKey("bo"), "a-token-from-before")
    assert refused.value.param == "token" and len(managed.told) == 1


async def test_what_is_wrong_is_refused_and_told_to_nobody(stores: Stores) -> None:
    managed = Managed(stores)
    for wanted, param in (
        (WantedKey(""), "owner"),
        (WantedKey("anna", name="x" * 101), "name"),
        (WantedKey("anna", team="\n"), "team"),
        (WantedKey("anna", tools=("a", "b\x00")), "tools[1]"),
    ):
        with pytest.raises(KeyRefused) as refused:
            await managed.keys.create(wanted)
        assert refused.value.param == param
    for missing in ("key_none", "\x00", "x" * 200):
        with pytest.raises(KeyMissing):
            await managed.keys.revoke(missing)
        with pytest.raises(KeyMissing):
            await managed.keys.rotate(missing, lifetime=None, overlap=0.0)
    assert managed.told == []
    key, _ = await managed.keys.create(WantedKey("anna"))
    await managed.keys.revoke(key.id)
    with pytest.raises(KeyEnded, match="already revoked"):
        await managed.keys.revoke(key.id)
    with pytest.raises(KeyEnded, match="already revoked"):
        await managed.keys.rotate(key.id, lifetime=None, overlap=9.0)
    assert [one.action for one in managed.told] == ["keys create", "keys revoke"]


async def test_at_the_maximum_the_advice_is_to_revoke(tmp_path: Path) -> None:
    async with aclosing(await open_sqlite(tmp_path, chain_items=100)) as stores:
        managed = Managed(stores, ClientKeyStore(stores.tables, most=1))
        key, _ = await managed.keys.create(WantedKey("anna"))
        with pytest.raises(TooManyKeys, match="revoke those that no client uses"):
            await managed.keys.create(WantedKey("bo"))
        with pytest.raises(TooManyKeys):
            await managed.keys.rotate(key.id, lifetime=None, overlap=9.0)
        assert len(managed.told) == 1
