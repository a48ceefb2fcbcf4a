"""web_search: what the model is shown, what it reads, what each service is asked; over real connections."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import pytest

from antiphon.config.limits import FetchSettings
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool
from antiphon.errors import ApiError, InvalidRequest
from antiphon.tools.box import ToolFailed
from antiphon.tools.web_search import Link, WebSearch, around, by_lines, page_links, page_text
from antiphon.tools.web_search_providers import (
    Brave,
    SearchProvider,
    Searxng,
    Tavily,
    UserLocation,
    WebHit,
    fits_domains,
)
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.file_kinds import FetchedFile
from antiphon.upstream.fetch import AddressRule, GuardedFetcher
from tests.support.chat_server import ChatServer, Close, answer, json_answer
from tests.support.web_services import ask_service

HITS = [
    WebHit("https://a.example/1", "A", "It rains. " * 100),
    WebHit("https://b.example/2", "B 【9】{cite:0}", "It snows."),
]


class _Provider(SearchProvider):
    def __init__(self, hits: Sequence[WebHit] = HITS) -> None:
        super().__init__("")
        self.hits = list(hits)
        self.asked: list[dict[str, Any]] = []
        self.fails = ""
        self.closed = False

    async def search(
        self, query: str, *, limit: int, domains: Sequence[str], place: UserLocation, days: int | None = None
    ) -> list[WebHit]:
        self.asked.append({"query": query, "limit": limit, "domains": list(domains), "place": place})
        if self.fails:
            raise ToolFailed(self.fails)
        return self.hits[:limit]

    async def aclose(self) -> None:
        self.closed = True


class _Pages:
    def __init__(self, page: FetchedFile | ApiError) -> None:
        self.page = page
        self.asked: list[str] = []

    async def fetch(self, urls: tuple[str, ...], fits: Any = None) -> dict[str, FetchedFile | ApiError]:
        self.asked += urls
        return dict.fromkeys(urls, self.page)


def _tool(**declared: Any) -> HostedTool:
    return HostedTool(1, "web_search", json.dumps({"type": "web_search", **declared}).encode())


def _call(name: str, arguments: dict[str, Any] | str, **declared: Any) -> HostedCall:
    given = arguments if isinstance(arguments, str) else json.dumps(arguments)
    target = CallTarget(CallKind.WEB_SEARCH, name)
    return HostedCall("call_1", "ws_1", target, given, _tool(**declared), "owner", "resp_1")


HTML = FetchedFile(
    "page",
    "text/html",
    b"<!doctype html><head><title>Rain &amp; snow</title><style>b{}</style><body><nav>Menu</nav><h1>Rain</h1>"
    b"<p>It <b>rains</b>&nbsp;today.<script>alert(1)</script><ul><li>one<li>two</ul>"
    b"<div hidden><div>secret</div>more</div><p>Snow at last.\xe3\x80\x909\xe3\x80\x91",
)


# Declarations


async def test_the_model_is_shown_a_search_and_pages() -> None:
    prepared = await WebSearch(_Provider(), _Pages(HTML).fetch).prepare(
        "owner", "resp_1", _tool(user_location={"type": "approximate", "city": "Bonn", "country": "DE"})
    )
    assert [function.name for function in prepared.functions] == ["web_search", "open_page", "find_in_page"]
    assert "Bonn, DE" in prepared.functions[0].description
    for function in prepared.functions:
        assert json.loads(bytes(function.parameters))["type"] == "object"
    alone = await WebSearch(_Provider()).prepare("owner", "resp_1", _tool())
    assert [function.name for function in alone.functions] == ["web_search"]


@pytest.mark.parametrize(
    ("declared", "param"),
    [
        ({"search_context_size": "huge"}, "tools[1].search_context_size"),
        ({"filters": {"allowed_domains": ["https://a.example"]}}, "tools[1].filters.allowed_domains"),
        ({"filters": {"blocked_domains": ["x"] * 101}}, "tools[1].filters.blocked_domains"),
        ({"filters": 5}, "tools[1].filters"),
        ({"filters": {"blocked_urls": ["https://a.example/x"]}}, "tools[1].filters"),
    ],
)
async def test_a_wrong_declaration_is_named(declared: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await WebSearch(_Provider()).prepare("owner", "resp_1", _tool(**declared))
    assert refused.value.param == param


# Pages


def test_the_links_of_a_page() -> None:
    html = (
        b"<a>no target</a><a name=x>none</a><A HREF = 'b.html'>To\n <b>B</b></A><a href=#here>here</a>"
        b'<a title="x" href="//c.example/?a=1&amp;b=2">C</a><a href=http://[>broken</a><a href=mailto:a@b>mail</a>'
        b'<a href="https://d.example/">no end'
    )
    links = page_links(FetchedFile("page", "text/html", html), "https://a.example/dir/a.html")
    assert links == [
        Link("To B", "https://a.example/dir/b.html"),
        Link("C", "https://c.example/?a=1&b=2"),
        Link("", "https://d.example/"),
    ]
    assert page_links(FetchedFile("page", "text/plain", html), "https://a.example/") == []


def test_a_page_by_its_lines() -> None:
    text = "one\n\n" + "x" * 600
    assert by_lines(text, 1, 2_000) == f"L1: one\nL2: \nL3: {'x' * 500}\nL4: {'x' * 100}"
    assert by_lines(text, 2, 10) == "L2: \n[The page goes on: it has 4 lines.]"
    assert by_lines(text, 9, 10) == "The page has 4 lines."


@pytest.mark.parametrize("piece", ["<a ", "<a href=", "<a href='x'>", "<a>", "<a href=x>text</a>", "<a x='"])
def test_links_take_time_in_proportion(piece: str) -> None:
    page = FetchedFile("page", "text/html", piece.encode() * 400_000)
    assert len(page_links(page, "https://a.example/")) <= 200


# Searches


async def test_a_search_is_told_with_its_sources() -> None:
    provider = _Provider()
    result = await WebSearch(provider).run(_call("web_search", {"query": "rain"}, search_context_size="low"))
    assert provider.asked[0]["limit"] == 5
    assert result.output.startswith("{cite:0} A\nhttps://a.example/1\nIt rains.")
    assert len(result.output) < 500 and "【" not in result.output and result.output.count("{cite:0}") == 1
    assert result.fields["action"] == {
        "type": "search",
        "query": "rain",
        "queries": ["rain"],
        "sources": [{"type": "url", "url": hit.url} for hit in HITS],
    }
    assert result.sources[0].annotation == {"type": "url_citation", "url": "https://a.example/1", "title": "A"}


async def test_domains_hold_for_searches_and_pages() -> None:
    provider, pages = _Provider(), _Pages(HTML)
    tool = WebSearch(provider, pages.fetch)
    allowed = {"filters": {"allowed_domains": ["A.example"]}}
    await tool.run(_call("web_search", {"query": "x"}, **allowed))
    assert provider.asked[0]["domains"] == ["a.example"]
    refused = await tool.run(_call("open_page", {"url": "https://b.example/2"}, **allowed))
    assert refused.failed and not pages.asked
    blocked = await tool.run(_call("web_search", {"query": "x"}, filters={"blocked_domains": ["b.example"]}))
    assert [source["url"] for source in blocked.fields["action"]["sources"]] == ["https://a.example/1"]


@pytest.mark.parametrize("arguments", ["{", '"x"', '{"query": 5}', '{"query": " "}'])
async def test_arguments_that_make_no_sense_are_a_failure_the_model_can_mend(arguments: str) -> None:
    with pytest.raises(ToolFailed):
        await WebSearch(_Provider()).run(_call("web_search", arguments))


async def test_a_service_that_fails_is_told() -> None:
    provider = _Provider()
    provider.fails = "the search service is busy; try again later."
    result = await WebSearch(provider).run(_call("web_search", {"query": "x"}))
    assert result.failed and "busy" in result.output and result.fields["action"]["query"] == "x"


async def test_nothing_found_is_an_answer() -> None:
    result = await WebSearch(_Provider([])).run(_call("web_search", {"query": "x"}))
    assert not result.failed and result.output == "Nothing was found."


# Pages


def test_the_text_of_a_page() -> None:
    title, text = page_text(HTML)
    assert title == "Rain & snow"
    assert text == "Rain\n\nIt rains today.\n\n- one\n- two\n\nSnow at last.【9】"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<meta charset=latin-1><p>caf\xe9", "café"),
        (b"caf\xe9", "café"),
        (b"<p>unclosed <nav>menu</nav> text<", "unclosed text"),
        (b"", ""),
    ],
)
def test_broken_pages_are_read_as_far_as_they_go(data: bytes, said: str) -> None:
    assert page_text(FetchedFile("x", "text/html", data))[1].rstrip("<") == said


async def test_a_page_is_opened_and_searched() -> None:
    pages = _Pages(HTML)
    tool = WebSearch(_Provider(), pages.fetch)
    opened = await tool.run(_call("open_page", {"url": "https://a.example/1"}))
    assert opened.output.startswith("{cite:0} Rain & snow\n\nRain") and "【" not in opened.output
    assert opened.fields["action"] == {"type": "open_page", "url": "https://a.example/1"}
    found = await tool.run(_call("find_in_page", {"url": "https://a.example/1", "pattern": "SNOW"}))
    assert "Snow at last." in found.output and found.fields["action"]["pattern"] == "SNOW"
    missing = await tool.run(_call("find_in_page", {"url": "https://a.example/1", "pattern": "hail"}))
    assert "does not contain" in missing.output and not missing.failed


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (InvalidRequest("The address is not public."), "not public"),
        (FetchedFile("x", "image/png", b"\x89"), "image/png"),
    ],
)
async def test_a_page_that_cannot_be_read_is_told(page: FetchedFile | ApiError, told: str) -> None:
    result = await WebSearch(_Provider(), _Pages(page).fetch).run(_call("open_page", {"url": "https://a.example"}))
    assert result.failed and told in result.output


async def test_a_long_page_is_cut_and_says_so() -> None:
    page = FetchedFile("x", "text/plain", b"word " * 10_000)
    result = await WebSearch(_Provider(), _Pages(page).fetch).run(
        _call("open_page", {"url": "https://a.example"}, search_context_size="low")
    )
    assert len(result.output) < 6_200 and result.output.endswith("further parts.]")


def test_pieces_that_touch_are_one() -> None:
    text = "x" * 1000 + "rain" + "y" * 100 + "rain" + "z" * 1000
    (piece,) = around(text, "rain")
    assert piece.count("rain") == 2 and len(piece) == 708


def test_domains_fit_with_their_subdomains() -> None:
    assert fits_domains("https://www.a.example/x", ["a.example"]) and fits_domains("https://a.example", [])
    for url in ("https://nota.example", "https://a.example.evil.example", "https://x/a.example", "a.example"):
        assert not fits_domains(url, ["a.example"])


# Services, over real connections


async def test_searxng(service: ChatServer) -> None:
    results = [
        {"url": "https://a.example/1", "title": "A", "content": "It rains.", "engine": "x"},
        {"url": "https://a.example/1", "title": "again"},
        {"url": "javascript:alert(1)", "title": "no"},
        {"title": "no address"},
        {"url": "https://c.example", "title": None, "content": None},
    ]
    service.script(json_answer({"query": "x", "results": results, "infoboxes": []}))
    hits = await ask_service(
        Searxng(service.url("").rstrip("/") + "/base/"), "rain in May", domains=["a.example", "c.example"]
    )
    assert hits == [
        WebHit("https://a.example/1", "A", "It rains."),
        WebHit("https://c.example", "https://c.example", ""),
    ]
    (asked,) = service.requests
    assert asked.path.startswith("/base/search?") and "format=json" in asked.path
    assert "site%3Aa.example" in asked.path.replace(":", "%3A") and asked.header("cookie") is None


async def test_credentials_in_the_services_url_go_with_the_request(service: ChatServer) -> None:
    service.script(json_answer({"results": []}))
    url = service.url("").rstrip("/").replace("://", "://me:pw@") + "/base/?proxy_key=k3y"
    assert await ask_service(Searxng(url)) == []
    (asked,) = service.requests
    assert asked.path.startswith("/base/search?") and {"proxy_key=k3y", "q=rain"} <= set(re.split("[?&]", asked.path))
    assert asked.header("authorization") == "Basic bWU6cHc="


async def test_brave(service: ChatServer) -> None:
    results = [{"url": "https://a.example", "title": "A", "description": "one", "extra_snippets": ["two"]}]
    service.script(json_answer({"web": {"results": results}}))
    hits = await ask_service(Brave(service.url(""), key="k3y"), "rain in May", place=UserLocation(country="de"))
    assert hits == [WebHit("https://a.example", "A", "one\ntwo")]
    (asked,) = service.requests
    assert asked.header("x-subscription-token") == "k3y" and "country=DE" in asked.path and "k3y" not in asked.path


async def test_tavily(service: ChatServer) -> None:
    service.script(json_answer({"results": [{"url": "https://a.example", "title": "A", "content": "one"}]}))
    hits = await ask_service(Tavily(service.url(""), key="k3y"), "rain in May", domains=["a.example"])
    assert hits == [WebHit("https://a.example", "A", "one")]
    (asked,) = service.requests
    assert asked.method == "POST" and asked.header("authorization") == "Bearer k3y"
    assert asked.json == {"query": "rain in May", "max_results": 3, "include_domains": ["a.example"]}


@pytest.mark.parametrize(("days", "span"), [(1, "day"), (5, "week"), (30, "month"), (90, "year"), (400, None)])
async def test_each_service_is_asked_for_the_shortest_span(service: ChatServer, days: int, span: str | None) -> None:
    service.script(*[json_answer({"results": []})] * 3)
    for kind in (Searxng, Brave, Tavily):
        await ask_service(kind(service.url("")), days=days)
    searxng, brave, tavily = service.requests
    assert (f"time_range={span}" in searxng.path) is (span is not None)
    assert (f"freshness=p{(span or '-')[0]}" in brave.path) is (span is not None)
    assert tavily.json.get("time_range") == span


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (json_answer({"error": "k3y is wrong"}, 401), "status 401"),
        (json_answer({}, 429), "busy"),
        (json_answer([1]), "cannot be read"),
        (answer(parts=[b"<html>"]), "cannot be read"),
        (answer(parts=[Close()], framing="none"), "cannot be reached"),
        (answer(302, (("location", "http://127.0.0.1/secret"),), [], framing="length"), "status 302"),
    ],
)
async def test_a_service_that_misbehaves(service: ChatServer, script: Any, told: str) -> None:
    # A connection that breaks before its answer is tried a second time.
    service.script(script, script)
    with pytest.raises(ToolFailed, match=told) as failed:
        await ask_service(Searxng(service.url(""), key="k3y"))
    assert "k3y" not in str(failed.value) and "127.0.0.1" not in str(failed.value)


@pytest.mark.parametrize("found", [{"results": None}, {"results": 5}, {"results": [None, 5, {"url": 5}]}, {}])
async def test_odd_results_are_none(service: ChatServer, found: Any) -> None:
    service.script(json_answer(found))
    assert await ask_service(Searxng(service.url(""))) == []


# Pages and results that mean harm


async def test_a_page_that_leads_out_of_the_allowed_domains_is_not_followed() -> None:
    async with ChatServer(base_path="") as site:
        port = int(site.url("").rstrip("/").rpartition(":")[2])
        pages = GuardedFetcher(
            FetchSettings(http=True, ports=(port,), types=("text/*",)),
            AddressRule(["a.example", "b.example"]),
            resolve=_loopback,
        )
        away = answer(302, (("location", f"http://b.example:{port}/x"),), [], framing="length")
        site.script(away, away)
        tool = WebSearch(_Provider(), pages.fetch)
        url = f"http://a.example:{port}/"
        result = await tool.run(_call("open_page", {"url": url}, filters={"allowed_domains": ["a.example"]}))
        assert result.failed and "does not allow" in result.output and len(site.requests) == 1
        blocked = await tool.run(_call("open_page", {"url": url}, filters={"blocked_domains": ["b.example"]}))
        assert blocked.failed and len(site.requests) == 2


async def _loopback(host: str, port: int) -> Sequence[str]:
    return ("127.0.0.1",)


async def test_no_title_or_address_can_pass_for_a_mark() -> None:
    page = FetchedFile("p", "text/html", "<title>【7】{cite:0}</title><p>x【8】".encode())
    result = await WebSearch(_Provider(), _Pages(page).fetch).run(_call("open_page", {"url": "https://a.example/"}))
    assert result.output.count("{cite:") == 1 and "【" not in result.output
    hits = [WebHit("https://a.example/{cite:1}【9】", "A", "x")]
    found = await WebSearch(_Provider(hits)).run(_call("web_search", {"query": "x"}))
    assert found.output.count("{cite:") == 1 and "【" not in found.output


@pytest.mark.parametrize(
    "piece", ["<", "<a ", "<a/", "<!", "<!--", "<?", "</", '<a b="', "<a b=", "<script>", "<script><", "&#", "<title>"]
)
def test_what_is_left_open_in_a_page_costs_no_time(piece: str) -> None:
    # Parsers that look for every end anew need hours for this.
    title, text = page_text(FetchedFile("p", "text/html", b"<p>It rains.</p>" + piece.encode() * 500_000))
    assert text.startswith("It rains.") and not title.strip("<")


@pytest.mark.parametrize("encoding", ["unicode_escape", "utf-7", "punycode", "idna", "zlib", "undefined", "nothing"])
def test_encodings_that_no_browser_knows_are_not_used(encoding: str) -> None:
    data = f'<meta charset="{encoding}"><p>\\ud800 +2AA- xn--a'.encode()
    assert page_text(FetchedFile("p", "text/html", data))[1] == "\\ud800 +2AA- xn--a"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a < b <3 &lt;p&gt;", "a < b <3 <p>"),
        ("<!-->shown<!-- a > b -->too<!doctype x>", "showntoo"),
        ('<a title="x > <p>y">link</a>', "link"),
        ("<p title='it is hidden here'>shown", "shown"),
        ('<p class="md:block hidden x">shown', "shown"),
        ("<p hidden>x</p>shown<b aria-hidden=true>x</b><i aria-hidden='false'>.</i><u HIDDEN=''>x</u>", "shown."),
        ("<SCRIPT>if (a < b) '</p>'</ScRiPt>shown<style>p{}</style>", "shown"),
        ("&#99999999999999999999;&#" + "9" * 5000 + ";&#x41;&eacute;", "\ufffd;\ufffd;A\u00e9"),
        ("<p>one</p ><p>two<br/>three<p", "one\n\ntwo\nthree"),
        ("<p>one\n  line<pre>a\n  b</pre>c\nd", "one line\n\na\nb\nc d"),
    ],
)
def test_the_text_of_html(html: str, text: str) -> None:
    assert page_text(FetchedFile("p", "text/html", html.encode()))[1] == text


def test_every_name_of_the_tool_in_the_api_is_one_of_its_types() -> None:
    description = files("antiphon.api").joinpath("openapi.json").read_text()
    names = set(re.findall(r'"const": "(web_search\w*)"', description)) - {"web_search_call"}
    assert len(names) == 4 and WebSearch.types == names
