"""`/v1/responses/input_tokens`: counted by the server where it can, else an estimate that says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.exchange.response_exchange import COUNT_PATH, ResponseExchange
from antiphon.engine.ports.actions import CancelReason, Context, LoadContext, RequestHead
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault
from tests.support.exchanges import JSON, SSE, Outcome, limits, make_exchange, pump

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
ASKED: dict[str, Any] = {"model": "m", "input": "word " * 400, "instructions": "Be kind.", "tools": [TOOL]}


def _asked(
    profile: str = "vllm", headers: Headers = (), options: dict[str, Any] | None = None, **more: Any
) -> tuple[ResponseExchange, Outcome]:
    exchange, outcome = make_exchange(profile, **(options or {})), Outcome()
    body = json.dumps({**ASKED, **more}).encode()
    exchange.receive_request(RequestHead("POST", COUNT_PATH, headers, "owner"), body)
    pump(exchange, outcome)
    return exchange, outcome


def _estimated(outcome: Outcome) -> bool:
    assert outcome.head is not None and outcome.head.status == 200 and outcome.json["object"] == "response.input_tokens"
    said = ("antiphon-estimated", "input_tokens") in outcome.head.headers
    tokens: int = outcome.json["input_tokens"]
    assert (400 <= tokens <= 700) is said
    return said


def test_a_server_that_counts_is_asked_beside_its_base_url() -> None:
    exchange, outcome = _asked(stream=True, store=True)
    (call,) = outcome.calls
    assert (call.request.path, call.request.above, call.request.stream) == ("/tokenize", True, False)
    question = json.loads(call.request.body)
    assert set(question) == {"model", "messages", "tools", "add_generation_prompt"}
    assert question["messages"][0]["content"] == "Be kind." and question["add_generation_prompt"] is True
    exchange.receive_upstream_head(200, JSON)
    exchange.receive_upstream_data(b'{"count":4321,"max_model_len":8192,"tokens":[1,2]}')
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    assert outcome.json == {"object": "response.input_tokens", "input_tokens": 4321}
    assert not _estimated(outcome) and not outcome.records and exchange.done


@pytest.mark.parametrize("profile", ["vllm", "llamacpp"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"count":"many"}', b'{"count":-1}', b'{"tokens":[]}', b"\xff"])
@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("headers", [JSON, SSE])
def test_an_answer_that_is_none_is_replaced_by_the_estimate(
    profile: str, body: bytes, status: int, headers: Any
) -> None:
    exchange, outcome = _asked(profile)
    exchange.receive_upstream_head(status, headers)
    exchange.receive_upstream_data(body)
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    assert _estimated(outcome)


def test_a_server_that_is_away_is_replaced_too() -> None:
    exchange, outcome = _asked()
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "nobody"))
    pump(exchange, outcome)
    assert _estimated(outcome)


def test_llama_cpp_counts_below_its_base_url() -> None:
    exchange, outcome = _asked("llamacpp")
    (call,) = outcome.calls
    assert (call.request.path, call.request.above) == ("/chat/completions/input_tokens", False)
    assert set(json.loads(call.request.body)) == {"model", "messages", "tools"}
    exchange.receive_upstream_head(200, JSON)
    exchange.receive_upstream_data(b'{"input_tokens":329,"object":"response.input_tokens"}')
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    assert outcome.json["input_tokens"] == 329 and not _estimated(outcome)


def test_a_client_that_leaves_is_told_nothing() -> None:
    exchange, outcome = _asked()
    exchange.cancel(CancelReason.CLIENT_GONE)
    pump(exchange, outcome)
    assert outcome.head is None and outcome.finish is not None and outcome.finish.outcome == "cancelled"


def test_other_servers_are_not_asked() -> None:
    exchange, outcome = _asked("generic")
    assert exchange.done and not outcome.calls and _estimated(outcome)


def test_a_wrong_request_is_a_400() -> None:
    _, outcome = _asked(input=5)
    assert outcome.head is not None and outcome.head.status == 400


def test_an_answer_without_an_end_is_replaced_too() -> None:
    exchange, outcome = _asked(options={"limits": limits(upstream_body_bytes=100)})
    exchange.receive_upstream_head(200, JSON)
    exchange.receive_upstream_data(b'{"count":4321,"tokens":[' + b"1," * 100)
    pump(exchange, outcome)
    assert _estimated(outcome) and exchange.done


def test_a_server_that_takes_too_long_is_replaced_too() -> None:
    exchange, outcome = _asked(options={"times": TimeoutSettings(response=100.0)})
    exchange.receive_time(1000.0)
    exchange.receive_time(1100.0)
    pump(exchange, outcome)
    assert _estimated(outcome) and exchange.done


def test_a_file_is_fetched_before_its_text_is_counted() -> None:
    url = "https://files.example/a.txt"
    part = {"type": "input_file", "file_url": url}
    exchange = make_exchange()
    body = json.dumps({**ASKED, "input": [{"role": "user", "content": [part]}]}).encode()
    exchange.receive_request(RequestHead("POST", COUNT_PATH, (), "owner"), body)
    assert exchange.actions() == [LoadContext("owner", None, (), (url,))]
    exchange.receive_context(Context(files={url: FetchedFile("a.txt", "text/plain", b"word " * 400)}))
    outcome = Outcome()
    pump(exchange, outcome)
    assert _estimated(outcome)


def test_an_idempotency_key_has_no_effect_and_is_named() -> None:
    """Counting makes nothing that could be made twice."""
    _, outcome = _asked("generic", headers=(("idempotency-key", "k"),))
    assert outcome.head is not None and ("antiphon-ignored", "idempotency-key") in outcome.head.headers


def test_a_picture_counts_as_one_whatever_its_size() -> None:
    def tokens(size: int) -> int:
        image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * size}
        _, outcome = _asked("generic", input=[{"role": "user", "content": [image]}])
        told: int = outcome.json["input_tokens"]
        return told

    assert 1000 <= tokens(4_000) == tokens(400_000) < 1200
