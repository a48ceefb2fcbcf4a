"""Defines clients for web search services. A client sends one query and returns a list of results.

This module sends the HTTP request to each service, with the allowed domains, and parses the response. `web_search.py`
formats results and pages for the model, and removes results of blocked domains.

The operator configures a service's address, so the address may be private. Of the client's data, the service receives
only the query and, at most, the user's country.

Invariant: a provider returns results or raises `ToolFailed`. The message of `ToolFailed` contains no API key and no
address of the service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import structlog
from msgspec import Struct

from antiphon.tools.box import ToolFailed
from antiphon.types.json import decode_any

_log = structlog.get_logger(__name__)
_MAX_BYTES = 4 << 20
_MAX_TEXT = 4_000
_MAX_SITES = 8
_SPANS = ((1, "day"), (7, "week"), (31, "month"), (366, "year"))


@dataclass(frozen=True, slots=True)
class WebHit:
    """One search result. `url` begins with `http://` or `https://`. `text` is the snippet."""

    url: str
    title: str
    text: str


class UserLocation(Struct, frozen=True):
    """The user's approximate location, from the tool's declaration in the request. Unknown fields are empty or None.
    `country` is a two-letter code."""

    country: str | None = None
    region: str | None = None
    city: str | None = None
    timezone: str | None = None

    @property
    def words(self) -> str:
        """The location as text for the model, for example `Berlin, DE`."""
        return ", ".join(part[:100] for part in (self.city, self.region, self.country, self.timezone) if part)


def fits_domains(url: str, domains: Sequence[str]) -> bool:
    """Return whether the URL's host is one of these domains or a subdomain of one. An empty list allows every valid
    URL."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    return not domains or any(host == domain or host.endswith("." + domain) for domain in domains)


class SearchProvider:
    """The base class of search clients: an HTTP session with a timeout and a size limit, and the conversion of errors
    into `ToolFailed`."""

    name = ""

    def __init__(self, url: str, *, key: str = "", seconds: float = 15.0) -> None:
        # Every request contains the query parameters of the configured URL, for example a proxy's key.
        parts = urlsplit(url)
        self._url = parts._replace(path=parts.path.rstrip("/"), fragment="")
        self._key = key
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def search(
        self, query: str, *, limit: int, domains: Sequence[str], place: UserLocation, days: int | None = None
    ) -> list[WebHit]:
        """Return the best results, at most `limit`. `domains`: return only results of these domains and their
        subdomains. `days`: return only results of about this age or newer, if the service knows their age.

        Raises `ToolFailed`.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._seconds), cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                self._url._replace(path=self._url.path + path).geturl(),
                params=query,
                json=body,
                headers={"accept": "application/json", **(headers or {})},
                allow_redirects=False,
            ) as answer:
                data = await answer.content.read(_MAX_BYTES + 1)
                while len(data) <= _MAX_BYTES and not answer.content.at_eof():
                    data += await answer.content.read(_MAX_BYTES + 1 - len(data))
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            _log.warning("web_search_failed", provider=self.name, error=type(error).__name__)
            raise ToolFailed("the search service cannot be reached.") from None
        if answer.status != 200:
            _log.warning("web_search_failed", provider=self.name, status=answer.status)
            raise ToolFailed(
                "the search service is busy; try again later."
                if answer.status in (429, 503)
                else f"the search service answered with status {answer.status}."
            )
        try:
            value = decode_any(data) if len(data) <= _MAX_BYTES else None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            _log.warning("web_search_failed", provider=self.name, error="unreadable")
            raise ToolFailed("the search service gave an answer that cannot be read.")
        return value


class Searxng(SearchProvider):
    """Client for a SearXNG instance. SearXNG's own setting `search.formats` must contain `json`."""

    name = "searxng"

    async def search(
        self, query: str, *, limit: int, domains: Sequence[str], place: UserLocation, days: int | None = None
    ) -> list[WebHit]:
        """Search with SearXNG, which forwards the query to other search engines. If `domains` are given, the query
        contains the operator `site:`, which most search engines support."""
        sent = {"q": _with_sites(query, domains), "format": "json"}
        if span := _span(days):
            sent["time_range"] = span
        found = await self._ask("/search", query=sent)
        hits = _hits(found.get("results"), title="title", text="content", domains=domains)
        for box in found.get("infoboxes") or ():
            if isinstance(box, dict) and isinstance(box.get("id"), str):
                hits += _hits([{**box, "url": box["id"]}], title="infobox", text="content", domains=domains)
        return hits[:limit]


class Brave(SearchProvider):
    """Client for Brave's search API."""

    name = "brave"

    async def search(
        self, query: str, *, limit: int, domains: Sequence[str], place: UserLocation, days: int | None = None
    ) -> list[WebHit]:
        """Search with Brave. Returns the results in the section `web` of Brave's response. A result's text includes its
        extra snippets."""
        sent = {"q": _with_sites(query, domains), "count": str(min(limit, 20)), "extra_snippets": "true"}
        if place.country is not None and len(place.country) == 2:
            sent["country"] = place.country.upper()
        if span := _span(days):
            sent["freshness"] = f"p{span[0]}"
        found = await self._ask("/res/v1/web/search", query=sent, headers={"x-subscription-token": self._key})
        web = found.get("web")
        results = web.get("results") if isinstance(web, dict) else None
        for one in results if isinstance(results, list) else ():
            if isinstance(one, dict) and isinstance(one.get("extra_snippets"), list):
                more = [text for text in one["extra_snippets"] if isinstance(text, str)]
                one["description"] = "\n".join([str(one.get("description") or ""), *more])
        return _hits(results, title="title", text="description", domains=domains)[:limit]


class Tavily(SearchProvider):
    """Client for Tavily's search API."""

    name = "tavily"

    async def search(
        self, query: str, *, limit: int, domains: Sequence[str], place: UserLocation, days: int | None = None
    ) -> list[WebHit]:
        """Search with Tavily, whose API has a parameter for the allowed domains."""
        body: dict[str, object] = {"query": query, "max_results": min(limit, 20)}
        if domains:
            body["include_domains"] = list(domains)
        if span := _span(days):
            body["time_range"] = span
        found = await self._ask("/search", body=body, headers={"authorization": f"Bearer {self._key}"})
        return _hits(found.get("results"), title="title", text="content", domains=domains)[:limit]


SERVICES: dict[str, tuple[type[SearchProvider], str]] = {
    "searxng": (Searxng, ""),
    "brave": (Brave, "https://api.search.brave.com"),
    "tavily": (Tavily, "https://api.tavily.com"),
}
"""The search clients by name, with the public address of the service. A self-hosted service has no default address."""


def _span(days: int | None) -> str | None:
    """Return the shortest time span that covers `days`: `day`, `week`, `month` or `year`. Returns None without `days`,
    or for more than a year."""
    if days is None or days > _SPANS[-1][0]:
        return None
    return next(name for most, name in _SPANS if days <= most)


def _with_sites(query: str, domains: Sequence[str]) -> str:
    if not domains or len(domains) > _MAX_SITES:
        return query
    sites = " OR ".join(f"site:{domain}" for domain in domains)
    return f"{query} ({sites})" if len(domains) > 1 else f"{query} {sites}"


def _hits(found: object, *, title: str, text: str, domains: Sequence[str]) -> list[WebHit]:
    hits: dict[str, WebHit] = {}
    for one in found if isinstance(found, list) else ():
        where = one.get("url") if isinstance(one, dict) else None
        if not isinstance(where, str) or not where.startswith(("http://", "https://")) or where in hits:
            continue
        if fits_domains(where, domains):
            words = (one.get(title), one.get(text))
            named, said = (word.strip()[:_MAX_TEXT] if isinstance(word, str) else "" for word in words)
            hits[where] = WebHit(where, named or where, said)
    return list(hits.values())
