"""Collects the request's hosted tools for the tool runner.

Lives here: the choice of the tools that Antiphon runs itself (hosted tools), and the facts of the conversation that
each tool gets. Not here: the calls of these tools (`tool_turns.py`), and parsing declarations
(`translation/request/tools.py`). The functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.engine.ports.hosted_tools import HostedFunction, HostedTool, PreparedTool
from antiphon.translation.chat.truncation import Named
from antiphon.translation.request.tools import decode_tools, may_be_called, runs_here
from antiphon.types.json import encode, try_decode
from antiphon.types.request import CreateResponse
from antiphon.types.tools import ToolChoice, ToolDeclaration
from antiphon.types.views import RanInContainer

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_RAN: Final = msgspec.json.Decoder(RanInContainer)


def hosted_tools(request: CreateResponse, types: frozenset[str], items: Sequence[Named] = ()) -> tuple[HostedTool, ...]:
    """The declared tools that the sidecar runs. `items` are the conversation so far.

    When the request defers no tool, the result omits `tool_search`, because `tool_search` finds only deferred tools.
    """
    if not types or not request.tools:
        return ()
    found = []
    for number, tool in enumerate(request.tools):
        if not runs_here(tool, types):
            continue
        if tool.type != "tool_search":
            earlier = _earlier(items) if tool.type == "code_interpreter" else None
            found.append(HostedTool(number, tool.type, bytes(tool.source), earlier))
        elif searchable := _searchable(request.tools, request.tool_choice):
            found.append(HostedTool(number, tool.type, bytes(tool.source), searchable=searchable))
    return tuple(found)


def _searchable(tools: Sequence[ToolDeclaration], choice: ToolChoice | None) -> tuple[bytes, ...]:
    """The declarations of the deferred tools that a tool search may find. The declaration of a namespace contains only
    its deferred tools."""
    deferred = list(_deferred(tools))
    if choice is not None and choice.searches:
        named = [
            (space, [one for one in members if choice.means(one.name, space.name if space is not None else None)])
            for space, members in deferred
        ]
        deferred = [
            (space, members)
            for space, members in named
            if members or (space is not None and space.type == "mcp" and choice.means_of(space.server_label))
        ] or deferred
    return tuple(_declaration(space, members) for space, members in deferred)


def with_servers(prepared: Sequence[PreparedTool], choice: ToolChoice | None) -> tuple[PreparedTool, ...]:
    """Add the deferred tools of MCP servers to the tools that a tool search finds.

    The request does not list the tools of an MCP server. Antiphon fetches the list when it prepares the tools.
    """
    servers: dict[str, list[HostedFunction]] = {}
    for one in prepared:
        for function in one.functions:
            if function.deferred:
                servers.setdefault(function.namespace or "", []).append(function)
    if not servers:
        return tuple(prepared)
    if choice is not None and choice.searches:
        for label, functions in servers.items():
            named = [one for one in functions if choice.means(one.name, label)]
            servers[label] = named or functions
    return tuple(_finding(one, servers) for one in prepared)


def _finding(one: PreparedTool, servers: dict[str, list[HostedFunction]]) -> PreparedTool:
    searchable = tuple(_with_tools(each, servers) for each in one.tool.searchable)
    return replace(one, tool=replace(one.tool, searchable=searchable)) if searchable else one


def _with_tools(source: bytes, servers: dict[str, list[HostedFunction]]) -> bytes:
    """Add the tools of an MCP server to its declaration. Return any other declaration unchanged."""
    declared = _OBJECT.decode(source)
    if bytes(declared["type"]) != _MCP:
        return source
    functions = servers.get(msgspec.json.decode(declared["server_label"]), [])
    tools = [{"name": one.name, "description": one.description, "parameters": one.parameters} for one in functions]
    return encode({**declared, "tools": tools})


def _deferred(tools: Sequence[ToolDeclaration]) -> Iterator[tuple[ToolDeclaration | None, list[ToolDeclaration]]]:
    """Yield the deferred tools as pairs of a namespace or MCP server and its deferred tools. A tool without a namespace
    forms a pair with None."""
    for tool in tools:
        if tool.type in ("function", "custom") and tool.defer_loading:
            yield None, [tool]
        elif tool.type == "namespace":
            members = [
                inner
                for inner in decode_tools("tools", tool.tools)
                if (inner.defer_loading or tool.defer_loading) and may_be_called(inner)
            ]
            if members:
                yield tool, members
        elif tool.type == "mcp" and tool.defer_loading:
            # Antiphon has not fetched the server's list of tools yet. `with_servers` adds these tools later.
            yield tool, []


_MCP: Final = b'"mcp"'
_SHOWN_OF_A_SERVER: Final = ("type", "server_label", "server_description")


def _declaration(space: ToolDeclaration | None, members: list[ToolDeclaration]) -> bytes:
    if space is None:
        return bytes(members[0].source)
    if space.type == "mcp":
        # The response shows the declarations that a search finds, so the declaration must not contain credentials.
        declared = _OBJECT.decode(space.source)
        return encode({name: declared[name] for name in _SHOWN_OF_A_SERVER if name in declared})
    return encode({**_OBJECT.decode(space.source), "tools": [one.source for one in members]})


def _earlier(items: Sequence[Named]) -> str | None:
    """The id of the container in which the last `code_interpreter_call` ran. None if there is no such call."""
    for _, item in reversed(items):
        if item.type == "code_interpreter_call":
            ran = try_decode(_RAN, item.source)
            return ran.container_id if ran is not None else None
    return None
