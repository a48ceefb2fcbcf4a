"""The scenarios through the HTTP door here and through a real Envoy; and that the checks see what is wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from antiphon.commands.demo_upstream import chunks, completion, make_app, reply
from antiphon.recordings.file import CassetteFile, read_file
from antiphon.recordings.servers import Recorder, ReplayedExchange, Replayer
from antiphon.sealing import Sealer
from lab.conformance import checks, run
from lab.conformance.checks import Answer, Check
from lab.conformance.client import Result, Server, run_all, run_scenario
from lab.conformance.scenarios import NOT_YET, SCENARIOS, Scenario
from tests.support import chat_server
from tests.support.chat_server import DONE_EVENT, Received, event, json_answer
from tests.support.exchanges import run as run_exchange
from tests.support.http_door import OpenHttpDoor, open_http_door
from tests.support.judge import parse_sse

# Names and order as in the official suite (specification 2026-04-24).
OFFICIAL = [
    "basic-response",
    "assistant-phase",
    "response-output-phase-schema",
    "streaming-response",
    "websocket-response",
    "websocket-sequential-responses",
    "websocket-continuation",
    "websocket-reconnect-store-false-recovery",
    "websocket-previous-response-not-found",
    "websocket-failed-continuation-evicts-cache",
    "websocket-compact-new-chain",
    "system-prompt",
    "tool-calling",
    "image-input",
    "multi-turn",
    "compact-response",
    "compact-missing-model",
]


def _demo(request: Received) -> chat_server.Answer:
    answer = reply(request.json)
    if not request.json.get("stream"):
        return json_answer(completion(answer))
    return chat_server.answer(parts=[*(event(chunk) for chunk in chunks(answer, usage=True)), DONE_EVENT])


def _server(door: OpenHttpDoor) -> Server:
    door.chat.default = _demo
    return Server(door.base_url, "demo")


def _is_as_listed(result: Result) -> bool:
    return result.verdict == ("not yet" if result.scenario in NOT_YET else "pass")


def test_the_scenarios_are_the_17_official_ones() -> None:
    assert [scenario.name for scenario in SCENARIOS] == OFFICIAL
    assert set(NOT_YET) <= set(OFFICIAL)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_http_door(scenario: Scenario) -> None:
    async with open_http_door(sealer=Sealer([b"key"])) as door, aiohttp.ClientSession() as session:
        result = await run_scenario(session, _server(door), scenario)
    assert _is_as_listed(result), result


@pytest.mark.parametrize("dialect", ["openai", "openresponses"])
async def test_a_model_that_reasons_conforms_in_the_dialect_of_open_responses(dialect: str) -> None:
    async with open_http_door(sealer=Sealer([b"key"])) as door:
        server = _server(door)
        results = await run_all(Server(server.base_url, "demo-reasoner", headers=(("antiphon-dialect", dialect),)))
    failed = {result.scenario for result in results if result.verdict != "pass"}
    # The two have different names for the events of reasoning text.
    streamed = {one.name for one in SCENARIOS if one.turns or (one.body or {}).get("stream")}
    streamed.discard("websocket-previous-response-not-found")
    assert failed == (set() if dialect == "openresponses" else streamed)


@pytest.mark.e2e
@pytest.mark.full
@pytest.mark.parametrize("door", ["relay", "drive"])
async def test_envoy(door: str) -> None:
    async with run.open_doors([door]) as servers:
        results = await run_all(servers[door])
    assert [result.scenario for result in results] == OFFICIAL
    assert all(_is_as_listed(result) for result in results), results


@pytest.mark.e2e
@pytest.mark.parametrize(
    "door", ["http", pytest.param("relay", marks=pytest.mark.full), pytest.param("drive", marks=pytest.mark.full)]
)
async def test_the_scenarios_on_a_replay_end_as_on_the_recorded_server(door: str, tmp_path: Path) -> None:
    """A recorder notes what the demo server says to all scenarios. A replay of the file then takes its place."""
    path = tmp_path / "suite.jsonl"
    async with (
        run.serving(make_app(pause=0.0)) as demo,
        run.open_doors([door], Recorder(demo, CassetteFile(path)).app) as servers,
    ):
        recorded = await run_all(servers[door])
    assert all(_is_as_listed(result) for result in recorded), recorded
    entries = read_file(path)
    played: list[ReplayedExchange] = []
    async with run.open_doors([door], Replayer(entries, report=played.append).app) as servers:
        assert await run_all(servers[door]) == recorded
    answered = [one for one in played if one.method == "POST"]
    assert all(one.number for one in answered), [one.note for one in answered]
    assert len(answered) == sum(entry.method == "POST" for entry in entries) >= len(OFFICIAL)


# The checks see what is wrong


def _response() -> dict[str, Any]:
    part = {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}
    message = {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": [part]}
    tool = {"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}
    return {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "completed_at": 2,
        "status": "completed",
        "model": "m",
        "output": [message],
        "tools": [tool],
        "tool_choice": "auto",
        "truncation": "disabled",
        "usage": None,
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}},
        "top_p": 1.0,
        "temperature": 1.0,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_logprobs": 0,
        "store": True,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "incomplete_details": None,
        "previous_response_id": None,
        "instructions": None,
        "error": None,
        "reasoning": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


def _json_of(change: Callable[[dict[str, Any]], Any]) -> Answer:
    value = _response()
    change(value)
    return Answer.read(200, "application/json", json.dumps(value).encode())


def _set(*path: str | int, to: Any) -> Callable[[dict[str, Any]], Any]:
    def change(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("check", "change"),
    [
        (checks.response_schema, _set("usage", to={})),
        (checks.response_schema, lambda value: value.pop("safety_identifier")),
        (checks.response_schema, _set("created_at", to=1.5)),
        (checks.response_schema, _set("temperature", to=None)),
        (checks.response_schema, _set("output", 0, "content", 0, "annotations", to=None)),
        (checks.response_schema, _set("output", 0, "phase", to=None)),
        (checks.response_schema, lambda value: value["tools"][0].pop("strict")),
        (checks.has_output, _set("output", to=[])),
        (checks.completed, _set("status", to="incomplete")),
        (checks.has_item("function_call"), _set("model", to="other")),
        (checks.one_message, _set("output", 0, "role", to="user")),
        (checks.one_message, _set("output", 0, "content", to=[])),
        (checks.strict_is_null, _set("tools", 0, "strict", to=True)),
        (checks.compaction_schema, _set("model", to="other")),
        (checks.compacted, _set("output", to=[{"type": "compaction", "encrypted_content": ""}])),
        (checks.status(400, 422), _set("model", to="other")),
    ],
)
def test_a_wrong_answer_is_seen(check: Check, change: Callable[[dict[str, Any]], Any]) -> None:
    assert check(_json_of(change)) is not None


def test_a_right_answer_passes() -> None:
    right = _json_of(lambda value: None)
    for check in (checks.response_schema, checks.has_output, checks.completed, checks.one_message):
        assert check(right) is None


async def _streamed() -> bytes:
    async with open_http_door() as door, aiohttp.ClientSession() as session:
        server = _server(door)
        async with session.post(
            server.base_url + "/responses", json={"model": "demo", "input": "count to 3", "stream": True}
        ) as answer:
            return await answer.read()


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (checks.framing, b"data: [DONE]\n\n", b""),
        (checks.framing, b"\n", b"\r\n"),
        (checks.framing, b"event: response.created\n", b""),
        (checks.framing, b"event: response.created\n", b"event: event\n"),
        (checks.framing, b"event: response.created\n", b"id: 1\nevent: response.created\n"),
        (checks.order, b'"sequence_number":3', b'"sequence_number":4'),
        (checks.order, b'"type":"response.in_progress"', b'"type":"response.queued"'),
        (checks.order, b'"delta":" 2"', b'"delta":" 3"'),
        (checks.event_schema, b'"type":"response.output_text.delta"', b'"type":"response.reasoning_text.delta"'),
        (checks.event_schema, b'"content_index":0,', b""),
        (checks.completed, b'"type":"response.completed"', b'"type":"response.finished"'),
    ],
)
async def test_a_wrong_stream_is_seen(check: Check, old: bytes, new: bytes) -> None:
    right = await _streamed()
    assert old in right
    assert check(Answer.read(200, "text/event-stream", right)) is None
    assert check(Answer.read(200, "text/event-stream", right.replace(old, new))) is not None


def test_a_content_type_that_is_none_is_seen() -> None:
    assert checks.framing(Answer.read(200, "text/plain", b"data: [DONE]\n\n")) is not None
    assert checks.one_message(Answer.read(200, "text/html", b"{}")) is not None


async def test_what_passes_although_it_is_listed_as_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOT_YET, "basic-response", "not yet")
    async with open_http_door() as door, aiohttp.ClientSession() as session:
        result = await run_scenario(session, _server(door), SCENARIOS[0])
    assert result.verdict == "fail" and "take it out" in result.reason


async def test_what_is_listed_as_missing_is_a_failure_of_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOT_YET, "basic-response", "not yet")
    for ours, verdict in ((True, "not yet"), (False, "fail")):
        async with aiohttp.ClientSession() as session:
            server = Server("http://127.0.0.1:9/v1", "demo", ours=ours)
            assert (await run_scenario(session, server, SCENARIOS[0])).verdict == verdict


async def test_no_server_fails_every_scenario_that_needs_one() -> None:
    results = await run_all(Server("http://127.0.0.1:9/v1", "demo"))
    assert [result.scenario for result in results if result.verdict != "fail"] == ["response-output-phase-schema"]


# Servers whose WebSocket is wrong

_HELLO = parse_sse(
    run_exchange(
        {"model": "demo", "input": "hi", "stream": True},
        [b'data: {"choices":[{"delta":{"content":"hello"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'],
    ).body
)


@asynccontextmanager
async def _says_hello_always(how: str) -> AsyncIterator[Server]:
    """A server that remembers nothing and refuses nothing; and `how` else it is wrong."""

    async def handle(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            for said in _HELLO:
                await socket.send_json(said)
            if how == "sends the sentinel":
                await socket.send_str("[DONE]")
            if how == "closes":
                break
        return socket

    app = web.Application()
    if how != "has none":
        app.router.add_get("/v1/responses", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Server(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "demo")
    finally:
        await runner.cleanup()


_SOCKETS = [scenario.name for scenario in SCENARIOS if scenario.turns]


@pytest.mark.parametrize(
    ("how", "passing"),
    [
        ("remembers nothing", ["websocket-response", "websocket-sequential-responses"]),
        ("sends the sentinel", ["websocket-response"]),
        ("closes", ["websocket-response"]),
        ("has none", []),
    ],
)
async def test_a_wrong_websocket_is_seen(how: str, passing: list[str]) -> None:
    async with _says_hello_always(how) as server:
        results = await run_all(server)
    assert [one.scenario for one in results if one.scenario in _SOCKETS and one.verdict == "pass"] == passing


async def test_what_the_official_suite_does_not_check_can_be_left_out() -> None:
    async with _says_hello_always("remembers nothing") as server:
        results = {result.scenario: result for result in await run_all(server, official=True)}
    # It does not look at what was remembered.
    assert results["websocket-continuation"].verdict == "pass"
    assert results["websocket-previous-response-not-found"].verdict == "fail"


@pytest.mark.parametrize(("verdict", "status"), [("pass", 0), ("not yet", 0), ("fail", 1)])
def test_the_exit_status_is_1_when_something_failed(
    verdict: Any, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ran(arguments: Any) -> dict[str, list[Result]]:
        return {"relay": [Result("basic-response", "pass"), Result("multi-turn", verdict, "because")]}

    assert run.main([], ran) == status
    shown = capsys.readouterr().out
    assert "basic-response  pass" in shown and "because [relay]" in shown
