"""Lists the rules of OpenAI's and Open Responses' schemas that Antiphon's answers break, each with the reason.

Lives here: the list, which every comparison with the schemas reads. Not here: the names of places
(`tests/support/schemas.py`).

Invariant: each entry is still needed. `test_contradictions.py` fails when an entry's sample no longer breaks the rule.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.schemas import OPEN_RESPONSES, OPENAI


@dataclass(frozen=True)
class Contradiction:
    """`schema`'s `rule` at `place` is broken by `sample` (`samples.py`), because of `reason`."""

    schema: str
    place: str
    rule: str
    sample: str
    reason: str


_UNKNOWN_KIND = "Open Responses' lists of items and tools are closed; clients of OpenAI declare and expect these."
_UNKNOWN_EVENT = "Open Responses has no event for this kind of call; the name is OpenAI's."
_REASONING = "The two name the events of reasoning text differently; a setting and a request header choose."


def _unknown_kinds() -> list[Contradiction]:
    kinds = {
        "custom": "custom call",
        "custom_tool_call": "custom call",
        "local_shell": "local shell call",
        "local_shell_call": "local shell call",
        "shell": "shell call",
        "shell_call": "shell call",
        "apply_patch": "patch call",
        "apply_patch_call": "patch call",
        "tool_search": "tool search call",
        "tool_search_call": "tool search call",
        "tool_search_output": "hosted tool search",
        "namespace": "call in a namespace",
        "file_search": "file search",
        "file_search_call": "file search",
        "file_citation": "file search",
        "web_search": "web search",
        "web_search_call": "web search",
        "code_interpreter": "code",
        "code_interpreter_call": "code",
        "container_file_citation": "code",
        "mcp": "mcp call",
        "mcp_call": "mcp call",
        "mcp_list_tools": "mcp call",
        "mcp_approval_request": "mcp call to approve",
    }
    return [Contradiction(OPEN_RESPONSES, kind, "oneOf", sample, _UNKNOWN_KIND) for kind, sample in kinds.items()]


def _unknown_events() -> list[Contradiction]:
    events = {
        "custom_tool_call_input.delta": "custom call",
        "custom_tool_call_input.done": "custom call",
        "shell_call_command.added": "shell call",
        "shell_call_command.delta": "shell call",
        "shell_call_command.done": "shell call",
        "apply_patch_call_operation_diff.delta": "patch call",
        "apply_patch_call_operation_diff.done": "patch call",
        **{f"file_search_call.{phase}": "file search" for phase in ("in_progress", "searching", "completed")},
        **{f"web_search_call.{phase}": "web search" for phase in ("in_progress", "searching", "completed")},
        **{f"code_interpreter_call.{phase}": "code" for phase in ("in_progress", "interpreting", "completed")},
        "code_interpreter_call_code.delta": "code",
        "code_interpreter_call_code.done": "code",
        "mcp_list_tools.in_progress": "mcp call",
        "mcp_list_tools.completed": "mcp call",
        "mcp_call.in_progress": "mcp call",
        "mcp_call_arguments.delta": "mcp call",
        "mcp_call_arguments.done": "mcp call",
        "mcp_call.completed": "mcp call",
        "mcp_call.failed": "mcp call that fails",
    }
    return [
        Contradiction(OPEN_RESPONSES, f"response.{event}", "unknown", sample, _UNKNOWN_EVENT)
        for event, sample in events.items()
    ]


CONTRADICTIONS = (
    Contradiction(
        OPENAI,
        "response.usage",
        "type",
        "text",
        "Open Responses requires the key, and before the end there is nothing to say. OpenAI's service sends null "
        "too (in all of 596 streams).",
    ),
    Contradiction(
        OPENAI,
        "response.user",
        "type",
        "text",
        "OpenAI's service sends null when the request has no user, whatever its schema says.",
    ),
    Contradiction(
        OPENAI,
        "response.error.code",
        "enum",
        "failed with a code",
        "OpenAI's service sends codes outside of its list too (insufficient_quota in a recording); ours tell the "
        "operator what went wrong.",
    ),
    Contradiction(
        OPENAI,
        "json_schema.description",
        "type",
        "json_schema",
        "Open Responses requires the key, and OpenAI's service adds `description: null`.",
    ),
    Contradiction(
        OPEN_RESPONSES,
        "json_schema.schema",
        "anyOf",
        "json_schema",
        "Open Responses wants null in place of the echoed schema; OpenAI's service and clients have the schema.",
    ),
    Contradiction(
        OPEN_RESPONSES,
        "response.reasoning.effort",
        "oneOf",
        "reasoning effort",
        "Open Responses knows fewer efforts than OpenAI (`minimal` and `max` are missing); what was used is echoed.",
    ),
    Contradiction(OPEN_RESPONSES, "response.reasoning_text.delta", "unknown", "reasoning", _REASONING),
    Contradiction(OPEN_RESPONSES, "response.reasoning_text.done", "unknown", "reasoning", _REASONING),
    Contradiction(OPENAI, "response.reasoning.delta", "unknown", "reasoning, Open Responses' names", _REASONING),
    Contradiction(OPENAI, "response.reasoning.done", "unknown", "reasoning, Open Responses' names", _REASONING),
    Contradiction(
        OPENAI,
        "response.apply_patch_call_operation_diff.delta",
        "unknown",
        "patch call",
        "OpenAI's service sends it, its schema does not have it.",
    ),
    Contradiction(
        OPENAI,
        "response.apply_patch_call_operation_diff.done",
        "unknown",
        "patch call",
        "OpenAI's service sends it, its schema does not have it.",
    ),
    Contradiction(
        OPENAI,
        "web_search_call.action",
        "required",
        "web search",
        "OpenAI's service sends the action when the search is done (added without it in 24 of 30 streams).",
    ),
    *_unknown_kinds(),
    *_unknown_events(),
)

KNOWN = frozenset((one.schema, one.place, one.rule) for one in CONTRADICTIONS)
