"""The contract tests of every `IdempotencyStore`; each implementation runs this suite in a separate `test_keys_*.py`.

Lives here: the tests. Not here: the requests that may have a key (`api/`), the statements that bind a key to an object
in each backend.

Invariant: a test writes through `keys` and reads through `peer`, which is the same store or a second one on the same
data. No test waits for a lease, because a lease of zero seconds expires immediately.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import replace

import pytest

from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.idempotency import AlreadyMade, LeftBehind
from antiphon.errors import ApiError
from antiphon.stores.idempotency import IdempotencyStore
from tests.contracts.store_contract import ALICE, BOB

ONCE = OnceOnly(ALICE, "key", "this request")
OTHER_REQUEST = OnceOnly(ALICE, "key", "another request")


class IdempotencyContract:
    """The suite. Subclasses provide the fixtures `keys` and `peer`, and `bind`."""

    @abstractmethod
    async def bind(self, keys: IdempotencyStore, once: OnceOnly, object_id: str) -> None:
        """Create this object and bind the key to it. Raises `AlreadyMade` and `ApiError`."""

    async def test_a_key_is_held_by_one(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        assert await keys.claim(ONCE, "resp_1", 1000) is None
        for once, status in ((ONCE, 409), (OTHER_REQUEST, 422)):
            with pytest.raises(ApiError) as refused:
                await peer.claim(once, "resp_2", 1000)
            assert refused.value.status == status
            with pytest.raises(ApiError) as refused:
                await self.bind(peer, once, "conv_2")
            assert refused.value.status == status
        assert await peer.made(ONCE) is None
        assert await peer.claim(OnceOnly(BOB, "key", "this request"), "resp_3", 1000) is None
        assert await keys.renew(["resp_1", "resp_2"], 1000) == {"resp_1"}

    async def test_one_of_many_gets_it(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        claims = [(keys, peer)[n % 2].claim(ONCE, f"resp_{n}", 1000) for n in range(20)]
        results = await asyncio.gather(*claims, return_exceptions=True)
        assert results.count(None) == 1
        assert {each.status for each in results if isinstance(each, ApiError)} == {409}

    async def test_a_key_that_is_given_back_is_free(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        await keys.claim(ONCE, "resp_1", 1000)
        await peer.release(ONCE, "resp_2")
        with pytest.raises(ApiError):
            await peer.claim(ONCE, "resp_2", 1000)
        await peer.release(ONCE, "resp_1")
        assert await keys.renew(["resp_1"], 1000) == frozenset()
        assert await peer.claim(OTHER_REQUEST, "resp_2", 1000) is None

    async def test_so_is_one_whose_holder_is_gone(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        await keys.claim(ONCE, "resp_1", 0)
        assert await peer.claim(OTHER_REQUEST, "resp_2", 0) is None
        await self.bind(keys, ONCE, "conv_1")
        assert await peer.made(ONCE) == "conv_1"

    async def test_what_was_made_is_known(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        await self.bind(keys, ONCE, "conv_1")
        assert await peer.made(ONCE) == "conv_1"
        assert await peer.made(OTHER_REQUEST) is None
        assert await peer.made(OnceOnly(BOB, "key", "this request")) is None
        assert await peer.claim(ONCE, "resp_2", 1000) == "conv_1"
        with pytest.raises(AlreadyMade) as made:
            await self.bind(peer, ONCE, "conv_2")
        assert made.value.object_id == "conv_1"
        for refused in (peer.claim(OTHER_REQUEST, "resp_2", 1000), self.bind(peer, OTHER_REQUEST, "conv_2")):
            with pytest.raises(ApiError):
                await refused
        # The key is bound to an object, so no caller can release it.
        await keys.release(ONCE, "conv_1")
        assert await peer.made(ONCE) == "conv_1"

    async def test_of_many_that_make_one_makes(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        makes = [self.bind((keys, peer)[n % 2], ONCE, f"conv_{n}") for n in range(20)]
        results = await asyncio.gather(*makes, return_exceptions=True)
        assert results.count(None) == 1
        assert {each.object_id for each in results if isinstance(each, AlreadyMade)} == {f"conv_{results.index(None)}"}

    async def test_an_approval_is_used_by_one_response(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        assert await keys.spend(ALICE, ["mcpr_1", "mcpr_2"], "resp_1") == {}
        # A client that did not receive the answer sends the approval again.
        assert await peer.spend(ALICE, ["mcpr_1"], "resp_1") == {}
        assert await peer.spend(ALICE, ["mcpr_2", "mcpr_3"], "resp_2") == {"mcpr_2": "resp_1"}
        assert await keys.spend(ALICE, ["mcpr_3"], "resp_3") == {"mcpr_3": "resp_2"}
        assert await keys.spend(BOB, ["mcpr_1"], "resp_4") == {}
        assert await keys.sweep() == (0,)
        assert await keys.spend(ALICE, [], "resp_5") == {}

    async def test_of_many_that_use_an_approval_one_does(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        spends = [
            (keys, peer)[n % 2].spend(ALICE, ["mcpr_1", "mcpr_2"][:: n % 2 * 2 - 1], f"resp_{n}") for n in range(20)
        ]
        results = await asyncio.gather(*spends)
        assert results.count({}) == 1
        winner = f"resp_{results.index({})}"
        assert all(each in ({}, {"mcpr_1": winner, "mcpr_2": winner}) for each in results)

    async def test_an_approval_that_was_used_for_nothing_is_free(
        self, keys: IdempotencyStore, peer: IdempotencyStore
    ) -> None:
        await keys.spend(ALICE, ["mcpr_1"], "resp_1")
        await keys.claim(ONCE, "resp_1", 1000)
        await peer.unspend(BOB, "resp_1")
        await peer.unspend(ALICE, "resp_2")
        assert await peer.spend(ALICE, ["mcpr_1"], "resp_2") == {"mcpr_1": "resp_1"}
        await peer.unspend(ALICE, "resp_1")
        assert await peer.spend(ALICE, ["mcpr_1"], "resp_2") == {}
        # Releasing the approval does not release the key.
        assert await keys.renew(["resp_1"], 1000) == {"resp_1"}

    async def test_any_id_can_be_that_of_an_approval(self, keys: IdempotencyStore) -> None:
        odd = ["", "\0", "\ud83d", "x" * 100_000, "ä\n"]
        assert await keys.spend(ALICE, odd, "resp_1") == {}
        assert await keys.spend(ALICE, odd, "resp_2") == dict.fromkeys(odd, "resp_1")

    async def test_a_key_stays_taken_without_anything_that_is_stored(
        self, keys: IdempotencyStore, peer: IdempotencyStore
    ) -> None:
        await keys.claim(ONCE, "resp_1", 0)
        await keys.stay(ONCE, "resp_2")
        assert await keys.made(ONCE) is None
        await keys.stay(ONCE, "resp_1")
        assert await peer.made(ONCE) == "resp_1" == await peer.claim(ONCE, "resp_3", 1000)
        assert await keys.renew(["resp_1"], 1000) == frozenset()

    async def test_who_has_claimed_calls_keeps_its_key_when_it_is_gone(
        self, keys: IdempotencyStore, peer: IdempotencyStore
    ) -> None:
        await keys.claim(ONCE, "resp_1", 0)
        assert await keys.claim_calls(ALICE, "resp_1", b"first", 1000, by="one")
        assert await peer.left_calls() == [] and await peer.claimed_calls(ALICE, "resp_1") == b"first"
        assert await peer.claimed_calls(BOB, "resp_1") is None is await peer.claimed_calls(ALICE, "resp_2")
        assert await keys.claim_calls(ALICE, "resp_1", b"second", 0, by="one")
        assert await peer.left_calls() == [(ALICE, "resp_1")]
        assert await peer.claimed_calls(ALICE, "resp_1") == b"second"
        for refused in (peer.claim(ONCE, "resp_2", 1000), self.bind(peer, ONCE, "conv_2")):
            with pytest.raises(LeftBehind) as left:
                await refused
            assert left.value.object_id == "resp_1"
        with pytest.raises(ApiError):
            await peer.claim(OTHER_REQUEST, "resp_2", 1000)
        assert await keys.renew(["resp_1"], 1000) == {"resp_1"} and await peer.left_calls() == []
        await peer.end_calls(ALICE, "resp_1")
        assert await keys.claimed_calls(ALICE, "resp_1") is None
        # The key is still held and can be renewed, although the claim of the calls is gone.
        assert await keys.renew(["resp_1"], 0) == {"resp_1"}
        assert await peer.claim(ONCE, "resp_2", 1000) is None

    async def test_who_was_taken_for_dead_claims_no_calls(self, keys: IdempotencyStore, peer: IdempotencyStore) -> None:
        await keys.claim(ONCE, "resp_1", 0)
        await peer.claim(ONCE, "resp_2", 1000)
        assert not await keys.claim_calls(ALICE, "resp_1", b"late", 1000, by="one", once=ONCE)
        assert await keys.claimed_calls(ALICE, "resp_1") is None
        assert await peer.claim_calls(ALICE, "resp_2", b"first", 1000, by="other", once=ONCE)
        # `one` is an earlier run of the same response.
        assert not await keys.claim_calls(ALICE, "resp_2", b"late", 1000, by="one")
        assert await keys.claimed_calls(ALICE, "resp_2") == b"first"
        # A key that is bound to an object no longer permits its response to claim calls.
        await peer.stay(ONCE, "resp_2")
        assert not await peer.claim_calls(ALICE, "resp_2", b"second", 1000, by="other", once=ONCE)

    async def test_of_who_claims_calls_and_who_takes_the_key_one_does(
        self, keys: IdempotencyStore, peer: IdempotencyStore
    ) -> None:
        for number in range(20):
            once = replace(ONCE, key=f"key-{number}")
            await keys.claim(once, f"late_{number}", 0)
            claimed, taken = await asyncio.gather(
                keys.claim_calls(ALICE, f"late_{number}", b"", 1000, by="one", once=once),
                peer.claim(once, f"next_{number}", 1000),
                return_exceptions=True,
            )
            assert claimed is not (taken is None), (claimed, taken)
