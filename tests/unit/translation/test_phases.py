"""`phase` of messages: what is said beside calls is commentary, the answer is final, and what was cut is neither."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.config.tools import ToolSettings
from antiphon.tools.box import Toolbox
from antiphon.tools.tool_search import ToolSearch
from tests.support.exchanges import converse, run
from tests.support.judge import check_stream, parse_sse
from tests.support.model_turns import model_turn

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": "{}"}}]}
SAID = {"content": "Let me see."}
THOUGHT = {"reasoning_content": "Hm."}


def _phases(*deltas: dict[str, Any], finish: str = "stop", **request: Any) -> list[tuple[str, str | None]]:
    """Type and phase of each item of the answer; that of the stream and of the object are the same."""
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    body = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    asked = {"model": "m", "input": "hi", "tools": [TOOL], "stream": True, **request}
    events = parse_sse(run(asked, [body]).body)
    final = check_stream(events)
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert not any("phase" in item for item in added), "it is not known yet"
    return [(item["type"], item.get("phase")) for item in final["output"]]


@pytest.mark.parametrize(
    ("deltas", "finish", "phases"),
    [
        ([SAID], "stop", [("message", "final_answer")]),
        ([THOUGHT, SAID], "stop", [("reasoning", None), ("message", "final_answer")]),
        ([{"refusal": "No."}], "stop", [("message", "final_answer")]),
        ([SAID, CALL], "tool_calls", [("message", "commentary"), ("function_call", None)]),
        ([CALL, SAID], "tool_calls", [("function_call", None), ("message", "commentary")]),
        ([SAID], "length", [("message", None)]),
        ([SAID], "content_filter", [("message", None)]),
        ([SAID, THOUGHT, SAID], "stop", [("message", None), ("reasoning", None), ("message", "final_answer")]),
    ],
)
def test_the_phase_of_a_message(deltas: list[Any], finish: str, phases: list[Any]) -> None:
    assert _phases(*deltas, finish=finish) == phases


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_said_before_a_hosted_call_is_commentary(stream: bool) -> None:
    search = ("tool_search", '{"query":"f"}')
    turns = [model_turn("Let me see.", search, stream=stream), model_turn("There.", stream=stream)]
    tools = [{"type": "tool_search"}, {**TOOL, "defer_loading": True}]
    asked = {"model": "m", "input": "hi", "tools": tools, "stream": stream}
    outcome = await converse(asked, turns, Toolbox([ToolSearch()], ToolSettings()))
    final = check_stream(parse_sse(outcome.body)) if stream else outcome.json
    messages = [item for item in final["output"] if item["type"] == "message"]
    assert [item["phase"] for item in messages] == ["commentary", "final_answer"]
    # It is stored with the message, and comes back with it.
    (record,) = outcome.records
    kept = [json.loads(item.body) for item in record.output_items if item.type == "message"]
    assert [item["phase"] for item in kept] == ["commentary", "final_answer"]
