"""Samples of answers that together have everything an answer can have. Tests compare them with both schemas.

Lives here: pairs of a request and an upstream's chunks, by name. Not here: the expected results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from antiphon.engine.ports.hosted_tools import HostedCall, ToolResult
from antiphon.sealing import Sealer
from antiphon.translation.events.citations import Source
from antiphon.translation.tool_map import CallKind
from tests.support.exchanges import JSON, SSE, Outcome, run
from tests.support.hosted_tools import ScriptedTools


@dataclass(frozen=True)
class Sample:
    """A request, and the deltas (or the whole answer) that the upstream sends to it."""

    deltas: tuple[dict[str, Any], ...]
    finish: str | None = "stop"
    request: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    status: int = 200

    def body(self) -> bytes:
        """The upstream's stream."""
        chunks: list[dict[str, Any]] = []
        for delta in self.deltas:
            shown = {key: value for key, value in delta.items() if key != "logprobs"}
            chunks.append({"choices": [{"index": 0, "delta": shown, "logprobs": delta.get("logprobs")}]})
        last: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish}], **self.more}
        return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in (*chunks, last)) + b"data: [DONE]\n\n"


def _text(text: str = "Hello", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def _call(name: str, arguments: str, index: int = 0) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}


_PARAMETERS = {"type": "object", "properties": {"x": {"type": "number"}}}
_FUNCTION = {"type": "function", "name": "f", "parameters": _PARAMETERS}
_CUSTOM = {"type": "custom", "name": "patch", "format": {"type": "text"}}
_SPACE = {"type": "namespace", "name": "files", "description": "Files.", "tools": [_FUNCTION]}
_SEARCH = {
    "type": "tool_search",
    "execution": "client",
    "description": "Find tools.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
}
_LOGPROB = {"token": "Hello", "logprob": -0.5, "bytes": None, "top_logprobs": []}
_SCHEMA = {"type": "json_schema", "name": "n", "schema": _PARAMETERS, "strict": True}
_FILES = {"type": "file_search", "vector_store_ids": ["vs_1"]}
_DICE = {"type": "mcp", "server_label": "dice", "server_url": "https://dice.example"}
_ONCE = {"max_tool_calls": 1}
_DIFF = json.dumps({"type": "create_file", "path": "a.txt", "diff": "+a\n+b\n"})
_USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
_CITATION = {"type": "url_citation", "url_citation": {"url": "https://a.example", "title": "A", "start_index": 0}}
_CITATION["url_citation"]["end_index"] = 5  # type: ignore[index]
_FILE = {"type": "file", "file": {"hash": "h", "name": "a.pdf", "content": [{"type": "text", "text": "a"}]}}

SAMPLES = {
    "text": Sample((_text(), _text(" world")), more={"usage": _USAGE}),
    "without usage": Sample((_text(),)),
    "empty": Sample((_text(""),)),
    "cut": Sample((_text(),), "length", {"max_output_tokens": 16}),
    "filtered": Sample((_text(),), "content_filter"),
    "refusal": Sample(({"refusal": "I can"}, {"refusal": "not."})),
    "reasoning": Sample(({"reasoning_content": "Hm"}, {"reasoning_content": "m."}, _text())),
    "reasoning, Open Responses' names": Sample(({"reasoning": "Hmm."}, _text())),
    "reasoning summary": Sample(({"reasoning_content": "Hmm."}, _text()), request={"reasoning": {"summary": "auto"}}),
    "sealed reasoning": Sample(
        ({"reasoning_content": "Hmm."}, _text()), request={"include": ["reasoning.encrypted_content"], "store": False}
    ),
    "reasoning effort": Sample((_text(),), request={"reasoning": {"effort": "minimal"}}),
    "function calls": Sample(
        (_text("Wait."), _call("f", '{"x":1}'), _call("f", '{"x":2}', 1)), "tool_calls", {"tools": [_FUNCTION]}
    ),
    "cut call": Sample((_call("f", '{"x":'),), "length", {"tools": [_FUNCTION]}),
    "call in a namespace": Sample((_call("files__f", "{}"),), "tool_calls", {"tools": [_SPACE]}),
    "custom call": Sample((_call("patch", '{"input":"a\\nb"}'),), "tool_calls", {"tools": [_CUSTOM]}),
    "local shell call": Sample(
        (_call("local_shell", '{"command":["ls","-l"]}'),), "tool_calls", {"tools": [{"type": "local_shell"}]}
    ),
    "shell call": Sample(
        (_call("shell", '{"commands":["ls","pwd"]}'),),
        "tool_calls",
        {"tools": [{"type": "shell", "environment": {"type": "local"}}]},
    ),
    "patch call": Sample((_call("apply_patch", _DIFF),), "tool_calls", {"tools": [{"type": "apply_patch"}]}),
    "tool search call": Sample(
        (_call("tool_search", '{"query":"files"}'),),
        "tool_calls",
        {"tools": [_SEARCH, {**_FUNCTION, "defer_loading": True}]},
    ),
    "logprobs": Sample(
        (_text(logprobs={"content": [_LOGPROB], "refusal": None}),),
        request={"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ),
    "web citation": Sample((_text(), {"annotations": [_CITATION]})),
    "file annotation": Sample((_text(), {"annotations": [_FILE]})),
    "obfuscation": Sample((_text(),), request={"stream_options": {"include_obfuscation": True}}),
    "failed": Sample((_text(),), None, more={"error": {"message": "Out of memory.", "code": 500}}),
    "failed with a code": Sample((_text(),), None, more={"error": {"message": "No.", "code": "insufficient_quota"}}),
    "broken off": Sample((_text(),), None),
    "json_schema": Sample((_text("{}"),), request={"text": {"format": _SCHEMA, "verbosity": "low"}}),
    "json_object": Sample((_text("{}"),), request={"text": {"format": {"type": "json_object"}}}),
    "echoes": Sample(
        (_text(),),
        request={
            "instructions": "Be brief.",
            "metadata": {"a": "b"},
            "user": "someone",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "temperature": 0,
            "top_p": 0.5,
            "presence_penalty": 1,
            "frequency_penalty": -1,
            "max_output_tokens": 100,
            "max_tool_calls": 3,
            "top_logprobs": 2,
            "parallel_tool_calls": False,
            "store": False,
            "truncation": "auto",
            "service_tier": "flex",
        },
    ),
    "tool choice by name": Sample(
        (_call("f", "{}"),), "stop", {"tools": [_FUNCTION], "tool_choice": {"type": "function", "name": "f"}}
    ),
    "allowed tools": Sample(
        (_call("f", "{}"),),
        "stop",
        {
            "tools": [_FUNCTION],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        },
    ),
    "custom tool choice": Sample(
        (_call("patch", '{"input":"a"}'),),
        "stop",
        {"tools": [_CUSTOM], "tool_choice": {"type": "custom", "name": "patch"}},
    ),
    "hosted tool": Sample((_text(),), request={"tools": [{"type": "web_search", "search_context_size": "low"}]}),
    "file search": Sample(
        (_text("So it is【1】."), _call("file_search", '{"query":"x"}')),
        "tool_calls",
        {"tools": [_FILES], **_ONCE, "include": ["file_search_call.results"]},
    ),
    "hosted tool search": Sample(
        (_text("So it is."), _call("tool_search", '{"query":"x"}')),
        "tool_calls",
        {"tools": [{"type": "tool_search"}, {**_FUNCTION, "defer_loading": True}], **_ONCE},
    ),
    "web search": Sample(
        (_text("So it is【2】."), _call("web_search", '{"query":"x"}')),
        "tool_calls",
        {"tools": [{"type": "web_search"}], **_ONCE},
    ),
    "code": Sample(
        (_text("So it is【3】."), _call("code_interpreter", '{"code":"1+1"}')),
        "tool_calls",
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}], **_ONCE},
    ),
    "mcp call": Sample(
        (_call("dice__roll", "{}"),), "tool_calls", {"tools": [{**_DICE, "require_approval": "never"}], **_ONCE}
    ),
    "mcp call that fails": Sample(
        (_call("dice__roll", '{"fail":true}'),),
        "tool_calls",
        {"tools": [{**_DICE, "require_approval": "never"}], **_ONCE},
    ),
    "mcp call to approve": Sample((_call("dice__roll", "{}"),), "tool_calls", {"tools": [_DICE]}),
    "another service tier": Sample((_text(),), more={"service_tier": "on_demand"}),
}


def outcome_of(name: str, *, stream: bool = True) -> Outcome:
    """The exchange's answer to a sample."""
    sample = SAMPLES[name]
    options: dict[str, Any] = {"sealer": Sealer([b"secret"], random_bytes=bytes)} if name == "sealed reasoning" else {}
    return run(
        {"model": "m", "input": "hi", **sample.request, "stream": stream},
        [sample.body()],
        status=sample.status,
        headers=SSE if stream else JSON,
        open_responses_names="Open Responses" in name,
        tools=ScriptedTools(_found) if _runs_tools(sample) else None,
        **options,
    )


def _runs_tools(sample: Sample) -> bool:
    return any(tool["type"] in ScriptedTools.types for tool in sample.request.get("tools", ())) and bool(
        any("tool_calls" in delta for delta in sample.deltas)
    )


def _found(call: HostedCall) -> ToolResult:
    """Results of every kind of tool."""
    sources = (
        Source({"type": "file_citation", "file_id": "file_a", "filename": "a.txt"}),
        Source({"type": "url_citation", "url": "https://a.example", "title": "A"}),
        Source(
            {"type": "container_file_citation", "container_id": "cntr_a", "file_id": "cfile_a", "filename": "a.txt"}
        ),
    )
    fields: dict[CallKind, dict[str, Any]] = {
        CallKind.FILE_SEARCH: {
            "queries": ["x"],
            "results": [{"file_id": "file_a", "filename": "a.txt", "score": 0.5, "text": "a", "attributes": {}}],
        },
        CallKind.HOSTED_TOOL_SEARCH: {"tools": [{**_FUNCTION, "strict": None, "defer_loading": True}]},
        CallKind.WEB_SEARCH: {"action": {"type": "search", "query": "x", "queries": ["x"]}},
        CallKind.CODE_INTERPRETER: {"outputs": [{"type": "logs", "logs": "2"}]},
        CallKind.MCP: {"output": "6"},
    }
    if "fail" in call.arguments:
        error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no dice"}]}
        return ToolResult(call.call_id, "no dice", {"error": error}, failed=True)
    return ToolResult(call.call_id, "{cite:0} {cite:1}", fields[call.target.kind], sources=sources)
