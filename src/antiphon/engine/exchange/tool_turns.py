"""Decides which hosted tool calls run after a model call, and in which order the client gets their items.

For each tool call of the model, this module decides whether the call runs, needs the client's approval, or is refused.
It creates the items for the client, and the outputs for the model. It also subtracts the output tokens of each model
call from `max_output_tokens`. This module does no I/O: the package `tools` runs the calls. `running_tools.py` requests
them, and `translation/events/item_events.py` encodes the events.

Calls run in parallel, but the client gets their items one after the other, in the order in which the model made the
calls. At most one item is open: an item opens with its first event and closes with its last event. The items of client
tools and approval requests come at their place in this order.

Invariants: for each tool call, the model gets exactly one output, even if the call did not run. The next model call
gets the items in the form that the store saves. Therefore later responses, which read the stored items, show the model
the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.engine.exchange.loaded_request import LoadedRequest
from antiphon.engine.exchange.requested_tools import Approved, label_of
from antiphon.engine.exchange.stored_items import read_history, stored_output
from antiphon.engine.ports.hosted_tools import HostedCall, PreparedTool, ToolResult
from antiphon.translation.chat.call_items import sound_arguments
from antiphon.translation.chat.context_size import Named
from antiphon.translation.events.citations import Citations
from antiphon.translation.item_kinds import prefix_of
from antiphon.translation.tool_map import HOSTED_KINDS, CallKind, CallTarget, HostedFunction, flat_name
from antiphon.types.items import (
    CodeInterpreterCall,
    FileSearchCall,
    HostedItem,
    HostedToolSearchCall,
    HostedToolSearchOutput,
    InputItem,
    McpApprovalRequest,
    McpCall,
    McpListTools,
    Message,
    OutputItem,
    Reasoning,
    Shown,
    ShownCall,
    WebSearchCall,
    highest_mark,
)
from antiphon.types.json import ABSENT, encode, fragment_of, quoted, raw, try_decode
from antiphon.types.request import ToolChoice
from antiphon.types.response import UsageObject
from antiphon.types.views import CodeArguments

_CODE: Final = msgspec.json.Decoder(CodeArguments)
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_LIMIT: Final = "The limit of tool calls for this response is reached. Answer without further tool calls."
_TOO_MUCH: Final = "The results of this response's calls together exceed the limit ('tools.result_bytes')."
_OUTCOME_UNKNOWN: Final = (
    "The outcome of this call is unknown, because the response ended before the tool answered. The server does not "
    "send the call again."
)
_UNKNOWN: Final = "This tool does not exist."


ClientCall = tuple[CallTarget, str, str]
"""A call of a client tool that the model made after a hosted tool call. The client gets its item after the item of the
hosted tool call."""


class ToolTurns:
    """The hosted tool calls of one response. The calls and their results become part of the conversation that the model
    gets.

    Settings limit the number of tool calls, the number of model calls, and the size of all results. A request can lower
    the number of tool calls.
    """

    def __init__(self, loaded: LoadedRequest, prepared: Sequence[PreparedTool]) -> None:
        core, request, builder = loaded.core, loaded.request, loaded.builder
        limits = core.options.tool_limits
        self._loaded = loaded
        self._builder = builder
        self._prepared = prepared
        self._seen = 0
        """The number of output items that the response had when the current model call began."""
        self._said: list[OutputItem] = []
        self._written = builder.draft.written
        self._turns_left = limits.turns
        self._by_target: dict[CallTarget, tuple[PreparedTool, HostedFunction]] = {
            function.target: (one, function) for one in prepared for function in one.functions
        }
        self._new_id = core.new_id
        self._owner = core.head.owner
        self._left = min(request.max_tool_calls or limits.calls, limits.calls)
        self._room = limits.result_bytes
        self._include = request.include
        self.citations = Citations(highest_mark(loaded.items))
        self.shown: dict[str, Shown] = {}
        """Maps item ids to the tool outputs that the model got. The items for the client do not contain all of this
        text."""
        self._item_ids: dict[str, str] = {}
        self._rounds = 0
        self._calls: list[tuple[CallTarget, str, str]] = []
        self._approvals: Mapping[str, str] = {}
        self._waiting: list[tuple[str, HostedItem | ClientCall]] = []
        self._open: tuple[str, HostedItem] | None = None
        self._results: dict[str, ToolResult] = {}
        self._outputs: dict[str, str] = {}
        self._images: dict[str, tuple[str, ...]] = {}
        self.sends = False
        """Whether the tool calls of the last model call include one that may change external state, or one that the
        client approved."""
        self.asks_client = False
        """Whether the client must approve a call or run a function. The response then ends without another model
        call."""

    @property
    def exhausted(self) -> bool:
        """Whether a limit is reached, so that the model must answer without further tool calls."""
        return self._left <= 0 or self._turns_left <= 0

    def list_tools(self) -> bool:
        """Emit the tool lists of the MCP servers as items, unless the conversation already contains them. Returns
        whether the method emitted an item."""
        known = {label_of(item) for _, item in self._loaded.items if item.type == "mcp_list_tools"}
        listed = False
        for one in self._prepared:
            for item in one.items:
                if isinstance(item, McpListTools) and item.server_label in known:
                    continue
                self._builder.start()
                self._builder.hosted(item)
                self._builder.hosted_done(item)
                listed = True
        self._seen = len(self._builder.draft.output)
        return listed

    def pay(self, usage: UsageObject | None) -> None:
        """Subtract the output tokens of the last model call from `max_output_tokens`, because that limit applies to the
        whole response.

        If the upstream reports no token counts, the method assumes four bytes a token.
        """
        written, self._written = self._builder.draft.written - self._written, self._builder.draft.written
        request = self._loaded.request
        if request.max_output_tokens is not None:
            cost = usage.output_tokens if usage is not None else written // 4
            request.max_output_tokens = max(0, request.max_output_tokens - cost)

    def take_calls(self) -> list[tuple[CallTarget, str, str]]:
        """Remove and return the tool calls of the last model call, each as (tool, call id, arguments)."""
        builder = self._builder
        calls = builder.take_hosted_calls()
        self._said = builder.draft.output[self._seen :]
        return calls

    def begin_approved(self, approved: Sequence[Approved]) -> tuple[HostedCall, ...]:
        """Begin the tool calls that the client approved, before the first model call."""
        approvals = {self._new_id("call"): one for one in approved}
        calls = [(target, call_id, arguments) for call_id, (_, target, arguments) in approvals.items()]
        return self.begin(calls, {call_id: request_id for call_id, (request_id, _, _) in approvals.items()})

    def begin(
        self, calls: list[tuple[CallTarget, str, str]], approvals: Mapping[str, str] | None = None
    ) -> tuple[HostedCall, ...]:
        """Begin the tool calls of one model call, each given as (tool, call id, arguments). Returns the calls that
        Antiphon must run, and opens the first item.

        `approvals` maps call ids to the ids of the approval requests that the client approved.
        """
        self._approvals = approvals = approvals or {}
        self._builder.start()
        self._calls, self._results, self._outputs, self._item_ids = calls, {}, {}, {}
        self.sends = False
        running = []
        for target, call_id, arguments in calls:
            if target.kind not in HOSTED_KINDS:
                self.asks_client = True
                self._waiting.append((call_id, (target, call_id, arguments)))
                continue
            known = self._by_target.get(target)
            if known is None:
                self._outputs[call_id] = _UNKNOWN
                continue
            prepared, function = known
            if function.approval and call_id not in approvals:
                self._waiting.append((call_id, self._request(target, arguments)))
                continue
            if self._left <= 0:
                self._outputs[call_id] = _LIMIT
                continue
            self._left -= 1
            self.sends = self.sends or not function.read_only or call_id in approvals
            item = self._item(target, arguments, prepared, approvals.get(call_id))
            self._waiting.append((call_id, item))
            self._item_ids[call_id] = item.id
            running.append(
                HostedCall(call_id, item.id, target, arguments, prepared.tool, self._owner, self._builder.response.id)
            )
        self._go_on()
        return tuple(running)

    def receive(self, result: ToolResult) -> bool:
        """Receive the result of one tool call. Returns whether all calls have ended."""
        size = _weight((result.output, result.images, result.fields))
        if size > self._room:
            # The model gets an error as the tool's output. The response continues.
            error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": _TOO_MUCH}]}
            result = ToolResult(result.call_id, f"The call failed: {_TOO_MUCH}", {"error": error}, failed=True)
        else:
            self._room -= size
        self._results[result.call_id] = result
        self._go_on()
        return self._open is None and not self._waiting

    def end_turn(self) -> bool:
        """Add the model's text, its tool calls and their results to the conversation. Returns whether the client must
        approve a call or run a function."""
        said = [item for item in self._said if isinstance(item, Message | Reasoning)]
        waits = self.asks_client or len(said) < len(self._said)
        emitted = self._builder.draft.output[self._seen :]
        untold = self._keep(emitted)
        made = [*read_history(stored_output(emitted, self.shown)), *untold]
        self._loaded.items = [*self._loaded.items, *(("output", item) for item in made)]
        self._said = []
        self._seen = len(self._builder.draft.output)
        self._turns_left -= 1
        return waits

    def _keep(self, emitted: Sequence[OutputItem]) -> list[InputItem]:
        """Save, with each item, the tool output that the model gets for it. A call that did not run has no item, so the
        method saves its output with the item of another call.

        If no call has an item, the method returns the outputs. This happens for approved calls whose tools no longer
        exist.
        """
        self._rounds += 1
        items = {item.id: item for item in emitted}
        left: list[ShownCall] = []
        last = search = ""
        for target, call_id, arguments in self._calls:
            output = self._outputs.get(call_id)
            if output is None:
                continue
            item_id = self._item_ids.get(call_id, "")
            if target.kind is CallKind.HOSTED_TOOL_SEARCH and item_id:
                # The items of a tool search contain its whole result, which is a list of tools.
                search = item_id
                continue
            left.append(self._shown_call(items.get(item_id), target, call_id, arguments, output))
            if item_id:
                last = item_id
                beside = tuple(one for kind, one, _ in self._calls if kind.kind not in HOSTED_KINDS)
                self.shown[item_id] = Shown(tuple(left), marks=self.citations.highest, beside=beside)
                left = []
        if last:
            self.shown[last].calls += tuple(left)
            return []
        if search and left:
            # In this turn, only tool searches ran.
            self.shown[search] = Shown(tuple(left))
            return []
        return [
            InputItem(type="function_call_output", call_id=call.asked, output=call.output)
            for call in left
            if call.asked is not None
        ]

    def _shown_call(
        self, item: OutputItem | None, target: CallTarget, call_id: str, arguments: str, output: str
    ) -> ShownCall:
        said = isinstance(item, McpCall) and item.output == output
        return ShownCall(
            call_id=call_id,
            name=flat_name(target.name, target.namespace),
            arguments=sound_arguments("arguments", quoted(fragment_of(arguments))),
            output=ABSENT if said else quoted(fragment_of(output)),
            images=self._images.get(call_id, ()),
            asked=self._approvals.get(call_id),
            round=f"{self._builder.response.id}.{self._rounds}",
        )

    @property
    def unanswered(self) -> list[HostedItem]:
        """The items of all calls that began, each marked as a call whose outcome is unknown."""
        begun = (*self._running, *self._waiting)
        return [_unknown(item) for _, item in begun if not isinstance(item, tuple | McpApprovalRequest)]

    @property
    def _running(self) -> tuple[tuple[str, HostedItem], ...]:
        """A tuple with the call whose item is open, or an empty tuple if no item is open."""
        return () if self._open is None else (self._open,)

    def drop(self) -> None:
        """Drop the current tool calls without running them, because the store could not save the claim."""
        for _, item in self._running:
            self._builder.hosted_done(_finished(item, {}, "incomplete"))
        self._waiting, self._open = [], None

    def stop(self) -> None:
        """End all tool calls, because the response ends while tools run. Emits an item for each call that began. An
        item without a result says that the outcome is unknown."""
        while self._open is not None:
            # The open item has no result, because `_go_on` closes every item that has a result.
            _, item = self._open
            self._open = None
            self._builder.hosted_done(_unknown(item))
            self._go_on()

    def _go_on(self) -> None:
        """Close each item whose call has a result, and open the item of the next call, until an open item's call has no
        result."""
        while True:
            if self._open is None:
                if not self._waiting:
                    return
                call_id, next_item = self._waiting.pop(0)
                if isinstance(next_item, tuple):
                    self._builder.emit_later(*next_item)
                    continue
                self._builder.hosted(next_item)
                if isinstance(next_item, McpApprovalRequest):
                    self._builder.hosted_done(next_item)
                    continue
                self._open = call_id, next_item
            call_id, item = self._open
            result = self._results.get(call_id)
            if result is None:
                return
            self._open = None
            self._outputs[call_id] = self.citations.add(result.sources, result.output)
            self._images[call_id] = result.images
            fields = self._shown(item.type, result.fields)
            if isinstance(item, HostedToolSearchCall):
                self._end_search(item, result)
            else:
                self._builder.hosted_done(_finished(item, fields, "failed" if result.failed else "completed"))

    def _end_search(self, item: HostedToolSearchCall, result: ToolResult) -> None:
        """Emit the two items of a tool search, the call and its output. The output of a failed search has no tools and
        the status `incomplete`.

        The model reads about the failure in this response and in later requests (`translation/chat/call_items.py`).
        """
        found = Raw(encode(result.fields.get("tools", [])))
        status = "incomplete" if result.failed else "completed"
        output = HostedToolSearchOutput(id=self._new_id("tso"), status=status, tools=found)
        self._builder.hosted_done(_finished(item, {}, status))
        self._builder.hosted(output)
        self._builder.hosted_done(output)

    def _shown(self, kind: str, fields: dict[str, object]) -> dict[str, object]:
        """Return the fields of an item for the client. Fields that the request must name in `include`, but does not,
        are null or missing."""
        shown = dict(fields)
        for name in ("results", "outputs"):
            if name in shown and f"{kind}.{name}" not in self._include:
                shown[name] = None
        action = shown.get("action")
        if isinstance(action, dict) and f"{kind}.action.sources" not in self._include:
            shown["action"] = {name: value for name, value in action.items() if name != "sources"}
        return shown

    def _request(self, target: CallTarget, arguments: str) -> McpApprovalRequest:
        self.asks_client = True
        return McpApprovalRequest(
            id=self._new_id("mcpr"), arguments=arguments, name=target.name, server_label=target.namespace or ""
        )

    def _item(self, target: CallTarget, arguments: str, prepared: PreparedTool, approval: str | None) -> HostedItem:
        searches = target.kind is CallKind.HOSTED_TOOL_SEARCH
        item_id, status = self._new_id(prefix_of("tool_search_call" if searches else target.kind)), "in_progress"
        item: HostedItem
        if target.kind is CallKind.FILE_SEARCH:
            item = FileSearchCall(id=item_id, status=status, queries=[])
        elif target.kind is CallKind.WEB_SEARCH:
            item = WebSearchCall(id=item_id, status=status)
        elif target.kind is CallKind.CODE_INTERPRETER:
            read = try_decode(_CODE, arguments)
            code = read.code if read is not None else arguments
            item = CodeInterpreterCall(id=item_id, status=status, code=code, container_id="")
        elif searches:
            item = HostedToolSearchCall(id=item_id, status=status, arguments=_object(arguments))
        else:
            item = McpCall(
                id=item_id,
                status=status,
                approval_request_id=approval,
                arguments=arguments,
                name=target.name,
                server_label=target.namespace or "",
            )
        return msgspec.structs.replace(item, **prepared.fields)


def citations_of(turns: ToolTurns | None, items: Sequence[Named]) -> Citations | None:
    """Return the sources to which citation marks in the model's text may refer. Return None if the model's input has no
    citation marks."""
    if turns is not None:
        return turns.citations
    return Citations(known) if (known := highest_mark(items)) else None


def later_choice(choice: ToolChoice | None, *, last: bool) -> ToolChoice | None:
    """Return the tool choice for all model calls after the first. `required` becomes `auto`, so that the model can stop
    calling tools. `last`: no further tool call is allowed."""
    if last:
        return ToolChoice("none", choice.echo if choice is not None else Raw(b'"auto"'))
    if choice is None or choice.mode != "required":
        return choice
    return ToolChoice("auto", choice.echo, None if choice.single else choice.tools)


def _weight(value: object) -> int:
    """Return the approximate size of a tool's result in bytes."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Raw):
        return len(bytes(value))
    if isinstance(value, Mapping):
        return sum(_weight(each) for each in value.values())
    if isinstance(value, Sequence):
        return sum(_weight(each) for each in value)
    return 8


def _finished(item: HostedItem, fields: dict[str, object], status: str) -> HostedItem:
    """Return `item` with the result of its call (`fields`) and the final `status`."""
    made = {name: Raw(encode(value)) if name in _RAW and value is not None else value for name, value in fields.items()}
    known = set(type(item).__struct_fields__)
    made = {name: value for name, value in made.items() if name in known}
    made["status"] = status
    return msgspec.structs.replace(item, **made)


_RAW: Final = frozenset({"results", "action", "outputs", "error"})


def _unknown(item: HostedItem) -> HostedItem:
    """Return `item` marked as a call that began and whose outcome is unknown."""
    error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": _OUTCOME_UNKNOWN}]}
    return _finished(item, {"error": error}, "incomplete")


def _object(arguments: str) -> Raw:
    """Return the model's arguments if they are a JSON object, else an empty object."""
    read = try_decode(_OBJECT, arguments)
    return raw(read or {})
