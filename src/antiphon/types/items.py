"""Items and content parts: as clients send them, as they are stored, as they are emitted.

Lives here: the one tolerant shape all input items share (`InputItem`, clients omit and add keys freely) and the exact
shapes of output items. Not here: how items become chat messages (`translation/chat/messages.py`).

Sources: Open Responses schema `ItemParam` and `ItemField`; OpenAI's observed field tables.

Invariant: text inside output items is raw JSON, never decoded on its way from the upstream to the client.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from antiphon.types.json import ABSENT, JsonObject, JsonObjects, JsonText


class InputItem(Struct, gc=False):
    """Any input item, with the keys that mean something here; others are ignored
    (`translation/item_kinds.py`).

    `content`, `output` and `summary` stay raw: a string or an array of parts. `input` is a custom call's text;
    `action`, `operation` and `environment` belong to shells and patches, `tools` to items that bring tools.
    `source` is the whole item where it is shown or stored as it came (hosted tools of earlier turns).
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
    """An item with no other keys. It is a note of a client or server, without meaning for a model."""

    caller: Raw = ABSENT
    created_by: Raw = ABSENT
    internal_chat_message_metadata_passthrough: Raw = ABSENT


class InputPart(Struct, gc=False):
    """Any content part of an input message or tool output."""

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
    """A part that has no key but these; the others are about a text that a model has written."""

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
"""How far an item is."""


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
    """The members of every emitted item."""

    id: str
    type: str


class _Tracked(_EmittedItem, kw_only=True):
    """The fields of emitted items that have a `status`."""

    status: ItemStatus


class _ClientCall(_Tracked, kw_only=True):
    """Calls that the client answers."""

    call_id: str


class Message(_Tracked, kw_only=True):
    """A message of the model. Observed: exactly one content part, `status` in_progress → completed or incomplete.

    `phase` is `commentary` for the text of a turn that calls tools and `final_answer` for the answer. It is known at
    the end of the message. It stays unknown if the answer was cut or the model reasoned on.
    """

    type: Literal["message"] = "message"
    content: list[OutputText | Refusal]
    phase: MessagePhase | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"


class Reasoning(_EmittedItem, kw_only=True):
    """A reasoning item. It has no `status` (observed 197 of 197); `content` is absent when the text is a summary,
    `encrypted_content` when it was not asked for."""

    type: Literal["reasoning"] = "reasoning"
    summary: list[SummaryText]
    content: list[ReasoningText] | UnsetType = UNSET
    encrypted_content: str | UnsetType = UNSET


class FunctionCall(_Tracked, kw_only=True):
    """A call of a function tool. `arguments` is a JSON string that itself holds JSON; `namespace` is there when the
    tool was declared in one, `encrypted_function_args` (none) when it asked for some of them to be encrypted."""

    type: Literal["function_call"] = "function_call"
    arguments: JsonText
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    encrypted_function_args: list[str] | UnsetType = UNSET


class CustomToolCall(_ClientCall, kw_only=True):
    """A call of a custom tool; `input` is free text."""

    type: Literal["custom_tool_call"] = "custom_tool_call"
    name: str
    input: JsonText
    namespace: str | UnsetType = UNSET


class LocalShellCall(_ClientCall, kw_only=True):
    """A command for the client's machine; `action` is `{type: exec, command, env, …}`."""

    type: Literal["local_shell_call"] = "local_shell_call"
    action: JsonObject


class ShellCall(_ClientCall, kw_only=True):
    """Command lines for a shell; `action` is `{commands, timeout_ms, max_output_length}`."""

    type: Literal["shell_call"] = "shell_call"
    action: JsonObject
    environment: Raw = Raw(b'{"type":"local"}')


class ApplyPatchCall(_ClientCall, kw_only=True):
    """A change of one file; `operation` is `{type, path, diff}`."""

    type: Literal["apply_patch_call"] = "apply_patch_call"
    operation: JsonObject


class ToolSearchCall(_ClientCall, kw_only=True):
    """A search for tools that the client performs; `arguments` is an object."""

    type: Literal["tool_search_call"] = "tool_search_call"
    execution: Literal["client"] = "client"
    arguments: JsonObject


NativeCall = LocalShellCall | ShellCall | ApplyPatchCall | ToolSearchCall
"""Calls that are emitted whole: nothing comes between their added and done events."""


class Compaction(_EmittedItem, kw_only=True):
    """An item that replaces an earlier part of the conversation. It has no `status`."""

    type: Literal["compaction"] = "compaction"
    encrypted_content: str


class FileSearchCall(_Tracked, kw_only=True):
    """A search in vector stores; `results` only where `include` asks for them."""

    type: Literal["file_search_call"] = "file_search_call"
    queries: list[str]
    results: JsonObjects | None = None


class WebSearchCall(_Tracked, kw_only=True):
    """A search, or a page that was opened; `action` is `{type: search, query, sources?}` or `{type: open_page, url}`
    and is there when the call is done."""

    type: Literal["web_search_call"] = "web_search_call"
    action: JsonObject | UnsetType = UNSET


class CodeInterpreterCall(_Tracked, kw_only=True):
    """Code that was run; `outputs` only where `include` asks for them."""

    type: Literal["code_interpreter_call"] = "code_interpreter_call"
    code: str
    container_id: str
    outputs: JsonObjects | None = None


class HostedToolSearchCall(_Tracked, kw_only=True):
    """A search for tools that ran here; `arguments` is an object, and there is no id that the client could answer."""

    type: Literal["tool_search_call"] = "tool_search_call"
    call_id: None = None
    execution: Literal["server"] = "server"
    arguments: JsonObject


class HostedToolSearchOutput(_Tracked, kw_only=True):
    """The declarations of the tools that such a search found; they can be called from here on."""

    type: Literal["tool_search_output"] = "tool_search_output"
    call_id: None = None
    execution: Literal["server"] = "server"
    tools: JsonObjects


class McpCall(_Tracked, kw_only=True):
    """A call of an MCP server's tool; `error` is an object when it failed."""

    type: Literal["mcp_call"] = "mcp_call"
    approval_request_id: str | None = None
    arguments: str
    error: Raw | None = None
    name: str
    output: str | None = None
    server_label: str


class McpListTools(_EmittedItem, kw_only=True):
    """The tools of an MCP server; no `status`."""

    type: Literal["mcp_list_tools"] = "mcp_list_tools"
    server_label: str
    tools: JsonObjects
    error: Raw | UnsetType = UNSET


class McpApprovalRequest(_EmittedItem, kw_only=True):
    """A call that the client must approve first; no `status`."""

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
"""The items that hosted tools emit."""

OutputItem = Message | Reasoning | FunctionCall | CustomToolCall | NativeCall | Compaction | HostedItem
