"""`max_output_tokens` is one budget for all rounds of a response, whatever the rounds cost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.engine.ports.actions import RequestHead
from tests.support.effort import examples
from tests.support.exchanges import JSON, SSE, Outcome, make_exchange, pump
from tests.support.hosted_tools import ScriptedTools
from tests.support.judge import parse_sse

SEARCH = {"type": "file_search", "vector_store_ids": ["vs_1"]}
BUDGETS = {"generic": "max_tokens", "openai": "max_completion_tokens"}


def answer(stream: bool, tokens: int | None, finish: str, text: str) -> bytes:
    message: dict[str, Any] = {"content": text}
    if finish == "tool_calls":
        function = {"name": "file_search", "arguments": json.dumps({"query": text})}
        message = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}
    usage = None if tokens is None else {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    choice = {"index": 0, "finish_reason": finish, "delta" if stream else "message": message}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    return b"data: %b\n\ndata: [DONE]\n\n" % body if stream else body


def converse(
    stream: bool, limit: int | None, costs: list[int | None], profile: str
) -> tuple[Outcome, list[int | None]]:
    """A model that calls a tool in every round but the last, and keeps to the limit of each."""
    tools, outcome = ScriptedTools(), Outcome()
    exchange = make_exchange(profile, tool_types=tools.types)
    request = {"model": "m", "input": "Hi", "tools": [SEARCH], "stream": stream, "max_output_tokens": limit}
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), json.dumps(request).encode())
    pump(exchange, outcome, tools=tools)
    limits: list[int | None] = []
    for number, cost in enumerate(costs):
        if exchange.done:
            break
        call = outcome.calls[-1]
        budget = json.loads(call.request.body).get(BUDGETS[profile])
        limits.append(budget)
        finish = "stop" if number == len(costs) - 1 else "tool_calls"
        if budget is not None and cost is not None and cost > budget:
            cost, finish = budget, "length"
        exchange.receive_upstream_head(200, SSE if stream else JSON)
        pump(exchange, outcome, tools=tools)
        exchange.receive_upstream_data(answer(stream, cost, finish, "word " * (cost or 20)))
        pump(exchange, outcome, tools=tools)
        if not exchange.done and outcome.calls[-1] is call:
            exchange.receive_upstream_end()
            pump(exchange, outcome, tools=tools)
    assert exchange.done
    return outcome, limits


@settings(max_examples=examples(200), deadline=None)
@given(
    st.booleans(),
    st.integers(16, 200),
    st.lists(st.integers(0, 120), min_size=1, max_size=6),
    st.sampled_from(sorted(BUDGETS)),
)
def test_each_round_gets_what_is_left(stream: bool, limit: int, costs: list[int], profile: str) -> None:
    outcome, limits = converse(stream, limit, list(costs), profile)
    left, expected = limit, []
    for cost in costs:
        if left == 0:
            break
        expected.append(left)
        left -= min(cost, left)
        if cost > expected[-1]:
            break
    assert limits == expected
    response = parse_sse(outcome.body)[-1]["response"] if stream else outcome.json
    assert response["usage"]["output_tokens"] == sum(costs) if response["status"] == "completed" else limit
    assert response["usage"]["output_tokens"] <= limit
    whole = len(expected) == len(costs) and costs[-1] <= expected[-1]
    assert response["status"] == ("completed" if whole else "incomplete")
    assert response["incomplete_details"] == (None if whole else {"reason": "max_output_tokens"})
    assert response["max_output_tokens"] == limit


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_server_does_not_count_is_estimated(stream: bool) -> None:
    _, limits = converse(stream, 60, [None, None, None], "generic")
    # A hundred letters and the JSON around them are some 29 tokens.
    assert limits == [60, 31, 2]


def test_without_a_limit_there_is_none() -> None:
    assert converse(False, None, [50, 50], "generic")[1] == [None, None]
