"""What an exchange records for the console, and how an operator stops it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.config.operators import ConsoleSettings
from antiphon.console.story import exported
from antiphon.engine.exchange.recording_exchange import (
    LEFT_OUT,
    LOOK,
    MOST,
    STEP,
    STOPPED,
    TOOL_BYTES,
    RecordedParts,
    RecordingExchange,
    record_unrun,
    secrets_of_tools,
)
from antiphon.engine.exchange.states import FOREVER
from antiphon.engine.ports.actions import CancelReason, Context, RequestHead, SendBody, SendHead
from antiphon.engine.ports.hosted_tools import ToolResult
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.journal import Recording
from antiphon.errors import InvalidRequest, StoreError
from antiphon.redaction import SecretSearch
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault
from tests.support.exchanges import JSON, SSE, Outcome, exchange_options, pump
from tests.support.fixed import SequentialIds, fixed_clock
from tests.support.hosted_tools import ScriptedTools
from tests.support.journal import joined, recording_exchange

_ALL = ConsoleSettings(record="all")
_KEY = "sk-of-the-client-0123456789"
_HEAD: Headers = (("authorization", f"Bearer {_KEY}"), ("cookie", "a=b"), ("user-agent", "test"), ("x-own", "z"))
_TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
_END = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\ndata: [DONE]\n\n'
)


class Ticks:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _exchange(
    console: ConsoleSettings = _ALL, ticks: Ticks | None = None, tools: ScriptedTools | None = None, **options: Any
) -> RecordingExchange:
    if tools is not None:
        options["tool_types"] = tools.types
    made = exchange_options(**options)
    return recording_exchange(console, made, SequentialIds(), fixed_clock, ticks=ticks or Ticks())


def _ask(exchange: RecordingExchange, headers: Headers = _HEAD, **fields: Any) -> None:
    body = json.dumps({"model": "m", "input": "hello", "stream": True, **fields}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses?a=b", headers, "owner"), body)


def _streaming(ticks: Ticks, outcome: Outcome) -> RecordingExchange:
    """An exchange whose upstream has begun a stream."""
    exchange = _exchange(ticks=ticks)
    _ask(exchange)
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, SSE)
    return exchange


def _whole(exchange: RecordingExchange) -> Recording:
    assert exchange.parts is not None
    return exchange.parts.whole(100.0)


def _tool_call(name: str) -> bytes:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": '{"query":"x"}'}}
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"


def test_a_recording_has_both_sides_of_a_stream() -> None:
    ticks, outcome = Ticks(), Outcome()
    exchange = _exchange(ticks=ticks)
    _ask(exchange)
    ticks.now += 1
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, (*SSE, ("set-cookie", "x=y"), ("x-request-id", "up_1")))
    pump(exchange, outcome)
    for _ in range(3):
        ticks.now += 2 * STEP
        exchange.receive_upstream_data(_TEXT)
        pump(exchange, outcome)
    exchange.receive_upstream_data(_END)
    pump(exchange, outcome)
    recording = _whole(exchange)
    kinds = [part.kind for part in recording.parts]
    assert kinds[:4] == ["request", "call", "head", "event_head"] and kinds[-2:] == ["event", "finish"]
    assert joined(recording, "data") == _TEXT * 3 + _END and joined(recording, "event") == outcome.body
    request, call, head = recording.parts[:3]
    assert json.loads(request.data)["input"] == "hello" and request.facts["path"] == "/v1/responses"
    assert request.facts["headers"] == [["user-agent", "test"]]
    assert json.loads(call.data)["messages"] and call.facts["path"] == "/chat/completions"
    assert (call.facts["upstream"], call.facts["stream"], call.at) == ("default", True, 1.0)
    assert head.facts == {"status": 200, "headers": [["content-type", "text/event-stream"], ["x-request-id", "up_1"]]}
    assert recording.parts[-1].facts == {"outcome": "completed"} and not recording.cut
    assert [part.at for part in recording.parts] == sorted(part.at for part in recording.parts)
    assert "saved" in kinds and len([kind for kind in kinds if kind == "data"]) == 3


def test_chunks_of_one_time_step_are_one_part() -> None:
    ticks, outcome = Ticks(), Outcome()
    exchange = _exchange(ticks=ticks)
    _ask(exchange, store=True)
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, SSE)
    pump(exchange, outcome)
    for _ in range(50):
        ticks.now += STEP / 100
        exchange.receive_upstream_data(_TEXT)
        pump(exchange, outcome)
    parts = _whole(exchange).parts
    assert [part.kind for part in parts][3:] == ["event_head", "event", "data"]
    assert parts[-1].data == _TEXT * 50 and parts[-2].data == outcome.body


def test_a_hosted_tool_is_recorded_between_two_turns() -> None:
    secret = "secret-of-the-settings"
    tools = ScriptedTools(lambda call: ToolResult(call.call_id, f"found {secret} " + "x" * TOOL_BYTES, {}, failed=True))
    ticks, outcome = Ticks(), Outcome()
    exchange = _exchange(ticks=ticks, tools=tools, secrets=(secret,))
    _ask(exchange, tools=[{"type": "web_search"}])
    pump(exchange, outcome, tools=tools)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_tool_call("web_search"))
    pump(exchange, outcome, tools=tools)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_TEXT + _END)
    pump(exchange, outcome, tools=tools)
    recording = _whole(exchange)
    kinds = [part.kind for part in recording.parts if part.kind not in ("event", "event_head")]
    turn = ["call", "head", "data"]
    assert kinds == ["request", *turn, "tool", *turn, "saved", "finish"]
    (tool,) = (part for part in recording.parts if part.kind == "tool")
    assert tool.facts["name"] == "web_search" and tool.facts["failed"] and tool.facts["size"] > TOOL_BYTES
    assert len(tool.data) < TOOL_BYTES and tool.data.startswith(b"found [redacted] x")
    assert secret.encode() not in b"".join(part.data for part in recording.parts)
    steps = [(step.kind, step.name, step.error) for step in exchange.steps]
    assert steps == [("load", "tools", ""), ("tool", "web_search", "failed"), ("save", "response", "")]


def test_no_part_has_a_secret() -> None:
    mcp, deferred, nested = "token-of-the-mcp-server", "token-of-a-later-server", "token-of-a-namespace"
    known = "a-key-of-the-gateway-0001"
    declared = [
        {"type": "mcp", "server_label": "d", "server_url": "https://x.example", "authorization": mcp},
        {"type": "namespace", "tools": [{"type": "mcp", "authorization": f"Bearer {nested}"}, 5]},
    ]
    later = {"type": "mcp", "headers": {"X-Key": deferred, "Accept": "text/plain", "x-count": 5}}
    body = json.dumps({"model": "m", "input": [{"tools": [later]}], "tools": declared}).encode()
    found = secrets_of_tools(body)
    assert found is not None and set(found) == {mcp, deferred, nested, f"Bearer {nested}"}
    outcome = Outcome()
    exchange = _exchange(secrets=(known,), tool_types=frozenset({"mcp"}))
    head = RequestHead("POST", "/v1/responses", (*_HEAD, ("user-agent", known)), "owner")
    exchange.receive_request(
        head, body.replace(b'"m"', f'"{_KEY} {base64.b64encode(known.encode()).decode()}"'.encode())
    )
    pump(exchange, outcome, tools=ScriptedTools())
    text = str(_whole(exchange))
    assert "[redacted]" in text and "namespace" in text and "https://x.example" in text
    for secret in (mcp, deferred, nested, known, _KEY, base64.b64encode(known.encode()).decode()):
        assert secret not in text


@pytest.mark.parametrize(
    "written",
    [
        lambda key: json.dumps(key)[1:-1],
        lambda key: json.dumps(key)[1:-1].replace("+", "\\u002B"),
        lambda key: "".join(f"\\u{ord(letter):04x}" for letter in key),
    ],
)
@pytest.mark.parametrize("mcp", ["Ab+cd/ef+gh/0123", "schlüssel-für-ölöfen-07", "x+ö1"])
def test_no_part_has_an_escaped_secret(written: Any, mcp: str) -> None:
    tool = f'{{"type": "mcp", "server_label": "d", "server_url": "https://x", "headers": {{"X-K": "{written(mcp)}"}}}}'
    body = f'{{"model": "m", "input": "it is {written(_KEY)} and {written(mcp)}", "stream": true, "tools": [{tool}]}}'
    exchange = _exchange(tool_types=frozenset({"mcp"}))
    exchange.receive_request(RequestHead("POST", "/v1/responses", _HEAD, "owner"), body.encode())
    pump(exchange, Outcome(), tools=ScriptedTools())
    lines = exported(_whole(exchange))
    for data in (*(part.data for part in _whole(exchange).parts), *lines):
        for secret in (_KEY, mcp):
            assert written(secret).encode() not in data and secret.encode() not in data
    sent = json.loads(_whole(exchange).parts[0].data)
    assert sent["input"] == "it is [redacted] and [redacted]"
    assert sent["tools"][0]["headers"] == {"X-K": "[redacted]"}


def test_a_stream_that_still_spells_a_secret_is_left_out() -> None:
    ticks, outcome = Ticks(), Outcome()
    exchange = _streaming(ticks, outcome)
    for at in range(0, len(_KEY), 3):
        ticks.now += 2 * STEP
        exchange.receive_upstream_data(b'data: {"response": "%b"}\n\n' % _KEY[at : at + 3].encode())
    recording = _whole(exchange)
    assert joined(recording, "data") == LEFT_OUT and joined(recording, "request") != b""


def test_a_body_that_cannot_be_read_may_have_escaped_tools() -> None:
    exchange = _exchange()
    body = b'{"tools": [{"type": "\\u006dcp", "authorization": "xyzzy-plugh"'
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    assert _whole(exchange).parts[0].data == b""


@pytest.mark.parametrize("written", [_KEY, _KEY.replace("-", "\\u002d"), "".join(f"\\u{ord(one):04X}" for one in _KEY)])
def test_a_secret_that_is_split_over_the_chunks_of_a_stream(written: str) -> None:
    stream = b'data: {"choices":[{"index":0,"delta":{"content":"it is %b."}}]}\n\n' % written.encode() + _END
    for at in range(stream.index(b"it is"), stream.index(b'."}')):
        ticks, outcome = Ticks(), Outcome()
        exchange = _exchange(ticks=ticks)
        _ask(exchange)
        pump(exchange, outcome)
        exchange.receive_upstream_head(200, SSE)
        for piece in (stream[:at], stream[at:]):
            ticks.now += 2 * STEP
            exchange.receive_upstream_data(piece)
            pump(exchange, outcome)
        recording = _whole(exchange)
        assert joined(recording, "data") == stream.replace(written.encode(), b"[redacted]")
        assert b"it is [redacted]." in joined(recording, "event") and _KEY.encode() not in joined(recording, "event")
        assert len([part for part in recording.parts if part.kind == "data"]) == 2


@pytest.mark.parametrize("end", [_END, b""])
def test_a_secret_that_the_model_spells_over_several_events_is_in_neither_stream(end: bytes) -> None:
    ticks, outcome = Ticks(), Outcome()
    exchange = _streaming(ticks, outcome)
    for at in range(0, len(_KEY), 3):
        ticks.now += 2 * STEP
        exchange.receive_upstream_data(_TEXT.replace(b"hi", _KEY[at : at + 3].encode()))
        pump(exchange, outcome)
    exchange.receive_upstream_data(end)
    pump(exchange, outcome)
    recording = _whole(exchange)
    for kind in ("data", "event"):
        stream = joined(recording, kind)
        events = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith(b"data: {")]
        deltas = [one["choices"][0]["delta"].get("content", "") for one in events if "choices" in one]
        deltas += [one["delta"] for one in events if isinstance(one.get("delta"), str)]
        assert "".join(deltas) == "[redacted]" and _KEY.encode() not in stream
    assert len([part for part in recording.parts if part.kind == "data"]) > 5


def test_a_body_that_cannot_be_read_may_have_secrets() -> None:
    for body, kept in ((b'{"tools": [{"type": "mcp"', b""), (b'{"tools": 5}', b'{"tools": 5}')):
        exchange = _exchange()
        exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
        pump(exchange, Outcome())
        recording = _whole(exchange)
        assert recording.parts[0].data == kept
        assert json.loads(joined(recording, "event"))["error"]["message"] == exchange.known.message != ""


def test_a_recording_is_cut_at_its_limit() -> None:
    exchange, outcome = _exchange(ConsoleSettings(record="all", record_request_bytes=2048)), Outcome()
    _ask(exchange)
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, SSE)
    for _ in range(200):
        exchange.receive_upstream_data(_TEXT)
        pump(exchange, outcome)
    exchange.receive_upstream_data(_END)
    pump(exchange, outcome)
    recording = _whole(exchange)
    assert recording.cut and recording.parts[-1].kind == "finish"
    assert sum(len(part.data) for part in recording.parts) <= 2048
    assert (_TEXT * 200).startswith(joined(recording, "data")) and outcome.body.startswith(joined(recording, "event"))


def test_a_recording_has_a_maximum_of_parts() -> None:
    parts = RecordedParts(1 << 30, Ticks(), SecretSearch(()), ())
    for _ in range(MOST + 1):
        parts.add("tool", b"x")
    assert len(parts.whole(0).parts) == MOST and parts.whole(0).cut


def test_failures_of_each_step_are_recorded() -> None:
    exchange, outcome = _exchange(), Outcome()
    _ask(exchange, previous_response_id="resp_x", conversation=None)
    exchange.next_action()
    exchange.receive_context(InvalidRequest("gone", code="gone_away"))
    assert [(step.kind, step.error) for step in exchange.steps] == [("load", "gone_away")]
    exchange = _exchange()
    _ask(exchange)
    pump(exchange, outcome)
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "refused"))
    (end,) = (part for part in _whole(exchange).parts if part.kind == "end")
    assert end.facts == {"fault": "unreachable", "detail": "refused"}
    exchange = _exchange()
    _ask(exchange, stream=False)
    exchange.next_action()
    exchange.receive_upstream_head(200, JSON)
    exchange.receive_upstream_data(b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}')
    exchange.receive_upstream_end()
    exchange.next_action()
    exchange.receive_saved(StoreError("the disk is full"))
    (saved,) = (part for part in _whole(exchange).parts if part.kind == "saved")
    assert saved.facts == {"error": "failed"} and exchange.steps[-1].error == "failed"


def test_an_answer_to_an_action_that_no_driver_took_is_no_step() -> None:
    exchange = _exchange(ConsoleSettings())
    _ask(exchange, previous_response_id="resp_x")
    exchange.receive_context(InvalidRequest("gone"))
    exchange.actions()
    assert exchange.steps == [] and exchange.done


def test_calls_that_the_store_could_not_claim_have_ended() -> None:
    tools = ScriptedTools()
    exchange = _exchange(ConsoleSettings(), tools=tools)
    _ask(exchange, tools=[{"type": "web_search"}])
    pump(exchange, Outcome(), tools=tools)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_tool_call("web_search"))
    exchange.actions()
    exchange.receive_unclaimed(StoreError("no"))
    assert [(step.kind, step.error) for step in exchange.steps][-1] == ("tool", "not_claimed")


@pytest.mark.parametrize(
    ("console", "options", "fields", "kept"),
    [
        (ConsoleSettings(), {}, {}, False),
        (_ALL, {}, {"store": False}, False),
        (ConsoleSettings(record="all", record_unstored=True), {}, {"store": False}, True),
        (ConsoleSettings(record="failures"), {}, {}, True),
        (ConsoleSettings(record="all", record_unstored=True), {"never_stored": frozenset({"owner"})}, {}, False),
        (_ALL, {}, {"store": False, "previous_response_id": "resp_1"}, False),
    ],
)
def test_the_settings_and_the_request_decide_what_is_recorded(
    console: ConsoleSettings, options: dict[str, Any], fields: dict[str, Any], kept: bool
) -> None:
    tools, outcome = ScriptedTools(), Outcome()
    exchange = _exchange(console, tools=tools, **options)
    _ask(exchange, tools=[{"type": "web_search"}], **fields)
    pump(exchange, outcome, Context(), tools)
    if not exchange.done:
        exchange.receive_upstream_head(200, SSE)
        exchange.receive_upstream_data(_tool_call("web_search"))
        pump(exchange, outcome, tools=tools)
        exchange.receive_upstream_head(200, SSE)
        exchange.receive_upstream_data(_END)
        pump(exchange, outcome, tools=tools)
        exchange.receive_upstream_end()
    assert (exchange.parts is not None) is kept


def test_a_background_job_is_recorded_too() -> None:
    exchange = _exchange()
    body = b'{"model":"m","input":"x","background":true}'
    exchange.receive_job(JobRequest(Raw(body), [], 5.0), "owner", "resp_1", -1)
    pump(exchange, Outcome())
    assert [part.kind for part in _whole(exchange).parts] == ["request", "call"]
    queued, outcome = _exchange(), Outcome()
    _ask(queued, headers=(), background=True, stream=False)
    assert queued.next_action() is not None
    queued.receive_saved()
    pump(queued, outcome)
    assert [step.name for step in queued.steps] == ["job"] and outcome.finish is not None
    followed = _exchange()
    _ask(followed, headers=(), background=True)
    followed.actions()
    followed.receive_saved()
    followed.actions()
    assert [part.kind for part in _whole(followed).parts] == ["request", "saved", "event_head"]
    assert not followed.stop(), "a worker makes the response"


def test_the_exchange_names_the_parts_that_it_ignored() -> None:
    exchange, outcome = _exchange(), Outcome()
    _ask(exchange, moderation={"model": "x"}, tools=[{"type": "of_tomorrow"}, {"type": "of_tomorrow"}])
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_END)
    pump(exchange, outcome)
    assert outcome.head is not None
    named = dict(outcome.head.headers)["antiphon-ignored"]
    assert set(exchange.ignored) == set(named.split(", ")) >= {"moderation", "tools.of_tomorrow"}
    assert len(exchange.ignored) == 2


def test_an_operator_stops_a_stream() -> None:
    exchange, outcome = _exchange(), Outcome()
    _ask(exchange)
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_TEXT)
    pump(exchange, outcome)
    assert exchange.receive_time(5.0) == 5.0 + LOOK, "the driver looks soon again"
    assert exchange.stop()
    exchange.receive_time(6.0)
    pump(exchange, outcome)
    failure = exchange.known.failure
    assert failure is not None and (failure.fault, failure.code, failure.status) == ("cancelled", STOPPED, 200)
    assert outcome.finish is not None and outcome.finish.outcome == "failed"
    assert b"response.failed" in outcome.body and STOPPED.encode() in outcome.body
    assert not exchange.stop(), "the request is over"


def test_an_operator_stops_a_request_without_an_answer() -> None:
    exchange = _exchange()
    assert exchange.stop()
    assert exchange.receive_time(5.0) < FOREVER, "the request has not begun"
    _ask(exchange, stream=False)
    exchange.actions()
    exchange.receive_time(6.0)
    actions = exchange.actions()
    (head,) = (action for action in actions if isinstance(action, SendHead))
    (body,) = (action for action in actions if isinstance(action, SendBody))
    error = json.loads(body.data)["error"]
    assert (head.status, error["code"]) == (503, STOPPED) and ("x-should-retry", "false") in head.headers
    assert exchange.known.failure is not None and exchange.known.failure.fault == "cancelled"


def test_a_client_that_leaves_ends_a_recording() -> None:
    exchange, outcome = _exchange(), Outcome()
    _ask(exchange)
    while exchange.next_action() is not None:
        pass
    exchange.cancel(CancelReason.CLIENT_GONE)
    pump(exchange, outcome)
    assert _whole(exchange).parts[-1].facts == {"outcome": "cancelled"}


def test_a_job_that_no_worker_ran_has_only_its_request() -> None:
    body = b'{"model":"m","input":"hello","background":true}'
    job = JobRequest(Raw(body), [], 5.0)
    recording = record_unrun(_exchange(), job, "owner", "resp_1")
    assert recording is not None and [(part.kind, part.at) for part in recording.parts] == [("request", 0.0)]
    assert json.loads(recording.parts[0].data)["input"] == "hello"
    assert record_unrun(_exchange(ConsoleSettings()), job, "owner", "resp_1") is None
