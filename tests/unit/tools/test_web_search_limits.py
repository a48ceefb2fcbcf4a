"""Limits of web_search at their very values: what is shown, cut, asked of services, declared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

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
from tests.support.chat_server import ChatServer, answer, json_answer
from tests.support.web_services import ask_service

SIZES = [("low", 5, 300, 6_000), ("medium", 8, 800, 20_000), ("high", 15, 2_000, 60_000)]
URL = "https://a.example/dir/a.html"


class _Provider(SearchProvider):
    def __init__(self, hits: Sequence[WebHit] = ()) -> None:
        super().__init__("")
        self.hits = list(hits)
        self.asked: list[dict[str, Any]] = []
        self.closed = 0

    async def search(
        self, query: str, *, limit: int, domains: Sequence[str], place: UserLocation, days: int | None = None
    ) -> list[WebHit]:
        self.asked.append({"query": query, "limit": limit, "domains": domains, "place": place, "days": days})
        return self.hits[:limit]

    async def aclose(self) -> None:
        self.closed += 1


class _Pages:
    def __init__(self, pages: dict[str, FetchedFile]) -> None:
        self.pages = pages
        self.fits: list[Callable[[str], bool] | None] = []

    async def fetch(
        self, urls: tuple[str, ...], fits: Callable[[str], bool] | None = None
    ) -> dict[str, FetchedFile | ApiError]:
        self.fits.append(fits)
        return {url: self.pages[url] for url in urls}


def _tool(**declared: Any) -> HostedTool:
    return HostedTool(1, "web_search", json.dumps({"type": "web_search", **declared}).encode())


def _call(name: str, arguments: dict[str, Any], **declared: Any) -> HostedCall:
    target = CallTarget(CallKind.WEB_SEARCH, name)
    return HostedCall("call_1", "ws_1", target, json.dumps(arguments), _tool(**declared), "owner", "resp_1")


def _text(text: str) -> FetchedFile:
    return FetchedFile("name", "text/plain", text.encode())


async def _open(page: FetchedFile, name: str = "open_page", /, **arguments: Any) -> str:
    size = arguments.pop("size", "low")
    tool = WebSearch(_Provider(), _Pages({URL: page}).fetch)
    return (await tool.run(_call(name, {"url": f" {URL} ", **arguments}, search_context_size=size))).output


# What a call shows


@pytest.mark.parametrize(("size", "results", "characters", "page"), SIZES)
async def test_how_much_each_size_shows(size: str, results: int, characters: int, page: int) -> None:
    provider = _Provider([WebHit(f"https://a.example/{number}", "A", "x" * 3_000) for number in range(20)])
    declared = {} if size == "medium" else {"search_context_size": size}
    found = await WebSearch(provider).run(_call("web_search", {"query": " rain ", "days": 3}, **declared))
    assert provider.asked == [{"query": "rain", "limit": results, "domains": [], "place": UserLocation(), "days": 3}]
    assert found.output.count("{cite:") == results and found.output.split("\n\n")[0].endswith("\n" + "x" * characters)
    assert found.output.count("x" * characters) == results and "x" * (characters + 1) not in found.output
    for length in (page - 1, page, page + 1):
        shown = await _open(_text("y" * length), size=size)
        assert shown.count("y") == min(length, page)
        assert shown.endswith("further parts.]") is (length > page)


async def test_what_is_told_of_a_page_by_its_lines() -> None:
    html = FetchedFile(
        "p", "text/html", b"<title>T</title><p>one<p>two<a href=b.html>B</a><a href='/" + b"x" * 600 + b"'>C</a>"
    )
    shown = await _open(html, line=2)
    assert shown.startswith("{cite:0} T\n\nL2: ") and "L1: " not in shown
    links = shown.split("\n\nLinks, by their numbers:\n")[1].split("\n")
    assert links[0] == "1: B https://a.example/dir/b.html"
    assert links[1].startswith("2: C https://a.example/xxx") and len(links[1]) == len("2: C ") + 500
    for line in (0, -3, 1):
        assert "L1: one" in await _open(html, line=line)
    assert "Links" not in await _open(_text("one"), line=1) and "Links" not in await _open(html)
    # In lines too a page has its limit.
    lines = await _open(_text("z\n" * 3_001), line=1)
    assert lines.count("z") == 3_000 and lines.endswith("[The page goes on: it has 3002 lines.]")


@pytest.mark.parametrize(
    ("link", "url"), [(1, "https://a.example/dir/b.html"), (2, "https://c.example/"), (0, ""), (3, "")]
)
async def test_the_page_that_a_link_leads_to(link: int, url: str) -> None:
    html = FetchedFile("p", "text/html", b"<a href=b.html>B</a> <a href=https://c.example/>C</a>")
    pages = _Pages({URL: html, "https://a.example/dir/b.html": _text("B's"), "https://c.example/": _text("C's")})
    result = await WebSearch(_Provider(), pages.fetch).run(_call("open_page", {"url": URL, "link": link}))
    assert result.failed is not bool(url)
    if url:
        assert result.fields["action"] == {"type": "open_page", "url": url}
        assert result.sources[0].annotation["url"] == url and f"{'BC'[link - 1]}'s" in result.output
    else:
        assert "it has 2 links." in result.output and result.fields["action"]["url"] == URL


async def test_words_are_found_in_all_of_a_page_whatever_its_length() -> None:
    page = _text("x" * 7_000 + "rain" + "x" * 7_000 + "rain" + "x" * 1_000)
    found = await _open(page, "find_in_page", pattern="RAIN")
    assert found.count("rain") == 2 and "\n\n[…]\n\n" in found and "further parts" not in found
    for pattern in ("", "  "):
        assert "does not contain these words" in await _open(page, "find_in_page", pattern=pattern)


async def test_only_what_fits_is_asked_and_a_title_is_cut() -> None:
    pages = _Pages({URL: FetchedFile("p", "text/html", b"<title>" + b"t" * 299 + b" uv</title>x")})
    tool = WebSearch(_Provider([WebHit("https://a.example/", "t" * 301, "")]), pages.fetch)
    filters = {"allowed_domains": ["a.example"], "blocked_domains": ["Bad.a.example"]}
    opened = await tool.run(_call("open_page", {"url": URL}, filters=filters))
    (fits,) = pages.fits
    assert fits is not None and fits(URL) and not fits("https://bad.a.example/") and not fits("https://b.example/")
    assert not opened.failed
    found = await tool.run(_call("web_search", {"query": "x"}))
    assert found.sources[0].annotation["title"] == "t" * 300


# Declarations


@pytest.mark.parametrize(("entries", "fine"), [(99, True), (100, True), (101, False)])
@pytest.mark.parametrize("name", ["allowed_domains", "blocked_domains"])
async def test_how_many_domains_there_may_be(name: str, entries: int, fine: bool) -> None:
    declared = _tool(filters={name: [f"d{number}.example" for number in range(entries)]})
    if fine:
        await WebSearch(_Provider()).prepare("owner", "resp_1", declared)
        return
    with pytest.raises(InvalidRequest) as refused:
        await WebSearch(_Provider()).prepare("owner", "resp_1", declared)
    assert (refused.value.param, refused.value.code) == (f"tools[1].filters.{name}", "array_above_max_length")


@pytest.mark.parametrize(
    ("domain", "fine"),
    [("a.example", True), ("A.EXAMPLE", True), ("x_1.a-b.co", True), ("a", False), ("-a.example", False),
     ("a." + "b" * 64, False), ("https://a.example", False), ("a.example/", False), ("", False)],
)  # fmt: skip
async def test_what_is_a_domain(domain: str, fine: bool) -> None:
    declared = _tool(filters={"allowed_domains": ["b.example", domain]})
    if fine:
        await WebSearch(_Provider()).prepare("owner", "resp_1", declared)
        return
    with pytest.raises(InvalidRequest) as refused:
        await WebSearch(_Provider()).prepare("owner", "resp_1", declared)
    assert (refused.value.param, refused.value.code) == ("tools[1].filters.allowed_domains", "invalid_value")


async def test_where_the_user_is_is_said_and_asked_as_far_as_it_is_known() -> None:
    provider = _Provider()
    where = {"type": "approximate", "country": "DE", "region": None, "city": "B" * 101, "timezone": "Europe/Berlin"}
    await WebSearch(provider).run(_call("web_search", {"query": "x"}, user_location=where))
    assert provider.asked[0]["place"].words == f"{'B' * 100}, DE, Europe/Berlin" and UserLocation().words == ""
    prepared = await WebSearch(provider).prepare("owner", "resp_1", _tool(external_web_access=True))
    assert "about here" not in prepared.functions[0].description


async def test_closing_the_tool_closes_the_service() -> None:
    provider = _Provider()
    await WebSearch(provider).aclose()
    assert provider.closed == 1


# Pages


@pytest.mark.parametrize(("gap", "pieces"), [(598, 1), (599, 1), (600, 1), (601, 2)])
def test_pieces_that_touch(gap: int, pieces: int) -> None:
    found = around("x" * 400 + "rain" + "y" * gap + "Rain" + "z" * 400, "rain")
    assert len(found) == pieces and sum(map(len, found)) == (608 + gap if pieces == 1 else 2 * 604)
    assert found[0].startswith("x" * 300 + "rain") and found[-1].endswith("Rain" + "z" * 300)


def test_pieces_at_the_edges_and_how_many_there_are() -> None:
    assert around("rain today", "rain") == ["rain today"] and around("a.b", ".") == ["a.b"] and around("ab", ".") == []
    many = ("rain" + "x" * 700) * 12
    assert len(around(many, "rain")) == 10
    assert around("one rain two", "rain", reach=2) == ["e rain t"]


@pytest.mark.parametrize(("links", "come"), [(199, 199), (200, 200), (201, 200)])
def test_how_many_links_there_are(links: int, come: int) -> None:
    html = b"".join(b"<a href=/%d>x</a>" % number for number in range(links))
    assert len(page_links(FetchedFile("p", "text/html", html), URL)) == come


def test_links_within_the_page_are_none_and_of_no_kind_but_the_web() -> None:
    html = b"<a href=a.html#x>x</a><a href='?q=1#y'>q</a><a href=http://[>b</a><a href=ftp://a/>f</a><a href=//b/>b</a>"
    page = FetchedFile("p", "application/xhtml+xml", html)
    assert page_links(page, URL + "#top") == [Link("q", URL + "?q=1#y"), Link("b", "https://b/")]


@pytest.mark.parametrize("kind", ["text/css", "application/json", "image/svg+xml", "a/yaml", "application/javascript"])
def test_kinds_that_are_text(kind: str) -> None:
    assert page_text(FetchedFile("name", kind, b"<p>x")) == ("name", "<p>x")
    with pytest.raises(ValueError, match="a/b"):
        page_text(FetchedFile("name", "a/b", b"x"))


def test_lines_at_the_limit() -> None:
    text = "a" * 500 + "b\n\ncc"
    assert by_lines(text, 1, 507) == f"L1: {'a' * 500}\nL2: b\nL3: \nL4: cc"
    assert by_lines(text, 1, 506).endswith("\nL3: \n[The page goes on: it has 4 lines.]")
    assert by_lines(text, 4, 3) == "L4: cc" and by_lines(text, 5, 3) == "The page has 4 lines."
    assert by_lines("a" * 500, 1, 600) == f"L1: {'a' * 500}"


# Services, over real connections


@pytest.mark.parametrize(
    ("days", "span"),
    [(0, "day"), (1, "day"), (2, "week"), (7, "week"), (8, "month"), (31, "month"), (32, "year"), (366, "year"),
     (367, None), (None, None)],
)  # fmt: skip
async def test_which_span_holds_so_many_days(service: ChatServer, days: int | None, span: str | None) -> None:
    service.script(json_answer({"results": []}))
    await ask_service(Tavily(service.url("")), days=days)
    assert service.requests[0].json.get("time_range") == span


@pytest.mark.parametrize(("sites", "named"), [(0, 0), (1, 1), (2, 2), (8, 8), (9, 0)])
async def test_so_many_sites_are_named_in_a_query(service: ChatServer, sites: int, named: int) -> None:
    service.script(json_answer({"results": []}))
    domains = [f"d{number}.example" for number in range(sites)]
    await ask_service(Searxng(service.url("")), domains=domains)
    asked = service.requests[0].path.replace("%3A", ":").replace("+", " ").replace("%28", "(").replace("%29", ")")
    listed = " OR ".join(f"site:{domain}" for domain in domains[:named])
    said = {0: "q=rain&", 1: f"q=rain {listed}&"}.get(named, f"q=rain ({listed})&")
    assert said in asked.replace("%20", " ")


@pytest.mark.parametrize(("limit", "asked"), [(19, 19), (20, 20), (21, 20)])
async def test_services_are_asked_for_no_more_than_they_give(service: ChatServer, limit: int, asked: int) -> None:
    results = [{"url": f"https://a.example/{number}", "title": "A"} for number in range(30)]
    service.script(json_answer({"web": {"results": results}}), json_answer({"results": results}))
    for kind in (Brave, Tavily):
        assert len(await ask_service(kind(service.url("")), limit=limit)) == limit
    brave, tavily = service.requests
    assert f"count={asked}&" in brave.path + "&" and tavily.json["max_results"] == asked


@pytest.mark.parametrize(("country", "sent"), [("", None), ("d", None), ("de", "DE"), ("deu", None)])
async def test_a_country_has_two_letters(service: ChatServer, country: str, sent: str | None) -> None:
    service.script(json_answer({"web": {"results": []}}))
    await ask_service(Brave(service.url("")), place=UserLocation(country=country))
    assert (f"country={sent}" in service.requests[0].path) is (sent is not None)
    assert sent is not None or "country" not in service.requests[0].path


async def test_odd_snippets_and_boxes_are_passed_over(service: ChatServer) -> None:
    url = "https://a.example/"
    odd = [{"url": url + "1", "extra_snippets": "x"}, {"url": url + "2", "extra_snippets": ["one", 5]}, 7]
    service.script(json_answer({"web": {"results": odd}}), json_answer({"web": 5}))
    hits = await ask_service(Brave(service.url("")))
    assert [(hit.url, hit.text) for hit in hits] == [(url + "1", ""), (url + "2", "one")]
    assert await ask_service(Brave(service.url(""))) == []
    boxes = [5, {"id": 7}, {"id": url, "infobox": "Rain", "content": "Water."}, {"id": "ftp://a"}]
    service.script(json_answer({"results": [{"url": url + "3", "title": "A"}], "infoboxes": boxes}))
    assert await ask_service(Searxng(service.url(""))) == [WebHit(url + "3", "A", ""), WebHit(url, "Rain", "Water.")]


async def test_texts_are_stripped_and_cut_and_domains_hold(service: ChatServer) -> None:
    one = {"url": "https://a.example/", "title": " A ", "content": " " + "x" * 4_001}
    service.script(
        json_answer({"results": [one, {"url": "https://b.example/", "title": "B"}, {"url": "http://a.example"}]})
    )
    hits = await ask_service(Tavily(service.url("")), domains=["a.example"])
    assert hits == [WebHit("https://a.example/", "A", "x" * 4_000), WebHit("http://a.example", "http://a.example", "")]


@pytest.mark.parametrize(("more", "read"), [(-1, True), (0, True), (1, False)])
async def test_how_large_an_answer_may_be(service: ChatServer, more: int, read: bool) -> None:
    body = b'{"results":[]}'
    body += b" " * ((4 << 20) + more - len(body))
    service.script(answer(parts=[body[: 1 << 20], body[1 << 20 :]]))
    if read:
        assert await ask_service(Searxng(service.url(""))) == []
        return
    with pytest.raises(ToolFailed, match="cannot be read"):
        await ask_service(Searxng(service.url("")))


@pytest.mark.parametrize(("status", "told"), [(429, "busy"), (503, "busy"), (500, "status 500"), (201, "status 201")])
async def test_what_a_status_means(service: ChatServer, status: int, told: str) -> None:
    service.script(json_answer({"results": []}, status))
    with pytest.raises(ToolFailed, match=told):
        await ask_service(Searxng(service.url("")))


async def test_a_service_can_be_asked_again_after_it_was_closed(service: ChatServer) -> None:
    provider = Searxng(service.url(""))
    service.script(json_answer({"results": []}), json_answer({"results": []}))
    await provider.aclose()
    for _ in range(2):
        assert await ask_service(provider) == []
    assert len(service.requests) == 2


def test_hosts_are_compared_without_case_and_dot() -> None:
    assert fits_domains("https://WWW.A.example./", ["a.example"]) and not fits_domains("https://[", [])
    assert not fits_domains("https:///x", ["a.example"]) and fits_domains("https:///x", [])
