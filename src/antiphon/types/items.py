"""Defines items and their content parts.

All input items have one type with optional fields (`InputItem`), because clients often omit fields or add others. Each
kind of output item has its own exact type. `translation/chat/messages.py` converts items into chat messages.

A hosted tool's output for the model is often longer than the tool's item. For example, the item of a search contains
the results only if the client requests them. Later requests must send the model the same text, because a model server
reuses its prefix cache only for an identical beginning of the prompt. So the store saves this text with the item
(`Shown`). Antiphon never sends this text to a client.

Sources: the schemas `ItemParam` and `ItemField` of Open Responses, and responses of OpenAI's service.

Invariants: text inside output items is raw JSON, which Antiphon does not decode between the upstream and the client. A
`Shown` never comes from a client. `HistoryItem` is a stored item with its `Shown`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from antiphon.types.json import ABSENT, JsonObject, JsonObjects, JsonText


class InputItem(Struct, gc=False):
    """An input item of any type, with the keys that Antiphon reads. `translation/item_kinds.py` finds unknown keys.

    `content`, `output` and `summary` stay raw: a string or an array of parts. `input` is the text that the model passes
    to a custom tool. `action`, `operation` and `environment` are fields of shell calls and patch calls. `tools` is a
    field of items that declare tools. `source` is the item's original JSON, if Antiphon must store or return the item
    exactly as the client sent it. For example, `source` is set for items of hosted tools from earlier responses.
    """

    type: str | None = None
    id: str | None = None
    role: str | None = None
    content: Raw = ABSENT
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Raw = ABSENT
    output: Raw = ABSENT
    summary: Raw = ABSENT
    encrypted_content: str | None = None
    phase: str | None = None
    namespace: str | None = None
    input: Raw = ABSENT
    tools: Raw = ABSENT
    action: Raw = ABSENT
    operation: Raw = ABSENT
    environment: Raw = ABSENT
    execution: str | None = None
    approval_request_id: str | None = None
    approve: bool | None = None
    reason: Raw = ABSENT
    source: Raw = ABSENT


class KnownItem(InputItem, gc=False, forbid_unknown_fields=True):
    """An input item whose type rejects unknown keys. The fields that this class adds are metadata, which Antiphon does
    not send to the model."""

    caller: Raw = ABSENT
    created_by: Raw = ABSENT
    internal_chat_message_metadata_passthrough: Raw = ABSENT


class InputPart(Struct, gc=False):
    """A content part of an input message or a tool output, of any type."""

    type: str | None = None
    text: Raw = ABSENT
    refusal: Raw = ABSENT
    image_url: Raw = ABSENT
    detail: str | None = None
    file_id: str | None = None
    filename: str | None = None
    file_data: Raw = ABSENT
    file_url: str | None = None
    input_audio: Raw = ABSENT


class KnownPart(InputPart, gc=False, forbid_unknown_fields=True):
    """A content part whose type rejects unknown keys. `annotations` and `logprobs` describe text that a model has
    generated."""

    annotations: Raw = ABSENT
    logprobs: Raw = ABSENT


ItemStatus = Annotated[
    str,
    Meta(
        extra_json_schema={
            "enum": [
                *("in_progress", "completed", "incomplete", "failed"),
                *("searching", "interpreting", "calling"),
            ]
        }
    ),
]
"""The status of an item, such as `in_progress` or `completed`."""


MessagePhase = Literal["commentary", "final_answer"]


class OutputText(Struct, tag_field="type", tag="output_text"):
    annotations: list[JsonObject]
    logprobs: list[JsonObject]
    text: JsonText


class Refusal(Struct, tag_field="type", tag="refusal"):
    refusal: JsonText


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: JsonText


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    text: JsonText


class _EmittedItem(Struct, kw_only=True):
    """The fields of every item in a response's output."""

    id: str
    type: str


class _Tracked(_EmittedItem, kw_only=True):
    """The fields of every output item that has a `status`."""

    status: ItemStatus


class _ClientCall(_Tracked, kw_only=True):
    """A call of a client tool. The client sends the call's output in a later request."""

    call_id: str


class Message(_Tracked, kw_only=True):
    """A message of the model. OpenAI's service sends exactly one content part in a message. The `status` is first
    in_progress, then completed or incomplete.

    `phase` is `commentary` for the text of a turn that calls tools, and `final_answer` for the text of the answer.
    Antiphon knows the value of `phase` only at the end of the message. `phase` stays unset if the model's output was
    cut off, or if the model continues with reasoning after the message.
    """

    type: Literal["message"] = "message"
    content: list[OutputText | Refusal]
    phase: MessagePhase | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"


class Reasoning(_EmittedItem, kw_only=True):
    """A reasoning item. Reasoning items have no `status`, because OpenAI's service sends none. `content` is absent when
    `summary` contains the text. `encrypted_content` is absent when the request's `include` does not list it."""

    type: Literal["reasoning"] = "reasoning"
    summary: list[SummaryText]
    content: list[ReasoningText] | UnsetType = UNSET
    encrypted_content: str | UnsetType = UNSET


class FunctionCall(_Tracked, kw_only=True):
    """A call of a function tool. `arguments` is the text that the model wrote, usually a JSON object. `namespace` is
    present when the tool was declared in a namespace. `encrypted_function_args` is present, as an empty list, when the
    tool's declaration requests encrypted arguments."""

    type: Literal["function_call"] = "function_call"
    arguments: JsonText
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    encrypted_function_args: list[str] | UnsetType = UNSET


class CustomToolCall(_ClientCall, kw_only=True):
    """A call of a custom tool. `input` is free text."""

    type: Literal["custom_tool_call"] = "custom_tool_call"
    name: str
    input: JsonText
    namespace: str | UnsetType = UNSET


class LocalShellCall(_ClientCall, kw_only=True):
    """A command for the client's machine. `action` is `{type: exec, command, env, …}`."""

    type: Literal["local_shell_call"] = "local_shell_call"
    action: JsonObject


class ShellCall(_ClientCall, kw_only=True):
    """Command lines for a shell. `action` is `{commands, timeout_ms, max_output_length}`."""

    type: Literal["shell_call"] = "shell_call"
    action: JsonObject
    environment: Raw = Raw(b'{"type":"local"}')


class ApplyPatchCall(_ClientCall, kw_only=True):
    """A change of one file, which the client applies. `operation` is `{type, path, diff}`."""

    type: Literal["apply_patch_call"] = "apply_patch_call"
    operation: JsonObject


class ToolSearchCall(_ClientCall, kw_only=True):
    """The model asks the client to search for tools. `arguments` is an object."""

    type: Literal["tool_search_call"] = "tool_search_call"
    execution: Literal["client"] = "client"
    arguments: JsonObject


NativeCall = LocalShellCall | ShellCall | ApplyPatchCall | ToolSearchCall
"""Call items that the stream emits only when their arguments are complete."""


class Compaction(_EmittedItem, kw_only=True):
    """An item that replaces an earlier section of the conversation by a summary. The item has no `status`."""

    type: Literal["compaction"] = "compaction"
    encrypted_content: str


class FileSearchCall(_Tracked, kw_only=True):
    """A search in vector stores. `results` is present only if the request's `include` has
    `file_search_call.results`."""

    type: Literal["file_search_call"] = "file_search_call"
    queries: list[str]
    results: JsonObjects | None = None


class WebSearchCall(_Tracked, kw_only=True):
    """A web search, or a page that Antiphon opened. `action` is `{type: search, query, sources?}` or `{type: open_page,
    url}`. `action` is present once the call has ended with a result or a failure."""

    type: Literal["web_search_call"] = "web_search_call"
    action: JsonObject | UnsetType = UNSET


class CodeInterpreterCall(_Tracked, kw_only=True):
    """Code that Antiphon ran. `outputs` is present only if the request's `include` has
    `code_interpreter_call.outputs`."""

    type: Literal["code_interpreter_call"] = "code_interpreter_call"
    code: str
    container_id: str
    outputs: JsonObjects | None = None


class HostedToolSearchCall(_Tracked, kw_only=True):
    """The model asks Antiphon to search for tools. `arguments` is an object. `call_id` is null, because the client
    sends no output for the search."""

    type: Literal["tool_search_call"] = "tool_search_call"
    call_id: None = None
    execution: Literal["server"] = "server"
    arguments: JsonObject


class HostedToolSearchOutput(_Tracked, kw_only=True):
    """The declarations of the tools that a `HostedToolSearchCall` found. The model can call these tools after this
    item."""

    type: Literal["tool_search_output"] = "tool_search_output"
    call_id: None = None
    execution: Literal["server"] = "server"
    tools: JsonObjects


class McpCall(_Tracked, kw_only=True):
    """A call of an MCP server's tool. `error` is an object when the call failed."""

    type: Literal["mcp_call"] = "mcp_call"
    approval_request_id: str | None = None
    arguments: str
    error: Raw | None = None
    name: str
    output: str | None = None
    server_label: str


class McpListTools(_EmittedItem, kw_only=True):
    """The list of tools that an MCP server offers. The item has no `status`."""

    type: Literal["mcp_list_tools"] = "mcp_list_tools"
    server_label: str
    tools: JsonObjects
    error: Raw | UnsetType = UNSET


class McpApprovalRequest(_EmittedItem, kw_only=True):
    """A call of an MCP tool that the client must approve before Antiphon runs it. The item has no `status`."""

    type: Literal["mcp_approval_request"] = "mcp_approval_request"
    arguments: str
    name: str
    server_label: str


HostedItem = (
    FileSearchCall
    | WebSearchCall
    | CodeInterpreterCall
    | McpCall
    | McpListTools
    | McpApprovalRequest
    | HostedToolSearchCall
    | HostedToolSearchOutput
)
"""The output items that hosted tools emit."""

OutputItem = Message | Reasoning | FunctionCall | CustomToolCall | NativeCall | Compaction | HostedItem


class ShownCall(Struct, omit_defaults=True):
    """A tool call and its result, as the model sees them in the chat messages. `arguments` and `output` are JSON
    strings.

    `output` is absent if the item already contains the same text. `asked` is the id of the approval request for this
    call, or None. Calls with the same `round` come from the same model call.
    """

    call_id: str
    name: str
    arguments: Raw
    output: Raw = ABSENT
    images: tuple[str, ...] = ()
    asked: str | None = None
    round: str = ""


class Shown(Struct, omit_defaults=True):
    """The tool calls that the model sees in the chat messages in place of a stored item.

    - `call_id` is the id by which the model knows the item's call, if the item has a different id.

    - `marks` is the highest citation number in the conversation so far.

    - `beside` has the ids of the client tool calls that the model made after these calls, in the same output.
    """

    calls: tuple[ShownCall, ...] = ()
    call_id: str | None = None
    marks: int = 0
    beside: tuple[str, ...] = ()


class HistoryItem(InputItem):
    """A stored item, with the tool calls that the model sees in its place (`shown`)."""

    shown: Shown | None = None


_SHOWN = msgspec.json.Decoder(Shown)


def read_shown(kept: bytes) -> Shown:
    """Decode the `Shown` of a stored item from JSON."""
    return _SHOWN.decode(kept)


def shown_of(item: InputItem) -> Shown | None:
    """Return the `Shown` of this item, or None if the item has none."""
    return item.shown if isinstance(item, HistoryItem) else None


def with_shown(item: InputItem, shown: Shown) -> HistoryItem:
    """Return the item together with its `Shown`."""
    fields = {name: getattr(item, name) for name in InputItem.__struct_fields__}
    return HistoryItem(**fields, shown=shown)


def highest_mark(items: Iterable[tuple[str, InputItem]]) -> int:
    """Return the highest citation number of any source in this conversation, or 0."""
    kept = [item.shown for _, item in items if isinstance(item, HistoryItem)]
    return max([shown.marks for shown in kept if shown is not None], default=0)
