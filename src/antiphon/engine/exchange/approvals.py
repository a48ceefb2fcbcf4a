"""Reads from a conversation which MCP tool calls the client has approved.

Lives here: reading approval requests and their answers. Not here: emitting approval requests (`tool_turns.py`), the
rules that decide which calls need approval (`tools/mcp/servers.py`), and the store's record of used answers
(`engine/ports/idempotency.py`). The functions are pure.

Invariant: Antiphon uses each approval only once, so that an approved call runs only once. This module refuses an
approval if the conversation already contains the approval's first use. Only the store detects a second use in another
branch of the conversation, or in a concurrent request.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from antiphon.errors import InvalidRequest, invalid_parameter
from antiphon.translation.chat.truncation import Named
from antiphon.translation.item_kinds import CALLS
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.items import InputItem
from antiphon.types.json import try_decode
from antiphon.types.views import Approval

Approved = tuple[str, CallTarget, str]
"""A call that the client approved: the id of the approval request, the tool, and the call's arguments as JSON text."""


class Answers:
    """The approval requests that a conversation answers.

    `new` maps the id of each approval request that this request answers to the parameter name for error messages.
    `earlier` has the ids of approval requests that the client approved earlier, and whose calls are not in the
    conversation. A client that holds the conversation itself sends such an approval with every request.
    """

    def __init__(self) -> None:
        self.new: dict[str, str] = {}
        self.earlier: set[str] = set()


def read_answers(items: Sequence[Named]) -> Answers:
    """Collect the answers in a conversation. Raises `InvalidRequest` for a second answer to an approval request."""
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
        if item.type in _MODELS or item.role == "assistant":
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
    """The error for a second answer to an approval request. `where` is the parameter with the second answer.
    `response_id` is the response that used the first answer, or empty if unknown."""
    by = f" in the response '{response_id}'; if it is stored, it shows the result of the call" if response_id else ""
    return InvalidRequest(
        f"The approval request '{request_id[:128]}' was answered already{by}. An approval can be used only once, and "
        "its call is never sent twice. To run the call again, let the model ask for approval again.",
        param=where,
        code="approval_already_answered",
    )


def approved_calls(items: Sequence[Named], besides: Collection[str] = ()) -> list[Approved]:
    """The calls that the client approved and that have not run, in the order of the approvals. The result omits the
    approval requests whose ids are in `besides`."""
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
    """The label of the MCP server to which an item belongs, or an empty string."""
    return _read_approval(item).server_label
