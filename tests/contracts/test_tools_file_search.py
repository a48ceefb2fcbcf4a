"""Runs the tool contract on `file_search`, with a searcher that returns fixed hits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from antiphon.engine.ports.vector_stores import FoundChunk, Searcher
from antiphon.errors import NotFound
from antiphon.tools.file_search import FileSearch
from antiphon.types.search import DEFAULT_RANKING, Filter, Ranking
from tests.contracts.tool_contract import OWNER, Setup, ToolContract


class _Fixed(Searcher):
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.hangs = False

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
        if owner != OWNER or set(vector_store_ids) != {"vs_1"}:
            raise NotFound("There is no such vector store.")
        if not queries:
            return []
        self.begun.set()
        if self.hangs:
            await asyncio.Event().wait()
        text = "It rains. {cite:1} \u30109\u3011"
        return [
            FoundChunk(f"file-{n}", f"a{n}.txt", 0.9, {"year": 2026, "wet": True}, text, "vs_1") for n in range(limit)
        ]


class TestFileSearch(ToolContract):
    @pytest.fixture
    def setup(self) -> Setup:
        searcher = _Fixed()

        @asynccontextmanager
        async def slow() -> AsyncIterator[asyncio.Event]:
            searcher.begun.clear()
            searcher.hangs = True
            yield searcher.begun
            searcher.hangs = False

        good = {"type": "file_search", "vector_store_ids": ["vs_1"], "max_num_results": 3}
        return Setup(
            FileSearch(searcher),
            good,
            [("file_search", {"queries": ["rain", "snow"]}), ("file_search", {"query": "hail"})],
            [
                ({"vector_store_ids": []}, ".vector_store_ids"),
                ({"vector_store_ids": ["vs_other"]}, ".vector_store_ids"),
                ({"vector_store_ids": [f"vs_{n}" for n in range(17)]}, ".vector_store_ids"),
                ({"vector_store_ids": "vs_1"}, ".vector_store_ids"),
                ({"vector_store_ids": [5]}, ".vector_store_ids[0]"),
                ({"max_num_results": 0}, ".max_num_results"),
                ({"max_num_results": 51}, ".max_num_results"),
                ({"max_num_results": "many"}, ".max_num_results"),
                ({"filters": {"type": "resembles", "key": "a", "value": 1}}, ".filters.type"),
                ({"ranking_options": {"score_threshold": 2}}, ".ranking_options.score_threshold"),
            ],
            slow,
        )
