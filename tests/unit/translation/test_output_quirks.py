"""Quirks of answers, by the number of their group: what each chunk sequence leads to, streamed and as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.sealing import Sealer
from antiphon.translation.think_tags import ThinkTags
from tests.support.exchanges import Outcome, limits, run
from tests.support.goldens import replay
from tests.support.judge import check_stream, parse_sse
from tests.support.recordings import all_recordings

_ASKED: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
_JSON = (("content-type", "application/json"),)
_RECORDINGS = {recording.name: recording for recording in all_recordings()}


def _chunk(finish: str | None = None, choice: dict[str, Any] | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **(choice or {})}]}


def _run(*chunks: dict[str, Any], finish: str | None = "stop", **request: Any) -> Outcome:
    chunks = (*chunks, _chunk(finish)) if finish else chunks
    body = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    return run({"model": "m", "input": "hi", "stream": True, **request}, [body])


def _whole(message: dict[str, Any], choice: dict[str, Any] | None = None, **request: Any) -> Any:
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **(choice or {})}]}
    return run({"model": "m", "input": "hi", **request}, [json.dumps(answer).encode()], headers=_JSON).json


def _final(outcome: Outcome) -> dict[str, Any]:
    return check_stream(parse_sse(outcome.body))


def _said(response: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (item["type"], "".join(part.get("text", part.get("refusal", "")) for part in item.get("content", [])))
        for item in response["output"]
    ]


def _recorded(name: str) -> dict[str, Any]:
    return _final(replay(_RECORDINGS[name]))


# 19: reasoning in tags


def test_quirk_19_a_closing_tag_that_comes_twice_is_no_text() -> None:
    final = _recorded("azure/req_llm-azure-mai-ds-r1-multi-tool")
    (_, reasoning), (_, text) = _said(final)
    assert text.startswith("function get_weather") and "</think>" not in reasoning + text
    for cut in range(1, 30):
        tags = ThinkTags(opened=False)
        whole = b"<think>hm</think>  </think>yes"
        pairs = [tags.feed(whole[:cut]), tags.feed(whole[cut:]), tags.end()]
        assert (b"".join(one for one, _ in pairs), b"".join(two for _, two in pairs)) == (b"hm", b"yes")


@pytest.mark.parametrize("step", [1, 4, 100])
def test_quirk_19_a_tag_the_template_and_the_model_opened(step: int) -> None:
    text = "\n<think>hm</think>\nyes"
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    final = _final(_run(*(_chunk(content=piece) for piece in pieces), model="mai-ds-r1"))
    assert _said(final) == [("reasoning", "hm"), ("message", "yes")]


def test_quirk_19_an_opened_tag_that_never_ends() -> None:
    chunks = [_chunk(content="It is "), _chunk(content="four. <")]
    # The model did not think, and the client gets an answer; cut in its thoughts it gave none.
    assert _said(_final(_run(*chunks, model="mai-ds-r1")))[-1] == ("message", "It is four. <")
    assert [kind for kind, _ in _said(_final(_run(*chunks, finish="length", model="mai-ds-r1")))] == ["reasoning"]
    answer = _whole({"role": "assistant", "content": "It is four. <"}, model="mai-ds-r1")
    assert _said(answer) == [("reasoning", "It is four. <"), ("message", "It is four. <")]


# 33: finish


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("model_length", "max_output_tokens"), ("MAX_TOKENS", "max_output_tokens"), ("SAFETY", "content_filter")],
)
def test_quirk_33_other_names_of_a_cut(finish: str, reason: str) -> None:
    final = _final(_run(_chunk(content="c"), finish=finish))
    assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": reason})


@pytest.mark.parametrize("finish", ["stop", "eos", "tool_call", "end_turn", "function_call", "STOP"])
def test_quirk_33_other_names_of_an_end(finish: str) -> None:
    assert _final(_run(_chunk(content="c"), finish=finish))["status"] == "completed"


def test_quirk_33_a_cut_told_in_finish_details() -> None:
    final = _recorded("openai/dd-trace-py-openai-v1-chat-completion-image-input")
    assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    done = _whole({"content": "x"}, {"finish_reason": None, "finish_details": {"type": "stop", "stop": "<|end|>"}})
    assert done["status"] == "completed"
    odd = _whole({"content": "x"}, {"finish_reason": None, "finish_details": 5})
    assert odd["status"] == "completed"


# 39: log probabilities


def _token(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -1, "bytes": None, "top_logprobs": []}


def _tokens(*tokens: str) -> dict[str, Any]:
    return {"logprobs": {"content": [_token(token) for token in tokens]}}


def _probable(outcome: Outcome) -> list[str]:
    (done,) = (event for event in parse_sse(outcome.body) if event["type"] == "response.output_text.done")
    return [entry["token"] for entry in done["logprobs"]]


def test_quirk_39_tokens_of_reasoning_are_not_the_texts() -> None:
    fields = _run(
        _chunk(reasoning_content="hm", choice=_tokens("hm")),
        _chunk(content="é", choice=_tokens("é")),
        _chunk(content="!", choice=_tokens("!")),
        **_ASKED,
    )
    assert _probable(fields) == ["é", "!"]
    tags = _run(
        _chunk(content="<think>", choice=_tokens("<think>")),
        _chunk(content="hm", choice=_tokens("hm")),
        _chunk(content="</think>Yes", choice=_tokens("</think>", "Yes")),
        _chunk(content="!", choice=_tokens("!")),
        **_ASKED,
    )
    assert _probable(tags) == ["Yes", "!"]
    whole = _whole({"content": "<think>hm</think>Yes!"}, _tokens("<think>", "hm", "</think>", "Yes", "!"), **_ASKED)
    assert [entry["token"] for entry in whole["output"][1]["content"][0]["logprobs"]] == ["Yes", "!"]


def test_quirk_39_a_token_that_is_half_reasoning_is_left_out() -> None:
    message = {"reasoning_content": "hm", "content": "es!"}
    whole = _whole(message, _tokens("hm", "Yes", "!"), **_ASKED)
    assert [entry["token"] for entry in whole["output"][1]["content"][0]["logprobs"]] == ["!"]


def test_quirk_39_tokens_of_a_call_are_no_texts() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    outcome = _run(
        _chunk(tool_calls=[call], choice=_tokens("f", "{}")),
        _chunk(content="Hi", choice=_tokens("Hi")),
        tools=[{"type": "function", "name": "f"}],
        **_ASKED,
    )
    assert _probable(outcome) == ["Hi"]


def test_log_probabilities_count_as_output() -> None:
    chunks = [_chunk(content="a", choice=_tokens("a")) for _ in range(50)]
    body = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    request = {"model": "m", "input": "hi", "stream": True}
    assert _final(run(request, [body], limits=limits(upstream_body_bytes=1000)))["error"]["code"] == "upstream_cut"
    assert (
        _final(run({**request, **_ASKED}, [body], limits=limits(upstream_body_bytes=1000)))["error"]["code"]
        == "upstream_too_large"
    )


def test_quirk_39_what_was_held_back_keeps_its_tokens() -> None:
    outcome = _run(_chunk(content="<", choice=_tokens("<")), _chunk(content="a", choice=_tokens("a")), **_ASKED)
    assert _probable(outcome) == ["<", "a"]


def test_quirk_39_log_probabilities_beside_content_in_parts() -> None:
    parts = [{"type": "text", "text": "Hi"}]
    assert _probable(_run(_chunk(content=parts, choice=_tokens("Hi")), **_ASKED)) == ["Hi"]


def test_padding_and_log_probabilities_together() -> None:
    asked = {**_ASKED, "stream_options": {"include_obfuscation": True}}
    outcome = _run(_chunk(content="Hi", choice=_tokens("Hi")), _chunk(content="!"), **asked)
    deltas = [event for event in parse_sse(outcome.body) if event["type"] == "response.output_text.delta"]
    assert [len(event["delta"] + event["obfuscation"]) for event in deltas] == [16, 16]
    assert _final(outcome)["status"] == "completed"


# 40: annotations


def _citation(url: str) -> dict[str, Any]:
    return {"type": "url_citation", "url_citation": {"url": url, "title": "", "start_index": 0, "end_index": 1}}


def test_quirk_40_annotations_before_a_call_belong_to_the_text_before_it() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    tools = [{"type": "function", "name": "f"}]
    outcome = _run(
        _chunk(content="Hi", annotations=[_citation("https://a.test")]),
        _chunk(tool_calls=[call]),
        finish="tool_calls",
        tools=tools,
    )
    message, _ = _final(outcome)["output"]
    assert [one["url"] for one in message["content"][0]["annotations"]] == ["https://a.test"]
    annotated = {"content": "Hi", "annotations": [_citation("https://a.test")], "tool_calls": [call]}
    whole = _whole(annotated, tools=tools)
    assert [one["url"] for one in whole["output"][0]["content"][0]["annotations"]] == ["https://a.test"]


def test_quirk_40_a_second_text_gets_only_what_is_new() -> None:
    first, second = _citation("https://a.test"), _citation("https://b.test")
    outcome = _run(
        _chunk(content="One", annotations=[first]),
        _chunk(reasoning_content="hm"),
        _chunk(content="Two", annotations=[first, second]),
    )
    texts = [item["content"][0] for item in _final(outcome)["output"] if item["type"] == "message"]
    urls = [[one["url"] for one in text["annotations"]] for text in texts]
    assert urls == [["https://a.test"], ["https://b.test"]]


def test_quirk_40_sources_have_the_titles_of_what_was_found() -> None:
    final = _recorded("perplexity/langchaingo-tools-perplexity-testtool-integration")
    text = final["output"][0]["content"][0]
    assert [(text["text"][one["start_index"] : one["end_index"]], one["title"]) for one in text["annotations"]] == [
        ("[2]", "Largest countries in the world - Statista"),
        ("[4]", "List of the world's largest countries and dependencies by area"),
    ]


def test_quirk_40_sources_beside_annotations_are_not_said_twice() -> None:
    name = "openrouter/activeagent-open-router-native-format-test-test-agent-web-search"
    urls = [one["url"] for one in _recorded(name)["output"][0]["content"][0]["annotations"]]
    assert len(urls) == len(set(urls)) == 12


@pytest.mark.parametrize("broken", [5, "x", {}, [[]], [{"url": []}], [None]])
def test_broken_sources_harm_nothing(broken: Any) -> None:
    for more in ({"citations": broken}, {"citations": ["https://a.test"], "search_results": broken}):
        final = _final(_run({**_chunk(content="So[1]."), **more}))
        assert final["status"] == "completed"


# 22 and 23: what a provider wants to see again

_KEYS = Sealer([b"a key for the tests"], random_bytes=lambda size: b"\x07" * size)
_STATELESS = {
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "tools": [{"type": "function", "name": "f"}],
}


def _signed(number: int) -> dict[str, Any]:
    call = {"index": number, "id": f"c{number}", "function": {"name": "f", "arguments": f'{{"n":{number}}}'}}
    return {**call, "extra_content": {"google": {"thought_signature": f"s{number}"}}}


@pytest.mark.parametrize("stream", [True, False])
def test_quirk_23_thought_signatures_come_back_with_their_calls(stream: bool) -> None:
    bare = {"index": 1, "id": "c1", "function": {"name": "f", "arguments": "{}"}}
    calls = [_signed(0), bare, _signed(2)]
    request = {"model": "m", "input": "hi", **_STATELESS}
    if stream:
        body = b"".join(b"data: %b\n\n" % json.dumps(_chunk(tool_calls=[call])).encode() for call in calls)
        outcome = run(
            {**request, "stream": True}, [body + b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'], sealer=_KEYS
        )
        output = _final(outcome)["output"]
    else:
        answer = {"choices": [{"message": {"tool_calls": calls}, "finish_reason": "stop"}]}
        output = run(request, [json.dumps(answer).encode()], headers=_JSON, sealer=_KEYS).json["output"]
    kinds = [item["type"] for item in output]
    assert kinds == ["reasoning", "function_call", "function_call", "reasoning", "function_call"]
    assert "thought_signature" not in json.dumps(output)
    outputs = [{"type": "function_call_output", "call_id": f"c{number}", "output": "x"} for number in range(3)]
    again: dict[str, Any] = {**request, "input": [{"role": "user", "content": "hi"}, *output, *outputs]}
    sent = run(again, sealer=_KEYS, profile="gemini").chat["messages"][1]["tool_calls"]
    assert [call.get("extra_content", {}).get("google") for call in sent] == [
        {"thought_signature": "s0"},
        None,
        {"thought_signature": "s2"},
    ]
    # A call that is shown again, for what came after its answer, has its signature again.
    more = {"type": "function_call_output", "call_id": "c0", "output": "y"}
    late = {**again, "input": [*again["input"], {"role": "assistant", "content": "so"}, more]}
    (shown,) = run(late, sealer=_KEYS, profile="gemini").chat["messages"][-2]["tool_calls"]
    assert shown["extra_content"]["google"] == {"thought_signature": "s0"}
    # Other servers would not know the key.
    assert "extra_content" not in json.dumps(run(again, sealer=_KEYS).chat)


def test_quirk_23_signatures_nobody_can_carry_change_nothing() -> None:
    final = _final(_run(_chunk(tool_calls=[_signed(0)]), _chunk(tool_calls=[_signed(1)]), tools=_STATELESS["tools"]))
    assert [item["type"] for item in final["output"]] == ["function_call", "function_call"]


def test_quirk_22_of_two_forms_of_the_same_reasoning_one_is_taken() -> None:
    both = _chunk(reasoning="hm", reasoning_details=[{"type": "reasoning.text", "text": "hm", "index": 0}])
    alone = _chunk(reasoning_details=[{"type": "reasoning.text", "text": ", so", "index": 0}])
    body = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in (both, alone, _chunk("stop", content="Yes")))
    outcome = run({"model": "m", "input": "hi", "stream": True, **_STATELESS}, [body], sealer=_KEYS)
    assert _said(_final(outcome)) == [("reasoning", "hm, so"), ("message", "Yes")]
