"""Part D, events: numbers, indices, order, endings, framing, and when they are sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from antiphon.engine.ports.actions import RequestHead
from antiphon.sealing import Sealer
from tests.pitfalls.asking import FUNCTION, answered, call, chain, chunk, events, final, kinds, sse, streamed
from tests.support import chat_server
from tests.support.chat_server import Wait
from tests.support.exchanges import JSON, SSE, Outcome, make_exchange, pump, run
from tests.support.http_door import open_http_door, post_bytes
from tests.support.judge import parse_sse
from tests.support.schemas import OPENAI, event_violations

ASK = {"model": "m", "input": "hi"}
STREAM = {**ASK, "stream": True}
REFUSED = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}


def _mixed(**fields: Any) -> Outcome:
    """Reasoning, text and two calls, the second begun before the first is whole."""
    return streamed(
        chunk(reasoning_content="hm"),
        chunk(content="I look."),
        call('{"x"', "f", id="a", index=0),
        call('{"y"', "g", id="b", index=1),
        call(":1}", index=0),
        call(":2}", index=1),
        finish="tool_calls",
        **fields,
    )


_TEXT = chunk(content="x")
ENDINGS: dict[str, tuple[str, Callable[[], Outcome]]] = {
    "completed": ("completed", lambda: streamed(_TEXT)),
    "cut": ("incomplete", lambda: streamed(_TEXT, finish="length")),
    "filtered": ("incomplete", lambda: streamed(_TEXT, finish="content_filter")),
    "broken off": ("failed", lambda: streamed(_TEXT, finish=None)),
    "error": ("failed", lambda: streamed(_TEXT, {"error": {"message": "no"}}, finish=None)),
    "refusal": ("completed", lambda: streamed(chunk(refusal="no"))),
    "calls": ("completed", _mixed),
    "empty": ("completed", streamed),
}


@pytest.fixture(params=ENDINGS)
def ended(request: pytest.FixtureRequest) -> tuple[str, Outcome]:
    """How an answer ended, and the whole of it."""
    status, made = ENDINGS[request.param]
    return status, made()


def test_pitfall_75_numbers_go_from_0_without_gaps(ended: tuple[str, Outcome]) -> None:
    status, outcome = ended
    found = parse_sse(outcome.body)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert final(outcome)["status"] == status


def test_pitfall_76_log_probabilities_are_a_list_in_every_event_of_text() -> None:
    found = events(streamed(chunk(content="a"), chunk(content="b")))
    of_text = [event for event in found if event["type"].startswith("response.output_text.")]
    assert len(of_text) == 3 and all(event["logprobs"] == [] for event in of_text)


def test_pitfall_77_every_item_has_an_index_of_its_own_which_is_its_place_in_the_output() -> None:
    found = events(_mixed())
    places = [
        (event["output_index"], event["item"]["id"]) for event in found if event["type"] == "response.output_item.added"
    ]
    output = found[-1]["response"]["output"]
    assert places == [(number, item["id"]) for number, item in enumerate(output)] and len(places) == 4
    for event in found[2:-1]:
        assert event.get("item_id") in (None, output[event["output_index"]]["id"])


def test_pitfall_78_every_part_has_the_index_0_of_the_part_that_was_added() -> None:
    found = events(streamed(chunk(reasoning_content="hm"), chunk(content="a"), chunk(content="b")))
    with_part = [event for event in found if "content_index" in event]
    assert len(with_part) == 9 and {event["content_index"] for event in with_part} == {0}
    for event in found:
        if event["type"] == "response.output_item.done":
            assert len(event["item"]["content"]) == 1


def test_pitfall_79_nothing_comes_before_its_beginning_or_after_its_end() -> None:
    made = kinds(streamed(chunk(content="a"), chunk(content="b")))
    assert made == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]


@pytest.mark.parametrize("together", [True, False])
def test_pitfall_79_what_comes_after_the_end_is_not_emitted(together: bool) -> None:
    pieces = [sse(chunk(content="a"), chunk("stop")), sse(chunk(content="late"))]
    outcome = run(STREAM, [b"".join(pieces)] if together else pieces)
    assert final(outcome)["output"][0]["content"][0]["text"] == "a"


@pytest.mark.parametrize("late", [1, 2, 3])
def test_pitfall_80_a_call_is_announced_once_its_name_is_known(late: int) -> None:
    pieces = ['{"x"', ":", "1}"]
    chunks = [call(piece, "f" if number == late else None, index=0, id="a") for number, piece in enumerate(pieces)]
    if late == 3:
        chunks.append(call("", "f", index=0))
    found = events(streamed(*chunks, finish="tool_calls"))
    added = [event["item"] for event in found if event["type"] == "response.output_item.added"]
    assert [(item["name"], item["call_id"], item["arguments"]) for item in added] == [("f", "a", "")]
    assert found[-1]["response"]["output"][0]["arguments"] == '{"x":1}'


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_pitfall_81_an_answer_of_calls_has_no_message(content: str | None) -> None:
    call_delta = call('{"x":1}', "f", id="a", index=0)
    outcome = streamed(chunk(role="assistant", content=content), call_delta, chunk(content=""), finish="tool_calls")
    assert [item["type"] for item in final(outcome)["output"]] == ["function_call"]
    message = {"content": content, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}
    assert [item["type"] for item in answered(message, "tool_calls")["output"]] == ["function_call"]


def test_pitfall_82_every_call_is_done_before_the_next_begins() -> None:
    of_calls = [kind for kind in kinds(_mixed()) if "function_call" in kind or "output_item" in kind][4:]
    one = ["output_item.added", "function_call_arguments.delta"]
    end = ["function_call_arguments.done", "output_item.done"]
    # The first comes in two pieces; the second waited, and its pieces follow.
    assert of_calls == [*one, one[1], *end, *one, one[1], *end]


def test_pitfall_82_a_call_is_done_when_its_arguments_are_and_not_at_the_end() -> None:
    first = sse(call('{"x":1}', "f", id="a", index=0), call("", "g", id="b", index=1), done=False)
    outcome = run(STREAM, [first, sse(call("{}", index=1), chunk("tool_calls"))])
    assert b"function_call_arguments.done" in b"".join(outcome.parts[:2])


@pytest.mark.parametrize("stream", [True, False])
def test_pitfall_83_calls_are_in_the_stream_and_in_the_json(stream: bool) -> None:
    made = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    if stream:
        output = final(streamed(chunk(tool_calls=[{**made, "index": 0}]), finish="tool_calls"))["output"]
    else:
        output = answered({"content": None, "tool_calls": [made]}, "tool_calls")["output"]
    assert [(item["type"], item["name"], item["call_id"], item["status"]) for item in output] == [
        ("function_call", "f", "a", "completed")
    ]


def test_pitfall_84_the_last_event_has_all_that_was_emitted() -> None:
    found = events(_mixed())
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert found[-1]["response"]["output"] == done and len(done) == 4


@pytest.mark.parametrize("finish", ["length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length"])
def test_pitfall_85_a_cut_answer_is_incomplete_for_max_output_tokens(finish: str) -> None:
    outcome = streamed(chunk(content="half an ans"), finish=finish)
    found = final(outcome)
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert found["output"][0]["status"] == "incomplete" and found["completed_at"] is None
    assert kinds(outcome)[-1] == "incomplete"
    as_json = answered({"content": "half an ans"}, finish)
    assert (as_json["status"], as_json["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


@pytest.mark.parametrize("finish", ["content_filter", "CONTENT_FILTER", "SAFETY"])
def test_pitfall_85_a_filtered_answer_is_incomplete_for_that(finish: str) -> None:
    assert final(streamed(chunk(content="x"), finish=finish))["incomplete_details"] == {"reason": "content_filter"}


def test_pitfall_85_a_call_that_was_cut_is_incomplete() -> None:
    found = final(streamed(call('{"x"', "f", id="a", index=0), finish="length"))
    assert (found["status"], found["output"][0]["status"]) == ("incomplete", "incomplete")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"error": {"message": "no"}}),
        (200, {"error": {"message": "no", "code": 429}}),
        (200, {"choices": []}),
        (200, {"choices": [{"message": {"content": "x"}, "finish_reason": "error"}]}),
    ],
)
def test_pitfall_86_a_failure_is_no_completed_response(status: int, body: dict[str, Any]) -> None:
    outcome = run(ASK, [json.dumps(body).encode()], status=status, headers=JSON)
    assert outcome.head is not None and outcome.head.status >= 400 and set(outcome.json) == {"error"}
    assert not outcome.records


def test_pitfall_86_a_failure_after_the_head_is_an_error_and_failed() -> None:
    outcome = streamed({"error": {"message": "no"}}, finish=None)
    assert kinds(outcome) == ["created", "in_progress", "error", "failed"]
    assert outcome.records[0].status == "failed"


def test_pitfall_87_every_event_line_is_the_type(ended: tuple[str, Outcome]) -> None:
    status, outcome = ended
    blocks = outcome.body.decode().split("\n\n")[:-2]
    for block in blocks:
        first, second = block.split("\n")
        assert first == f"event: {json.loads(second.removeprefix('data: '))['type']}"
    assert status in blocks[-1].split("\n")[0]


def test_pitfall_88_done_comes_once_and_last(ended: tuple[str, Outcome]) -> None:
    status, outcome = ended
    assert outcome.body.count(b"[DONE]") == 1 and outcome.body.endswith(b"\n\ndata: [DONE]\n\n")
    assert final(outcome)["status"] == status


def test_pitfall_88_text_that_says_done_is_text() -> None:
    outcome = streamed(chunk(content="data: [DONE]\n\n"), chunk(content="more"))
    assert final(outcome)["output"][0]["content"][0]["text"] == "data: [DONE]\n\nmore"


@pytest.mark.parametrize("summary", [None, "auto"])
def test_pitfall_89_every_event_is_one_of_openais(summary: str | None) -> None:
    annotation = {"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1}}
    for outcome in (
        _mixed(reasoning={"summary": summary}),
        streamed(chunk(content="x", annotations=[annotation])),
        streamed(chunk(refusal="no")),
    ):
        for event in events(outcome):
            unknown = [found for found in event_violations(event) if (found.schema, found.rule) == (OPENAI, "unknown")]
            assert not unknown


def test_pitfall_90_two_model_calls_are_one_stream_with_one_numbering_and_one_usage() -> None:
    """A conversation that is compacted first: the model is called twice for one response."""
    long = [{"role": "user", "content": "word " * 2000}, {"role": "assistant", "content": "x"}]
    request = {
        **STREAM,
        "input": [*long, {"role": "user", "content": "Next?"}],
        "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    }
    exchange, outcome = make_exchange(sealer=Sealer([b"key"])), Outcome()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), json.dumps(request).encode())
    pump(exchange, outcome)
    for text in ("A summary.", "The answer."):
        usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
        made = outcome.calls[-1]
        streams = made.request.stream
        whole = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage["usage"]}
        body = sse(chunk(content=text), chunk("stop"), usage) if streams else json.dumps(whole).encode()
        exchange.receive_upstream_head(200, SSE if streams else JSON)
        exchange.receive_upstream_data(body)
        pump(exchange, outcome)
        if not exchange.done and outcome.calls[-1] is made:
            exchange.receive_upstream_end()
            pump(exchange, outcome)
    assert exchange.done and len(outcome.calls) == 2
    found = events(outcome)
    response = found[-1]["response"]
    assert [item["type"] for item in response["output"]] == ["compaction", "message"]
    assert {event["output_index"] for event in found if "output_index" in event} == {0, 1}
    assert response["usage"]["total_tokens"] == 10


def test_pitfall_91_what_came_goes_on_at_once_and_as_it_came() -> None:
    pieces = [sse(chunk(content=f"word{number} "), done=False) for number in range(5)]
    outcome = run(STREAM, [*pieces, sse(chunk("stop"))])
    with_text = [part for part in outcome.parts if b"output_text.delta" in part]
    assert len(with_text) == 5
    for number, part in enumerate(with_text):
        assert part.count(b"output_text.delta") == 2 and b"word%d " % number in part
    # One event is never cut: some clients lose one whose blank line comes later.
    assert all(part.endswith(b"\n\n") for part in outcome.parts)


async def test_pitfall_91_the_door_sends_a_delta_before_the_upstream_has_gone_on() -> None:
    gate = asyncio.Event()
    async with open_http_door() as door:
        first = chat_server.event(chat_server.chunk({"content": "first"}))
        rest = chat_server.text_stream("second")
        door.chat.script(chat_server.answer(parts=[first, Wait(gate), *rest]))
        async with door.client() as client:
            await client.send(post_bytes(STREAM))
            assert (await client.head()).status == 200
            while b"first" not in await client.part():
                pass
            assert not gate.is_set()
            gate.set()
            late = b""
            while part := await client.part():
                late += part
    assert b"second" in late


def test_pitfall_92_the_previous_id_comes_back_in_every_snapshot() -> None:
    before = chain({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})
    body = sse(chunk(content="x"), chunk("stop"))
    outcome = run({**STREAM, "previous_response_id": "resp_before"}, [body], context=before)
    found = [event["response"]["previous_response_id"] for event in events(outcome) if "response" in event]
    assert found == ["resp_before"] * 3 and outcome.records[0].previous_response_id == "resp_before"


def test_pitfall_93_what_is_left_out_leaves_no_gap() -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}
    other = {**FUNCTION, "name": "g"}
    found = events(_mixed(tools=[FUNCTION, other], tool_choice=choice))
    output = found[-1]["response"]["output"]
    assert [item.get("name") for item in output] == [None, None, "g"]
    assert {event["output_index"] for event in found if "output_index" in event} == {0, 1, 2}


async def test_pitfall_94_a_silence_is_filled_with_comments() -> None:
    gate = asyncio.Event()
    async with open_http_door(keepalive=0.01) as door:
        door.chat.script(chat_server.answer(parts=[Wait(gate), *chat_server.text_stream("x")]))
        async with door.client() as client:
            await client.send(post_bytes(STREAM))
            assert (await client.head()).status == 200
            while not (await client.part()).startswith(b":"):
                pass
            gate.set()
            rest = b""
            while part := await client.part():
                rest += part
    assert b"event: response.completed\n" in rest
