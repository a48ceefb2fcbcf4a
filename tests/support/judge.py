"""An outside judge of what the exchange sends: the event grammar as observed, the fold, and the published schema."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

__all__ = ["check_response", "check_stream", "fold", "parse_sse"]

_SCHEMA = Path(__file__).parent.parent / "schemas" / "openresponses-openapi.json"
_TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
# OpenAI's names, which Open Responses' closed schema does not know.
_OPENAI_ONLY = {
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.custom_tool_call_input.delta",
    "response.custom_tool_call_input.done",
    "response.apply_patch_call_operation_diff.delta",
    "response.apply_patch_call_operation_diff.done",
    "response.shell_call_command.added",
    "response.shell_call_command.delta",
    "response.shell_call_command.done",
}
# Likewise OpenAI's kinds of items and tools.
_OPENAI_ITEMS = {
    "custom_tool_call",
    "local_shell_call",
    "shell_call",
    "apply_patch_call",
    "tool_search_call",
}


@cache
def _spec() -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(_SCHEMA.read_text())
    return spec


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": _spec()["components"]}
    )


@cache
def _event_schemas() -> dict[str, str]:
    names = {}
    for name, schema in _spec()["components"]["schemas"].items():
        if name.endswith("StreamingEvent"):
            names[schema["properties"]["type"]["enum"][0]] = name
    return names


def parse_sse(data: bytes) -> list[dict[str, Any]]:
    """The events of a whole stream. Asserts the framing: `event:` equals `type`, one blank line, `[DONE]` last."""
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
    """The response is valid against Open Responses' schema (json_schema echo and item status aside)."""
    found = _validator("ResponseResource").iter_errors(_within_open_responses(response))
    errors = [f"{list(error.path)}: {error.message[:200]}" for error in found]
    assert not errors, errors


def _within_open_responses(response: dict[str, Any]) -> dict[str, Any]:
    """A copy without what OpenAI has and Open Responses' closed schema excludes."""
    copy: dict[str, Any] = json.loads(json.dumps(response))
    text_format = copy["text"]["format"]
    if text_format["type"] == "json_schema":
        text_format["schema"] = None
    copy["output"] = [item for item in copy["output"] if item["type"] not in _OPENAI_ITEMS]
    copy["tools"] = [tool for tool in copy["tools"] if tool["type"] == "function"]
    if isinstance(copy["tool_choice"], dict) and copy["tool_choice"]["type"] not in ("function", "allowed_tools"):
        copy["tool_choice"] = "auto"
    return copy


def check_stream(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers without gaps, grammar, schema, and fold == terminal snapshot; returns the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created" and events[1]["type"] == "response.in_progress"
    assert events[-1]["type"] in _TERMINAL
    assert sum(event["type"] in _TERMINAL for event in events) == 1
    if events[-1]["type"] == "response.failed":
        assert events[-2]["type"] == "error"
    for event in events:
        name = _event_schemas().get(event["type"])
        if event["type"] in _OPENAI_ONLY or event.get("item", {}).get("type") in _OPENAI_ITEMS:
            continue
        assert name is not None, event["type"]
        if "response" in event:
            event = {**event, "response": _within_open_responses(event["response"])}
        errors = [error.message[:300] for error in _validator(name).iter_errors(event)]
        assert not errors, (event["type"], errors)
        if "response" in event:
            check_response(event["response"])
    final: dict[str, Any] = events[-1]["response"]
    assert fold(events) == final["output"]
    return final


def fold(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output, put together from deltas alone; asserts that items and parts open and close in order."""
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
                (".text.done", "_text.done", "arguments.done", "input.done", "refusal.done", "reasoning.done")
            ):
                value = event.get("text", event.get("arguments", event.get("input", event.get("refusal"))))
                assert value == text
    assert open_item is None, "an item was left open"
    return output


def _text_of(item: dict[str, Any]) -> str:
    if item["type"] in ("function_call", "custom_tool_call"):
        return str(item.get("arguments", item.get("input")))
    if item["type"] == "apply_patch_call":
        return str(item["operation"].get("diff", ""))
    if item["type"] == "shell_call":
        return "".join(item["action"]["commands"])
    if item["type"] in _OPENAI_ITEMS:
        return ""
    parts = [*item.get("content", []), *item.get("summary", [])]
    return "".join(part.get("text", part.get("refusal", "")) for part in parts)
