"""Checks a chat request against the rules of the strictest chat servers.

Lives here: one function that asserts that every chat server would accept a request. Not here: a server
(`chat_server.py`).
"""

from __future__ import annotations

import json
import re
from typing import Any

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FIELDS = {
    *("model", "messages", "stream", "stream_options", "tools", "tool_choice", "parallel_tool_calls"),
    *("response_format", "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens"),
    *("max_completion_tokens", "reasoning_effort", "verbosity", "logprobs", "top_logprobs", "service_tier"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "user"),
    # Fields that clients may add for servers of this kind. Antiphon never adds them itself.
    *("seed", "stop", "top_k", "chat_template_kwargs"),
}
# The two field names for earlier reasoning in servers that require it.
_MESSAGE_FIELDS = {
    "system": {"role", "content"},
    "developer": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "tool_calls", "reasoning_content", "reasoning", "reasoning_details"},
    "tool": {"role", "content", "tool_call_id"},
}


def check_chat_request(chat: dict[str, Any]) -> None:
    """Assert that the strictest server would accept this request."""
    assert set(chat) <= _FIELDS, set(chat) - _FIELDS
    assert isinstance(chat["model"], str) and chat["model"]
    assert chat["messages"], "no messages"
    assert "stream_options" not in chat or chat.get("stream") is True
    assert "top_logprobs" not in chat or chat.get("logprobs") is True
    _check_tools(chat)
    _check_format(chat.get("response_format"))
    open_calls: list[str] = []
    for number, message in enumerate(chat["messages"]):
        role = message["role"]
        assert set(message) <= _MESSAGE_FIELDS[role], (role, set(message))
        assert role not in ("system", "developer") or isinstance(message["content"], str)
        if role == "tool":
            assert message["tool_call_id"] in open_calls, "an answer to no call, or not directly after it"
            open_calls.remove(message["tool_call_id"])
            assert isinstance(message["content"], str)
            continue
        assert not open_calls, f"calls without answers before message {number}: {open_calls}"
        if role == "assistant":
            open_calls = _check_assistant(message)
        else:
            _check_content(message["content"])
    assert not open_calls, f"calls without answers at the end: {open_calls}"
    assert [message["role"] for message in chat["messages"]].count("system") <= 1 or "developer" in chat


def _check_assistant(message: dict[str, Any]) -> list[str]:
    calls = message.get("tool_calls")
    assert calls is None or calls, "an empty tool_calls"
    assert message.get("content") is not None or calls, "an assistant message with nothing in it"
    assert message.get("content") is None or isinstance(message["content"], str)
    ids = []
    for call in calls or ():
        assert set(call) == {"id", "type", "function"} and call["type"] == "function"
        assert set(call["function"]) == {"name", "arguments"}
        assert _NAME.fullmatch(call["function"]["name"]), call["function"]["name"]
        assert isinstance(json.loads(call["function"]["arguments"]), dict)
        assert 0 < len(call["id"]) <= 40 and call["id"] not in ids
        ids.append(call["id"])
    return ids


def _check_content(content: Any) -> None:
    if isinstance(content, str):
        return
    assert content, "an empty list of parts"
    for part in content:
        kind = part["type"]
        assert kind in ("text", "image_url", "file", "input_audio"), kind
        assert set(part) == {"type", kind}
        if kind == "image_url":
            assert isinstance(part["image_url"]["url"], str)
            assert part["image_url"].get("detail", "auto") in ("auto", "low", "high")


def _check_tools(chat: dict[str, Any]) -> None:
    tools = chat.get("tools")
    assert tools is None or tools, "an empty tools"
    if tools is None:
        assert "tool_choice" not in chat and "parallel_tool_calls" not in chat
        return
    names = []
    for tool in tools:
        assert set(tool) == {"type", "function"} and tool["type"] == "function"
        function = tool["function"]
        assert set(function) <= {"name", "description", "parameters", "strict"}
        assert _NAME.fullmatch(function["name"]), function["name"]
        assert isinstance(function["parameters"], dict)
        kind = function["parameters"].get("type", "object")
        if kind == "object" or not isinstance(kind, (str, list)):
            shapes = {"properties", "$ref", "anyOf", "oneOf", "allOf"}
            assert shapes & set(function["parameters"]), "an object of nothing"
        names.append(function["name"])
    assert len(set(names)) == len(names), "two tools of one name"
    choice = chat.get("tool_choice", "auto")
    if isinstance(choice, dict):
        assert choice == {"type": "function", "function": {"name": choice["function"]["name"]}}
        assert choice["function"]["name"] in names
    else:
        assert choice in ("auto", "none", "required")


def _check_format(value: Any) -> None:
    if value is None:
        return
    assert value["type"] in ("json_object", "json_schema")
    if value["type"] == "json_schema":
        assert set(value) == {"type", "json_schema"}
        assert set(value["json_schema"]) <= {"name", "schema", "description", "strict"}
        assert _NAME.fullmatch(value["json_schema"]["name"])
