"""Calls that no response makes, in the metrics: each once, with its purpose, its upstream and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamAnswer, UpstreamCallFailed
from antiphon.engine.running.counted_calls import CountedUpstream
from antiphon.observability.metrics import Metrics
from antiphon.types.transport import LOCAL_REPLY, UPSTREAM_HEADER, Headers, UpstreamError, UpstreamFault
from tests.support.metrics import value_of


class _Answer:
    def __init__(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    async def body(self) -> AsyncIterator[bytes]:
        yield b"{}"


class _Upstream:
    """An upstream that answers, or fails before its head."""

    def __init__(self, status: int = 200, *headers: tuple[str, str], failure: BaseException | None = None) -> None:
        self._answer, self._failure = _Answer(status, headers), failure

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        if self._failure is not None:
            raise self._failure
        yield self._answer

    async def aclose(self) -> None:
        pass


_CUT = UpstreamCallFailed(UpstreamError(UpstreamFault.CUT, "it broke"))
_LATE = UpstreamCallFailed(UpstreamError(UpstreamFault.TIMED_OUT, "it is silent"))


async def _called(
    upstream: _Upstream, name: str = "", during: BaseException | None = None
) -> tuple[dict[str, str], float]:
    """The labels of the one call that was counted, and how many heads were timed."""
    metrics = Metrics()
    calls = CountedUpstream(upstream, metrics, "embeddings", name)
    try:
        async with calls.call(UpstreamRequest("POST", "/embeddings", (), upstream="east")) as answer:
            assert [part async for part in answer.body()] == [b"{}"]
            assert value_of(metrics.render().decode(), "antiphon_upstream_requests_total") == 0, "it is not over"
            if during is not None:
                raise during
    except (UpstreamCallFailed, asyncio.CancelledError):
        pass
    text = metrics.render().decode()
    (line,) = [
        line
        for line in text.splitlines()
        if line.startswith("antiphon_upstream_requests_total{") and line.endswith(" 1.0")
    ]
    labels = dict(one.split("=") for one in line[line.index("{") + 1 : line.index("}")].split(","))
    heads = [line for line in text.splitlines() if line.startswith("antiphon_upstream_") and "head" in line]
    timed = sum(float(line.rpartition(" ")[2]) for line in heads if "_count" in line)
    return {key: value.strip('"') for key, value in labels.items()}, timed


@pytest.mark.parametrize(
    ("upstream", "during", "status", "timed"),
    [
        (_Upstream(200), None, "200", 1),
        (_Upstream(503), None, "503", 1),
        (_Upstream(failure=_LATE), None, "timed_out", 0),
        (_Upstream(200), _CUT, "cut", 1),
        (_Upstream(200), asyncio.CancelledError(), "cancelled", 1),
        (_Upstream(failure=asyncio.CancelledError()), None, "cancelled", 0),
        (_Upstream(503, (LOCAL_REPLY, "no_healthy_upstream:x")), None, "no_healthy_upstream", 0),
    ],
)
async def test_a_call_counts_with_its_end(
    upstream: _Upstream, during: BaseException | None, status: str, timed: int
) -> None:
    labels, heads = await _called(upstream, during=during)
    assert labels == {"upstream": "east", "operation": "embeddings", "status": status}
    assert heads == timed


@pytest.mark.parametrize(
    ("upstream", "name", "counted"),
    [
        (_Upstream(), "", "east"),
        (_Upstream(), "named", "named"),
        (_Upstream(200, (UPSTREAM_HEADER, "west")), "", "west"),
        (_Upstream(200, (UPSTREAM_HEADER, "")), "named", "named"),
    ],
)
async def test_a_call_counts_for_who_answered(upstream: _Upstream, name: str, counted: str) -> None:
    assert (await _called(upstream, name))[0]["upstream"] == counted
