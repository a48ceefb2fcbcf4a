"""The contract tests of every `PromptStore`, which run on the store in memory and on every state."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from antiphon.engine.ports.actions import StoredPrompt
from antiphon.engine.ports.state import PageQuery, PromptChange
from antiphon.errors import InvalidRequest, StoreError, VersionConflict
from antiphon.stores import Stores
from antiphon.stores.prompts import PromptStore
from tests.contracts.states import open_state
from tests.contracts.store_contract import ALICE, BOB
from tests.support.memory_prompts import MemoryPromptStore

NO_METADATA = b"{}"


def body(text: str) -> bytes:
    return f'{{"instructions":"{text}"}}'.encode()


async def _versions(store: PromptStore) -> tuple[StoredPrompt, ...]:
    page = await store.versions(ALICE, "pmpt_a", PageQuery(limit=100))
    assert page is not None and not page.has_more
    return page.items


class PromptStoreContract:
    """The suite. Subclasses provide `store` for writes and `peer` for reads."""

    async def test_what_was_created_is_read_back(self, store: PromptStore, peer: PromptStore) -> None:
        made = await store.create(ALICE, "pmpt_a", "näme", b'{"a":"b"}', body("ü 漢"))
        assert (made.version, made.default_version, made.last_version) == (1, 1, 1)
        assert await peer.get(ALICE, "pmpt_a") == made
        assert await peer.get(ALICE, "pmpt_a", 1) == made
        assert await _versions(peer) == (made,)
        with pytest.raises(StoreError):
            await peer.create(ALICE, "pmpt_a", None, NO_METADATA, body("other"))

    async def test_what_does_not_exist(self, store: PromptStore, peer: PromptStore) -> None:
        await store.create(ALICE, "pmpt_a", None, NO_METADATA, body("x"))
        for owner, prompt_id in ((ALICE, "pmpt_none"), (BOB, "pmpt_a")):
            assert await peer.get(owner, prompt_id) is None
            assert await peer.versions(owner, prompt_id, PageQuery()) is None
            assert await peer.change(owner, prompt_id, PromptChange(body=body("y"))) is None
            assert await peer.change(owner, prompt_id, PromptChange(renamed=True, name="n")) is None
            assert await peer.set_default(owner, prompt_id, 1) is None
            assert await peer.delete(owner, prompt_id) is False
        assert await peer.get(ALICE, "pmpt_a", 2) is None
        assert await peer.set_default(ALICE, "pmpt_a", 2) is None
        assert (await peer.list(BOB, PageQuery())).items == ()
        kept = await store.get(ALICE, "pmpt_a")
        assert kept is not None and (kept.name, kept.last_version, kept.body) == (None, 1, body("x"))

    async def test_a_new_version_becomes_the_default_one_unless_told_otherwise(
        self, store: PromptStore, peer: PromptStore
    ) -> None:
        await store.create(ALICE, "pmpt_a", "n", NO_METADATA, body("one"))
        second = await store.change(ALICE, "pmpt_a", PromptChange(body=body("two")))
        assert second is not None and (second.version, second.default_version) == (2, 2)
        third = await peer.change(ALICE, "pmpt_a", PromptChange(body=body("three"), make_default=False))
        assert third is not None and (third.version, third.default_version, third.last_version) == (3, 2, 3)
        default = await store.get(ALICE, "pmpt_a")
        assert default is not None and (default.version, default.body) == (2, body("two"))
        assert [each.body for each in await _versions(peer)] == [body(x) for x in ("three", "two", "one")]
        first = await peer.get(ALICE, "pmpt_a", 1)
        assert first is not None and first.body == body("one") and first.name == "n"

    async def test_the_default_version_can_be_chosen(self, store: PromptStore, peer: PromptStore) -> None:
        await store.create(ALICE, "pmpt_a", None, NO_METADATA, body("one"))
        await store.change(ALICE, "pmpt_a", PromptChange(body=body("two")))
        chosen = await peer.set_default(ALICE, "pmpt_a", 1)
        assert chosen is not None and (chosen.version, chosen.default_version, chosen.last_version) == (1, 1, 2)
        assert await store.get(ALICE, "pmpt_a") == chosen

    async def test_name_and_metadata_belong_to_all_versions(self, store: PromptStore, peer: PromptStore) -> None:
        await store.create(ALICE, "pmpt_a", "old", b'{"a":"b"}', body("one"))
        await store.change(ALICE, "pmpt_a", PromptChange(body=body("two")))
        changed = await store.change(ALICE, "pmpt_a", PromptChange(renamed=True, name="new", metadata=b'{"c":"d"}'))
        assert changed is not None and changed.last_version == 2
        for each in await _versions(peer):
            assert (each.name, each.metadata) == ("new", b'{"c":"d"}')
        unnamed = await store.change(ALICE, "pmpt_a", PromptChange(renamed=True))
        assert unnamed is not None and (unnamed.name, unnamed.metadata) == (None, b'{"c":"d"}')

    async def test_a_change_of_an_old_version_is_refused_whole(self, store: PromptStore, peer: PromptStore) -> None:
        await store.create(ALICE, "pmpt_a", "old", NO_METADATA, body("one"))
        await store.change(ALICE, "pmpt_a", PromptChange(body=body("two"), expected_version=1))
        with pytest.raises(VersionConflict):
            await peer.change(
                ALICE, "pmpt_a", PromptChange(body=body("late"), expected_version=1, renamed=True, name="new")
            )
        kept = await store.get(ALICE, "pmpt_a")
        assert kept is not None and (kept.name, kept.last_version, kept.body) == ("old", 2, body("two"))

    async def test_of_many_changes_of_one_version_one_is_made(self, store: PromptStore, peer: PromptStore) -> None:
        await store.create(ALICE, "pmpt_a", None, NO_METADATA, body("one"))
        changes = [
            (store, peer)[n % 2].change(ALICE, "pmpt_a", PromptChange(body=body(f"v{n}"), expected_version=1))
            for n in range(20)
        ]
        results = await asyncio.gather(*changes, return_exceptions=True)
        assert sum(isinstance(result, VersionConflict) for result in results) == 19
        assert len(await _versions(store)) == 2

    async def test_many_changes_get_numbers_of_their_own(self, store: PromptStore, peer: PromptStore) -> None:
        await store.create(ALICE, "pmpt_a", None, NO_METADATA, body("one"))
        changes = [(store, peer)[n % 2].change(ALICE, "pmpt_a", PromptChange(body=body(f"v{n}"))) for n in range(30)]
        await asyncio.gather(*changes)
        versions = await _versions(peer)
        assert [each.version for each in versions] == list(range(31, 0, -1))
        assert len({each.body for each in versions}) == 31

    async def test_versions_come_in_pages(self, store: PromptStore, peer: PromptStore) -> None:
        await store.create(ALICE, "pmpt_a", None, NO_METADATA, body("1"))
        for number in range(2, 8):
            await store.change(ALICE, "pmpt_a", PromptChange(body=body(str(number))))
        for page, numbers, more in (
            (PageQuery(limit=3), [7, 6, 5], True),
            (PageQuery(limit=3, after="5"), [4, 3, 2], True),
            (PageQuery(limit=3, after="2"), [1], False),
            (PageQuery(limit=2, before="5"), [7, 6], False),
            (PageQuery(limit=2, before="4"), [6, 5], True),
            (PageQuery(limit=3, descending=False), [1, 2, 3], True),
            (PageQuery(limit=5, after="3", descending=False), [4, 5, 6, 7], False),
            (PageQuery(after="7", before="5"), [6], False),
            (PageQuery(after="1"), [], False),
        ):
            found = await peer.versions(ALICE, "pmpt_a", page)
            assert found is not None and ([each.version for each in found.items], found.has_more) == (numbers, more)
        for cursor in ("0", "x", "1" * 30, ""):
            with pytest.raises(InvalidRequest):
                await peer.versions(ALICE, "pmpt_a", PageQuery(after=cursor))

    async def test_deleting_takes_all_versions(self, store: PromptStore, peer: PromptStore) -> None:
        await store.create(ALICE, "pmpt_a", None, NO_METADATA, body("one"))
        await store.change(ALICE, "pmpt_a", PromptChange(body=body("two")))
        assert await peer.delete(ALICE, "pmpt_a") is True
        assert await peer.delete(ALICE, "pmpt_a") is False
        assert await store.versions(ALICE, "pmpt_a", PageQuery()) is None

    @pytest.mark.parametrize(
        ("page", "expected", "more"),
        [
            (PageQuery(), "dcba", False),
            (PageQuery(limit=2), "dc", True),
            (PageQuery(limit=2, after="pmpt_c"), "ba", False),
            (PageQuery(limit=2, after="pmpt_b", descending=False), "cd", False),
            (PageQuery(limit=1, before="pmpt_b"), "c", True),
            (PageQuery(before="pmpt_c", descending=False), "ab", False),
            (PageQuery(after="pmpt_d", before="pmpt_a"), "cb", False),
            (PageQuery(limit=1, after="pmpt_a", before="pmpt_d", descending=False), "b", True),
            (PageQuery(after="pmpt_b", before="pmpt_c"), "", False),
        ],
    )
    async def test_pages(
        self, store: PromptStore, peer: PromptStore, page: PageQuery, expected: str, more: bool
    ) -> None:
        for name in "abcd":
            await store.create(ALICE, f"pmpt_{name}", name, NO_METADATA, body("one"))
        await store.change(ALICE, "pmpt_c", PromptChange(body=body("two")))
        await store.create(BOB, "pmpt_bob", None, NO_METADATA, body("x"))
        got = await peer.list(ALICE, page)
        assert ([each.id[-1] for each in got.items], got.has_more) == (list(expected), more)
        assert {each.id: each.version for each in got.items}.get("pmpt_c", 2) == 2
        for cursor in ("pmpt_bob", "pmpt_none"):
            with pytest.raises(InvalidRequest):
                await peer.list(ALICE, PageQuery(after=cursor))
            with pytest.raises(InvalidRequest):
                await peer.list(ALICE, PageQuery(after="pmpt_a", before=cursor))


class TestMemoryPrompts(PromptStoreContract):
    @pytest.fixture
    def store(self) -> MemoryPromptStore:
        return MemoryPromptStore(clock=time.time)

    @pytest.fixture
    def peer(self, store: MemoryPromptStore) -> MemoryPromptStore:
        return store


class TestPrompts(PromptStoreContract):
    @pytest.fixture
    def store(self, state: Stores) -> PromptStore:
        return state.prompts

    @pytest.fixture
    def peer(self, peers: Stores) -> PromptStore:
        return peers.prompts


async def test_a_page_of_versions_ends_with_its_bytes(state_url: str, tmp_path: Path) -> None:
    stores = await open_state(state_url, tmp_path, page_bytes=1_000)
    try:
        await stores.prompts.create(ALICE, "pmpt_a", None, NO_METADATA, body("x" * 400))
        for _ in range(4):
            await stores.prompts.change(ALICE, "pmpt_a", PromptChange(body=body("x" * 400)))
        await stores.prompts.change(ALICE, "pmpt_a", PromptChange(body=body("x" * 2_000)))
        seen: list[list[int]] = []
        after = None
        while True:
            page = await stores.prompts.versions(ALICE, "pmpt_a", PageQuery(after=after))
            assert page is not None
            seen.append([each.version for each in page.items])
            if not page.has_more:
                break
            after = str(seen[-1][-1])
        assert seen == [[6], [5, 4], [3, 2], [1]]
        before = await stores.prompts.versions(ALICE, "pmpt_a", PageQuery(before="1"))
        assert before is not None and [each.version for each in before.items] == [3, 2] and before.has_more
    finally:
        await stores.aclose()
