"""Errors through every kind of gateway: what clients need of them arrives, what is nobody's business does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Setup
from tests.support.chat_server import answer, completion, event, json_answer, text_stream
from tests.support.gateway import post
from tests.support.judge import check_stream, parse_sse

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

ASK: dict[str, Any] = {"model": "demo-model", "input": "hi"}
SSE = ("content-type", "text/event-stream")
LIMITS = {
    "retry-after": "3",
    "retry-after-ms": "2500",
    "x-should-retry": "true",
    "x-ratelimit-limit-requests": "10",
    "x-ratelimit-remaining-tokens": "0",
}
SECRET = "sk-proj-abcdefgh12345678"
LEAKY = {
    "error": {
        "message": f"Rate limit of {SECRET} in organization org-AbCdEf123 at http://10.1.2.3:8000/v1 reached",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    },
    "user_id": "user_2abCDEF12345",
}


def _nothing_leaks(body: bytes) -> None:
    for secret in (SECRET, "org-AbCdEf", "10.1.2.3", "user_2abC"):
        assert secret.encode() not in body


@pytest.mark.parametrize("stream", [True, False])
async def test_a_rate_limit_arrives_with_everything_about_it(setup: Setup, stream: bool) -> None:
    setup.server.script(*[json_answer(LEAKY, 429, [*LIMITS.items(), ("server", "internal-7")])] * 3)
    answered = await post(setup.gateway.base_url + "/responses", {**ASK, "stream": stream})
    assert answered.status == 429
    assert {name: answered.headers.get(name) for name in LIMITS} == LIMITS
    assert json.loads(answered.body)["error"]["code"] == "rate_limit_exceeded"
    assert "internal-7" not in str(answered.headers)
    _nothing_leaks(answered.body)


@pytest.mark.parametrize("stream", [True, False])
async def test_limits_are_told_with_good_answers_too(setup: Setup, stream: bool) -> None:
    limits = [(name, value) for name, value in LIMITS.items() if name.startswith("x-ratelimit-")]
    if stream:
        setup.server.script(answer(200, (SSE, *limits), text_stream("a")))
    else:
        setup.server.script(json_answer(completion("a"), 200, limits))
    answered = await post(setup.gateway.base_url + "/responses", {**ASK, "stream": stream})
    assert answered.status == 200
    assert all(answered.headers.get(name) == value for name, value in limits)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LEAKY["error"], "rate_limit_exceeded"),
        ({"message": "You exceeded your current quota", "type": "insufficient_quota"}, "insufficient_quota"),
        ({"message": "This model's maximum context length is 5 tokens", "code": 400}, "context_length_exceeded"),
        ({"message": f"failed in /usr/lib/x.py with {SECRET}", "code": 500}, "server_error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_error_after_the_first_byte_is_an_event_with_a_code_that_clients_know(
    setup: Setup, error: Any, code: str
) -> None:
    setup.server.script(answer(200, (SSE,), [event("Hel"), event({"error": error})]))
    answered = await post(setup.gateway.base_url + "/responses", {**ASK, "stream": True})
    assert answered.status == 200 and not answered.cut
    events = parse_sse(answered.body)
    check_stream(events)
    assert [one["type"] for one in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == events[-2]["code"] == code
    _nothing_leaks(answered.body)


async def test_an_unknown_model_is_the_upstreams_404(setup: Setup) -> None:
    setup.server.script(json_answer({"error": "model 'x' not found, try pulling it first"}, 404))
    answered = await post(setup.gateway.base_url + "/responses", ASK)
    error = json.loads(answered.body)["error"]
    assert (answered.status, error["type"]) == (404, "invalid_request_error")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
