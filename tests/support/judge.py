"""An independent check of the exchange's events: their grammar as observed, the folded output, and the published
schemas.

Lives here: the rules for every stream and response. Not here: the schemas (`schemas.py`), known violations
(`tests/schemas/contradictions.py`).
"""

from __future__ import annotations

import json
from typing import Any

from tests.schemas.contradictions import KNOWN
from tests.support.schemas import Violation, event_violations, response_violations

_TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
# Items whose text is not in one field, or that have no deltas.
_WHOLE_ITEMS = {"local_shell_call", "tool_search_call"}


def parse_sse(data: bytes) -> list[dict[str, Any]]:
    """The events of a whole stream. Asserts the framing: `event:` equals `type`, one blank line between events,
    `[DONE]` last."""
    text = data.decode()
    assert text.endswith("data: [DONE]\n\n"), text[-200:]
    events = []
    blocks = text.split("\n\n")
    assert blocks[-1] == "" and blocks[-2] == "data: [DONE]"
    for block in blocks[:-2]:
        if block.startswith(":"):
            continue
        first, second = block.split("\n")
        event = json.loads(second.removeprefix("data: "))
        assert first == f"event: {event['type']}", block[:200]
        events.append(event)
    return events


def check_response(response: dict[str, Any]) -> None:
    """Assert that the response is valid against both schemas, except for the listed contradictions."""
    _check(response_violations(response))


def _check(violations: list[Violation]) -> None:
    unknown = [violation for violation in violations if violation.key not in KNOWN]
    assert not unknown, unknown


def check_stream(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Assert numbers without gaps, grammar and schemas, and that the folded deltas equal the terminal snapshot. Returns
    the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    begin = [event["type"] for event in events[:3] if event["type"] != "response.queued"]
    assert begin[:2] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] in _TERMINAL
    assert sum(event["type"] in _TERMINAL for event in events) == 1
    if events[-1]["type"] == "response.failed" and events[-1]["response"]["status"] != "cancelled":
        assert events[-2]["type"] == "error"
    for event in events:
        _check(event_violations(event))
    final: dict[str, Any] = events[-1]["response"]
    assert fold(events) == final["output"]
    return final


def fold(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Build the output from the deltas only. Asserts that items and parts open and close in order."""
    output: list[dict[str, Any]] = []
    open_item: dict[str, Any] | None = None
    text = ""
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert open_item is None, "two items are open"
            assert event["output_index"] == len(output)
            open_item, text = event["item"], ""
            assert not open_item.get("content") and open_item.get("status", "in_progress") == "in_progress"
        elif kind == "response.output_item.done":
            assert open_item is not None and event["item"]["id"] == open_item["id"]
            assert event["output_index"] == len(output)
            item = event["item"]
            output.append(item)
            assert _text_of(item) == text, (item, text)
            open_item = None
        elif "item_id" in event or "command_index" in event:
            assert open_item is not None and event.get("item_id", open_item["id"]) == open_item["id"]
            assert event["output_index"] == len(output)
            if kind.endswith(".delta"):
                text += event["delta"]
            elif kind.endswith(
                (
                    ".text.done",
                    "_text.done",
                    "arguments.done",
                    "input.done",
                    "refusal.done",
                    "reasoning.done",
                    "code.done",
                )
            ):
                value = event.get(
                    "text", event.get("arguments", event.get("input", event.get("refusal", event.get("code"))))
                )
                assert value == text
    assert open_item is None, "an item was left open"
    return output


def _text_of(item: dict[str, Any]) -> str:
    if item["type"] == "code_interpreter_call":
        return str(item["code"])
    if item["type"] in ("function_call", "custom_tool_call", "mcp_call"):
        return str(item.get("arguments", item.get("input")))
    if item["type"] == "apply_patch_call":
        return str(item["operation"].get("diff", ""))
    if item["type"] == "shell_call":
        return "".join(item["action"]["commands"])
    if item["type"] in _WHOLE_ITEMS:
        return ""
    parts = [*item.get("content", []), *item.get("summary", [])]
    return "".join(part.get("text", part.get("refusal", "")) for part in parts)
