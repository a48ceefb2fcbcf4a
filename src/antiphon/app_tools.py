"""The composition root's part for the tools that run here.

Lives here: which tools these settings make available. Not here: the tools (`tools/`), the rest (`app.py`).

Invariant: a tool that is not configured is not in the box, so that requests for it are refused or told of it.
"""

from __future__ import annotations

from importlib.util import find_spec
from urllib.parse import urlsplit

from antiphon.app_outgoing import make_fetcher, make_permit
from antiphon.config import Settings
from antiphon.engine.knowledge import Searcher
from antiphon.observability.metrics import Metrics
from antiphon.tools.box import LazyTool, Tool, Toolbox, ToolLimits
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
    if settings.mcp.enabled and find_spec("mcp") is not None:
        tools.append(LazyTool(frozenset({"mcp"}), lambda: _mcp(settings)))
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


def _mcp(settings: Settings) -> Tool:
    # Imported here, when it is first needed: the SDK takes longer to load than everything else together.
    from antiphon.tools.mcp.connections import ConnectionLimits, McpConnections
    from antiphon.tools.mcp.servers import Connector, McpServers
    from antiphon.tools.mcp.tool import ListLimits, Mcp

    chosen = settings.mcp
    connectors = {
        name: Connector(one.url, tuple((key, value.get_secret_value()) for key, value in one.headers.items()))
        for name, one in chosen.connectors.items()
    }
    anywhere = not chosen.allow and settings.owner.source == "single"
    hosts = (urlsplit(one.url).hostname or "" for one in connectors.values())
    return Mcp(
        McpServers(None if anywhere else chosen.allow, connectors),
        McpConnections(
            make_permit(settings, [host for host in hosts if host]),
            ConnectionLimits(
                connect_seconds=chosen.connect, idle_seconds=chosen.idle, answer_bytes=chosen.answer_bytes
            ),
        ),
        ListLimits(tools=chosen.tools, seconds=chosen.list_seconds),
    )
