"""Implements the `web_search` tool: its declaration, the three functions that the model sees, and their results.

For a search, this module limits the number of results, and removes results that the declaration's `filters` forbid. To
open a page or find text in it, this module extracts the page's text and resolves its links.

`web_search_providers.py` has the clients of search services, and `html_text.py` converts HTML to text. A `PageFetcher`
(`upstream/fetch.py`) fetches pages from checked addresses. `api/standalone_search.py` has the endpoint for clients that
search without a model. Clients of this endpoint can also open a page at a given line, or follow a link of a page that
they opened.

Invariants: with `allowed_domains`, the tool neither shows nor opens URLs of other domains. Only the `PageFetcher`
fetches pages.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urldefrag, urljoin

from msgspec import Raw, Struct

from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, Source, ToolResult
from antiphon.engine.waiting import PAGES
from antiphon.errors import ApiError, wrong_value
from antiphon.html_text import decode_page, html_links, html_text
from antiphon.tools.box import ToolFailed, check_length, read_arguments, read_declared
from antiphon.tools.web_search_providers import SearchProvider, UserLocation, WebHit, fits_domains
from antiphon.translation.events.citations import unmarked
from antiphon.translation.tool_map import CallKind, HostedFunction
from antiphon.types.file_kinds import FetchedFile

_SIZES = {"low": (5, 300, 6_000), "medium": (8, 800, 20_000), "high": (15, 2_000, 60_000)}
"""For each `search_context_size`: the number of search results, the characters per result, and the characters per
page."""

_DOMAIN = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{2,63}")
_MAX_DOMAINS = 100
_LONGEST_URL = 500
_CITE = "Put the mark of a source, such as \u30103\u3011, right behind every statement that you take from it."
_SEARCH = Raw(
    b'{"type":"object","properties":{"query":{"type":"string","description":"What to look for."}},'
    b'"required":["query"],"additionalProperties":false}'
)
_OPEN = Raw(
    b'{"type":"object","properties":{"url":{"type":"string","description":"An address that a search found or the user '
    b'named."}},"required":["url"],"additionalProperties":false}'
)
_FIND = Raw(
    b'{"type":"object","properties":{"url":{"type":"string"},"pattern":{"type":"string","description":"The words to '
    b'look for in the page."}},"required":["url","pattern"],"additionalProperties":false}'
)


_Read = TypeVar("_Read")


class _Filters(Struct, forbid_unknown_fields=True):
    """The domains that a search may or may not use. Antiphon rejects an unknown filter, because ignoring it would show
    results that the client excludes."""

    allowed_domains: list[str] | None = None
    blocked_domains: list[str] | None = None


class _WebSearchDeclaration(Struct):
    filters: _Filters | None = None
    user_location: UserLocation | None = None
    search_context_size: str | None = None

    @property
    def allowed(self) -> list[str]:
        """The only domains whose URLs the tool may show and open. An empty list allows all domains."""
        return [domain.lower() for domain in (self.filters and self.filters.allowed_domains) or ()]

    def allows(self, url: str) -> bool:
        """Return whether the filters allow the tool to show and open this URL."""
        blocked = [domain.lower() for domain in (self.filters and self.filters.blocked_domains) or ()]
        return fits_domains(url, self.allowed) and not (blocked and fits_domains(url, blocked))


class _WebSearchArguments(Struct):
    query: str = ""
    url: str = ""
    pattern: str = ""
    days: int | None = None
    line: int | None = None
    """The first line to show. With `line`, the tool numbers the page's lines and lists its links. Only clients that use
    the search endpoint without a model send this field."""
    link: int | None = None
    """The number of a link on the page at `url`, from 1. The tool opens the page that the link leads to."""


PageFetcher = Callable[[tuple[str, ...], Callable[[str], bool] | None], Awaitable[dict[str, FetchedFile | ApiError]]]
"""Fetches the pages of these URLs from public addresses. Returns a page or an error for each URL, and raises no error.
The second argument is a function that decides which URLs, including redirects, may be fetched."""


class WebSearch:
    """The hosted tool `web_search`. Without `pages`, the model can search but not open pages."""

    types = frozenset({"web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"})

    def __init__(self, provider: SearchProvider, pages: PageFetcher | None = None) -> None:
        self._provider = provider
        self._pages = pages

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """Check the tool's declaration, and return the functions for the model. Raises `InvalidRequest`."""
        where = f"tools[{tool.index}]"
        declared = read_declared(tool, _WebSearchDeclaration)
        if declared.search_context_size not in (None, *_SIZES):
            name = f"{where}.search_context_size"
            raise wrong_value(f"Invalid value for '{name}'. Supported values are: {', '.join(_SIZES)}.", name)
        for name in ("allowed_domains", "blocked_domains"):
            _check_domains(f"{where}.filters.{name}", getattr(declared.filters, name, None) or [])
        words = declared.user_location.words if declared.user_location is not None else ""
        near = f" The user is about here: {words}." if words else ""
        functions = [_function("web_search", f"Search the web.{near} {_CITE}", _SEARCH)]
        if self._pages is not None:
            functions += [
                _function("open_page", f"Read a web page. {_CITE}", _OPEN),
                _function("find_in_page", f"Find words in a web page, and read what is around them. {_CITE}", _FIND),
            ]
        return PreparedTool(tool, tuple(functions))

    async def run(self, call: HostedCall) -> ToolResult:
        """Run one call: a search, opening a page, or finding text in a page. Raises `ToolFailed`."""
        arguments = read_arguments(call.arguments, _WebSearchArguments)
        if arguments is None:
            raise ToolFailed("the arguments must be a JSON object of strings.")
        declared = read_declared(call.tool, _WebSearchDeclaration)
        if call.target.name == "web_search":
            return await self._search(call, arguments, declared)
        return await self._look(call, arguments, declared)

    async def aclose(self) -> None:
        """Close the connections to the search service."""
        await self._provider.aclose()

    async def _search(
        self, call: HostedCall, arguments: _WebSearchArguments, declared: _WebSearchDeclaration
    ) -> ToolResult:
        query = arguments.query.strip()
        if not query:
            raise ToolFailed("'query' is empty.")
        action: dict[str, object] = {"type": "search", "query": query, "queries": [query]}
        limit, characters, _ = _SIZES[declared.search_context_size or "medium"]
        place = declared.user_location or UserLocation()
        try:
            hits = await self._provider.search(
                query, limit=limit, domains=declared.allowed, place=place, days=arguments.days
            )
        except ToolFailed as failure:
            return ToolResult(call.call_id, f"The search failed: {failure}", {"action": action}, failed=True)
        hits = [hit for hit in hits if declared.allows(hit.url)]
        action["sources"] = [{"type": "url", "url": hit.url} for hit in hits]
        told = "\n\n".join(_shown(number, hit, characters) for number, hit in enumerate(hits))
        return ToolResult(
            call.call_id,
            told or "Nothing was found.",
            {"action": action},
            sources=tuple(_source(hit.url, hit.title) for hit in hits),
        )

    async def _look(
        self, call: HostedCall, arguments: _WebSearchArguments, declared: _WebSearchDeclaration
    ) -> ToolResult:
        url, finding = arguments.url.strip(), call.target.name == "find_in_page"
        action: dict[str, object] = {"type": "open_page", "url": url}
        if finding:
            action = {"type": "find_in_page", "url": url, "pattern": arguments.pattern}
        try:
            if arguments.link is not None:
                links = await self._read(url, declared, lambda page: page_links(page, url))
                if not 0 < arguments.link <= len(links):
                    raise ToolFailed(f"it has {len(links)} links.")
                action["url"] = url = links[arguments.link - 1].url
            title, text, links = await self._read(url, declared, lambda page: (*page_text(page), page_links(page, url)))
        except ToolFailed as failure:
            return ToolResult(call.call_id, f"The page cannot be read: {failure}", {"action": action}, failed=True)
        if finding:
            pieces = around(text, arguments.pattern) if arguments.pattern.strip() else []
            text = "\n\n[…]\n\n".join(pieces) or "The page does not contain these words."
        limit = _SIZES[declared.search_context_size or "medium"][2]
        if arguments.line is not None:
            text = by_lines(text, max(arguments.line, 1), limit) + _listed(links)
        elif len(text) > limit:
            text = text[:limit] + "\n[The page goes on; find_in_page shows further parts.]"
        told = f"{{cite:0}} {unmarked(title)}\n\n{unmarked(text)}"
        return ToolResult(call.call_id, told, {"action": action}, sources=(_source(url, title),))

    async def _read(self, url: str, declared: _WebSearchDeclaration, read: Callable[[FetchedFile], _Read]) -> _Read:
        if not declared.allows(url):
            raise ToolFailed("the request does not allow this domain.")
        assert self._pages is not None
        # The fetcher checks redirects with `allows` too, and requests no URL outside the allowed domains.
        page = (await self._pages((url,), declared.allows))[url]
        if isinstance(page, ApiError):
            raise ToolFailed(page.message)
        try:
            # Parse in a thread, because a large page would block other requests.
            return await PAGES.run(read, page)
        except ValueError:
            raise ToolFailed(f"the page is not text ({page.media_type[:64]}).") from None


def _check_domains(where: str, domains: list[str]) -> None:
    check_length(where, domains, _MAX_DOMAINS)
    for domain in domains:
        if not _DOMAIN.fullmatch(domain.lower()):
            advice = "Use domains such as 'example.com', without a scheme."
            raise wrong_value(f"Invalid value in '{where}': {domain[:64]!r}. {advice}", where)


def _function(name: str, description: str, parameters: Raw) -> HostedFunction:
    return HostedFunction(CallKind.WEB_SEARCH, name, description, parameters, read_only=True)


def _shown(number: int, hit: WebHit, characters: int) -> str:
    return f"{{cite:{number}}} {unmarked(hit.title)}\n{unmarked(hit.url)}\n{unmarked(hit.text[:characters])}"


def _listed(links: Sequence[Link]) -> str:
    if not links:
        return ""
    shown = (f"{number}: {link.text} {link.url[:_LONGEST_URL]}" for number, link in enumerate(links, 1))
    return "\n\nLinks, by their numbers:\n" + "\n".join(shown)


def _source(url: str, title: str) -> Source:
    return Source({"type": "url_citation", "url": url, "title": title[:300]})


_HTML = ("text/html", "application/xhtml+xml")
_MAX_LINKS = 200
_LONGEST_LINE = 500


@dataclass(frozen=True, slots=True)
class Link:
    """A link on a page. `url` is absolute and begins with `http://` or `https://`."""

    text: str
    url: str


def page_text(page: FetchedFile) -> tuple[str, str]:
    """Return the title and the text of a page. Raises `ValueError` if the media type is not text."""
    kind = page.media_type
    if kind in _HTML:
        return html_text(decode_page(page.data))
    if kind.startswith("text/") or kind.endswith(("json", "xml", "yaml", "javascript")):
        return page.name, decode_page(page.data)
    raise ValueError(kind)


def around(text: str, pattern: str, *, limit: int = 10, reach: int = 300) -> list[str]:
    """Return the passages of a text around each match of a pattern, at most `limit`. Matching ignores case. A passage
    extends `reach` characters around the match. Overlapping passages are merged."""
    found: list[tuple[int, int]] = []
    for match in re.finditer(re.escape(pattern), text, re.IGNORECASE):
        start, end = max(0, match.start() - reach), min(len(text), match.end() + reach)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return [text[start:end].strip() for start, end in found[:limit]]


def page_links(page: FetchedFile, url: str) -> list[Link]:
    """Return the links of a page at this URL, in the page's order, without links to the page itself."""
    if page.media_type not in _HTML:
        return []
    links = []
    here = urldefrag(url).url
    for text, target in html_links(decode_page(page.data), _MAX_LINKS):
        try:
            leads = urljoin(url, target)
        except ValueError:
            continue
        if leads.startswith(("http://", "https://")) and urldefrag(leads).url != here:
            links.append(Link(text, leads))
    return links


def by_lines(text: str, first: int, limit: int) -> str:
    """Return the text with numbered lines, from line `first` (counted from 1), up to `limit` characters."""
    lines = [
        line[at : at + _LONGEST_LINE] for line in text.split("\n") for at in range(0, max(len(line), 1), _LONGEST_LINE)
    ]
    if first > len(lines):
        return f"The page has {len(lines)} lines."
    shown: list[str] = []
    room = limit
    for number, line in enumerate(lines[first - 1 :], first):
        room -= len(line) + 1
        if room < 0:
            shown.append(f"[The page goes on: it has {len(lines)} lines.]")
            break
        shown.append(f"L{number}: {line}")
    return "\n".join(shown)
