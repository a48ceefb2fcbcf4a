"""`POST /v1/alpha/search` over the real tool: what each command asks, what the client reads, what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from antiphon.api.http import ApiRequest
from antiphon.api.standalone_search import PATH, StandaloneSearch
from antiphon.config.limits import FetchSettings
from antiphon.config.tools import ToolSettings
from antiphon.errors import ApiError, InvalidRequest
from antiphon.tools.box import Toolbox
from antiphon.tools.web_search import WebSearch
from antiphon.tools.web_search_providers import Searxng
from antiphon.upstream.fetch import AddressRule, GuardedFetcher
from tests.support.chat_server import Answer, ChatServer, Received, answer, json_answer

NOON = 1_795_867_200.0
"""2026-11-28 12:00:00 UTC, a Saturday."""
HITS = [
    {"url": "https://a.example/rain", "title": "Rain", "content": "It rains.\n\nA lot."},
    {"url": "https://b.example/snow", "title": "Snow {cite:0}", "content": "It snows."},
]
LINKS = "".join(f"<p>Line {number}</p>" for number in range(1, 4))
START = (
    f"<title>Start</title>{LINKS}<a href='#top'>up</a><a class=x href=\"/next?a=1&amp;b=2\">The <b>next</b> page</a>"
)
NEXT = "<title>Next</title><p>You are there.</p>"


@dataclass
class Setup:
    server: ChatServer
    api: StandaloneSearch

    async def ask(self, commands: Any = None, *, headers: bool = False, **fields: Any) -> Any:
        body = {"id": "session", "model": "m", "commands": commands, **fields}
        sent = {name: value for name, value in body.items() if value is not None}
        (endpoint,) = self.api.endpoints()
        assert endpoint.match(PATH) == ()
        request = ApiRequest("POST", PATH, (), (), json.dumps(sent).encode(), "b:alice")
        given = await endpoint.methods["POST"](request)
        assert given.status == 200
        return dict(given.headers) if headers else json.loads(given.body)

    async def output(self, commands: Any, **fields: Any) -> str:
        told = (await self.ask(commands, **fields))["output"]
        assert isinstance(told, str)
        return told

    @property
    def queries(self) -> list[str]:
        return [one["q"] for one in self.searches]

    @property
    def searches(self) -> list[dict[str, str]]:
        """The parameters of each request that the search service got."""
        asked = (urlsplit(one.path) for one in self.server.requests)
        return [dict(parse_qsl(one.query)) for one in asked if one.path == "/search"]


def _play(request: Received) -> Answer:
    pages = {"/start": START, "/next?a=1&b=2": NEXT}
    if request.path.startswith("/search?"):
        return json_answer({"results": HITS})
    if request.path in pages:
        return answer(200, (("content-type", "text/html"),), [pages[request.path].encode()], framing="length")
    return answer(404, (), [b""], framing="length")


@asynccontextmanager
async def _opened(*, pages: bool = True) -> AsyncIterator[Setup]:
    fetcher = GuardedFetcher(FetchSettings(http=True, types=("text/*",)), AddressRule(["127.0.0.1"]))
    async with ChatServer() as server:
        server.default = _play
        tools = Toolbox([WebSearch(Searxng(server.url("")), fetcher.fetch if pages else None)], ToolSettings())
        yield Setup(server, StandaloneSearch(tools, clock=lambda: NOON))
        await tools.aclose()


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    async with _opened() as made:
        yield made


async def test_a_search_is_text_for_the_model_and_results_for_the_client(setup: Setup) -> None:
    answered = await setup.ask({"search_query": [{"q": "rain"}]}, input=[{"type": "message"}], max_output_tokens=9_000)
    told = answered["output"]
    assert "[1] Rain\nhttps://a.example/rain\nIt rains.\n\nA lot." in told and "[2] Snow" in told
    assert "{cite:" not in told and "【" not in told
    assert answered["results"] == [
        {
            "type": "text_result",
            "ref_id": hit["url"],
            "url": hit["url"],
            "title": hit["title"],
            "snippet": hit["content"],
        }
        for hit in HITS
    ]


async def test_several_commands_are_told_in_their_order(setup: Setup) -> None:
    start = setup.server.url("/start")
    told = await setup.output(
        {
            "search_query": [{"q": "first"}, {"q": "  "}, {"q": "second", "recency": 7}],
            "open": [{"ref_id": start, "lineno": 3}],
            "find": [{"ref_id": start, "pattern": "line 3"}],
            "click": [{"ref_id": start, "id": 1}],
            "time": [{"utc_offset": "+05:30"}, {"utc_offset": "noon"}],
            "weather": [{"location": "Bonn"}],
            "response_length": "short",
        }
    )
    parts = told.split("\n\n---\n\n")
    assert [part.split("\n")[0][:20] for part in parts] == [
        "Results for 'first' ",
        "Results for 'second'",
        f"Page {start}"[:20],
        f"Link 1 of {start}"[:20],
        f"'line 3' in {start}"[:20],
        "Time at UTC+05:30",
        "Time at UTCnoon",
        "Command weather",
    ]
    assert setup.queries == ["first", "second"] or setup.queries == ["second", "first"]
    spans = {one["q"]: one.get("time_range") for one in setup.searches}
    assert spans["first"] is None and spans["second"] == "week"
    assert "Line 3" in parts[2] and "Line 1" not in parts[2]
    assert f"1: The next page {setup.server.url('/next')}?a=1&b=2" in parts[2]
    assert "You are there." in parts[3] and "Line 3" in parts[4]
    assert parts[5].endswith("Saturday, 2026-11-28 17:30:00") and "utc_offset" in parts[6]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ({"open": [{"ref_id": "turn0search0"}]}, "is not a page's address"),
        ({"open": [{"ref_id": "file:///etc/passwd"}]}, "is not a page's address"),
        ({"open": [{"ref_id": "http://10.0.0.1/"}]}, "cannot be read"),
        ({"click": [{"ref_id": "{start}", "id": 9}]}, "it has 1 links"),
        ({"finance": [{"ticker": "AMD"}]}, "does not have this command"),
        ({}, "contains no command"),
        ({"search_query": [{"q": ""}]}, "contains no command"),
    ],
)
async def test_what_goes_wrong_is_told_in_the_text(setup: Setup, command: Any, said: str) -> None:
    sent = json.loads(json.dumps(command).replace("{start}", setup.server.url("/start")))
    assert said in await setup.output(sent)


async def test_a_search_that_fails_is_told_in_the_text(setup: Setup) -> None:
    setup.server.default = lambda request: json_answer({}, 503)
    answered = await setup.ask({"search_query": [{"q": "rain"}]})
    assert "The search failed" in answered["output"] and answered["results"] == []


async def test_no_command_reaches_further_than_the_settings(setup: Setup) -> None:
    filters = {"filters": {"allowed_domains": ["b.example"]}}
    found = await setup.ask({"search_query": [{"q": "rain"}]}, settings=filters)
    assert [hit["url"] for hit in found["results"]] == ["https://b.example/snow"]
    narrow = {
        "search_query": [{"q": "rain", "domains": ["https://www.b.example/x"]}, {"q": "x", "domains": ["c.example"]}]
    }
    told = await setup.ask(narrow, settings=filters)
    assert told["results"] == [] and "does not allow these domains" in told["output"]
    assert setup.queries == ["rain site:b.example", "rain site:www.b.example"]
    before = len(setup.server.requests)
    opened = {"open": [{"ref_id": setup.server.url("/start")}]}
    assert "does not allow this domain" in await setup.output(opened, settings=filters)
    assert "no access to live pages" in await setup.output(opened, settings={"external_web_access": False})
    assert len(setup.server.requests) == before
    blocked = {"filters": {"blocked_domains": ["a.example"]}}
    found = await setup.ask({"search_query": [{"q": "rain", "domains": ["a.example", "b.example"]}]}, settings=blocked)
    assert [hit["url"] for hit in found["results"]] == ["https://b.example/snow"]


async def test_pages_may_be_switched_off() -> None:
    async with _opened(pages=False) as alone:
        assert "Use only search_query" in await alone.output({"open": [{"ref_id": alone.server.url("/start")}]})


async def test_the_answer_has_a_limit(setup: Setup) -> None:
    told = await setup.output({"search_query": [{"q": "rain"}]}, max_output_tokens=10)
    assert told.startswith("Results for 'rain'") and len(told) < 100 and told.endswith("it is too long.]")
    many = await setup.output({"time": [{"utc_offset": "+00:00"}] * 20})
    assert many.count("2026-11-28") == 16 and "4 further commands were not run" in many


async def test_unknown_fields_are_named(setup: Setup) -> None:
    headers = await setup.ask({"time": [{"utc_offset": "Z"}]}, headers=True, novelty=1)
    assert headers["antiphon-ignored"] == "novelty"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"commands": None}, "commands", "missing_required_parameter"),
        ({"commands": {"open": [{}]}}, "commands.open[0].ref_id", "missing_required_parameter"),
        ({"commands": {}, "max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        (
            {"commands": {}, "settings": {"search_context_size": "huge"}},
            "settings.search_context_size",
            "invalid_value",
        ),
        (
            {"commands": {}, "settings": {"filters": {"allowed_domains": ["no domain"]}}},
            "settings.filters.allowed_domains",
            "invalid_value",
        ),
    ],
)
async def test_a_wrong_request_is_refused(setup: Setup, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        await setup.ask(**fields)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert "tools[0]" not in refused.value.message


async def test_without_a_search_service_the_setting_is_named() -> None:
    api = StandaloneSearch(Toolbox([], ToolSettings()))
    with pytest.raises(InvalidRequest, match=r"web_search\.provider") as refused:
        await api.search(ApiRequest("POST", PATH, (), (), b'{"commands":{}}', "b:alice"))
    assert refused.value.code == "unsupported_tool"
