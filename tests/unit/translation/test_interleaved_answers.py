"""Answers whose parts come in the wrong order: text inside a call, arguments after a placeholder, whole messages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pitfalls.asking import answered, call, chunk, final, kinds, sse, streamed
from tests.support.exchanges import Outcome, run

STREAM = {"model": "m", "input": "hi", "stream": True}
FIRST, SECOND = call('{"x"', "f", id="a", index=0), call(":1}", index=0)


def _emitted(outcome: Outcome) -> list[tuple[str, str, str | None]]:
    """Kind, text and status of each item."""
    made = []
    for item in final(outcome)["output"]:
        parts = [*item.get("content", ()), *item.get("summary", ())]
        text = item.get("arguments", "".join(part.get("text", part.get("refusal", "")) for part in parts))
        made.append((item["type"], text, item.get("status")))
    return made


CALL = ("function_call", '{"x":1}', "completed")


@pytest.mark.parametrize(
    ("between", "after"),
    [
        (chunk(content="word"), ("message", "word", "completed")),
        (chunk(reasoning_content="hm"), ("reasoning", "hm", None)),
        (chunk(reasoning="\n"), ("reasoning", "\n", None)),
        (chunk(refusal="no"), ("message", "no", "completed")),
    ],
)
@pytest.mark.parametrize("begun", [FIRST, call("", "f", id="a", index=0)], ids=["in the middle", "before arguments"])
def test_what_is_said_inside_a_call_follows_it(between: Any, after: Any, begun: Any) -> None:
    rest = SECOND if begun is FIRST else call('{"x":1}', index=0)
    assert _emitted(streamed(begun, between, rest, finish="tool_calls")) == [CALL, after]


def test_what_is_said_inside_a_call_keeps_its_order_and_its_blanks() -> None:
    said = [chunk(content="one"), chunk(content=" "), chunk(content="two"), chunk(reasoning_content="r")]
    outcome = streamed(FIRST, *said, chunk(content="three"), SECOND, chunk(content=" four"), finish="tool_calls")
    assert _emitted(outcome) == [
        CALL,
        ("message", "one two", "completed"),
        ("reasoning", "r", None),
        ("message", "three four", "completed"),
    ]


def test_text_and_arguments_in_one_delta() -> None:
    both = chunk(content="word", tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}])
    assert _emitted(streamed(FIRST, both, finish="tool_calls")) == [CALL, ("message", "word", "completed")]


def test_what_waited_is_emitted_as_soon_as_the_call_is_whole() -> None:
    pieces = [sse(one, done=False) for one in (FIRST, chunk(content="word"), SECOND)]
    outcome = run(STREAM, [*pieces, sse(chunk("tool_calls"))])
    assert any(b'"word"' in part and b"response.completed" not in part for part in outcome.parts)


def test_text_after_a_whole_call_does_not_wait() -> None:
    pieces = [sse(one, done=False) for one in (FIRST, SECOND, chunk(content="word"))]
    outcome = run(STREAM, [*pieces, sse(chunk("tool_calls"))])
    assert any(b'"word"' in part for part in outcome.parts[:-1])
    assert _emitted(outcome) == [CALL, ("message", "word", "completed")]


@pytest.mark.parametrize("finish", ["length", "tool_calls", None])
def test_half_a_call_that_something_follows_is_never_completed(finish: str | None) -> None:
    outcome = streamed(FIRST, chunk(content="word"), finish=finish)
    made = _emitted(outcome)
    assert made[0] == ("function_call", '{"x"', "incomplete") and made[1][:2] == ("message", "word")


def test_a_call_that_is_not_allowed_makes_nothing_wait() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    outcome = streamed(FIRST, chunk(content="word"), tools=[tool], tool_choice="none")
    assert _emitted(outcome) == [("message", "word", "completed")]


# A placeholder before the arguments


@pytest.mark.parametrize("rest", [['{"x":1}'], ['{"x"', ":1}"], ["{", '"x":1}']])
def test_an_empty_object_before_the_arguments_is_none_of_them(rest: list[str]) -> None:
    pieces = [call(piece, index=0) for piece in rest]
    assert _emitted(streamed(call("{}", "f", id="a", index=0), *pieces, finish="tool_calls")) == [CALL]


def test_an_empty_object_alone_is_the_arguments() -> None:
    empty = ("function_call", "{}", "completed")
    first, second = call("{}", "f", id="a", index=0), call("{}", "g", id="b", index=1)
    assert _emitted(streamed(first, finish="tool_calls")) == [empty]
    assert _emitted(streamed(first, call("", index=0), call("{}", index=0), finish="tool_calls")) == [empty]
    assert _emitted(streamed(first, second, finish="tool_calls")) == [empty, empty]
    assert _emitted(streamed(first, chunk(content="word"))) == [empty, ("message", "word", "completed")]
    made = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert answered({"content": None, "tool_calls": [made]}, "tool_calls")["output"][0]["arguments"] == "{}"


def test_the_call_before_an_empty_object_is_announced_at_once() -> None:
    pieces = [sse(call("{}", "f", id="a", index=0), done=False), sse(call('{"x":1}', index=0), chunk("tool_calls"))]
    outcome = run(STREAM, pieces)
    assert b"output_item.added" in b"".join(outcome.parts[:-1])
    assert [kind for kind in kinds(outcome) if kind.endswith("delta")] == ["function_call_arguments.delta"]


# A message where a delta should be


def test_an_event_with_a_whole_message_is_the_answer() -> None:
    whole = {"object": "chat.completion", "choices": [{"message": {"content": "all of it"}, "finish_reason": "stop"}]}
    assert _emitted(run(STREAM, [sse(whole)])) == [("message", "all of it", "completed")]


def test_a_message_that_repeats_the_deltas_is_not_emitted_again() -> None:
    repeated = {"choices": [{"message": {"content": "all of it"}, "finish_reason": "stop"}]}
    pieces = [chunk(content="all "), chunk(content="of it"), repeated]
    assert _emitted(run(STREAM, [sse(*pieces)])) == [("message", "all of it", "completed")]


# A whole answer that is called a stream

_WHOLE = b'{"object":"chat.completion","choices":[{"message":{"content":"all"},"finish_reason":"stop"}],"usage":null}'


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\ndata: [DONE]\n\n", b"data: [DONE]\n\n", b"data: [DONE]"])
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("stream", [True, False])
def test_a_json_answer_that_says_it_is_an_event_stream(end: bytes, size: int, stream: bool) -> None:
    body = _WHOLE + end
    outcome = run({**STREAM, "stream": stream}, [body[at : at + size] for at in range(0, len(body), size)])
    response = final(outcome) if stream else outcome.json
    assert response["status"] == "completed" and response["output"][0]["content"][0]["text"] == "all"


@pytest.mark.parametrize("before", [[], [chunk(content="x")]])
def test_a_json_error_that_says_it_is_an_event_stream(before: list[dict[str, Any]]) -> None:
    body = sse(*before, done=False) + b'{"error":{"message":"No capacity.","code":"overloaded"}}\n'
    response = final(run(STREAM, [body]))
    assert response["status"] == "failed" and "No capacity." in response["error"]["message"]
