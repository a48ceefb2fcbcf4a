"""What a background response's model call is made again for, and what not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.engine.running.job_run import PatientUpstream
from antiphon.observability.metrics import Metrics
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault
from tests.support.fake_time import fake_time
from tests.support.metrics import value_of

REQUEST = UpstreamRequest("POST", "/chat/completions", (), b"{}", "m", False)
ENVOY = (
    b'{"error":{"message":"The upstream cannot be reached.","type":"server_error",'
    b'"param":null,"code":"upstream_unreachable"}}'
)
PLAIN = b"upstream connect error or disconnect/reset before headers. reset reason: connection failure"
OWN = b'{"error":{"message":"I am full","type":"server_error","param":null,"code":"full"}}'


@dataclass
class Answer:
    status: int
    parts: list[bytes]
    headers: Headers = (("content-type", "application/json"),)
    left: bool = False

    async def body(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part


@dataclass
class Scripted:
    """Answers, or fails, in this order; the last one again and again."""

    script: list[Answer | UpstreamFault]
    calls: int = 0
    open: int = 0
    answers: list[Answer] = field(default_factory=list)

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[Answer]:
        now = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        if isinstance(now, UpstreamFault):
            raise UpstreamCallFailed(UpstreamError(now, "refused"))
        self.open += 1
        try:
            yield now
        finally:
            self.open -= 1

    async def aclose(self) -> None: ...


GOOD = Answer(200, [b"a", b"b"])


@pytest.mark.parametrize(
    "before",
    [
        [],
        [UpstreamFault.UNREACHABLE] * 3,
        [Answer(502, [ENVOY]), Answer(503, [PLAIN]), Answer(502, [ENVOY[:20], ENVOY[20:]])],
        [UpstreamFault.UNREACHABLE, Answer(503, [b"no healthy upstream"])],
    ],
    ids=["at once", "no connection", "Envoy says so", "both"],
)
@fake_time
async def test_it_is_asked_until_it_is_there(before: list[Answer | UpstreamFault]) -> None:
    upstream, metrics, told = Scripted([*before, GOOD]), Metrics(), list[tuple[int, str]]()

    def retried(failures: int, cause: str) -> None:
        told.append((failures, cause))

    with capture_logs() as lines:
        patient = PatientUpstream(upstream, 10.0, metrics, response_id="resp_1", retried=retried)
        async with patient.call(REQUEST) as answer:
            assert answer.status == 200 and upstream.open == 1
            assert [part async for part in answer.body()] == [b"a", b"b"]
    assert upstream.calls == len(before) + 1 and upstream.open == 0
    assert [line["attempt"] for line in lines] == list(range(1, len(before) + 1))
    for line in lines:
        said = (line["event"], line["fault"], line["upstream"], line["response_id"], line["log_level"])
        assert said == ("upstream_tried_again", "upstream", "default", "resp_1", "warning")
        assert line["cause"]
    assert told == [(line["attempt"], line["cause"]) for line in lines]
    text = metrics.render().decode()
    assert value_of(text, "antiphon_upstream_requests_total", operation="responses", status="unreachable") == len(
        before
    )


@pytest.mark.parametrize(
    ("status", "parts"),
    [(503, [OWN]), (502, [b"<h1>", b"no</h1>"]), (503, [b"x" * 3000, b"y" * 3000, ENVOY]), (503, []), (500, [ENVOY])],
    ids=["its own error", "a proxy's page", "something long", "nothing", "another status"],
)
@fake_time
async def test_what_it_answered_itself_counts(status: int, parts: list[bytes]) -> None:
    upstream = Scripted([Answer(status, parts), GOOD])
    async with PatientUpstream(upstream, 10.0).call(REQUEST) as answer:
        assert answer.status == status
        assert b"".join([part async for part in answer.body()]) == b"".join(parts)
    assert upstream.calls == 1


@pytest.mark.parametrize("fault", [UpstreamFault.TIMED_OUT, UpstreamFault.CUT])
@fake_time
async def test_what_may_have_reached_it_is_not_tried_again(fault: UpstreamFault) -> None:
    upstream = Scripted([fault, GOOD])
    with pytest.raises(UpstreamCallFailed):
        async with PatientUpstream(upstream, 10.0).call(REQUEST):
            pass
    assert upstream.calls == 1


@fake_time
async def test_what_fails_behind_the_head_is_not_tried_again() -> None:
    upstream = Scripted([GOOD])
    with pytest.raises(UpstreamCallFailed):
        async with PatientUpstream(upstream, 10.0).call(REQUEST):
            raise UpstreamCallFailed(UpstreamError(UpstreamFault.UNREACHABLE, "later"))
    assert upstream.calls == 1 and upstream.open == 0


@fake_time
async def test_very_many_tries_are_no_flood_of_lines() -> None:
    upstream = Scripted([*[UpstreamFault.UNREACHABLE] * 50, GOOD])
    with capture_logs() as lines:
        async with PatientUpstream(upstream, 600.0).call(REQUEST):
            pass
    assert upstream.calls == 51 and len(lines) == 20


@fake_time
async def test_patience_has_an_end() -> None:
    upstream = Scripted([UpstreamFault.UNREACHABLE])
    with pytest.raises(UpstreamCallFailed):
        async with PatientUpstream(upstream, 0.0).call(REQUEST):
            pass
    assert upstream.calls == 1
    upstream = Scripted([Answer(502, [ENVOY])])
    async with PatientUpstream(upstream, 0.2).call(REQUEST) as answer:
        assert answer.status == 502 and [part async for part in answer.body()] == [ENVOY]
    assert upstream.calls > 1


async def _pauses(seconds: float) -> list[float]:
    """Those of an upstream that is never there."""
    loop, upstream = asyncio.get_running_loop(), Scripted([UpstreamFault.UNREACHABLE])
    began = loop.time()
    with capture_logs() as lines, pytest.raises(UpstreamCallFailed):
        async with PatientUpstream(upstream, seconds).call(REQUEST):
            pass
    pauses = [line["retry_seconds"] for line in lines]
    assert upstream.calls == len(pauses) + 1 and loop.time() - began == pytest.approx(sum(pauses))
    return pauses


@pytest.mark.parametrize(("seconds", "pauses"), [(0.31, [0.1, 0.2]), (0.29, [0.1]), (0.11, [0.1]), (0.09, [])])
@fake_time
async def test_it_is_asked_as_often_as_the_time_allows(seconds: float, pauses: list[float]) -> None:
    assert await _pauses(seconds) == pauses


@fake_time
async def test_pauses_grow_to_a_longest_one() -> None:
    assert await _pauses(20.0) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize(("size", "calls"), [(4096, 2), (4097, 1)])
@fake_time
async def test_of_an_answer_as_long_as_envoys_can_be_the_end_is_read(size: int, calls: int) -> None:
    upstream = Scripted([Answer(503, [PLAIN.ljust(size - 1), b" "]), GOOD])
    async with PatientUpstream(upstream, 10.0).call(REQUEST) as answer:
        assert answer.status == (200 if calls == 2 else 503)
    assert upstream.calls == calls


@fake_time
async def test_when_a_call_failed_for_good_is_known() -> None:
    """Not when it is made again, nor when something was answered."""
    patient = PatientUpstream(Scripted([UpstreamFault.UNREACHABLE, GOOD, UpstreamFault.CUT]), 10.0)
    async with patient.call(REQUEST):
        assert patient.failed_at is None
    assert patient.failed_at is None
    with pytest.raises(UpstreamCallFailed):
        async with patient.call(REQUEST):
            pass
    assert patient.failed_at is not None
    patient = PatientUpstream(Scripted([GOOD]), 10.0)
    with pytest.raises(UpstreamCallFailed):
        async with patient.call(REQUEST):
            raise UpstreamCallFailed(UpstreamError(UpstreamFault.CUT, "in its body"))
    assert patient.failed_at is not None
