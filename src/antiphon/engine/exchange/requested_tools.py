"""Finds the hosted tools that a request declares, and the MCP tool calls that its client has approved.

This module does no I/O. `translation/request/tools.py` parses tool declarations, and `tools/mcp_servers.py` decides
which calls need approval. `tool_turns.py` emits the tool calls and the approval requests. `engine/ports/idempotency.py`
defines how the store records used approvals.

Invariant: each approval permits one call, and Antiphon runs that call once. This module refuses a second answer to an
approval request in the same conversation. The store refuses a second use in another branch of the conversation, or in a
concurrent request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.engine.ports.hosted_tools import HostedFunction, HostedTool, PreparedTool
from antiphon.errors import InvalidRequest, invalid_parameter
from antiphon.translation.chat.context_size import Named
from antiphon.translation.item_kinds import CALLS
from antiphon.translation.request.tools import decode_tools, may_be_called, runs_here
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.items import InputItem
from antiphon.types.json import encode, try_decode
from antiphon.types.request import CreateResponse, ToolChoice, ToolDeclaration
from antiphon.types.views import Approval, RanInContainer

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_RAN: Final = msgspec.json.Decoder(RanInContainer)


def hosted_tools(request: CreateResponse, types: frozenset[str], items: Sequence[Named] = ()) -> tuple[HostedTool, ...]:
    """Return the declared tools that the sidecar runs. `items` are the conversation so far.

    The result omits `tool_search` if no tool has `defer_loading`, because `tool_search` finds only such tools.
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
    """Return the declarations of the tools with `defer_loading`, which a tool search may find. The declaration of a
    namespace contains only its tools with `defer_loading`."""
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
    """Add the tools of MCP servers with `defer_loading` to the tools that a tool search may find.

    A request does not list the tools of an MCP server. Antiphon fetches this list when it prepares the tools.
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
    """Return the declaration of an MCP server with the server's tools. Return any other declaration unchanged."""
    declared = _OBJECT.decode(source)
    if bytes(declared["type"]) != _MCP:
        return source
    functions = servers.get(msgspec.json.decode(declared["server_label"]), [])
    tools = [{"name": one.name, "description": one.description, "parameters": one.parameters} for one in functions]
    return encode({**declared, "tools": tools})


def _deferred(tools: Sequence[ToolDeclaration]) -> Iterator[tuple[ToolDeclaration | None, list[ToolDeclaration]]]:
    """Yield the tools with `defer_loading`, as pairs of a namespace (or MCP server) and a list of its tools. For a tool
    without a namespace, the first element of the pair is None."""
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
    """Return the id of the container in which the last `code_interpreter_call` ran, or None without such a call."""
    for _, item in reversed(items):
        if item.type == "code_interpreter_call":
            ran = try_decode(_RAN, item.source)
            return ran.container_id if ran is not None else None
    return None


Approved = tuple[str, CallTarget, str]
"""A call that the client approved: the id of the approval request, the tool, and the call's arguments as JSON text."""


class Answers:
    """The approval requests that the client has answered in a conversation.

    `new` has the answers in this request. It maps the id of each approval request to the answer's parameter name, for
    error messages. `earlier` has the ids of approval requests that the client approved in an earlier request, if the
    conversation does not contain the call. A client that sends the whole conversation repeats such approvals in each
    request.
    """

    def __init__(self) -> None:
        self.new: dict[str, str] = {}
        self.earlier: set[str] = set()


def read_answers(items: Sequence[Named]) -> Answers:
    """Collect the client's answers to approval requests in a conversation. Raises `InvalidRequest` if the request
    answers an approval request that already has an answer."""
    answers = Answers()
    asked: set[str] = set()
    seen: set[str] = set()
    approved: set[str] = set()
    for name, item in items:
        if item.type == "mcp_approval_response":
            request = item.approval_request_id or ""
            if request not in asked:
                continue
            own = name.startswith("input[")
            if own and request in seen:
                raise answered_already(f"{name}.approval_request_id", request)
            seen.add(request)
            if item.approve:
                approved.add(request)
            if own:
                answers.new[request] = f"{name}.approval_request_id"
            elif item.approve:
                answers.earlier.add(request)
            continue
        if answers.new and (item.type in _MODELS or item.role == "assistant"):
            # Output of the model follows the client's answer to the approval request. So an earlier response has
            # already acted on this answer.
            answers.earlier.update(approved.intersection(answers.new))
            answers.new.clear()
        if item.type == "mcp_approval_request" and item.id:
            asked.add(item.id)
        elif item.type == "mcp_call" and (of := _read_approval(item).approval_request_id):
            seen.add(of)
            answers.new.pop(of, None)
            answers.earlier.discard(of)
    return answers


def answered_already(where: str, request_id: str, response_id: str = "") -> InvalidRequest:
    """Return the error for a second answer to an approval request. `where` is the parameter with the second answer.
    `response_id` is the response that used the first answer, or empty if unknown."""
    by = (
        f" in the response '{response_id}'; if that response is stored, it shows the result of the call"
        if response_id
        else ""
    )
    return InvalidRequest(
        f"The approval request '{request_id[:128]}' was answered already{by}. An approval can be used only once. To "
        "run the call again, let the model ask for approval again.",
        param=where,
        code="approval_already_answered",
    )


def approved_calls(items: Sequence[Named], besides: Collection[str] = ()) -> list[Approved]:
    """Return the approved calls without a result in the conversation, in the order of the approvals. The result omits
    the approval requests whose ids are in `besides`."""
    asked: dict[str, Approval] = {}
    approved: dict[str, Approved] = {}
    for _, item in items:
        if item.type not in _OF_APPROVALS:
            continue
        read = _read_approval(item)
        if item.type == "mcp_approval_request" and item.id:
            asked[item.id] = read
        elif item.type == "mcp_approval_response" and item.approve and item.approval_request_id in asked:
            if item.approval_request_id in besides:
                continue
            request = asked[item.approval_request_id]
            target = CallTarget(CallKind.MCP, request.name, request.server_label or None)
            approved[item.approval_request_id] = (item.approval_request_id, target, request.arguments)
        elif item.type == "mcp_call" and read.approval_request_id:
            approved.pop(read.approval_request_id, None)
    return list(approved.values())


def check_servers(items: Sequence[Named], new: Collection[str], declared: Collection[str | None]) -> None:
    """Raise `InvalidRequest` when the request does not declare the MCP server of an approved call. `new` has the ids of
    the approval requests that this request answers. `declared` has the labels of the request's MCP servers."""
    for name, target, _ in approved_calls(items) if new else ():
        if name in new and target.namespace not in declared:
            problem = (
                f"the approved call '{name}' needs the MCP server '{target.namespace or ''}', which is not in 'tools'. "
                "Tools do not carry over from earlier responses: declare the server in this request too"
            )
            raise invalid_parameter("tools", problem)


_MODELS: Final = CALLS | {"reasoning"}
_APPROVAL: Final = msgspec.json.Decoder(Approval)
_OF_APPROVALS: Final = frozenset({"mcp_approval_request", "mcp_approval_response", "mcp_call"})


def _read_approval(item: InputItem) -> Approval:
    return try_decode(_APPROVAL, item.source) or Approval()


def label_of(item: InputItem) -> str:
    """Return the label of the MCP server to which an item belongs, or an empty string."""
    return _read_approval(item).server_label
