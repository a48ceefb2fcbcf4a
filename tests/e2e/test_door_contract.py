"""The door contract: the same scenarios through the HTTP door, relay and drive give the client the same bytes.

Ids, times and comment lines are normalised; the permitted differences are the table `PERMITTED`, and each of them is
asserted to exist, so that the table cannot rot.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import DOORS, Door, Setup
from tests.support.chat_server import (
    Answer,
    Close,
    Reset,
    Wait,
    answer,
    chunk,
    completion,
    event,
    gzipped,
    json_answer,
    text_stream,
)
from tests.support.gateway import Answered, post
from tests.support.judge import check_response, check_stream, parse_sse

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

TEXT: dict[str, Any] = {"model": "demo-model", "input": "hi"}
STREAM = {**TEXT, "stream": True}
_TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


def _call(index: int, arguments: str, call_id: str | None = None) -> bytes:
    function: dict[str, Any] = {"arguments": arguments}
    call: dict[str, Any] = {"index": index, "function": function}
    if call_id is not None:
        call |= {"id": call_id, "type": "function"}
        function["name"] = "f"
    return event(chunk({"tool_calls": [call]}))


@dataclass(frozen=True)
class Scenario:
    """A request, what the upstream does, and what the client must get (`outcome`: a status or a terminal event)."""

    name: str
    request: Any
    answers: tuple[Answer, ...] = ()
    outcome: int | str = 200
    code: str | None = None
    path: str = "/responses"


_ERROR = {"error": {"message": "told you", "type": "invalid_request_error", "param": "x", "code": "c"}}
_HTML = (("content-type", "text/html"),)
_REASONING = [event(chunk({"reasoning_content": "hm"})), event(chunk({"reasoning_content": "m"}))]
_TOOLS = [_call(0, "", "call_a"), _call(0, '{"x"'), _call(0, ":1}"), _call(1, "{}", "call_b")]
_END = [event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"]

_COMPACT_NOW = [{"role": "user", "content": "I plant tomatoes."}, {"type": "compaction_trigger"}]
_TOO_LONG = {
    "input": [{"role": "user", "content": "word " * 1000}, {"role": "user", "content": "Go on."}],
    "context_management": [{"type": "compaction", "compact_threshold": 1000}],
}

SCENARIOS = (
    Scenario("json", TEXT),
    Scenario("stream", STREAM, outcome="response.completed"),
    Scenario("stream, not stored", {**STREAM, "store": False}, outcome="response.completed"),
    Scenario("ignored fields are named", {**TEXT, "unknown_field": 1, "user": "u"}),
    Scenario(
        "tool calls", {**STREAM, "tools": [_TOOL]}, (answer(parts=[*_TOOLS, *_END]),), outcome="response.completed"
    ),
    Scenario(
        "tool calls as JSON",
        {**TEXT, "tools": [_TOOL]},
        (
            json_answer(
                completion(
                    "", tool_calls=[{"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
                )
            ),
        ),
    ),
    Scenario(
        "reasoning",
        STREAM,
        (answer(parts=[*_REASONING, *text_stream("so")]),),
        outcome="response.completed",
    ),
    Scenario("cut by length", STREAM, (answer(parts=text_stream("a", finish="length")),), "response.incomplete"),
    Scenario("no [DONE]", STREAM, (answer(parts=text_stream("a", done=False)),), "response.completed"),
    Scenario(
        "closed by the upstream", STREAM, (answer(parts=text_stream("a"), framing="close"),), "response.completed"
    ),
    Scenario("compressed", STREAM, (gzipped(answer(parts=text_stream("a"))),), "response.completed"),
    Scenario("JSON for a stream", STREAM, (json_answer(completion("a")),), "response.completed"),
    Scenario("stream for JSON", TEXT, (answer(parts=text_stream("a")),)),
    Scenario(
        "error event", STREAM, (answer(parts=[event("a"), event({"error": _ERROR["error"]})]),), "response.failed"
    ),
    Scenario("400", TEXT, (json_answer(_ERROR, 400),), 400, "c"),
    Scenario("404", STREAM, (json_answer({"error": {"message": "no such model"}}, 404),), 404, "model_not_found"),
    Scenario("401", STREAM, (json_answer(_ERROR, 401),), 401, "c"),
    Scenario("429", STREAM, (json_answer(_ERROR, 429, [("retry-after", "3")]),), 429, "c"),
    Scenario("500", TEXT, (json_answer(_ERROR, 500),), 500, "c"),
    Scenario("500 in HTML", STREAM, (answer(500, _HTML, [b"<h1>no</h1>"]),), 500, "upstream_error"),
    Scenario("500 without a body", STREAM, (answer(500, _HTML, [], framing="length"),), 500, "upstream_error"),
    Scenario("HTML with 200", TEXT, (answer(200, _HTML, [b"<h1>hello</h1>"]),), 502, "upstream_invalid"),
    Scenario("HTML with 200, streamed", STREAM, (answer(200, _HTML, [b"<h1>hello</h1>"]),), 502, "upstream_invalid"),
    Scenario("empty JSON answer", TEXT, (answer(200, _HTML, [], framing="length"),), 502, "upstream_invalid"),
    Scenario("malformed JSON", b"{", outcome=400, code="invalid_json"),
    Scenario("not UTF-8", b'{"model":"\xff"}', outcome=400, code="invalid_json"),
    Scenario("empty body", b"", outcome=400, code="invalid_json"),
    Scenario("no model", {"input": "hi"}, outcome=400, code="missing_required_parameter"),
    Scenario("empty input", {"model": "m", "input": []}, outcome=400, code="missing_required_parameter"),
    Scenario("wrong type", {**TEXT, "temperature": "hot"}, outcome=400, code="invalid_type"),
    Scenario("out of range", {**TEXT, "temperature": 9}, outcome=400, code="decimal_above_max_value"),
    Scenario(
        "unsupported",
        {**TEXT, "tool_choice": {"type": "image_generation"}},
        outcome=400,
        code="unsupported_parameter",
    ),
    Scenario("in the background", {**STREAM, "background": True}, outcome="response.completed"),
    Scenario(
        "in the background, failing",
        {**STREAM, "background": True},
        (json_answer({"error": {"message": "told you"}}, 429),),
        outcome="response.failed",
    ),
    Scenario("in the background, not stored", {**TEXT, "background": True, "store": False}, outcome=400),
    Scenario("Chat's field", {**TEXT, "response_format": {}}, outcome=400, code="unsupported_parameter"),
    Scenario(
        "unknown previous response",
        {**TEXT, "previous_response_id": "resp_" + "0" * 48},
        outcome=400,
        code="previous_response_not_found",
    ),
    Scenario(
        "output without a call",
        {**TEXT, "input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]},
        outcome=400,
        code="invalid_value",
    ),
    Scenario("doubled slash", TEXT, path="//responses"),
    Scenario("dot segment", TEXT, path="/./responses"),
    Scenario("escaped letter", TEXT, path="/%72esponses"),
    Scenario("cut in the stream", STREAM, (answer(parts=[event("a"), Reset()]),), "response.failed"),
    Scenario("empty stream", STREAM, (answer(parts=[]),), "response.failed"),
    Scenario("JSON cut", TEXT, (answer(200, (("content-type", "application/json"),), [b'{"cho', Reset()]),), 502),
    Scenario("closed before the head", TEXT, (answer(parts=[Close()], framing="none"),) * 3, 502),
    Scenario("compaction asked for", {**STREAM, "input": _COMPACT_NOW}, outcome="response.completed"),
    Scenario("compaction asked for, as JSON", {**TEXT, "input": _COMPACT_NOW}),
    Scenario("compaction when too long", {**STREAM, **_TOO_LONG}, outcome="response.completed"),
    Scenario("compaction when too long, as JSON", {**TEXT, **_TOO_LONG}),
    Scenario(
        "compaction refused by the upstream",
        {**STREAM, "input": _COMPACT_NOW},
        (json_answer(_ERROR, 429, [("retry-after", "3")]),),
        429,
        "c",
    ),
    Scenario("compaction on its own path", {**STREAM, "input": _COMPACT_NOW[:1]}, path="/responses/compact"),
    Scenario("tokens of the input", TEXT, path="/responses/input_tokens"),
    Scenario("Chat Completions", {"model": "demo-model", "messages": []}, path="/chat/completions"),
    Scenario(
        "Chat Completions refused",
        {"messages": []},
        (json_answer(_ERROR, 429, [("retry-after", "3")]),),
        429,
        "c",
        path="/chat/completions",
    ),
    Scenario(
        "embeddings", {"model": "e", "input": "x"}, (json_answer({"object": "list", "data": []}),), path="/embeddings"
    ),
    Scenario("other spelling", TEXT, outcome=404, path="/../V1/responses"),
    Scenario("escaped slash", TEXT, outcome=400, path="%2Fresponses"),
)

PERMITTED: dict[tuple[str, str], str] = {
    ("cut in the stream", "relay"): "Envoy cuts the client's stream by itself: nothing can be sent after the cut",
    ("JSON cut", "relay"): "Envoy answers by itself, in its own words",
    ("other spelling", "http"): "Envoy's catch-all route has its own words",
    ("escaped slash", "http"): "Envoy refuses the path before any route, in its own words",
}

_ID = re.compile(rb"\b(resp|msg|fc|rs|call|fco|cmp|item)_[0-9a-f]{48}\b")
# Sealed with a nonce: never twice the same.
_SEALED = re.compile(rb'"encrypted_content":"[^"]+"')
_TIME = re.compile(rb'"(created_at|completed_at)":\d+(\.\d+)?')


def _normalise(body: bytes) -> bytes:
    names: dict[bytes, bytes] = {}
    body = _ID.sub(lambda m: names.setdefault(m[0], b"%b_%d" % (m[1], len(names))), body)
    body = _TIME.sub(rb'"\1":0', body)
    body = _SEALED.sub(b'"encrypted_content":"sealed"', body)
    return b"\n\n".join(part for part in body.split(b"\n\n") if not part.startswith(b":"))


def _seen(answered: Answered) -> tuple[int, str, str, str, bytes, bool]:
    headers = answered.headers
    return (
        answered.status,
        headers.get("content-type", ""),
        headers.get("antiphon-ignored", ""),
        headers.get("retry-after", ""),
        _normalise(answered.body),
        answered.cut,
    )


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_every_door_sends_the_same_bytes(scenario: Scenario, doors: dict[Door, Setup]) -> None:
    seen = {}
    for door, setup in doors.items():
        setup.server.forget_script()
        setup.server.script(*scenario.answers)
        answered = await post(setup.gateway.base_url + scenario.path, scenario.request, {"x-request-id": "same"})
        setup.server.forget_script()
        seen[door] = _seen(answered)
        if not _permitted(scenario, door):
            _check(scenario, answered)
    usual = next(door for door in reversed(DOORS) if not _permitted(scenario, door))
    for door in DOORS:
        if reason := _permitted(scenario, door):
            assert seen[door] != seen[usual], f"no difference any more: {reason}"
            assert not seen[door][4].count(b"event: response.completed"), "a wrong success"
        else:
            assert seen[door] == seen[usual]


def _permitted(scenario: Scenario, door: Door) -> str | None:
    """Why this door may differ here; which transport serves it is no reason."""
    return PERMITTED.get((scenario.name, door.removesuffix("-grpcio")))


def _check(scenario: Scenario, answered: Answered) -> None:
    assert not answered.cut
    if isinstance(scenario.outcome, str):
        assert answered.status == 200, answered.body
        events = parse_sse(answered.body)
        check_stream(events)
        assert events[-1]["type"] == scenario.outcome
        return
    assert answered.status == scenario.outcome, answered.body
    value = json.loads(answered.body)
    if scenario.outcome == 200:
        if value["object"] == "response":
            check_response(value)
        return
    # What an upstream says to a call that is passed on passes untouched.
    named = {} if scenario.path == "/chat/completions" else {"request_id": "same"}
    assert value["error"].items() >= named.items()
    assert set(value["error"]) == {"message", "type", "param", "code", *named}
    assert scenario.code is None or value["error"]["code"] == scenario.code


async def test_a_relayed_cut_is_a_cut(doors: dict[Door, Setup]) -> None:
    """What relay does instead of `response.failed`: the stream breaks, and is never ended by a terminal event."""
    setup = doors["relay"]
    seen = asyncio.Event()
    setup.server.script(answer(parts=[event("a"), Wait(seen), Reset()]))
    body = b""
    async with (
        aiohttp.ClientSession() as session,
        session.post(setup.gateway.base_url + "/responses", json=STREAM) as answered,
    ):
        assert answered.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            async for part in answered.content.iter_any():
                body += part
                if b"response.output_text.delta" in body:
                    seen.set()
    assert b"[DONE]" not in body and b"response.completed" not in body
    created = json.loads(body.split(b"\n")[1].removeprefix(b"data: "))
    async with aiohttp.ClientSession() as session:
        url = f"{setup.gateway.base_url}/responses/{created['response']['id']}"
        async with asyncio.timeout(60):
            while True:
                async with session.get(url) as stored:
                    value = await stored.json()
                if stored.status == 200:
                    break
                await asyncio.sleep(0.01)
    assert value["status"] == "failed"
