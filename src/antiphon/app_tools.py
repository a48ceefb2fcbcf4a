"""The composition root's part for the tools that run here.

Lives here: which tools these settings make available. Not here: the tools (`tools/`), the rest (`app.py`).

Invariant: a tool that is not configured is not in the box, so that requests for it are refused or told of it.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from urllib.parse import urlsplit

import structlog

from antiphon.api.containers import ContainerApi
from antiphon.api.route import Route
from antiphon.app_outgoing import make_fetcher, make_permit
from antiphon.config import Settings
from antiphon.engine.file_ports import FileStore
from antiphon.engine.knowledge import Searcher
from antiphon.observability.metrics import Metrics
from antiphon.tools.box import LazyTool, Tool, Toolbox, ToolLimits
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.local import LocalSandbox, why_unavailable
from antiphon.tools.code_interpreter.port import SandboxLimits
from antiphon.tools.code_interpreter.records import Records
from antiphon.tools.code_interpreter.tool import CodeInterpreter
from antiphon.tools.file_search import FileSearch
from antiphon.tools.web_search.providers import Brave, Searxng, Tavily
from antiphon.tools.web_search.tool import WebSearch

__all__ = ["container_routes", "make_tools", "open_containers"]

_log = structlog.get_logger(__name__)

_SEARCH_SERVICES: dict[str, tuple[type[Searxng | Brave | Tavily], str]] = {
    "searxng": (Searxng, ""),
    "brave": (Brave, "https://api.search.brave.com"),
    "tavily": (Tavily, "https://api.tavily.com"),
}
_PAGE_TYPES = ("text/*", "application/xhtml+xml", "application/json", "application/*+json", "application/xml")


def make_tools(
    settings: Settings, metrics: Metrics, searcher: Searcher | None = None, rooms: ContainerRooms | None = None
) -> Toolbox:
    """The tools that these settings make available. Raises `ConfigError`."""
    tools: list[Tool] = []
    if searcher is not None:
        tools.append(FileSearch(searcher))
    if (search := _web_search(settings)) is not None:
        tools.append(search)
    if settings.mcp.enabled and find_spec("mcp") is not None:
        tools.append(LazyTool(frozenset({"mcp"}), lambda: _mcp(settings)))
    if rooms is not None:
        code = settings.code_interpreter
        tools.append(
            CodeInterpreter(rooms, memory=code.memory, idle_seconds=code.idle, show_pictures=code.show_pictures)
        )
    limits = settings.tools
    return Toolbox(
        tools,
        ToolLimits(seconds=limits.seconds, concurrent=limits.concurrent, output_chars=limits.output_chars),
        metrics,
    )


async def open_containers(settings: Settings, files: FileStore | None) -> ContainerRooms | None:
    """The containers for code, where these settings want them and this machine can hold code in."""
    chosen = settings.code_interpreter
    if chosen.sandbox == "none":
        return None
    # Tried out, not believed: kernels and container runtimes differ.
    folder = settings.data / "containers"
    reason = await asyncio.to_thread(why_unavailable, chosen.python, folder)
    if reason:
        _log.error("code_interpreter_unavailable", reason=reason)
        return None
    limits = SandboxLimits(
        seconds=chosen.seconds,
        memory=chosen.memory,
        disk_bytes=chosen.disk_bytes,
        output_bytes=chosen.output_bytes,
        machines=chosen.machines,
    )
    return ContainerRooms(
        LocalSandbox(folder / "machines", limits, chosen.python),
        Records(folder / "records"),
        files,
        most=chosen.containers,
        per_owner=chosen.per_owner,
    )


def container_routes(settings: Settings, rooms: ContainerRooms) -> tuple[Route, ...]:
    """The endpoints for containers."""
    chosen = settings.code_interpreter
    return ContainerApi(rooms, memory=chosen.memory, idle_seconds=chosen.idle).routes()


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
