"""Streams of stored responses: legal, and their fold is what was stored, for every kind of item."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.translation.events.encode import DONE
from antiphon.translation.events.item_events import replayed
from tests.support.goldens import replay
from tests.support.judge import check_stream, fold, parse_sse
from tests.support.recordings import Recording, all_recordings

_TEXT = {"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}
_NOTE = {"type": "url_citation", "start_index": 0, "end_index": 2, "url": "http://a.example", "title": "A"}
ITEMS: dict[str, dict[str, Any]] = {
    "message": {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [_TEXT]},
    "annotated": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{**_TEXT, "annotations": [_NOTE]}],
    },
    "refusal": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "refusal", "refusal": "No."}],
    },
    "summary": {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Thus."}]},
    "thoughts": {
        "id": "rs_1",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
        "encrypted_content": "as1_x",
    },
    "function": {
        "id": "fc_1",
        "type": "function_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "f",
        "arguments": '{"a":1}',
    },
    "empty": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{**_TEXT, "text": ""}],
    },
    "search": {
        "id": "ws_1",
        "type": "web_search_call",
        "status": "completed",
        "action": {"type": "search", "query": "rain"},
    },
    "custom": {
        "id": "ctc_1",
        "type": "custom_tool_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "f",
        "input": "a b",
    },
}


def _response(recording: Recording) -> dict[str, Any] | None:
    """What a recording leads to, unless that is a failure."""
    outcome = replay(recording)
    assert outcome.head is not None
    if not outcome.head.streamed:
        return None
    last = parse_sse(outcome.body)[-1]
    response: dict[str, Any] = last["response"]
    return response if last["type"] in ("response.completed", "response.incomplete") else None


@pytest.mark.parametrize("recording", all_recordings(), ids=lambda recording: recording.name)
def test_every_recorded_answer(recording: Recording) -> None:
    response = _response(recording)
    if response is None:
        return  # it failed: nothing of it is replayed
    events = parse_sse(replayed(json.dumps(response).encode()) + DONE)
    assert check_stream(events) == response
    assert fold(events) == response["output"]


@pytest.mark.parametrize("name", ITEMS)
def test_every_kind_of_item(name: str) -> None:
    some = next(response for recording in all_recordings() if (response := _response(recording)))
    response = some | {"output": [ITEMS[name]]}
    events = parse_sse(replayed(json.dumps(response).encode()) + DONE)
    assert events[-1]["response"] == response and fold(events) == [ITEMS[name]]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_what_was_found_out_at_the_end_is_in_the_last_event_alone() -> None:
    some = next(response for recording in all_recordings() if (response := _response(recording)))
    response = some | {"prompt_cache_diagnostics": {"type": "cache_hit"}}
    events = parse_sse(replayed(json.dumps(response).encode()) + DONE)
    assert check_stream(events) == response
    assert ["prompt_cache_diagnostics" in event["response"] for event in events if "response" in event] == [
        *(False, False),
        True,
    ]
