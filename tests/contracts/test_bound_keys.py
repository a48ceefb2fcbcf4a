"""Tests the binding of idempotency keys to objects, on every state. `key_contract.py` tests keys without objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.errors import ApiError, StoreError
from antiphon.stores import Stores
from tests.contracts.job_contract import MOST, queued
from tests.contracts.states import open_state
from tests.contracts.store_contract import ALICE, BOB, record

ONCE = OnceOnly(ALICE, "key", "print")
OTHERS = [replace(ONCE, owner=BOB), replace(ONCE, key="another")]
LONG = 600.0


async def _refused(keys: Stores, once: OnceOnly, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        await keys.keys.claim(once, "resp_late", LONG)
    assert caught.value.code == code


async def test_a_key_whose_holder_is_gone_is_free(state: Stores, peers: Stores) -> None:
    assert await state.keys.claim(ONCE, "resp_a", 0.0) is None
    assert await peers.keys.claim(ONCE, "resp_b", LONG) is None
    assert await state.keys.renew(["resp_a", "resp_b", "resp_none"], LONG) == {"resp_b"}
    # Only the response that holds a key can store its result under that key.
    with pytest.raises(StoreError):
        await state.responses.save(replace(record("a"), once=ONCE))
    assert await peers.responses.get(ALICE, "resp_a") is None


@pytest.mark.parametrize("how", ["saved", "queued"])
async def test_a_key_is_bound_to_what_was_stored(state: Stores, peers: Stores, how: str) -> None:
    assert await state.keys.claim(ONCE, "resp_a", LONG) is None
    assert await peers.keys.made(ONCE) is None
    if how == "saved":
        await state.responses.save(replace(record("a"), once=ONCE))
    else:
        await state.background.enqueue(replace(queued("a"), once=ONCE), b"{}", None, limit=MOST)
    assert await peers.keys.made(ONCE) == "resp_a" == await peers.keys.claim(ONCE, "resp_b", LONG)
    await peers.keys.release(ONCE, "resp_a")  # The key is bound, so it is not a lease.
    assert await peers.keys.renew(["resp_a"], LONG) == frozenset()
    assert await peers.keys.made(ONCE) == "resp_a"
    for other in (*OTHERS, replace(ONCE, fingerprint="else")):
        assert await peers.keys.made(other) is None
    await _refused(peers, replace(ONCE, fingerprint="else"), "idempotency_key_reused")


@pytest.mark.parametrize("what", ["conversations", "prompts"])
async def test_what_is_made_at_once_is_made_once(state: Stores, peers: Stores, what: str) -> None:
    async def make(where: Stores, name: str, once: OnceOnly = ONCE) -> None:
        if what == "conversations":
            await where.conversations.create(once.owner, f"conv_{name}", b"{}", (), once)
        else:
            await where.prompts.create(once.owner, f"pmpt_{name}", None, b"{}", b"{}", once)

    await make(state, "a")
    with pytest.raises(AlreadyMade) as caught:
        await make(peers, "b")
    assert caught.value.object_id.endswith("_a") and await peers.keys.made(ONCE) == caught.value.object_id
    with pytest.raises(ApiError) as refused:
        await make(peers, "b", replace(ONCE, fingerprint="else"))
    assert refused.value.code == "idempotency_key_reused"
    for number, other in enumerate(OTHERS):
        await make(peers, f"c{number}", other)


async def test_keys_are_forgotten_in_time(state_url: str, tmp_path: Path) -> None:
    stores = await open_state(state_url, tmp_path, keep_keys=0.0)
    await stores.conversations.create(ALICE, "conv_a", b"{}", (), ONCE)
    assert await stores.keys.claim(OTHERS[1], "resp_a", LONG) is None
    assert await stores.keys.made(ONCE) is None
    assert await stores.keys.sweep() == (1,)
    assert await stores.keys.sweep() == (0,)
    assert await stores.keys.renew(["resp_a"], LONG) == {"resp_a"}
    await stores.conversations.create(ALICE, "conv_b", b"{}", (), ONCE)
    await stores.aclose()


async def test_a_key_whose_holder_is_gone_for_long_is_swept(state_url: str, tmp_path: Path) -> None:
    stores = await open_state(state_url, tmp_path, keep_keys=0.0)
    assert await stores.keys.claim(ONCE, "resp_gone", 0.0) is None
    assert await stores.keys.claim(OTHERS[1], "resp_a", LONG) is None
    assert await stores.keys.claim(OTHERS[0], "resp_called", 0.0) is None
    await stores.keys.claim_calls(BOB, "resp_called", b"", 0.0, by="one")
    assert await stores.keys.sweep() == (1,)
    assert await stores.keys.renew(["resp_gone", "resp_a"], LONG) == {"resp_a"}
    assert await stores.keys.left_calls() == [(BOB, "resp_called")]
    assert await stores.keys.renew(["resp_called"], LONG) == {"resp_called"}, "what guards a run stays"
    await stores.aclose()
    stores = await open_state(state_url, tmp_path, keep_keys=LONG)
    assert await stores.keys.claim(ONCE, "resp_gone", 0.0) is None
    assert await stores.keys.sweep() == (0,), "the client may come back for so long"
    await stores.aclose()
