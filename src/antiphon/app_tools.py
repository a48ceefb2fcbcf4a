"""The composition root's part for the tools that run here.

Lives here: which tools these settings make available. Not here: the tools (`tools/`), the rest (`app.py`).

Invariant: a tool that is not configured is not in the box, so that requests for it are refused or told of it.
"""

from __future__ import annotations

from antiphon.app_outgoing import make_fetcher
from antiphon.config import Settings
from antiphon.engine.knowledge import Searcher
from antiphon.observability.metrics import Metrics
from antiphon.tools.box import Tool, Toolbox, ToolLimits
from antiphon.tools.file_search import FileSearch
from antiphon.tools.web_search.providers import Brave, Searxng, Tavily
from antiphon.tools.web_search.tool import WebSearch

__all__ = ["make_tools"]

_SEARCH_SERVICES: dict[str, tuple[type[Searxng | Brave | Tavily], str]] = {
    "searxng": (Searxng, ""),
    "brave": (Brave, "https://api.search.brave.com"),
    "tavily": (Tavily, "https://api.tavily.com"),
}
_PAGE_TYPES = ("text/*", "application/xhtml+xml", "application/json", "application/*+json", "application/xml")


def make_tools(settings: Settings, metrics: Metrics, searcher: Searcher | None = None) -> Toolbox:
    """The tools that these settings make available. Raises `ConfigError`."""
    tools: list[Tool] = []
    if searcher is not None:
        tools.append(FileSearch(searcher))
    if (search := _web_search(settings)) is not None:
        tools.append(search)
    limits = settings.tools
    return Toolbox(
        tools,
        ToolLimits(seconds=limits.seconds, concurrent=limits.concurrent, output_chars=limits.output_chars),
        metrics,
    )


def _web_search(settings: Settings) -> WebSearch | None:
    chosen = settings.web_search
    if chosen.provider == "none":
        return None
    service, usual = _SEARCH_SERVICES[chosen.provider]
    key = chosen.api_key.get_secret_value() if chosen.api_key is not None else ""
    pages = make_fetcher(settings, most_bytes=chosen.page_bytes, types=_PAGE_TYPES) if chosen.pages else None
    return WebSearch(service(chosen.url or usual, key=key, seconds=chosen.seconds), pages)
