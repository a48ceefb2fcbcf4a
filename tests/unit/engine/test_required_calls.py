"""A tool call that was asked for and that the model does not make: no success, in a stream or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.exchanges import JSON, SSE, Outcome, run
from tests.support.hosted_tools import ScriptedTools
from tests.support.judge import parse_sse
from tests.unit.engine.test_tool_loop import Talk

LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
NOTE = {"type": "function", "name": "note", "parameters": {"type": "object", "properties": {}}}
SEARCH = {"type": "file_search", "vector_store_ids": ["vs_1"]}
NAMED = {"type": "function", "name": "look"}
ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}
CHOICES: list[Any] = ["required", NAMED, ALLOWED]


def called(name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"index": 0, "id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(stream: bool, finish: str = "stop", **message: Any) -> bytes:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        return json.dumps({"choices": [choice], "usage": usage}).encode()
    choice = {"index": 0, "delta": message, "finish_reason": finish}
    return b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({"choices": [choice], "usage": usage}).encode()


def ask(choice: Any, stream: bool, body: bytes, hosted: ScriptedTools | None = None, **request: Any) -> Outcome:
    plain = {"model": "m", "input": "Hi", "tools": [LOOK, NOTE], "tool_choice": choice, "stream": stream}
    return run({**plain, **request}, [body], headers=SSE if stream else JSON, tools=hosted)


def final(outcome: Outcome, stream: bool) -> Any:
    return parse_sse(outcome.body)[-1]["response"] if stream else outcome.json


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("message", [{"content": "No tools here."}, {"content": ""}, {"tool_calls": [called("other")]}])
def test_an_answer_without_the_call_is_a_failure(choice: Any, stream: bool, message: dict[str, Any]) -> None:
    if choice == "required" and "tool_calls" in message:
        pytest.skip("any call will do")
    outcome = ask(choice, stream, answer(stream, **message))
    assert outcome.head is not None and outcome.finish is not None
    if outcome.head.status == 200:
        # The text was on its way already.
        assert stream
        events = parse_sse(outcome.body)
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["error"]["code"] == "tool_choice_not_followed"
        assert [record.status for record in outcome.records] == ["failed"]
    else:
        assert outcome.head.status == 502 and outcome.json["error"]["code"] == "tool_choice_not_followed"
        assert not outcome.records
    assert b"tool_choice requires" in outcome.body


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_call_is_a_success_with_words_beside_it_too(choice: Any, stream: bool) -> None:
    outcome = ask(choice, stream, answer(stream, "tool_calls", content="Well.", tool_calls=[called("look")]))
    assert final(outcome, stream)["status"] == "completed"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_is_incomplete(choice: Any, stream: bool, finish: str, reason: str) -> None:
    response = final(ask(choice, stream, answer(stream, finish, content="I would")), stream)
    assert response["status"] == "incomplete" and response["incomplete_details"] == {"reason": reason}


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_is_an_answer(stream: bool) -> None:
    response = final(ask("required", stream, answer(stream, refusal="I will not.")), stream)
    assert response["status"] == "completed" and response["output"][0]["content"][0]["type"] == "refusal"


@pytest.mark.parametrize("choice", ["auto", "none", {**ALLOWED, "mode": "auto"}])
def test_who_does_not_ask_for_a_call_gets_an_answer(choice: Any) -> None:
    assert ask(choice, False, answer(False, content="No.")).json["status"] == "completed"


@pytest.mark.parametrize("choice", ["required", {"type": "file_search"}])
def test_a_call_of_a_hosted_tool_satisfies_the_choice_for_the_whole_response(choice: Any) -> None:
    turns = [("", ("file_search", {"query": "rain"})), ("It rains.",)]
    talk = Talk({"tools": [SEARCH], "tool_choice": choice}, turns)
    assert talk.final["status"] == "completed" and talk.kinds == ["file_search_call", "message"]
    assert json.loads(talk.outcome.calls[-1].request.body)["tool_choice"] == "auto"


def test_a_hosted_tool_that_was_to_be_called_and_was_not() -> None:
    outcome = ask("required", False, answer(False, content="I know."), ScriptedTools(), tools=[SEARCH])
    assert outcome.head is not None and outcome.head.status == 502
    assert outcome.json["error"]["code"] == "tool_choice_not_followed"
