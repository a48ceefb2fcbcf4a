"""The events of a tool that runs here, from its item's beginning to its end, and the item as it begins."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from antiphon.translation.events.item_events import begun, ended, opened
from antiphon.types import items as it

FOUND = Raw(b'[{"text":"found"}]')
ITEMS: list[tuple[it.HostedItem, dict[str, Any], str, str, str]] = [
    (
        it.FileSearchCall(id="i", status="completed", queries=["q"], results=FOUND),
        {"status": "in_progress", "queries": [], "results": None},
        "file_search_call.in_progress file_search_call.searching",
        "file_search_call.completed",
        "file_search_call.completed",
    ),
    (
        it.WebSearchCall(id="i", status="completed", action=Raw(b'{"type":"search"}')),
        {"status": "in_progress"},
        "web_search_call.in_progress web_search_call.searching",
        "web_search_call.completed",
        "web_search_call.completed",
    ),
    (
        it.CodeInterpreterCall(id="i", status="completed", code="1", container_id="c", outputs=FOUND),
        {"status": "in_progress", "code": "", "outputs": None, "container_id": "c"},
        "code_interpreter_call.in_progress code_interpreter_call_code.delta=1 code_interpreter_call_code.done=1 "
        "code_interpreter_call.interpreting",
        "code_interpreter_call.completed",
        "code_interpreter_call.completed",
    ),
    (
        it.CodeInterpreterCall(id="i", status="completed", code="", container_id="c", outputs=None),
        {"status": "in_progress", "code": "", "outputs": None, "container_id": "c"},
        "code_interpreter_call.in_progress code_interpreter_call_code.done= code_interpreter_call.interpreting",
        "code_interpreter_call.completed",
        "code_interpreter_call.completed",
    ),
    (
        it.McpCall(id="i", status="completed", arguments="{}", name="f", server_label="s", output="o"),
        {"status": "in_progress", "arguments": "", "output": None, "error": None, "name": "f", "server_label": "s"},
        "mcp_call.in_progress mcp_call_arguments.delta={} mcp_call_arguments.done={}",
        "mcp_call.completed",
        "mcp_call.failed",
    ),
]


def _told(events: Any) -> str:
    names = []
    for event, more in events:
        made = msgspec.json.decode(msgspec.json.encode(event(1, "i", 0, *more)))
        assert (made["item_id"], made["output_index"], made["sequence_number"]) == ("i", 0, 1)
        text = next((f"={made[name]}" for name in ("delta", "code", "arguments") if name in made), "")
        names.append(made["type"].removeprefix("response.") + text)
    return " ".join(names)


@pytest.mark.parametrize(("item", "first", "before", "after", "failed"), ITEMS, ids=lambda one: type(one).__name__)
def test_a_tools_events(item: it.HostedItem, first: dict[str, Any], before: str, after: str, failed: str) -> None:
    shown = json.loads(msgspec.json.encode(opened(item)))
    kind = shown.pop("type")
    assert {name: value for name, value in shown.items() if name in first} == first and shown["id"] == "i"
    assert set(shown) <= {*first, "id", "approval_request_id"} and kind == before.split()[0].partition(".")[0]
    assert _told(begun(item)) == before and _told(ended(item)) == after
    assert _told(ended(msgspec.structs.replace(item, status="failed"))) == failed


@pytest.mark.parametrize(("error", "end"), [(msgspec.UNSET, "completed"), (Raw(b'"no"'), "failed")])
def test_a_list_of_tools(error: Any, end: str) -> None:
    item = it.McpListTools(id="i", server_label="s", tools=FOUND, error=error)
    shown = json.loads(msgspec.json.encode(opened(item)))
    assert shown == {"id": "i", "type": "mcp_list_tools", "server_label": "s", "tools": []}
    assert _told(begun(item)) == "mcp_list_tools.in_progress" and _told(ended(item)) == f"mcp_list_tools.{end}"
