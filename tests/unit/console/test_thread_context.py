"""The items that fill a model's context, as the console weighs them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from antiphon.app.console_context import context_items
from antiphon.console.views.threads import last_count, read_items, scaled, weigh
from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.journal import Detail, Entry, JournalSpan

SEARCH = {"id": "fs_1", "type": "file_search_call", "status": "completed", "queries": ["tea"], "results": None}


def stored(item: Mapping[str, object], shown: Mapping[str, object] | None = None) -> StoredItem:
    seen = None if shown is None else msgspec.json.encode(shown)
    return StoredItem(str(item["id"]), str(item["type"]), msgspec.json.encode(item), seen)


def no_unseal(_text: str, _param: str) -> bytes:
    raise AssertionError


def test_the_results_of_a_file_search_count_although_the_api_hides_them() -> None:
    call = {"call_id": "call_1", "name": "file_search", "arguments": '{"query":"tea"}', "output": "x" * 4000}
    (item,) = context_items([stored(SEARCH, {"calls": [call]})], no_unseal)
    made, result = read_items([item])
    assert (made.kind, result.kind) == ("tool calls", "tool results")
    assert dict(weigh([made, result], {}))["tool results"] == 1000
    assert "x" not in made.pieces[0].text


def test_a_call_that_holds_its_own_result_is_a_call_and_a_result() -> None:
    item = {"id": "mcp_1", "type": "mcp_call", "name": "roll", "arguments": "{}", "output": "y" * 400}
    (shown,) = context_items([stored(item)], no_unseal)
    assert dict(weigh(read_items([shown]), {}))["tool results"] == 100


def test_the_weights_have_the_upstreams_sum() -> None:
    assert scaled([("user", 30), ("tools", 10)], 80) == [("user", 60), ("tools", 20)]
    assert scaled([("user", 30)], 0) == [("user", 30)] and scaled([], 9) == []


def test_the_count_is_that_of_the_last_model_call() -> None:
    calls = [
        JournalSpan("call", "u", 0, 1, {"input_tokens": 900, "output_tokens": 5}),
        JournalSpan("call", "u", 1, 2, {"input_tokens": 40, "output_tokens": 2}),
        JournalSpan("save", "", 2, 3),
    ]
    assert last_count(Entry("e", "n:anna", detail=Detail(tuple(calls)))) == 42
    assert last_count(Entry("e", "n:anna")) == 0
    guess = JournalSpan("call", "u", 3, 4, {"input_tokens": 7, "estimated": True})
    assert last_count(Entry("e", "n:anna", detail=Detail((guess,)))) == 0
