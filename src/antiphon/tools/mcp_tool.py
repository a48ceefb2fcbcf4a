"""Implements the `mcp` tool: shows the tools of an MCP server to the model as functions, and converts the results of
calls.

This module lists a server's tools, caches the lists, and converts results into the fields of an `mcp_call` item.
`mcp_servers.py` checks declarations and makes cache keys, and `mcp_connections.py` connects to servers.

Invariant: an error during a call never ends the response. The error becomes an output that the model can read.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import cast

from mcp import MCPError
from mcp.types import CallToolResult, ImageContent, RequestParamsMeta, TextContent
from mcp.types import Tool as McpToolInfo
from msgspec import Raw

from antiphon.config.tools import McpSettings
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import ApiError, ConnectorFailed
from antiphon.ids import new_id
from antiphon.observability.tracing import trace_headers
from antiphon.tools.mcp_connections import McpConnections, ServerFailed
from antiphon.tools.mcp_servers import McpDeclaration, McpServer, McpServers, RemoteTool, read_declaration
from antiphon.translation.events.citations import unmarked
from antiphon.translation.tool_map import CallKind, HostedFunction
from antiphon.types.items import McpListTools
from antiphon.types.json import decode_any, encode

_MAX_PAGES = 20
_MAX_IMAGES = 16
_MAX_SHOWN = 1 << 20
_INVALID_PARAMS = -32602
_REFUSED = frozenset({401, 403})
_NO_ANNOTATIONS = {"read_only": False}
"""The annotations that OpenAI's API returns for a tool without annotations. Vercel's AI SDK fails if the value is
null."""

_MAX_LISTS = 256
"""The maximum number of servers whose lists of tools are cached."""
_MAX_DESCRIPTION = 4_000
"""The maximum number of characters of a tool's description."""


class Mcp:
    """The hosted tool `mcp`."""

    types = frozenset({"mcp"})

    def __init__(
        self,
        servers: McpServers,
        connections: McpConnections,
        limits: McpSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = servers
        self._connections = connections
        self._limits = limits
        self._clock = clock
        self._lists: OrderedDict[str, tuple[float, list[RemoteTool]]] = OrderedDict()

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """List the server's tools. Returns a function for each tool that the declaration allows, and an
        `mcp_list_tools` item. Raises `ApiError`."""
        where = f"tools[{tool.index}]"
        declared = read_declaration(tool)
        server = self._servers.find(where, declared)
        shown = [one for one in await self._list(server, response_id, declared, where) if declared.shows(one)]
        listed = McpListTools(
            id=new_id("mcpl"),
            server_label=declared.label,
            tools=Raw(
                encode(
                    [
                        {
                            "name": one.name,
                            "description": one.description,
                            "input_schema": one.schema,
                            "annotations": one.annotations or _NO_ANNOTATIONS,
                        }
                        for one in shown
                    ]
                )
            ),
        )
        return PreparedTool(tool, tuple(_function(declared, one) for one in shown), (listed,))

    async def run(self, call: HostedCall) -> ToolResult:
        """Call the tool on its MCP server. Returns a failed result if the server or the tool fails."""
        declared = read_declaration(call.tool)
        server = self._servers.find(f"tools[{call.tool.index}]", declared)
        arguments = _arguments(call.arguments)
        if arguments is None:
            return _broken(
                call,
                {
                    "type": "mcp_protocol_error",
                    "code": _INVALID_PARAMS,
                    "message": "the arguments are not a JSON object",
                },
                "the arguments must be a JSON object.",
            )
        try:
            async with self._connections.session(server, call.response_id) as session:
                result = await session.call_tool(call.target.name, arguments, meta=_trace())
        except MCPError as error:
            message = server.hide(str(error.message))[:1000]
            return _broken(call, {"type": "mcp_protocol_error", "code": error.code, "message": message}, message)
        except ServerFailed as failure:
            error_object = {"type": "http_error", "code": failure.status or 502, "message": str(failure)}
            return _broken(call, error_object, str(failure))
        if not isinstance(result, CallToolResult):
            return _broken(
                call,
                {"type": "mcp_protocol_error", "code": -32600, "message": "unknown kind of result"},
                "the server gave a result of an unknown kind.",
            )
        return _result(call, result, server)

    async def aclose(self) -> None:
        """Close all sessions with MCP servers."""
        await self._connections.aclose()

    async def _list(
        self, server: McpServer, response_id: str, declared: McpDeclaration, where: str
    ) -> list[RemoteTool]:
        now = self._clock()
        known = self._lists.get(server.key)
        if known is not None and now < known[0]:
            return known[1]
        try:
            tools = await self._ask(server, response_id)
        except (ServerFailed, MCPError) as failure:
            raise _not_listed(failure, server, declared, where) from None
        self._lists[server.key] = (now + self._limits.list_seconds, tools)
        self._lists.move_to_end(server.key)
        while len(self._lists) > _MAX_LISTS:
            self._lists.popitem(last=False)
        return tools

    async def _ask(self, server: McpServer, response_id: str) -> list[RemoteTool]:
        tools: dict[str, RemoteTool] = {}
        async with self._connections.session(server, response_id) as session:
            cursor: str | None = None
            for _ in range(_MAX_PAGES):
                page = await session.list_tools(params={"cursor": cursor} if cursor else None)  # type: ignore[arg-type]
                for one in page.tools:
                    if one.name and len(tools) < self._limits.tools:
                        tools.setdefault(one.name, self._remote(one))
                cursor = page.next_cursor
                if not cursor or len(tools) >= self._limits.tools:
                    break
        return list(tools.values())

    def _remote(self, info: McpToolInfo) -> RemoteTool:
        annotations = info.annotations.model_dump(by_alias=True, exclude_none=True) if info.annotations else None
        description = unmarked(info.description)[:_MAX_DESCRIPTION] if info.description else None
        return RemoteTool(info.name[:128], description, info.input_schema or {"type": "object"}, annotations)


def _not_listed(failure: ServerFailed | MCPError, server: McpServer, declared: McpDeclaration, where: str) -> ApiError:
    """Return the client's error for an MCP server that did not list its tools. The error of a server that the operator
    registered names the connector in its cause, unless the server refused the client's credentials."""
    text = server.hide(str(failure))[:300]
    message = f"Error retrieving tool list from MCP server: '{declared.label}'. {text}"
    status, detail = (failure.status, failure.detail) if isinstance(failure, ServerFailed) else (0, "")
    theirs = status in _REFUSED and (declared.authorization is not None or declared.headers)
    if declared.connector_id is not None and not theirs:
        return ConnectorFailed(message, where, declared.connector_id, detail or text.rstrip("."))
    # OpenAI's API also returns status 424 when the client's MCP server fails.
    return ApiError(message, status=424, type="external_connector_error", param=where, code="http_error")


def _trace() -> RequestParamsMeta | None:
    # OpenTelemetry's conventions for MCP put the trace context into the call's `_meta`, because all calls share one
    # connection.
    traced = trace_headers()
    return cast(RequestParamsMeta, dict(traced)) if traced else None


def _function(declared: McpDeclaration, tool: RemoteTool) -> HostedFunction:
    schema = tool.schema
    if schema.get("type") == "object" and not {"properties", "$ref", "anyOf", "oneOf", "allOf"} & schema.keys():
        # Model servers reject a schema of type object without `properties`.
        schema = {**schema, "properties": {}}
    return HostedFunction(
        CallKind.MCP,
        tool.name,
        tool.description or "",
        Raw(encode(schema)),
        namespace=declared.label,
        approval=declared.asks(tool),
        deferred=bool(declared.defer_loading),
        read_only=tool.read_only,
    )


def _arguments(text: str) -> dict[str, object] | None:
    try:
        given = decode_any(text or "{}")
    except ValueError:
        return None
    return given if isinstance(given, dict) else None


def _result(call: HostedCall, result: CallToolResult, server: McpServer) -> ToolResult:
    texts, images = _contents(result.content)
    if not texts and not images and result.structured_content is not None:
        texts = [encode(result.structured_content).decode()]
    said = _cut(server.hide("\n".join(texts)))
    if result.is_error:
        content = [{"type": "text", "text": said}] if said else []
        return _broken(
            call, {"type": "mcp_tool_execution_error", "content": content}, said or "the tool gave no reason."
        )
    shown = "\n".join([*([said] if said else ()), *("[an image]" for _ in images)])
    return ToolResult(
        call.call_id, unmarked(said) or ("" if images else "Done."), {"output": shown}, images=tuple(images)
    )


def _cut(text: str) -> str:
    """Limit the length of the output in the response's item, which clients receive and the store saves. `Toolbox`
    limits the output that the model reads."""
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "\n[The rest was cut off: it is too long.]"


def _contents(content: Sequence[object]) -> tuple[list[str], list[str]]:
    """Split an MCP result into texts, and images as data URLs."""
    texts: list[str] = []
    images: list[str] = []
    for part in content:
        if isinstance(part, TextContent):
            texts.append(part.text)
        elif isinstance(part, ImageContent) and len(images) < _MAX_IMAGES:
            images.append(f"data:{part.mime_type};base64,{part.data}")
        elif (resource := getattr(part, "resource", None)) is not None and isinstance(
            text := getattr(resource, "text", None), str
        ):
            texts.append(text)
        elif (uri := getattr(part, "uri", None)) is not None:
            texts.append(f"[{getattr(part, 'name', None) or 'resource'}]({uri})")
        else:
            texts.append(f"[{getattr(part, 'type', 'something')} that cannot be shown]")
    return texts, images


def _broken(call: HostedCall, error: dict[str, object], message: str) -> ToolResult:
    return ToolResult(call.call_id, f"The call failed: {unmarked(message)}", {"error": error}, failed=True)
