"""What a response repeats of its request, and what stands there when the request says nothing."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from antiphon.translation.events.response_draft import echo_configuration, start_response, with_fallback
from antiphon.translation.request.body import read_request
from antiphon.types.json import raw
from antiphon.types.request import CreateResponse
from tests.support.exchanges import JSON, run

COMPLETION = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}'
NOTHING_SAID: dict[str, Any] = {
    "object": "response",
    "background": False,
    "completed_at": None,
    "error": None,
    "frequency_penalty": 0.0,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "model": "m",
    "output": [],
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "status": "in_progress",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": None,
    "user": None,
    "metadata": {},
}


def _started(**fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
    response = start_response(read_request(body, max_items=9, max_tools=9), "resp_1", 1700000000.9)
    shown: dict[str, Any] = json.loads(msgspec.json.encode(response))
    assert (shown.pop("id"), shown.pop("created_at")) == ("resp_1", 1700000000)
    return shown


def test_openais_defaults_stand_for_what_was_not_said() -> None:
    assert _started() == NOTHING_SAID


SAID: list[dict[str, Any]] = [
    {"background": True},
    {"frequency_penalty": 0.5, "presence_penalty": -0.5, "temperature": 0.25, "top_p": 0.75, "top_logprobs": 3},
    {"instructions": "Be brief."},
    {"max_output_tokens": 50, "max_tool_calls": 5, "parallel_tool_calls": False},
    {"previous_response_id": "resp_0"},
    {"safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h", "user": "u"},
    {"service_tier": "flex", "store": False, "truncation": "auto"},
    {"metadata": {"a": "b"}},
    {"tools": [{"type": "custom", "name": "c"}], "tool_choice": "required"},
    {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
    {"reasoning": {"effort": "low", "summary": "concise"}},
]


@pytest.mark.parametrize("fields", SAID, ids=lambda fields: " ".join(fields))
def test_what_was_said_is_repeated(fields: dict[str, Any]) -> None:
    assert _started(**fields) == {**NOTHING_SAID, **fields}


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}}),
        ({"reasoning": {"generate_summary": "auto"}}, {"reasoning": {"effort": None, "summary": "auto"}}),
        (
            {"reasoning": {"generate_summary": "auto", "summary": "detailed"}},
            {"reasoning": {"effort": None, "summary": "detailed"}},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "s", "schema": {}}}},
            {
                "text": {
                    "format": {"type": "json_schema", "description": None, "name": "s", "schema": {}, "strict": True},
                    "verbosity": "medium",
                }
            },
        ),
        (
            {
                "text": {
                    "format": {"type": "json_schema", "name": "s", "schema": {}, "strict": False, "description": "d"}
                }
            },
            {
                "text": {
                    "format": {"type": "json_schema", "description": "d", "name": "s", "schema": {}, "strict": False},
                    "verbosity": "medium",
                }
            },
        ),
        (
            {"text": {"format": {"type": "text"}, "verbosity": "high"}},
            {"text": {"format": {"type": "text"}, "verbosity": "high"}},
        ),
    ],
    ids=str,
)
def test_what_was_said_in_another_form_is_repeated_in_openais(fields: dict[str, Any], shown: dict[str, Any]) -> None:
    assert _started(**fields) == {**NOTHING_SAID, **shown}


@pytest.mark.parametrize(
    ("tool", "shown"),
    [
        (
            {"type": "function", "name": "f"},
            {"type": "function", "description": None, "parameters": None, "name": "f", "strict": None},
        ),
        (
            {"type": "function", "name": "f", "defer_loading": True, "strict": False, "parameters": {"type": "object"}},
            {
                "type": "function",
                "description": None,
                "parameters": {"type": "object"},
                "name": "f",
                "strict": False,
                "defer_loading": True,
            },
        ),
        (
            {"type": "function", "name": "f", "defer_loading": False, "description": "d"},
            {"type": "function", "description": "d", "parameters": None, "name": "f", "strict": None},
        ),
        (
            {"type": "tool_search", "execution": "client"},
            {"type": "tool_search", "description": None, "parameters": None, "execution": "client"},
        ),
        ({"type": "shell", "environment": {"type": "local"}}, {"type": "shell", "environment": {"type": "local"}}),
    ],
    ids=str,
)
def test_a_tool_has_every_member_that_openais_have(tool: dict[str, Any], shown: dict[str, Any]) -> None:
    assert _started(tools=[tool])["tools"] == [shown]


def test_a_server_is_shown_without_what_opens_it() -> None:
    server = {"type": "mcp", "server_label": "m", "server_url": "https://m.example"}
    secret = {**server, "authorization": "x", "headers": {"a": "b"}, "require_approval": "never", "server_label": "n"}
    body = json.dumps({"model": "m", "input": "hi", "tools": [server, secret]}).encode()
    request = read_request(body, max_items=9, max_tools=9, hosted=frozenset({"mcp"}))
    plain, other = json.loads(msgspec.json.encode(start_response(request, "resp_1", 0.0)))["tools"]
    assert plain == {**server, "allowed_tools": None, "require_approval": "always", "headers": None}
    assert other == {**plain, "require_approval": "never", "server_label": "n"}


def test_an_upstream_that_stood_in_is_named_where_there_is_room() -> None:
    pairs = {f"k{number}": "v" for number in range(15)}
    assert json.loads(bytes(with_fallback(raw(pairs), "second"))) == {**pairs, "antiphon_upstream": "second"}
    full = {**pairs, "k15": "v"}
    assert json.loads(bytes(with_fallback(raw(full), "second"))) == full
    known = {**pairs, "antiphon_upstream": "first"}
    assert json.loads(bytes(with_fallback(raw(known), "second"))) == {**pairs, "antiphon_upstream": "second"}


def test_tools_that_were_left_out_are_named_up_to_a_length() -> None:
    def named(count: int) -> str:
        tools = [{"type": f"unknown_tool_{number:03}"} for number in range(count)]
        outcome = run({"model": "m", "input": "hi", "tools": tools}, [COMPLETION], headers=JSON)
        said: str = outcome.json["metadata"]["antiphon_ignored"]
        return said

    assert named(2) == "tools.unknown_tool_000, tools.unknown_tool_001"
    # A value of metadata has 512 letters at most.
    assert named(21) == ", ".join(f"tools.unknown_tool_{number:03}" for number in range(21))
    cut = named(40)
    assert cut.endswith(", ...") and 480 < len(cut) <= 512


def test_what_items_change_of_the_request_is_repeated() -> None:
    first = read_request(b'{"model":"m","input":"hi"}', max_items=9, max_tools=9)
    later = read_request(
        b'{"model":"m","input":"hi","reasoning":{"effort":"low"},"text":{"verbosity":"low"}}', max_items=9, max_tools=9
    )
    response = start_response(first, "resp_1", 0.0)
    echo_configuration(response, later)
    shown = json.loads(msgspec.json.encode(response))
    assert shown["reasoning"] == {"effort": "low", "summary": None} and shown["text"]["verbosity"] == "low"


def test_a_request_that_says_nothing_asks_for_nothing_more() -> None:
    read = read_request(b'{"model":"m","input":"hi"}', max_items=9, max_tools=9)
    made = msgspec.structs.asdict(CreateResponse("m", read.input))
    assert made == msgspec.structs.asdict(read) | {"include": made["include"], "unknown": made["unknown"]}
    for wish in ("stream", "obfuscation", "prewarm", "logprobs", "encrypted_reasoning", "compact"):
        assert made[wish] is False
    assert not made["include"] and made["compact_threshold"] is None


@pytest.mark.parametrize(
    ("fields", "wish"),
    [
        ({"stream": True}, "stream"),
        ({"stream_options": {"include_obfuscation": True}}, "obfuscation"),
        ({"prompt_cache_options": {"prewarm": True}}, "prewarm"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"top_logprobs": 1}, "logprobs"),
        ({"include": ["reasoning.encrypted_content"]}, "encrypted_reasoning"),
        ({"input": [{"role": "user", "content": "x"}, {"type": "compaction_trigger"}]}, "compact"),
    ],
    ids=str,
)
def test_a_wish_is_read_and_no_other(fields: dict[str, Any], wish: str) -> None:
    read = read_request(json.dumps({"model": "m", "input": "hi", **fields}).encode(), max_items=9, max_tools=9)
    wishes = ("stream", "obfuscation", "prewarm", "logprobs", "encrypted_reasoning", "compact")
    assert [name for name in wishes if getattr(read, name)] == [wish]
