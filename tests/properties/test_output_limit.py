"""Wherever the limit of an answer's size falls, the stream is whole and says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.exchanges import limits, run
from tests.support.judge import check_stream, parse_sse

_TOOLS: dict[str, dict[str, Any]] = {
    "function": {"type": "function", "name": "f", "parameters": {"type": "object"}},
    "custom": {"type": "custom", "name": "f"},
    "native": {"type": "local_shell"},
}
_CODES = ("upstream_too_large", "upstream_invalid")
"""The second is that of a custom tool's input which is not whole."""
_NAMES = {"function": "f", "custom": "f", "native": "local_shell"}


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": name, "arguments": arguments}}]}


def _chunks(deltas: list[dict[str, Any]], finish: str) -> bytes:
    chunks = [*({"delta": delta} for delta in deltas), {"delta": {}, "finish_reason": finish}]
    return (
        b"".join(b"data: %b\n\n" % json.dumps({"choices": [chunk]}).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    )


def _ends(body: bytes, request: dict[str, Any]) -> set[str]:
    """How the response ends with each limit that makes a difference; one stream of each form is looked at closely."""
    asked = {"model": "m", "input": "hi", "stream": True, **request}
    forms = {}
    for limit in range(48):
        events = parse_sse(run(asked, [body], limits=limits(upstream_body_bytes=limit)).body)
        forms[tuple(event["type"] for event in events)] = events
    finals = [check_stream(events) for events in forms.values()]
    assert all(final["status"] == "completed" or final["error"]["code"] in _CODES for final in finals), finals
    return {final["status"] for final in finals}


@pytest.mark.parametrize(
    "arguments", ["", '{"input": "ab\\u00e9\\n', '{"input": "a word or two"}', '{"command": ["ls", "-l"]}', "{"]
)
@pytest.mark.parametrize("kind", _TOOLS)
def test_calls(kind: str, arguments: str) -> None:
    pieces = [arguments[start : start + 5] for start in range(0, len(arguments), 5)]
    deltas = [_call(_NAMES[kind], ""), *(_call("", piece) for piece in pieces)]
    body = _chunks([{"content": "Well."}, *deltas], "tool_calls")
    assert "failed" in _ends(body, {"tools": [_TOOLS[kind]]})


@pytest.mark.parametrize(
    "deltas",
    [
        [{"content": "some words"}],
        [{"content": "  "}],
        [{"reasoning_content": "hm"}, {"content": "some words"}],
        [{"refusal": "I will not."}],
        [{"content": "<think>hm</th"}],
        [
            {"content": "some words"},
            {"annotations": [{"type": "url_citation", "url_citation": {"url": "https://a.example"}}]},
        ],
    ],
)
def test_text(deltas: list[dict[str, Any]]) -> None:
    assert _ends(_chunks(deltas, "stop"), {}) == {"failed", "completed"}
