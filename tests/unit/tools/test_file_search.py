"""file_search at its limits: declarations, queries, what is asked and what is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool
from antiphon.engine.ports.vector_stores import FoundChunk, Searcher
from antiphon.errors import InvalidRequest, NotFound
from antiphon.tools.box import ToolFailed
from antiphon.tools.file_search import FileSearch
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.search import DEFAULT_RANKING, Filter, Ranking

HIT = FoundChunk("file-1", "a【1】.txt", 0.456, {"k": 1}, "It rains.【2】", "vs_1")


class _Searcher(Searcher):
    def __init__(self, *hits: FoundChunk) -> None:
        self.hits = list(hits)
        self.asked: list[tuple[Any, ...]] = []
        self.fails: Exception | None = None

    async def search(
        self,
        owner: str,
        vector_store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        limit: int = 10,
        filters: Filter | None = None,
        ranking: Ranking = DEFAULT_RANKING,
    ) -> list[FoundChunk]:
        self.asked.append((owner, vector_store_ids, queries, limit, filters, ranking))
        if self.fails is not None:
            raise self.fails
        return self.hits


def _tool(**declared: Any) -> HostedTool:
    given = {"type": "file_search", "vector_store_ids": ["vs_1"], **declared}
    return HostedTool(1, "file_search", json.dumps(given).encode())


def _call(arguments: str, **declared: Any) -> HostedCall:
    target = CallTarget(CallKind.FILE_SEARCH, "file_search")
    return HostedCall("call_1", "fs_1", target, arguments, _tool(**declared), "owner", "resp_1")


@pytest.mark.parametrize(
    ("declared", "wrong"),
    [
        ({"vector_store_ids": [f"vs_{number}" for number in range(15)]}, ""),
        ({"vector_store_ids": [f"vs_{number}" for number in range(16)]}, ""),
        ({"vector_store_ids": [f"vs_{number}" for number in range(17)]}, "vector_store_ids"),
        ({"vector_store_ids": ["vs_1"] * 20}, ""),
        ({"vector_store_ids": []}, "vector_store_ids"),
        ({"vector_store_ids": [], "vector_store_id": "vs_2"}, ""),
        ({"max_num_results": 0}, "max_num_results"),
        ({"max_num_results": 1}, ""),
        ({"max_num_results": 2}, ""),
        ({"max_num_results": 50}, ""),
        ({"max_num_results": 51}, "max_num_results"),
        ({"filter": {"type": "eq", "key": "a", "value": 1}}, "filter"),
        ({"filters": {"type": "odd", "key": "a", "value": 1}}, "filters.type"),
        ({"ranking_options": {"score_threshold": 2}}, "ranking_options.score_threshold"),
    ],
)
async def test_what_a_declaration_may_say(declared: dict[str, Any], wrong: str) -> None:
    searcher = _Searcher()
    preparing = FileSearch(searcher).prepare("owner", "resp_1", _tool(**declared))
    if wrong:
        with pytest.raises(InvalidRequest) as refused:
            await preparing
        assert refused.value.param == f"tools[1].{wrong}" and searcher.asked == []
        return
    prepared = await preparing
    assert [function.name for function in prepared.functions] == ["file_search"]
    assert searcher.asked[0][:4] == ("owner", searcher.asked[0][1], (), 1)
    assert len(searcher.asked[0][1]) == len({*declared.get("vector_store_ids", ["vs_1"])} or {1})


async def test_stores_that_are_not_there_are_named() -> None:
    searcher = _Searcher()
    searcher.fails = NotFound("There is no vector store vs_1.")
    with pytest.raises(InvalidRequest, match="no vector store vs_1") as refused:
        await FileSearch(searcher).prepare("owner", "resp_1", _tool())
    assert (refused.value.param, refused.value.code) == ("tools[1].vector_store_ids", "not_found")


@pytest.mark.parametrize(
    ("arguments", "queries"),
    [
        ({"queries": [" rain ", "", "  ", "snow"]}, ["rain", "snow"]),
        ({"query": "rain"}, ["rain"]),
        ({"queries": ["a"], "query": " b "}, ["a", "b"]),
        ({"queries": list("abcd"), "query": "e"}, list("abcde")),
        ({"queries": list("abcdef")}, list("abcde")),
    ],
)
async def test_what_is_looked_for(arguments: dict[str, Any], queries: list[str]) -> None:
    searcher = _Searcher()
    result = await FileSearch(searcher).run(_call(json.dumps(arguments), vector_store_id="vs_2"))
    assert searcher.asked == [("owner", ["vs_1", "vs_2"], queries, 10, None, DEFAULT_RANKING)]
    assert (result.output, result.fields["queries"], result.fields["results"]) == ("Nothing was found.", queries, [])


@pytest.mark.parametrize("arguments", ["{", "[]", "{}", '{"queries":[]}', '{"queries":[" "]}', '{"queries":"x"}'])
async def test_without_a_query_nothing_is_looked_for(arguments: str) -> None:
    searcher = _Searcher(HIT)
    with pytest.raises(ToolFailed, match="one to five"):
        await FileSearch(searcher).run(_call(arguments))
    assert searcher.asked == []


async def test_what_is_asked_and_told() -> None:
    searcher = _Searcher(HIT, HIT)
    declared = {
        "max_num_results": 3,
        "filters": {"type": "eq", "key": "k", "value": 1},
        "ranking_options": {"score_threshold": 0.5},
    }
    result = await FileSearch(searcher).run(_call('{"query":"rain"}', **declared))
    ((_, _, _, limit, filters, ranking),) = searcher.asked
    assert limit == 3 and filters is not None and filters.key == "k" and ranking != DEFAULT_RANKING
    told = "a[1].txt (relevance 0.46)\nIt rains.[2]"
    assert result.output == f"{{cite:0}} {told}\n\n{{cite:1}} {told}" and not result.failed
    assert result.fields["results"][0] == {
        "file_id": "file-1",
        "filename": "a【1】.txt",
        "score": 0.456,
        "text": "It rains.【2】",
        "attributes": {"k": 1},
        "vector_store_id": "vs_1",
    }
    assert result.sources[1].annotation == {"type": "file_citation", "file_id": "file-1", "filename": "a【1】.txt"}
    searcher.fails = InvalidRequest("The store has expired.")
    failed = await FileSearch(searcher).run(_call('{"query":"rain"}'))
    assert failed.failed and failed.output == "The search failed: The store has expired."
    assert failed.fields == {"queries": ["rain"]} and failed.call_id == "call_1"
