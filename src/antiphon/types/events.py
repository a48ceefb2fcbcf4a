"""Defines the stream events, with one class for each event type that OpenAI's service sends.

`translation/events/builder.py` decides the order of events and generates ids and sequence numbers.
`translation/events/encode.py` encodes events as server-sent events.

Invariant: the first key of every event is `type`, and every event has a `sequence_number`.
"""

from __future__ import annotations

from msgspec import Struct

from antiphon.types.items import OutputItem, OutputText, ReasoningText, Refusal, SummaryText
from antiphon.types.json import JsonObject, JsonText
from antiphon.types.response import Response


class Event(Struct, tag_field="type"):
    """The fields that every event has."""

    sequence_number: int


class _Lifecycle(Event):
    response: Response


class ResponseCreated(_Lifecycle, tag="response.created"): ...


class ResponseQueued(_Lifecycle, tag="response.queued"): ...


class ResponseInProgress(_Lifecycle, tag="response.in_progress"): ...


class ResponseCompleted(_Lifecycle, tag="response.completed"): ...


class ResponseIncomplete(_Lifecycle, tag="response.incomplete"): ...


class ResponseFailed(_Lifecycle, tag="response.failed"): ...


class ErrorDetail(Struct):
    type: str
    code: str | None
    message: str
    param: str | None


class ErrorEvent(Event, tag="error"):
    """An error event. In OpenAI's schema, `code`, `message` and `param` are fields of the event itself. In the Open
    Responses schema, and in the events that OpenAI's service sends, these fields are in an object `error`. Antiphon
    sends both forms in one event."""

    code: str | None
    message: str
    param: str | None
    error: ErrorDetail


class _OutputItemEvent(Event):
    output_index: int
    item: OutputItem


class OutputItemAdded(_OutputItemEvent, tag="response.output_item.added"): ...


class OutputItemDone(_OutputItemEvent, tag="response.output_item.done"): ...


class _Part(Event):
    item_id: str
    output_index: int
    content_index: int


class ContentPartAdded(_Part, tag="response.content_part.added"):
    part: OutputText | Refusal | ReasoningText


class ContentPartDone(_Part, tag="response.content_part.done"):
    part: OutputText | Refusal | ReasoningText


class OutputTextDelta(_Part, tag="response.output_text.delta"):
    delta: JsonText
    logprobs: list[JsonObject]


class OutputTextDone(_Part, tag="response.output_text.done"):
    text: JsonText
    logprobs: list[JsonObject]


class OutputTextAnnotationAdded(_Part, tag="response.output_text.annotation.added"):
    annotation_index: int
    annotation: JsonObject


class RefusalDelta(_Part, tag="response.refusal.delta"):
    delta: JsonText


class RefusalDone(_Part, tag="response.refusal.done"):
    refusal: JsonText


class ReasoningTextDelta(_Part, tag="response.reasoning_text.delta"):
    delta: JsonText


class ReasoningTextDone(_Part, tag="response.reasoning_text.done"):
    text: JsonText


class ReasoningDelta(_Part, tag="response.reasoning.delta"):
    """The event of the Open Responses specification that corresponds to OpenAI's `response.reasoning_text.delta`."""

    delta: JsonText


class ReasoningDone(_Part, tag="response.reasoning.done"):
    """The event of the Open Responses specification that corresponds to OpenAI's `response.reasoning_text.done`."""

    text: JsonText


class _Summary(Event):
    item_id: str
    output_index: int
    summary_index: int


class ReasoningSummaryPartAdded(_Summary, tag="response.reasoning_summary_part.added"):
    part: SummaryText


class ReasoningSummaryPartDone(_Summary, tag="response.reasoning_summary_part.done"):
    part: SummaryText


class ReasoningSummaryTextDelta(_Summary, tag="response.reasoning_summary_text.delta"):
    delta: JsonText


class ReasoningSummaryTextDone(_Summary, tag="response.reasoning_summary_text.done"):
    text: JsonText


class _CallEvent(Event):
    item_id: str
    output_index: int


class FunctionCallArgumentsDelta(_CallEvent, tag="response.function_call_arguments.delta"):
    delta: JsonText


class FunctionCallArgumentsDone(_CallEvent, tag="response.function_call_arguments.done"):
    arguments: JsonText
    name: str


class CustomToolCallInputDelta(_CallEvent, tag="response.custom_tool_call_input.delta"):
    delta: JsonText


class CustomToolCallInputDone(_CallEvent, tag="response.custom_tool_call_input.done"):
    input: JsonText


class FileSearchInProgress(_CallEvent, tag="response.file_search_call.in_progress"): ...


class FileSearchSearching(_CallEvent, tag="response.file_search_call.searching"): ...


class FileSearchCompleted(_CallEvent, tag="response.file_search_call.completed"): ...


class WebSearchInProgress(_CallEvent, tag="response.web_search_call.in_progress"): ...


class WebSearchSearching(_CallEvent, tag="response.web_search_call.searching"): ...


class WebSearchCompleted(_CallEvent, tag="response.web_search_call.completed"): ...


class CodeInterpreterInProgress(_CallEvent, tag="response.code_interpreter_call.in_progress"): ...


class CodeInterpreterCodeDelta(_CallEvent, tag="response.code_interpreter_call_code.delta"):
    delta: str


class CodeInterpreterCodeDone(_CallEvent, tag="response.code_interpreter_call_code.done"):
    code: str


class CodeInterpreterInterpreting(_CallEvent, tag="response.code_interpreter_call.interpreting"): ...


class CodeInterpreterCompleted(_CallEvent, tag="response.code_interpreter_call.completed"): ...


class McpListToolsInProgress(_CallEvent, tag="response.mcp_list_tools.in_progress"): ...


class McpListToolsCompleted(_CallEvent, tag="response.mcp_list_tools.completed"): ...


class McpListToolsFailed(_CallEvent, tag="response.mcp_list_tools.failed"): ...


class McpCallInProgress(_CallEvent, tag="response.mcp_call.in_progress"): ...


class McpCallArgumentsDelta(_CallEvent, tag="response.mcp_call_arguments.delta"):
    delta: str


class McpCallArgumentsDone(_CallEvent, tag="response.mcp_call_arguments.done"):
    arguments: str


class McpCallCompleted(_CallEvent, tag="response.mcp_call.completed"): ...


class McpCallFailed(_CallEvent, tag="response.mcp_call.failed"): ...


class ApplyPatchDiffDelta(_CallEvent, tag="response.apply_patch_call_operation_diff.delta"):
    delta: str


class ApplyPatchDiffDone(_CallEvent, tag="response.apply_patch_call_operation_diff.done"):
    diff: str


class _ShellCommand(Event):
    """The fields that every event about a shell command has. `output_index` identifies the call, because OpenAI's
    service sends no `item_id` in these events."""

    output_index: int
    command_index: int


class ShellCommandAdded(_ShellCommand, tag="response.shell_call_command.added"):
    command: str


class ShellCommandDelta(_ShellCommand, tag="response.shell_call_command.delta"):
    delta: str


class ShellCommandDone(_ShellCommand, tag="response.shell_call_command.done"):
    command: str
