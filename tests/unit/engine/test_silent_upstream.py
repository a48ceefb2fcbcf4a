"""An upstream that sends no answer is at fault, whatever the client has received by then."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import RequestHead
from antiphon.engine.ports.jobs import JobRequest
from antiphon.types.transport import UpstreamError, UpstreamFault
from tests.support.exchanges import Outcome, make_exchange, pump


def called(way: str, *, stream: bool) -> tuple[ResponseExchange, Outcome]:
    """An exchange that waits for the upstream's answer."""
    exchange, outcome = make_exchange(), Outcome()
    request: dict[str, Any] = {"model": "m", "input": "hi", "stream": stream}
    if way == "background":
        body = json.dumps({**request, "background": True}).encode()
        exchange.receive_job(JobRequest(Raw(body), [], 5.0), "owner", "resp_1", -1)
    else:
        exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), json.dumps(request).encode())
    pump(exchange, outcome)
    if way == "head sent":
        exchange.receive_silence()
        pump(exchange, outcome)
        assert outcome.head is not None
    assert len(outcome.calls) == 1
    return exchange, outcome


def failure(exchange: ResponseExchange) -> Failure:
    found = exchange.known.failure
    assert found is not None
    return found


WAYS = [("waiting", False), ("waiting", True), ("head sent", True), ("background", False), ("background", True)]


@pytest.mark.parametrize(("way", "stream"), WAYS)
@pytest.mark.parametrize("kind", [UpstreamFault.TIMED_OUT, UpstreamFault.CUT, UpstreamFault.UNREACHABLE])
def test_the_upstream_is_at_fault_for_a_call_without_an_answer(way: str, stream: bool, kind: UpstreamFault) -> None:
    exchange, outcome = called(way, stream=stream)
    exchange.receive_upstream_end(UpstreamError(kind, "a detail"))
    pump(exchange, outcome)
    found = failure(exchange)
    assert (found.fault, found.cause) == ("upstream", f"{kind.value}: a detail")
    assert (found.operation, found.upstream) == ("call_upstream", "default")


@pytest.mark.parametrize(("way", "stream"), WAYS)
def test_the_upstream_is_at_fault_when_the_response_takes_too_long(way: str, stream: bool) -> None:
    exchange, outcome = called(way, stream=stream)
    exchange.receive_time(0.0)
    exchange.receive_time(1e9)
    pump(exchange, outcome)
    found = failure(exchange)
    assert (found.fault, found.code, found.upstream) == ("upstream", "response_timeout", "default")
