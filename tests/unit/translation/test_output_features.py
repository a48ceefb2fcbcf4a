"""What an answer holds beside its text: hidden reasoning, log probabilities, annotations, sealed reasoning, padding."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from antiphon.sealing import Sealer
from antiphon.translation.think_tags import ThinkTags
from tests.support.exchanges import Outcome, run
from tests.support.judge import check_stream, parse_sse

JSON = (("content-type", "application/json"),)


def _chunk(finish: str | None = None, choice: dict[str, Any] | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **(choice or {})}]}


def _sse(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _run(
    *chunks: dict[str, Any], profile: str = "generic", request: dict[str, Any] | None = None, **options: Any
) -> Outcome:
    body = {"model": "m", "input": "hi", "stream": True, **(request or {})}
    return run(body, [_sse(*chunks, _chunk("stop"))], profile=profile, **options)


def _said(outcome: Outcome) -> list[tuple[str, str]]:
    said = []
    for item in check_stream(parse_sse(outcome.body))["output"]:
        parts = [*item.get("content", []), *item.get("summary", [])]
        said.append((item["type"], "".join(part.get("text", part.get("refusal", "")) for part in parts)))
    return said


def _events(outcome: Outcome, kind: str) -> list[dict[str, Any]]:
    return [event for event in parse_sse(outcome.body) if event["type"] == kind]


# Reasoning in tags


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100])
def test_quirk_19_reasoning_in_tags(step: int) -> None:
    text = "\n<think>\nhm < 3 </thin</think>\n\nThe answer <think>is</think> 4."
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    outcome = _run(*(_chunk(content=piece) for piece in pieces))
    assert _said(outcome) == [("reasoning", "hm < 3 </thin"), ("message", "The answer <think>is</think> 4.")]


def test_quirk_19_escaped_brackets() -> None:
    data = b'data: {"choices":[{"delta":{"content":"\\u003cthink\\u003ehm\\u003C/think\\u003Eyes"}}]}\n\n'
    outcome = run({"model": "m", "input": "hi", "stream": True}, [data + _sse(_chunk("stop"))])
    assert _said(outcome) == [("reasoning", "hm"), ("message", "yes")]


def test_quirk_19_a_template_that_opened_the_tag() -> None:
    outcome = _run(
        _chunk(content="hm, "), _chunk(content="so.</thi"), _chunk(content="nk>Yes."), request={"model": "mai-ds-r1"}
    )
    assert _said(outcome) == [("reasoning", "hm, so."), ("message", "Yes.")]


def test_tags_in_json_answers() -> None:
    message = {"role": "assistant", "content": "<think>hm</think>yes"}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    outcome = run({"model": "m", "input": "hi"}, [body], headers=JSON)
    assert [item["type"] for item in outcome.json["output"]] == ["reasoning", "message"]


def test_a_profile_without_tags_leaves_them() -> None:
    assert _said(_run(_chunk(content="<think>hm</think>yes"), profile="openai")) == [
        ("message", "<think>hm</think>yes")
    ]


@pytest.mark.parametrize("text", ["<", "<thi", "<think", " \n", "a<think>b"])
def test_what_only_began_like_a_tag_is_text(text: str) -> None:
    assert _said(_run(_chunk(content=text))) == [("message", text)]


def test_an_answer_that_is_only_reasoning() -> None:
    assert _said(_run(_chunk(content="<think>hm, no end"))) == [("reasoning", "hm, no end")]


def test_nothing_fed_to_the_tags_is_lost() -> None:
    dice = random.Random(3)
    for _ in range(300):
        text = "".join(dice.choice(["<think>", "</think>", "a", "<", "b>", "/"]) for _ in range(8)).encode()
        whole: list[bytes] = []
        for cuts in ([], sorted(dice.randrange(len(text) + 1) for _ in range(6))):
            tags = ThinkTags(opened=False)
            reasoning = answer = b""
            for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
                more, words = tags.feed(text[start:end])
                reasoning, answer = reasoning + more, answer + words
            more, words = tags.end()
            whole.append(reasoning + more + b"|" + answer + words)
        assert whole[0] == whole[1]


# Log probabilities

_ENTRY = {
    "token": "Hi",
    "logprob": -0.5,
    "bytes": None,
    "top_logprobs": [{"token": "Yo", "logprob": -2, "bytes": [89, 111]}],
}
_WANTED = {
    "token": "Hi",
    "bytes": [72, 105],
    "logprob": -0.5,
    "top_logprobs": [{"token": "Yo", "bytes": [89, 111], "logprob": -2.0}],
}
_ASKED = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}


def test_quirk_39_log_probabilities_where_they_were_asked_for() -> None:
    outcome = _run(
        _chunk(content="Hi", choice={"logprobs": {"content": [_ENTRY]}}), _chunk(content="!"), request=_ASKED
    )
    assert outcome.chat["logprobs"] is True and outcome.chat["top_logprobs"] == 1
    check_stream(parse_sse(outcome.body))
    first, second = _events(outcome, "response.output_text.delta")
    assert first["logprobs"] == [_WANTED] and second["logprobs"] == []
    assert _events(outcome, "response.output_text.done")[0]["logprobs"] == [_WANTED]
    assert _events(outcome, "response.content_part.done")[0]["part"]["logprobs"] == []
    assert _events(outcome, "response.output_item.done")[0]["item"]["content"][0]["logprobs"] == [_WANTED]
    assert parse_sse(outcome.body)[0]["response"]["top_logprobs"] == 1


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(-(10**400), -9999.0), (10**400, 9999.0), (2**64, 9999.0), (-1, -1.0)],
    ids=["no float is so low", "no float is so high", "large", "whole"],
)
def test_a_log_probability_may_be_any_number(given: int, wanted: float) -> None:
    entry = {"token": "Hi", "logprob": given, "bytes": [2**70], "top_logprobs": []}
    outcome = _run(_chunk(content="Hi", choice={"logprobs": {"content": [entry]}}), request=_ASKED)
    (done,) = _events(outcome, "response.output_text.done")
    assert done["logprobs"] == [{"token": "Hi", "logprob": wanted, "bytes": [72, 105], "top_logprobs": []}]


def test_log_probabilities_nobody_asked_for_are_left_out() -> None:
    outcome = _run(_chunk(content="Hi", choice={"logprobs": {"content": [_ENTRY]}}))
    assert "logprobs" not in outcome.chat
    assert _events(outcome, "response.output_text.done")[0]["logprobs"] == []


@pytest.mark.parametrize(
    "broken", [None, [], {"content": None}, {"content": [{"token": 1}, "x", {"logprob": -1}]}, "x"]
)
def test_broken_log_probabilities_harm_nothing(broken: Any) -> None:
    outcome = _run(_chunk(content="Hi", choice={"logprobs": broken}), request=_ASKED)
    assert _said(outcome) == [("message", "Hi")]


def test_a_server_without_log_probabilities_says_so() -> None:
    outcome = _run(profile="mistral", request=_ASKED)
    assert outcome.head is not None and outcome.head.status == 400
    assert outcome.json["error"]["code"] == "unsupported_parameter" and outcome.json["error"]["param"] == "top_logprobs"


# Annotations

_CITED = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.test", "title": "A", "start_index": 0, "end_index": 2},
}


def test_quirk_40_annotations_of_a_late_delta() -> None:
    outcome = _run(_chunk(content="Hi there"), _chunk(content="", annotations=[_CITED]), _chunk(annotations=[_CITED]))
    check_stream(parse_sse(outcome.body))
    wanted = {"type": "url_citation", "url": "https://a.test", "title": "A", "start_index": 0, "end_index": 2}
    (added,) = _events(outcome, "response.output_text.annotation.added")
    assert added["annotation"] == wanted and added["annotation_index"] == 0
    kinds = [event["type"] for event in parse_sse(outcome.body)]
    assert kinds.index("response.output_text.annotation.added") < kinds.index("response.output_text.done")
    assert _events(outcome, "response.output_item.done")[0]["item"]["content"][0]["annotations"] == [wanted]


def test_quirk_40_citations_by_number() -> None:
    chunk = _chunk(content="So it is[2], is it [9]?")
    outcome = _run({**chunk, "citations": ["https://a.test", "https://b.test"]})
    (added,) = _events(outcome, "response.output_text.annotation.added")
    assert added["annotation"] == {
        "type": "url_citation",
        "url": "https://b.test",
        "title": "",
        "start_index": 8,
        "end_index": 11,
    }


@pytest.mark.parametrize("start", [-5, None, 99, "x"])
def test_offsets_always_lie_in_the_text(start: Any) -> None:
    citation = {"type": "url_citation", "url": "u", "start_index": start, "end_index": 1000}
    outcome = _run(_chunk(content="Hi"), _chunk(annotations=[citation, {"type": "file"}, 5]))
    (added,) = _events(outcome, "response.output_text.annotation.added")
    assert 0 <= added["annotation"]["start_index"] <= added["annotation"]["end_index"] <= 2


# Sound


def test_quirk_41_an_answer_in_sound_is_its_transcript() -> None:
    message = {"role": "assistant", "content": None, "audio": {"id": "a", "data": "AA", "transcript": "Hello."}}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    outcome = run({"model": "m", "input": "hi"}, [body], headers=JSON)
    assert outcome.json["output"][0]["content"][0]["text"] == "Hello."


# Padding


def test_padding_hides_lengths_when_it_is_asked_for() -> None:
    asked = {"stream_options": {"include_obfuscation": True}}
    outcome = _run(_chunk(reasoning_content="hm"), _chunk(content="a"), _chunk(content="abc"), request=asked)
    deltas = [event for event in parse_sse(outcome.body) if event["type"].endswith(".delta")]
    assert len(deltas) == 3
    assert all(len(event["delta"]) + len(event["obfuscation"]) == 16 for event in deltas)
    assert not any("obfuscation" in event for event in parse_sse(_run(_chunk(content="a")).body))
    refused = _run(_chunk(refusal="no"), request=asked)
    assert "obfuscation" not in _events(refused, "response.refusal.delta")[0]


# Reasoning that the client carries

_KEYS = Sealer([b"a key for the tests"], random_bytes=lambda size: b"\x07" * size)
_STATELESS = {"store": False, "include": ["reasoning.encrypted_content"]}


def test_sealed_reasoning_comes_back_to_its_turn() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    tools = [{"type": "function", "name": "f"}]
    outcome = _run(
        _chunk(reasoning_content="secret thoughts"),
        _chunk(tool_calls=[call]),
        request={**_STATELESS, "tools": tools},
        sealer=_KEYS,
    )
    added, done = (_events(outcome, f"response.output_item.{kind}")[0]["item"] for kind in ("added", "done"))
    assert added["encrypted_content"] and done["encrypted_content"] != added["encrypted_content"]
    assert "secret" not in done["encrypted_content"]
    # The client sends back the blob alone, as Codex does with a summary nobody asked for.
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": done["id"], "summary": [], "encrypted_content": done["encrypted_content"]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]
    again = _run(_chunk(content="ok"), request={**_STATELESS, "tools": tools, "input": items}, sealer=_KEYS)
    turn = again.chat["messages"][1]
    assert turn["reasoning_content"] == "secret thoughts" and turn["tool_calls"]


def test_what_the_provider_wants_to_see_again_is_sealed_with_it() -> None:
    details = [{"type": "reasoning.encrypted", "data": "opaque", "index": 0, "id": "r"}]
    outcome = _run(_chunk(reasoning_details=details), _chunk(content="Hi"), request=_STATELESS, sealer=_KEYS)
    reasoning = check_stream(parse_sse(outcome.body))["output"][0]
    assert reasoning["type"] == "reasoning"
    items = [
        {"role": "user", "content": "hi"},
        reasoning,
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "x"},
    ]
    again = _run(_chunk(content="ok"), request={**_STATELESS, "input": items}, sealer=_KEYS, profile="openrouter")
    assert again.chat["messages"][1]["reasoning_details"] == details
    plain = _run(_chunk(content="ok"), request={**_STATELESS, "input": items}, sealer=_KEYS)
    assert "reasoning_details" not in plain.chat["messages"][1]


def test_sealed_details_stand_before_the_call_that_they_led_to() -> None:
    first, second = ([{"type": "reasoning.encrypted", "data": data, "index": 0}] for data in ("x", "y"))
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}
    outcome = _run(
        _chunk(reasoning_details=first),
        _chunk(tool_calls=[call]),
        _chunk(reasoning_details=second),
        request={**_STATELESS, "tools": [{"type": "function", "name": "f", "parameters": {}}]},
        sealer=_KEYS,
    )
    final = check_stream(parse_sse(outcome.body))
    assert [item["type"] for item in final["output"]] == ["reasoning", "function_call", "reasoning"]


def test_sealed_details_in_the_middle_of_a_call_wait_for_its_end() -> None:
    details = [{"type": "reasoning.encrypted", "data": "x", "index": 0}]
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a":'}}
    outcome = _run(
        _chunk(tool_calls=[call]),
        _chunk(reasoning_details=details, tool_calls=[{"index": 0, "function": {"arguments": " "}}]),
        _chunk(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        request={**_STATELESS, "tools": [{"type": "function", "name": "f", "parameters": {}}]},
        sealer=_KEYS,
    )
    final = check_stream(parse_sse(outcome.body))
    calls = [item for item in final["output"] if item["type"] == "function_call"]
    assert [(item["arguments"], item["status"]) for item in calls] == [('{"a": 1}', "completed")]


@pytest.mark.parametrize(("blob", "strict"), [("gAAAAfromsomewhereelse", True), ("as1_AAAA", False), ("x", True)])
def test_a_blob_that_does_not_open_is_refused(blob: str, strict: bool) -> None:
    items = [{"type": "reasoning", "summary": [], "encrypted_content": blob}, {"role": "user", "content": "hi"}]
    outcome = _run(request={**_STATELESS, "input": items}, sealer=_KEYS, strict=strict)
    assert outcome.head is not None and outcome.head.status == 400
    error = outcome.json["error"]
    assert (error["code"], error["param"]) == ("invalid_encrypted_content", "input[0].encrypted_content")


def test_reasoning_is_not_sealed_when_nobody_asks() -> None:
    outcome = _run(_chunk(reasoning_content="hm"), _chunk(content="Hi"), sealer=_KEYS)
    assert "encrypted_content" not in outcome.body.decode()


# Reasoning and fields by profile


def test_each_profile_replays_reasoning_under_its_own_key() -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "on"},
    ]
    for profile, key in (("generic", "reasoning_content"), ("ollama", "reasoning"), ("openai", None)):
        turn = _run(_chunk(content="x"), profile=profile, request={"input": items}).chat["messages"][1]
        assert {name for name in turn if name.startswith("reasoning")} == ({key} if key else set())


def test_fields_only_some_servers_have_are_sent_or_named() -> None:
    request = {"service_tier": "flex", "user": "me", "prompt_cache_key": "k", "text": {"verbosity": "low"}}
    sent = _run(_chunk(content="x"), profile="openai", request=request)
    assert (sent.chat["service_tier"], sent.chat["user"], sent.chat["verbosity"]) == ("flex", "me", "low")
    assert sent.head is not None and "antiphon-ignored" not in dict(sent.head.headers)
    named = _run(_chunk(content="x"), request=request)
    assert named.head is not None
    ignored = dict(named.head.headers)["antiphon-ignored"].split(", ")
    assert ignored == ["text.verbosity", "service_tier", "prompt_cache_key", "user"]
    assert not {"service_tier", "user", "prompt_cache_key", "verbosity"} & set(named.chat)


def test_an_effort_the_server_does_not_know_becomes_the_nearest() -> None:
    for asked, sent in (("minimal", "low"), ("xhigh", "high"), ("medium", "medium")):
        chat = _run(_chunk(content="x"), profile="ollama", request={"reasoning": {"effort": asked}}).chat
        assert chat["reasoning_effort"] == sent


@pytest.mark.parametrize(
    "more", [{}, {"description": "An a."}, {"strict": False}, {"description": "An a.", "strict": True}]
)
def test_of_a_schema_all_that_was_said_goes_on_and_nothing_else(more: dict[str, Any]) -> None:
    form = {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}, **more}
    sent = _run(_chunk(content="{}"), request={"text": {"format": {"type": "json_schema", **form}}}).chat
    assert sent["response_format"] == {"type": "json_schema", "json_schema": form}


def test_a_summary_of_reasoning_is_told_in_parts_of_its_own() -> None:
    outcome = _run(_chunk(reasoning="I "), _chunk(reasoning="look."), request={"reasoning": {"summary": "auto"}})
    kinds = [event["type"].removeprefix("response.") for event in parse_sse(outcome.body)]
    assert kinds[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]
    assert ("reasoning", "I look.") in _said(outcome)


def test_pitfall_1_a_schema_is_never_dropped() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    text = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    native = _run(_chunk(content="{}"), request={"text": text}).chat
    assert native["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }
    emulated = _run(_chunk(content="{}"), profile="deepseek", request={"text": text, "instructions": "Be brief."}).chat
    assert emulated["response_format"] == {"type": "json_object"}
    assert emulated["messages"][0]["role"] == "system" and '"a"' in emulated["messages"][0]["content"]
    assert emulated["messages"][0]["content"].startswith("Be brief.")


# Content


def _content(part: dict[str, Any], profile: str = "generic") -> Outcome:
    return _run(_chunk(content="x"), profile=profile, request={"input": [{"role": "user", "content": [part]}]})


def test_pitfall_44_a_text_file_is_text() -> None:
    for data in ("aGVsbG8=", "data:text/plain;base64,aGVsbG8="):
        part = {"type": "input_file", "filename": "notes.txt", "file_data": data}
        (made,) = _content(part).chat["messages"][0]["content"]
        assert made == {"type": "text", "text": "File notes.txt:\nhello"}


def test_other_files_go_where_they_are_taken() -> None:
    part = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
    assert _content(part).chat["messages"][0]["content"][0]["type"] == "file"
    refused = _content(part, "groq")
    assert refused.head is not None and refused.head.status == 400
    assert refused.json["error"]["param"] == "input[0].content[0]"


@pytest.mark.parametrize(
    ("detail", "sent"), [("high", "high"), ("low", "low"), ("auto", "auto"), ("original", "high"), (None, "auto")]
)
def test_image_details(detail: str | None, sent: str) -> None:
    part = {"type": "input_image", "image_url": "https://x.test/a.png", "detail": detail}
    assert _content(part).chat["messages"][0]["content"][0]["image_url"]["detail"] == sent


def test_sound_goes_where_it_is_taken() -> None:
    part = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
    assert _content(part, "openai").chat["messages"][0]["content"][0] == {
        "type": "input_audio",
        "input_audio": part["input_audio"],
    }
    refused = _content(part)
    assert refused.head is not None and refused.head.status == 400


def test_images_where_none_are_taken() -> None:
    refused = _content({"type": "input_image", "image_url": "data:image/png;base64,AA"}, "deepseek")
    assert refused.head is not None and refused.head.status == 400
    assert refused.json["error"]["code"] == "unsupported_parameter"
