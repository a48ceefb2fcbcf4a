"""Queries a search service as the web search tool does."""

from __future__ import annotations

from typing import Any

from antiphon.tools.web_search_providers import UserLocation, WebHit


async def ask_service(provider: Any, query: str = "rain", **more: Any) -> list[WebHit]:
    """The hits of a search. Closes the service afterwards, also after an error."""
    given: dict[str, Any] = {"limit": 3, "domains": [], "place": UserLocation(), **more}
    try:
        return list(await provider.search(query, **given))
    finally:
        await provider.aclose()
