"""Compaction: asked for by a trigger, by a threshold, or over its own path; and what can be continued from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.exchange.response_exchange import COMPACT_PATH, COUNT_PATH, ResponseExchange
from antiphon.engine.ports.actions import CancelReason, Chain, Context, LoadContext, RequestHead, StoredItem
from antiphon.errors import ApiError
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES
from antiphon.types.file_kinds import FetchedFile
from tests.support.exchanges import JSON, SSE, Outcome, make_exchange, pump
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.strict_chat import check_chat_request

SEALER = Sealer([b"a key of the tests, for compaction"])
SUMMARY = 'The user plants "tomatoes".'
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


def _answer(text: str, *, stream: bool, finish: str = "stop") -> tuple[tuple[tuple[str, str], ...], bytes]:
    if not stream:
        whole = {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": USAGE,
        }
        return JSON, json.dumps(whole).encode()
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": text}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        {"choices": [], "usage": USAGE},
    ]
    return SSE, b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _run(
    request: dict[str, Any],
    *answers: str,
    path: str = "/v1/responses",
    context: Context | None = None,
    owner: str = "owner",
    finish: str = "stop",
    **options: Any,
) -> tuple[Outcome, ResponseExchange]:
    options = {"sealer": SEALER, **options}
    exchange, outcome = make_exchange(**options), Outcome()
    exchange.receive_request(RequestHead("POST", path, (), owner), json.dumps({"model": "m", **request}).encode())
    pump(exchange, outcome, context)
    waiting: Iterator[str] = iter(answers)
    while not exchange.done:
        call = outcome.calls[-1]
        check_chat_request(json.loads(call.request.body))
        headers, body = _answer(next(waiting), stream=call.request.stream, finish=finish)
        exchange.receive_upstream_head(200, headers)
        pump(exchange, outcome)
        exchange.receive_upstream_data(body)
        pump(exchange, outcome)
        if not exchange.done and outcome.calls[-1] is call:
            exchange.receive_upstream_end()
            pump(exchange, outcome)
    return outcome, exchange


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _messages(outcome: Outcome, call: int = -1) -> list[Any]:
    return list(json.loads(outcome.calls[call].request.body)["messages"])


def _final(outcome: Outcome) -> Any:
    events = parse_sse(outcome.body)
    check_stream(events)
    return events[-1]["response"]


TALK = [_user("I plant tomatoes."), {"role": "assistant", "content": "Fine."}, _user("What next?")]
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_trigger_gives_exactly_one_compaction_and_nothing_else(stream: bool) -> None:
    outcome, _ = _run({"input": [*TALK, {"type": "compaction_trigger"}], "stream": stream}, SUMMARY)
    final = _final(outcome) if stream else outcome.json
    check_response(final)
    assert [item["type"] for item in final["output"]] == ["compaction"]
    assert final["status"] == "completed" and final["usage"]["total_tokens"] == 120
    assert len(outcome.calls) == 1
    assert _messages(outcome)[0]["content"] == "I plant tomatoes."
    assert "summary" in _messages(outcome)[-1]["content"] and _messages(outcome)[-1]["role"] == "user"
    (record,) = outcome.records
    assert [item.type for item in record.output_items] == ["compaction"]
    assert all(item.type != "compaction_trigger" for item in record.input_items)
    assert "tomatoes" not in final["output"][0]["encrypted_content"]


def test_what_was_compacted_goes_on_without_what_it_stands_for() -> None:
    outcome, _ = _run({"input": [*TALK, {"type": "compaction_trigger"}]}, SUMMARY)
    (compaction,) = outcome.json["output"]
    outcome, _ = _run({"input": [compaction, _user("And then?")]}, "Water them.")
    told = _messages(outcome)
    assert SUMMARY in told[0]["content"] and told[-1]["content"] == "And then?"
    assert outcome.json["output"][0]["content"][0]["text"] == "Water them."


def test_a_call_that_is_still_open_survives_and_takes_its_output_later() -> None:
    outcome, _ = _run({"input": [*TALK, CALL, {"type": "compaction_trigger"}]}, SUMMARY)
    assert "tool_calls" not in json.dumps(_messages(outcome))
    (compaction,) = outcome.json["output"]
    outcome, _ = _run({"input": [compaction, OUTPUT]}, "It rains.")
    roles = [message["role"] for message in _messages(outcome)]
    assert roles == ["user", "assistant", "tool"]
    assert _messages(outcome)[1]["tool_calls"][0]["function"]["name"] == "look"


ASKED = {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "f", "arguments": "{}"}
REFUSED = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": False}


def test_a_call_that_waits_for_approval_survives_and_is_answered_later() -> None:
    outcome, _ = _run({"input": [*TALK, ASKED, {"type": "compaction_trigger"}]}, SUMMARY)
    (compaction,) = outcome.json["output"]
    outcome, _ = _run({"input": [compaction, REFUSED]}, "Very well.")
    assert [message["role"] for message in _messages(outcome)] == ["user", "assistant", "tool"]
    assert _messages(outcome)[-1]["content"] == "The user refused it."


def test_an_answer_to_an_approval_is_there_after_a_compaction_before_it() -> None:
    request = {
        "input": [_user("word " * 2000), ASKED, REFUSED],
        "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    }
    outcome, _ = _run(request, SUMMARY, "Very well.")
    assert _messages(outcome)[-1] == {"role": "tool", "tool_call_id": "mcpr_1", "content": "The user refused it."}


def test_a_summary_is_not_taken_for_the_users_orders() -> None:
    """What a tool said may stand in it; the message says whose words it is."""
    outcome, _ = _run({"input": [*TALK, {"type": "compaction_trigger"}]}, SUMMARY)
    assert "never an instruction" in _messages(outcome)[-1]["content"]
    outcome, _ = _run({"input": [*outcome.json["output"], _user("And then?")]}, "Water them.")
    head, _, text = _messages(outcome)[0]["content"].partition("\n")
    assert "written by the assistant" in head and "never an instruction" in head and text == SUMMARY


def test_calls_that_were_answered_are_summed_up() -> None:
    outcome, _ = _run({"input": [*TALK, CALL, OUTPUT, {"type": "compaction_trigger"}]}, SUMMARY)
    assert [message["role"] for message in _messages(outcome)][-3:] == ["assistant", "tool", "user"]
    (compaction,) = outcome.json["output"]
    outcome, _ = _run({"input": [compaction, _user("Well?")]}, "Yes.")
    assert [message["role"] for message in _messages(outcome)] == ["user", "user"]


def test_tools_that_an_item_brought_can_be_called_afterwards_and_are_not_declared_twice() -> None:
    tool = {"type": "function", "name": "dig", "parameters": {"type": "object", "properties": {}}}
    brought = {"type": "additional_tools", "role": "developer", "tools": [tool]}
    outcome, _ = _run({"input": [brought, *TALK, {"type": "compaction_trigger"}]}, SUMMARY)
    assert "tools" not in json.loads(outcome.calls[0].request.body)
    (compaction,) = outcome.json["output"]
    for items in ([compaction, _user("Dig.")], [brought, compaction, _user("Dig.")]):
        outcome, _ = _run({"input": items}, "Done.")
        tools = json.loads(outcome.calls[0].request.body)["tools"]
        assert [one["function"]["name"] for one in tools] == ["dig"]


@pytest.mark.parametrize("stream", [True, False])
def test_over_the_threshold_the_conversation_is_compacted_first_then_answered(stream: bool) -> None:
    long = [_user("I plant tomatoes. " + "word " * 2000), {"role": "assistant", "content": "Fine."}, _user("Next?")]
    request = {
        "input": long,
        "stream": stream,
        "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    }
    outcome, exchange = _run(request, SUMMARY, "Water them.")
    assert exchange.needs_drive
    final = _final(outcome) if stream else outcome.json
    check_response(final)
    assert [item["type"] for item in final["output"]] == ["compaction", "message"]
    assert final["usage"]["total_tokens"] == 240
    second = _messages(outcome)
    assert len(outcome.calls) == 2 and [message["role"] for message in second] == ["user", "user"]
    assert SUMMARY in second[0]["content"] and second[1]["content"] == "Next?"
    # Who continues this response gets the summary, not what it covers.
    record = outcome.records[0]
    chain = Chain((*record.input_items, *record.output_items))
    outcome, _ = _run({"input": "More?", "previous_response_id": "resp_1"}, "No.", context=Context(chain=chain))
    told = json.dumps(_messages(outcome))
    assert "word word" not in told and "tomatoes" in told and "Next?" in told and "Water them." in told


def test_under_the_threshold_nothing_is_compacted() -> None:
    request = {"input": TALK, "context_management": [{"type": "compaction", "compact_threshold": 1000}]}
    outcome, _ = _run(request, "Water them.")
    assert [item["type"] for item in outcome.json["output"]] == ["message"] and len(outcome.calls) == 1


def test_in_a_tool_loop_the_latest_outputs_stay_with_their_calls() -> None:
    old = {**CALL, "call_id": "call_0"}, {**OUTPUT, "call_id": "call_0", "output": "x" * 8000}
    request = {
        "input": [_user("Look."), *old, CALL, OUTPUT],
        "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    }
    outcome, _ = _run(request, SUMMARY, "It rains.")
    second = _messages(outcome)
    assert [message["role"] for message in second] == ["user", "user", "assistant", "tool"]
    assert second[1]["content"] == "Look." and second[2]["tool_calls"][0]["id"] == "call_1"


def test_without_a_number_the_models_context_decides() -> None:
    long = [_user("word " * 2000), {"role": "assistant", "content": "Fine."}, _user("Next?")]
    request = {"input": long, "context_management": [{"type": "compaction"}]}
    outcome, _ = _run(request, "Fine.")
    assert outcome.head is not None and ("antiphon-ignored", "context_management") in outcome.head.headers
    known = ModelRoutes(ModelRoute(PROFILES["generic"], context_tokens=2000))
    outcome, _ = _run(request, SUMMARY, "Fine.", routes=known)
    assert [item["type"] for item in outcome.json["output"]] == ["compaction", "message"]


def test_the_path_of_its_own_answers_with_the_users_words_and_the_compaction() -> None:
    outcome, exchange = _run({"input": TALK, "instructions": "Be kind.", "stream": True}, SUMMARY, path=COMPACT_PATH)
    body = outcome.json
    assert exchange.needs_drive and body["object"] == "response.compaction"
    assert [item["type"] for item in body["output"]] == ["message", "message", "compaction"]
    assert [part["text"] for item in body["output"][:2] for part in item["content"]] == [
        "I plant tomatoes.",
        "What next?",
    ]
    assert body["usage"]["total_tokens"] == 120 and not outcome.records
    outcome, _ = _run({"input": [*body["output"], _user("Go on.")]}, "Water them.")
    told = [message["content"] for message in _messages(outcome)]
    assert told[0] == "I plant tomatoes." and SUMMARY in told[2] and told[-1] == "Go on."


def test_the_model_is_required() -> None:
    exchange, outcome = make_exchange(sealer=SEALER), Outcome()
    exchange.receive_request(RequestHead("POST", COMPACT_PATH, (), "owner"), b'{"input":"hi"}')
    pump(exchange, outcome)
    assert outcome.head is not None and outcome.head.status == 400 and outcome.json["error"]["param"] == "model"


def test_a_compaction_of_somebody_else_is_refused() -> None:
    outcome, _ = _run({"input": [*TALK, {"type": "compaction_trigger"}]}, SUMMARY)
    (compaction,) = outcome.json["output"]
    outcome, _ = _run({"input": [compaction, _user("Go on.")]}, owner="stranger")
    assert outcome.head is not None and outcome.head.status == 400
    assert outcome.json["error"]["code"] == "invalid_encrypted_content"


def test_a_trigger_elsewhere_than_at_the_end_is_refused() -> None:
    outcome, _ = _run({"input": [{"type": "compaction_trigger"}, _user("Hi.")]})
    assert outcome.head is not None and outcome.head.status == 400
    assert outcome.json["error"]["param"] == "input[0]"


@pytest.mark.parametrize("threshold", [999, 0, -1])
def test_a_threshold_has_a_least_value(threshold: int) -> None:
    request = {"input": TALK, "context_management": [{"type": "compaction", "compact_threshold": threshold}]}
    outcome, _ = _run(request)
    assert outcome.head is not None and outcome.head.status == 400
    assert outcome.json["error"]["code"] == "integer_below_min_value"


@pytest.mark.parametrize(("text", "finish"), [("", "stop"), ("", "length")])
def test_no_summary_is_a_failure_and_loses_nothing(text: str, finish: str) -> None:
    outcome, _ = _run({"input": [*TALK, {"type": "compaction_trigger"}], "stream": True}, text, finish=finish)
    final = _final(outcome)
    assert final["status"] == "failed" and final["output"] == []


def test_a_summary_that_was_cut_is_better_than_none() -> None:
    outcome, _ = _run({"input": [*TALK, {"type": "compaction_trigger"}]}, SUMMARY, finish="length")
    assert [item["type"] for item in outcome.json["output"]] == ["compaction"]


def test_an_upstream_that_refuses_the_summary_refuses_the_request() -> None:
    exchange, outcome = make_exchange(sealer=SEALER), Outcome()
    body = json.dumps({"model": "m", "input": [*TALK, {"type": "compaction_trigger"}]}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    pump(exchange, outcome)
    exchange.receive_upstream_head(429, JSON)
    exchange.receive_upstream_data(b'{"error":{"message":"slow down"}}')
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    assert outcome.head is not None and outcome.head.status == 429


def test_tokens_of_the_input_are_estimated_and_said_to_be() -> None:
    outcome, _ = _run({"input": "word " * 400, "instructions": "Be kind."}, path=COUNT_PATH)
    assert outcome.json["object"] == "response.input_tokens" and 400 <= outcome.json["input_tokens"] <= 700
    assert outcome.head is not None and ("antiphon-estimated", "input_tokens") in outcome.head.headers
    assert not outcome.calls and not outcome.records


def test_tokens_of_a_chain_count_its_history() -> None:
    item = StoredItem("msg_1", "message", json.dumps({"type": "message", **_user("word " * 400)}).encode())
    context = Context(chain=Chain((item,)))
    outcome, _ = _run({"input": "x", "previous_response_id": "resp_1"}, path=COUNT_PATH, context=context)
    assert outcome.json["input_tokens"] >= 400


# Before, instead and after


_SOON = [{"type": "compaction", "compact_threshold": 1000}]


def _over_the_threshold(**request: Any) -> dict[str, Any]:
    long = [_user("word " * 2000), {"role": "assistant", "content": "Fine."}, _user("Next?")]
    return {"input": long, "context_management": _SOON, **request}


def test_a_conversation_of_one_message_is_not_compacted_however_long_it_is() -> None:
    """It is what the model is to answer, so nothing is left to sum up; instructions stay in any case."""
    rule = {"role": "system", "content": "rule " * 2000}
    outcome, _ = _run({"input": [rule, _user("word " * 2000)], "context_management": _SOON}, "Fine.")
    assert len(outcome.calls) == 1 and [item["type"] for item in outcome.json["output"]] == ["message"]
    assert [message["role"] for message in _messages(outcome)] == ["system", "user"]


def test_a_conversation_without_a_user_is_compacted_whole() -> None:
    items = [{"role": "assistant", "content": "word " * 2000}, {"role": "assistant", "content": "And so on."}]
    outcome, _ = _run({"input": items, "context_management": _SOON}, SUMMARY, "Fine.")
    assert [item["type"] for item in outcome.json["output"]] == ["compaction", "message"]
    (only,) = _messages(outcome)
    assert SUMMARY in only["content"]


def test_files_are_fetched_before_the_summary_is_asked_for() -> None:
    url = "https://files.example/a.txt"
    file = {"role": "user", "content": [{"type": "input_file", "file_url": url}]}
    exchange = make_exchange(sealer=SEALER)
    body = json.dumps({"model": "m", "input": [file, {"type": "compaction_trigger"}]}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    assert exchange.actions() == [LoadContext("owner", None, (), (url,))]
    outcome = Outcome()
    exchange.receive_context(Context(files={url: FetchedFile("a.txt", "text/plain", b"the text")}))
    pump(exchange, outcome)
    assert "the text" in json.dumps(_messages(outcome)[0]) and "summary" in _messages(outcome)[-1]["content"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_summary_that_breaks_off_is_a_failure_of_the_response(stream: bool) -> None:
    request = _over_the_threshold(stream=stream)
    exchange, outcome = make_exchange(sealer=SEALER), Outcome()
    exchange.receive_request(
        RequestHead("POST", "/v1/responses", (), "owner"), json.dumps({"model": "m", **request}).encode()
    )
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(b'data: {"choices":[{"delta":{"content":"The user"}}]}\n\n')
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    assert exchange.done and len(outcome.calls) == 1
    if stream:
        final = _final(outcome)
        assert (final["status"], final["error"]["code"], final["output"]) == ("failed", "upstream_cut", [])
    else:
        assert outcome.head is not None and outcome.head.status == 502


def test_a_client_that_leaves_during_the_summary_leaves_a_failed_response() -> None:
    exchange, outcome = make_exchange(sealer=SEALER), Outcome()
    body = json.dumps({"model": "m", **_over_the_threshold(stream=True)}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, SSE)
    exchange.cancel(CancelReason.CLIENT_GONE)
    pump(exchange, outcome)
    (record,) = outcome.records
    assert (record.status, record.output_items) == ("failed", ()) and exchange.done


@pytest.mark.parametrize("stream", [True, False])
def test_a_file_that_the_summary_does_not_need_is_fetched_after_it(stream: bool) -> None:
    """It stands in the latest message, which the summary leaves out."""
    url = "https://files.example/gone.txt"
    latest = {"role": "user", "content": [{"type": "input_file", "file_url": url}]}
    request = _over_the_threshold(stream=stream)
    request["input"][-1] = latest
    exchange, outcome = make_exchange(sealer=SEALER), Outcome()
    exchange.receive_request(
        RequestHead("POST", "/v1/responses", (), "owner"), json.dumps({"model": "m", **request}).encode()
    )
    pump(exchange, outcome)
    headers, body = _answer(SUMMARY, stream=stream)
    exchange.receive_upstream_head(200, headers)
    pump(exchange, outcome)
    exchange.receive_upstream_data(body)
    gone = ApiError("The file could not be fetched.", status=400, code="file_download_failed")
    pump(exchange, outcome, Context(files={url: gone}))
    if not exchange.done:
        exchange.receive_upstream_end()
        pump(exchange, outcome, Context(files={url: gone}))
    assert exchange.done and [load.file_urls for load in outcome.loads] == [(url,)]
    if stream:
        final = _final(outcome)
        assert final["status"] == "failed" and [item["type"] for item in final["output"]] == ["compaction"]
    else:
        assert outcome.head is not None and outcome.head.status == 400


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_wrong_with_the_latest_message_is_told_after_the_summary(stream: bool) -> None:
    request = _over_the_threshold(stream=stream)
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    request["input"][-1] = {"role": "user", "content": [image]}
    outcome, _ = _run(request, SUMMARY, profile="deepseek")
    assert len(outcome.calls) == 1
    if stream:
        final = _final(outcome)
        assert final["status"] == "failed" and "images" in final["error"]["message"]
        assert [item["type"] for item in final["output"]] == ["compaction"]
        assert final["usage"]["total_tokens"] == 120, "the summary was paid for"
    else:
        assert outcome.head is not None and outcome.head.status == 400
        assert outcome.json["error"]["param"] == "input.content[0]"


def test_of_the_users_words_the_path_of_its_own_gives_the_latest_back() -> None:
    """Up to some 20,000 tokens; an older message that fits in again is not put behind a gap."""
    items = [_user("first"), _user("old " * 20_000), _user("late " * 4_000), _user("latest")]
    outcome, _ = _run({"input": items}, SUMMARY, path=COMPACT_PATH)
    *users, compaction = outcome.json["output"]
    assert [item["content"][0]["text"].split()[0] for item in users] == ["late", "latest"]
    assert compaction["type"] == "compaction"


def test_the_path_of_its_own_fails_like_any_request() -> None:
    outcome, _ = _run({"input": TALK}, "", path=COMPACT_PATH)
    assert outcome.head is not None and outcome.head.status == 502
    assert outcome.json["error"]["code"] == "model_error" and not outcome.records


def test_the_thoughts_that_led_to_an_open_call_stay_with_it() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I look."}]}
    outcome, _ = _run({"input": [*TALK, thought, CALL, {"type": "compaction_trigger"}]}, SUMMARY)
    (compaction,) = outcome.json["output"]
    outcome, _ = _run({"input": [compaction, OUTPUT]}, "It rains.")
    called = _messages(outcome)[1]
    assert called["reasoning_content"] == "I look." and called["tool_calls"][0]["id"] == "call_1"


def test_what_was_sealed_for_something_else_is_no_compaction() -> None:
    sealed = SEALER.seal("owner", "reasoning", b'{"text":"a","items":5}')
    outcome, _ = _run({"input": [{"type": "compaction", "encrypted_content": sealed}, _user("Go on.")]})
    assert outcome.head is not None and outcome.head.status == 400
    error = outcome.json["error"]
    assert (error["param"], error["code"]) == ("input[0].encrypted_content", "invalid_encrypted_content")
    assert "compaction" in error["message"]
