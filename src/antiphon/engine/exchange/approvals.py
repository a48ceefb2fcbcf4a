"""Calls of MCP tools for which the client is asked first.

Lives here: reading requests for approval and their answers from a conversation. Not here: asking (`tool_turns.py`),
which calls need it (`tools/mcp/declaration.py`). Pure.

Invariant: an approved call is run once: not where the conversation has it already.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from antiphon.errors import invalid_parameter
from antiphon.translation.call_items import CALLS
from antiphon.translation.compaction import Named
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.items import InputItem
from antiphon.types.views import Approval

Approved = tuple[str, CallTarget, str]
"""A call that the client approved: the id of the request, the tool, the arguments."""


def approved_calls(items: Sequence[Named]) -> list[Approved]:
    """Calls that the client approved and that have not been run, in their order."""
    asked: dict[str, Approval] = {}
    approved: dict[str, Approved] = {}
    for _, item in items:
        if item.type not in _OF_APPROVALS:
            continue
        read = _read_approval(item)
        if item.type == "mcp_approval_request" and item.id:
            asked[item.id] = read
        elif item.type == "mcp_approval_response" and item.approve and item.approval_request_id in asked:
            request = asked[item.approval_request_id]
            target = CallTarget(CallKind.MCP, request.name, request.server_label or None)
            approved[item.approval_request_id] = (item.approval_request_id, target, request.arguments)
        elif item.type == "mcp_call" and read.approval_request_id:
            approved.pop(read.approval_request_id, None)
    return list(approved.values())


def check_servers(items: Sequence[Named], declared: Collection[str | None]) -> None:
    """Raise `InvalidRequest` for a call that the client has just approved and that no `declared` server can run. One
    that the model has gone on from is no news any more."""
    new: set[str | None] = set()
    for _, item in items:
        if item.type == "mcp_approval_response":
            new.add(item.approval_request_id)
        elif item.role == "assistant" or item.type in _MODELS:
            new.clear()
    for name, target, _ in approved_calls(items) if new else ():
        if name in new and target.namespace not in declared:
            problem = (
                f"the approved call '{name}' is of the MCP server '{target.namespace or ''}', which is not among them. "
                "Tools are not carried over from earlier responses: declare the server in this request too"
            )
            raise invalid_parameter("tools", problem)


_MODELS: Final = CALLS | {"reasoning"}
_OF_APPROVALS: Final = frozenset({"mcp_approval_request", "mcp_approval_response", "mcp_call"})


def _read_approval(item: InputItem) -> Approval:
    try:
        return msgspec.json.decode(item.source, type=Approval)
    except msgspec.DecodeError:
        return Approval()


def label_of(item: InputItem) -> str:
    """The label of the MCP server that an item is about."""
    return _read_approval(item).server_label
