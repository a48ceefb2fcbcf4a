"""Builds the toolbox: the hosted tools that the settings enable.

The package `tools` implements the tools, and `app/build.py` builds the other components.

Invariant: a tool that is not configured is not in the toolbox, and its modules are not imported. For a request with
such a tool, the sidecar returns an error, or lists the tool in the header `antiphon-ignored`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from antiphon.api.endpoint import Endpoint
from antiphon.app.upstreams import make_fetcher, make_permit
from antiphon.config.settings import Settings
from antiphon.engine.ports.containers import ContainerRows
from antiphon.observability.metrics import Metrics
from antiphon.stores.files import FileStore
from antiphon.stores.owner_usage import StorageQuota
from antiphon.tools.box import LazyTool, Places, ServerTool, Toolbox
from antiphon.tools.tool_search import ToolSearch

if TYPE_CHECKING:
    from antiphon.tools.code_interpreter import ContainerRooms
    from antiphon.tools.web_search import WebSearch

_PAGE_TYPES = ("text/*", "application/xhtml+xml", "application/json", "application/*+json", "application/xml")


def make_tools(
    settings: Settings, metrics: Metrics, further: Iterable[ServerTool] = (), places: Places | None = None
) -> Toolbox:
    """Return the toolbox with the tools that the settings enable, and the tools in `further`. All tools share one set
    of limits, which apply to the whole process. Raises `ConfigError`."""
    tools = [ToolSearch(), *further]
    if (search := _web_search(settings)) is not None:
        tools.append(search)
    if settings.mcp.enabled and find_spec("mcp") is not None:
        tools.append(LazyTool(frozenset({"mcp"}), lambda: _mcp(settings)))
    return Toolbox(tools, settings.tools, metrics, places)


async def open_rooms(
    settings: Settings, files: FileStore | None, shared: ContainerRows | None = None
) -> ContainerRooms | None:
    """Open the containers in which the tool `code_interpreter` runs code. Returns None if the settings disable the
    sandbox, or if the system cannot isolate code. Raises `ConfigError`."""
    if settings.code_interpreter.sandbox == "none":
        return None
    from antiphon.tools import code_interpreter as sandbox

    return await sandbox.open_rooms(settings.code_interpreter, settings.data / "containers", files, shared)


def code_interpreter(settings: Settings, rooms: ContainerRooms) -> ServerTool:
    """Return the tool `code_interpreter`, which runs code in the containers of `rooms`."""
    from antiphon.tools.code_interpreter import CodeInterpreter

    return CodeInterpreter(rooms, settings.code_interpreter)


def container_endpoints(settings: Settings, rooms: ContainerRooms, room: StorageQuota | None) -> tuple[Endpoint, ...]:
    """Return the endpoints of `/v1/containers`. `room` checks the storage limits of owners and teams."""
    from antiphon.api.containers import ContainerApi

    return ContainerApi(rooms, settings.code_interpreter, room).endpoints()


def _web_search(settings: Settings) -> WebSearch | None:
    chosen = settings.web_search
    if chosen.provider == "none":
        return None
    from antiphon.tools.web_search import WebSearch
    from antiphon.tools.web_search_providers import SERVICES

    service, usual = SERVICES[chosen.provider]
    key = chosen.api_key.get_secret_value() if chosen.api_key is not None else ""
    limits = {"total_bytes": chosen.page_bytes, "types": _PAGE_TYPES}
    pages = make_fetcher(settings.fetch.model_copy(update=limits)).fetch if chosen.pages else None
    return WebSearch(service(chosen.url or usual, key=key, seconds=chosen.seconds), pages)


def _mcp(settings: Settings) -> ServerTool:
    # The tool's first use imports these modules, because the MCP SDK takes longer to load than the rest of Antiphon.
    from antiphon.tools.mcp_connections import McpConnections
    from antiphon.tools.mcp_servers import Connector, McpServers
    from antiphon.tools.mcp_tool import Mcp

    chosen = settings.mcp
    connectors = {
        name: Connector(one.url, tuple((key, value.get_secret_value()) for key, value in one.headers.items()))
        for name, one in chosen.connectors.items()
    }
    anywhere = not chosen.allow and not settings.owner.several
    hosts = (urlsplit(one.url).hostname or "" for one in connectors.values())
    return Mcp(
        McpServers(None if anywhere else chosen.allow, connectors),
        McpConnections(
            make_permit(settings, [host for host in hosts if host]),
            chosen,
        ),
        chosen,
    )
