"""Runs the tool contract on `web_search`. One scripted server simulates SearXNG and a web site."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.config.limits import FetchSettings
from antiphon.tools.web_search import WebSearch
from antiphon.tools.web_search_providers import Searxng
from antiphon.upstream.fetch import AddressRule, GuardedFetcher
from tests.contracts.tool_contract import Setup, ToolContract
from tests.support.chat_server import Answer, ChatServer, Mark, Received, WaitGone, answer, json_answer

_HTML = b"<title>Rain \xe3\x80\x907\xe3\x80\x91</title><p>It rains. {cite:3} \xe3\x80\x909\xe3\x80\x91"


class TestWebSearch(ToolContract):
    @pytest.fixture
    async def setup(self) -> AsyncIterator[Setup]:
        async with ChatServer() as server:
            begun = asyncio.Event()
            hits = [
                {"url": "https://a.example/{cite:1}\u30109\u3011", "title": "A \u30108\u3011", "content": "Rain."},
                {"url": "http://[", "title": "no address", "content": "x"},
                {"url": 5, "title": {}, "content": []},
                "nothing",
            ]

            def play(request: Received) -> Answer:
                if hangs:
                    return answer(parts=[Mark(begun), WaitGone()], framing="none")
                if request.path.startswith("/search"):
                    return json_answer({"results": hits})
                return answer(200, (("content-type", "text/html"),), [_HTML], framing="length")

            hangs: list[bool] = []
            server.default = play

            @asynccontextmanager
            async def slow() -> AsyncIterator[asyncio.Event]:
                begun.clear()
                hangs.append(True)
                yield begun
                hangs.clear()

            pages = GuardedFetcher(FetchSettings(http=True, types=("text/*",)), AddressRule(["127.0.0.1"]))
            site = server.url("/page")
            yield Setup(
                WebSearch(Searxng(server.url(""), key="s3cret"), pages.fetch),
                {"type": "web_search", "search_context_size": "low"},
                [
                    ("web_search", {"query": "rain"}),
                    ("open_page", {"url": site}),
                    ("find_in_page", {"url": site, "pattern": "rains"}),
                ],
                [
                    ({"search_context_size": "huge"}, ".search_context_size"),
                    ({"filters": {"allowed_domains": ["https://a.example"]}}, ".filters.allowed_domains"),
                    ({"filters": {"blocked_domains": ["a"] * 101}}, ".filters.blocked_domains"),
                    ({"filters": {"allowed_domains": "a.example"}}, ".filters.allowed_domains"),
                    ({"user_location": "Bonn"}, ".user_location"),
                ],
                slow,
                secrets=("s3cret",),
                held=lambda: server.open_connections,
            )
