"""Part C, reading chat chunks: tool calls without this or that, usage anywhere, cuts, errors, tags."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.types.transport import UpstreamError, UpstreamFault
from tests.pitfalls.asking import call, chunk, events, final, kinds, sse, streamed
from tests.support.exchanges import JSON, Outcome, run

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ASK = {"model": "m", "input": "hi"}


def _calls(*chunks: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and arguments of the calls that these chunks make."""
    output = final(streamed(*chunks, finish="tool_calls"))["output"]
    return [(item["name"], item["arguments"]) for item in output if item["type"] == "function_call"]


def _text(outcome: Outcome) -> str:
    messages = [item for item in final(outcome)["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in messages for part in item["content"])


def test_pitfall_56_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    made = _calls(
        call('{"x"', "f", id="a"),
        call(":1}"),
        call("{}", "g", id="b"),
        call(None, None, id="b"),
        call('{"y":2}', "f", id="c"),
    )
    assert made == [("f", '{"x":1}'), ("g", "{}"), ("f", '{"y":2}')]


def test_pitfall_57_calls_that_all_have_index_0_are_told_apart_by_id_and_name() -> None:
    made = _calls(
        call('{"x"', "f", id="a", index=0),
        call(":1}", index=0),
        call('{"y"', "g", id="b", index=0),
        call(":2}", index=0),
    )
    assert made == [("f", '{"x":1}'), ("g", '{"y":2}')]


@pytest.mark.parametrize("more", [{}, {"id": None}, {"id": ""}])
@pytest.mark.parametrize("name", ["f", "g"])
def test_pitfall_57_whole_calls_with_index_0_and_without_ids_are_several(more: dict[str, Any], name: str) -> None:
    made = _calls(call('{"x":1}', "f", index=0, **more), call('{"y":2}', name, index=0, **more))
    assert made == [("f", '{"x":1}'), (name, '{"y":2}')]
    # Begun in pieces, the second too.
    pieces = [call('{"x"', "f", index=0, **more), call(":1}", index=0), call('{"y"', name, index=0, **more)]
    assert _calls(*pieces, call(":2}", index=0)) == [("f", '{"x":1}'), (name, '{"y":2}')]


@pytest.mark.parametrize("again", ["", '{"x":1}', None])
def test_pitfall_57_a_call_that_is_said_again_is_one(again: str | None) -> None:
    assert _calls(call('{"x":1}', "f", index=0), call(again, "f", index=0)) == [("f", '{"x":1}')]
    assert _calls(call("{}", "f", index=0), call('{"x":1}', "f", index=0)) == [("f", '{"x":1}')]


@pytest.mark.parametrize("later", [{}, {"id": None}, {"id": ""}, {"id": "a"}])
def test_pitfall_58_an_id_may_come_once_or_always(later: dict[str, Any]) -> None:
    made = _calls(call("", "f", id="a", index=0), call('{"x"', index=0, **later), call(":1}", index=0, **later))
    assert made == [("f", '{"x":1}')]


def test_pitfall_58_a_call_without_any_id_gets_one() -> None:
    outcome = streamed(call("{}", "f", index=0), call("{}", "g", index=1), finish="tool_calls")
    ids = [item["call_id"] for item in final(outcome)["output"]]
    assert all(ids) and len(set(ids)) == 2


def test_pitfall_59_a_name_may_come_after_the_arguments() -> None:
    assert _calls(call('{"x"', index=0, id="a"), call(":1}", index=0), call("", "f", index=0)) == [("f", '{"x":1}')]
    assert _calls(call('{"x":1}', "f", index=0), call("", index=0, id="late")) == [("f", '{"x":1}')]


def test_pitfall_59_a_name_in_every_chunk_is_one_name() -> None:
    made = _calls(*(call(part, "weather", index=0, id="a") for part in ("", '{"x"', ":1}")))
    assert made == [("weather", '{"x":1}')]
    # Also while the call waits for the one before it.
    first = [call('{"a"', "f", index=0, id="a"), call(":1}", index=0)]
    second = [call(part, "weather", index=1, id="b") for part in ('{"x"', ":1}")]
    assert _calls(first[0], *second, first[1]) == [("f", '{"a":1}'), ("weather", '{"x":1}')]


def test_pitfall_60_every_piece_of_arguments_belongs_to_the_same_call() -> None:
    pieces = [call(letter, index=0) for letter in '{"x": "a b"}']
    outcome = streamed(call("", "f", index=0, id="a"), *pieces, finish="tool_calls")
    assert kinds(outcome).count("output_item.added") == 1
    assert kinds(outcome).count("function_call_arguments.delta") == len(pieces)


def test_pitfall_61_the_first_piece_of_arguments_is_emitted_once() -> None:
    outcome = streamed(call('{"x"', "f", index=0, id="a"), call(":1}", index=0), finish="tool_calls")
    deltas = [event["delta"] for event in events(outcome) if event["type"].endswith("arguments.delta")]
    assert deltas == ['{"x"', ":1}"]


@pytest.mark.parametrize("choice", [{}, {"index": None}, {"index": 0}])
def test_pitfall_62_a_choice_may_have_no_index(choice: dict[str, Any]) -> None:
    outcome = streamed({"choices": [{**choice, "delta": {"content": "x"}}]})
    assert _text(outcome) == "x"


@pytest.mark.parametrize("choices", [[], None, "absent"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_pitfall_63_usage_in_a_chunk_without_choices_counts(choices: Any, place: str) -> None:
    usage = {"usage": USAGE} if choices == "absent" else {"choices": choices, "usage": USAGE}
    chunks = [usage, chunk("stop")] if place == "before" else [chunk("stop"), usage]
    assert final(streamed(chunk(content="x"), *chunks, finish=None))["usage"]["total_tokens"] == 5


@pytest.mark.parametrize("done", [True, False])
def test_pitfall_64_usage_comes_with_the_finish_or_after_it_or_not_at_all(done: bool) -> None:
    together = {**chunk("stop"), "usage": USAGE}
    assert final(streamed(chunk(content="x"), together, finish=None, done=done))["usage"]["input_tokens"] == 3
    after = {"choices": [], "usage": USAGE}
    outcome = streamed(chunk(content="x"), chunk("stop"), after, finish=None, done=done)
    assert final(outcome)["usage"]["output_tokens"] == 2
    # Absent is not zero.
    assert final(streamed(chunk(content="x"), done=done))["usage"] is None


@pytest.mark.parametrize(
    ("more", "cached", "written", "reasoning"),
    [
        ({}, 0, 0, 0),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, 0, 0, 0),
        ({"prompt_tokens_details": {"cached_tokens": None}, "completion_tokens_details": {}}, 0, 0, 0),
        ({"completion_tokens_details": {"reasoning_tokens": None}}, 0, 0, 0),
        ({"prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1}}, 2, 1, 0),
        ({"completion_tokens_details": {"reasoning_tokens": 1}}, 0, 0, 1),
    ],
)
def test_pitfall_65_every_number_of_usage_is_a_number(
    more: dict[str, Any], cached: int, written: int, reasoning: int
) -> None:
    usage = final(streamed(chunk(content="x"), {"choices": [], "usage": {**USAGE, **more}}))["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": cached, "cache_write_tokens": written}
    assert usage["output_tokens_details"] == {"reasoning_tokens": reasoning}


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pitfall_66_cuts_inside_characters_and_lines_change_nothing(size: int) -> None:
    body = (
        'data:{"choices":[{"delta":{"content":"é😀"}}]}\r\n\r\n: comment\r\n\r\n'
        'event: message\ndata: {"choices":[{"delta":{"content":"語"},"finish_reason":"stop"}]}\n\ndata:[DONE]\n\n'
    ).encode()
    outcome = run({**ASK, "stream": True}, [body[at : at + size] for at in range(0, len(body), size)])
    assert _text(outcome) == "é😀語"


def test_pitfall_66_a_line_may_be_larger_than_a_mebibyte() -> None:
    text = "x" * (3 << 20)
    assert _text(streamed(chunk(content=text))) == text


@pytest.mark.parametrize("done", [True, False])
def test_pitfall_67_a_stream_without_a_finish_is_failed(done: bool) -> None:
    outcome = streamed(chunk(content="half an ans"), finish=None, done=done)
    found = final(outcome)
    assert (found["status"], found["error"]["code"]) == ("failed", "upstream_cut")
    assert found["output"][0]["status"] == "incomplete" and outcome.records[0].status == "failed"


def test_pitfall_67_a_stream_with_a_finish_and_without_the_sentinel_is_complete() -> None:
    assert final(streamed(chunk(content="x"), done=False))["status"] == "completed"
    body = sse(chunk(content="x"), chunk("stop"), done=False)
    cut = UpstreamError(UpstreamFault.CUT, "reset")
    assert final(run({**ASK, "stream": True}, [body], error=cut))["status"] == "completed"


def test_pitfall_67_nothing_at_all_is_an_http_error_or_a_failed_stream() -> None:
    outcome = run(ASK, [], headers=JSON)
    assert outcome.head is not None and outcome.head.status == 502
    assert final(streamed(finish=None))["status"] == "failed"


@pytest.mark.parametrize("event", [b"", b"event: error\n"])
def test_pitfall_68_an_error_inside_a_stream_ends_it_as_failed(event: bytes) -> None:
    error = {"error": {"message": "Overloaded.", "type": "overloaded_error", "code": None}}
    outcome = streamed(chunk(content="x"), event + b"data: " + json.dumps(error).encode() + b"\n\n", finish=None)
    assert kinds(outcome)[-2:] == ["error", "failed"]
    assert "Overloaded." in final(outcome)["error"]["message"] and '"overloaded_error"' not in outcome.body.decode()


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_pitfall_69_thinking_in_tags_does_not_leak_into_the_text(cut: int) -> None:
    content = "<think>secret</think>\n\nThe answer."
    pieces = [chunk(content=content[at : at + cut]) for at in range(0, len(content), cut)]
    found = final(streamed(*pieces))["output"]
    assert found[0]["content"][0]["text"] == "secret"
    assert found[1]["content"][0]["text"].strip() == "The answer."


def test_pitfall_70_an_answer_of_reasoning_alone_is_an_answer() -> None:
    found = final(streamed(chunk(reasoning_content="I thought.")))
    assert found["status"] == "completed"
    assert [item["type"] for item in found["output"]] == ["reasoning"]


def test_pitfall_71_a_call_is_announced_before_its_arguments_come() -> None:
    pieces = [sse(call("", "f", index=0, id="a"), done=False), sse(call('{"x":1}', index=0), chunk("tool_calls"))]
    outcome = run({**ASK, "stream": True}, pieces)
    announced = next(number for number, part in enumerate(outcome.parts) if b"output_item.added" in part)
    arguments = next(number for number, part in enumerate(outcome.parts) if b"arguments.delta" in part)
    assert announced < arguments


def test_pitfall_71_arguments_in_one_burst_are_one_delta_and_done() -> None:
    outcome = streamed(call('{"x":1}', "f", index=0, id="a"), finish="tool_calls")
    assert kinds(outcome)[2:6] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]


def test_pitfall_72_a_stream_with_comments_empty_deltas_and_null_content_is_read() -> None:
    outcome = streamed(
        b": keep-alive\n\n",
        chunk(role="assistant", content=None, reasoning_content=""),
        chunk(content=None, reasoning_content="hm"),
        b"\n\n: keep-alive\n\n",
        chunk(content="", reasoning_content=None),
        chunk(content="so", reasoning_content=None),
        {**chunk("stop", content="", reasoning_content=None), "usage": {**USAGE, "prompt_cache_hit_tokens": 0}},
        finish=None,
    )
    found = final(outcome)
    assert [item["type"] for item in found["output"]] == ["reasoning", "message"] and found["status"] == "completed"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("summary", [None, "auto"])
def test_pitfall_73_reasoning_is_streamed_as_it_comes(key: str, summary: str | None) -> None:
    pieces = [sse(chunk(**{key: word}), done=False) for word in ("one ", "two ", "three")]
    request = {**ASK, "stream": True, "reasoning": {"summary": summary}}
    outcome = run(request, [*pieces, sse(chunk("stop", content="x"))])
    wanted = b"response.reasoning_summary_text.delta" if summary else b"response.reasoning_text.delta"
    assert sum(wanted in part for part in outcome.parts) == 3
    item = final(outcome)["output"][0]
    assert (item["summary"] if summary else item["content"])[0]["text"] == "one two three"


@pytest.mark.parametrize("stream", [False, None, "absent"])
@pytest.mark.parametrize("said", ["text/event-stream", "application/json"])
def test_pitfall_74_who_asked_for_json_gets_json_whatever_the_upstream_sends(stream: Any, said: str) -> None:
    request = ASK if stream == "absent" else {**ASK, "stream": stream}
    outcome = run(request, [sse(chunk(content="x"), chunk("stop"))], headers=(("content-type", said),))
    assert outcome.head is not None and ("content-type", "application/json") in outcome.head.headers
    assert outcome.json["output"][0]["content"][0]["text"] == "x" and "stream" not in outcome.chat


def test_pitfall_74_who_asked_for_a_stream_gets_one_from_a_json_answer() -> None:
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'
    assert _text(run({**ASK, "stream": True}, [body], headers=JSON)) == "x"
