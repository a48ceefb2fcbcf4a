"""What nobody here knows is left out and named; in strict mode it is a 400; what a call waits for always is one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.ports.actions import RequestHead
from tests.support.exchanges import JSON, Outcome, make_exchange, run

OK = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}]}'
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
IMAGE = {"type": "input_image", "image_url": "https://x/y.png"}

UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"input": [USER, {"type": "future_call", "x": 1}]}, "input.future_call"),
    ({"input": [USER, {"type": "future_output", "call_id": "c", "output": "x"}]}, "input.future_output"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_smell"}]}]},
        "content.input_smell",
    ),
    (
        {"input": [USER, {"role": "assistant", "content": [{"type": "smell"}, {"type": "output_text", "text": "a"}]}]},
        "content.smell",
    ),
    ({"input": [USER, {"type": "reasoning", "summary": [{"type": "hunch", "text": "x"}]}, USER]}, "content.hunch"),
    ({"input": [{"role": "user", "content": [{**IMAGE, "detail": "atomic"}]}]}, "input[0].content[0].detail:atomic"),
    ({"include": ["future.thing"]}, "include:future.thing"),
    ({"reasoning": {"effort": "heroic"}}, "reasoning.effort:heroic"),
    ({"reasoning": {"summary": "sung"}}, "reasoning.summary:sung"),
    ({"text": {"verbosity": "epic"}}, "text.verbosity:epic"),
    ({"service_tier": "platinum"}, "service_tier:platinum"),
    ({"truncation": "clever"}, "truncation:clever"),
    ({"context_management": [{"type": "forgetting"}]}, "context_management:forgetting"),
    ({"tools": [{**TOOL, "telepathic": True}]}, "tools.function.telepathic"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{**TOOL, "aura": 1}]}]}, "tools.function.aura"),
    ({"tools": [{"type": "shell", "aura": 1}]}, "tools.shell.aura"),
    ({"input": [USER, {"type": "additional_tools", "tools": [{**TOOL, "aura": 1}]}]}, "tools.function.aura"),
    (
        {"input": [USER, {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}, USER]},
        "input.reasoning.encrypted_content",
    ),
    ({"input": [{"type": "compaction", "encrypted_content": "gAAAA"}, USER]}, "input.compaction"),
]


def _ask(fields: dict[str, Any], **options: Any) -> Outcome:
    return run({"model": "m", "input": "hi", **fields}, [OK], headers=JSON, **options)


def _named(outcome: Outcome) -> list[str]:
    assert outcome.head is not None
    return dict(outcome.head.headers).get("antiphon-ignored", "").split(", ")


@pytest.mark.parametrize(("fields", "name"), UNKNOWN, ids=[name for _, name in UNKNOWN])
def test_what_nobody_knows_is_left_out_and_named_once(fields: dict[str, Any], name: str) -> None:
    outcome = _ask(fields)
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    assert _named(outcome).count(name) == 1
    for word in ("future", "smell", "hunch", "atomic", "heroic", "platinum", "telepathic", "aura", "gAAAA"):
        assert word not in json.dumps(outcome.chat)


@pytest.mark.parametrize(("fields", "name"), UNKNOWN, ids=[name for _, name in UNKNOWN])
def test_in_strict_mode_it_is_a_400_that_names_the_place(fields: dict[str, Any], name: str) -> None:
    outcome = _ask(fields, strict=True)
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls
    assert outcome.json["error"]["param"] and outcome.json["error"]["message"]


def test_what_is_known_is_not_called_unknown() -> None:
    fields = {"tools": [{**TOOL, "output_schema": {}, "allowed_callers": ["direct", "programmatic"], "strict": True}]}
    outcome = _ask({**fields, "include": ["web_search_call.results"], "reasoning": {"effort": "max"}}, strict=True)
    assert _named(outcome) == [
        "include:web_search_call.results",
        "tools.function.allowed_callers",
        "tools.function.output_schema",
    ]


def test_a_known_thing_of_an_unknown_effort_is_echoed_as_it_was_sent() -> None:
    outcome = _ask({"reasoning": {"effort": "heroic"}})
    assert outcome.json["reasoning"]["effort"] == "heroic" and "reasoning_effort" not in outcome.chat


@pytest.mark.parametrize(
    ("items", "param"),
    [
        # The output is of a type that nobody knows: the call waits for it.
        (
            [
                USER,
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "future_output", "call_id": "c", "output": "x"},
            ],
            "input",
        ),
        # All that the output says is of a type that nobody knows.
        (
            [
                USER,
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "smell"}]},
            ],
            "input[2].output",
        ),
    ],
)
def test_what_a_call_waits_for_is_never_left_out(items: list[dict[str, Any]], param: str) -> None:
    outcome = _ask({"input": items})
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls
    assert outcome.json["error"]["param"] == param


def test_what_restricts_the_answer_is_never_left_out() -> None:
    for fields in (
        {"text": {"format": {"type": "xml"}}},
        {"tool_choice": {"type": "future"}, "tools": [TOOL]},
        {"tool_choice": "perhaps", "tools": [TOOL]},
    ):
        outcome = _ask(fields)
        assert outcome.head is not None and outcome.head.status == 400, fields


def test_a_known_part_in_the_wrong_place_is_refused() -> None:
    outcome = _ask({"input": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]})
    assert outcome.json["error"]["param"] == "input[0].content[0].type"


def test_the_log_gets_the_names_too() -> None:
    assert make_exchange().unknown == ()
    exchange = make_exchange()
    body = json.dumps({"model": "m", "input": [USER, {"type": "omen"}], "service_tier": "platinum"}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    assert exchange.unknown == ("service_tier:platinum", "input.omen")


def test_an_input_of_unknown_items_alone_says_so() -> None:
    outcome = _ask({"input": [{"type": "future_call"}, {"type": "omen"}]})
    assert outcome.head is not None and outcome.head.status == 400
    assert "input.future_call, input.omen" in outcome.json["error"]["message"]


def test_what_was_left_out_is_not_stored() -> None:
    outcome = _ask({"input": [USER, {"type": "future_call"}]})
    assert [item.type for item in outcome.records[0].input_items] == ["message"]


def test_many_unknown_names_are_bounded() -> None:
    outcome = _ask({"input": [USER, *({"type": f"new_{n}_{'x' * 500}"} for n in range(300))]})
    assert outcome.head is not None and outcome.head.status == 200
    assert len(", ".join(_named(outcome))) <= 1024
