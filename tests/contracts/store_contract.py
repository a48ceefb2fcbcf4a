"""The contract tests of every `ResponseStore`; each implementation runs this suite in a separate `test_store_*.py`.

Lives here: the tests, and the functions that build their records. Not here: opening a store, and faults that only a
database can have (crashes, locks, damaged files).

Invariant: a test writes through `store` and reads through `peer`, which is the same store, a second one on the
same data, or one in another process.
"""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs

from antiphon.engine.ports.actions import ResponseRecord, StoredItem, Usage
from antiphon.engine.ports.state import PageQuery
from antiphon.errors import ChainBroken, ChainTooLong, InvalidRequest, PredecessorGone, StoreError
from antiphon.stores.responses import ResponseStore

CHAIN_ITEMS = 1000
"""The limit `chain_items` of the stores in the fixtures."""

ALICE = "b:alice"
BOB = "b:bob"


def item(item_id: str, text: str = "hello", kind: str = "message") -> StoredItem:
    """An item whose body contains its id and text."""
    return StoredItem(item_id, kind, f'{{"id":"{item_id}","text":"{text}"}}'.encode())


def record(
    name: str,
    *,
    prev: str | None = None,
    owner: str = ALICE,
    status: str = "completed",
    inputs: int | tuple[StoredItem, ...] = 2,
    outputs: int | tuple[StoredItem, ...] = 1,
) -> ResponseRecord:
    """A response `resp_<name>` that continues `resp_<prev>`. `inputs` and `outputs` are numbers of items, or the items
    themselves."""
    if isinstance(inputs, int):
        inputs = tuple(item(f"msg_{name}_in{n}") for n in range(inputs))
    if isinstance(outputs, int):
        outputs = tuple(item(f"msg_{name}_out{n}") for n in range(outputs))
    return ResponseRecord(
        id=f"resp_{name}",
        owner=owner,
        previous_response_id=None if prev is None else f"resp_{prev}",
        status=status,
        model="test-model",
        created_at=1_700_000_000.25,
        completed_at=1_700_000_001.5,
        body=f'{{"id":"resp_{name}","status":"{status}"}}'.encode(),
        input_items=inputs,
        output_items=outputs,
        usage=Usage(3, 4, 7),
    )


def ids(items: tuple[StoredItem, ...]) -> list[str]:
    """The ids of items, in order."""
    return [each.id for each in items]


async def save_chain(store: ResponseStore, name: str, turns: int) -> list[str]:
    """Save `turns` turns named `<name>0…`; returns the ids of their items, oldest first."""
    expected = []
    for turn in range(turns):
        saved = record(f"{name}{turn}", prev=f"{name}{turn - 1}" if turn else None)
        await store.save(saved)
        expected += ids((*saved.input_items, *saved.output_items))
    return expected


class ResponseStoreContract:
    """The suite. Subclasses provide the fixtures `store` and `peer`, opened with `chain_items=CHAIN_ITEMS`."""

    # Saving and reading one response.

    async def test_a_saved_response_is_read_back_byte_for_byte(self, store: ResponseStore, peer: ResponseStore) -> None:
        body = '{"text":"ü 漢 \\u0000 \\ud83d","n":1.0 , "x":[]}'.encode()
        saved = record("a", outputs=(StoredItem("fc_1", "function_call", body), item("msg_1", "ß")))
        await store.save(saved)
        got = await peer.get(ALICE, "resp_a")
        assert got is not None
        assert (got.id, got.status, got.body) == ("resp_a", "completed", saved.body)
        assert got.output_items == saved.output_items
        assert isinstance(got.body, bytes) and isinstance(got.output_items[0].body, bytes)

    async def test_what_the_model_was_shown_is_for_later_requests_alone(
        self, store: ResponseStore, peer: ResponseStore
    ) -> None:
        asked, called = item("msg_in"), item("ws_out", kind="web_search_call")
        inputs, outputs = (
            (structs.replace(asked, shown=b'{"marks":1}'),),
            (structs.replace(called, shown=b'{"marks":2}'),),
        )
        await store.save(record("a", inputs=inputs, outputs=outputs))
        chain = await peer.load_chain(ALICE, "resp_a")
        assert chain is not None and chain.items == (*inputs, *outputs)
        assert await peer.load_items(ALICE, ("msg_in", "ws_out")) == {"msg_in": inputs[0], "ws_out": outputs[0]}
        got = await peer.get(ALICE, "resp_a")
        listed = await peer.list(ALICE, PageQuery())
        page = await peer.input_items(ALICE, "resp_a", PageQuery())
        assert got is not None and page is not None
        assert got.output_items == listed.items[0].output_items == (called,) and page.items == (asked,)

    async def test_a_response_without_any_item(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a", inputs=0, outputs=0, status="failed"))
        await store.save(record("b", prev="a"))
        got = await peer.get(ALICE, "resp_a")
        assert got is not None and got.output_items == () and got.status == "failed"
        page = await peer.input_items(ALICE, "resp_a", PageQuery())
        assert page is not None and page.items == () and not page.has_more
        chain = await peer.load_chain(ALICE, "resp_b")
        assert chain is not None and ids(chain.items) == ["msg_b_in0", "msg_b_in1", "msg_b_out0"]
        alone = await peer.load_chain(ALICE, "resp_a")
        assert alone is not None and alone.items == ()

    async def test_many_items_keep_their_order(self, store: ResponseStore, peer: ResponseStore) -> None:
        saved = record("a", inputs=120, outputs=130)
        await store.save(saved)
        got = await peer.get(ALICE, "resp_a")
        chain = await peer.load_chain(ALICE, "resp_a")
        assert got is not None and got.output_items == saved.output_items
        assert chain is not None and chain.items == (*saved.input_items, *saved.output_items)

    async def test_a_large_item(self, store: ResponseStore, peer: ResponseStore) -> None:
        saved = record("a", inputs=(item("msg_big", "x" * 3_000_000),))
        await store.save(saved)
        assert (await peer.load_items(ALICE, ("msg_big",)))["msg_big"] == saved.input_items[0]

    async def test_a_second_response_with_the_same_id_is_refused(
        self, store: ResponseStore, peer: ResponseStore
    ) -> None:
        await store.save(record("a"))
        with pytest.raises(StoreError):
            await store.save(record("a", inputs=5, status="failed"))
        with pytest.raises(StoreError):
            await peer.save(record("a", owner=BOB))
        await store.save(record("b", prev="a"))
        with pytest.raises(StoreError):
            await store.save(record("b", prev="a", status="failed"))
        for name in ("a", "b"):
            got = await peer.get(ALICE, f"resp_{name}")
            page = await peer.input_items(ALICE, f"resp_{name}", PageQuery())
            assert got is not None and got.status == "completed"
            assert page is not None and len(page.items) == 2
        assert await peer.get(BOB, "resp_a") is None

    async def test_what_does_not_exist(self, peer: ResponseStore) -> None:
        assert await peer.get(ALICE, "resp_none") is None
        assert await peer.load_chain(ALICE, "resp_none") is None
        assert await peer.input_items(ALICE, "resp_none", PageQuery()) is None
        assert await peer.delete(ALICE, "resp_none") is False
        assert await peer.load_items(ALICE, ("msg_none",)) == {}
        assert await peer.load_items(ALICE, ()) == {}

    async def test_ids_are_values_and_never_sql(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a"))
        for odd in ("' OR 1=1 --", 'resp_a"', "%", "resp_a\x00", "", "RESP_A"):
            assert await peer.get(ALICE, odd) is None
            assert await peer.load_chain(ALICE, odd) is None
            assert await peer.load_items(ALICE, (odd,)) == {}
            assert await peer.delete(ALICE, odd) is False

    # Chains.

    async def test_a_chain_brings_all_items_oldest_first(self, store: ResponseStore, peer: ResponseStore) -> None:
        expected = await save_chain(store, "t", 5)
        chain = await peer.load_chain(ALICE, "resp_t4")
        assert chain is not None and ids(chain.items) == expected
        middle = await peer.load_chain(ALICE, "resp_t2")
        assert middle is not None and ids(middle.items) == expected[:9]

    async def test_a_chain_of_two_hundred_turns(self, store: ResponseStore, peer: ResponseStore) -> None:
        expected = await save_chain(store, "t", 200)
        chain = await peer.load_chain(ALICE, "resp_t199")
        assert chain is not None and ids(chain.items) == expected

    async def test_branches_of_a_chain_do_not_see_each_other(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("root"))
        await store.save(record("left", prev="root"))
        await peer.save(record("right", prev="root"))
        for name in ("left", "right"):
            chain = await peer.load_chain(ALICE, f"resp_{name}")
            assert chain is not None
            assert ids(chain.items) == [
                *("msg_root_in0", "msg_root_in1", "msg_root_out0"),
                *(f"msg_{name}_in0", f"msg_{name}_in1", f"msg_{name}_out0"),
            ]

    async def test_a_missing_predecessor_refuses_the_save(self, store: ResponseStore, peer: ResponseStore) -> None:
        with pytest.raises(StoreError, match="previous response"):
            await store.save(record("b", prev="none"))
        assert await peer.get(ALICE, "resp_b") is None
        assert await peer.load_items(ALICE, ("msg_b_in0", "msg_b_out0")) == {}

    async def test_a_predecessor_that_is_deleted_meanwhile_refuses_the_save(
        self, store: ResponseStore, peer: ResponseStore
    ) -> None:
        await store.save(record("a"))
        assert await store.load_chain(ALICE, "resp_a") is not None
        assert await peer.delete(ALICE, "resp_a") is True
        with pytest.raises(PredecessorGone, match="previous response"):
            await store.save(record("b", prev="a"))

    @pytest.mark.parametrize("deleted", [0, 2, 3])
    async def test_a_chain_with_a_deleted_ancestor_cannot_be_continued(
        self, store: ResponseStore, peer: ResponseStore, deleted: int
    ) -> None:
        await save_chain(store, "t", 5)
        assert await store.delete(ALICE, f"resp_t{deleted}") is True
        with pytest.raises(ChainBroken, match=f"'resp_t4' cannot be .* predecessor 'resp_t{deleted}' was deleted"):
            await peer.load_chain(ALICE, "resp_t4")
        assert await peer.get(ALICE, "resp_t4") is not None
        assert await peer.load_chain(BOB, "resp_t4") is None
        if deleted:
            assert await peer.load_chain(ALICE, f"resp_t{deleted - 1}") is not None

    async def test_a_chain_may_hold_exactly_the_limit(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a", inputs=CHAIN_ITEMS - 3, outputs=0))
        await store.save(record("b", prev="a", inputs=2, outputs=1))
        chain = await peer.load_chain(ALICE, "resp_b")
        assert chain is not None and len(chain.items) == CHAIN_ITEMS

    async def test_a_chain_over_the_limit_is_refused(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a", inputs=CHAIN_ITEMS - 3, outputs=0))
        await store.save(record("b", prev="a", inputs=2, outputs=2))
        with pytest.raises(ChainTooLong) as caught:
            await peer.load_chain(ALICE, "resp_b")
        assert (caught.value.status, caught.value.code, caught.value.param) == (
            *(400, "context_too_long"),
            "previous_response_id",
        )
        assert await peer.load_chain(ALICE, "resp_a") is not None
        assert await peer.load_chain(BOB, "resp_b") is None

    async def test_a_compared_response_has_its_prompt_and_its_output(
        self, store: ResponseStore, peer: ResponseStore
    ) -> None:
        await store.save(record("a"))
        shown = structs.replace(item("ws_out", kind="web_search_call"), shown=b'{"marks":2}')
        saved = record("b", prev="a", outputs=(shown,))
        await store.save(saved)
        found = await peer.load_compared(ALICE, "resp_b")
        chain = await peer.load_chain(ALICE, "resp_b")
        assert found is not None and chain is not None and found.body == saved.body
        assert (*found.prompt_items, *found.output_items) == chain.items and found.output_items == (shown,)
        await store.save(record("c", inputs=1, outputs=0))
        found = await peer.load_compared(ALICE, "resp_c")
        assert found is not None and ids(found.prompt_items) == ["msg_c_in0"] and found.output_items == ()
        assert await peer.load_compared(BOB, "resp_b") is await peer.load_compared(ALICE, "resp_none") is None
        await store.delete(ALICE, "resp_a")
        with pytest.raises(ChainBroken):
            await peer.load_compared(ALICE, "resp_b")

    # Items by id.

    async def test_items_of_any_response_are_found_by_id(self, store: ResponseStore, peer: ResponseStore) -> None:
        first, second = record("a"), record("b")
        await store.save(first)
        await store.save(second)
        found = await peer.load_items(ALICE, ("msg_a_in1", "msg_none", "msg_b_out0", "msg_a_in1"))
        assert found == {"msg_a_in1": first.input_items[1], "msg_b_out0": second.output_items[0]}

    async def test_an_id_used_twice_means_the_output_then_the_newest(
        self, store: ResponseStore, peer: ResponseStore
    ) -> None:
        await store.save(record("a", outputs=(item("msg_x", "made"),)))
        await store.save(record("b", inputs=(item("msg_x", "replayed"), item("msg_y", "old"))))
        await store.save(record("c", inputs=(item("msg_y", "new"),)))
        found = await peer.load_items(ALICE, ("msg_x", "msg_y"))
        assert b"made" in found["msg_x"].body
        assert b"new" in found["msg_y"].body

    async def test_more_items_than_a_statement_takes_parameters(
        self, store: ResponseStore, peer: ResponseStore
    ) -> None:
        await store.save(record("a", inputs=3000, outputs=0))
        wanted = tuple(f"msg_a_in{n}" for n in range(3000))
        assert set(await peer.load_items(ALICE, wanted)) == set(wanted)

    # Owners.

    async def test_another_owner_sees_nothing(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a"))
        assert await peer.get(BOB, "resp_a") is None
        assert await peer.load_chain(BOB, "resp_a") is None
        assert await peer.input_items(BOB, "resp_a", PageQuery()) is None
        assert await peer.load_items(BOB, ("msg_a_in0", "msg_a_out0")) == {}

    async def test_another_owner_changes_nothing(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a"))
        assert await peer.delete(BOB, "resp_a") is False
        with pytest.raises(StoreError, match="previous response"):
            await peer.save(record("b", prev="a", owner=BOB))
        assert await peer.get(BOB, "resp_b") is None
        chain = await peer.load_chain(ALICE, "resp_a")
        assert chain is not None and len(chain.items) == 3

    async def test_the_same_item_id_of_two_owners(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a", inputs=(item("msg_x", "alice"),)))
        await store.save(record("b", inputs=(item("msg_x", "bob"),), owner=BOB))
        assert b"alice" in (await peer.load_items(ALICE, ("msg_x",)))["msg_x"].body
        assert b"bob" in (await peer.load_items(BOB, ("msg_x",)))["msg_x"].body

    # Deleting.

    async def test_deleting_takes_the_items_along(self, store: ResponseStore, peer: ResponseStore) -> None:
        await save_chain(store, "t", 2)
        assert await peer.delete(ALICE, "resp_t0") is True
        assert await peer.delete(ALICE, "resp_t0") is False
        assert await store.get(ALICE, "resp_t0") is None
        assert await store.input_items(ALICE, "resp_t0", PageQuery()) is None
        assert set(await store.load_items(ALICE, ("msg_t0_in0", "msg_t0_out0", "msg_t1_in0"))) == {"msg_t1_in0"}
        assert await peer.delete(ALICE, "resp_t1") is True
        assert await store.load_items(ALICE, ("msg_t1_in0", "msg_t1_out0")) == {}

    async def test_two_deletes_at_once_delete_once(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a"))
        done = await asyncio.gather(store.delete(ALICE, "resp_a"), peer.delete(ALICE, "resp_a"))
        assert sorted(done) == [False, True]

    # Pages of input items.

    @pytest.mark.parametrize(
        ("page", "expected", "more"),
        [
            (PageQuery(), [5, 4, 3, 2, 1, 0], False),
            (PageQuery(descending=False), [0, 1, 2, 3, 4, 5], False),
            (PageQuery(limit=2), [5, 4], True),
            (PageQuery(limit=6), [5, 4, 3, 2, 1, 0], False),
            (PageQuery(limit=5), [5, 4, 3, 2, 1], True),
            (PageQuery(limit=2, after="msg_a_in4"), [3, 2], True),
            (PageQuery(limit=3, after="msg_a_in3"), [2, 1, 0], False),
            (PageQuery(after="msg_a_in0"), [], False),
            (PageQuery(limit=2, after="msg_a_in1", descending=False), [2, 3], True),
            (PageQuery(limit=9, after="msg_a_in1", descending=False), [2, 3, 4, 5], False),
            (PageQuery(limit=2, before="msg_a_in4", descending=False), [2, 3], True),
            (PageQuery(limit=2, before="msg_a_in2", descending=False), [0, 1], False),
            (PageQuery(limit=2, before="msg_a_in1"), [3, 2], True),
            (PageQuery(before="msg_a_in5"), [], False),
            (PageQuery(after="msg_a_in0", before="msg_a_in5", limit=3, descending=False), [1, 2, 3], True),
            (PageQuery(after="msg_a_in5", before="msg_a_in2"), [4, 3], False),
            (PageQuery(after="msg_a_in2", before="msg_a_in5"), [], False),
        ],
    )
    async def test_pages(
        self, store: ResponseStore, peer: ResponseStore, page: PageQuery, expected: list[int], more: bool
    ) -> None:
        await store.save(record("a", inputs=6, outputs=2))
        got = await peer.input_items(ALICE, "resp_a", page)
        assert got is not None
        assert (ids(got.items), got.has_more) == ([f"msg_a_in{n}" for n in expected], more)

    @pytest.mark.parametrize("descending", [True, False])
    async def test_the_list_of_responses(self, store: ResponseStore, peer: ResponseStore, descending: bool) -> None:
        names = [f"resp_{n}" for n in range(7)]
        for n in range(7):
            await store.save(record(f"{n}", prev=str(n - 1) if n % 2 else None, outputs=n % 3))
            await store.save(record(f"other{n}", owner=BOB))
        wanted = names[::-1] if descending else names
        whole = await peer.list(ALICE, PageQuery(descending=descending))
        assert [one.id for one in whole.items] == wanted and not whole.has_more
        for one in whole.items:
            assert one == await peer.get(ALICE, one.id)
        walked: list[str] = []
        more = True
        while more:
            page = await peer.list(
                ALICE, PageQuery(limit=3, after=walked[-1] if walked else None, descending=descending)
            )
            walked += [one.id for one in page.items]
            more = page.has_more
        assert walked == wanted
        before = await peer.list(ALICE, PageQuery(limit=2, before=wanted[3], descending=descending))
        assert [one.id for one in before.items] == wanted[1:3] and before.has_more
        between = await peer.list(ALICE, PageQuery(after=wanted[0], before=wanted[3], descending=descending))
        assert [one.id for one in between.items] == wanted[1:3] and not between.has_more
        assert (await peer.list("b:carol", PageQuery())).items == ()
        for cursor in ("resp_none", "resp_other1"):
            with pytest.raises(InvalidRequest) as refused:
                await peer.list(ALICE, PageQuery(after=cursor))
            assert refused.value.param == "after"

    async def test_walking_the_pages_gives_every_item_once(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a", inputs=25))
        seen: list[str] = []
        more = True
        while more:
            got = await peer.input_items(ALICE, "resp_a", PageQuery(limit=4, after=seen[-1] if seen else None))
            assert got is not None
            seen += ids(got.items)
            more = got.has_more
        assert seen == [f"msg_a_in{n}" for n in reversed(range(25))]

    async def test_a_page_never_leaves_its_response(self, store: ResponseStore, peer: ResponseStore) -> None:
        await save_chain(store, "t", 2)
        got = await peer.input_items(ALICE, "resp_t1", PageQuery())
        assert got is not None and ids(got.items) == ["msg_t1_in1", "msg_t1_in0"]

    @pytest.mark.parametrize("cursor", ["msg_none", "msg_a_out0", "msg_b_in0"])
    @pytest.mark.parametrize("name", ["after", "before"])
    async def test_a_cursor_that_is_not_in_the_list_is_the_clients_error(
        self, store: ResponseStore, peer: ResponseStore, name: str, cursor: str
    ) -> None:
        await store.save(record("a"))
        await store.save(record("b"))
        page = PageQuery(after=cursor) if name == "after" else PageQuery(before=cursor)
        with pytest.raises(InvalidRequest) as caught:
            await peer.input_items(ALICE, "resp_a", page)
        assert caught.value.param == name

    # Concurrency and closing.

    async def test_of_responses_saved_at_once_only_those_fail_that_cannot_be_saved(
        self, store: ResponseStore, peer: ResponseStore
    ) -> None:
        await store.save(record("root"))
        shown = structs.replace(item("msg_shown"), shown=b'{"marks":1}')
        large = item("msg_large", "x" * 100_000)
        good = [
            *[record(f"first{n}", inputs=n % 4, outputs=n) for n in range(20)],
            *[record(f"next{n}", prev="root", inputs=n % 3) for n in range(20)],
            record("shown", inputs=(shown,)),
            record("large", prev="root", outputs=(large,)),
            record("failed", status="failed", outputs=0),
        ]
        bad = [record("root"), record("lost", prev="none"), record("foreign", prev="root", owner=BOB)]
        saves = [*good[::2], *bad, *good[1::2]]
        done = await asyncio.gather(*[store.save(each) for each in saves], return_exceptions=True)
        assert [each.id for each, told in zip(saves, done, strict=True) if told is not None] == [
            each.id for each in bad
        ]
        assert all(told is None or isinstance(told, StoreError) for told in done)
        for each in good:
            before = ("msg_root_in0", "msg_root_in1", "msg_root_out0") if each.previous_response_id else ()
            chain = await peer.load_chain(ALICE, each.id)
            assert chain is not None
            assert ids(chain.items) == [*before, *ids((*each.input_items, *each.output_items))]
            assert chain.items[len(before) :] == (*each.input_items, *each.output_items)
        assert await peer.get(ALICE, "resp_lost") is None and await peer.get(BOB, "resp_foreign") is None

    async def test_two_hundred_saves_at_once(self, store: ResponseStore, peer: ResponseStore) -> None:
        stores = (store, peer)
        await asyncio.gather(*[stores[n % 2].save(record(f"c{n}")) for n in range(200)])
        for reader in stores:
            got = await asyncio.gather(*[reader.get(ALICE, f"resp_c{n}") for n in range(200)])
            assert all(each is not None and len(each.output_items) == 1 for each in got)

    async def test_one_failing_save_among_many_fails_alone(self, store: ResponseStore, peer: ResponseStore) -> None:
        await store.save(record("a"))
        saves = [store.save(record(f"c{n}", prev="none" if n % 5 == 0 else "a")) for n in range(50)]
        results = await asyncio.gather(*saves, return_exceptions=True)
        for n, result in enumerate(results):
            stored = await peer.get(ALICE, f"resp_c{n}")
            if n % 5 == 0:
                assert isinstance(result, StoreError) and stored is None
            else:
                assert result is None and stored is not None

    async def test_a_save_is_seen_by_whoever_heard_of_it(self, store: ResponseStore, peer: ResponseStore) -> None:
        for n in range(20):
            await store.save(record(f"s{n}", prev=f"s{n - 1}" if n else None))
            chain = await peer.load_chain(ALICE, f"resp_s{n}")
            assert chain is not None and len(chain.items) == 3 * (n + 1)

    async def test_ping(self, store: ResponseStore, peer: ResponseStore) -> None:
        await asyncio.gather(*[each.ping() for each in (store, peer) for _ in range(5)])
        await store.ping()
