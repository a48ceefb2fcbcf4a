"""The contract tests of every `ConversationStore`, together with the responses in its conversations.

Lives here: the tests. Each implementation runs this suite in a separate `test_conversations_*.py`, which also opens its
stores.

Invariant: a test writes through `store` and `responses`. The test reads through `peer`, which is the same store, a
second one on the same data, or one in another process. No test waits for a lock to expire, because a lock of zero
seconds expires immediately.
"""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from msgspec import structs

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.state import PageQuery
from antiphon.errors import (
    ChainBroken,
    ChainTooLong,
    ConversationLocked,
    ConversationTooLong,
    InvalidRequest,
    StoreError,
)
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.responses import ResponseStore
from tests.contracts.store_contract import ALICE, BOB, CHAIN_ITEMS, ids, item, record

NO_METADATA = b"{}"
LONG = 1000.0


def in_conversation(name: str, conversation: str = "conv_a", **given: object) -> ResponseRecord:
    """A response `resp_<name>` that ran in this conversation."""
    made = record(name, **given)  # type: ignore[arg-type]
    return dataclasses.replace(made, conversation_id=conversation)


class ConversationStoreContract:
    """The suite. Subclasses provide `store`, `responses` and `peer`, opened with `chain_items=CHAIN_ITEMS`."""

    # Conversations.

    async def test_what_was_created_is_read_back(self, store: ConversationStore, peer: ConversationStore) -> None:
        metadata = '{"a":"ü 漢"}'.encode()
        made = await store.create(ALICE, "conv_a", metadata, (item("msg_1"), item("msg_2")))
        got = await peer.get(ALICE, "conv_a")
        assert got == made and (got.id, got.metadata) == ("conv_a", metadata)
        page = await peer.items(ALICE, "conv_a", PageQuery(descending=False))
        assert page is not None and page.items == (item("msg_1"), item("msg_2")) and not page.has_more

    async def test_what_does_not_exist(self, peer: ConversationStore) -> None:
        assert await peer.get(ALICE, "conv_none") is None
        assert await peer.update(ALICE, "conv_none", NO_METADATA) is None
        assert await peer.delete(ALICE, "conv_none") is False
        assert await peer.add_items(ALICE, "conv_none", (item("msg_1"),)) is False
        assert await peer.items(ALICE, "conv_none", PageQuery()) is None
        assert await peer.get_item(ALICE, "conv_none", "msg_1") is None
        assert await peer.delete_item(ALICE, "conv_none", "msg_1") is False
        assert await peer.find_items(ALICE, ("msg_none",)) == {}
        assert await peer.find_items(ALICE, ()) == {}
        assert await peer.load(ALICE, "conv_none") is None
        assert await peer.load(ALICE, "conv_none", holder="resp_1", seconds=LONG) is None
        await peer.release("resp_none")
        assert await peer.renew(("resp_none",), LONG) == frozenset()

    async def test_an_id_that_is_taken_is_refused(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"),))
        with pytest.raises(StoreError):
            await peer.create(ALICE, "conv_a", b'{"b":"c"}')
        got = await store.get(ALICE, "conv_a")
        assert got is not None and got.metadata == NO_METADATA

    async def test_metadata_is_replaced(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", b'{"a":"b"}')
        updated = await store.update(ALICE, "conv_a", b'{"c":"d"}')
        assert updated is not None and updated.metadata == b'{"c":"d"}'
        assert await peer.get(ALICE, "conv_a") == updated

    async def test_deleting_takes_the_items_along(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"),))
        assert await peer.delete(ALICE, "conv_a") is True
        assert await peer.delete(ALICE, "conv_a") is False
        assert await store.get(ALICE, "conv_a") is None
        assert await store.find_items(ALICE, ("msg_1",)) == {}

    async def test_two_deletes_at_once_delete_once(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        done = await asyncio.gather(store.delete(ALICE, "conv_a"), peer.delete(ALICE, "conv_a"))
        assert sorted(done) == [False, True]

    @pytest.mark.parametrize(
        ("page", "expected", "more"),
        [
            (PageQuery(), "dcba", False),
            (PageQuery(limit=2), "dc", True),
            (PageQuery(limit=2, after="conv_c"), "ba", False),
            (PageQuery(limit=1, after="conv_d", descending=True), "c", True),
            (PageQuery(limit=2, descending=False), "ab", True),
            (PageQuery(limit=2, after="conv_b", descending=False), "cd", False),
            (PageQuery(before="conv_b"), "dc", False),
            (PageQuery(limit=1, before="conv_b"), "c", True),
            (PageQuery(limit=1, before="conv_c", descending=False), "b", True),
        ],
    )
    async def test_pages_of_conversations(
        self, store: ConversationStore, peer: ConversationStore, page: PageQuery, expected: str, more: bool
    ) -> None:
        for name in "abcd":
            await store.create(ALICE, f"conv_{name}", NO_METADATA)
        await store.create(BOB, "conv_bob", NO_METADATA)
        got = await peer.list(ALICE, page)
        assert ([each.id[-1] for each in got.items], got.has_more) == (list(expected), more)

    @pytest.mark.parametrize("name", ["after", "before"])
    async def test_a_cursor_of_another_owner_is_like_none(
        self, store: ConversationStore, peer: ConversationStore, name: str
    ) -> None:
        await store.create(BOB, "conv_bob", NO_METADATA)
        said = []
        for cursor in ("conv_bob", "conv_none"):
            with pytest.raises(InvalidRequest) as caught:
                await peer.list(ALICE, PageQuery(**{name: cursor}))  # type: ignore[arg-type]
            said.append(caught.value.body().replace(cursor.encode(), b"ID"))
        assert said[0] == said[1] and name.encode() in said[0]

    # Items.

    async def test_items_keep_the_order_in_which_they_were_added(
        self, store: ConversationStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_0"),))
        assert await peer.add_items(ALICE, "conv_a", (item("msg_1"), item("msg_2"))) is True
        assert await store.add_items(ALICE, "conv_a", (item("msg_3"),)) is True
        loaded = await peer.load(ALICE, "conv_a")
        assert loaded is not None and ids(loaded) == ["msg_0", "msg_1", "msg_2", "msg_3"]

    async def test_many_writers_add_whole_groups(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        groups = [tuple(item(f"msg_{n}_{m}") for m in range(3)) for n in range(60)]
        await asyncio.gather(
            *[(store, peer)[n % 2].add_items(ALICE, "conv_a", group) for n, group in enumerate(groups)]
        )
        loaded = await peer.load(ALICE, "conv_a")
        assert loaded is not None and len(loaded) == 180
        seen = [ids(loaded[n : n + 3]) for n in range(0, 180, 3)]
        assert sorted(seen) == sorted(ids(group) for group in groups)

    async def test_one_item(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"), item("msg_2"), item("msg_3")))
        await store.create(ALICE, "conv_b", NO_METADATA, (item("msg_4"),))
        assert await peer.get_item(ALICE, "conv_a", "msg_2") == item("msg_2")
        assert await peer.get_item(ALICE, "conv_b", "msg_2") is None
        assert await peer.delete_item(ALICE, "conv_b", "msg_2") is False
        assert await peer.delete_item(ALICE, "conv_a", "msg_2") is True
        assert await peer.delete_item(ALICE, "conv_a", "msg_2") is False
        assert await store.get_item(ALICE, "conv_a", "msg_2") is None
        assert await store.add_items(ALICE, "conv_a", (item("msg_5"),)) is True
        loaded = await store.load(ALICE, "conv_a")
        assert loaded is not None and ids(loaded) == ["msg_1", "msg_3", "msg_5"]

    async def test_items_are_found_by_id(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"), item("msg_2")))
        await store.create(ALICE, "conv_b", NO_METADATA, (item("msg_3"),))
        found = await peer.find_items(ALICE, ("msg_3", "msg_1", "msg_none", "msg_1"))
        assert found == {"msg_1": item("msg_1"), "msg_3": item("msg_3")}

    @pytest.mark.parametrize(
        ("page", "expected", "more"),
        [
            (PageQuery(), [5, 4, 3, 2, 1, 0], False),
            (PageQuery(limit=2), [5, 4], True),
            (PageQuery(limit=2, after="msg_4"), [3, 2], True),
            (PageQuery(after="msg_0"), [], False),
            (PageQuery(limit=9, after="msg_1", descending=False), [2, 3, 4, 5], False),
            (PageQuery(limit=2, before="msg_4", descending=False), [2, 3], True),
            (PageQuery(limit=2, before="msg_1"), [3, 2], True),
            (PageQuery(after="msg_0", before="msg_5", limit=3, descending=False), [1, 2, 3], True),
        ],
    )
    async def test_pages_of_items(
        self, store: ConversationStore, peer: ConversationStore, page: PageQuery, expected: list[int], more: bool
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, tuple(item(f"msg_{n}") for n in range(6)))
        await store.create(ALICE, "conv_b", NO_METADATA, (item("msg_other"),))
        got = await peer.items(ALICE, "conv_a", page)
        assert got is not None and (ids(got.items), got.has_more) == ([f"msg_{n}" for n in expected], more)

    @pytest.mark.parametrize("cursor", ["msg_none", "msg_other"])
    async def test_a_cursor_that_is_not_in_the_conversation(
        self, store: ConversationStore, peer: ConversationStore, cursor: str
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"),))
        await store.create(ALICE, "conv_b", NO_METADATA, (item("msg_other"),))
        with pytest.raises(InvalidRequest):
            await peer.items(ALICE, "conv_a", PageQuery(after=cursor))

    async def test_a_conversation_over_the_limit_is_refused(
        self, store: ConversationStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, tuple(item(f"msg_{n}") for n in range(CHAIN_ITEMS)))
        loaded = await peer.load(ALICE, "conv_a")
        assert loaded is not None and len(loaded) == CHAIN_ITEMS
        await store.add_items(ALICE, "conv_a", (item("msg_more"),))
        with pytest.raises(ConversationTooLong):
            await peer.load(ALICE, "conv_a")

    # Owners.

    async def test_another_owner_sees_and_changes_nothing(
        self, store: ConversationStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"),))
        assert await peer.get(BOB, "conv_a") is None
        assert await peer.update(BOB, "conv_a", b'{"b":"c"}') is None
        assert await peer.delete(BOB, "conv_a") is False
        assert await peer.add_items(BOB, "conv_a", (item("msg_2"),)) is False
        assert await peer.items(BOB, "conv_a", PageQuery()) is None
        assert await peer.get_item(BOB, "conv_a", "msg_1") is None
        assert await peer.delete_item(BOB, "conv_a", "msg_1") is False
        assert await peer.find_items(BOB, ("msg_1",)) == {}
        assert await peer.load(BOB, "conv_a", holder="resp_b", seconds=LONG) is None
        assert (await peer.list(BOB, PageQuery())).items == ()
        assert await store.load(ALICE, "conv_a", holder="resp_a", seconds=LONG) == (item("msg_1"),)
        got = await store.get(ALICE, "conv_a")
        assert got is not None and got.metadata == NO_METADATA

    async def test_the_same_id_of_two_owners_is_two_conversations(
        self, store: ConversationStore, peer: ConversationStore
    ) -> None:
        await store.load(ALICE, "conv_mine", create=True)
        await store.load(BOB, "conv_mine", create=True)
        await store.add_items(ALICE, "conv_mine", (item("msg_a"),))
        await peer.add_items(BOB, "conv_mine", (item("msg_b"),))
        mine, other = await store.load(ALICE, "conv_mine"), await store.load(BOB, "conv_mine")
        assert mine == (item("msg_a"),) and other == (item("msg_b"),)
        assert await store.delete(ALICE, "conv_mine") is True
        assert await peer.load(BOB, "conv_mine") == (item("msg_b"),)

    # The lock.

    async def test_a_second_response_is_refused(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"),))
        assert await store.load(ALICE, "conv_a", holder="resp_1", seconds=LONG) == (item("msg_1"),)
        with pytest.raises(ConversationLocked) as caught:
            await peer.load(ALICE, "conv_a", holder="resp_2", seconds=LONG)
        assert (caught.value.status, caught.value.code) == (409, "conversation_locked")
        assert await peer.load(ALICE, "conv_a", holder="resp_1", seconds=LONG) == (item("msg_1"),)
        assert await peer.load(ALICE, "conv_a") == (item("msg_1"),)

    async def test_of_many_at_once_one_gets_the_lock(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        tries = [(store, peer)[n % 2].load(ALICE, "conv_a", holder=f"resp_{n}", seconds=LONG) for n in range(20)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert results.count(()) == 1
        assert sum(isinstance(result, ConversationLocked) for result in results) == 19

    async def test_nothing_else_changes_a_locked_conversation(
        self, store: ConversationStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"),))
        await store.load(ALICE, "conv_a", holder="resp_1", seconds=LONG)
        with pytest.raises(ConversationLocked):
            await peer.add_items(ALICE, "conv_a", (item("msg_2"),))
        with pytest.raises(ConversationLocked):
            await peer.delete_item(ALICE, "conv_a", "msg_1")
        with pytest.raises(ConversationLocked):
            await peer.delete(ALICE, "conv_a")
        assert await peer.delete_item(ALICE, "conv_a", "msg_none") is False
        assert await peer.update(ALICE, "conv_a", b'{"a":"b"}') is not None
        assert await store.load(ALICE, "conv_a") == (item("msg_1"),)

    async def test_a_lock_that_was_given_back_is_free(self, store: ConversationStore, peer: ConversationStore) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        await store.load(ALICE, "conv_a", holder="resp_1", seconds=LONG)
        await peer.release("resp_2")
        with pytest.raises(ConversationLocked):
            await peer.load(ALICE, "conv_a", holder="resp_2", seconds=LONG)
        await peer.release("resp_1")
        assert await peer.load(ALICE, "conv_a", holder="resp_2", seconds=LONG) == ()

    async def test_a_lock_that_ran_out_is_free_unless_renewed(
        self, store: ConversationStore, peer: ConversationStore
    ) -> None:
        for name in ("a", "b"):
            await store.create(ALICE, f"conv_{name}", NO_METADATA)
            await store.load(ALICE, f"conv_{name}", holder=f"resp_{name}", seconds=0.0)
        assert await peer.renew(("resp_a", "resp_none"), LONG) == frozenset({"resp_a"})
        with pytest.raises(ConversationLocked):
            await peer.load(ALICE, "conv_a", holder="resp_2", seconds=LONG)
        assert await peer.load(ALICE, "conv_b", holder="resp_2", seconds=LONG) == ()
        assert await peer.renew(("resp_a", "resp_b"), LONG) == frozenset({"resp_a"})

    async def test_an_unknown_conversation_is_made_once(
        self, store: ConversationStore, peer: ConversationStore
    ) -> None:
        assert await store.load(ALICE, "conv_new", holder="resp_1", seconds=LONG, create=True) == ()
        with pytest.raises(ConversationLocked):
            await peer.load(ALICE, "conv_new", holder="resp_2", seconds=LONG, create=True)
        await store.release("resp_1")
        await store.add_items(ALICE, "conv_new", (item("msg_1"),))
        assert await peer.load(ALICE, "conv_new", holder="resp_2", seconds=LONG, create=True) == (item("msg_1"),)

    # Responses.

    async def test_a_response_adds_its_items_and_gives_the_lock_back(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_1"),))
        for name in ("r", "s"):
            await store.load(ALICE, "conv_a", holder=f"resp_{name}", seconds=LONG)
            await responses.save(in_conversation(name, status="incomplete" if name == "s" else "completed"))
        loaded = await peer.load(ALICE, "conv_a", holder="resp_t", seconds=LONG)
        assert loaded is not None and ids(loaded) == [
            "msg_1",
            *("msg_r_in0", "msg_r_in1", "msg_r_out0"),
            *("msg_s_in0", "msg_s_in1", "msg_s_out0"),
        ]
        got = await responses.get(ALICE, "resp_r")
        assert got is not None and ids(got.output_items) == ["msg_r_out0"]
        found = await peer.find_items(ALICE, ("msg_r_out0",))
        assert found["msg_r_out0"] == got.output_items[0]

    async def test_what_the_model_was_shown_is_for_later_requests_alone(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        called = item("ws_1", kind="web_search_call")
        kept = structs.replace(called, shown=b'{"marks":2}')
        await store.create(ALICE, "conv_a", NO_METADATA)
        await store.load(ALICE, "conv_a", holder="resp_a", seconds=LONG)
        await responses.save(in_conversation("a", inputs=0, outputs=(kept,)))
        assert await peer.load(ALICE, "conv_a") == (kept,)
        assert await peer.find_items(ALICE, ("ws_1",)) == {"ws_1": kept}
        page = await peer.items(ALICE, "conv_a", PageQuery())
        assert page is not None and page.items == (called,)
        assert await peer.get_item(ALICE, "conv_a", "ws_1") == called
        await responses.save(record("b", prev="a", inputs=0))
        chain = await responses.load_chain(ALICE, "resp_b")
        assert chain is not None and chain.items[0] == kept
        assert await store.delete_item(ALICE, "conv_a", "ws_1") and await peer.load(ALICE, "conv_a") == ()

    async def test_a_response_that_failed_adds_nothing_and_gives_the_lock_back(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        await store.load(ALICE, "conv_a", holder="resp_r", seconds=LONG)
        await responses.save(in_conversation("r", status="failed"))
        assert await responses.get(ALICE, "resp_r") is not None
        assert await peer.load(ALICE, "conv_a", holder="resp_t", seconds=LONG) == ()

    async def test_a_response_that_lost_its_lock_is_not_stored(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        await store.load(ALICE, "conv_a", holder="resp_r", seconds=0.0)
        await peer.load(ALICE, "conv_a", holder="resp_s", seconds=LONG)
        with pytest.raises(StoreError, match="conversation"):
            await responses.save(in_conversation("r"))
        assert await responses.get(ALICE, "resp_r") is None
        assert await responses.load_items(ALICE, ("msg_r_in0",)) == {}
        await responses.save(in_conversation("s"))
        loaded = await peer.load(ALICE, "conv_a")
        assert loaded is not None and ids(loaded) == ["msg_s_in0", "msg_s_in1", "msg_s_out0"]

    async def test_a_lock_that_ran_out_and_nobody_took_still_counts(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        await store.load(ALICE, "conv_a", holder="resp_r", seconds=0.0)
        await responses.save(in_conversation("r"))
        loaded = await peer.load(ALICE, "conv_a")
        assert loaded is not None and len(loaded) == 3

    async def test_a_response_without_a_lock_is_not_stored(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        for record_ in (in_conversation("r"), in_conversation("s", "conv_none"), in_conversation("t", owner=BOB)):
            with pytest.raises(StoreError, match="conversation"):
                await responses.save(record_)
        assert await peer.load(ALICE, "conv_a") == ()

    async def test_a_deleted_response_stays_in_its_conversation_and_the_other_way_round(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA)
        for name in ("r", "s"):
            await store.load(ALICE, "conv_a", holder=f"resp_{name}", seconds=LONG)
            await responses.save(in_conversation(name))
        assert await responses.delete(ALICE, "resp_r") is True
        loaded = await peer.load(ALICE, "conv_a")
        assert loaded is not None and len(loaded) == 6
        assert await peer.delete(ALICE, "conv_a") is True
        assert await responses.get(ALICE, "resp_s") is not None

    async def test_a_chain_goes_on_from_a_response_in_a_conversation(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, (item("msg_0"), item("msg_1"), item("msg_2")))
        for name in ("r", "s"):
            await store.load(ALICE, "conv_a", holder=f"resp_{name}", seconds=LONG)
            await responses.save(in_conversation(name))
        await responses.save(record("next", prev="r"))
        await store.delete_item(ALICE, "conv_a", "msg_1")
        chain = await responses.load_chain(ALICE, "resp_next")
        assert chain is not None and ids(chain.items) == [
            *("msg_0", "msg_2"),
            *("msg_r_in0", "msg_r_in1", "msg_r_out0"),
            *("msg_next_in0", "msg_next_in1", "msg_next_out0"),
        ]
        assert await responses.load_chain(BOB, "resp_next") is None
        await peer.delete(ALICE, "conv_a")
        with pytest.raises(ChainBroken, match=r"'resp_next' cannot be .* predecessor 'conv_a' was deleted"):
            await responses.load_chain(ALICE, "resp_next")
        assert await responses.load_chain(BOB, "resp_next") is None

    async def test_such_a_chain_never_finds_another_conversation_of_the_same_id(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        """If clients choose the ids, a conversation may be deleted and created again with the same id."""
        for name in ("r", "s"):
            await store.load(ALICE, "mine", holder=f"resp_{name}", seconds=LONG, create=True)
            await responses.save(in_conversation(name, "mine"))
        await peer.delete(ALICE, "mine")
        # The loop repeats until the millisecond clock gives the two conversations different creation times.
        while await store.get(ALICE, "mine") is None:
            await asyncio.sleep(0.002)
            await store.load(ALICE, "mine", create=True)
        await store.add_items(ALICE, "mine", tuple(item(f"msg_{n}") for n in range(20)))
        for name in ("r", "s"):
            with pytest.raises(ChainBroken):
                await responses.load_chain(ALICE, f"resp_{name}")

    async def test_such_a_chain_may_not_be_longer_than_others(
        self, store: ConversationStore, responses: ResponseStore, peer: ConversationStore
    ) -> None:
        await store.create(ALICE, "conv_a", NO_METADATA, tuple(item(f"msg_{n}") for n in range(CHAIN_ITEMS - 3)))
        await store.load(ALICE, "conv_a", holder="resp_r", seconds=LONG)
        await responses.save(in_conversation("r"))
        chain = await responses.load_chain(ALICE, "resp_r")
        assert chain is not None and len(chain.items) == CHAIN_ITEMS
        await responses.save(record("next", prev="r", inputs=1, outputs=0))
        with pytest.raises(ChainTooLong):
            await responses.load_chain(ALICE, "resp_next")
