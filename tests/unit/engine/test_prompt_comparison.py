"""Why a prompt is not the one before it: found in what the server gets, told in the response and in its stored form."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.prompt_comparison import first_difference, stored_prompt
from antiphon.engine.exchange.response_exchange import COMPACT_PATH, COUNT_PATH
from antiphon.engine.ports.actions import Chain, ComparedResponse, Context, RequestHead, ResponseRecord, StoredItem
from antiphon.engine.ports.hosted_tools import ToolResult
from antiphon.errors import ApiError, NotFound
from antiphon.translation.profiles import PROFILES, with_flags
from antiphon.translation.values import CachedPrompt
from antiphon.types.file_kinds import FetchedFile
from tests.support.exchanges import JSON, SEALER, SSE, Outcome, make_exchange, pump, run
from tests.support.hosted_tools import ScriptedTools
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.model_turns import model_turn

LONG = "word " * 400
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
SEE = {**LOOK, "name": "see"}
FORMAT = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}
WAITING = StoredItem("fc_1", "function_call", b'{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}')
USAGE = {"prompt_tokens": 1000, "completion_tokens": 5, "total_tokens": 1005}


def _answer(usage: dict[str, Any] | None = None, *, tier: str | None = None) -> bytes:
    message = {"role": "assistant", "content": "Fine."}
    whole: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    if usage is not None:
        whole["usage"] = usage
    if tier is not None:
        whole["service_tier"] = tier
    return json.dumps(whole).encode()


def _first(request: dict[str, Any], answer: bytes | None = None, **options: Any) -> ResponseRecord:
    """The stored response of a first request."""
    outcome = run({"model": "m", **request}, [answer or _answer()], headers=JSON, **options)
    (record,) = outcome.records
    return record


def _compared(record: ResponseRecord, history: tuple[StoredItem, ...] = ()) -> ComparedResponse:
    return ComparedResponse(record.body, (*history, *record.input_items), record.output_items)


def _ask(request: dict[str, Any], context: Context, answer: bytes | None = None, **options: Any) -> Outcome:
    """The outcome of a request that names a response to compare."""
    asked = {"model": "m", **request, "prompt_cache_options": {"comparison_response_id": "resp_1"}}
    return run(asked, [answer or _answer()], headers=JSON, context=context, **options)


def _told(request: dict[str, Any], record: ResponseRecord, answer: bytes | None = None, **options: Any) -> Any:
    """The diagnostics of a request that compares its prompt with that of `record`."""
    outcome = _ask(request, Context(compared=_compared(record)), answer, **options)
    check_response(outcome.json)
    (saved,) = outcome.records
    assert json.loads(saved.body)["prompt_cache_diagnostics"] == outcome.json["prompt_cache_diagnostics"]
    assert "prompt_cache_options" not in str(outcome.head)
    return outcome.json["prompt_cache_diagnostics"]


def _reason(*told: Any, **options: Any) -> str | None:
    return _told(*told, **options).get("reason")  # type: ignore[no-any-return]


def test_the_id_is_loaded_with_everything_else_and_only_for_a_response() -> None:
    outcome = _ask({"input": "hi"}, Context())
    (load,) = outcome.loads
    assert (load.owner, load.compared, load.previous_response_id) == ("owner", "resp_1", None)
    outcome = _ask({"input": "hi", "previous_response_id": "resp_0"}, Context(chain=Chain(())))
    (load,) = outcome.loads
    assert (load.compared, load.previous_response_id) == ("resp_1", "resp_0")
    for options in ({}, {"comparison_response_id": None}, {"comparison_response_id": ""}):
        outcome = run({"model": "m", "input": "hi", "prompt_cache_options": options}, [_answer()], headers=JSON)
        assert not outcome.loads and "prompt_cache_diagnostics" not in outcome.json


@pytest.mark.parametrize("path", [COMPACT_PATH, COUNT_PATH])
def test_other_answers_compare_nothing(path: str) -> None:
    exchange, outcome = make_exchange(), Outcome()
    body = {"model": "m", "input": "hi", "prompt_cache_options": {"comparison_response_id": "resp_1"}}
    exchange.receive_request(RequestHead("POST", path, (), "owner"), json.dumps(body).encode())
    pump(exchange, outcome)
    assert not outcome.loads


def test_a_response_that_this_owner_has_not_is_not_found() -> None:
    outcome = _ask({"input": "hi"}, Context())
    assert outcome.json["prompt_cache_diagnostics"] == {"type": "comparison_response_not_found"}


def test_a_prompt_that_cannot_be_compared_is_unavailable() -> None:
    outcome = _ask({"input": "hi"}, Context(compared=ComparedResponse()))
    assert outcome.json["prompt_cache_diagnostics"] == {"type": "unavailable"}
    record = _first({"input": "hi"})
    # A call without its output, and a body that is none.
    for compared in (ComparedResponse(record.body, (WAITING,)), ComparedResponse(b"{}", record.input_items)):
        outcome = _ask({"input": "hi"}, Context(compared=compared))
        assert outcome.json["prompt_cache_diagnostics"] == {"type": "unavailable"}
        assert outcome.json["status"] == "completed"


def test_a_stream_has_the_result_in_its_last_event_only() -> None:
    record = _first({"input": "hi"})
    asked = {"model": "m", "input": "ho", "stream": True, "prompt_cache_options": {"comparison_response_id": "r"}}
    chunks = (
        b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )
    outcome = run(asked, [chunks], headers=SSE, context=Context(compared=_compared(record)))
    events = parse_sse(outcome.body)
    check_stream(events)
    with_it = [event["type"] for event in events if "prompt_cache_diagnostics" in event.get("response", {})]
    assert with_it == ["response.completed"]
    assert events[-1]["response"]["prompt_cache_diagnostics"]["reason"] == "input_changed"


CALLED = json.dumps(
    {
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
                },
            }
        ]
    }
).encode()
BASE: dict[str, Any] = {"input": "hi", "instructions": "Be kind.", "tools": [LOOK]}


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {}, None),
        ({"temperature": 0.1, "metadata": {"a": "b"}}, {"top_p": 0.2}, None),
        ({}, {"model": "n"}, "model_changed"),
        ({}, {"prompt_cache_key": "b"}, "prompt_cache_key_changed"),
        ({"prompt_cache_key": "a"}, {"prompt_cache_key": "b"}, "prompt_cache_key_changed"),
        ({}, {"tools": [SEE]}, "tools_changed"),
        ({}, {"tools": [LOOK, SEE]}, "tools_changed"),
        ({}, {"tools": []}, "tools_changed"),
        (
            {"tools": [LOOK, SEE]},
            {
                "tools": [LOOK, SEE],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "look"}],
                },
            },
            "tools_changed",
        ),
        ({}, {"text": FORMAT}, "text_format_changed"),
        ({}, {"reasoning": {"effort": "high"}}, "reasoning_effort_changed"),
        ({"reasoning": {"effort": "high"}}, {"reasoning": {"effort": "low"}}, "reasoning_effort_changed"),
        ({"reasoning": {"effort": "high"}}, {"reasoning": {"effort": "high", "summary": "auto"}}, None),
        ({}, {"text": {"verbosity": "low"}}, "verbosity_changed"),
        ({}, {"text": {"verbosity": "medium"}}, None),
        ({}, {"instructions": "Be rude."}, "input_changed"),
        ({}, {"instructions": None}, "input_changed"),
        ({}, {"input": "ho"}, "input_changed"),
        # The comparison names the first of several.
        ({}, {"input": "ho", "tools": [SEE], "model": "n"}, "model_changed"),
        ({}, {"input": "ho", "tools": [SEE]}, "tools_changed"),
    ],
)
def test_each_part_has_its_reason(before: dict[str, Any], after: dict[str, Any], reason: str | None) -> None:
    record = _first({**BASE, **before}, profile="openai")
    told = _told({**BASE, **after}, record, profile="openai")
    assert told["type"] == ("cache_hit" if reason is None else "cache_miss")
    assert told.get("reason") == reason


def test_what_the_server_does_not_get_is_no_difference() -> None:
    settings = {"reasoning": {"effort": "high"}, "text": {"verbosity": "low"}, "prompt_cache_key": "b"}
    flags = {"reasoning_effort": False}
    routes = ModelRoutes(ModelRoute(with_flags(PROFILES["generic"], flags)))
    record = _first({"input": "hi"}, routes=routes)
    assert _told({"input": "hi", **settings, "service_tier": "flex"}, record, routes=routes) == {"type": "cache_hit"}
    # Two efforts that become the same one.
    routes = ModelRoutes(ModelRoute(with_flags(PROFILES["generic"], {"effort_values": ("low", "high")})))
    record = _first({"input": "hi", "reasoning": {"effort": "high"}}, routes=routes)
    told = _told({"input": "hi", "reasoning": {"effort": "xhigh"}}, record, routes=routes)
    assert told == {"type": "cache_hit"}
    # An unknown effort is not sent.
    context = Context(compared=_compared(_first({"input": "hi"})))
    outcome = _ask({"input": "hi", "reasoning": {"effort": "huge"}}, context)
    assert outcome.json["prompt_cache_diagnostics"] == {"type": "cache_hit"}


def test_two_names_of_one_model_are_one_model() -> None:
    profile = PROFILES["generic"]
    rules = (
        ModelRule("a", ModelRoute(profile, model="big")),
        ModelRule("b", ModelRoute(profile, model="big")),
        ModelRule("c", ModelRoute(profile, upstream="other", model="big")),
    )
    routes = ModelRoutes(ModelRoute(profile), rules)
    record = _first({"model": "a", "input": "hi"}, routes=routes)
    assert _reason({"model": "b", "input": "hi"}, record, routes=routes) is None
    assert _reason({"model": "c", "input": "hi"}, record, routes=routes) == "model_changed"


def test_a_named_tool_hides_the_others_from_some_servers() -> None:
    routes = ModelRoutes(ModelRoute(with_flags(PROFILES["generic"], {"named_tool_choice": "required"})))
    record = _first({"input": "hi", "tools": [LOOK, SEE]}, routes=routes)
    choice = {"type": "function", "name": "look"}
    asked = {"input": "hi", "tools": [LOOK, SEE], "tool_choice": choice}
    assert _reason(asked, record, CALLED, routes=routes) == "tools_changed"
    routes = ModelRoutes(ModelRoute(PROFILES["generic"]))
    record = _first({"input": "hi", "tools": [LOOK, SEE]}, routes=routes)
    assert _reason(asked, record, CALLED, routes=routes) is None
    assert _reason({**asked, "tool_choice": "required"}, record, CALLED, routes=routes) is None


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


TALK = [_message("user", "one"), _message("assistant", "two"), _message("user", "three")]


def test_a_client_that_sends_everything_again_continues_the_prompt() -> None:
    record = _first({"input": TALK[:1]})
    assert _told({"input": TALK}, record) == {"type": "cache_hit"}
    # In another form, and with marks of the client.
    part = {"type": "input_text", "text": "one"}
    again = [{"type": "message", "id": "msg_x", "role": "user", "content": [part]}, *TALK[1:]]
    assert _told({"input": again}, record) == {"type": "cache_hit"}
    # What is shorter is in the cache as well.
    record = _first({"input": TALK})
    assert _told({"input": TALK[:1]}, record) == {"type": "cache_hit"}


def test_a_later_system_message_changes_the_first_one() -> None:
    record = _first({"input": TALK})
    more = [*TALK, _message("assistant", "four"), _message("developer", "Hurry."), _message("user", "five")]
    assert _reason({"input": more}, record) == "input_changed"
    routes = ModelRoutes(ModelRoute(with_flags(PROFILES["generic"], {"system_anywhere": True})))
    record = _first({"input": TALK}, routes=routes)
    assert _reason({"input": more}, record, routes=routes) is None


def test_reasoning_counts_where_the_server_gets_it() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "rain"}
    full, bare = [TALK[0], thought, call, output], [TALK[0], call, output]
    record = _first({"input": full})
    assert _reason({"input": bare}, record) == "input_changed"
    routes = ModelRoutes(ModelRoute(with_flags(PROFILES["generic"], {"replay_reasoning": "off"})))
    record = _first({"input": full}, routes=routes)
    assert _reason({"input": bare}, record, routes=routes) is None


def test_tools_in_the_input_are_tools() -> None:
    brought = {"type": "additional_tools", "role": "developer", "tools": [SEE]}
    record = _first({"input": TALK, "tools": [LOOK]})
    assert _reason({"input": [brought, *TALK], "tools": [LOOK]}, record) == "tools_changed"
    record = _first({"input": [brought, *TALK], "tools": [LOOK]})
    assert _reason({"input": [*TALK, brought], "tools": [LOOK]}, record) is None
    # A choice that names a tool which the earlier prompt did not have.
    record = _first({"input": TALK})
    asked = {"input": [{**brought, "tools": [LOOK]}, *TALK], "tool_choice": {"type": "function", "name": "look"}}
    assert _reason(asked, record, CALLED) == "tools_changed"


def test_dropped_turns_change_the_prompt() -> None:
    routes = ModelRoutes(ModelRoute(PROFILES["generic"], context_tokens=600))
    talk = [_message("user", LONG), _message("assistant", "two"), _message("user", "three")]
    record = _first({"input": talk[:1], "truncation": "auto"}, routes=routes)
    more = [*talk, _message("assistant", "four"), _message("user", "five " * 400)]
    assert _reason({"input": more, "truncation": "auto"}, record, routes=routes) == "input_changed"
    assert _reason({"input": more}, record, routes=routes) is None
    # Each prompt is cut by its own settings.
    whole: dict[str, Any] = {"input": more, "truncation": "disabled"}
    cut: dict[str, Any] = {"input": more, "truncation": "auto"}
    assert _reason(cut, _first(whole, routes=routes), routes=routes) == "input_changed"
    assert _reason(cut, _first(cut, routes=routes), routes=routes) is None
    short: dict[str, Any] = {"input": talk, "truncation": "auto"}
    cut = {**short, "max_output_tokens": 500}
    assert _reason(short, _first(cut, routes=routes), routes=routes) == "input_changed"


def test_a_stored_prompt_is_part_of_the_comparison() -> None:
    record = _first({"input": TALK[:1], "instructions": "Be kind."})
    # A response to a request with a prompt shows the prompt's messages among its instructions.
    shown = json.loads(record.body)
    part = {"type": "input_text", "text": "Be kind."}
    shown["instructions"] = [{"type": "message", "role": "developer", "content": [part]}]
    again = replace(record, body=json.dumps(shown).encode())
    assert _told({"input": TALK, "instructions": "Be kind."}, again) == {"type": "cache_hit"}
    assert _reason({"input": TALK, "instructions": "Be rude."}, again) == "input_changed"


def test_files_need_not_be_there_to_be_compared() -> None:
    file = {"type": "input_file", "file_url": "https://f.example/a.txt"}
    asked = {"role": "user", "content": [file, {"type": "input_text", "text": "What is it?"}]}
    files: dict[str, FetchedFile | ApiError] = {"https://f.example/a.txt": FetchedFile("a.txt", "text/plain", b"A")}
    first = run({"model": "m", "input": [asked]}, [_answer()], headers=JSON, context=Context(files=files))
    (record,) = first.records
    context = Context(files=files, compared=_compared(record))
    # The file is fetched for this request, in a second load that has no comparison.
    outcome = _ask({"input": [asked, *TALK[1:]]}, context)
    assert [load.compared for load in outcome.loads] == ["resp_1", None]
    assert outcome.json["prompt_cache_diagnostics"] == {"type": "cache_hit"}
    outcome = _ask({"input": TALK}, Context(compared=_compared(record)))
    assert outcome.json["prompt_cache_diagnostics"]["reason"] == "input_changed"
    outcome = _ask({"input": [asked]}, Context(files={"https://f.example/a.txt": NotFound("gone")}))
    assert outcome.finish is not None and outcome.finish.outcome == "error"


def _compacting(request: dict[str, Any], context: Context | None = None) -> Outcome:
    return run(
        {"model": "m", "context_management": [{"type": "compaction", "compact_threshold": 1000}], **request},
        [_answer(USAGE)],
        headers=JSON,
        context=context,
    )


def test_a_compaction_is_the_reason_until_both_prompts_have_it() -> None:
    talk = [_message("user", LONG * 3), _message("assistant", "two"), _message("user", "three")]
    record = _first({"input": talk})
    options = {"comparison_response_id": "r"}
    outcome = _compacting({"input": talk, "prompt_cache_options": options}, Context(compared=_compared(record)))
    told = outcome.json["prompt_cache_diagnostics"]
    # Two model calls: their usage says nothing about one prompt.
    assert told["reason"] == "context_compacted" and 0 < told["cache_missed_tokens"] < 1000
    (compacted,) = outcome.records
    assert compacted.output_items[0].type == "compaction"
    history = (*compacted.input_items, *compacted.output_items)
    context = Context(chain=Chain(history), compared=_compared(compacted))
    outcome = _ask({"input": "four", "previous_response_id": "r"}, context)
    assert outcome.json["prompt_cache_diagnostics"] == {"type": "cache_hit"}
    # A response that only compacts has no prompt to compare.
    trigger = {"input": [*talk, {"type": "compaction_trigger"}]}
    assert _told(trigger, record) == {"type": "unavailable"}
    # A client that begins again with the compaction has a new prompt.
    alone = run({"model": "m", **trigger}, [_answer()], headers=JSON)
    assert _reason({"input": [*alone.json["output"], TALK[2]]}, record) == "context_compacted"
    assert _reason({"input": [*alone.json["output"], TALK[2]]}, alone.records[0]) == "context_compacted"


def test_the_tier_is_the_one_that_answered() -> None:
    asked = {"input": "hi", "service_tier": "flex"}
    record = _first(asked, _answer(tier="flex"), profile="openai")
    assert _told(asked, record, _answer(tier="flex"), profile="openai") == {"type": "cache_hit"}
    told = _told(asked, record, _answer(USAGE, tier="default"), profile="openai")
    assert told["reason"] == "service_tier_changed" and told["cache_missed_tokens"] == 1000
    # This server gets no tier.
    assert _told({"input": "hi"}, record, _answer(tier="default")) == {"type": "cache_hit"}
    # Another model answered than the request names.
    record = _first(asked, _answer(tier="default"), profile="openai")
    assert _told(asked, record, _answer(tier="default"), profile="openai") == {"type": "cache_hit"}


def test_of_several_model_calls_the_first_is_compared() -> None:
    search = {"tools": [{"type": "web_search"}]}
    tools = ScriptedTools(lambda call: ToolResult(call.call_id, LONG, {}))
    record = _first({"input": "hi", **search}, tools=tools)
    asked = {"input": "ho", **search, "prompt_cache_options": {"comparison_response_id": "resp_1"}}
    told = []
    for turns in ([("So.", ())], [("", (("web_search", "{}"),)), ("So.", ())]):
        exchange, outcome = make_exchange(tool_types=tools.types), Outcome()
        exchange.receive_request(
            RequestHead("POST", "/v1/responses", (), "owner"), json.dumps({"model": "m", **asked}).encode()
        )
        pump(exchange, outcome, Context(compared=_compared(record)), tools)
        for text, calls in turns:
            body = json.loads(model_turn(text, *calls, stream=False))
            if len(turns) == 1:
                # Without usage the counts are estimates. The usage of two calls is no usage of one prompt.
                del body["usage"]
            exchange.receive_upstream_head(200, JSON)
            pump(exchange, outcome, tools=tools)
            exchange.receive_upstream_data(json.dumps(body).encode())
            exchange.receive_upstream_end()
            pump(exchange, outcome, tools=tools)
        told.append(outcome.json["prompt_cache_diagnostics"])
    assert told[0] == told[1] and told[0]["reason"] == "input_changed" and told[0]["cache_missed_tokens"] < 20


def _unseal(text: str, param: str) -> bytes:
    return SEALER.open("owner", "reasoning", text, param=param)


def test_two_stored_prompts_are_compared_without_a_request() -> None:
    file = {"type": "input_file", "file_url": "https://f.example/a.txt"}
    files: dict[str, FetchedFile | ApiError] = {"https://f.example/a.txt": FetchedFile("a.txt", "text/plain", b"A")}
    asked = {"role": "user", "content": [file, {"type": "input_text", "text": "What is it?"}]}
    long = [asked, _message("assistant", LONG), _message("user", "And?")]
    profile = PROFILES["generic"]

    def prompt(request: dict[str, Any], **options: Any) -> CachedPrompt:
        outcome = run({"model": "m", **request}, [_answer()], headers=JSON, context=Context(files=files), **options)
        return stored_prompt(_compared(outcome.records[0]), profile, _unseal)

    first = prompt({"input": long[:1], "instructions": "Be kind.", "tools": [LOOK]})
    assert first_difference(first, prompt({"input": long, "instructions": "Be kind.", "tools": [LOOK]})) is None
    found = first_difference(first, prompt({"input": long, "tools": [LOOK, SEE]}))
    assert found is not None and (found.reason, found.place) == ("tools_changed", "tools[1]")
    found = first_difference(first, prompt({"input": TALK, "instructions": "Be kind.", "tools": [LOOK]}))
    assert found is not None and (found.reason, found.place) == ("input_changed", "messages[1]")
    # No turn is missing, whatever the request dropped.
    routes = ModelRoutes(ModelRoute(profile, context_tokens=100))
    whole = prompt({"input": long, "truncation": "auto"}, routes=routes)
    assert len(whole.messages) == 3
    with pytest.raises(ApiError):
        stored_prompt(ComparedResponse(_first({"input": "hi"}).body, (WAITING,)), profile, _unseal)


def test_tokens_are_the_servers_or_an_estimate() -> None:
    talk = [_message("user", LONG), _message("assistant", "two"), _message("user", LONG)]
    record = _first({"input": talk})
    changed = {"input": [*talk[:2], _message("user", "three " * 400)]}
    told = _told(changed, record)
    total = told["cache_missed_tokens"] + told["comparison_reusable_tokens"]
    assert 550 < told["cache_missed_tokens"] < 650 and 500 < told["comparison_reusable_tokens"] < 600
    counted = _told(changed, record, _answer(USAGE))
    assert counted["comparison_reusable_tokens"] == 1000 * told["comparison_reusable_tokens"] // total
    assert counted["cache_missed_tokens"] == 1000 - counted["comparison_reusable_tokens"]
    cached = _answer({**USAGE, "prompt_tokens_details": {"cached_tokens": 512}})
    assert _told(changed, record, cached) == {
        "type": "cache_miss",
        "cache_missed_tokens": 488,
        "reason": "input_changed",
        "comparison_reusable_tokens": 512,
    }
    # No model call: the request only stores its prompt.
    options = {"comparison_response_id": "resp_1", "prewarm": True}
    context = Context(compared=_compared(record))
    outcome = run({"model": "m", **changed, "prompt_cache_options": options}, context=context)
    assert outcome.json["prompt_cache_diagnostics"] == told and not outcome.calls
